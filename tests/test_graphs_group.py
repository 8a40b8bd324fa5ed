"""Suggested supernodes: planted groups are found, numbers equal plain recomputation, shuffled edges cohere less."""

from __future__ import annotations

import re
from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
from random_graphs import random_cards, random_graph
from scipy.sparse import csr_array

from circuits.errors import InputError
from circuits.graphs import AttributionGraph, Header, NodeTable
from circuits.graphs.cards import Contexts, FeatureCards, TokenLists
from circuits.graphs.group import CANDIDATES, CUT, STRONG, similarity, suggest
from circuits.graphs.group_names import reason_of

N_LAYERS, N_POS = 9, 6
SPORT, CITY = tuple(range(6, 10)), tuple(range(10, 14))
"""Nodes of the planted groups; the six before them are the tokens."""


def planted(seed: int = 0, n_noise: int = 50, labels: dict[int, str] | None = None) -> AttributionGraph:
    """Two groups of four features with their own sources and targets among features with random edges."""
    rng = np.random.default_rng(seed)
    layer = [-1] * N_POS + [4, 4, 5, 5] + [4, 5, 6, 6] + sorted(rng.integers(0, N_LAYERS, n_noise)) + [N_LAYERS] * 3
    position = [*range(N_POS)] + [2] * 4 + [5] * 4 + [*rng.integers(1, N_POS, n_noise)] + [N_POS - 1] * 3
    kind = ["embedding"] * N_POS + ["feature"] * (8 + n_noise) + ["logit"] * 3
    layers, is_feature = np.array(layer), np.array(kind) == "feature"
    n = len(kind)
    dense = np.zeros((n, n))
    for node in np.flatnonzero(layers >= 0):
        below = np.flatnonzero((layers < layers[node]) & (np.array(kind) != "logit"))
        sources = rng.choice(below, min(len(below), 10), replace=False)
        dense[node, sources] = rng.standard_normal(len(sources))
    late = np.flatnonzero(is_feature & (layers > 6))
    early = np.flatnonzero(is_feature & (layers < 4))
    for group, side in ((SPORT, 0), (CITY, 1)):
        members, sources, targets = list(group), [1 + side, *early[side::2][:4]], [*late[side::2][:4], n - 1 - side]
        dense[members] = 0
        dense[:, members] = 0
        for rows, columns, signs in ((members, sources, (1, 5)), (targets, members, (5, 1))):
            sizes = 2 * rng.uniform(0.8, 1.2, (len(rows), len(columns)))
            dense[np.ix_(rows, columns)] = rng.choice([-1, 1], signs) * sizes
    rows = csr_array(dense.astype(np.float32))
    table = NodeTable.build(
        n, kind=kind, layer=layer, position=position, feature=np.where(is_feature, np.arange(n), -1),
        influence=np.where(is_feature, rng.uniform(0.01, 0.02, n), 0.1), expanded=layers >= 0,
        input_abs=np.where(layers >= 0, 1.25 * np.abs(dense).sum(1), np.nan),
        label=[(labels or {}).get(i, f"{layer[i]}/{i} on \" t{i}\"" if is_feature[i] else f"node {i}")
               for i in range(n)])
    return AttributionGraph(
        table, rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data.astype(np.float32),
        np.array([n - 1, n - 2, n - 3], np.int32), np.array([0.6, 0.2, 0.1], np.float32),
        Header(tokens=[*range(N_POS)], token_texts=["<bos>", " Michael", " Jordan", " plays", " the", " sport"],
               n_layers=N_LAYERS))


def cards_of(graph: AttributionGraph, promoted: dict[int, list[str]]) -> FeatureCards:
    """Cards without contexts: the tokens that each node in ``promoted`` promotes."""
    by_name = {(int(graph.nodes.layer[i]), int(graph.nodes.feature[i])): texts for i, texts in promoted.items()}
    names = sorted(by_name)
    vocabulary = sorted({text for texts in promoted.values() for text in texts})
    start = np.cumsum([0, *(len(by_name[name]) for name in names)]).astype(np.int32)
    tokens = np.array([vocabulary.index(text) for name in names for text in by_name[name]], np.int32)
    m, none = len(names), np.zeros(0, np.int32)
    layer, feature = np.array(names, np.int32).reshape(-1, 2).T.copy()
    empty = np.zeros(m + 1, np.int32)
    return FeatureCards(
        layer, feature, np.full(m, 0.1, np.float32), np.ones(m, np.float32),
        TokenLists(start, tokens, np.ones(len(tokens), np.float32)),
        TokenLists(empty, none, np.zeros(0, np.float32)),
        Contexts(empty, np.zeros(0, np.uint8), np.zeros(0, np.float32), np.zeros(1, np.int32), none,
                 np.zeros(0, np.uint8)), dict(enumerate(vocabulary)))


