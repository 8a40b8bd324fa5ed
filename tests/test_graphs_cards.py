"""Feature cards and activations on the prompt: against plain lists, and which of them a graph keeps."""

from dataclasses import replace

import numpy as np
import pytest
from random_graphs import assert_same_columns, random_cards, random_graph

from circuits.errors import InputError
from circuits.graphs.activations import Activations
from circuits.graphs.cards import FeatureCards

GRAPH = random_graph(0, n_layers=4, per_layer=6)
CARDS = random_cards(GRAPH)


def plain(cards: FeatureCards) -> dict:
    """(layer, feature) -> density, maximum, lists of (token, score), contexts of peak, quantile, [(token, share)]."""
    found = {}
    for i, name in enumerate(zip(cards.layer.tolist(), cards.feature.tolist(), strict=True)):
        lists = [list(zip(column.token[column.start[i]:column.start[i + 1]].tolist(),
                          column.score[column.start[i]:column.start[i + 1]].tolist(), strict=True))
                 for column in (cards.promoted, cards.suppressed)]
        c, contexts = cards.contexts, []
        for j in range(c.start[i], c.start[i + 1]):
            part = slice(c.first[j], c.first[j + 1])
            contexts.append((int(c.peak[j]), float(c.quantile[j]),
                             list(zip(c.token[part].tolist(), c.activation[part].tolist(), strict=True))))
        found[name] = (str(cards.density[i]), str(cards.max_activation[i]), lists, contexts)
    return found


def test_cards_of_some_features():
    every = plain(CARDS)
    assert len(every) > 10
    names = [*list(every)[1::3], (0, 77), (90, 4)]
    names += names[:2]
    some = CARDS.of(*np.array(names).T)
    assert plain(some) == {name: every[name] for name in sorted(set(names)) if name in every}
    used = {token for *_, lists, contexts in plain(some).values()
            for token, _ in [pair for part in (*lists, *(c[2] for c in contexts)) for pair in part]}
    assert some.texts == {token: f" t{token}" for token in used}
    assert len(CARDS.of(np.zeros(0, int), np.zeros(0, int))) == 0
    assert [CARDS.find(*name) for name in every] == list(range(len(every)))
    assert CARDS.find(0, 77) == CARDS.find(91, 0) == CARDS.find(-1, 0) == -1


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7, 50])
def test_limited_contexts(count):
    few = plain(CARDS.limited(count))
    for name, (*before, contexts) in plain(CARDS).items():
        top, typical = ([c for c in contexts if (c[1] == 1) == wanted] for wanted in (True, False))
        third = count // 3
        expected = top[:max(count - third, count - len(typical))] + typical[:max(third, count - len(top))]
        assert few[name] == (*before, expected)
        assert len(expected) == min(count, len(contexts))


def test_columns_have_the_names_of_the_fields():
    columns = CARDS.columns()
    assert len(columns) == 4 + 3 + 3 + 6
    assert columns["contexts.first"] is CARDS.contexts.first
    assert columns["suppressed.score"] is CARDS.suppressed.score
    assert columns["max_activation"] is CARDS.max_activation


