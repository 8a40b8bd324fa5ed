"""What a page is given of a graph: plain JSON values, and columns of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from circuits.graphs.activations import feature_keys
from circuits.graphs.cards import FeatureCards
from circuits.graphs.explain import explain
from circuits.graphs.graph import KINDS, AttributionGraph
from circuits.graphs.group import suggest
from circuits.graphs.heads import HeadTable

MAX_EDGES = 200_000
"""A page holds at most this many edges, the strongest by share of their target's input; it says how many it left."""
CONTEXTS = 6
"""Of each feature at most, and fewer where a graph has many features (:func:`_card_columns`)."""
CONTEXT_BUDGET = 6_000
"""Of all features together, at least two of each."""
PATHS = 24
EXPLAINED_TARGETS = 10
PATTERN_NUMBERS = 4_000_000
"""A page holds at most this many attention weights: the whole patterns of the heads that carry most."""
PATTERN_STEPS = 65535
"""Attention weights are kept as so many parts of 1: rounded by less than 1e-5."""


def page_content(graph: AttributionGraph, shown: tuple[np.ndarray, np.ndarray] | None = None
                 ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """JSON values (numbers that are not finite become None) and columns, as ``graph.js`` reads them.

    Edges are rows of inputs (CSR) like the graph's, cut to the ``MAX_EDGES`` strongest.

    Args:
        shown: masks (N,) and (E,) of what the page shows at first; by default all.
    """
    indptr, kept = _strongest_edges(graph, MAX_EDGES)
    cards = graph.feature_cards()
    features = _features(graph)
    known, card_columns = _card_columns(cards, features)
    about_heads, head_columns = _head_columns(graph.heads)
    values = {"header": _plain(asdict(graph.header)), "kinds": KINDS, "ids": graph.node_ids,
              "labels": [str(label) for label in graph.nodes.label], "totalEdges": graph.n_edges,
              "suggestions": [_plain(asdict(s)) for s in suggest(graph, cards)], "paths": _paths(graph),
              "heads": about_heads, **known}
    nodes_shown, edges_shown = shown if shown is not None else (np.ones(len(graph), bool), np.ones(graph.n_edges, bool))
    columns = _node_columns(graph) | {
        "nodes.shown": nodes_shown.astype(np.uint8),
        "edges.indptr": indptr.astype(np.int32), "edges.indices": graph.indices[kept],
        "edges.weights": graph.weights[kept], "edges.shown": edges_shown[kept].astype(np.uint8),
        "targets.nodes": graph.target_nodes, "targets.weights": graph.target_weights,
        "features.layer": features[:, 0], "features.feature": features[:, 1],
        **_activation_columns(graph, features), **card_columns, **head_columns}
    return values, columns


def _node_columns(graph: AttributionGraph) -> dict[str, np.ndarray]:
    nodes = graph.nodes
    kind = np.array([KINDS.index(kind) for kind in nodes.kind], np.uint8)
    names = {"layer": "layer", "position": "position", "feature": "feature", "token": "token", "value": "value",
             "influence": "influence", "inputSum": "input_sum", "inputAbs": "input_abs", "threshold": "threshold",
             "residual": "residual"}
    return {"nodes.kind": kind, "nodes.expanded": nodes.expanded.astype(np.uint8),
            **{f"nodes.{name}": nodes[column] for name, column in names.items()}}


def _features(graph: AttributionGraph) -> np.ndarray:
    """(M, 2) int32 layer and index of every distinct feature, in order."""
    is_feature = graph.nodes.kind == "feature"
    pairs = np.stack([graph.nodes.layer[is_feature], graph.nodes.feature[is_feature]], axis=1)
    return np.unique(pairs.astype(np.int32), axis=0).reshape(-1, 2)


def _activation_columns(graph: AttributionGraph, features: np.ndarray) -> dict[str, np.ndarray]:
    """Where on the prompt each feature fired, as ragged lists in the order of ``features`` (M, 2)."""
    table = graph.prompt_activations()
    key, keys = feature_keys(table.layer, table.feature), feature_keys(features[:, 0], features[:, 1])
    start = np.append(np.searchsorted(key, keys), len(key)) if len(keys) else np.zeros(1, int)
    return {"active.start": start.astype(np.int32), "active.position": table.position.astype(np.int32),
            "active.value": table.value.astype(np.float32)}


def _card_columns(cards: FeatureCards | None, features: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The cards, and for each of ``features`` (M, 2) which card is its own (-1: none)."""
    place = np.full(len(features), -1, np.int32)
    if cards is None:
        return {"texts": {}}, {"features.card": place}
    contexts = max(2, min(CONTEXTS, CONTEXT_BUDGET // max(1, len(features))))
    cards = cards.limited(contexts)
    place[:] = [cards.find(int(layer), int(feature)) for layer, feature in features]
    return {"texts": {str(token): text for token, text in cards.texts.items()}}, {
        "features.card": place, **{f"cards.{name}": column for name, column in cards.columns().items()}}


def _head_columns(heads: HeadTable | None) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """The heads that carry edges; patterns and pairs of those that carry most, the first of them first."""
    if heads is None:
        return None, {}
    size = heads.n_pos * heads.n_pos
    views = np.argsort(-heads.view_weight, kind="stable")[: PATTERN_NUMBERS // max(1, size)]
    place = np.full(len(heads.view_layer), -1)
    place[views] = np.arange(len(views))
    pairs = place[heads.pair_view] >= 0
    names, name = np.unique(np.array([*heads.pair_query_name, *heads.pair_key_name], object), return_inverse=True)
    query_name, key_name = name.reshape(2, -1)[:, pairs].astype(np.int32)
    about = {"positions": heads.n_pos, "names": names.tolist(),
             "omitted": len(heads.view_layer) - len(views)}
    pattern = np.rint(np.clip(heads.pattern[views], 0, 1) * PATTERN_STEPS)
    return about, {
        "heads.target": heads.target, "heads.source": heads.source, "heads.layer": heads.layer.astype(np.uint16),
        "heads.head": heads.head.astype(np.uint16), "heads.loading": heads.loading,
        "views.layer": heads.view_layer[views].astype(np.uint16),
        "views.head": heads.view_head[views].astype(np.uint16), "views.weight": heads.view_weight[views],
        "views.pattern": pattern.reshape(-1).astype(np.uint16),
        "pairs.view": place[heads.pair_view[pairs]].astype(np.uint16),
        "pairs.query": heads.pair_query[pairs].astype(np.uint16), "pairs.key": heads.pair_key[pairs].astype(np.uint16),
        "pairs.queryNode": heads.pair_query_node[pairs], "pairs.keyNode": heads.pair_key_node[pairs],
        "pairs.queryName": query_name, "pairs.keyName": key_name, "pairs.value": heads.pair_value[pairs],
        "pairs.score": heads.pair_score[pairs]}


def _paths(graph: AttributionGraph) -> list[dict[str, Any]]:
    """Strongest paths of every target (at most EXPLAINED_TARGETS), and what they cover."""
    order = np.argsort(-graph.target_weights, kind="stable")[:EXPLAINED_TARGETS]
    found = []
    for target in graph.target_nodes[order].tolist():
        told = explain(graph, target, PATHS)
        parts = told.parts
        found.append(_plain({
            "target": target, "covered": parts.listed, "tokens": parts.listed + parts.other_paths,
            "errors": parts.errors, "pruned": parts.pruned, "unexplored": parts.unexplored,
            "constants": parts.constants,
            "paths": [{"nodes": path.nodes, "weights": path.weights, "share": path.share, "sign": path.sign}
                      for path in told.paths]}))
    return found


def _strongest_edges(graph: AttributionGraph, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Row pointers (N + 1,) and mask (E,) of the ``limit`` edges with the largest share of their target's input."""
    kept = np.ones(graph.n_edges, dtype=bool)
    if graph.n_edges <= limit:
        return graph.indptr, kept
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    size = np.abs(graph.weights, dtype=np.float64)
    in_page = np.bincount(rows, size, minlength=len(graph))
    total = np.where(np.isfinite(graph.nodes.input_abs) & (graph.nodes.input_abs > 0), graph.nodes.input_abs, in_page)
    share = size / np.maximum(total, np.finfo(np.float32).tiny)[rows]
    kept[np.argpartition(share, graph.n_edges - limit)[: graph.n_edges - limit]] = False
    counts = np.bincount(rows[kept], minlength=len(graph))
    return np.concatenate([[0], np.cumsum(counts)]), kept


def _plain(value: Any) -> Any:
    """Headers written by others may hold numpy numbers, NaN or tuples: JSON knows none of these."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
