"""For the page's tests: a pruned-looking graph with all kinds of nodes, hostile strings, and reading packed data."""

from __future__ import annotations

import base64
import gzip
import json

import numpy as np

from circuits.graphs.graph import AttributionGraph, Header, NodeTable

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
