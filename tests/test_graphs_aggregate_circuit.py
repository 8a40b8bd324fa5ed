"""Edges that recur over prompts, and the common circuit that they make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted_graphs import LAST, ON_THE, PATH, SOMEWHERE, family, feature, graph_of, key
from random_graphs import random_graph, shares, target_vector

from circuits.graphs import AttributionGraph
from circuits.graphs.aggregate import Aggregation, Family, aggregate
from circuits.graphs.aggregate_circuit import Stack
from circuits.graphs.aggregate_edges import LAST as LAST_TOKEN
from circuits.graphs.aggregate_edges import Items, edge_table, edges_of
from circuits.graphs.aggregate_numbers import edge_rows
from circuits.graphs.aggregate_prompts import GraphList
from circuits.graphs.scores import annotate

N = 20


@pytest.fixture(scope="module")
def graphs() -> list[AttributionGraph]:
    return family(1, N, supernodes=True)


@pytest.fixture(scope="module")
def found(graphs: list[AttributionGraph]) -> Aggregation:
    return aggregate({"all": graphs})


@pytest.fixture(scope="module")
def only(found: Aggregation) -> Family:
    return found.families[0]


def test_the_common_circuit_is_the_planted_path(found: Aggregation, only: Family) -> None:
    names = {(row["source"], row["target"]) for row in edge_rows(found, only.circuit.edges)}
    the, path, last, anywhere = (f"{pair[0]}/{pair[1]} planted" for pair in (ON_THE, PATH, LAST, SOMEWHERE))
    assert {('" the"', the), (the, path), (path, "target"), (last, "target"), (anywhere, "target")} <= names
    assert (LAST_TOKEN, last) in names
    assert (LAST_TOKEN, anywhere) in names  # some token feeds it in every prompt, that one in few
    assert (LAST_TOKEN, anywhere) not in {(row["source"], row["target"]) for row in edge_rows(found, only.edges)}
    assert not any("error" in part for row in names for part in row)
    edge = next(row for row in edge_rows(found, only.edges) if (row["source"], row["target"]) == (the, path))
    assert edge["prompts"] == N
    assert edge["weight"] == pytest.approx(0.8)  # 2 of 2 + 0.5 from an error
    assert edge["same_sign"] == 1
    assert edge["influence"] == pytest.approx(feature(only, PATH).influence[0] * 0.8, rel=1e-5)


def test_edges_keep_their_signs() -> None:
    made = [graph_of(["<bos>", " a"], [(1, 3, 1)], {(1, (1, 3, 1)): -1.0, ((1, 3, 1), "logit"): sign * 3.0,
                                                     (1, "logit"): 1.0}) for sign in (-1, -1, 1, -1)]
    found = aggregate({"a": made})
    rows = {(row["source"], row["target"]): row for row in edge_rows(found, found.families[0].edges)}
    out, into = rows["1/3 planted", "target"], rows[LAST_TOKEN, "1/3 planted"]
    assert (out["weight"], out["same_sign"], out["influence"]) == pytest.approx((-0.375, 0.75, 0.75))
    assert (into["weight"], into["same_sign"], into["influence"]) == pytest.approx((-1, 1, 0.75))


def test_what_the_circuit_holds_is_exact(found: Aggregation, only: Family, graphs: list[AttributionGraph]) -> None:
    keys = [key(pair) for pair in (LAST, SOMEWHERE, ON_THE, PATH)]
    for graph, held, direct in zip(graphs, only.circuit.held, only.circuit.direct, strict=True):
        nodes = graph.nodes
        own = (nodes.layer.astype(np.int64) << 32) + nodes.feature
        keep = np.isin(own, keys) & (nodes.kind == "feature") | np.isin(nodes.kind, ("embedding", "logit"))
        dense, start = shares(graph), target_vector(graph)
        whole = start @ np.linalg.inv(np.eye(len(graph)) - dense)
        inside = start @ np.linalg.inv(np.eye(len(graph)) - dense * keep)
        tokens = nodes.kind == "embedding"
        straight = (start @ dense)[tokens].sum()
        assert direct == pytest.approx(straight / whole[tokens].sum(), rel=1e-5)
        assert held == pytest.approx((inside[tokens].sum() - straight) / whole[tokens].sum(), rel=1e-5)


def test_the_core_is_the_path_that_carries_nearly_everything() -> None:
    strong = aggregate({"a": family(4, 8, share=1.0, strength=40.0)}).families[0]
    keys = np.array(sorted(key(pair) for pair in (LAST, SOMEWHERE, ON_THE, PATH)))
    assert set(keys[strong.circuit.core]) == {key(ON_THE), key(PATH)}
    assert 0.9 <= strong.circuit.core_held.mean() / strong.circuit.held.mean() < 1


@pytest.mark.parametrize("seed", range(3))
def test_a_family_of_one_graph_twice_holds_all_of_it(seed: int) -> None:
    graph = annotate(random_graph(seed, n_layers=4, per_layer=5, shuffle=True))
    graph = replace(graph, header=replace(graph.header, settings={"node_threshold": 1.0}))
    only = aggregate({"a": [graph, graph]}).families[0]
    dense, start = shares(graph), target_vector(graph)
    arrived = start @ np.linalg.inv(np.eye(len(graph)) - dense) / start.sum()
    for one in only.features:
        there = (graph.nodes.layer == one.key >> 32) & (graph.nodes.feature == one.key & 0xFFFFFFFF)
        assert one.influence[0] == pytest.approx(arrived[there].sum(), rel=1e-5)
    np.testing.assert_allclose(only.circuit.held + only.circuit.direct, 1, rtol=1e-5)
    assert only.circuit.core_held[0] >= 0.9 * only.circuit.held[0]
    assert len(only.circuit.core) < len(only.circuit.features)
    np.testing.assert_allclose(only.feature_share, 1)


def test_a_family_is_the_same_beside_another_one() -> None:
    graphs = family(5, 6, extra=[(2, 77)])
    alone, both = aggregate({"a": graphs}), aggregate({"a": graphs, "b": family(6, 4, strength=5.0)})

    def rows(found: Aggregation) -> list[dict[str, object]]:
        edges = edge_rows(found, found.families[0].edges) + edge_rows(found, found.families[0].circuit.edges)
        return [row for row in edges if "planted" in row["source"]]  # roles of tokens are common to all families

    assert rows(alone) == rows(both)
    assert len(rows(alone)) >= 8
    assert [one.influence for one in alone.families[0].features] == [one.influence for one in both.families[0].features]
    np.testing.assert_allclose(alone.families[0].circuit.held, both.families[0].circuit.held)


def test_features_off_the_paths_are_not_in_the_circuit() -> None:
    made = []
    for i in range(4):
        through, unfed, dead, next_ = (1, 3, 1), (1, 4, 2), (0, 5, 1), (2, 100 + i, 2)
        made.append(graph_of(["<bos>", " a", " b"], [through, unfed, dead, next_], {
            (1, through): 1.0, (through, "logit"): 1.0, ("error 0", unfed): 1.0, (unfed, "logit"): 1.0,
            (1, dead): 1.0, (dead, next_): 1.0, (next_, "logit"): 1.0}))
    found = aggregate({"a": made})
    only = found.families[0]
    assert {one.key for one in only.features} == {key((1, 3)), key((1, 4)), key((0, 5))}
    assert found.items.keys[only.circuit.features].tolist() == [key((1, 3))]
    np.testing.assert_allclose(only.circuit.held, 0.5)  # of the two thirds that reach tokens, half by the lost feature
    assert not only.circuit.direct.any()


@pytest.mark.parametrize("seed", range(2))
def test_what_runs_through_a_feature_is_what_its_removal_costs(seed: int) -> None:
    graphs = []
    for _ in range(2):
        graph = annotate(random_graph(seed, n_layers=5, per_layer=4))
        graphs.append(replace(graph, header=replace(graph.header, settings={"node_threshold": 1.0})))
    made = GraphList(graphs)
    prompts = list(made.prompts())
    items = Items(np.unique(prompts[0].key), [])
    edges = [edges_of(made.open(i), items) for i in range(2)]
    tokens = np.array([prompt.measures["tokens"] for prompt in prompts])
    stack = Stack(edges, edge_table(edges).codes, items, tokens)
    open_ = np.arange(len(items.keys))[::2]
    through = stack.through(open_)
    assert (through > 0).any()
    for i in range(len(open_)):
        lost = stack.held(open_) - stack.held(np.delete(open_, i))
        assert through[i] == pytest.approx(lost.mean(), abs=1e-12)


def test_the_last_token_has_its_role_whatever_its_text() -> None:
    items = Items(np.array([key((0, 1))]), [" is"])
    roles = [items.roles[i - 1] for i in items.of_tokens([" is", " so", " is"])]
    assert roles == ['" is"', "another token", LAST_TOKEN]
    assert items.target == 4 == len(items) - 1
