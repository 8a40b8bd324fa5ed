"""What the command line prints: tables of a graph's scores, features and paths, and of a transcoder's quality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from circuits.graphs import AttributionGraph
from circuits.graphs.explain import explain


def graph_tables(graph: AttributionGraph, top: int = 10, seconds: float | None = None) -> Iterator[Table | Text]:
    """Summary, targets, features by influence, and the strongest paths from tokens to the first target."""
    yield _summary(graph, seconds)
    yield _targets(graph)
    yield _features(graph, top)
    yield from _paths(graph, top)


def _summary(graph: AttributionGraph, seconds: float | None) -> Table:
    header, table = graph.header, Table(show_header=False, box=None)
    kinds = {kind: int((graph.nodes.kind == kind).sum()) for kind in np.unique(graph.nodes.kind)}
    rows = [("prompt", visible(header.prompt)), ("model", header.model), ("transcoders", header.transcoders),
            ("nodes", f"{len(graph)} ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"),
            ("edges", str(graph.n_edges))]
    rows += [(name.replace("_", " "), f"{value:.3f}") for name, value in header.scores.items()]
    rows += [("conservation", f"{header.conservation:.1e} (largest relative residual)"),
             ("unexplored", f"{header.unexplored:.3f} of influence")]
    if seconds is not None:
        rows.append(("time", f"{seconds:.1f} s"))
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(str(value)))
    return table


def _targets(graph: AttributionGraph) -> Table:
    table = Table("target", "weight", "value", title="Targets", title_justify="left")
    for node, weight in zip(graph.target_nodes, graph.target_weights, strict=True):
        table.add_row(Text(visible(graph.nodes.label[node])), f"{weight:.3f}", f"{graph.nodes.value[node]:.2f}")
    return table


def _features(graph: AttributionGraph, top: int) -> Table:
    nodes = graph.nodes
    features = np.flatnonzero(nodes.kind == "feature")
    table = Table("feature", "at", "activation", "influence", title="Features by influence", title_justify="left")
    for node in features[np.argsort(-nodes.influence[features], kind="stable")[:top]]:
        table.add_row(Text(visible(nodes.label[node])), Text(_place(graph, int(node))), f"{nodes.value[node]:.2f}",
                      f"{nodes.influence[node]:.4f}")
    return table


def _paths(graph: AttributionGraph, top: int) -> Iterator[Table | Text]:
    if not len(graph.target_nodes):
        return
    told = explain(graph, None, top)
    table = Table("share", "path", title="Strongest paths from tokens", title_justify="left")
    for path in told.paths:
        steps = [f"{visible(graph.nodes.label[n])}{_place_mark(graph, n)}" for n in path.nodes]
        table.add_row(f"{'+' if path.sign > 0 else '-'}{path.share:.2%}", Text(" → ".join(steps)))
    yield table
    yield Text(told.coverage())


def _place(graph: AttributionGraph, node: int) -> str:
    position, texts = int(graph.nodes.position[node]), graph.header.token_texts
    return f"{position} {visible(texts[position])}" if 0 <= position < len(texts) else str(position)


def _place_mark(graph: AttributionGraph, node: int) -> str:
    return f" @{int(graph.nodes.position[node])}" if graph.nodes.kind[node] == "feature" else ""


def visible(text: str) -> str:
    """``text`` on one line with control characters escaped, so it cannot move the terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


MEASURES = {
    "fvu_mean": ("variance unexplained, mean over layers", ".3f"),
    "active_per_position": ("active features per position", ".1f"),
    "dead_fraction": ("features that fired nowhere in this text", ".1%"),
    "dense_fraction": ("features firing on over 10% of positions", ".1%"),
    "kl": ("all MLPs replaced: KL, nats", ".3f"),
    "top1_agreement": ("all MLPs replaced: top-1 agreement", ".1%"),
    "loss_replaced": ("all MLPs replaced: loss, nats", ".3f"),
    "loss_recovered": ("all MLPs replaced: loss recovered", ".1%"),
    "kl_with_errors": ("the same with error terms: KL (0 by construction)", ".1e"),
    "top1_with_errors": ("the same with error terms: top-1 agreement", ".1%"),
    "kl_mean_ablated": ("MLPs mean-ablated: KL, nats", ".3f"),
    "loss_mean_ablated": ("MLPs mean-ablated: loss, nats", ".3f"),
    "loss": ("original model: loss, nats", ".3f"),
    "replacement_score": ("graphs: replacement score, mean", ".3f"),
    "completeness_score": ("graphs: completeness score, mean", ".3f"),
    "positions": ("positions measured", "d"),
}
"""Scalars of :class:`circuits.training.evaluate.Quality` and GraphQuality: what their rows say, and in which form."""
LAYER_MEASURES = {"fvu_by_layer": ("unexplained", ".3f"), "active_by_layer": ("active", ".1f"),
                  "dead_by_layer": ("fired nowhere", ".1%"), "dense_by_layer": ("over 10%", ".1%")}

Named = Sequence[tuple[str, dict[str, Any]]]
"""Transcoder sets by name, each with its numbers as ``--json`` writes them; a key that is absent shows as a dash."""


def quality_table(sets: Named) -> Table:
    """Measures, one a row, with a column for each transcoder set."""
    table = _table("Transcoder quality", Text("measure"), *(_cell(name) for name, _ in sets))
    for key, (label, form) in MEASURES.items():
        if any(numbers.get(key) is not None for _, numbers in sets):
            table.add_row(label, *(_figure(numbers.get(key), form) for _, numbers in sets))
    return table


def layer_table(sets: Named) -> Table:
    """Measures by layer: all of them for one set, the variance unexplained of each for several."""
    if len(sets) == 1:
        title = "By layer"
        chosen = [(label, sets[0][1].get(key), form) for key, (label, form) in LAYER_MEASURES.items()]
    else:
        title = "Variance unexplained by layer"
        chosen = [(name, numbers.get("fvu_by_layer"), ".3f") for name, numbers in sets]
    columns = [(_cell(label), values, form) for label, values, form in chosen if values is not None]
    table = _table(title, Text("layer"), *(label for label, _, _ in columns))
    for layer in range(max((len(values) for _, values, _ in columns), default=0)):
        table.add_row(str(layer), *(_figure(values[layer], form) for _, values, form in columns))
    return table


def prompt_table(sets: Named) -> Table:
    """Replacement and completeness of every prompt's graph, a pair of columns for each set."""
    several = len(sets) > 1
    heads = [_cell(f"{name}: {what}" if several else what) for name, _ in sets
             for what in ("replacement", "completeness")]
    table = _table("Graphs, unpruned", Text("prompt"), *heads)
    for graphs in zip(*(numbers["prompts"] for _, numbers in sets), strict=True):
        table.add_row(_cell(graphs[0]["prompt"]), *(_figure(graph[key], ".3f") for graph in graphs
                                                    for key in ("replacement_score", "completeness_score")))
    return table


def _table(title: str, *columns: Text) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _cell(text: str) -> Text:
    return Text(visible(text))
