"""The page's mathematics of pruning, influence and scores, against Python's."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from page_modules import Modules
from random_graphs import fed_by_a_constant, random_graph

from circuits.graphs import page as page_module
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import flow, influence, rows_by_level
from circuits.graphs.page import widened
from circuits.graphs.prune import prune_masks
from circuits.graphs.scores import annotate, scores

SHARES = (0.0, 0.3, 0.5, 0.8, 0.9, 0.98, 1.0)


def graphs() -> list[AttributionGraph]:
    kinds = [{}, {"unexpanded": 0.3}, {"shuffle": True}, {"constants": False, "density": 0.3},
             {"n_layers": 6, "n_pos": 5, "per_layer": 12, "shuffle": True, "unexpanded": 0.2}]
    return [annotate(random_graph(seed, **options)) for seed, options in enumerate(kinds)]  # type: ignore[arg-type]


def masks_at(modules: Modules, pairs: list[tuple[float, float]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks (N,), (E,) that the page keeps at pairs of a node and an edge threshold."""
    found = modules.value(f"""{[list(pair) for pair in pairs]}.map(([nodes, edges]) => prune(graph, {{ nodes, edges }}))
        .map((kept) => [kept.nodes.join(""), kept.edges.join("")])""")
    nodes, edges = zip(*([np.array(list(text)) == "1" for text in pair] for pair in found), strict=True)
    return list(zip(nodes, edges, strict=True))


def masks(modules: Modules, nodes: float, edges: float) -> tuple[np.ndarray, np.ndarray]:
    return masks_at(modules, [(nodes, edges)])[0]


@pytest.mark.parametrize("number", range(5))
def test_masks_are_those_of_python_on_whole_graphs(modules, number):
    graph = graphs()[number]
    modules.open(graph)
    sizes = set()
    pairs = [pair for pair in product(SHARES, SHARES) if pair != (1, 1)]  # there the page shows all it holds; Python
    for pair, found in zip(pairs, masks_at(modules, pairs), strict=True):  # drops nodes that feed nothing
        expected = prune_masks(graph, *pair)
        np.testing.assert_array_equal(found[0], expected[0], err_msg=f"nodes at {pair}")
        np.testing.assert_array_equal(found[1], expected[1], err_msg=f"edges at {pair}")
        sizes.add((int(expected[0].sum()), int(expected[1].sum())))
    assert len(sizes) > 15
    assert all(mask.all() for mask in masks(modules, 1, 1))


@pytest.mark.parametrize("number", range(5))
def test_influence_is_that_of_python(modules, number):
    graph = graphs()[number]
    modules.open(graph)
    found = modules.run("flow(graph, startOf(graph))", "arrived")["arrived"]
    np.testing.assert_allclose(found, influence(graph), rtol=1e-12)
    whole = np.where(np.isfinite(graph.nodes.input_abs), graph.nodes.input_abs, 0) * 1.5
    longer = replace(graph, nodes=replace(graph.nodes, input_abs=whole.astype(np.float32)))
    modules.open(longer)
    for target in graph.target_nodes.tolist():
        start = np.zeros(len(graph))
        start[target] = 1
        expected = flow(rows_by_level(longer, longer.nodes.input_abs.astype(np.float64)), start)
        found = modules.run(f"flow(graph, startOf(graph, {target}), null, graph.rowTotal)", "arrived")["arrived"]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("number", range(5))
def test_scores_are_those_of_python_also_of_what_pruning_keeps(modules, number):
    graph = graphs()[number]
    modules.open(graph)
    for nodes, edges in ((1, 1), (0.8, 0.98), (0.5, 0.7), (0, 0)):
        kept = graph if nodes == 1 else graph.prune(nodes, edges)
        pruned = f"prune(graph, {{ nodes: {nodes}, edges: {edges} }})"
        found = modules.value(f"scoresOf(graph, startOf(graph), {pruned}.edges)")
        expected = scores(kept)
        assert found == pytest.approx({name: expected[name] for name in ("replacement", "completeness")}, rel=1e-9)


