"""For the page's tests: a pruned-looking graph with all kinds of nodes, heads and checks of it, hostile strings, and
reading packed data."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np

from circuits.graphs.graph import AttributionGraph, Header, NodeTable
from circuits.graphs.heads import HeadTable

TOKENS = ["<bos>", "Fact", ":", " Michael", " Jordan", " plays", " the", " sport", " of", "\n"]
N_LAYERS = 18
WORDS = ["basketball", "sport", "athlete", "Jordan", "names of people", "is a", "plural", "after a colon", "game",
         "the"]


def sample_graph(n_features: int = 280, seed: int = 0, labels: list[str] | None = None) -> AttributionGraph:
    """A pruned-looking graph: features crowd at the last positions, row totals are larger than what is left."""
    rng = np.random.default_rng(seed)
    n_pos = len(TOKENS)
    crowd = np.linspace(0.2, 1, n_pos - 1) ** 2
    feature_position = rng.choice(np.arange(1, n_pos), n_features, p=crowd / crowd.sum())
    feature_layer = rng.integers(0, N_LAYERS, n_features)
    n_errors, n_logits = max(4, n_features // 7), 5
    kinds = ["embedding"] * n_pos + ["constant"] * 6 + ["feature"] * n_features + ["error"] * n_errors
    kinds += ["logit"] * n_logits
    layer = [-1] * n_pos + [0, 3, 6, 9, 2, 4] + [*feature_layer, *rng.integers(0, N_LAYERS, n_errors)]
    layer += [N_LAYERS] * n_logits
    position = [*range(n_pos), -1, -1, -1, -1, 0, 0, *feature_position, *rng.integers(1, n_pos, n_errors)]
    position += [n_pos - 1] * n_logits
    order = np.lexsort((position, layer))
    kind, layer_, position_ = np.array(kinds)[order], np.array(layer)[order], np.array(position)[order]
    n = len(order)
    text = {"embedding": lambda i: TOKENS[position_[i]], "constant": lambda i: f"decoder bias of layer {layer_[i]}",
            "error": lambda i: f"error at layer {layer_[i]}", "logit": lambda i: f" {WORDS[i % len(WORDS)]}",
            "feature": lambda i: ", ".join(rng.choice(WORDS, 3)) if rng.random() < 0.9 else ""}
    label = labels or [text[k](i) for i, k in enumerate(kind)]
    indptr, indices, weights = sample_edges(rng, kind, layer_, position_)
    rows = np.repeat(np.arange(n), np.diff(indptr))
    steady = kind[indices] != "constant"
    shown_abs = np.bincount(rows[steady], np.abs(weights[steady]), minlength=n)
    shown_sum = np.bincount(rows, weights, minlength=n)
    computed = np.isin(kind, ["feature", "logit"])
    is_last_features = np.flatnonzero(kind == "feature")[-2:]
    computed[is_last_features] = False
    for t in is_last_features:  # unexplored: no row
        weights[rows == t] = np.nan
    keep = ~np.isnan(weights)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows[keep], minlength=n))])
    influence = rng.pareto(2.0, n) * 0.01 * (1 + np.clip(layer_, 0, N_LAYERS) / N_LAYERS)
    targets = np.flatnonzero(kind == "logit")
    probability = np.array([0.61, 0.12, 0.05, 0.031, 0.0004], dtype=np.float32)
    nodes = NodeTable.build(
        n, kind=kind, layer=layer_, position=position_, label=np.array(label, dtype=object),
        feature=np.where(kind == "feature", rng.integers(0, 16384, n), -1),
        token=np.where(np.isin(kind, ["embedding", "logit"]), rng.integers(0, 262144, n), -1),
        value=np.where(np.isin(kind, ["feature", "logit"]), rng.gamma(2, 4, n), 0), influence=influence,
        expanded=computed, input_sum=np.where(computed, shown_sum + rng.normal(0, 0.3, n), np.nan),
        input_abs=np.where(computed, shown_abs * rng.uniform(1.02, 1.6, n) + 0.01, np.nan),
        residual=np.where(computed, 1e-7, np.nan))
    header = Header(
        prompt="".join(TOKENS[1:]), tokens=list(range(2, 2 + n_pos)), token_texts=list(TOKENS), model="gemma-3-270m",
        n_layers=N_LAYERS, transcoders="bundled", transcoder_kind="clt", unexplored=0.048, conservation=3.1e-7,
        settings={"coverage": 0.95, "max_logits": 10, "node_threshold": 0.8, "edge_threshold": 0.98,
                  "unpruned": {"nodes": 2481, "edges": 1234567, "influence": 3.2}},
        reconstruction=[0.1 + 0.01 * i for i in range(N_LAYERS)],
        scores={"replacement": 0.6123, "completeness": 0.8012, "completeness_all_nodes": 0.871},
        generator="gemma-circuits 0.1.0")
    return AttributionGraph(nodes, indptr.astype(np.int64), indices[keep].astype(np.int32),
                            weights[keep].astype(np.float32), targets.astype(np.int32), probability, header)


def sample_edges(rng, kind, layer, position, mean_inputs: int = 12):
    """CSR rows of heavy-tailed weights from sources below and not to the right."""
    indptr, indices, weights = [0], [], []
    for t in range(len(kind)):
        row: list[int] = []
        if kind[t] in ("feature", "logit"):
            sources = np.flatnonzero((layer < layer[t]) & (position <= position[t]) & (kind != "logit"))
            size = min(len(sources), int(rng.poisson(mean_inputs * (6 if kind[t] == "logit" else 1))) + 1)
            row = sorted(rng.choice(sources, size, replace=False))
        indices += row
        weights += list(rng.normal(0, 1, len(row)) * rng.pareto(1.5, len(row)) * 0.1)
        indptr.append(len(indices))
    return np.array(indptr), np.array(indices, dtype=np.int64), np.array(weights, dtype=np.float64)


def sample_heads(graph: AttributionGraph, n_heads: int = 4, n_edges: int = 60, n_views: int = 6, n_pairs: int = 5,
                 seed: int = 0) -> HeadTable:
    """Heads of the edges with the largest weight: at each layer between their ends parts that, with what passes by, add
    up to the edge; patterns with a sink; and scores of some cells, with components that are nodes and others."""
    rng = np.random.default_rng(seed)
    nodes, n_pos = graph.nodes, len(graph.header.tokens)
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    parts = []
    for e in np.argsort(-np.abs(graph.weights), kind="stable")[:n_edges].tolist():
        target, source = int(rows[e]), int(graph.indices[e])
        for layer in range(int(nodes.layer[source]) + 1, min(int(nodes.layer[target]) + 1, graph.header.n_layers)):
            share = rng.dirichlet(np.full(n_heads + 1, 0.3)) * rng.choice([1, 1, 1, -1], n_heads + 1)
            for head in np.flatnonzero(np.abs(share[:n_heads]) > 0.05).tolist():  # the last is what passes by
                parts.append((target, source, layer, head, share[head] * graph.weights[e]))
    parts.sort(key=lambda part: (part[0], part[1], -abs(np.float32(part[4]))))
    target, source, layer, head, loading = (np.array(column) for column in zip(*parts, strict=True))
    keys, which = np.unique(layer * n_heads + head, return_inverse=True)
    weight = np.bincount(which, np.abs(loading))
    best = np.argsort(-weight, kind="stable")[:n_views]
    score = rng.normal(0, 1.5, (n_views, n_pos, n_pos))
    score[:, :, 0] += 3
    score[:, np.triu(np.ones((n_pos, n_pos), bool), 1)] = -np.inf
    pattern = np.exp(score - score.max(-1, keepdims=True))
    pattern /= pattern.sum(-1, keepdims=True)
    cells = [(view, query, key) for view in range(n_views) for query in (n_pos - 1, n_pos // 2)
             for key in (0, query - 1)]
    view, query, key = np.repeat(np.array(cells), n_pairs, axis=0).T

    def component(position: int) -> int:
        here = np.flatnonzero(nodes.position == position)
        return int(rng.choice(here)) if len(here) and rng.random() < 0.5 else -1

    query_node, key_node = (np.array([component(position) for position in side]) for side in (query, key))
    query_name, key_name = (["decoder bias" if node < 0 else str(nodes.label[node]) for node in side]
                            for side in (query_node, key_node))
    value, whole = rng.normal(0, 1, len(view)), score[view, query, key]
    return HeadTable(
        n_heads, target.astype(np.int32), source.astype(np.int32), layer.astype(np.int16), head.astype(np.int16),
        loading.astype(np.float32), (keys[best] // n_heads).astype(np.int16), (keys[best] % n_heads).astype(np.int16),
        weight[best].astype(np.float32), pattern.astype(np.float32), view.astype(np.int16), query.astype(np.int16),
        key.astype(np.int16), query_node.astype(np.int32), key_node.astype(np.int32), query_name, key_name,
        value.astype(np.float32), whole.astype(np.float32))


def sample_validation(graph: AttributionGraph, seed: int = 0) -> dict[str, Any]:
    """Effects of half of the features and of one that the graph lacks, and numbers that stand beside them."""
    rng = np.random.default_rng(seed)
    features = np.flatnonzero(graph.nodes.kind == "feature")[::2]
    predicted = -rng.normal(0, 1, len(features)) * rng.pareto(1.5, len(features)) * 0.1
    measured = predicted * rng.uniform(0.3, 1.4, len(features)) + rng.normal(0, 0.02, len(features))
    effects = [[graph.node_ids[i], float(p), float(m)] for i, p, m in zip(features, predicted, measured, strict=True)]
    return {"frozen_max_relative_error": 3.4e-6, "spearman_influence": 0.7312, "spearman_edge": 0.6523,
            "spearman_activation": 0.3111, "spearman_shuffled": -0.0214, "log_pearson_influence": 0.688,
            "n_features": len(effects) + 1, "created": "2026-01-02T03:04:05+00:00",
            "effects": [*effects, ["9_9_9", 0.25, -0.125]]}


HOSTILE = [
    "<script>window.__pwned=1</script>", "</script><img src=x onerror=window.__pwned=1>", "\u202eright to left\u202c",
    "\u05e9\u05dc\u05d5\u05dd", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "a\0b", "x" * 10_000, "\"'`${1}{{7*7}}",
    "<!-- <script>", "\u2028\u2029", "\ud800", " ", "", "javascript:window.__pwned=1", "&lt;b&gt;&amp;",
]


def unpack(text: str) -> tuple[dict, dict[str, np.ndarray]]:
    """What packed.js does, written again."""
    raw = gzip.decompress(base64.b64decode(text))
    length = int.from_bytes(raw[:4], "little")
    values = json.loads(raw[4:4 + length])
    dtypes = {"Float32Array": "<f4", "Int32Array": "<i4", "Uint16Array": "<u2", "Uint8Array": "u1"}
    columns = {name: np.frombuffer(raw, dtypes[kind], count, 4 + length + start)
               for name, (kind, start, count) in values.pop("columns").items()}
    return values, columns
