"""Small random attribution graphs that obey the contracts of graphs/graph.py."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from circuits.graphs import AttributionGraph, Header, NodeTable
from circuits.graphs.cards import Contexts, FeatureCards, TokenLists


def random_graph(seed: int = 0, *, n_layers: int = 3, n_pos: int = 3, per_layer: int = 4, density: float = 0.6,
                 constants: bool = True, unexpanded: float = 0.0, shuffle: bool = False) -> AttributionGraph:
    """Features, errors, tokens, constants and two logits with random edges that go up in layer.

    Args:
        density: probability of each possible edge.
        unexpanded: probability that a feature has no row.
        shuffle: put the nodes in random order: nothing may depend on kinds or layers standing together.
    """
    rng = np.random.default_rng(seed)
    spec = [("feature", layer, int(rng.integers(n_pos)), index, -1)
            for layer in range(n_layers) for index in range(per_layer)]
    spec += [("error", layer, position, -1, -1) for layer in range(n_layers) for position in range(n_pos)]
    spec += [("embedding", -1, position, -1, 100 + position) for position in range(n_pos)]
    spec += [("logit", n_layers, n_pos - 1, -1, token) for token in (7, 9)]
    if constants:
        spec += [("constant", layer, -1, -1, -1) for layer in range(n_layers)] + [("constant", 0, 0, -1, -1)]
    if shuffle:
        rng.shuffle(spec)  # type: ignore[arg-type]
    kind, layer, position, feature, token = (np.array(column) for column in zip(*spec, strict=True))
    n = len(spec)
    expanded = (kind == "logit") | ((kind == "feature") & (rng.random(n) >= unexpanded))
    below = layer[None, :] < layer[:, None]
    dense = rng.standard_normal((n, n)) * (rng.random((n, n)) < density) * below * expanded[:, None]
    dense[:, kind == "logit"] = 0
    rows = csr_array(dense.astype(np.float32))
    without_constants = np.abs(dense[:, kind != "constant"]).sum(1)
    value = np.where(kind == "feature", rng.random(n) + 0.5, 0)
    known = (kind == "feature") & (feature != 1)  # one of each layer as in TopK: without a threshold
    nodes = NodeTable.build(
        n, kind=kind, layer=layer, position=position, feature=feature, token=token, expanded=expanded,
        value=value, threshold=np.where(known, value / 2, np.nan), label=[f"{k} {i}" for i, k in enumerate(kind)],
        input_sum=np.where(expanded, dense.sum(1), np.nan), input_abs=np.where(expanded, without_constants, np.nan),
        residual=np.where(expanded, 1e-7, np.nan))
    logits = np.flatnonzero(kind == "logit")
    return AttributionGraph(
        nodes, rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data.astype(np.float32),
        logits.astype(np.int32), np.array([0.6, 0.3], np.float32),
        Header(prompt="a b c", tokens=[100 + i for i in range(n_pos)], token_texts=[f"t{i}" for i in range(n_pos)],
               model="google/gemma-3-270m", n_layers=n_layers, transcoders="bundled", transcoder_kind="clt",
               settings={"coverage": 0.95, "max_logits": 10, "logit_prob": 0.95, "target": None}, unexplored=0.04,
               conservation=3e-7, reconstruction=[0.1] * n_layers, scores={"replacement": 0.5},
               generator="gemma-circuits 0.1.0", created="2026-01-02T03:04:05+00:00", warnings=["layer 2 is poor"]))


def shares(graph: AttributionGraph) -> np.ndarray:
    """(N, N) dense row-normalised |A| over sources that are not constants."""
    dense = np.abs(graph.adjacency().toarray().astype(np.float64))
    dense[:, graph.nodes.kind == "constant"] = 0
    return dense / np.maximum(dense.sum(1, keepdims=True), 1e-300)


def target_vector(graph: AttributionGraph) -> np.ndarray:
    start = np.zeros(len(graph))
    start[graph.target_nodes] = graph.target_weights
    return start


def random_cards(graph: AttributionGraph, seed: int = 0, *, contexts: int = 8) -> FeatureCards:
    """Cards of most features of a graph and of one that it lacks; up to ``contexts`` each, some without any."""
    rng = np.random.default_rng(seed)
    nodes = graph.nodes
    found = {(int(nodes.layer[i]), int(nodes.feature[i])) for i in np.flatnonzero(nodes.kind == "feature")}
    names = [*sorted(name for name in found if rng.random() < 0.8), (90, 5)]
    m = len(names)
    n_top = rng.integers(0, contexts + 1, m)
    n_all = n_top + np.minimum(rng.integers(0, 3, m), contexts - n_top)
    quantile = np.concatenate([[1.0] * top + [0.5] * (every - top) for top, every in zip(n_top, n_all, strict=True)])
    lengths = rng.integers(1, 20, len(quantile))
    made = Contexts(_starts(n_all), rng.integers(0, lengths).astype(np.uint8), quantile.astype(np.float32),
                    _starts(lengths), rng.integers(100, 140, lengths.sum()).astype(np.int32),
                    rng.integers(0, 256, lengths.sum()).astype(np.uint8))
    promoted, suppressed = _lists(rng, m, 1), _lists(rng, m, -1)
    used = np.concatenate([promoted.token, suppressed.token, made.token]).tolist()
    layer, feature = np.array(names, np.int32).reshape(-1, 2).T
    density = np.where(rng.random(m) < 0.2, np.nan, rng.random(m)).astype(np.float32)
    return FeatureCards(np.ascontiguousarray(layer), np.ascontiguousarray(feature), density,
                        (density * 9).astype(np.float32), promoted, suppressed, made, {t: f" t{t}" for t in used})


def _lists(rng: np.random.Generator, m: int, sign: int) -> TokenLists:
    lengths = rng.integers(0, 9, m)
    scores = [sign * np.sort(rng.random(length))[::-1] for length in lengths]
    return TokenLists(_starts(lengths), rng.integers(100, 140, lengths.sum()).astype(np.int32),
                      np.concatenate(scores).astype(np.float32))


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def assert_same(one: AttributionGraph, two: AttributionGraph) -> None:
    """Every array equal in dtype and value (NaN equals NaN), and equal headers. Activations and cards are compared as
    the graphs' methods give them."""
    assert one.header == two.header
    assert_same_columns(one.nodes, two.nodes)
    assert_same_columns(one.prompt_activations(), two.prompt_activations())
    assert_same_columns(one, two)
    a, b = one.feature_cards(), two.feature_cards()
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert a.texts == b.texts
        for x, y in ((a, b), (a.promoted, b.promoted), (a.suppressed, b.suppressed), (a.contexts, b.contexts)):
            assert_same_columns(x, y)


def assert_same_columns(one: Any, two: Any) -> None:
    """The fields of two dataclasses that are arrays."""
    for name in (field.name for field in fields(one) if isinstance(getattr(one, field.name), np.ndarray)):
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


def fed_by_a_constant() -> AttributionGraph:
    """Nodes: a feature whose one input is a constant, an error, a token, the constant, a logit fed by the first
    three with shares 0.5, 0.25 and 0.25."""
    nodes = NodeTable.build(5, kind=["feature", "error", "embedding", "constant", "logit"], layer=[1, 0, -1, 0, 2],
                            position=[0, 0, 0, -1, 0], feature=[3, -1, -1, -1, -1], token=[-1, -1, 5, -1, 6],
                            expanded=[True, False, False, False, True])
    return AttributionGraph(
        nodes, np.array([0, 1, 1, 1, 1, 4]), np.array([3, 0, 1, 2], np.int32), np.array([9, -2, 1, 1], np.float32),
        np.array([4], np.int32), np.array([1.0], np.float32), Header(tokens=[5], token_texts=["a"], n_layers=2))
