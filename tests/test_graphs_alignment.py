"""Nodes of two graphs matched one to one: against sums by hand, copies whose answer is known, and pure chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_graphs import random_graph
from scipy.sparse import csr_array
from scipy.stats import beta

from circuits.graphs import AttributionGraph, Header, NodeTable
from circuits.graphs.activations import feature_keys
from circuits.graphs.alignment import FALL, SHUFFLED, UNRELATED, Alignment, align, counterparts
from circuits.graphs.influence import influence
from circuits.graphs.pairing import CALIBRATED_BY, NEARER, ROUNDS, Mean, Paired, Pairs, Places, pair_up
from circuits.graphs.placed import Features
from circuits.graphs.signatures import CORPUS, READS, WRITES, Signatures, View, correlated_rows, similarities, unit_rows

WIDTH = 40


def with_influence(graph: AttributionGraph) -> AttributionGraph:
    graph.nodes.influence[:] = influence(graph)
    return graph


def random_signatures(graph: AttributionGraph, seed: int, views: tuple[str, ...] = (WRITES, READS)) -> Signatures:
    """Of every feature once, independent."""
    nodes, rng = graph.nodes, np.random.default_rng(seed)
    mask = nodes.kind == "feature"
    keys = np.unique(feature_keys(nodes.layer[mask], nodes.feature[mask]))
    rows = {name: unit_rows(csr_array(rng.standard_normal((len(keys), WIDTH)))) for name in views}
    return Signatures(keys >> 32, keys & 0xFFFFFFFF, rows, {i: f" w{i}" for i in range(WIDTH)})


def permuted(graph: AttributionGraph, seed: int) -> tuple[AttributionGraph, np.ndarray, np.ndarray]:
    """Nodes in another order and features renumbered within their layers; where each node went, and the new number of
    every feature number (the same in all layers)."""
    rng = np.random.default_rng(seed)
    order, nodes = rng.permutation(len(graph)), graph.nodes
    number = rng.permutation(int(nodes.feature.max()) + 1)
    renumbered = np.where(nodes.kind == "feature", number[nodes.feature], nodes.feature).astype(np.int32)
    went = np.argsort(order)
    rows = graph.adjacency()[order][:, order].tocsr()
    rows.sort_indices()
    return replace(graph, nodes=replace(nodes, feature=renumbered).take(order), indptr=rows.indptr.astype(np.int64),
                   indices=rows.indices.astype(np.int32), weights=rows.data,
                   target_nodes=went[graph.target_nodes].astype(np.int32)), went, number


def renumbered(known: Signatures, number: np.ndarray) -> Signatures:
    keys = feature_keys(known.layer, number[known.feature])
    order = np.argsort(keys)
    return Signatures(known.layer[order], number[known.feature][order], known.take(order), known.texts)


@pytest.fixture(scope="module")
def large() -> AttributionGraph:
    return with_influence(random_graph(5, n_layers=4, n_pos=6, per_layer=20))


def pairs_of(found: Alignment) -> dict[int, int]:
    return {match.first: match.second for match in found.matches}


def test_a_graph_is_aligned_with_itself(large: AttributionGraph) -> None:
    known = random_signatures(large, 0)
    found = align(large, large, (known, known))
    features = np.flatnonzero(large.nodes.kind == "feature")
    assert pairs_of(found) == {node: node for node in features.tolist()}
    assert found.matched_influence.value == pytest.approx(1)
    assert found.matched_influence.chance < 0.1
    assert found.matched_influence.p == pytest.approx(1 / (ROUNDS + 1))  # the graphs themselves are counted in
    assert found.influence == (pytest.approx(1), pytest.approx(1))
    assert all(match.score == pytest.approx(1) and match.confidence == 1 and match.margin > 0.3
               for match in found.matches)
    assert all(set(match.similarities) == {WRITES, READS} for match in found.matches)
    assert [len(nodes) for nodes in found.unmatched] == [0, 0]
    assert found.common == []
    shares = large.nodes.influence[[match.first for match in found.matches]]
    assert (np.diff(shares) <= 0).all()
    assert found.views == (WRITES, READS)
    assert found.limit == found.limits[SHUFFLED] < 0.6


def test_a_permuted_copy_is_aligned_exactly(large: AttributionGraph) -> None:
    known = random_signatures(large, 0)
    for seed in range(3):
        other, went, number = permuted(large, seed)
        found = align(large, other, (known, renumbered(known, number)), seed=seed)
        features = np.flatnonzero(large.nodes.kind == "feature")
        assert pairs_of(found) == {node: int(went[node]) for node in features.tolist()}
        assert found.matched_influence.value == pytest.approx(1)
        fixed = np.flatnonzero(np.isin(large.nodes.kind, ("embedding", "error", "logit")))
        assert dict(found.counterparts) == {node: int(went[node]) for node in fixed.tolist()}


def test_independent_signatures_stay_at_the_null() -> None:
    """Of pairs that mean nothing one in twenty reaches the limit."""
    matched = paired = reached = 0
    for seed in range(12):
        one, two = (with_influence(random_graph(seed * 2 + i, n_layers=4, n_pos=5, per_layer=16)) for i in range(2))
        found = align(one, two, (random_signatures(one, seed), random_signatures(two, 500 + seed)), seed=seed)
        matched, paired = matched + len(found.matches), paired + found.paired
        reached += found.matched_influence.agrees
    assert paired > 500
    assert 0.01 < matched / paired < 0.075
    assert reached <= 3


def test_a_score_is_the_mean_of_what_is_known_less_what_depth_takes(large: AttributionGraph) -> None:
    known = random_signatures(large, 0)
    noise = random_signatures(large, 1)
    mixed = {name: unit_rows(csr_array(known.views[name].rows.toarray() + 0.1 * noise.views[name].rows.toarray()))
             for name in (WRITES, READS)}
    gone = mixed[READS].rows.toarray()
    gone[::3] = 0.0  # of every third nothing is known in one view
    mixed[READS] = unit_rows(csr_array(gone))
    shifted = replace(large, nodes=replace(large.nodes, layer=np.where(
        large.nodes.kind == "feature", large.nodes.layer + 1, large.nodes.layer).astype(np.int32)),
        header=replace(large.header, n_layers=5))
    moved = Signatures(known.layer + 1, known.feature, mixed)
    found = align(large, shifted, (known, moved), window=0.4)
    assert len(found.matches) >= 78
    for match in found.matches:
        assert match.first == match.second
        row = int(known.find(large.nodes.layer[[match.first]], large.nodes.feature[[match.first]])[0])
        alike = {name: float(known.views[name].rows.toarray()[row] @ mixed[name].rows.toarray()[row])
                 for name in (WRITES, READS) if mixed[name].known[row]}
        assert match.similarities == pytest.approx(alike)
        assert len(alike) == (1 if row % 3 == 0 else 2)
        layer = int(large.nodes.layer[match.first])
        away = abs((layer + 0.5) / 4 - (layer + 1.5) / 5)
        assert match.score == pytest.approx(np.mean(list(alike.values())) * (1 - FALL * away / 0.4))
        assert 0.95 <= match.confidence <= 1


def placed(*places: tuple[int, int, int], n_layers: int = 10, n_pos: int = 4) -> AttributionGraph:
    """Features (layer, position, number) without edges, each of influence 1, and a logit."""
    layer, position, feature = np.array([*places, (n_layers, n_pos - 1, -1)]).T
    kind = ["feature"] * len(places) + ["logit"]
    nodes = NodeTable.build(len(kind), kind=kind, layer=layer, position=position, feature=feature, influence=1.0,
                            token=[-1] * len(places) + [3], label=[f"f{i}" for i in range(len(kind))])
    return AttributionGraph(nodes, np.zeros(len(kind) + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32),
                            np.array([len(places)], np.int32), np.ones(1, np.float32),
                            Header(tokens=list(range(n_pos)), token_texts=["t"] * n_pos, n_layers=n_layers))


def basis(graph: AttributionGraph, axes: dict[tuple[int, int], int]) -> Signatures:
    """Each feature along one axis; the others along an axis of their own."""
    keys = sorted({(int(layer), int(number)) for layer, number, kind in zip(
        graph.nodes.layer, graph.nodes.feature, graph.nodes.kind, strict=True) if kind == "feature"})
    rows = np.zeros((len(keys), 200))
    rows[np.arange(len(keys)), [axes.get(key, 100 + 7 * key[0] + key[1]) for key in keys]] = 1.0
    layer, feature = np.array(keys).T
    return Signatures(layer, feature, {WRITES: unit_rows(csr_array(rows))}, {i: f" a{i}" for i in range(200)})


def test_matches_keep_to_position_and_window() -> None:
    one = placed((2, 1, 0))

    def matched(layer: int, position: int, window: float = 0.25) -> bool:
        two = placed((layer, position, 5), (9, 3, 6))  # another feature, so that there is a null
        found = align(one, two, (basis(one, {(2, 0): 1}), basis(two, {(layer, 5): 1})), window=window)
        return len(found.matches) == 1

    assert matched(2, 1)
    assert matched(4, 1)
    assert not matched(5, 1)
    assert matched(5, 1, window=0.35)
    assert not matched(2, 2)


def test_of_twins_the_nearest_match_and_the_margin_says_so() -> None:
    one = placed((2, 1, 0), (3, 1, 1), (8, 3, 9))
    two = placed((3, 1, 4), (2, 1, 5), (8, 3, 9))
    found = align(one, two, (basis(one, {(2, 0): 1, (3, 1): 1}), basis(two, {(3, 4): 1, (2, 5): 1})))
    assert pairs_of(found) == {0: 1, 1: 0, 2: 2}
    margins = {match.first: match.margin for match in found.matches}
    assert margins == {0: pytest.approx(FALL * 0.1 / 0.25), 1: pytest.approx(FALL * 0.1 / 0.25), 2: 1.0}
    assert NEARER * 1 < 1e-8
    assert {match.first: match.shared for match in found.matches}[0] == (" a1",)


def test_unrelated_graphs_raise_the_limit_and_equals_still_match() -> None:
    rng = np.random.default_rng(7)
    one = placed(*((layer, 1 + layer % 3, layer) for layer in range(10)))
    base = random_signatures(one, 0, (WRITES,))
    blurred = csr_array(base.views[WRITES].rows.toarray() + 0.1 * rng.standard_normal((10, WIDTH)))
    near = Signatures(base.layer, base.feature, {WRITES: unit_rows(blurred)})
    alone = align(one, one, (base, near))
    assert len(alone.matches) == 10
    # what a graph of an unrelated prompt has as well is not particular to this one
    both = align(one, one, (base, near), unrelated=[(one, base)])
    assert both.limits[UNRELATED] == pytest.approx(1)
    assert both.limit > alone.limit
    assert both.matches == []
    assert both.matched_influence.value == 0
    assert both.matched_unrelated == (pytest.approx(1),)
    equal = align(one, one, (base, base), unrelated=[(one, base)])
    assert len(equal.matches) == 10
    assert all(match.confidence == 0 for match in equal.matches)
    np.testing.assert_array_equal(equal.unrelated_matches[0][0], equal.unrelated_matches[0][1])


def text_of(rng: np.random.Generator, rates: np.ndarray, n_pos: int) -> AttributionGraph:
    """Features fire independently at every position after the first, each at its own rate; one layer of 100 each."""
    fires = rng.random((len(rates), n_pos)) < rates[:, None]
    fires[:, 0] = False
    fires[0, 1] = True  # never empty
    places = [(int(i) // 100, int(p), int(i) % 100) for i, p in zip(*np.nonzero(fires), strict=True)]
    return placed(*places, n_pos=n_pos)


def test_unrelated_prompts_of_one_model_stay_at_the_null_and_related_ones_do_not() -> None:
    rng = np.random.default_rng(1)
    rates = beta(0.2, 1.5).rvs(400, random_state=2)  # many silent ones, some that fire nearly anywhere
    matched = paired = common = 0
    for seed in range(5):
        one, two = text_of(rng, rates, 9), text_of(rng, rates, 9)
        keys = {(i // 100, i % 100): i for i in range(400)}
        rows = unit_rows(csr_array(np.eye(400)))
        known = Signatures(np.array([a for a, _ in keys]), np.array([b for _, b in keys]), {WRITES: rows})
        found = align(one, two, (known, known), two_prompts=True, seed=seed)
        matched, paired, common = matched + len(found.matches), paired + found.paired, common + len(found.common)
        assert all(match.elsewhere <= 0.05 for match in found.matches)
        same_prompt = align(one, two, (known, known), seed=seed)
        assert len(same_prompt.matches) == len(found.matches) + len(found.common)
    assert common > 5 * matched  # they do share features, those that fire anywhere
    assert 0 < matched / paired < 0.05
    # a feature that fires in both prompts at one position and nowhere else
    extra = [replace(graph, nodes=NodeTable(**{name: np.append(graph.nodes[name], planted.nodes[name][:1]) for name in
                                               graph.nodes.columns}), indptr=np.append(graph.indptr, 0))
             for graph, planted in ((one, placed((4, 5, 0), n_pos=9)), (two, placed((4, 5, 0), n_pos=9)))]
    more = Signatures(np.append(known.layer, 4), np.append(known.feature, 0),
                      {WRITES: unit_rows(csr_array(np.eye(401)))})
    found = align(*extra, (more, more), two_prompts=True)
    assert (len(one), len(two)) in pairs_of(found).items()


def test_elsewhere_counts_positions_of_both_graphs() -> None:
    one = placed((2, 1, 0), (2, 2, 0), (7, 2, 1), (5, 3, 8))
    two = placed((2, 1, 0), (7, 2, 1), (2, 3, 0), (5, 1, 8))
    known = [basis(graph, {}) for graph in (one, two)]
    free = {match.first: match.elsewhere for match in align(one, two, (known[0], known[1])).matches}
    assert free == {0: 0.0, 2: 0.0}  # not asked
    found = align(one, two, (known[0], known[1]), two_prompts=True)
    assert pairs_of(found) == {2: 1}
    assert found.common == [(0, 0)]
    assert found.unmatched[0].tolist() == [1, 3]


def test_counterparts_are_what_they_are() -> None:
    def nodes(n_layers: int, tokens: list[int]) -> AttributionGraph:
        spec = [("embedding", -1, 0, -1, 5), ("embedding", -1, 1, -1, 6),
                *(("error", layer, 1, -1, -1) for layer in range(n_layers)),
                *(("logit", n_layers, 1, -1, token) for token in tokens), ("constant", 0, -1, -1, -1)]
        kind, layer, position, feature, token = (np.array(column) for column in zip(*spec, strict=True))
        table = NodeTable.build(len(spec), kind=kind, layer=layer, position=position, feature=feature, token=token)
        targets = np.flatnonzero(kind == "logit").astype(np.int32)
        return AttributionGraph(table, np.zeros(len(spec) + 1, np.int64), np.zeros(0, np.int32),
                                np.zeros(0, np.float32), targets, np.ones(len(targets), np.float32),
                                Header(tokens=[5, 6], token_texts=["a", "b"], n_layers=n_layers))

    one, two = nodes(2, [7, 8]), nodes(4, [8, 9])
    found = dict(counterparts(one, two, 0.25))
    assert (found[0], found[1]) == (0, 1)
    assert {found[2], found[3]} <= {2, 3, 4, 5}
    assert found[2] in (2, 3)
    assert found[3] in (4, 5)
    assert found[5] == 6  # token 8
    assert len(found) == 5
    # one contrast each: the targets, though no token names them
    assert dict(counterparts(nodes(2, [-1]), nodes(2, [-1]), 0.25))[4] == 4


def test_without_signatures_or_null_nothing_is_a_match(large: AttributionGraph) -> None:
    nothing = Signatures(np.zeros(0, np.int64), np.zeros(0, np.int64), {})
    found = align(large, large, (nothing, random_signatures(large, 0)))
    assert found.matches == []
    assert found.compared[0] == 0
    assert found.compared[1] == found.features[1] > 70
    assert np.isnan(found.limit)
    assert len(found.unmatched[0]) == found.features[0]
    alone = placed((2, 1, 0))
    same = align(alone, alone, (basis(alone, {}), basis(alone, {})))
    assert (same.paired, same.matches, same.limits) == (1, [], {})
    # views that the two do not share say nothing
    apart = align(large, large, (random_signatures(large, 0, (WRITES,)), random_signatures(large, 0, (READS,))))
    assert (apart.views, apart.matches) == ((), [])


def test_spare_features_serve_the_null_and_nothing_else() -> None:
    one = placed((2, 1, 0), (3, 1, 1))
    known = basis(one, {(2, 0): 1, (3, 1): 2})
    rows = unit_rows(csr_array(np.eye(200)[[1, 50, 2]]))
    more = Signatures(np.array([2, 2, 3]), np.array([0, 4, 1]), {WRITES: rows}, spare=np.array([False, True, False]))
    assert align(one, one, (known, known)).limits == {}
    found = align(one, one, (known, more))
    assert pairs_of(found) == {0: 0, 1: 1}
    assert found.limits == {SHUFFLED: 0.0}
    assert found.compared == (2, 2)
    assert found.null_pairs == {SHUFFLED: 2 * ROUNDS}
    np.testing.assert_allclose(Features.of(one, more).share, [0.5, 0.5])
    spread = Features.of(one, more, spare=True)
    assert spread.nodes.tolist() == [0, 1, -1]
    assert spread.share.tolist() == [0.5, 0.5, 0.0]


def test_a_null_is_raised_to_what_stands_at_one_position() -> None:
    null = Pairs(np.arange(3), np.arange(3), np.array([0.1, 0.5, 0.95]))

    def raised(here: float, there: float, size: int = CALIBRATED_BY) -> list[float]:
        made = Paired(null, [null, null], Mean(here, size), Mean(there, CALIBRATED_BY)).calibrated_null()
        assert len(made) == 2
        return made[1].similarity.tolist()

    assert raised(0.3, 0.1) == pytest.approx([0.3, 0.7, 1.0])
    assert raised(0.1, 0.3) == null.similarity.tolist()
    assert raised(0.3, 0.1, CALIBRATED_BY - 1) == null.similarity.tolist()


def test_a_null_gives_no_signature_twice_at_one_position() -> None:
    """Five features here, each like another of five that fire elsewhere: only all five together make five pairs."""
    here, there = np.arange(5), np.arange(5, 10)
    one = Places(here + 100, np.ones(5, int), np.full(5, 3.0))
    two = Places(np.arange(10), np.repeat([1, 2], 5), np.full(10, 3.0))
    alike = np.zeros((5, 10))
    alike[here, there] = 0.9

    def totals(distinct: bool) -> list[float]:
        made = pair_up(one, two, lambda rows: alike[rows], 1.0, rng=np.random.default_rng(0), distinct=distinct)
        return [float(null.similarity.sum()) for null in made.null]

    assert totals(True) == [pytest.approx(4.5)] * ROUNDS
    assert min(totals(False)) < 4


def test_correlation_counts_the_zeros_that_are_not_stored() -> None:
    rng = np.random.default_rng(3)
    dense = rng.random((6, 50)) * (rng.random((6, 50)) < 0.3)
    dense[4], dense[5] = 0.0, 2.0  # silent, and always the same
    view = correlated_rows(csr_array(dense))
    np.testing.assert_array_equal(view.known, [True] * 4 + [False] * 2)
    made = similarities({CORPUS: view}, {CORPUS: view}, np.arange(6))[CORPUS]
    np.testing.assert_allclose(made[:4, :4], np.corrcoef(dense[:4]), atol=1e-12)
    assert np.isnan(made[4:]).all()
    assert np.isnan(made[:, 4:]).all()
    assert isinstance(view, View)
    cosine = unit_rows(csr_array(dense))
    np.testing.assert_array_equal(cosine.known, [True] * 4 + [False, True])
    made = similarities({CORPUS: cosine}, {CORPUS: cosine}, np.array([2]))[CORPUS]
    sizes = np.linalg.norm(dense, axis=1)
    np.testing.assert_allclose(made[0, :4], dense[2] @ dense[:4].T / sizes[2] / sizes[:4])


def test_features_without_a_signature_keep_their_influence(large: AttributionGraph) -> None:
    known = random_signatures(large, 0)
    half = Signatures(known.layer[::2], known.feature[::2], known.take(np.arange(0, len(known.layer), 2)))
    features = Features.of(large, half)
    assert len(features.nodes) == np.isin(feature_keys(large.nodes.layer, large.nodes.feature)[
        large.nodes.kind == "feature"], feature_keys(half.layer, half.feature)).sum()
    total = large.nodes.influence[large.nodes.kind == "feature"].sum()
    np.testing.assert_allclose(features.share, large.nodes.influence[features.nodes] / total, rtol=1e-5)
    found = align(large, large, (half, half))
    value = features.share.sum()
    assert found.matched_influence.value == pytest.approx(value / (2 - value))


def test_numbers_and_seeds(large: AttributionGraph) -> None:
    one, two = random_signatures(large, 0), random_signatures(large, 1)
    found = [align(large, large, (one, two), seed=seed) for seed in (3, 3, 4)]
    assert found[0].matches == found[1].matches
    assert found[0].limits == found[1].limits != found[2].limits
    numbers = found[0].numbers(large, large)
    assert numbers["matched"] == len(numbers["matches"]) > 0
    assert numbers["matches"][0]["first"] in large.node_ids
    assert len(numbers["unmatched"][0]) + numbers["matched"] == found[0].features[0]
