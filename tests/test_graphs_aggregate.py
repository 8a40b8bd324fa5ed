"""What recurs over prompts, where it stands, supernodes, and what cannot be aggregated."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted_graphs import LAST, ON_THE, PATH, SOMEWHERE, family, feature, graph_of, key, planted
from random_graphs import shares, target_vector
from scipy.stats import binomtest

from circuits.errors import InputError
from circuits.graphs import AttributionGraph, store
from circuits.graphs.aggregate import Aggregation, Family, aggregate
from circuits.graphs.aggregate_numbers import numbers
from circuits.graphs.aggregate_words import family_sentences

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


def test_planted_features_recur_and_noise_does_not(only: Family) -> None:
    assert {one.key for one in only.features} == {key(pair) for pair in (LAST, SOMEWHERE, ON_THE, PATH)}
    assert only.distinct > 100
    assert [feature(only, pair).count for pair in (LAST, SOMEWHERE, ON_THE, PATH)] == [16, N, N, N]
    assert only.features == sorted(only.features, key=lambda one: -one.influence[0])


def test_influence_is_the_mean_share_of_the_target_with_absent_ones_as_zero(only: Family,
                                                                            graphs: list[AttributionGraph]) -> None:
    for pair in (LAST, ON_THE):
        wanted = []
        for graph in graphs:
            there = (graph.nodes.layer == pair[0]) & (graph.nodes.feature == pair[1])
            dense, start = shares(graph), target_vector(graph)
            arrived = start @ (np.linalg.inv(np.eye(len(graph)) - dense) - np.eye(len(graph)))
            wanted.append(arrived[there].sum() / start.sum())
        one = feature(only, pair)
        assert one.influence[0] == pytest.approx(np.mean(wanted), rel=1e-5)
        assert one.influence[1] < one.influence[0] < one.influence[2]
        ends = binomtest(one.count, N).proportion_ci(method="wilson")
        np.testing.assert_allclose(one.present, (one.count / N, ends.low, ends.high), atol=1e-12)


def test_influence_at_several_positions_adds_up() -> None:
    one, two = (1, 3, 1), (1, 3, 2)
    edges: dict[tuple[object, object], float] = {(1, one): 1.0, (2, two): 1.0, (one, "logit"): 1.0,
                                                 (two, "logit"): 2.0, (2, "logit"): 1.0}
    graph = graph_of(["<bos>", " a", " b"], [one, two], edges)
    found = aggregate({"a": [graph, graph]})
    only = found.families[0]
    assert [made.influence[0] for made in only.features] == pytest.approx([0.75])
    assert only.features[0].place.shares["end"] == (0, pytest.approx(2 / 3))
    into = only.edges.codes == found.items.target * len(found.items)  # from the one feature, item 0
    np.testing.assert_allclose(only.edges.flow.toarray()[:, into], 0.75)


def test_places_are_told_by_what_they_depend_on(only: Family) -> None:
    last, the, anywhere = (feature(only, pair).place for pair in (LAST, ON_THE, SOMEWHERE))
    assert (last.alignment, last.where, last.share) == ("end", 0, 1.0)
    assert last.words == "at the last token"
    assert last.spread == 0
    assert (the.alignment, the.where, the.words) == ("text", " the", 'on " the"')
    assert the.share == pytest.approx(1)
    assert not the.same
    assert the.shares["end"][1] < 0.6
    assert not anywhere.depends
    assert anywhere.words == "anywhere"
    assert anywhere.spread > 0.5
    assert anywhere.share < 0.5
    assert last.p <= 0.01 < 0.05 < anywhere.p
    assert last.chance < 0.5


def test_a_feature_that_always_fires_early_is_told_from_the_start() -> None:
    rng = np.random.default_rng(3)
    made = []
    for _ in range(8):
        n = int(rng.integers(5, 10))
        texts = ["<bos>", *(f" w{rng.integers(1000)}" for _ in range(n - 1))]
        noise = [(0, 50 + i, i) for i in range(1, n)]  # so that features fire everywhere
        edges: dict[tuple[object, object], float] = {(2, (1, 5, 2)): 1.0, ((1, 5, 2), "logit"): 1.0}
        for place in noise:
            edges |= {(place[2], place): 1.0, (place, "logit"): 0.1}
        made.append(graph_of(texts, [(1, 5, 2), *noise], edges))
    place = feature(aggregate({"a": made}).families[0], (1, 5)).place
    assert (place.alignment, place.where, place.words) == ("start", 2, "at position 2")


def test_positions_drawn_at_random_depend_on_nothing() -> None:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(12):
        texts = ["<bos>", *(f" w{i}" for i in range(8))]
        places = [(layer, 7, int(rng.integers(1, 9))) for layer in range(4)]
        places += [(layer, 8, int(rng.integers(1, 9))) for layer in range(4)]
        # in the graph, though below what any pruning keeps: the places at which features fired
        places += [(0, 1000 + p, p) for p in range(1, 9)]
        edges = {(p[2], p): 1.0 for p in places} | {(p, "logit"): 0.2 for p in places}
        made.append(graph_of(texts, places, edges))
    only = aggregate({"a": made}).families[0]
    noise = [one for one in only.features if one.key & 0xFFFFFFFF in (7, 8)]
    assert len(noise) == 8
    assert not any(one.place.depends for one in noise)
    always = [one for one in only.features if one.key & 0xFFFFFFFF >= 1000]
    assert len(always) == 8
    assert all(one.place.depends for one in always)


def test_named_supernodes_are_merged_over_prompts(only: Family) -> None:
    made = next(one for one in only.supernodes if one.name == "the path")
    assert made.count == N
    assert dict(made.members) == {key(ON_THE): N, key(PATH): N}
    both = feature(only, ON_THE).influence[0] + feature(only, PATH).influence[0]
    assert made.influence[0] == pytest.approx(both, rel=1e-6)
    assert sum(one.name == "the path" for one in only.supernodes) == 1


def test_supernodes_of_other_features_stay_apart() -> None:
    rng = np.random.default_rng(2)
    made = []
    for i in range(6):
        names = {"first": [(0, 70), (0, 71)]} | ({} if i % 2 else {"second": [(1, 72), (1, 73)]})
        graph = planted(rng, extra=[pair for pairs in names.values() for pair in pairs])
        ids = {(layer, number): node_id for node_id, layer, number in zip(
            graph.node_ids, graph.nodes.layer.tolist(), graph.nodes.feature.tolist(), strict=True)}
        groups = [[name, *(ids[pair] for pair in pairs)] for name, pairs in names.items()]
        made.append(replace(graph, header=replace(graph.header, supernodes=groups)))
    supernodes = {one.name: one for one in aggregate({"a": made}).families[0].supernodes}
    assert (supernodes["first"].count, supernodes["second"].count) == (6, 3)
    assert set(supernodes["first"].members) == {key((0, 70)), key((0, 71))}


def test_graphs_are_held_one_at_a_time(graphs: list[AttributionGraph], tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for i, graph in enumerate(graphs[:6]):
        graph.save(tmp_path / f"{i}.safetensors")
        paths.append(tmp_path / f"{i}.safetensors")
    alive: list[weakref.ref[AttributionGraph]] = []
    most = 0
    load = store.load

    def watched(path: str | Path) -> AttributionGraph:
        nonlocal most
        graph = load(path)
        alive.append(weakref.ref(graph))
        most = max(most, sum(one() is not None for one in alive))
        return graph

    monkeypatch.setattr(store, "load", watched)
    from_files = aggregate({"all": paths})
    assert len(alive) == 12
    assert most <= 2
    assert json.dumps(numbers(from_files)["families"][0]["features"]) == json.dumps(
        numbers(aggregate({"all": graphs[:6]}))["families"][0]["features"])


def test_files_of_one_name_in_two_folders_are_two_prompts(tmp_path: Path) -> None:
    made = family(9, 4, share=1.0, supernodes=True)
    for i, graph in enumerate(made):
        (tmp_path / str(i)).mkdir()
        graph.save(tmp_path / str(i) / "0001.safetensors")
    paths = [tmp_path / str(i) / "0001.safetensors" for i in range(4)]
    supernode = next(one for one in aggregate({"a": paths}).families[0].supernodes if one.name == "the path")
    assert supernode.count == 4


def test_whole_graphs_are_pruned_and_unequal_settings_told() -> None:
    made = family(10, 3)
    whole = [replace(graph, header=replace(graph.header, settings={"coverage": 1.0})) for graph in made]
    found = aggregate({"a": whole})
    assert any("were not pruned" in warning for warning in found.warnings)
    assert found.families[0].distinct < aggregate({"a": made}).families[0].distinct
    other = replace(made[0], header=replace(made[0].header, settings={"coverage": 0.5, "node_threshold": 0.8}))
    assert any("different settings" in warning for warning in aggregate({"a": [*made, other]}).warnings)


def test_a_family_without_a_recurring_feature_says_so() -> None:
    made = [graph_of(["<bos>", " a"], [(1, i, 1)], {(1, (1, i, 1)): 1.0, ((1, i, 1), "logit"): 1.0, (1, "logit"): 1.0})
            for i in range(4)]
    found = aggregate({"a": made})
    only = found.families[0]
    assert only.features == []
    assert not only.circuit.held.any()
    np.testing.assert_allclose(only.circuit.direct, 0.5)
    assert "none is in 2 of them" in family_sentences(only)[0]
    assert any(said.startswith("No path") for said in family_sentences(only))


def test_unusable_families_are_refused() -> None:
    made = family(11, 3)
    with pytest.raises(InputError, match="largest family has 1 graph:"):
        aggregate({"a": made[:1]})
    with pytest.raises(InputError, match="largest family has 0 graphs"):
        aggregate({})
    other = replace(made[0], header=replace(made[0].header, model="another"))
    with pytest.raises(InputError, match=r"not of one model.*tiny.*another"):
        aggregate({"a": [*made, other]})
    other = replace(made[0], header=replace(made[0].header, transcoders="another"))
    with pytest.raises(InputError, match="not of one transcoder set"):
        aggregate({"a": made, "b": [other, other]})
    with pytest.raises(InputError, match="no family 'c'"):
        aggregate({"a": made}, versus=("a", "c"))
    with pytest.raises(InputError, match="compared with itself"):
        aggregate({"a": made}, versus=("a", "a"))
    with pytest.raises(InputError, match="share is 0"):
        aggregate({"a": made}, share=0)
    empty = replace(made[0], nodes=replace(made[0].nodes, influence=np.zeros_like(made[0].nodes.influence)))
    with pytest.raises(InputError, match="no influence"):
        aggregate({"a": [*made, empty]})
    found = aggregate({"a": made, "b": made[:1]})
    assert [one.name for one in found.families] == ["a"]
    assert "'b' has fewer than 2" in found.warnings[0]


def test_one_place_in_few_short_prompts_may_be_chance() -> None:
    made = [graph_of(["<bos>", " a", " b"], [(1, 5, 2), (0, 6, 1)], {
        (2, (1, 5, 2)): 1.0, ((1, 5, 2), "logit"): 1.0, (1, (0, 6, 1)): 1.0, ((0, 6, 1), "logit"): 1.0})
        for _ in range(3)]
    place = feature(aggregate({"a": made}).families[0], (1, 5)).place
    assert place.share == 1
    assert place.p == pytest.approx(0.25, abs=0.08)  # three prompts with two places each
    assert place.words == "at the last token, perhaps by chance"
    assert set(place.same) == {"start", "text"}
    assert place.usual == 1


def test_graphs_without_features_are_aggregated() -> None:
    direct = [graph_of(["<bos>", " a"], [], {(0, "logit"): 1.0, (1, "logit"): 3.0}) for _ in range(3)]
    found = aggregate({"a": direct, "b": direct})
    np.testing.assert_allclose(found.families[0].circuit.direct, 1)
    assert found.families[0].features == []
    assert found.difference is not None
    assert len(found.difference.keys) == 0
    assert len(found.difference.edges) == 2
    json.dumps(numbers(found), allow_nan=False)
