"""Explanations: parts against the enumeration of all paths, and sentences word by word."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from random_graphs import random_graph

from circuits.errors import InputError
from circuits.graphs import AttributionGraph, Header, NodeTable
from circuits.graphs.explain import explain
from circuits.graphs.words import listed, node_name, percent, quoted, shown


def ends_of_paths(graph: AttributionGraph, target: int) -> dict[str, float]:
    """Shares of the target's whole input by where they end, by walking every path."""
    nodes, dense = graph.nodes, np.abs(graph.adjacency().toarray().astype(float))
    dense[:, nodes.kind == "constant"] = 0
    ends = dict.fromkeys(("tokens", "errors", "pruned", "unexplored", "constants"), 0.0)

    def walk(node: int, share: float) -> None:
        if nodes.kind[node] in ("embedding", "error"):
            ends["tokens" if nodes.kind[node] == "embedding" else "errors"] += share
            return
        whole = max(dense[node].sum(), np.nan_to_num(nodes.input_abs[node]))
        if whole == 0:
            ends["constants" if nodes.expanded[node] else "unexplored"] += share
            return
        ends["pruned"] += share * (1 - dense[node].sum() / whole)
        for source in np.flatnonzero(dense[node]):
            walk(int(source), share * dense[node, source] / whole)

    walk(target, 1.0)
    return ends


@pytest.mark.parametrize("seed", range(8))
def test_parts_against_brute_force(seed: int) -> None:
    graph = random_graph(seed, per_layer=5, unexpanded=0.3 * (seed % 2), density=0.4, shuffle=seed % 3 == 0)
    for part in (graph, graph.prune(0.7, 0.8)):
        for target in map(int, part.target_nodes):
            found = explain(part, target, count=4, errors=True)
            expected = ends_of_paths(part, target)
            parts = asdict(found.parts)
            assert sum(parts.values()) == pytest.approx(1, abs=1e-6)
            assert parts["listed"] + parts["other_paths"] == pytest.approx(expected["tokens"])
            for name in ("errors", "pruned", "unexplored", "constants"):
                assert parts[name] == pytest.approx(expected[name], abs=1e-6), name
            assert parts["listed"] == found.paths.covered == sum(path.share for path in found.paths)
            assert found.error_paths is not None
            assert {part.nodes.kind[path.nodes[0]] for path in found.paths} <= {"embedding"}
            assert {part.nodes.kind[path.nodes[0]] for path in found.error_paths} <= {"error"}
            assert found.error_paths.total == pytest.approx(parts["errors"])
    assert parts["pruned"] > 0.05


def test_features_without_a_row_and_rows_of_constants_are_told() -> None:
    graph = random_graph(1, unexpanded=0.3)
    unexplored = int(np.flatnonzero((graph.nodes.kind == "feature") & ~graph.nodes.expanded)[0])
    found = explain(graph, unexplored)
    assert found.parts.unexplored == 1
    assert found.sentences() == [f"No path from a token reaches feature {unexplored}: unexplored features 100.0%."]
    feature = int(np.flatnonzero((graph.nodes.kind == "feature") & graph.nodes.expanded)[-1])
    input_abs = graph.nodes.input_abs.copy()
    input_abs[feature] = 0
    keep = np.ones(graph.n_edges, bool)
    row = slice(graph.indptr[feature], graph.indptr[feature + 1])
    keep[row] = graph.nodes.kind[graph.indices[row]] == "constant"
    assert keep[row].any()
    fed = replace(graph, nodes=replace(graph.nodes, input_abs=input_abs)).subgraph(np.ones(len(graph), bool), keep)
    assert explain(fed, feature).parts.constants == 1