def put(array: np.ndarray, index: int, value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(("part", "field", "change", "message"), [
    ("", "layer", lambda a: a.astype(np.int64), "layer of cards is int64"),
    ("", "density", lambda a: a[:-1], "have density of"),
    ("", "density", lambda a: put(a, 0, 1.5), "densities must lie"),
    ("", "max_activation", lambda a: put(a, 0, np.inf), "largest activations must be finite"),
    ("", "feature", lambda a: put(a, 0, 50), "cards must rise by layer and feature"),
    ("", "feature", lambda a: put(a, 0, -1), "numbers from 0"),
    ("", "texts", lambda a: {}, "has no text"),
    ("promoted", "start", lambda a: a[:-1], "must rise from 0"),
    ("promoted", "start", lambda a: put(a, 1, 10**6), "must rise from 0"),
    ("promoted", "score", lambda a: a[:-1], "scores for"),
    ("suppressed", "score", lambda a: put(a, 0, np.nan), "finite"),
    ("contexts", "peak", lambda a: put(a, 0, 255), "peak"),
    ("contexts", "quantile", lambda a: put(a, 0, np.nan), "quantiles must lie"),
    ("contexts", "quantile", lambda a: a[:-1], "quantiles"),
    ("contexts", "first", lambda a: put(a, -1, 3), "must rise from 0"),
    ("contexts", "activation", lambda a: a[:-1], "activations for"),
    ("contexts", "token", lambda a: a[:, None], "one dimension"),
])
def test_cards_that_contradict_themselves(part, field, change, message):
    with pytest.raises(InputError, match=message):
        changed(part, field, change)


def changed(part: str, field: str, change) -> FeatureCards:
    table = getattr(CARDS, part) if part else CARDS
    made = replace(table, **{field: change(getattr(table, field))})
    return replace(CARDS, **{part: made}) if part else made


class Source:
    """Makes cards, and notes what it was asked."""

    def __init__(self, cards: FeatureCards):
        self.cards, self.asked = cards, []

    def of(self, layer: np.ndarray, feature: np.ndarray) -> FeatureCards:
        self.asked.append(list(zip(layer.tolist(), feature.tolist(), strict=True)))
        return self.cards.of(layer, feature)


def features(graph) -> set[tuple[int, int]]:
    nodes = graph.nodes
    return {(int(nodes.layer[i]), int(nodes.feature[i])) for i in np.flatnonzero(nodes.kind == "feature")}


def test_a_source_is_asked_once_for_the_features_that_are_left():
    source = Source(CARDS)
    small = replace(GRAPH, cards=source).prune(0.6, 0.9)
    assert source.asked == []
    found = small.feature_cards()
    assert found is small.feature_cards()
    assert source.asked == [sorted(features(small))]
    assert set(plain(found)) == features(small) & set(plain(CARDS))
    assert 0 < len(found) < len(CARDS)
    assert GRAPH.feature_cards() is None
    kept = replace(small, cards=found)
    assert plain(kept.feature_cards()) == plain(found)


def test_many_features_get_cards_by_influence(monkeypatch):
    monkeypatch.setattr("circuits.graphs.cards.MAX_CARDS", 3)
    source = Source(CARDS)
    amounts = np.random.default_rng(1).random(len(GRAPH)).astype(np.float32)
    replace(GRAPH, cards=source, nodes=replace(GRAPH.nodes, influence=amounts)).feature_cards()
    ranked = sorted(np.flatnonzero(GRAPH.nodes.kind == "feature"), key=lambda i: -amounts[i])[:3]
    assert source.asked == [sorted((int(GRAPH.nodes.layer[i]), int(GRAPH.nodes.feature[i])) for i in ranked)]


def table(*rows: tuple[int, int, int, float]) -> Activations:
    layer, feature, position, value = np.array(rows).reshape(-1, 4).T
    return Activations(*(c.astype(np.int32) for c in (layer, feature, position)), value.astype(np.float32))


def test_activations_outlive_the_nodes_of_their_feature():
    feature = GRAPH.nodes.feature.copy()
    first, second, third = np.flatnonzero((GRAPH.nodes.kind == "feature") & (GRAPH.nodes.layer == 1))[:3]
    position = GRAPH.nodes.position.copy()
    feature[[first, second]], position[[first, second]] = 9, [2, 0]  # one feature at two places
    graph = replace(GRAPH, nodes=replace(GRAPH.nodes, feature=feature, position=position))
    assert graph.activations is None
    places, values = graph.prompt_activations().of(1, 9)
    assert places.tolist() == [0, 2]
    assert values.tolist() == graph.nodes.value[[second, first]].tolist()
    keep = np.ones(len(graph), dtype=bool)
    keep[[first, third]] = False
    small = graph.subgraph(keep)
    assert small.activations.of(1, 9)[0].tolist() == [0, 2]
    assert len(small.activations.of(1, int(feature[third]))[0]) == 0
    assert len(small.activations) == (graph.nodes.kind == "feature").sum() - 1
    keep = np.ones(len(small), dtype=bool)
    keep[np.flatnonzero(small.nodes.feature == 9)] = False
    assert len(small.subgraph(keep).activations.of(1, 9)[0]) == 0
    assert_same_columns(small.activations.left(small.nodes), small.activations)


def test_two_nodes_at_one_place_count_once():
    feature = GRAPH.nodes.feature.copy()
    first, second = np.flatnonzero((GRAPH.nodes.kind == "feature") & (GRAPH.nodes.layer == 1))[:2]
    feature[second], position = feature[first], GRAPH.nodes.position.copy()
    position[second] = position[first]
    found = replace(GRAPH.nodes, feature=feature, position=position)
    places, values = replace(GRAPH, nodes=found).prompt_activations().of(1, int(feature[first]))
    assert (places.tolist(), values.tolist()) == ([int(position[first])], [found.value[first]])


@pytest.mark.parametrize(("rows", "message"), [
    ([(0, 1, 1, 1.0), (0, 1, 0, 1.0)], "must rise"), ([(0, 1, 1, 1.0), (0, 1, 1, 2.0)], "must rise"),
    ([(1, 1, 1, 1.0), (0, 2, 0, 1.0)], "must rise"), ([(0, 2, 0, 1.0), (0, 1, 1, 1.0)], "must rise"),
    ([(0, 1, 1, np.nan)], "finite"), ([(0, 1, -1, 1.0)], "position holds numbers below 0")])
def test_activations_that_contradict_themselves(rows, message):
    with pytest.raises(InputError, match=message):
        table(*rows)


def test_activation_columns_have_one_length_and_their_dtypes():
    good = table((0, 1, 0, 1.0), (0, 1, 2, 2.0))
    for changed in ({"value": good.value[:1]}, {"layer": good.layer.astype(np.int64)}):
        with pytest.raises(InputError, match=r"activations\.layer is"):
            replace(good, **changed)
