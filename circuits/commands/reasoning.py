"""``circuits reasoning``: how much of an answer's influence passes through the stated reasoning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import (
    Device,
    JsonFile,
    check_outputs,
    err,
    out,
    progress,
    write_json,
)


def reasoning(
    prompt: Annotated[str | None, typer.Argument(
        help="Text with marks: [\\[question]]...[\\[/question]] [\\[reasoning]]...[\\[/reasoning]] "
             "Answer: [\\[answer]]5. Or plain text with --span.")] = None,
    file: Annotated[Path | None, typer.Option(
        "--file", "-f", help='JSON or JSONL of prompts instead: {"prompt": ..., "spans": {"reasoning": [9, 20]}}.')
    ] = None,
    span: Annotated[list[str] | None, typer.Option(
        help="Range of tokens, such as reasoning=9:20 for 9 to 19; <bos> is 0. May be given several times.")] = None,
    through: Annotated[str, typer.Option(help="The span whose share is asked for.")] = "reasoning",
    origin: Annotated[str | None, typer.Option(
        "--from", help="The span it may pass on; by default 'question', if there is one.")] = None,
    model: Annotated[str | None, typer.Option(
        help="Alias, hub id or folder; by default what the graph names, or gemma-3-270m.")] = None,
    transcoders: Annotated[str | None, typer.Option(
        "--transcoders", help="'bundled', hub path or folder; by default what the graph names, or bundled.")] = None,
    graph: Annotated[Path | None, typer.Option(help="The prompt's graph, where it was traced already.")] = None,
    target: Annotated[str | None, typer.Option(help="Explain this token instead of the top logits.")] = None,
    versus: Annotated[str | None, typer.Option(help="With --target: why that token and not this one.")] = None,
    corrupt_with: Annotated[str | None, typer.Option(
        help="Text in the span's place, of as many tokens; by default its own tokens, shuffled.")] = None,
    corrupt_from_with: Annotated[str | None, typer.Option(help="Likewise in the place of the --from span.")] = None,
    coverage: Annotated[float, typer.Option(help="Share of influence to explore; 1.0 computes every row.")] = 0.95,
    max_features: Annotated[int | None, typer.Option(help="Stop after this many features' rows.")] = None,
    no_ablation: Annotated[bool, typer.Option("--no-ablation", help="Only read the graph.")] = False,
    controls: Annotated[int, typer.Option(help="Control spans, and random sets of features.")] = 5,
    seed: Annotated[int, typer.Option(help="Of shuffles, controls and random features.")] = 0,
    page: Annotated[Path | None, typer.Option("--output", "-o", help="Write figures to this .html file.")] = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Measure how much of an answer's influence passes through marked reasoning, and what ablating it does."""
    from circuits.reasoning.spanned import asked_cases

    check_outputs([page, json_file])
    cases = asked_cases(prompt, file, span or [], graph is not None, target=target, versus=versus,
                        corrupt_with=corrupt_with, corrupt_from_with=corrupt_from_with)
    import circuits
    from circuits.graphs import export
    from circuits.reasoning.measure import trace_reasoning
    from circuits.reasoning.page import write_page

    loaded = None if graph is None else export.read(graph)
    named = (None, None) if loaded is None else (loaded.header.model, loaded.header.transcoders)
    found = []
    with progress() as report:
        report("loading the model", 0, 1)
        opened = circuits.load_model(model or named[0] or "gemma-3-270m", device=device, progress=report)
        dictionary = circuits.open_transcoders(transcoders or named[1] or "bundled", device=opened.device,
                                               model=opened.name)
        for case in cases:
            found.append(trace_reasoning(
                opened, dictionary, case, graph=loaded, through=through, origin=origin, coverage=coverage,
                max_features=max_features, ablations=not no_ablation, controls=controls, seed=seed, progress=report))
    for one in found:
        for table in one.tables():
            out.print(table)
        for warning in one.graph.header.warnings:
            err.print("warning:", warning, style="yellow", markup=False, highlight=False)
    if page is not None:
        write_page(found, page)
        out.print(f"wrote {page}", markup=False, highlight=False)
    write_json(json_file, {"prompts": [one.numbers() for one in found]})