def test_a_node_that_only_a_constant_feeds(modules):
    graph = annotate(fed_by_a_constant())
    modules.open(graph)
    for nodes, edges in ((1, 0.9), (0.9, 1), (0.5, 0.5)):
        for found, expected in zip(masks(modules, nodes, edges), prune_masks(graph, nodes, edges), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert modules.value("scoresOf(graph, startOf(graph))") == pytest.approx(
        {name: scores(graph)[name] for name in ("replacement", "completeness")})


def test_a_feature_that_is_a_target_stays_without_outputs(modules):
    graph = graphs()[1]
    alone = int(np.flatnonzero((graph.nodes.kind == "feature") & (graph.nodes.layer == 2) & graph.nodes.expanded)[-1])
    edges = graph.indices != alone
    graph = annotate(replace(graph.subgraph(np.ones(len(graph), bool), edges),
                             target_nodes=np.append(graph.target_nodes, alone).astype(np.int32),
                             target_weights=np.array([0.5, 0.2, 0.1], np.float32)))
    modules.open(graph)
    pairs = [(0.3, 0.5), (0.8, 0.9), (0.8, 0.0)]
    for pair, found in zip(pairs, masks_at(modules, pairs), strict=True):
        expected = prune_masks(graph, *pair)
        assert expected[0][alone]
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_a_page_of_a_larger_graph_opens_with_what_prune_keeps_and_ends_with_all_it_holds(modules):
    graph = graphs()[4]
    held, shown = widened(graph, 0.8, 0.9)
    assert len(held) > int(shown[0].sum())
    modules.open(held, shown)
    small = graph.prune(0.8, 0.9)
    assert modules.value("limitsOf(graph)") == {
        "most": {"nodes": 0.95, "edges": 1}, "first": {"nodes": 0.8, "edges": 0.9}}
    nodes, edges = masks(modules, 0.8, 0.9)
    kept = held.subgraph(nodes, edges)
    assert kept.node_ids == small.node_ids
    np.testing.assert_array_equal(kept.indices, small.indices)
    np.testing.assert_array_equal(kept.weights, small.weights)
    assert all(mask.all() for mask in masks(modules, 0.95, 1))
    assert all(mask.all() for mask in masks(modules, 1, 1))


def test_a_page_with_every_edge_between_its_nodes_prunes_as_the_whole_graph(modules, monkeypatch):
    monkeypatch.setattr(page_module, "WIDE", ((0.9, 1.0),))
    graph = annotate(random_graph(11, n_layers=8, n_pos=6, per_layer=30, density=0.4))
    held, shown = widened(graph, 0.8, 0.98)
    assert len(held) < len(graph)
    modules.open(held, shown)
    place = np.array([graph.node_ids.index(node) for node in held.node_ids])
    pairs = [(0.8, 0.97), (0.7, 0.98), (0.6, 0.9), (0.85, 0.97), (0.85, 0.98), (0.3, 0.5)]
    for pair, (nodes, edges) in zip(pairs, masks_at(modules, pairs), strict=True):
        keep, keep_edges = prune_masks(graph, *pair)
        assert set(place[nodes]) == set(np.flatnonzero(keep))
        assert {(place[t], place[s]) for t, s in ends_of(held, edges)} == ends_of(graph, keep_edges)


def test_edge_shares_of_a_page_that_lacks_edges_are_of_those_it_holds(modules, monkeypatch):
    monkeypatch.setattr(page_module, "WIDE", ((0.85, 0.985),))
    held, shown = widened(annotate(random_graph(11, n_layers=8, n_pos=6, per_layer=30, density=0.4)), 0.8, 0.98)
    modules.open(held, shown)
    pairs = [(0.85, 0.97), (0.85, 0.9), (0.85, 0.5)]
    for (_, share), found in zip(pairs, masks_at(modules, pairs), strict=True):
        expected = prune_masks(held, 1.0, share)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def ends_of(graph: AttributionGraph, edges: np.ndarray) -> set[tuple[int, int]]:
    """Target and source of each edge of a mask (E,)."""
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    return set(zip(rows[edges].tolist(), graph.indices[edges].tolist(), strict=True))


def test_influence_missing_from_a_file_is_computed(modules):
    graph = graphs()[0]
    modules.open(replace(graph, nodes=replace(graph.nodes, influence=np.zeros(len(graph), np.float32))))
    for found, expected in zip(masks(modules, 0.7, 0.9), prune_masks(graph, 0.7, 0.9), strict=True):
        np.testing.assert_array_equal(found, expected)
