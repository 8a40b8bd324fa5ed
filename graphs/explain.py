"""Why a target has its value, in sentences: its strongest paths, how much they cover and where the rest went.

Shapes: N nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from circuits.errors import InputError
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import Rows, flow, rows_by_level
from circuits.graphs.paths import Path, TopPaths, paths_from, target_node, whole_rows
from circuits.graphs.words import listed, node_name, percent


@dataclass(frozen=True)
class Parts:
    """Shares of a target's whole input, by where its paths end when they are followed down; they add up to 1."""

    listed: float
    """At tokens, over the paths that the explanation lists."""
    other_paths: float
    """At tokens, over all other paths."""
    errors: float
    """At errors: what the transcoders miss."""
    pruned: float
    """On edges that the graph lacks: pruned, those to features that were never explored included, or dropped from a
    shortened row."""
    unexplored: float
    """At features whose inputs were never computed."""
    constants: float
    """At nodes that nothing feeds but constants."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """The strongest paths to one target, with shares of its whole input."""

    graph: AttributionGraph = field(repr=False)
    target: int
    paths: TopPaths
    """From tokens; ``covered`` is the share of all that are listed, ``total`` of all there are."""
    error_paths: TopPaths | None
    """From errors, when asked for; likewise."""
    parts: Parts

    def sentences(self) -> list[str]:
        """One for each path, those from errors last, then one that says what all of them cover."""
        error_paths = [] if self.error_paths is None else self.error_paths.paths
        return [self.sentence(path) for path in (*self.paths, *error_paths)] + [self.coverage()]

    def sentence(self, path: Path) -> str:
        """``Token " Jordan" (position 4) → 3/345 names (layer 3) → raises " basketball": 4.2% of its input.``

        A position is told where it changes; "lowers" where the product of the edges' signs is negative.
        """
        nodes, steps, position = self.graph.nodes, [], None
        for node in path.nodes[:-1]:
            steps.append(_step(self.graph, node, moved=int(nodes.position[node]) != position))
            position = int(nodes.position[node])
        steps.append(f"{'raises' if path.sign > 0 else 'lowers'} {node_name(self.graph, self.target)}")
        return f"{' → '.join(steps)}: {percent(path.share)} of its input."

    def coverage(self) -> str:
        """The closing sentence."""
        count, parts = len(self.paths), self.parts
        name = node_name(self.graph, self.target)
        if count == 0:
            opening = f"No path from a token reaches {name}"
        else:
            what = "This path carries" if count == 1 else f"These {count} paths carry"
            opening = f"{what} {percent(parts.listed)} of the input of {name}"
        of_errors = f" (the paths listed {percent(self.error_paths.covered)})" if self.error_paths else ""
        rest = [("other paths from tokens", parts.other_paths, ""), ("errors", parts.errors, of_errors),
                ("pruned edges", parts.pruned, ""), ("unexplored features", parts.unexplored, ""),
                ("nodes fed by constants alone", parts.constants, "")]
        said = [f"{what} {percent(share)}{more}" for what, share, more in rest if share > 5e-5]
        return f"{opening}{'; the rest: ' if count else ': '}{listed(said)}." if said else f"{opening}."


def explain(graph: AttributionGraph, target: int | None = None, count: int = 12, *, errors: bool = False
            ) -> Explanation:
    """What gives ``target`` its value: the ``count`` strongest paths from tokens, and where all other input ends.

    Shares are of the whole inputs of every node on the way, those that pruning took included
    (:func:`graphs.paths.whole_rows`), so that a pruned graph does not claim more than it holds.

    Args:
        target: a node index; by default the target with the largest weight.
        errors: list the ``count`` strongest paths from errors too.

    Raises:
        InputError: ``count`` below 1, no such node, a node that has no inputs, a graph without targets, or an edge
            that does not go up in layer.
    """
    target = target_node(graph, target)
    kind = graph.nodes.kind
    if kind[target] not in ("feature", "logit"):
        raise InputError(f"target {target} is a node of kind {kind[target]}, which has no inputs: choose a feature or "
                         "a logit")
    sums = whole_rows(graph)
    paths = paths_from(graph, kind == "embedding", target, count, sums)
    error_paths = paths_from(graph, kind == "error", target, count, sums) if errors else None
    return Explanation(graph, target, paths, error_paths, _parts(graph, target, sums, paths))


def _parts(graph: AttributionGraph, target: int, sums: np.ndarray, paths: TopPaths) -> Parts:
    kind, expanded = graph.nodes.kind, graph.nodes.expanded
    start, passed = np.zeros(len(graph)), np.zeros(len(graph))
    start[target] = 1.0

    def watched() -> Iterator[Rows]:
        for rows in rows_by_level(graph, sums):
            passed[rows.nodes] = rows.sizes.sum(1) * rows.scale
            yield rows

    mass = start + flow(watched(), start)
    inner = np.isin(kind, ("feature", "logit"))
    stuck = inner & (sums == 0)
    return Parts(
        listed=paths.covered, other_paths=max(0.0, paths.total - paths.covered),
        errors=float(mass[kind == "error"].sum()), pruned=float((mass * (1 - passed))[inner & ~stuck].sum()),
        unexplored=float(mass[stuck & ~expanded].sum()), constants=float(mass[stuck & expanded].sum()))


def _step(graph: AttributionGraph, node: int, *, moved: bool) -> str:
    """A node on the way; ``moved``: at another position than the one before."""
    kind, layer, position = (graph.nodes[name][node] for name in ("kind", "layer", "position"))
    place = [f"layer {layer}"] if kind == "feature" else []
    place += [f"position {position}"] if moved and kind != "logit" else []
    where = f" ({', '.join(place)})" if place else ""
    return node_name(graph, node) + where
