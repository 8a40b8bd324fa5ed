"""Influence of every node on the targets: the one implementation (METHOD 5).

Shapes: N nodes, E edges, T rows of one level.

A row's share from a source is |edge| over the row's sum, edges from constants left out. With Â the shares and p the
weights of the targets, influence is ``p^T ((I - Â)^-1 - I)`` (Ameisen et al. 2025, "Circuit Tracing", appendix on
pruning). Edges only go up in layer, so one sweep from the logits down is exact: when a level's turn comes, everything
that will ever arrive at its nodes has arrived.

Which sum divides a row. The default is the sum of the edges that are present, so that the shares of every row add up
to one; that is what pruning recomputes with and what the scores mean. ``nodes.input_abs``, the sum before anything was
left out, equals it up to rounding while nothing is missing. In a graph whose rows were shortened (long prompts keep
the largest edges of a row) the default spreads the share of the missing edges over the present ones. Passed as
``row_sums``, ``nodes.input_abs`` instead ends that mass where the rows were cut: every influence is a lower bound, and
:func:`unexplored` counts the mass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from circuits.errors import InputError
from circuits.graphs.graph import AttributionGraph

NO_INPUTS = -1
"""Level of errors, tokens and constants."""


class Rows(NamedTuple):
    """Rows of one level."""

    nodes: np.ndarray
    """(T,) their indices, ascending."""
    sizes: Any
    """(T, N) |edge|, 0 from constants: sparse, or a dense array where a tracer holds its rows so."""
    scale: np.ndarray
    """(T,) one over the sum that divides the row; 0 for a row without influence to pass on."""


def levels(graph: AttributionGraph) -> np.ndarray:
    """(N,) int32 depth: a feature's layer, one above every layer for logits, ``NO_INPUTS`` for the others."""
    kind, layer = graph.nodes.kind, graph.nodes.layer
    level = np.where(kind == "feature", layer, NO_INPUTS).astype(np.int32)
    level[kind == "logit"] = level.max(initial=0) + 1
    return level


def target_weights(graph: AttributionGraph) -> np.ndarray:
    """(N,) float64 the weights p of the targets, 0 elsewhere."""
    weights = np.zeros(len(graph))
    np.add.at(weights, graph.target_nodes, graph.target_weights)
    return weights


def rows_by_level(graph: AttributionGraph, row_sums: np.ndarray | None = None, *, upwards: bool = False
                  ) -> Iterator[Rows]:
    """The rows that have edges, level by level in blocks: from the logits down, or the other way.

    One block lies in the memory of the one before: use its ``sizes``, or copy them, before asking for the next.

    Args:
        row_sums: (N,) what divides each row; by default the sum of its edges, those from constants left out.

    Raises:
        InputError: an edge does not go up in layer, so the sweep would lose it; or a row with edges has no row sum.
    """
    level = levels(graph)
    constant = graph.nodes.kind == "constant"
    lengths = np.diff(graph.indptr)
    with_edges = lengths > 0
    if row_sums is not None and not np.isfinite(row_sums[with_edges]).all():
        raise InputError(f"row_sums has no number for {np.count_nonzero(~np.isfinite(row_sums[with_edges]))} rows that "
                         "have edges: expected one for each, or None to divide by the sums of the present edges")
    order = np.unique(level[with_edges])
    block = _Block()
    for depth in order if upwards else order[::-1]:
        special = constant | (level >= depth)
        runs = np.flatnonzero(np.diff(special, prepend=False, append=False)).reshape(-1, 2).tolist()
        for nodes in graph.row_blocks(np.flatnonzero(with_edges & (level == depth))):
            starts = np.append(0, np.cumsum(lengths[nodes])).astype(np.int32)  # as the sources, or scipy copies those
            block.fill(graph, graph.edges_into(nodes), int(starts[-1]))
            unusual = block.positions(special, runs)
            if depth == NO_INPUTS or not constant[block.sources[unusual]].all():
                raise InputError(f"{_first_wrong_edge(graph, level)}: edges of an attribution graph go up in layer")
            block.sizes[unusual] = 0.0
            total = np.add.reduceat(block.sizes, starts[:-1]) if row_sums is None else row_sums[nodes]
            scale = np.divide(1.0, total, out=np.zeros(len(nodes)), where=total > 0)
            sizes = csr_array((block.sizes, block.sources, starts), shape=(len(nodes), len(graph)))
            yield Rows(nodes, sizes, scale)


