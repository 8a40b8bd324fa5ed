"""How many steps the paths of a graph have, and where they end: exact, over all paths at once (METHOD 5).

A step is one edge, whatever attention layers and residual stream it runs through: a token that raises the target
directly does it in one step, over one feature in two. A path weighs what its influence weighs: the product of its
edges' shares of their targets' inputs.

Shapes: N nodes, S steps of the longest possible path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuits.errors import InputError
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import levels, rows_by_level, target_weights

ENDS = ("tokens", "errors", "unexplored", "constants")
"""Where paths end: at tokens, at what the transcoders miss, at features whose rows were not computed, and at nodes
that nothing else feeds: only constants, or only errors where those are left out, or edges that pruning took."""


@dataclass(frozen=True, eq=False)
class PathLengths:
    """All paths from the targets down, by where they end and after how many steps."""

    ends: dict[str, np.ndarray]
    """Of each of ENDS: (S + 1,) share of influence that ends there after exactly 0, 1, .. steps; all add up to 1."""
    influence: np.ndarray
    """(N,) influence of every node, the targets weighing 1 together."""

    def share(self, end: str) -> float:
        """Share of influence that ends at one of ENDS."""
        return float(self.ends[end].sum())

    def mean(self, end: str = "tokens") -> float:
        """Steps of a path that ends there, expected over influence; NaN where none does."""
        share = self.ends[end]
        return float(share @ np.arange(len(share)) / share.sum()) if share.any() else float("nan")

    def distribution(self, end: str = "tokens") -> np.ndarray:
        """(S + 1,) of the influence that ends there, the share by steps; zeros where none does."""
        share = self.ends[end]
        return share / share.sum() if share.any() else share


def path_lengths(graph: AttributionGraph, *, errors: bool = True) -> PathLengths:
    """The sweep of :func:`graphs.influence.flow` with mass kept apart by the steps it has made.

    Args:
        errors: False leaves edges from errors out of the shares, as if the other inputs made up for them. Every
            feature on a path loses part of its influence to errors, so that the paths that reach tokens are the
            shorter the more is lost: lengths of graphs with unequal errors compare only without them.

    Raises:
        InputError: no target has weight, or an edge does not go up in layer.
    """
    start = target_weights(graph)
    if not start.sum() > 0:
        raise InputError("the graph has no targets with weight: trace it again")
    longest = len(np.unique(levels(graph)[np.diff(graph.indptr) > 0]))  # every step goes down a level or more
    arrived = np.zeros((longest + 1, len(graph)))
    arrived[0] = start / start.sum()
    passed = np.zeros(len(graph), dtype=bool)
    for rows in rows_by_level(graph, None if errors else _sums_without_errors(graph)):
        mass = arrived[:, rows.nodes] * rows.scale
        passed[rows.nodes] = rows.scale > 0
        steps = np.flatnonzero(mass.any(1))
        arrived[steps + 1] += mass[steps] @ rows.sizes
    kind = graph.nodes.kind
    if not errors:
        arrived[:, kind == "error"] = 0.0
    unexplored = (kind == "feature") & ~graph.nodes.expanded
    where = {"tokens": kind == "embedding", "errors": kind == "error", "unexplored": unexplored & ~passed,
             "constants": np.isin(kind, ("feature", "logit")) & ~unexplored & ~passed}
    return PathLengths({end: arrived[:, where[end]].sum(1) for end in ENDS}, arrived[1:].sum(0))


def _sums_without_errors(graph: AttributionGraph) -> np.ndarray:
    """(N,) sums of |edge| from features and tokens into every node."""
    kept, sums = (graph.nodes.kind != "error").astype(np.float64), np.zeros(len(graph))
    for rows in rows_by_level(graph):
        sums[rows.nodes] = rows.sizes @ kept
    return sums