def shuffled(graph: AttributionGraph, seed: int = 0) -> AttributionGraph:
    """The same rows with the same weights, from random sources of lower layers."""
    rng = np.random.default_rng(seed)
    indices, layer = graph.indices.copy(), graph.nodes.layer
    for node in range(len(graph)):
        row = slice(graph.indptr[node], graph.indptr[node + 1])
        below = np.flatnonzero((layer < layer[node]) & (graph.nodes.kind != "logit"))
        indices[row] = np.sort(rng.choice(below, row.stop - row.start, replace=False))
    return replace(graph, indices=indices)


@pytest.mark.parametrize("seed", range(5))
def test_planted_groups_are_found_first(seed: int) -> None:
    graph = planted(seed)
    promoted = {i: [f" n{i}", f" m{i}"] for i in range(14, 64)}
    promoted |= {i: [" basketball", " Hoops", f" s{i}"] for i in SPORT} | {i: [" Paris"] for i in CITY}
    for cards in (None, cards_of(graph, promoted)):
        found = suggest(graph, cards)
        assert {found[0].nodes, found[1].nodes} == {SPORT, CITY}
        assert all(group.cohesion > 0.6 and group.separation < 0.1 for group in found[:2])
    names = {group.nodes: group.name for group in found}
    assert names[SPORT] == 'says "basketball", "Hoops"'
    assert names[CITY] == 'says "Paris"'
    reasons = {group.nodes: group.reason for group in found}
    assert 'All at position 2 (" Jordan"), layers 4 to 5: ' in reasons[SPORT]
    assert 'all promote " basketball" and " Hoops"' in reasons[SPORT]


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_edges_cohere_less(seed: int) -> None:
    graph = planted(seed)
    real, null = suggest(graph), suggest(shuffled(graph, seed))
    assert not {group.nodes for group in null} & {SPORT, CITY}
    assert max((group.cohesion for group in null), default=0) < min(group.cohesion for group in real[:2])
    members = np.arange(14)[6:10]
    at_random = similarity(shuffled(graph, seed), members).total[np.triu_indices(4, 1)].mean()
    assert at_random < 0.3 < CUT < real[0].cohesion


def test_numbers_equal_plain_recomputation() -> None:
    graph = planted(2)
    promoted = {6: [" basketball", " a"], 7: ["Basketball ", " b"], 8: [" c"]}
    cards = cards_of(graph, promoted)
    group = next(group for group in suggest(graph, cards) if group.nodes == SPORT)
    nodes, dense = graph.nodes, graph.adjacency().toarray().astype(float)
    mass = nodes.influence.astype(float)
    mass[graph.target_nodes] += graph.target_weights
    into = dense / np.abs(dense).sum(0).clip(1e-30)
    out = dense / np.where(nodes.layer >= 0, nodes.input_abs, 1).astype(float)[:, None] * np.sqrt(mass)[:, None]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        return max(0.0, float(a @ b) / norms) if norms else 0.0

    outputs, inputs, total, outside = [], [], [], []
    features = np.flatnonzero(nodes.kind == "feature")
    meanings = {frozenset((6, 7)): (1 / 1.25) ** 0.5}  # 1, 1/2 against 1, 1/2 with the first in common
    for i in SPORT:
        for j in features[features != i]:
            a, b = cosine(out[:, i], out[:, j]), cosine(into[i], into[j])
            profile = 0.6 * a + 0.4 * b
            alike = profile + (1 - profile) * meanings.get(frozenset((i, int(j))), 0) / 2
            alike *= 0.5 ** (abs(int(nodes.layer[i]) - int(nodes.layer[j])) / 4.5)
            apart = abs(int(nodes.position[i]) - int(nodes.position[j]))
            alike *= 1 if apart == 0 else 0.7 * 0.5 ** ((apart - 1) / 8)
            for kept, value in ((outputs, a), (inputs, b), (total, alike)) if j in SPORT else ((outside, alike),):
                kept.append(value)
    assert group.cohesion == pytest.approx(np.mean(total), rel=1e-6)
    assert group.separation == pytest.approx(np.mean(outside), rel=1e-6)
    assert group.influence == pytest.approx(nodes.influence[list(SPORT)].sum() / nodes.influence.sum(), rel=1e-6)
    assert f"{np.mean(outputs):.0%} alike in outputs, {np.mean(inputs):.0%} in inputs, 2 of 4 promote" in group.reason


