"""``circuits compare``: graphs of one prompt by several models, or of two prompts by one, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import Device, JsonFile, check_outputs, err, out, progress, write_json
from circuits.errors import InputError


def compare(
    graphs: Annotated[list[Path], typer.Argument(help="Two or more .safetensors or .json graphs; the first is the one "
                                                 "that others are compared with.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write one self-contained .html page.")] = None,
    corpus: Annotated[Path | None, typer.Option(
        help="Text or JSONL that all models read: features are also compared by where they fire on it.")] = None,
    null: Annotated[list[Path] | None, typer.Option(
        help="A graph of an unrelated prompt of as many tokens, by a model after the first: says what is chance. May "
             "be given several times.")] = None,
    model: Annotated[list[str] | None, typer.Option(
        help="The model of every graph in order, where graphs do not say what can be opened.")] = None,
    transcoders: Annotated[list[str] | None, typer.Option(help="Likewise the transcoders of every graph.")] = None,
    no_models: Annotated[bool, typer.Option("--no-models", help="Open no model: features are compared by the promoted "
                                            "tokens that the graphs carry.")] = False,
    two_prompts: Annotated[bool, typer.Option("--two-prompts", help="The graphs are of several prompts of one model, "
                                              "with equal numbers of tokens.")] = False,
    node_threshold: Annotated[float, typer.Option(
        help="Match the nodes that hold this share of influence; graphs pruned before stay as they are.")] = 0.8,
    window: Annotated[float, typer.Option(help="Relative depth between two features that may match.")] = 0.25,
    seed: Annotated[int, typer.Option(help="Of what is shuffled to tell agreement from chance.")] = 0,
    top: Annotated[int, typer.Option(help="How many matches to print.")] = 10,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Compare two or more graphs: which features correspond, what is shared and what differs."""
    check_outputs([output, json_file])
    if output is not None and output.suffix.lower() != ".html":
        raise InputError(f"{output} is no page: give a name that ends in .html (numbers go to --json)")
    if top < 1:
        raise InputError(f"top is {top}: expected at least 1")
    from circuits.comparing.compare import compare as compare_graphs
    from circuits.comparing.compare import named_sources
    from circuits.comparing.tables import comparison_tables
    from circuits.graphs.compare_words import sentences
    from circuits.graphs.export import read

    loaded = [read(path) for path in graphs]
    with progress() as report:
        found = compare_graphs(
            loaded, named_sources(loaded, model, transcoders), corpus=corpus,
            unrelated=[read(path) for path in null or []], with_models=not no_models, two_prompts=two_prompts,
            node_threshold=node_threshold, window=window, seed=seed, device=device, progress=report)
    for graph, part in zip(loaded, found.graphs, strict=True):
        for warning in graph.header.warnings:
            err.print(f"warning: {part.name}: {warning}", style="yellow", markup=False, highlight=False)
    for table in comparison_tables(found, top):
        out.print(table)
    if output is not None:
        from circuits.comparing.page import write_page

        write_page(found, output)
        out.print(f"wrote {output}", markup=False, highlight=False)
    write_json(json_file, {**found.numbers(), "sentences": sentences(found)})
