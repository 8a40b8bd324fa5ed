"""What differs between two families of prompts, and the tests that say so."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from planted_graphs import ON_THE, family, feature, graph_of, key
from scipy.stats import binomtest, false_discovery_control

from circuits.graphs.aggregate import aggregate
from circuits.graphs.aggregate_difference import compare_families
from circuits.graphs.aggregate_edges import LAST as LAST_TOKEN
from circuits.graphs.aggregate_edges import Items, edge_table, edges_of
from circuits.graphs.aggregate_prompts import GraphList
from circuits.graphs.aggregate_words import difference_sentences
from circuits.graphs.resampling import benjamini_hochberg, bootstrap_mean, permutation_p, smallest_p, wilson


def test_a_planted_difference_is_found_and_nothing_else() -> None:
    made = aggregate({"with": family(5, 10, extra=[(2, 77)]), "without": family(6, 10)}).difference
    assert made is not None
    differ = {int(made.keys[i]) for i in np.flatnonzero(made.presence.found)}
    assert differ == {key((2, 77))}
    at = int(np.flatnonzero(made.keys == key((2, 77)))[0])
    assert (made.presence.first[at], made.presence.second[at]) == (1.0, 0.0)
    assert made.influence.found[at]
    assert made.influence.first[at] > 0.02
    assert made.influence.second[at] == 0
    assert made.edges.found.sum() >= 1


def test_families_that_do_not_differ_give_hardly_any_difference() -> None:
    graphs = GraphList(family(12, 20, noise=2))
    prompts = list(graphs.prompts())
    items = Items(np.unique(np.concatenate([prompt.key for prompt in prompts])), [" the"])
    table = edge_table([edges_of(graphs.open(i), items) for i in range(len(graphs))])
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        order = rng.permutation(20)[:12]
        one, two = ([prompts[i] for i in part] for part in np.split(order, 2))
        made = compare_families(("one", "two"), one, two, table.rows(order), items, 0.5, seed=0)
        assert len(made.keys) == 4
        count = table.rows(order).count
        np.testing.assert_array_equal(made.codes, table.codes[count >= 3])
        assert count.min() < 3
        found.append([tests.found.any() for tests in (made.influence, made.presence, made.edges)])
    assert (np.mean(found, axis=0) < 0.12).all()


def test_permutation_is_exact_where_all_divisions_can_be_tried() -> None:
    values = np.random.default_rng(0).standard_normal((7, 3))
    first = np.array([True, False, True, False, False, True, False])
    for column, p in zip(values.T, permutation_p(values, first, 0), strict=True):
        gap = abs(column[first].mean() - column[~first].mean())
        gaps = [abs(column[list(part)].mean() - np.delete(column, part).mean()) for part in combinations(range(7), 3)]
        assert p == pytest.approx(np.mean([other >= gap - 1e-12 for other in gaps]))
    assert smallest_p(3, 4) == pytest.approx(1 / 35)
    extreme = np.arange(8.0)[:, None]
    assert permutation_p(extreme, np.arange(8) < 4, 0)[0] == pytest.approx(smallest_p(4, 4)) == 2 / 70


def test_permutation_p_is_even_under_the_null_and_never_zero() -> None:
    values = np.random.default_rng(1).standard_normal((30, 600))
    p = permutation_p(values, np.arange(30) < 15, 0)
    assert p.min() >= smallest_p(15, 15) > 0
    assert 0.03 < (p <= 0.05).mean() < 0.08
    assert abs(p.mean() - 0.5) < 0.05


def test_intervals_and_corrections_agree_with_scipy() -> None:
    p = np.random.default_rng(2).random(40) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))
    low, high = wilson(np.array([0, 7, 10]), 10)
    for i, count in enumerate((0, 7, 10)):
        ends = binomtest(count, 10).proportion_ci(method="wilson")
        np.testing.assert_allclose((low[i], high[i]), (ends.low, ends.high), atol=1e-12)
    values = np.random.default_rng(3).standard_normal((400, 2))
    low, high = bootstrap_mean(values, 0)
    np.testing.assert_allclose((high - low) / 2, 1.96 * values.std(0) / 20, rtol=0.1)


def test_too_few_prompts_conclude_nothing() -> None:
    found = aggregate({"a": family(7, 2), "b": family(8, 6)})
    made = found.difference
    assert made is not None
    assert not made.tested
    assert np.isnan(made.influence.p).all()
    assert not made.influence.found.any()
    assert "nothing can be concluded" in difference_sentences(found, made)[0]
    assert len(difference_sentences(found, made)) == 1
    assert feature(found.families[0], ON_THE).place.words == "too few prompts to tell"
    small = aggregate({"a": family(7, 3), "b": family(8, 3)})
    assert small.difference is not None
    assert small.difference.influence.p.min() >= smallest_p(3, 3) == 0.1
    assert any("no difference can be found" in said for said in difference_sentences(small, small.difference))


def test_tokens_and_scores_are_compared() -> None:
    worded = [graph_of(["<bos>", " quite", " so"], [(1, 3, 2)], {(1, (1, 3, 2)): 1.0, ((1, 3, 2), "logit"): 1.0,
                                                                 (2, "logit"): 1 + 0.01 * i}) for i in range(6)]
    other = [graph_of(["<bos>", " not", " so"], [(1, 3, 2)], {
        (1, (1, 3, 2)): 1.0, ("error 0", (1, 3, 2)): 1.0, ((1, 3, 2), "logit"): 1.0, (2, "logit"): 1 + 0.01 * i})
        for i in range(6)]
    found = aggregate({"a": worded, "b": other})
    made = found.difference
    assert made is not None
    roles = {found.item_name(item): i for i, item in enumerate(made.roles)}
    assert set(roles) == {'" quite"', LAST_TOKEN, '" not"'}
    assert made.tokens.first[roles['" not"']] == 0 < made.tokens.second[roles['" not"']]
    assert made.tokens.found[roles['" quite"']]
    replacement = made.measures.index("replacement")
    assert made.measured.found[replacement]
    assert made.measured.first[replacement] == pytest.approx(1)
    assert not made.measured.found[made.measures.index("features")]
