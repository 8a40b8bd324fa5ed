"""The strongest paths from the prompt's tokens to a target.

A path's share is the product of its edges' shares of their targets' inputs (METHOD 5); the shares of all paths that
end at tokens, errors or unexpanded features add up to 1. In a pruned graph that is 1 of what was kept: with
``row_sums`` (:func:`whole_rows`) shares are of the whole inputs, and what pruning took is missing from the sum.

Shapes: N nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count as counter
from typing import NamedTuple

import numpy as np

from circuits.errors import InputError
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import flow, rows_by_level


@dataclass(frozen=True)
class Path:
    """One path, source first."""

    nodes: tuple[int, ...]
    """Node indices; the last is the target."""
    weights: tuple[float, ...]
    """Edge weights, one fewer than nodes."""
    share: float
    """Of the target's input, in (0, 1]."""
    sign: int
    """1 or -1: the product of the signs of the edges."""


@dataclass(frozen=True)
class TopPaths:
    """Paths in order of falling share; iterates and indexes like a list of :class:`Path`."""

    target: int
    paths: list[Path]
    covered: float
    """Share of the target's input that these paths carry together."""
    total: float
    """Share that all paths from the same kinds of source carry."""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Path:
        return self.paths[index]

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)


class _Step(NamedTuple):
    """A partial path, walked from the target towards the sources."""

    node: int
    weight: float
    above: _Step | None


class _Inputs(NamedTuple):
    """A node's inputs, best continuation first."""

    sources: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    bounds: np.ndarray
    """share times the best share with which any path reaches that source."""


def top_paths(graph: AttributionGraph, target: int | None = None, count: int = 10, *, errors: bool = False,
              row_sums: np.ndarray | None = None) -> TopPaths:
    """The ``count`` paths with the largest shares, exactly, from tokens to ``target``.

    Best-first search whose bound is exact: one sweep up the graph gives every node's best share from any source, so
    each step taken belongs to a path that is returned, and unpruned graphs cost one pass over the edges.

    Args:
        target: a node index; by default the target with the largest weight.
        errors: let paths start at error nodes too.
        row_sums: (N,) what shares are shares of, such as ``graph.nodes.input_abs``, the inputs before pruning; used
            as :func:`whole_rows` says. By default the sums of the edges that are present.

    Raises:
        InputError: ``count`` below 1, no such node, a graph without targets, or ``row_sums`` of another length.
    """
    target = target_node(graph, target)
    ends = graph.nodes.kind == "embedding"
    if errors:
        ends |= graph.nodes.kind == "error"
    return paths_from(graph, ends, target, count, None if row_sums is None else whole_rows(graph, row_sums))


def paths_from(graph: AttributionGraph, ends: np.ndarray, target: int, count: int, row_sums: np.ndarray | None
               ) -> TopPaths:
    """:func:`top_paths` from the nodes in the mask ``ends`` (N,); ``row_sums`` (N,) as they divide the rows.

    Raises:
        InputError: ``count`` below 1; or a row with edges has no row sum.
    """
    if count < 1:
        raise InputError(f"count is {count}: expected 1 or more paths")
    best, scale = _best_shares(graph, ends, row_sums)
    paths = list(_search(graph, target, count, ends, best, scale))
    total = float(flow(rows_by_level(graph, row_sums), _only(graph, target))[ends].sum())
    return TopPaths(target, paths, float(sum(path.share for path in paths)), total)


def whole_rows(graph: AttributionGraph, row_sums: np.ndarray | None = None) -> np.ndarray:
    """(N,) float64 sums of |edge| that rows had before pruning, for shares that are honest about it.

    ``row_sums`` (N,), by default ``nodes.input_abs``, where that is a finite number and not below the sum of the edges
    that are present, which rounding or a foreign file can make it; elsewhere that sum.

    Raises:
        InputError: ``row_sums`` of another length.
    """
    known = graph.nodes.input_abs if row_sums is None else np.asarray(row_sums)
    if known.shape != (len(graph),):
        raise InputError(f"row_sums has shape {known.shape}: expected one number for each of {len(graph)} nodes")
    sums = np.zeros(len(graph))
    for nodes, _, scale in rows_by_level(graph):
        sums[nodes] = np.divide(1.0, scale, out=np.zeros(len(nodes)), where=scale > 0)
    return np.fmax(sums, np.where(np.isfinite(known), known, 0.0))


def target_node(graph: AttributionGraph, target: int | None) -> int:
    """``target``, or the target with the largest weight.

    Raises:
        InputError: no such node, or a graph without targets.
    """
    if target is None:
        if not len(graph.target_nodes):
            raise InputError("the graph has no targets: name the node that the paths should lead to")
        return int(graph.target_nodes[np.argmax(graph.target_weights)])
    if not 0 <= target < len(graph):
        raise InputError(f"target is node {target}: the graph has nodes 0 to {len(graph) - 1}")
    return int(target)


def _only(graph: AttributionGraph, node: int) -> np.ndarray:
    """(N,) 1 at one node, 0 elsewhere."""
    start = np.zeros(len(graph))
    start[node] = 1.0
    return start


def _best_shares(graph: AttributionGraph, ends: np.ndarray, row_sums: np.ndarray | None
                 ) -> tuple[np.ndarray, np.ndarray]:
    """(N,) largest share with which one path from an end reaches each node, and (N,) one over what divides each row."""
    best = ends.astype(np.float64)
    scales = np.zeros(len(graph))
    for nodes, sizes, scale in rows_by_level(graph, row_sums, upwards=True):
        best[nodes] = np.maximum.reduceat(sizes.data * best[sizes.indices], sizes.indptr[:-1]) * scale
        scales[nodes] = scale
    return best, scales


def _search(graph: AttributionGraph, target: int, count: int, ends: np.ndarray, best: np.ndarray, scale: np.ndarray
            ) -> Iterator[Path]:
    ranked: dict[int, _Inputs] = {}

    def inputs(node: int) -> _Inputs:
        if node not in ranked:
            row = slice(graph.indptr[node], graph.indptr[node + 1])
            sources, weights = graph.indices[row], graph.weights[row]
            shares = np.abs(weights, dtype=np.float64) * scale[node]
            bounds = shares * best[sources]
            order = np.argsort(-bounds, kind="stable")
            order = order[bounds[order] > 0]
            ranked[node] = _Inputs(sources[order], weights[order], shares[order], bounds[order])
        return ranked[node]

    # An entry stands for "the walk so far, then input number `rank` of its last node or any weaker one".
    tie = counter()
    heap: list[tuple[float, int, float, int, _Step]] = []

    def push(share: float, rank: int, step: _Step) -> None:
        bounds = inputs(step.node).bounds
        if rank < len(bounds):
            heappush(heap, (-share * bounds[rank], next(tie), share, rank, step))

    push(1.0, 0, _Step(target, 0.0, None))
    found = 0
    while heap and found < count:
        _, _, share, rank, step = heappop(heap)
        push(share, rank + 1, step)
        row = inputs(step.node)
        source = int(row.sources[rank])
        longer = _Step(source, float(row.weights[rank]), step)
        if ends[source]:
            found += 1
            yield _path(longer, share * float(row.shares[rank]))
        else:
            push(share * float(row.shares[rank]), 0, longer)


def _path(step: _Step, share: float) -> Path:
    nodes, weights = [step.node], []
    while step.above is not None:
        weights.append(step.weight)
        step = step.above
        nodes.append(step.node)
    sign = -1 if sum(weight < 0 for weight in weights) % 2 else 1
    return Path(tuple(nodes), tuple(weights), share, sign)