def test_what_all_do_to_the_target_is_told() -> None:
    graph = planted(0)
    target = int(graph.target_nodes[0])
    row = slice(graph.indptr[target], graph.indptr[target + 1])
    fed = np.isin(graph.indices[row], SPORT)
    assert fed.sum() == 4
    for sign, verb in ((1, "raise"), (-1, "lower")):
        weights = graph.weights.copy()
        weights[row] = np.where(fed, sign * np.abs(weights[row]), weights[row])
        group = next(group for group in suggest(replace(graph, weights=weights)) if group.nodes == SPORT)
        assert group.reason.endswith(f", all directly {verb} node {target}.")
    weights[row] = np.where(graph.indices[row] == SPORT[1], -weights[row], weights[row])
    reason = reason_of(replace(graph, weights=weights), np.array(SPORT), None, 0.5, 0.25)
    assert reason == 'All at position 2 (" Jordan"), layers 4 to 5: 50% alike in outputs, 25% in inputs.'


def test_a_node_and_what_it_mostly_consists_of_are_not_grouped() -> None:
    graph = planted(1)
    dense = graph.adjacency().toarray()
    assert graph.nodes.layer[8] > graph.nodes.layer[6]
    dense[8, 6] = 0.0
    whole = 3 * np.abs(dense[8]).sum()  # two thirds were pruned: what is left is no measure
    known = np.where(np.arange(len(graph)) == 8, whole, graph.nodes.input_abs).astype(np.float32)
    for share, together in ((STRONG - 0.02, True), (STRONG + 0.02, False)):
        dense[8, 6] = share * whole
        rows = csr_array(dense)
        changed = replace(graph, nodes=replace(graph.nodes, input_abs=known), indptr=rows.indptr.astype(np.int64),
                          indices=rows.indices, weights=rows.data)
        assert abs(dense[8, 6]) / np.abs(dense[8]).sum() > STRONG
        groups = [set(group.nodes) for group in suggest(changed)]
        assert any({6, 8} <= group for group in groups) is together
        assert any({7, 8} <= group or {6, 7} <= group for group in groups)


def test_the_same_feature_at_several_positions_is_a_group() -> None:
    graph = planted(0)
    nodes, twins = graph.nodes, [20, 21, 22]
    feature, layer, position, label = (nodes[name].copy() for name in ("feature", "layer", "position", "label"))
    feature[twins], layer[twins], position[twins] = 700, layer[20], [1, 3, 4]
    label[twins] = f'{layer[20]}/700 names of athletes'
    keep = nodes.layer[graph.indices] < layer[np.repeat(np.arange(len(graph)), np.diff(graph.indptr))]
    changed = replace(graph, nodes=replace(nodes, feature=feature, layer=layer, position=position, label=label))
    changed = changed.subgraph(np.ones(len(graph), bool), keep)
    found = {group.nodes: group for group in suggest(changed)}
    group = found[tuple(twins)]
    assert group.name == f"names of athletes ({layer[20]}/700)"
    assert group.reason.startswith(f"The same feature at 3 positions (1, 3 and 4), layer {layer[20]}: ")


def test_groups_are_disjoint_ranked_and_always_the_same() -> None:
    graph = random_graph(3, n_layers=6, n_pos=4, per_layer=25, density=0.2)
    influence = np.random.default_rng(0).random(len(graph), np.float32)
    graph = replace(graph, nodes=replace(graph.nodes, influence=influence))
    cards = random_cards(graph)
    found = suggest(graph, cards, count=50)
    assert len(found) > 5
    members = [node for group in found for node in group.nodes]
    assert len(members) == len(set(members))
    assert set(graph.nodes.kind[members]) == {"feature"}
    assert all(len(group.nodes) > 1 and list(group.nodes) == sorted(group.nodes) for group in found)
    worth = [group.cohesion * group.influence for group in found]
    assert worth == sorted(worth, reverse=True)
    assert all(group.cohesion >= CUT and group.name and re.search(r"\d+% in inputs", group.reason) for group in found)
    assert len({group.name for group in found}) == len(found)
    assert suggest(graph, cards, count=50) == found
    assert suggest(graph, cards, count=3) == found[:3]


def test_nodes_of_supernodes_are_left_alone() -> None:
    graph = planted(0)
    ids = [graph.node_ids[i] for i in SPORT[:2]]
    taken = replace(graph, header=replace(graph.header, supernodes=[["mine", *ids]]))
    found = suggest(taken)
    assert not any(set(group.nodes) & set(SPORT[:2]) for group in found)
    assert CITY in {group.nodes for group in found}


