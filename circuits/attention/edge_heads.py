"""The attention heads that carry a graph's edges, checked against these edges (METHOD 6).

Shapes: E edges, L layers, H query heads, N nodes of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from circuits.attention.loadings import loading_blocks
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graph_nodes import node_index, replacement_of, source_numbers, starts_of, targets_of
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.paths import whole_rows
from circuits.replacement import LocalReplacement
from circuits.transcoder import Transcoders

TOLERANCE = 1e-4
"""Most that loadings and bypass of a float32 graph may differ from the edge, relative to it."""
FLOOR = 0.01
"""Share of its target's input below which an edge's difference is taken relative to that share instead: an edge is a
sum of large products that may cancel, so float32 knows it to about 1e-6 of the target's input, however small it is."""
MOST_NUMBERS = 1 << 28
"""Most loadings of one call: 1 GiB."""
N_EDGES, PER_EDGE = 4000, 3
"""Edges, and heads of each, that :func:`strongest_heads` gives by default."""


class HeadLoading(NamedTuple):
    """One head's part of one edge."""

    layer: int
    head: int
    loading: float


@dataclass(frozen=True)
class EdgeHeads:
    """One edge, taken apart at every layer."""

    edge: float
    """Its weight in the graph."""
    loadings: np.ndarray
    """(L, H) the part that moves through each head."""
    bypass: np.ndarray
    """(L,) the part that the layer's attention does not touch. ``loadings.sum(1) + bypass`` is the edge."""


@dataclass(frozen=True, eq=False)
class HeadRows:
    """The strongest heads of edges as flat columns, sorted by target, source and falling |loading|."""

    target: np.ndarray
    """(M,) int32 node of the graph; below, the edge's source."""
    source: np.ndarray
    layer: np.ndarray
    """(M,) int16"""
    head: np.ndarray
    """(M,) int16"""
    loading: np.ndarray
    """(M,) float32"""