class _Block:
    """The edges of some rows. One block after the other lies in the same memory: new arrays for each would have to be
    mapped by the system, which takes longer than the sums."""

    def __init__(self) -> None:
        self.held = np.empty(0, np.int32), np.empty(0), np.empty((3, 0), bool)

    def fill(self, graph: AttributionGraph, edges: np.ndarray | slice, count: int) -> None:
        """Take in the ``count`` edges at ``edges``: (E,) sources, and |weights| as float64 sizes."""
        if count > len(self.held[0]):
            self.held = np.empty(count, np.int32), np.empty(count), np.empty((3, count), bool)
        sources, sizes, masks = self.held
        self.sources, self.sizes, self.masks = sources[:count], sizes[:count], masks[:, :count]
        self.sources[:] = graph.indices[edges]
        np.abs(graph.weights[edges], out=self.sizes, dtype=np.float64)

    def positions(self, special: np.ndarray, runs: list[list[int]]) -> np.ndarray:
        """Where nodes of the mask ``special`` (N,), whose runs of neighbours are ``runs``, stand in the sources.

        A tracer's nodes stand kind by kind and layer by layer, so that the runs are few: comparing with their ends
        is several times faster than looking every source up.
        """
        if len(runs) > 4:
            return np.flatnonzero(special.take(self.sources))
        inside, above, below = self.masks
        inside[:] = False
        for first, stop in runs:
            np.greater_equal(self.sources, first, out=above)
            inside |= np.logical_and(above, np.less(self.sources, stop, out=below), out=above)
        return np.flatnonzero(inside)


def flow(rows: Iterable[Rows], start: np.ndarray) -> np.ndarray:
    """(N,) mass that arrives at each node when ``start`` (N,) flows down the rows, given from the logits down.

    The sweep itself; a tracer that holds unfinished dense rows calls it too. Nodes whose rows are not given are ends:
    what arrives there is first hits.
    """
    arrived = np.zeros_like(start)
    for nodes, sizes, scale in rows:
        mass = (start[nodes] + arrived[nodes]) * scale
        if mass.any():
            arrived += mass.astype(sizes.dtype) @ sizes
    return arrived


def influence(graph: AttributionGraph, row_sums: np.ndarray | None = None) -> np.ndarray:
    """(N,) float64 influence on the targets (METHOD 5); features whose rows were not computed are ends.

    Args:
        row_sums: (N,) see the top of this file.

    Raises:
        InputError: an edge does not go up in layer; or a row with edges has no row sum.
    """
    return flow(rows_by_level(graph, row_sums), target_weights(graph))


def unexplored(graph: AttributionGraph, row_sums: np.ndarray | None = None) -> float:
    """Influence that arrived at features whose rows were not computed, over the total weight of the targets.

    The certificate of METHOD 4: a path visits a node at most once, so computing the missing rows changes no node's
    share of influence by more than this. With ``row_sums`` (N,), mass lost in shortened rows counts as unexplored,
    that of rows with no edge left included.

    Raises:
        InputError: an edge does not go up in layer; or a row with edges has no row sum.
    """
    start = target_weights(graph)
    arrived = flow(rows_by_level(graph, row_sums), start)
    without_row = (graph.nodes.kind == "feature") & ~graph.nodes.expanded
    mass = float(arrived[without_row].sum())
    if row_sums is not None:
        passing = (row_sums > 0) & ~without_row
        mass += max(0.0, float((start + arrived)[passing].sum() - arrived.sum()))
    return mass / float(start.sum()) if start.any() else 0.0


def _first_wrong_edge(graph: AttributionGraph, level: np.ndarray) -> str:
    targets = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    wrong = np.flatnonzero((level[graph.indices] >= level[targets]) | (level[targets] == NO_INPUTS))[0]
    ends = [f"{graph.nodes.kind[i]} of layer {graph.nodes.layer[i]}" for i in (graph.indices[wrong], targets[wrong])]
    return f"edge {wrong} goes from the {ends[0]} to the {ends[1]}"
