"""``circuits crosscheck``: one prompt traced with two transcoder sets, and what the graphs agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import (
    Device,
    JsonFile,
    Model,
    TranscodersOption,
    check_outputs,
    err,
    out,
    progress,
    write_json,
)
from circuits.commands.graph import write_graph


def crosscheck(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    other: Annotated[str, typer.Option(help="The second set: 'bundled', hub path or folder; best a per-layer one.")],
    transcoders: TranscodersOption = "bundled",
    model: Model = "gemma-3-270m",
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the model's chat template.")] = False,
    target: Annotated[str | None, typer.Option(help="Explain this token instead of the top logits.")] = None,
    versus: Annotated[str | None, typer.Option(help="With --target: why that token and not this one.")] = None,
    coverage: Annotated[float, typer.Option(help="Share of influence to explore; 1.0 computes every row.")] = 0.95,
    max_features: Annotated[int | None, typer.Option(help="Stop after this many features' rows of a graph.")] = None,
    max_logits: Annotated[int, typer.Option(help="At most this many top logits.")] = 10,
    logit_prob: Annotated[float, typer.Option(help="Probability the top logits must hold.")] = 0.95,
    node_threshold: Annotated[float, typer.Option(help="Match the features that hold this share of influence.")] = 0.8,
    window: Annotated[int | None, typer.Option(
        help="Layers between two features that may match; by default a quarter of the model's.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is shuffled to tell agreement from chance.")] = 0,
    top: Annotated[int, typer.Option(help="How many matches to print.")] = 10,
    save: Annotated[tuple[Path, Path] | None, typer.Option(
        help="Two files for the graphs, not pruned: .safetensors, .json, .graphml or .html.")] = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Trace a prompt with two transcoder sets of one model and report what the graphs agree on."""
    check_outputs([*(save or []), json_file], save or [])
    import circuits
    from circuits.crosscheck import crosscheck as trace_both
    from circuits.crosscheck_report import crosscheck_tables

    with progress() as report:
        report("loading the model", 0, 1)
        opened = circuits.load_model(model, device=device, progress=report)
        first, second = (circuits.open_transcoders(name, device=opened.device, model=opened.name)
                         for name in (transcoders, other))
        found = trace_both(
            opened, first, second, prompt, chat=chat, target=target, versus=versus, coverage=coverage,
            max_features=max_features, max_logits=max_logits, logit_prob=logit_prob, node_threshold=node_threshold,
            window=window, seed=seed, progress=report)
    for graph in (found.first, found.second):
        for warning in graph.header.warnings:
            err.print(f"warning: {graph.header.transcoders}: {warning}", style="yellow", markup=False, highlight=False)
    for table in crosscheck_tables(found, top):
        out.print(table)
    for graph, path in zip((found.first, found.second), save or (), strict=False):
        write_graph(graph, [path])
        out.print(f"wrote {path}", markup=False, highlight=False)
    write_json(json_file, found.numbers())
