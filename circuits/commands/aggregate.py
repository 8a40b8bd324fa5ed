"""``circuits aggregate``: what many prompts' graphs have in common, and what differs between two families."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import JsonFile, check_outputs, err, out, progress, write_json
from circuits.errors import InputError


def aggregate(
    paths: Annotated[list[Path], typer.Argument(
        help="A folder that circuits batch wrote, a folder of .safetensors graphs, or such files.")],
    by: Annotated[str | None, typer.Option(
        help="Key of summary.jsonl that divides the prompts into families, such as family or correct; by default "
             "family, where there is one.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only this family. May be given several times.")] = None,
    versus: Annotated[str | None, typer.Option(
        help="Compare the family named by --family with this one; two families are compared unasked.")] = None,
    share: Annotated[float, typer.Option(help="Share of a family's prompts that something must be in to recur.")] = 0.5,
    top: Annotated[int, typer.Option(help="How many features, supernodes, edges and differences to print.")] = 10,
    seed: Annotated[int, typer.Option(help="Of intervals and of tests by shuffling.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write an HTML page.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Find the features, edges and circuits that recur over prompts, and what differs between two families."""
    check_outputs([output, json_file])
    if top < 1:
        raise InputError(f"top is {top}: expected at least 1")
    from circuits.aggregating.folder import find_families, versus_of
    from circuits.aggregating.tables import aggregate_tables
    from circuits.graphs.aggregate import aggregate as find
    from circuits.graphs.aggregate_numbers import numbers

    wanted = list(dict.fromkeys([*(family or []), *([versus] if versus and family else [])]))
    found = find_families(paths, by, wanted)
    with progress() as report:
        made = find(found.families, versus=versus_of(found.families, versus), share=share, seed=seed, progress=report)
    for warning in [*found.warnings, *made.warnings]:
        err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    for table in aggregate_tables(made, top):
        out.print(table)
    if output is not None:
        from circuits.aggregating.page import write_page

        write_page(made, output)
        out.print(f"wrote {output}", markup=False, highlight=False)
    write_json(json_file, numbers(made))