def chain() -> AttributionGraph:
    """Token 0 and error 1 feed feature 2, which with token 3 feeds feature 4 at the next position, which lowers the
    logit 5; half of the input of feature 2 and a quarter of the logit's was pruned."""
    nodes = NodeTable.build(
        6, kind=["embedding", "error", "feature", "embedding", "feature", "logit"], layer=[-1, 0, 3, -1, 12, 18],
        position=[4, 4, 4, 5, 5, 5], feature=[-1, -1, 345, -1, 77, -1], token=[7, -1, -1, 8, -1, 9],
        label=['Token " Jordan"', 'Error of layer 0 at " Jordan"', "3/345 names of athletes", 'Token " plays"',
               "12/77 says basketball", 'Output " basketball" (p=0.611)'],
        expanded=[False, False, True, False, True, True], input_abs=[np.nan, np.nan, 8, np.nan, 4, 4])
    return AttributionGraph(
        nodes, np.array([0, 0, 0, 2, 2, 4, 5]), np.array([0, 1, 2, 3, 4], np.int32),
        np.array([1, 3, 3, 1, -3], np.float32), np.array([5], np.int32), np.array([0.611], np.float32),
        Header(tokens=[1] * 6, token_texts=["a"] * 6, n_layers=18))


def test_sentences_word_by_word() -> None:
    found = explain(chain(), errors=True)
    assert found.sentences() == [
        'Token " plays" (position 5) → 12/77 says basketball (layer 12) → lowers " basketball": 18.8% of its input.',
        'Token " Jordan" (position 4) → 3/345 names of athletes (layer 3) → 12/77 says basketball (layer 12, '
        'position 5) → lowers " basketball": 7.0% of its input.',
        'Error of layer 0 at " Jordan" (position 4) → 3/345 names of athletes (layer 3) → 12/77 says basketball '
        '(layer 12, position 5) → lowers " basketball": 21.1% of its input.',
        'These 2 paths carry 25.8% of the input of " basketball"; the rest: errors 21.1% (the paths listed 21.1%) and '
        'pruned edges 53.1%.']
    assert [path.nodes for path in found.paths] == [(3, 4, 5), (0, 2, 4, 5)]
    to_feature = explain(chain(), 4, count=1)
    assert to_feature.sentences() == [
        'Token " plays" (position 5) → raises 12/77 says basketball: 25.0% of its input.',
        "This path carries 25.0% of the input of 12/77 says basketball; the rest: other paths from tokens 9.4%, errors "
        "28.1% and pruned edges 37.5%."]
    assert to_feature.error_paths is None


def test_an_unpruned_graph_says_no_more_than_a_pruned_one() -> None:
    graph = random_graph(4, per_layer=8)
    small = graph.prune(0.8, 0.9)
    before, after = explain(graph, count=1), explain(small, count=1)
    assert graph.node_ids[before.paths[0].nodes[0]] == small.node_ids[after.paths[0].nodes[0]]
    assert after.parts.listed == pytest.approx(before.parts.listed, rel=1e-5)
    assert after.parts.errors < before.parts.errors
    assert before.parts.pruned < 1e-6 < after.parts.pruned


def test_bad_targets() -> None:
    graph = random_graph(0)
    token = int(np.flatnonzero(graph.nodes.kind == "embedding")[0])
    with pytest.raises(InputError, match="of kind embedding, which has no inputs: choose a feature"):
        explain(graph, token)
    with pytest.raises(InputError, match="the graph has nodes 0 to"):
        explain(graph, -1)
    with pytest.raises(InputError, match="count is 0"):
        explain(graph, count=0)
    none = replace(graph, target_nodes=np.zeros(0, np.int32), target_weights=np.zeros(0, np.float32))
    with pytest.raises(InputError, match="no targets"):
        explain(none)


def test_words() -> None:
    assert shown("a\nb\tc\0\u202e") == "a↵b⇥c⟨U+0000⟩⟨U+202E⟩"
    assert shown("x" * 61) == "x" * 59 + "…"
    assert shown("x" * 60) == "x" * 60
    assert quoted(' say "hi"') == "' say \"hi\"'"
    assert [listed(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert [percent(share) for share in (0, 1e-5, 5e-4, 0.042, 1)] == ["0.0%", "<0.1%", "0.1%", "4.2%", "100.0%"]
    labels = ['Output " a" (p=0.5)', 'Output " a" (p=0.5) minus " b" (p=0.1)', "Direction", "", 'Output "\n" (p=1e-3)']
    nodes = NodeTable.build(6, kind=["logit"] * 5 + ["feature"], layer=18, feature=7, label=[*labels, ""])
    graph = replace(chain(), nodes=nodes)
    assert [node_name(graph, i) for i in range(6)] == [
        '" a"', '" a" minus " b"', "Direction", "logit of layer 18", '"↵"', "feature 18/7"]
