"""Large graphs are worked through block by block: the same numbers, and memory that does not grow with the edges."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from random_graphs import assert_same, random_graph, shares, target_vector

from circuits.errors import InputError
from circuits.graphs import AttributionGraph, graph
from circuits.graphs.influence import influence, rows_by_level, unexplored
from circuits.graphs.prune import prune_masks
from circuits.graphs.scores import annotate


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "BLOCK_EDGES", 1)  # then twice the number of nodes decides


def peak_bytes(work: Callable[[], object]) -> int:
    """Largest sum of memory that ``work`` allocates at any one time; numpy reports its arrays to tracemalloc."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shuffle", [False, True])
def test_blocks_change_no_number(monkeypatch: pytest.MonkeyPatch, shuffle: bool) -> None:
    # tests/random_graphs.py puts logits before constants; shuffled, the two are many runs of neighbours
    whole = random_graph(0, n_layers=4, per_layer=40, unexpanded=0.2, shuffle=shuffle)
    expected = influence(whole), *prune_masks(whole, 0.9, 0.95), whole.subgraph(np.arange(len(whole)) % 3 > 0)
    levels = sum(1 for _ in rows_by_level(whole))
    monkeypatch.setattr(graph, "BLOCK_EDGES", 1)
    blocks = [(rows.nodes, rows.sizes.toarray()) for rows in rows_by_level(whole)]
    assert len(blocks) > 2 * levels
    dense = np.abs(whole.adjacency().toarray().astype(np.float64))
    dense[:, whole.nodes.kind == "constant"] = 0
    for nodes, sizes in blocks:
        np.testing.assert_array_equal(sizes, dense[nodes])
    # only the order of the sums differs: a few hundred terms in float64
    np.testing.assert_allclose(influence(whole), expected[0], rtol=1e-13, atol=1e-16)
    keep, keep_edges = prune_masks(whole, 0.9, 0.95)
    np.testing.assert_array_equal(keep, expected[1])
    np.testing.assert_array_equal(keep_edges, expected[2])
    assert_same(whole.subgraph(np.arange(len(whole)) % 3 > 0), expected[3])
    assert_same(whole.subgraph(keep, keep_edges), replace(
        (pruned := whole.prune(0.9, 0.95)), header=replace(pruned.header, settings=whole.header.settings)))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_influence_in_blocks_is_the_inverse(shuffle: bool) -> None:
    whole = random_graph(1, per_layer=30, unexpanded=0.3, shuffle=shuffle)
    eye = np.eye(len(whole))
    expected = target_vector(whole) @ (np.linalg.inv(eye - shares(whole)) - eye)
    np.testing.assert_allclose(influence(whole), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("small_blocks")
def test_a_wrong_edge_in_a_late_block_is_refused() -> None:
    whole = random_graph(2, per_layer=30)
    top = np.flatnonzero((whole.nodes.kind == "feature") & (whole.nodes.layer == 2) & (np.diff(whole.indptr) > 0))
    indices = whole.indices.copy()
    indices[whole.indptr[top[-1] + 1] - 1] = top[0]
    with pytest.raises(InputError, match="feature of layer 2 to the feature of layer 2"):
        influence(replace(whole, indices=indices))


def test_memory_does_not_grow_with_the_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "BLOCK_EDGES", 1 << 14)
    whole = random_graph(3, n_layers=6, n_pos=5, per_layer=200, density=1.0)
    assert whole.n_edges > 600_000
    one_float64_each = 8 * whole.n_edges
    for work in (lambda: annotate(whole), lambda: whole.prune(0.3, 0.9), lambda: unexplored(whole)):
        assert peak_bytes(work) < one_float64_each / 4
    kept = np.arange(len(whole)) % 10 == 0
    small = whole.subgraph(kept)
    assert peak_bytes(lambda: whole.subgraph(kept)) < one_float64_each / 8 + 24 * small.n_edges
    assert peak_bytes(lambda: whole.edges_between(kept)) < one_float64_each / 8 + 24 * small.n_edges


def _shortened() -> tuple[AttributionGraph, AttributionGraph]:
    """A graph, and the same with only its large edges, so that some rows are empty but their sums are known."""
    full = random_graph(4, density=1.0)
    large = np.abs(full.weights) > 0.8
    first = np.flatnonzero((full.nodes.kind == "feature") & (full.nodes.layer == 2))[0]
    large[full.indptr[first]:full.indptr[first + 1]] = False
    return full, full.subgraph(np.ones(len(full), bool), large)


def test_shortened_rows() -> None:
    full, short = _shortened()
    kind, start = full.nodes.kind, target_vector(full)
    lower = influence(short, short.nodes.input_abs)
    assert (lower <= influence(full) * (1 + 1e-6)).all()  # input_abs is float32
    empty = (np.diff(short.indptr) == 0) & (kind == "feature")
    assert lower[empty].sum() > 0  # mass that ends in a row whose edges are all gone is lost mass, too
    ends = np.isin(kind, ["embedding", "error"])
    assert unexplored(short, short.nodes.input_abs) == pytest.approx(1 - lower[ends].sum() / start.sum(), rel=1e-6)
    # pruning and scores speak of the present edges: every row that has any passes all its mass on
    present = influence(short)
    assert present[ends | empty].sum() == pytest.approx(start.sum())
    np.testing.assert_array_equal(annotate(short).nodes.influence, present.astype(np.float32))
    bare = replace(short, nodes=replace(short.nodes, input_abs=np.full(len(short), np.nan, np.float32)))
    for one, two in zip(prune_masks(short, 0.7, 0.9), prune_masks(bare, 0.7, 0.9), strict=True):
        np.testing.assert_array_equal(one, two)


def test_rows_fed_by_constants_alone_lose_nothing() -> None:
    full = random_graph(5, density=1.0)
    feature = np.flatnonzero((full.nodes.kind == "feature") & (full.nodes.layer == 2))[0]
    rows = np.repeat(np.arange(len(full)), np.diff(full.indptr))
    only = full.subgraph(np.ones(len(full), bool), (rows != feature) | (full.nodes.kind == "constant")[full.indices])
    only.nodes.input_abs[feature] = 0.0
    assert influence(only)[feature] > 0
    assert unexplored(only, only.nodes.input_abs) == pytest.approx(0.0, abs=1e-6)  # input_abs is float32


def test_missing_row_sums_are_refused() -> None:
    whole = random_graph(6)
    sums = whole.nodes.input_abs.copy()
    sums[whole.target_nodes[0]] = np.nan
    with pytest.raises(InputError, match="row_sums has no number for 1 rows that have edges"):
        unexplored(whole, sums)