@dataclass(frozen=True, eq=False)
class HeadLoadings:
    """Head loadings of edges of a graph, in the graph's order: by target, then by source."""

    target: np.ndarray
    """(E,) int32 node of the graph; below, the source."""
    source: np.ndarray
    weights: np.ndarray
    """(E,) float32 the edges as the graph holds them."""
    inputs: np.ndarray
    """(E,) sum of |edge| over all inputs of the edge's target."""
    loadings: np.ndarray
    """(E, L, H) float32; see :func:`circuits.attention.loadings.head_loadings`."""
    bypass: np.ndarray
    """(E, L) float32"""

    def __len__(self) -> int:
        return len(self.weights)

    def number(self, source: int, target: int) -> int:
        """Which of these edges goes from one node of the graph to another.

        Raises:
            InputError: none does.
        """
        found = np.flatnonzero((self.source == source) & (self.target == target))
        if len(found) == 0:
            raise InputError(f"there are no loadings of an edge from node {source} to node {target}: ask for that edge")
        return int(found[0])

    def __getitem__(self, edge: int) -> EdgeHeads:
        return EdgeHeads(float(self.weights[edge]), self.loadings[edge], self.bypass[edge])

    def strongest(self, edge: int, count: int = PER_EDGE) -> list[HeadLoading]:
        """The ``count`` heads of all layers with the largest parts of an edge, by |loading|; none with 0."""
        rows = self._rows(np.array([edge]), count)
        return [HeadLoading(int(layer), int(head), float(loading))
                for layer, head, loading in zip(rows.layer, rows.head, rows.loading, strict=True)]

    def edges_of(self, layer: int, head: int, count: int = 10) -> np.ndarray:
        """(n,) the at most ``count`` edges of which a head carries most, relative to all input of their targets."""
        share = np.abs(self.loadings[:, layer, head]) / self.inputs
        order = np.argsort(-share, kind="stable")[:count]
        return order[share[order] > 0]

    def shares(self) -> np.ndarray:
        """(L, H) what each head carries of all these edges: the sum of |loading| relative to the target's input."""
        return np.einsum("elh,e->lh", np.abs(self.loadings), 1 / self.inputs)

    def differences(self) -> np.ndarray:
        """(L,) the largest difference of loadings and bypass from the edge in the graph, relative to the edge, or to
        FLOOR of its target's input where that is more. Below TOLERANCE for graphs traced in float32."""
        total = self.loadings.sum(2, dtype=np.float64) + self.bypass
        scale = np.maximum(np.abs(self.weights), FLOOR * self.inputs)
        return (np.abs(total - self.weights[:, None]) / scale[:, None]).max(0, initial=0.0)

    def rows(self, per_edge: int = PER_EDGE) -> HeadRows:
        """The ``per_edge`` strongest heads of every edge; none with loading 0."""
        return self._rows(np.arange(len(self)), per_edge)

    def _rows(self, edges: np.ndarray, count: int) -> HeadRows:
        n_heads = self.loadings.shape[2]
        flat = self.loadings[edges].reshape(len(edges), -1)
        order = np.argsort(-np.abs(flat), axis=1, kind="stable")[:, :count]
        loading = np.take_along_axis(flat, order, 1)
        kept = loading != 0
        edge = np.broadcast_to(edges[:, None], order.shape)[kept]
        return HeadRows(self.target[edge], self.source[edge], (order[kept] // n_heads).astype(np.int16),
                        (order[kept] % n_heads).astype(np.int16), loading[kept])


def graph_head_loadings(graph: AttributionGraph, model: Gemma3, transcoders: Transcoders,
                        edges: Sequence[tuple[int | str, int | str]] | np.ndarray | None = None, *,
                        local: LocalReplacement | None = None, direction: Tensor | None = None) -> HeadLoadings:
    """Head loadings of a graph's edges.

    Args:
        graph: pruned or not.
        model, transcoders: those it was made with.
        edges: pairs (source, target) of node numbers or ids; or (E,) where the edges stand in ``graph.weights``; by
            default all.
        local: what :func:`circuits.graph_nodes.replacement_of` made for this graph, if it is there already.
        direction: (D,) the direction that the graph explains, where it explains one.

    Raises:
        InputError: another model or other transcoders than the graph's; no such node or edge; or more edges than
            MOST_NUMBERS allows.
    """
    at = _edges(graph, edges)
    n_loadings = len(at) * model.n_layers * (model.n_heads + 1)
    if n_loadings > MOST_NUMBERS:
        raise InputError(f"{len(at)} edges have {n_loadings} loadings, at most {MOST_NUMBERS} are computed in one "
                         "call: prune the graph, or ask for some of its edges")
    target = (np.searchsorted(graph.indptr, at, side="right") - 1).astype(np.int32)
    source = graph.indices[at].astype(np.int32)
    local = replacement_of(graph, model, transcoders) if local is None else local
    numbers = source_numbers(graph, local)
    targets, of_target = np.unique(target, return_inverse=True)
    sources, of_source = np.unique(numbers[source], return_inverse=True)
    starts = starts_of(local, targets_of(graph, model, local, direction), graph, targets)
    loadings = np.zeros((len(at), model.n_layers, model.n_heads), np.float32)
    bypass = np.zeros((len(at), model.n_layers), np.float32)
    for block in loading_blocks(local, sources, starts, lambda some: of_source[np.isin(of_target, some)]):
        row, column = _places(block.targets, len(targets))[of_target], _places(block.sources, len(sources))[of_source]
        here = np.flatnonzero((row >= 0) & (column >= 0))
        pair = row[here], column[here]
        loadings[here] = block.loadings.cpu().numpy()[:, :, *pair].transpose(2, 0, 1)
        bypass[here] = block.bypass.cpu().numpy()[:, *pair].T
    return HeadLoadings(target, source, graph.weights[at], _inputs(graph)[target], loadings, bypass)


def strongest_edges(graph: AttributionGraph, count: int = N_EDGES) -> np.ndarray:
    """(E,) where the ``count`` edges with the largest share of their target's input stand in ``graph.weights``,
    ascending."""
    target = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    share = np.abs(graph.weights) / _inputs(graph)[target]
    return np.sort(np.argsort(-share, kind="stable")[:count])


def strongest_heads(graph: AttributionGraph, model: Gemma3, transcoders: Transcoders, n_edges: int = N_EDGES,
                    per_edge: int = PER_EDGE, *, local: LocalReplacement | None = None,
                    direction: Tensor | None = None) -> HeadRows:
    """The ``per_edge`` strongest heads of the ``n_edges`` strongest edges of a graph; other arguments and errors are
    those of :func:`graph_head_loadings`."""
    chosen = strongest_edges(graph, n_edges)
    return graph_head_loadings(graph, model, transcoders, chosen, local=local, direction=direction).rows(per_edge)


def _edges(graph: AttributionGraph, edges: Sequence[tuple[int | str, int | str]] | np.ndarray | None) -> np.ndarray:
    """(E,) ascending positions of edges in the graph's table."""
    if edges is None:
        return np.arange(graph.n_edges)
    if isinstance(edges, np.ndarray):
        if len(edges) and not 0 <= edges.min() <= edges.max() < graph.n_edges:
            raise InputError(f"edges has numbers from {edges.min()} to {edges.max()}: the graph's are 0 to "
                             f"{graph.n_edges - 1}")
        return np.unique(edges)
    return np.unique([_edge(graph, node_index(graph, source), node_index(graph, target)) for source, target in edges])


def _edge(graph: AttributionGraph, source: int, target: int) -> int:
    first, end = int(graph.indptr[target]), int(graph.indptr[target + 1])
    at = first + int(np.searchsorted(graph.indices[first:end], source))
    if at == end or graph.indices[at] != source:
        raise InputError(f"the graph has no edge from {graph.node_ids[source]} to {graph.node_ids[target]}: give one "
                         "that it has, source first; pruning may have removed it")
    return at


def _inputs(graph: AttributionGraph) -> np.ndarray:
    """(N,) sums of |edge| into each node before pruning; tiny, not 0, where all edges are 0."""
    return np.maximum(whole_rows(graph), np.finfo(np.float32).tiny)


def _places(chosen: np.ndarray, n: int) -> np.ndarray:
    """(n,) where each of ``n`` stands among ``chosen``; -1 where it does not."""
    places = np.full(n, -1)
    places[chosen] = np.arange(len(chosen))
    return places
