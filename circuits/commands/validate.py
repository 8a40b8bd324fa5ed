"""``circuits validate``: a graph tested on the model it explains. Heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import Device, JsonFile, check_outputs, err, open_for, out, progress, write_json


def validate(
    graph: Annotated[Path, typer.Argument(help="A .safetensors or .json graph.")],
    output: Annotated[list[Path] | None, typer.Option(
        "--output", "-o", help="Graph with the numbers in it: .safetensors, .json, .graphml or .html; by default the "
        ".safetensors file that was given. May be given several times.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="Write figures to this .html file.")] = None,
    model: Annotated[str | None, typer.Option(
        help="Alias, hub id or folder; by default what the graph names.")] = None,
    transcoders: Annotated[str | None, typer.Option(
        "--transcoders", help="'bundled', hub path or folder; by default what the graph names.")] = None,
    no_layers: Annotated[bool, typer.Option("--no-layers", help="Do not compare layer by layer.")] = False,
    no_steering: Annotated[bool, typer.Option("--no-steering", help="Do not scale supernodes.")] = False,
    controls: Annotated[int, typer.Option(help="Random sets of features beside each supernode.")] = 5,
    seed: Annotated[int, typer.Option(help="Of shuffles, resamples and controls.")] = 0,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Measure how well a graph predicts what interventions do, and note it in the graph."""
    from circuits.graphs import export

    outputs = output or ([graph] if graph.suffix.lower() == ".safetensors" else [])
    check_outputs([*outputs, page, json_file], outputs)
    loaded = export.read(graph)
    import circuits

    with progress() as report:
        opened, dictionary = open_for(loaded, model, transcoders, device, report)
        found = circuits.validate(loaded, opened, dictionary, layers=not no_layers, steering=not no_steering,
                                  controls=controls, seed=seed, progress=report)
    for table in found.tables():
        out.print(table)
    annotated = found.annotated(loaded)
    for path in outputs:
        export.write(annotated, path)
    if page is not None:
        found.write_page(page)
    write_json(json_file, found.numbers())
    for path in [*outputs, *([page] if page else [])]:
        out.print(f"wrote {path}", markup=False, highlight=False)
    if not found.frozen.passed:
        err.print(f"warning: frozen interventions miss the graph's edges by {found.frozen.max_relative_error:.1e} "
                  "(relative), expected at most 1e-4 in float32", style="yellow", markup=False, highlight=False)