def test_names_come_from_labels_when_nothing_is_promoted() -> None:
    layer = planted(0).nodes.layer
    labels = {i: f'{layer[i]}/{i} on " big", " t{i}" after " a"' for i in SPORT}
    labels |= {i: f"{layer[i]}/{i} names of cities" for i in CITY}
    graph = planted(0, labels=labels)
    names = {group.nodes: group.name for group in suggest(graph)}
    assert names[SPORT].startswith('on "big", ')
    assert names[CITY] == "names of cities"
    own = {i: f'{layer[i]}/{i} on " w{i}" -> " x{i}"' for i in SPORT}
    names = {group.nodes: group.name for group in suggest(planted(0, labels=own))}
    assert re.fullmatch(r'says "x\d", "x\d", "x\d", …', names[SPORT])
    bare = {group.nodes: group.name for group in suggest(planted(0, labels=dict.fromkeys((*SPORT, *CITY), "")))}
    assert bare[SPORT] == 'features at position 2 (" Jordan"), layers 4 to 5'


def test_promoted_tokens_name_a_group_from_half_of_it_on_and_from_a_third_of_the_layers_on() -> None:
    graph = planted(0)

    def sport(promoting: int, n_layers: int) -> tuple[str, str]:
        cards = cards_of(graph, {i: [" hoops"] for i in SPORT[:promoting]})
        deeper = replace(graph, header=replace(graph.header, n_layers=n_layers))
        return next((group.name, group.reason) for group in suggest(deeper, cards) if group.nodes == SPORT)

    assert sport(2, 9)[0] == 'says "hoops"'
    assert '2 of 4 promote " hoops"' in sport(2, 9)[1]
    for one_or_early in (sport(1, 9), sport(4, 16)):
        assert one_or_early[0].startswith('on "t')
        assert "hoops" not in one_or_early[1]
    pair = graph.subgraph(~np.isin(np.arange(len(graph)), SPORT[2:]))
    found = suggest(pair, cards_of(graph, {SPORT[0]: [" hoops"]}))
    assert next(group.name for group in found if group.nodes == SPORT[:2]).startswith('on "t')


@pytest.mark.parametrize("text", ['"', "'", "\"'", "\n\0", "<img src=x onerror=alert(1)>", "\u202eabc", "👨‍👩‍👧" * 50,
                                  "x" * 10_000, 'on "', "-> '", "(p=0.1)"])
def test_hostile_strings_make_short_names(text: str) -> None:
    for label in (text, f'on "{text}"', f"4/6 {text}"):
        graph = planted(0, labels=dict.fromkeys((*SPORT, *CITY), label))
        graph = replace(graph, header=replace(graph.header, token_texts=[text] * N_POS))
        cards = cards_of(graph, {i: [text, "ok"] for i in SPORT})
        for group in (*suggest(graph, cards), *suggest(graph)):
            assert 0 < len(group.name) <= 90
            assert len(group.reason) < 300
            assert (group.name + group.reason).isprintable()


def test_graphs_with_nothing_to_group() -> None:
    graph = random_graph(0)
    bare = graph.subgraph(graph.nodes.kind != "feature")
    assert suggest(bare) == []
    no_edges = replace(planted(0), indptr=np.zeros(len(planted(0)) + 1, np.int64), indices=np.zeros(0, np.int32),
                       weights=np.zeros(0, np.float32))
    assert suggest(no_edges) == []
    one = graph.subgraph((graph.nodes.kind != "feature") | (np.arange(len(graph)) == 0))
    assert suggest(one) == []
    with pytest.raises(InputError, match="count is 0"):
        suggest(graph, count=0)


def test_large_graphs_are_grouped_by_their_most_influential_part() -> None:
    graph = planted(0, n_noise=1992)
    influence = graph.nodes.influence.copy()
    influence[list(SPORT)], influence[list(CITY)] = 1, 1e-6
    start = perf_counter()
    found = suggest(replace(graph, nodes=replace(graph.nodes, influence=influence)), count=1000)
    assert perf_counter() - start < 5
    strongest = set(np.argsort(-np.where(graph.nodes.kind == "feature", influence, -1))[:CANDIDATES].tolist())
    assert all(strongest >= set(group.nodes) for group in found)
    assert found[0].nodes == SPORT
    small = planted(0, n_noise=490)
    cards = cards_of(small, {i: [f" {i % 97}", f" {i % 89}"] for i in range(6, 504)})
    times = []
    for _ in range(3):
        start = perf_counter()
        suggest(small, cards)
        times.append(perf_counter() - start)
    assert min(times) < 0.5


def test_files_without_influence_are_grouped_by_the_rest() -> None:
    graph = planted()
    unknown = replace(graph, nodes=replace(graph.nodes, influence=np.full(len(graph), np.nan, np.float32)))
    found = suggest(unknown)
    assert found
    assert all(suggestion.influence == 0 for suggestion in found)
