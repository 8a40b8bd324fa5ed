"""``circuits attention``: which heads carry a graph's edges, and why a head looks where it looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import Device, JsonFile, check_outputs, open_for, out, progress, write_json
from circuits.commands.graph import write_graph
from circuits.errors import InputError


def attention(
    graph: Annotated[Path, typer.Argument(help="A graph: .safetensors or .json.")],
    edge: Annotated[tuple[str, str] | None, typer.Option(metavar="SOURCE TARGET", help="Two node ids: the heads that "
                                                         "carry this edge.")] = None,
    head: Annotated[str | None, typer.Option(metavar="LAYER/HEAD", help="The edges this head carries most; with "
                                             "--query and --key, why it looks there.")] = None,
    query: Annotated[int | None, typer.Option(help="Position that looks; by default the last.")] = None,
    key: Annotated[int | None, typer.Option(help="Position that is looked at: take its score apart.")] = None,
    versus: Annotated[int | None, typer.Option(help="A second key: why more at --key than there.")] = None,
    top: Annotated[int, typer.Option(help="Rows of each table.")] = 10,
    output: Annotated[list[Path] | None, typer.Option("--output", "-o", help="Write the graph with its heads: .html or "
                                                      ".safetensors. May be given several times.")] = None,
    scores: Annotated[int | None, typer.Option(help="With -o: how many attention scores the page can explain.")] = None,
    model: Annotated[str | None, typer.Option(help="Alias, hub id or folder; by default the graph's.")] = None,
    transcoders: Annotated[str | None, typer.Option("--transcoders", help="'bundled', hub path or folder; by default "
                                                    "the graph's.")] = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Print which attention heads carry an edge, and why a head looks at a token."""
    check_outputs([*(output or []), json_file], output or [])
    if (query is not None or key is not None or versus is not None) and (head is None or key is None):
        raise InputError("--query, --key and --versus ask why a head looks at a key: give --head and --key")
    if top < 1:
        raise InputError(f"top is {top}: expected at least 1")
    from circuits.attention.report import AttentionOf
    from circuits.attention.table import SCORES, head_table
    from circuits.graph_nodes import replacement_of
    from circuits.graphs import export

    loaded = export.read(graph)
    with progress() as report:
        opened, dictionary = open_for(loaded, model, transcoders, device, report)
        local = replacement_of(loaded, opened, dictionary, report)
        asked = AttentionOf(loaded, opened, dictionary, local)
        told = [asked.edge(*edge, top)] if edge is not None else []
        if head is not None:
            told.append(asked.head(head, top) if key is None else asked.score(head, query, key, versus, top))
        if not told:
            told.append(asked.strongest(top))
        if output:
            table = head_table(loaded, opened, dictionary, local=local, scores=SCORES if scores is None else scores,
                               progress=report)
            write_graph(replace(loaded, heads=table), output)
    for tables, _ in told:
        for shown in tables:
            out.print(shown)
    for path in output or []:
        out.print(f"wrote {path}", markup=False, highlight=False)
    write_json(json_file, {name: value for _, numbers in told for name, value in numbers.items()})
