"""What two graphs agree on: against dense powers of the shares, and pairs of graphs whose answer is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from random_graphs import fed_by_a_constant, random_graph, shares, target_vector
from scipy.sparse import csr_array
from scipy.stats import spearmanr

from circuits.errors import InputError
from circuits.graphs import AttributionGraph, Header, NodeTable
from circuits.graphs.agreement import compare
from circuits.graphs.agreement_features import match_features
from circuits.graphs.agreement_words import verdicts
from circuits.graphs.cards import Contexts, FeatureCards, TokenLists
from circuits.graphs.influence import influence, unexplored
from circuits.graphs.lengths import ENDS, path_lengths

Lists = dict[tuple[int, int], dict[str, float]]
"""Promoted tokens by layer and feature."""


def graph_of(nodes: list[tuple[str, int, int, int]], edges: dict[tuple[int, int], float], n_pos: int,
             n_layers: int = 6) -> AttributionGraph:
    """``nodes``: kind, layer, position, feature; the last is the target. ``edges``: (target, source) to weight."""
    kind, layer, position, feature = (np.array(column) for column in zip(*nodes, strict=True))
    dense = np.zeros((len(nodes), len(nodes)), np.float32)
    for place, weight in edges.items():
        dense[place] = weight
    rows = csr_array(dense)
    table = NodeTable.build(len(nodes), kind=kind, layer=layer, position=position, feature=feature, influence=1.0,
                            expanded=np.isin(kind, ("feature", "logit")), token=np.where(kind == "logit", 4, -1),
                            label=[f"{k} {i}" for i, k in enumerate(kind)])
    return AttributionGraph(table, rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data,
                            np.array([len(nodes) - 1], np.int32), np.array([0.5], np.float32),
                            Header(tokens=list(range(n_pos)), token_texts=[f"t{i}" for i in range(n_pos)],
                                   n_layers=n_layers, transcoders=f"set/{len(nodes)}", transcoder_kind="clt"))


def with_lists(graph: AttributionGraph, lists: Lists) -> AttributionGraph:
    names = sorted(lists)
    texts = {text: i for i, text in enumerate(dict.fromkeys(text for said in lists.values() for text in said))}
    start = np.cumsum([0, *(len(lists[name]) for name in names)]).astype(np.int32)
    token = np.array([texts[text] for name in names for text in lists[name]], np.int32)
    score = np.array([x for name in names for x in lists[name].values()], np.float32)
    nothing = np.zeros(len(names) + 1, np.int32)
    cards = FeatureCards(
        np.array([layer for layer, _ in names], np.int32), np.array([feature for _, feature in names], np.int32),
        np.full(len(names), np.nan, np.float32), np.full(len(names), np.nan, np.float32),
        TokenLists(start, token, score), TokenLists(nothing, np.zeros(0, np.int32), np.zeros(0, np.float32)),
        Contexts(nothing, np.zeros(0, np.uint8), np.zeros(0, np.float32), np.zeros(1, np.int32),
                 np.zeros(0, np.int32), np.zeros(0, np.uint8)), {i: text for text, i in texts.items()})
    return replace(graph, cards=cards)


def random_lists(graph: AttributionGraph, seed: int, vocabulary: int = 60) -> Lists:
    rng = np.random.default_rng(seed)
    found = np.flatnonzero(graph.nodes.kind == "feature")
    return {(int(graph.nodes.layer[i]), int(graph.nodes.feature[i])): {
        f" w{token}": float(score) for token, score in zip(rng.choice(vocabulary, 5, replace=False),
                                                           np.sort(rng.random(5) + 0.5)[::-1], strict=True)}
        for i in found}


@pytest.fixture(scope="module")
def large() -> AttributionGraph:
    graph = random_graph(5, n_layers=4, n_pos=6, per_layer=20)
    graph.nodes.influence[:] = influence(graph)
    return with_lists(graph, random_lists(graph, 0))


TOKENS = [("embedding", -1, 0, -1), ("embedding", -1, 1, -1)]


def direct() -> AttributionGraph:
    return graph_of([*TOKENS, ("logit", 6, 1, -1)], {(2, 0): 3, (2, 1): -1}, 2)


def chain() -> AttributionGraph:
    return graph_of([*TOKENS, ("feature", 1, 1, 7), ("feature", 2, 1, 8), ("logit", 6, 1, -1)],
                    {(4, 2): 6, (4, 3): 2, (2, 0): -5, (3, 1): 2}, 2)


@pytest.mark.parametrize("errors", [True, False])
@pytest.mark.parametrize("settings", [{}, {"unexpanded": 0.4}, {"shuffle": True, "density": 0.2}])
def test_path_lengths_equal_powers_of_the_shares(settings: dict, errors: bool) -> None:
    graph = random_graph(3, n_layers=5, **settings)
    kind = graph.nodes.kind
    matrix = shares(graph)
    if not errors:
        matrix[:, kind == "error"] = 0
        matrix /= np.maximum(matrix.sum(1, keepdims=True), 1e-300)
    found = path_lengths(graph, errors=errors)
    stays = matrix.sum(1) == 0
    without_row = (kind == "feature") & ~graph.nodes.expanded
    ends = [kind == "embedding", kind == "error", without_row & stays,
            stays & ~np.isin(kind, ("embedding", "error")) & ~without_row]
    mass = target_vector(graph) / target_vector(graph).sum()
    for steps in range(len(found.ends["tokens"])):
        for end, mask in zip(ENDS, ends, strict=True):
            assert found.ends[end][steps] == pytest.approx(mass[mask].sum(), abs=1e-12)
        mass = mass @ matrix
    assert not mass.any()
    assert sum(found.share(end) for end in ENDS) == pytest.approx(1)
    assert found.share("tokens") > 0
    if errors:
        np.testing.assert_allclose(found.influence, influence(graph) / target_vector(graph).sum(), atol=1e-12)
        assert found.share("unexplored") == pytest.approx(unexplored(graph))
    else:
        assert found.share("errors") == 0


def test_what_only_constants_feed_is_an_end() -> None:
    found = path_lengths(fed_by_a_constant())
    assert {end: found.share(end) for end in ENDS} == {"tokens": 0.25, "errors": 0.25, "unexplored": 0,
                                                        "constants": 0.5}


def test_a_direct_graph_against_a_chain() -> None:
    found = compare(direct(), chain())
    assert (found.first.lengths.mean(), found.second.lengths.mean()) == (1, 2)
    assert found.shortening == found.shortening_without_errors == 1
    assert found.steps == 0
    np.testing.assert_allclose(found.first.token_influence, [0.75, 0.25])
    np.testing.assert_allclose(found.second.token_influence, [0.75, 0.25])
    assert found.tokens.value == 1
    assert not found.tokens.agrees  # with two tokens one order in two does as well
    assert np.isnan(found.places.value)
    said = " ".join(verdicts(found))
    assert "the first 3" not in said
    assert "3 (CLT) shortens them by 1.00" in said
    assert "Which tokens matter cannot be told from chance on so short a prompt" in said
    assert "Both sets are cross-layer" in said
    assert "3 (CLT) shortens them by 1.00" in " ".join(verdicts(compare(chain(), direct())))


def test_errors_that_shorten_are_left_out() -> None:
    """The same paths, but the longer one loses half of its mass to an error."""
    nodes = [*TOKENS, ("error", 0, 1, -1), ("feature", 1, 1, 7), ("logit", 6, 1, -1)]
    edges = {(4, 1): 1.0, (4, 3): 1.0, (3, 0): 1.0}
    found = compare(graph_of(nodes, edges, 2), graph_of(nodes, {**edges, (3, 2): -1.0}, 2))
    assert found.first.lengths.mean() == 1.5
    assert found.second.lengths.mean() == pytest.approx(4 / 3)
    assert found.second.lengths.share("errors") == 0.25
    assert found.shortening_without_errors == 0
    assert "but for errors neither shortens them" in " ".join(verdicts(found))


def test_a_graph_agrees_with_itself(large: AttributionGraph) -> None:
    found = compare(large, large, node_threshold=1.0)
    for measure in (found.tokens, found.token_order, found.places, found.layers, found.positions):
        assert measure.value == pytest.approx(1)
        assert measure.chance < measure.limit < 1
        assert measure.agrees
    assert found.steps == pytest.approx(1)
    assert found.shortening == 0
    features = found.features
    assert len(features.matches) == features.paired == features.compared[0] == features.features[1] >= 70
    assert all(match.first == match.second for match in features.matches)
    assert all(match.similarity == pytest.approx(1) for match in features.matches)
    assert features.influence == (pytest.approx(1), pytest.approx(1))
    assert max(features.chance) < 0.2
    by_influence = found.first.pruned.nodes.influence[[match.first for match in features.matches]]
    assert (np.diff(by_influence) <= 0).all()


def test_measures_and_their_null_are_exact() -> None:
    """Four tokens have 24 orders: every number of the null can be counted."""
    def tokens(*weights: float) -> AttributionGraph:
        nodes = [("embedding", -1, i, -1) for i in range(4)]
        return graph_of([*nodes, ("logit", 6, 3, -1)], {(4, i): w for i, w in enumerate(weights)}, 4)

    same = compare(tokens(1, 2, 3, 4), tokens(1, 2, 3, 4)).tokens
    assert (same.value, same.p, same.agrees) == (pytest.approx(1), pytest.approx(1 / 24), True)
    other = compare(tokens(1, 2, 3, 4), tokens(4, -3, 2, -1))
    assert other.tokens.value == pytest.approx(0.1 + 0.2 + 0.2 + 0.1)
    assert other.tokens.p == 1
    assert other.token_order.value == pytest.approx(-1)
    near = compare(tokens(1, 2, 3, 4), tokens(1, 2, 5, 2))
    assert near.token_order.value == pytest.approx(spearmanr([1, 2, 3, 4], [1, 2, 5, 2]).statistic)
    assert near.tokens.value == pytest.approx(0.1 + 0.2 + 0.3 + 0.2)
    # 5 and 4 together or 5 at the token of weight 3: counted by hand over where 5, 1, 2, 2 go
    orders = [sum(min(a, b) for a, b in zip((1, 2, 3, 4), order, strict=True)) / 10 for order in
              {(5, 1, 2, 2), (5, 2, 1, 2), (5, 2, 2, 1), (1, 5, 2, 2), (2, 5, 1, 2), (2, 5, 2, 1), (1, 2, 5, 2),
               (2, 1, 5, 2), (2, 2, 5, 1), (1, 2, 2, 5), (2, 1, 2, 5), (2, 2, 1, 5)}]
    assert near.tokens.chance == pytest.approx(np.mean(orders))
    assert near.tokens.p == pytest.approx(np.mean([order >= 0.8 - 1e-12 for order in orders]))


def test_unlike_graphs_do_not_agree(large: AttributionGraph) -> None:
    nodes = large.nodes
    layer, position = nodes.layer.copy(), nodes.position.copy()
    moved = (nodes.kind == "feature") | (nodes.kind == "embedding")
    position[moved] = 5 - position[moved]
    found = compare(large, replace(large, nodes=replace(nodes, layer=layer, position=position)), node_threshold=1.0)
    assert found.layers.agrees
    assert not found.tokens.agrees
    assert found.tokens.value < 1
    assert not found.places.agrees
    assert not found.positions.agrees
    assert len(found.features.matches) < 0.3 * found.features.paired


def test_renumbered_features_are_matched_by_what_they_promote(large: AttributionGraph) -> None:
    nodes, lists = large.nodes, random_lists(large, 0)
    order = np.random.default_rng(1).permutation(20)
    feature = np.where(nodes.kind == "feature", order[nodes.feature], nodes.feature).astype(np.int32)
    # capitals and spaces differ, and one token of each list
    renamed = {(layer, int(order[i])): {text.strip().upper(): x for text, x in list(said.items())[:4]} | {"other": 0.1}
               for (layer, i), said in lists.items()}
    other = with_lists(replace(large, nodes=replace(nodes, feature=feature)), renamed)
    found = match_features(large, other, window=1)
    assert len(found.matches) == 80
    assert all(match.first == match.second for match in found.matches)
    assert all(0.5 < match.similarity < 1 for match in found.matches)
    said = lists[0, int(nodes.feature[0])]
    shared = next(match.shared for match in found.matches if match.first == 0)
    assert shared == tuple(text.strip() for text in list(said)[:4])  # strongest first


def test_unrelated_lists_hardly_match(large: AttributionGraph) -> None:
    found = match_features(large, with_lists(large, random_lists(large, 9)), window=1)
    assert found.paired >= 60
    assert found.limit > 0.1
    assert len(found.matches) <= 0.15 * found.paired
    assert found.influence[0] < 0.25
    assert 0 < found.chance[0] < 0.25


def features_at(*places: tuple[int, int, int], said: Lists) -> AttributionGraph:
    """Features (layer, position, feature) that all feed the logit."""
    nodes = [("embedding", -1, 0, -1), *(("feature", *place) for place in places), ("logit", 9, 3, -1)]
    edges = {(len(places) + 1, i + 1): 1.0 for i in range(len(places))}
    edges |= {(i + 1, 0): 1.0 for i in range(len(places))}
    return with_lists(graph_of(nodes, edges, 4, n_layers=9), said)


def test_matches_keep_to_position_and_window() -> None:
    names, other = {"a": 1.0, "b": 1.0}, {"c": 1.0}
    one = features_at((2, 1, 0), (2, 2, 1), said={(2, 0): names, (2, 1): other})

    def matches(*place: int, window: int = 2) -> int:
        two = features_at((*place, 5), (8, 3, 6), said={(place[0], 5): names, (8, 6): {"d": 1.0}})  # type: ignore[arg-type]
        return len(match_features(one, two, window).matches)

    assert matches(2, 1) == 1
    assert matches(4, 1) == 1
    assert matches(5, 1) == 0
    assert matches(5, 1, window=3) == 1
    assert matches(2, 3) == 0


def test_of_equally_similar_features_the_nearest_match() -> None:
    names = {"a": 1.0}
    one = features_at((2, 1, 0), (3, 1, 1), (8, 3, 9), said={(2, 0): names, (3, 1): names, (8, 9): {"z": 1.0}})
    two = features_at((3, 1, 4), (2, 1, 5), (8, 3, 9), said={(3, 4): names, (2, 5): names, (8, 9): {"z": 1.0}})
    found = match_features(one, two, 3)
    assert {(match.first, match.second) for match in found.matches} == {(1, 2), (2, 1), (3, 3)}


def test_without_a_null_nothing_is_a_match() -> None:
    one = features_at((2, 1, 0), said={(2, 0): {"a": 1.0}})
    found = compare(one, one)
    assert found.features.paired == 1
    assert np.isnan(found.features.limit)
    assert found.features.matches == []
    assert "nothing shows what is chance" in " ".join(verdicts(found))
    bare = replace(one, cards=None)
    assert compare(bare, bare).features.compared == (0, 0)
    assert "promoted tokens are known" in " ".join(verdicts(compare(bare, one)))


def test_numbers_are_strict_json(large: AttributionGraph) -> None:
    for one, two in ((large, large), (direct(), chain())):
        found = compare(one, two)
        numbers = json.loads(json.dumps(found.numbers(), allow_nan=False))
        assert set(numbers) == {"prompt", "model", "token_texts", "targets", "first", "second", "tokens", "token_order",
                                "places", "layers", "positions", "steps", "features"}
        assert set(numbers["first"]) == {"transcoders", "kind", "scores", "ends", "mean_steps",
                                         "mean_steps_without_errors", "steps", "token_influence", "feature_influence"}
        assert set(numbers["tokens"]) == {"value", "chance", "limit", "p", "shuffled", "agrees"}
        assert numbers["features"]["matched"] == len(numbers["features"]["matches"])
    assert numbers["places"]["value"] is None
    assert numbers["steps"] == {"value": 0, "shortening": 1, "shortening_without_errors": 1}


def test_the_same_seed_gives_the_same_numbers(large: AttributionGraph) -> None:
    other = with_lists(large, random_lists(large, 9))
    found = [match_features(large, other, 1, seed) for seed in (3, 3, 4)]
    assert found[0] == found[1]
    assert found[0].chance != found[2].chance


def test_graphs_that_cannot_be_compared(large: AttributionGraph) -> None:
    for changes, words in (({"tokens": [1]}, "different prompts"), ({"model": "x"}, "different models"),
                           ({"n_layers": 9}, "different numbers of layers")):
        with pytest.raises(InputError, match=words):
            compare(large, replace(large, header=replace(large.header, **changes)))
    with pytest.raises(InputError, match="different targets"):
        compare(large, replace(large, target_nodes=large.target_nodes[:1], target_weights=large.target_weights[:1]))
    with pytest.raises(InputError, match="different targets"):
        compare(large, replace(large, target_weights=large.target_weights[::-1].copy()))
    with pytest.raises(InputError, match="window is -1"):
        compare(large, large, window=-1)
    with pytest.raises(InputError, match="no targets"):
        path_lengths(replace(large, target_nodes=np.zeros(0, np.int32), target_weights=np.zeros(0, np.float32)))
