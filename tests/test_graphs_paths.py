"""Top paths against the enumeration of every path."""

from dataclasses import replace

import numpy as np
import pytest
from circuit_tracer_peer import read_peer
from random_graphs import random_graph, shares

from circuits.errors import InputError
from circuits.graphs.paths import top_paths, whole_rows


def every_path(graph, target, end_kinds):
    """(share, nodes from source to target), by walking all paths."""
    share = shares(graph)
    found = []

    def walk(node, product, above):
        if graph.nodes.kind[node] in end_kinds:
            found.append((product, (node, *above)))
        for source in np.flatnonzero(share[node]):
            walk(source, product * share[node, source], (node, *above))

    walk(target, 1.0, ())
    return sorted(found, key=lambda path: -path[0])


@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_against_brute_force(seed, errors):
    graph = random_graph(seed, per_layer=3, unexpanded=0.2 * (seed % 2), shuffle=seed % 3 == 0)
    ends = ("embedding", "error") if errors else ("embedding",)
    target = int(graph.target_nodes[1])
    expected = every_path(graph, target, ends)
    assert len(expected) > 5
    for count in (1, 5, len(expected), len(expected) + 5):
        found = top_paths(graph, target, count, errors=errors)
        assert len(found) == min(count, len(expected))
        np.testing.assert_allclose([path.share for path in found], [share for share, _ in expected[:count]], rtol=1e-9)
        assert {path.nodes for path in found} == {tuple(map(int, nodes)) for _, nodes in expected[:count]}
        assert found.covered == pytest.approx(sum(share for share, _ in expected[:count]))
        assert found.total == pytest.approx(sum(share for share, _ in expected))


def test_weights_and_signs_are_those_of_the_edges():
    graph = random_graph(3)
    matrix = graph.adjacency().toarray()
    signs = set()
    for path in top_paths(graph, count=40):
        weights = [matrix[target, source] for source, target in zip(path.nodes, path.nodes[1:], strict=False)]
        assert list(path.weights) == weights
        assert path.sign == np.sign(np.prod(weights))
        signs.add(path.sign)
    assert signs == {-1, 1}


def test_the_default_target_has_the_largest_weight():
    graph = random_graph(4)
    assert top_paths(graph).target == graph.target_nodes[0]
    swapped = replace(graph, target_weights=graph.target_weights[::-1].copy())
    found = swapped.top_paths(count=3)
    assert found.target == graph.target_nodes[1]
    assert [path.nodes[-1] for path in found] == [found.target] * 3
    assert found[0].share >= found[1].share >= found[2].share


def test_a_feature_may_be_the_target_and_a_source_has_no_paths():
    graph = random_graph(5)
    feature = int(np.flatnonzero((graph.nodes.kind == "feature") & (graph.nodes.layer == 2))[0])
    assert len(top_paths(graph, feature)) > 0
    assert len(top_paths(graph, int(np.flatnonzero(graph.nodes.kind == "error")[0]))) == 0


def test_peer_graph_paths_cover_what_they_say():
    graph = read_peer("clt").graph
    found = top_paths(graph, count=200)
    assert 0.15 < found.covered < found.total < 1
    assert len({path.nodes for path in found}) == 200


@pytest.mark.parametrize("seed", range(4))
def test_shares_of_whole_rows_are_the_same_after_pruning(seed):
    graph = random_graph(seed, per_layer=5, unexpanded=0.2 * (seed % 2), shuffle=seed % 2 == 0)
    target = int(graph.target_nodes[0])
    names = np.array(graph.node_ids)
    before = {tuple(names[list(path.nodes)]): path.share for path in top_paths(graph, target, 10**6)}
    small = graph.prune(0.85, 0.9)
    assert small.n_edges < graph.n_edges
    names = np.array(small.node_ids)
    found = top_paths(small, count=10**6, row_sums=small.nodes.input_abs)
    assert len(found) > 3
    after = {tuple(names[list(path.nodes)]): path.share for path in found}
    assert after == {name: pytest.approx(before[name], rel=1e-5) for name in after}
    assert found.covered == pytest.approx(found.total) == pytest.approx(sum(after.values()))
    assert found.total < top_paths(small, count=1).total
    best = top_paths(small, count=3, row_sums=small.nodes.input_abs)
    assert [path.nodes for path in best] == [path.nodes for path in found.paths[:3]]


def test_row_sums_that_cannot_be_used_are_those_of_the_edges():
    graph = random_graph(2)
    present = np.abs(graph.adjacency().toarray().astype(float))[:, graph.nodes.kind != "constant"].sum(1)
    assert whole_rows(graph) == pytest.approx(present, rel=1e-6)
    for bad in (np.nan, np.inf, -np.inf, -1.0, 0.0):
        assert whole_rows(graph, np.full(len(graph), bad)) == pytest.approx(present, rel=1e-12)
        found = top_paths(graph, count=5, row_sums=np.full(len(graph), bad))
        assert [path.share for path in found] == pytest.approx([path.share for path in top_paths(graph, count=5)])
    assert whole_rows(graph, present / 2) == pytest.approx(present)
    assert whole_rows(graph, present * 2 + 1) == pytest.approx(present * 2 + 1)
    with pytest.raises(InputError, match=rf"shape \(3,\): expected one number for each of {len(graph)} nodes"):
        top_paths(graph, row_sums=np.ones(3))


def test_bad_arguments():
    graph = random_graph(0)
    with pytest.raises(InputError, match="count is 0"):
        top_paths(graph, count=0)
    with pytest.raises(InputError, match=f"nodes 0 to {len(graph) - 1}"):
        top_paths(graph, len(graph))
    bare = replace(graph, target_nodes=np.zeros(0, np.int32), target_weights=np.zeros(0, np.float32))
    with pytest.raises(InputError, match="no targets"):
        top_paths(bare)
