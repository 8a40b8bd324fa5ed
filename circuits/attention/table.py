"""What a graph's page needs to know of attention: parts of edges by head, and what the strongest heads look at.

Shapes: L layers, H query heads, P positions, W heads whose pattern is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from circuits.attention.edge_heads import N_EDGES, PER_EDGE, graph_head_loadings, strongest_edges
from circuits.attention.names import ComponentNames
from circuits.attention.qk import qk_attribution
from circuits.attention.sides import SideReader
from circuits.gemma3 import Gemma3
from circuits.graph_nodes import replacement_of
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.heads import HeadTable
from circuits.replacement import LocalReplacement
from circuits.transcoder import Transcoders

VIEWS, PATTERN_NUMBERS = 16, 1 << 20
"""Heads whose pattern is kept at most, and numbers in these patterns."""
SCORES, PAIRS = 32, 10
"""Scores that are taken apart by default, about a second each on one processor core, and pairs of components that are
kept of each."""


def head_table(graph: AttributionGraph, model: Gemma3, transcoders: Transcoders, *, n_edges: int = N_EDGES,
               per_edge: int = PER_EDGE, views: int = VIEWS, scores: int = SCORES,
               local: LocalReplacement | None = None, direction: torch.Tensor | None = None,
               progress: Callable[[str, int, int], None] = lambda stage, done, total: None) -> HeadTable:
    """The strongest heads of a graph's strongest edges, the patterns of those that carry most, and pairs of components
    that explain the scores through which they carry most.

    Args:
        graph: best pruned: edges and components are named by its nodes.
        model, transcoders: those it was made with.
        n_edges, per_edge: how many edges, by share of their target's input, and heads of each.
        views: patterns kept at most; fewer where the prompt is long.
        scores: how many scores are taken apart: of each head the query and key of most attention, then the next.
        local: what :func:`circuits.graph_nodes.replacement_of` made for this graph, if it is there already.
        direction: (D,) the direction that the graph explains, where it explains one.

    Raises:
        InputError: another model or other transcoders than the graph's.
    """
    progress("head loadings", 0, 1)
    local = replacement_of(graph, model, transcoders) if local is None else local
    loadings = graph_head_loadings(graph, model, transcoders, strongest_edges(graph, n_edges), local=local,
                                   direction=direction)
    rows, shares = loadings.rows(per_edge), loadings.shares()
    count = min(views, PATTERN_NUMBERS // local.n_positions**2, int((shares > 0).sum()))
    chosen = np.argsort(-shares, axis=None, kind="stable")[:count]
    layer, head = (index.astype(np.int16) for index in np.unravel_index(chosen, shares.shape))
    patterns = np.stack([local.frozen.layers[at].head_pattern(which).cpu().numpy()
                         for at, which in zip(layer, head, strict=True)]) if count else np.zeros(
        (0, local.n_positions, local.n_positions), np.float32)
    pairs = _Pairs(model, local, ComponentNames(graph, model, transcoders, local))
    cells = _cells(patterns, scores)
    for done, (view, query, key) in enumerate(cells):
        progress("attention scores", done, len(cells))
        pairs.add(view, int(layer[view]), int(head[view]), query, key)
    return HeadTable(
        n_heads=shares.shape[1], target=rows.target, source=rows.source, layer=rows.layer, head=rows.head,
        loading=rows.loading, view_layer=layer, view_head=head, view_weight=shares[layer, head].astype(np.float32),
        pattern=patterns, **pairs.columns())


def with_heads(graph: AttributionGraph, part: AttributionGraph, model: Gemma3, transcoders: Transcoders, *,
               scores: int = SCORES, progress: Callable[[str, int, int], None] = lambda stage, done, total: None
               ) -> tuple[AttributionGraph, AttributionGraph]:
    """A graph and a pruned part of it, both with the heads of the part's edges; see :func:`head_table`."""
    table = head_table(part, model, transcoders, scores=scores, progress=progress)
    number = {node_id: i for i, node_id in enumerate(graph.node_ids)}
    place = np.array([number[node_id] for node_id in part.node_ids])
    return replace(graph, heads=table.left(place)), replace(part, heads=table)


def _cells(patterns: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """(view, query, key) of most attention in the patterns (W, P, P): one of each, then the next of each, ``count`` in
    all, ordered by view. Attention to the first token, on which nearly every query rests, and to the query itself comes
    after all other attention."""
    weights = patterns.astype(np.float64)
    weights[:, :, 0] -= 2
    position = np.arange(patterns.shape[1])
    weights[:, position, position] -= 2
    weights[np.broadcast_to(position[:, None] < position, weights.shape)] = -np.inf
    ranks = np.argsort(-weights.reshape(len(weights), -1), axis=1, kind="stable")
    seen = len(position) * (len(position) + 1) // 2
    chosen = [(rank, view) for rank in range(seen) for view in range(len(patterns))][:count]
    return sorted((view, int(ranks[view, rank]) // len(position), int(ranks[view, rank]) % len(position))
                  for rank, view in chosen)


@dataclass
class _Pairs:
    """Pairs of components as they are found, with names."""

    model: Gemma3
    local: LocalReplacement
    names: ComponentNames
    found: list[tuple[int, int, int, int, int, str, str, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = SideReader(self.model, self.local)

    def add(self, view: int, layer: int, head: int, query: int, key: int) -> None:
        """Take one score apart."""
        found = qk_attribution(self.model, self.local, layer, head, query, key, reader=self._reader)
        for pair in found.pairs(PAIRS):
            at_query, at_key = (found.components[source] for source in (pair.query_source, pair.key_source))
            self.found.append((view, query, key, self.names.node(at_query), self.names.node(at_key),
                               self.names.of(at_query), self.names.of(at_key), pair.contribution, found.score))

    def columns(self) -> dict[str, Any]:
        """As :class:`HeadTable` has them."""
        view, query, key, query_node, key_node, query_name, key_name, value, score = (
            zip(*self.found, strict=True) if self.found else [()] * 9)
        return {"pair_view": np.array(view, np.int16), "pair_query": np.array(query, np.int16),
                "pair_key": np.array(key, np.int16), "pair_query_node": np.array(query_node, np.int32),
                "pair_key_node": np.array(key_node, np.int32), "pair_query_name": list(query_name),
                "pair_key_name": list(key_name), "pair_value": np.array(value, np.float32),
                "pair_score": np.array(score, np.float32)}
