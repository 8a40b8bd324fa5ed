"""Every way down gives the same rows: factors or dense, large or small batches, kept or recomputed, either kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_attribution import TOKENS, write
from tiny_models import text_folder

import circuits
from circuits import attribution, planning, sweep
from circuits.errors import CircuitsError, InputError
from circuits.gemma3 import Gemma3
from circuits.graphs import AttributionGraph
from circuits.transcoder import Transcoders
from circuits.transposed import Factors, Scratch, TransposedLayer

POSITIONS = [3, 3, 7, 11]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    return circuits.load_model(text_folder(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def transcoders(tmp_path_factory: pytest.TempPathFactory) -> Transcoders:
    return circuits.open_transcoders(write(tmp_path_factory.mktemp("clt"), "clt", True)[1])


@pytest.fixture(scope="module")
def full(model: Gemma3, transcoders: Transcoders) -> AttributionGraph:
    return circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0)


def assert_same_edges(graph: AttributionGraph, expected: AttributionGraph, relative: float = 2e-6) -> None:
    """Sums in another order: rows agree to ``relative`` of their largest edge."""
    ours, theirs = graph.adjacency().toarray(), expected.adjacency().toarray()
    scale = np.abs(theirs).max(1, keepdims=True)
    assert np.abs(theirs).any()
    assert bool((np.abs(ours - theirs) <= relative * scale).all())


@pytest.mark.parametrize("skip", [False, True])
def test_factors_are_the_dense_gradients(model: Gemma3, transcoders: Transcoders, skip: bool) -> None:
    layers = [TransposedLayer(layer, transcoders.skip(i) if skip else None, torch.float32)
              for i, layer in enumerate(model.freeze(TOKENS).layers)]
    scratch = Scratch(torch.float32, torch.device("cpu"))
    position, vectors = torch.tensor(POSITIONS), torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    factors = Factors.start(vectors, position)
    state = torch.zeros(12, 4, 32)
    state[position, torch.arange(4)] = vectors
    for n_factors, layer in zip((5, 45 if skip else 25), (layers[3], layers[2]), strict=True):
        factors.cross(layer)
        layer.cross(state, scratch)
        assert len(factors) == n_factors
        torch.testing.assert_close(factors.dense(torch.full_like(state, torch.nan)), state, rtol=0, atol=2e-5)
        factors.add_skip(layer)
        layer.add_skip(state, scratch)
        torch.testing.assert_close(factors.dense(torch.full_like(state, torch.nan)), state, rtol=0, atol=2e-5)
    left = factors.dense(torch.full_like(state, torch.nan))
    factors.cross_into(layers[1], left, scratch)
    layers[1].cross(state, scratch)
    torch.testing.assert_close(left, state, rtol=0, atol=1e-4)


@pytest.mark.parametrize("costs", [(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)], ids=["stay", "leave", "dense"])
def test_every_way_down_gives_the_same_rows(model: Gemma3, transcoders: Transcoders, full: AttributionGraph,
                                            monkeypatch: pytest.MonkeyPatch, costs: tuple[float, ...]) -> None:
    monkeypatch.setattr(Factors, "flops", lambda self, layer, with_skip: costs)
    assert_same_edges(circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0), full)


def test_embeddings_carried_forward_or_gradients_carried_back(model: Gemma3, transcoders: Transcoders,
                                                              full: AttributionGraph, monkeypatch: pytest.MonkeyPatch
                                                              ) -> None:
    monkeypatch.setattr(sweep, "CARRIED", 0)
    assert_same_edges(circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0), full)


def test_patterns_kept_or_recomputed(model: Gemma3, transcoders: Transcoders, full: AttributionGraph,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LONG", 1)
    made: list[bool] = []
    start = TransposedLayer.__init__

    def noted(self: TransposedLayer, *arguments: object) -> None:
        start(self, *arguments)
        made.append(self.patterns is not None)

    monkeypatch.setattr(TransposedLayer, "__init__", noted)
    assert_same_edges(circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0), full)
    assert made == [True] * 4


@pytest.mark.parametrize("implementation", ["triton"], indirect=True)
def test_triton_gives_the_same_graph(model: Gemma3, transcoders: Transcoders, implementation: str,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    with_triton = circuits.trace(model, transcoders, tokens=TOKENS[:5], max_features=6, max_logits=2)
    monkeypatch.setenv("CIRCUITS_KERNELS", "reference")
    expected = circuits.trace(model, transcoders, tokens=TOKENS[:5], max_features=6, max_logits=2)
    np.testing.assert_array_equal(with_triton.nodes.expanded, expected.nodes.expanded)
    assert_same_edges(with_triton, expected)


def test_batches_hold_every_target_once_and_cost_little(model: Gemma3, transcoders: Transcoders) -> None:
    local = circuits.replacement.build_replacement(model, transcoders, TOKENS)
    size = planning.Size(12, local.n_sources, 10, 4, 32, 4, 2, 12, True)
    made = planning.plan(size, torch.device("cpu"), targets=7)
    rows = sweep.Sweep(local, made)
    rows._rows_at_once = 40
    position = np.sort(np.random.default_rng(0).integers(0, 12, 200))

    def cost(batches: list[np.ndarray]) -> float:
        return sum((len(b) + rows._per_position) * (position[b[-1]] + 1) + made.overhead for b in batches)

    batches = rows._batches(np.arange(200), position)
    np.testing.assert_array_equal(np.concatenate(batches), np.arange(200))
    assert max(map(len, batches)) <= 7
    assert all(len(b) == 1 or len(b) * (position[b[-1]] + 1) <= 40 for b in batches)
    greedy, start = [], 0
    while start < 200:
        fits = [n for n in range(1, 8) if start + n <= 200 and n * (position[start + n - 1] + 1) <= 40] or [1]
        greedy.append(np.arange(start, start + fits[-1]))
        start += fits[-1]
    assert cost(batches) <= cost(greedy)


def test_memory_that_runs_out_costs_no_rows(model: Gemma3, transcoders: Transcoders, full: AttributionGraph,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    compact, sizes = sweep.compact, []

    def short(edges: torch.Tensor, *arguments: object):
        sizes.append(edges.shape[1])
        if edges.shape[1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compact(edges, *arguments)

    monkeypatch.setattr(sweep, "compact", short)
    graph = circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0)
    assert max(sizes) > 3
    assert graph.nodes.expanded.sum() == full.nodes.expanded.sum()
    assert_same_edges(graph, full)


def test_no_memory_for_one_row_is_one_clear_error(model: Gemma3, transcoders: Transcoders,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(sweep, "compact", none)
    with pytest.raises(CircuitsError, match="no memory to compute a single row of this prompt of 12 tokens"):
        circuits.trace(model, transcoders, tokens=TOKENS)
    monkeypatch.setattr(sweep, "compact", lambda *_: (_ for _ in ()).throw(RuntimeError("a real fault")))
    with pytest.raises(RuntimeError, match="a real fault"):
        circuits.trace(model, transcoders, tokens=TOKENS)


def test_shortened_rows_keep_their_sums_and_the_certificate(model: Gemma3, transcoders: Transcoders,
                                                            full: AttributionGraph) -> None:
    for coverage in (1.0, 0.9):
        cut = circuits.trace(model, transcoders, tokens=TOKENS, coverage=coverage, row_mass=0.9)
        assert cut.n_edges < 0.8 * full.n_edges
        rows = cut.nodes.expanded
        np.testing.assert_allclose(cut.nodes.input_abs[rows], full.nodes.input_abs[rows], rtol=1e-5)
        assert cut.conservation < 1e-5
        assert 0.05 < cut.unexplored < 1
        missing = np.abs(cut.nodes.influence - full.nodes.influence).max() / full.target_weights.sum()
        assert missing <= cut.unexplored + 1e-6


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_cheap_rows_are_close(model: Gemma3, transcoders: Transcoders, full: AttributionGraph, dtype: str,
                              error: float) -> None:
    graph = circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0, dtype=dtype)
    ours, theirs = graph.adjacency().toarray(), full.adjacency().toarray()
    assert 1e-5 < np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < error
    assert any("reduced precision" in warning for warning in graph.header.warnings)


def test_mixed_rows_are_exact_where_influence_is_high(model: Gemma3, transcoders: Transcoders,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "fast_16_bit", lambda dtype: True)
    graph = circuits.trace(model, transcoders, tokens=TOKENS, coverage=0.98, dtype="mixed")
    exact = circuits.trace(model, transcoders, tokens=TOKENS, coverage=0.98)
    assert graph.header.settings["tail_dtype"] == "bfloat16"
    features = graph.nodes.expanded & (graph.nodes.kind == "feature")
    precise = features & (graph.nodes.residual < 1e-5)
    rounded = features & (graph.nodes.residual > 1e-4)
    assert precise.sum() > 5
    assert rounded.sum() > 5
    assert np.median(graph.nodes.influence[precise]) > 2 * np.median(graph.nodes.influence[rounded])
    assert np.abs(graph.nodes.influence - exact.nodes.influence).max() < 0.02


def test_mixed_is_exact_where_16_bit_is_slow(model: Gemma3, transcoders: Transcoders, monkeypatch: pytest.MonkeyPatch
                                             ) -> None:
    monkeypatch.setattr(attribution, "fast_16_bit", lambda dtype: False)
    graph = circuits.trace(model, transcoders, tokens=TOKENS, dtype="mixed")
    assert graph.header.settings["tail_dtype"] == "float32"
    assert graph.conservation < 1e-5


@pytest.mark.parametrize(("arguments", "message"), [
    ({"row_mass": 0.0}, "row_mass is 0.0"), ({"memory": 0}, "memory is 0 bytes"),
    ({"memory": 1000}, "are left for the rows of 12 tokens")])
def test_bad_arguments(model: Gemma3, transcoders: Transcoders, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        circuits.trace(model, transcoders, tokens=TOKENS, **arguments)
