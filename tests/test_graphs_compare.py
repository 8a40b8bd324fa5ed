"""Graphs compared: every measure against a computation of its own, and what may be compared at all."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from random_graphs import random_graph, shares, target_vector
from scipy.stats import wasserstein_distance
from test_graphs_agreement import TOKENS, graph_of, random_lists, with_lists
from test_graphs_alignment import permuted, random_signatures, renumbered, with_influence

from circuits.errors import InputError
from circuits.graphs import AttributionGraph
from circuits.graphs.compare import Comparison, compare
from circuits.graphs.compare_measures import MEASURES, depth_likeness, on_grid, place_measures, step_measures
from circuits.graphs.compare_words import pair_sentences, sentences
from circuits.graphs.decided import Reading, decided, settled
from circuits.graphs.lengths import path_lengths
from circuits.graphs.signatures import PROMOTED
from circuits.graphs.supernode_flow import shared_flow, supernodes_of


@pytest.fixture(scope="module")
def large() -> AttributionGraph:
    return with_influence(random_graph(5, n_layers=4, n_pos=6, per_layer=20))


@pytest.fixture(scope="module")
def small() -> AttributionGraph:
    """Of three positions: few orders to shuffle."""
    return with_influence(random_graph(7, n_layers=4, n_pos=3, per_layer=10))


def headed(graph: AttributionGraph, **changes: Any) -> AttributionGraph:
    return replace(graph, header=replace(graph.header, **changes))


@pytest.fixture(scope="module")
def found(large: AttributionGraph) -> Comparison:
    """A graph against a permuted copy of itself, and against another graph."""
    copy, _, number = permuted(large, 1)
    other = headed(with_influence(random_graph(6, n_layers=8, n_pos=6, per_layer=12)), model="google/gemma-3-1b-pt")
    known = random_signatures(large, 0)
    return compare([large, headed(copy, transcoders="other"), other],
                   [known, renumbered(known, number), random_signatures(other, 9)], node_threshold=1.0)


def test_a_permuted_copy_is_equal_in_every_measure(found: Comparison, large: AttributionGraph) -> None:
    pair = found.pairs[0]
    assert list(pair.measures) == list(MEASURES)
    for name, measure in pair.measures.items():
        assert measure.value == pytest.approx(1, abs=1e-6), name
        if name not in ("steps", "relative_steps"):
            assert measure.chance < measure.limit + 1e-9 <= 1
            assert measure.agrees, name
    assert len(pair.alignment.matches) == pair.alignment.features[0] >= 70
    assert len(pair.flow.pairs) == len(found.graphs[0].supernodes.names)
    first, second = found.graphs[:2]
    np.testing.assert_allclose(first.decided.cumulative, second.decided.cumulative, rtol=1e-5)
    assert first.side.graph is large


def test_another_graph_shares_no_features(found: Comparison) -> None:
    pair = found.pairs[1]
    assert len(pair.alignment.matches) < 0.2 * pair.alignment.paired
    assert not pair.measures["matched_influence"].agrees
    assert pair.measures["steps"].p == 1
    assert np.isnan(pair.measures["steps"].chance)
    assert {graph.depths.shape for graph in found.graphs} == {(4, 6)}  # the grid of the one with fewest layers
    said = " ".join(pair_sentences(found, pair))
    for words in ("no more than by chance", "Paths from tokens", "ends at errors", "features without a counterpart",
                  "for each layer"):
        assert words in said


def test_numbers_are_strict_json(found: Comparison) -> None:
    numbers = json.loads(json.dumps(found.numbers(), allow_nan=False))
    assert [graph["name"] for graph in numbers["graphs"]] == ["gemma-3-270m bundled", "gemma-3-270m other",
                                                              "gemma-3-1b-pt bundled"]
    assert [(pair["first"], pair["second"]) for pair in numbers["pairs"]] == [
        ("gemma-3-270m bundled", "gemma-3-270m other"), ("gemma-3-270m bundled", "gemma-3-1b-pt bundled")]
    measures = numbers["pairs"][0]["measures"]
    assert list(measures) == list(MEASURES)
    assert set(measures["tokens"]) == {"value", "chance", "limit", "p", "shuffled", "agrees", "label", "unrelated"}
    assert numbers["graphs"][0]["decided"]["half"] == found.graphs[0].decided.half or np.isnan(
        found.graphs[0].decided.half)
    assert numbers["graphs"][0]["reading"] is None
    assert sentences(found)[:len(found.limits)] == found.limits


def test_layers_are_spread_over_their_share_of_the_depth() -> None:
    rng = np.random.default_rng(0)
    places = rng.random((6, 4))
    np.testing.assert_allclose(on_grid(places, 6), places)
    np.testing.assert_allclose(on_grid(places, 3), places.reshape(3, 2, 4).sum(1))
    # four rows of six layers: a row takes a layer and half of the next
    np.testing.assert_allclose(on_grid(places, 4)[0], places[0] + 0.5 * places[1])
    np.testing.assert_allclose(on_grid(places, 4).sum(0), places.sum(0))


def test_depth_at_each_position_is_the_earth_movers_distance() -> None:
    rng = np.random.default_rng(1)
    one, two = rng.random((5, 3)), rng.random((5, 3))
    one[:, 2] = 0  # a position that only one has
    one, two = one / one.sum(), two / two.sum()
    middle = (np.arange(5) + 0.5) / 5
    weight = np.minimum(one.sum(0), two.sum(0))
    expected = sum(weight[p] * wasserstein_distance(middle, middle, one[:, p], two[:, p]) for p in (0, 1))
    assert depth_likeness(one, two) == pytest.approx(1 - expected / weight.sum())
    assert depth_likeness(one, one) == 1
    low, high = np.zeros((5, 1)), np.zeros((5, 1))
    low[0], high[4] = 1, 1
    assert depth_likeness(low, high) == pytest.approx(1 - 0.8)
    assert np.isnan(depth_likeness(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])))


def test_shuffled_places_are_the_null() -> None:
    """Influence at three of five positions, each at its own depth: 5! orders, and one is as good."""
    one = np.zeros((4, 5))
    one[0, 0], one[1, 1], one[2, 2], one[3, 3], one[0, 4] = 0.4, 0.3, 0.15, 0.1, 0.05
    made = place_measures(one, one, 0)
    assert made["places"].value == pytest.approx(1)
    assert made["places"].p == pytest.approx(1 / 120)
    assert made["depths"].p == pytest.approx(1 / 24)
    moved = place_measures(one, np.roll(one, 1, axis=1), 0)
    assert moved["depths"].value == pytest.approx(1)
    assert moved["positions"].value == pytest.approx(sum(np.minimum(one.sum(0), np.roll(one.sum(0), 1))))
    assert not moved["places"].agrees


def test_steps_compare_also_over_layers() -> None:
    chain = graph_of([*TOKENS, ("feature", 1, 1, 7), ("logit", 6, 1, -1)], {(3, 2): 1.0, (2, 0): 1.0}, 2)
    direct = graph_of([*TOKENS, ("logit", 6, 1, -1)], {(2, 0): 1.0}, 2)
    sides = path_lengths(chain, errors=False), path_lengths(direct, errors=False)
    made = step_measures((sides[0], 6), (sides[1], 3))
    assert made["steps"].value == 0
    assert made["relative_steps"].value == pytest.approx(1)  # two of six layers, one of three
    assert step_measures((sides[0], 6), (sides[1], 6))["relative_steps"].value == pytest.approx(1 - 1 / 6)


def test_decided_sums_direct_effects_by_depth() -> None:
    nodes = [*TOKENS, ("feature", 0, 1, 1), ("feature", 3, 1, 2), ("error", 4, 1, -1), ("feature", 5, 1, 3),
             ("logit", 6, 1, -1)]
    edges = {(6, 0): 1.0, (6, 2): 4.0, (6, 3): -2.0, (6, 4): 3.0, (6, 5): 4.0}
    made = decided(graph_of(nodes, edges, 2))
    np.testing.assert_allclose(made.cumulative, [1, 5, 5, 5, 3, 6, 10])
    assert made.half == pytest.approx(5 / 6)  # 5 was there before, but did not stay
    assert made.most == 1
    assert made.target == "logit 6"
    assert np.isnan(settled(np.array([1.0, -1.0]), 0.5))
    assert settled(np.array([2.0, 2.0, 2.0]), 0.5) == 0
    reading = Reading(3, " x", np.array([5, 1, 2, 1, 1]), np.array([0.0, 0.5, 0.1, 0.4, 0.6]))
    assert reading.first == 0.75
    assert reading.half == 0.75
    assert np.isnan(replace(reading, rank=np.array([1, 1, 2])).first)


def test_flow_between_supernodes_against_the_dense_matrix(large: AttributionGraph) -> None:
    ids, kind = large.node_ids, large.nodes.kind
    features = np.flatnonzero(kind == "feature")
    groups = [features[:6], features[20:30], features[41:47]]
    graph = headed(large, supernodes=[[f"g{i}", *(ids[n] for n in own)] for i, own in enumerate(groups)])
    made = supernodes_of(graph)
    assert made.given
    assert made.names == ["g0", "g1", "g2"]
    mass = target_vector(graph) + graph.nodes.influence
    dense = shares(graph) * mass[:, None]
    ends = [*groups, np.flatnonzero(kind == "logit"), *(np.flatnonzero((kind == "embedding") & (
        graph.nodes.position == p)) for p in range(6))]
    expected = np.array([[dense[np.ix_(a, b)].sum() for b in ends] for a in ends])
    expected[3:, 3:] = 0
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(made.flow, expected / expected.sum(), rtol=1e-4, atol=1e-8)
    # three of g0's six matched into g1 are no majority, seven of g1's are
    first = np.concatenate([groups[0][:3], groups[1]])
    second = np.concatenate([groups[1][:3], groups[2], groups[1][6:10]])
    assert shared_flow(made, made, (first, second), []).pairs == [(1, 2)]
    whole = shared_flow(made, made, (features, features), [(features[:0], features[:0])] * 30)
    assert whole.pairs == [(0, 0), (1, 1), (2, 2)]
    assert whole.overlap.value == pytest.approx(1)
    assert whole.overlap.chance == 0
    assert whole.overlap.agrees
    swapped = shared_flow(made, made, (first, second), [])
    assert swapped.overlap.value == pytest.approx(np.minimum(
        made.flow[np.ix_([1, *range(3, 10)], [1, *range(3, 10)])],
        made.flow[np.ix_([2, *range(3, 10)], [2, *range(3, 10)])]).sum())


def test_without_signatures_the_cards_promoted_tokens_are_compared(large: AttributionGraph) -> None:
    lists = random_lists(large, 0)
    one = with_lists(large, lists)
    renamed = {name: {text.upper().strip(): score for text, score in said.items()} for name, said in lists.items()}
    made = compare([one, headed(with_lists(large, renamed), transcoders="b"),
                    headed(with_lists(large, random_lists(large, 3)), transcoders="c")], node_threshold=1.0)
    same, other = made.pairs
    assert all(match.first == match.second for match in same.alignment.matches)
    assert len(same.alignment.matches) == same.alignment.paired >= 70
    assert same.alignment.views == (PROMOTED,)
    assert set(same.alignment.matches[0].shared) <= {text.strip() for said in lists.values() for text in said}
    assert len(other.alignment.matches) < 0.2 * other.alignment.paired
    bare = compare([large, headed(large, transcoders="b")])
    assert bare.pairs[0].alignment.matches == []
    assert any("nothing is known of them" in limit for limit in bare.limits)


def test_unrelated_graphs_stand_beside_every_measure(small: AttributionGraph) -> None:
    copy = headed(small, transcoders="b")
    nulls = [headed(with_influence(random_graph(20 + i, n_layers=4, n_pos=3, per_layer=10)), transcoders="b",
                    tokens=[200 + i] * 3, token_texts=[f"n{i}"] * 3, prompt=f"n{i}") for i in range(3)]
    known = random_signatures(small, 0)
    made = compare([small, copy, headed(small, transcoders="c")], [known] * 3, node_threshold=1.0, unrelated=nulls,
                   unrelated_signatures=[random_signatures(null, 30 + i) for i, null in enumerate(nulls)])
    pair, without = made.pairs
    for name in MEASURES:
        assert len(pair.unrelated[name]) == 3
        assert without.unrelated[name] == []
        assert np.isnan(without.beyond_unrelated(name))
    assert pair.beyond_unrelated("matched_influence") == 0.25
    assert pair.beyond_unrelated("steps") == 0.25
    assert max(pair.unrelated["tokens"]) < 1
    assert set(pair.alignment.limits) == {"shuffled features", "unrelated prompts"}
    assert "3 graphs of unrelated prompts" in " ".join(sentences(made))
    assert "share features." in " ".join(sentences(made))
    as_much = replace(pair, unrelated={**pair.unrelated, "matched_influence": [0.0, 1.0, float("nan")]})
    told = " ".join(pair_sentences(made, as_much))
    assert "no more than those of other prompts" in told
    assert "it is no more than some of them" in told
    json.dumps(made.numbers(), allow_nan=False)
    with pytest.raises(InputError, match="null graph 1 has 5 tokens"):
        compare([small, copy], unrelated=[random_graph(1, n_pos=5)])
    with pytest.raises(InputError, match="is of a prompt that is compared"):
        compare([small, copy], unrelated=[copy])
    with pytest.raises(InputError, match="was made with google/gemma-3-270m and c"):
        compare([small, copy], unrelated=[headed(nulls[0], transcoders="c")])


def test_what_cannot_be_compared_is_refused_and_what_can_is_said(large: AttributionGraph) -> None:
    other = headed(large, tokens=[100, 101, 102, 103, 7, 105], prompt="other", model="gemma-3-1b-pt")
    for graphs, words in (
            ([large], "there is 1 graph to compare"),
            ([large, random_graph(1)], "graph 2 has 3 tokens, the first 6"),
            ([large, headed(large, token_texts=["x", *large.header.token_texts[1:]])], "have different tokenizers"),
            ([large, large, other], "graph 3 is of another prompt than the first .* from position 4 on"),
            ([large, headed(other, prompt=large.header.prompt)], "the same prompt became other tokens"),
            ([large, replace(large, target_weights=np.zeros(2, np.float32))], "graph 2 has no targets")):
        with pytest.raises(InputError, match=words) as refused:
            compare(graphs)
        if len(graphs) > 1 and "targets" not in words:
            assert "Comparable are graphs of one prompt" in str(refused.value)
    with pytest.raises(InputError, match="--two-prompts"):
        compare([large, headed(other, model=large.header.model)])
    with pytest.raises(InputError, match="two prompts can only be compared in one model"):
        compare([large, other], two_prompts=True)
    with pytest.raises(InputError, match="window is 0"):
        compare([large, large], window=0)
    with pytest.raises(InputError, match="node_threshold is 3"):
        compare([large, large], node_threshold=3)
    with pytest.raises(InputError, match="1 signatures for 2 graphs"):
        compare([large, large], [random_signatures(large, 0)])


def test_limits_are_told(small: AttributionGraph) -> None:
    known = random_signatures(small, 0)

    def limits(second: AttributionGraph, **settings: Any) -> str:
        return " ".join(compare([small, second], [known, known], **settings).limits)

    assert "made with the same model and transcoders" in limits(small)
    assert limits(headed(small, transcoders="b")) == ""
    fewer = replace(small, target_nodes=small.target_nodes[:1], target_weights=small.target_weights[:1])
    assert "explain different targets" in limits(headed(fewer, transcoders="b"))
    pruned = headed(small.prune(0.6), transcoders="b")
    assert "Whole ones were pruned" in limits(pruned)
    made = compare([small, pruned], [known, known])
    assert made.graphs[1].side.graph is pruned
    assert len(made.graphs[0].side.graph) < len(small)
    assert "The graphs were pruned before" in " ".join(compare([pruned, pruned], [known, known]).limits)
    second = headed(small, tokens=[100, 101, 9], token_texts=["t0", "t1", "z"], prompt="b")
    assert "fire nearly anywhere" in limits(second, two_prompts=True)
    named = compare([small, second], [known, known], two_prompts=True)
    assert [graph.name for graph in named.graphs] == ['gemma-3-270m "t2"', 'gemma-3-270m "z"']


def test_words_tell_when_the_answer_is_there(small: AttributionGraph) -> None:
    known = random_signatures(small, 0)
    early = Reading(7, " x", np.array([3, 1, 1, 1, 1]), np.array([0.1, 0.5, 0.6, 0.6, 0.6]))
    late = Reading(7, " x", np.array([3, 9, 9, 1, 1]), np.array([0.1, 0.1, 0.1, 0.5, 0.6]))
    graphs = [small, headed(small, transcoders="b")]

    def said(*readings: Reading | None) -> str:
        return " ".join(sentences(compare(graphs, [known, known], readings=readings)))

    assert '" x" is the most probable token from 25% of the depth on in gemma-3-270m bundled and from 75% in ' \
           "gemma-3-270m b. gemma-3-270m b has it later." in said(early, late)
    assert "at about the same depth" in said(early, early)
    assert "is not the most probable token in gemma-3-270m b" in said(early, replace(late, rank=np.full(5, 2)))
    assert "explain different answers" in said(early, replace(late, token=8))
    assert "most probable" not in said(None, late)
