"""The part of a graph that carries a given share of influence (METHOD 5).

Shapes: N nodes, E edges. The masks equal circuit-tracer 0.5.0's on the same graph, constants aside, which it lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from circuits.errors import InputError
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import Rows, flow, influence, rows_by_level, target_weights


def prune(graph: AttributionGraph, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> AttributionGraph:
    """The nodes and edges that :func:`prune_masks` keeps.

    ``nodes.influence`` and ``header.scores`` stay those of the graph before pruning. ``header.settings`` gains
    ``node_threshold``, ``edge_threshold`` and ``unpruned`` = {nodes, edges, influence}: the counts and the total
    influence before the first pruning.

    Raises:
        InputError: a threshold outside [0, 1], or an edge that does not go up in layer.
    """
    check_thresholds(node_threshold, edge_threshold)
    inner = graph.subgraph(_strongest_nodes(graph, node_threshold))
    keep, edges = _strongest_edges(inner, edge_threshold)
    keep_edges = np.zeros(inner.n_edges, dtype=bool)
    keep_edges[edges] = True
    small = inner.subgraph(keep, keep_edges)
    before = {"nodes": len(graph), "edges": graph.n_edges,
              "influence": float(graph.nodes.influence.sum(dtype=np.float64))}
    settings = {"unpruned": before} | small.header.settings | {
        "node_threshold": float(node_threshold), "edge_threshold": float(edge_threshold)}
    return replace(small, header=replace(small.header, settings=settings))


def prune_masks(graph: AttributionGraph, node_threshold: float, edge_threshold: float
                ) -> tuple[np.ndarray, np.ndarray]:
    """Which nodes (N,) and edges (E,) to keep, as masks.

    1. The fewest nodes that hold ``node_threshold`` of all influence; tokens and logits always.
    2. Influence is recomputed on what is left; an edge scores (share of its target's input) x (target's influence
       + target weight); the fewest edges that hold ``edge_threshold`` of all scores.
    3. Until nothing changes: features and errors without an outgoing edge go, and features without an incoming one.
       A feature whose row was never computed is an end, like an error, and needs no incoming edge.

    Shares are of the edges present at each step, also where rows were shortened before (:mod:`graphs.influence`).
    Constants carry no influence. An edge from one is scored like the others, against the same cut, but changes
    neither the cut nor which other nodes stay; constants without edges go. A threshold of 1 keeps everything at its
    step, nodes of no influence included.

    Raises:
        InputError: a threshold outside [0, 1], or an edge that does not go up in layer.
    """
    check_thresholds(node_threshold, edge_threshold)
    keep = _strongest_nodes(graph, node_threshold)
    between = graph.edges_between(keep)
    keep[keep], edges = _strongest_edges(graph.subgraph(keep), edge_threshold)
    keep_edges = np.zeros(graph.n_edges, dtype=bool)
    keep_edges[between[edges]] = True
    return keep, keep_edges


def check_thresholds(node_threshold: float, edge_threshold: float) -> None:
    """That both can be pruned by.

    Raises:
        InputError: one is outside [0, 1].
    """
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{name} is {value}: expected a share of influence between 0 and 1, such as 0.8")


def _strongest_nodes(graph: AttributionGraph, threshold: float) -> np.ndarray:
    """(N,) mask of step 1; all constants are in it."""
    node_influence = influence(graph)
    keep = node_influence >= _cut(node_influence.copy(), threshold)
    keep |= np.isin(graph.nodes.kind, ("embedding", "logit", "constant"))
    keep[graph.target_nodes] = True
    return keep


def _strongest_edges(graph: AttributionGraph, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(N,) mask of nodes and (E',) positions of edges that steps 2 and 3 leave of what step 1 left."""
    constant = graph.nodes.kind == "constant"
    per_row, total = _row_scores(graph)
    cut = _cut(_rankable(graph, per_row, constant, threshold, total), threshold, total)
    strong = [edges.start + np.flatnonzero(scores >= cut) for edges, scores in _edge_scores(graph, per_row)]
    return _drop_dangling(graph, np.concatenate(strong))


def _rankable(graph: AttributionGraph, per_row: np.ndarray, constant: np.ndarray, threshold: float, total: float
              ) -> np.ndarray:
    """(M,) scores of all edges but constants' among which the cut must lie."""
    # All edges below this hold, together, less than the share that goes: the cut is above it, so they need no rank.
    floor = 0.5 * (1 - threshold) * total / max(1, graph.n_edges)
    parts = [scores[(scores >= floor) & ~constant.take(graph.indices[edges])]
             for edges, scores in _edge_scores(graph, per_row)] if threshold < 1 else []
    return np.concatenate([*parts, np.empty(0)])


def _row_scores(graph: AttributionGraph) -> tuple[np.ndarray, float]:
    """(N,) what |edge| into a node is multiplied by to score it, and the sum of all edges' scores but constants'."""
    start, scales = target_weights(graph), np.zeros(len(graph))

    def watched() -> Iterator[Rows]:
        for rows in rows_by_level(graph):
            scales[rows.nodes] = rows.scale
            yield rows

    mass = flow(watched(), start) + start
    return mass * scales, float(mass[scales > 0].sum())


def _edge_scores(graph: AttributionGraph, per_row: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """All edges in blocks: where they stand, and (E',) float64 share of the target's input times the target's
    influence and weight, constants scored the same way."""
    for rows in graph.row_blocks(np.arange(len(graph))):
        edges = slice(int(graph.indptr[rows[0]]), int(graph.indptr[rows[-1] + 1])) if len(rows) else slice(0, 0)
        yield edges, np.repeat(per_row[rows], np.diff(graph.indptr)[rows]) * np.abs(graph.weights[edges])


def _drop_dangling(graph: AttributionGraph, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) mask of nodes that stay, and those of the ``edges`` (E',), ascending positions, that stay with them."""
    kind = graph.nodes.kind
    sources, targets = graph.indices[edges], np.searchsorted(graph.indptr, edges, side="right") - 1
    fixed = np.zeros(len(graph), dtype=bool)
    fixed[graph.target_nodes] = True
    needs_output = ((kind == "feature") | (kind == "error")) & ~fixed
    needs_input = (kind == "feature") & graph.nodes.expanded & ~fixed
    feeds = kind != "constant"
    keep = np.ones(len(graph), dtype=bool)
    while True:
        has_output, has_input = np.zeros_like(keep), np.zeros_like(keep)
        has_output[sources] = True
        has_input[targets[feeds.take(sources)]] = True
        going = keep & ((needs_output & ~has_output) | (needs_input & ~has_input))
        if not going.any():
            return keep & (feeds | has_output), edges
        keep &= ~going
        stay = keep.take(sources) & keep.take(targets)
        edges, sources, targets = edges[stay], sources[stay], targets[stay]


def _cut(scores: np.ndarray, threshold: float, total: float | None = None) -> float:
    """The score of the last item needed, strongest first, for ``threshold`` of the sum; items below it go.

    Args:
        scores: (M,), which this sorts.
        total: the sum, where items too weak to be needed are left out of ``scores``.
    """
    if threshold >= 1.0:
        return -np.inf
    scores.sort()
    ranked = scores[::-1]
    running = np.cumsum(ranked)
    if not len(ranked) or running[-1] <= 0:
        return np.inf
    needed = threshold * (running[-1] if total is None else total)
    return float(ranked[min(int(np.searchsorted(running, needed)), len(ranked) - 1)])
