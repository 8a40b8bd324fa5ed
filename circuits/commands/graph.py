"""``circuits show`` and ``circuits export``: graphs that were written before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.commands.common import JsonFile, check_outputs, out, write_json
from circuits.errors import InputError

if TYPE_CHECKING:
    from circuits.graphs import AttributionGraph


def show(
    graph: Annotated[Path, typer.Argument(help="A .safetensors or .json graph.")],
    top: Annotated[int, typer.Option(help="How many features and paths.")] = 10,
    json_file: JsonFile = None,
) -> None:
    """Print a graph's scores, top features and top paths."""
    from circuits.graphs import export

    check_outputs([json_file])
    if top < 1:
        raise InputError(f"top is {top}: expected at least 1")
    loaded = export.read(graph)
    print_graph(loaded, top=top)
    write_json(json_file, graph_numbers(loaded))


def export_command(
    graph: Annotated[Path, typer.Argument(help="A .safetensors or .json graph.")],
    output: Annotated[list[Path], typer.Option("--output", "-o", help="File to write: .safetensors, .json, .graphml "
                                               "or .html. May be given several times.")],
    node_threshold: Annotated[float | None, typer.Option(
        help="Prune first: share of influence that kept nodes hold, such as 0.8.")] = None,
    edge_threshold: Annotated[float, typer.Option(
        help="With --node-threshold: share of edge scores that kept edges hold.")] = 0.98,
) -> None:
    """Write a graph in other formats."""
    from circuits.graphs import export
    from circuits.graphs.prune import check_thresholds

    check_outputs(output, output)
    loaded = export.read(graph)
    if node_threshold is None:
        write_graph(loaded, output)
    else:
        check_thresholds(node_threshold, edge_threshold)
        write_graph(loaded.prune(node_threshold, edge_threshold), output, (loaded, node_threshold, edge_threshold))
    for path in output:
        out.print(f"wrote {path}", markup=False, highlight=False)


def write_graph(graph: AttributionGraph, outputs: list[Path],
                pruned_from: tuple[AttributionGraph, float, float] | None = None) -> None:
    """Write ``graph`` to every path, in the format its suffix names.

    Args:
        pruned_from: the whole graph, and the node and edge threshold that left ``graph`` of it: pages hold more than
            they show at first, so that their sliders go both ways.
    """
    from circuits.graphs import export

    for path in outputs:
        if pruned_from is not None and path.suffix.lower() == ".html":
            whole, *thresholds = pruned_from
            whole.to_html(path, thresholds=(thresholds[0], thresholds[1]))
        else:
            export.write(graph, path)


def graph_numbers(graph: AttributionGraph) -> dict[str, Any]:
    """What ``--json`` reports of a graph."""
    header = graph.header
    return {"prompt": header.prompt, "model": header.model, "transcoders": header.transcoders,
            "nodes": len(graph), "edges": graph.n_edges,
            "targets": [{"label": graph.nodes.label[n], "token": int(graph.nodes.token[n]), "weight": float(w)}
                        for n, w in zip(graph.target_nodes, graph.target_weights, strict=True)],
            **header.scores, "conservation": header.conservation, "unexplored": header.unexplored,
            "reconstruction": header.reconstruction, "settings": header.settings, "warnings": header.warnings}


def print_graph(graph: AttributionGraph, top: int = 10, seconds: float | None = None) -> None:
    """Print a graph's scores, its ``top`` features and paths, and how many ``seconds`` it took."""
    from circuits.report import graph_tables

    for table in graph_tables(graph, top, seconds):
        out.print(table)
