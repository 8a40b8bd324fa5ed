"""The view of live pruning in a real browser: what it keeps and measures, against Python's."""

from __future__ import annotations

import numpy as np
import pytest
from page_tabs import bluish_and_orange, in_hash, is_share
from random_graphs import random_graph

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import flow, rows_by_level
from circuits.graphs.page import widened
from circuits.graphs.prune import prune_masks
from circuits.graphs.scores import annotate, scores


def larger() -> AttributionGraph:
    return annotate(random_graph(4, n_layers=6, n_pos=5, per_layer=12, unexpanded=0.1))


def kept_texts(page) -> dict[str, str]:
    return dict(page.eval_on_selector_all("#pruning .kept div", "rows => rows.map(r => [r.dataset.kept,"
                                          "r.querySelector('dd').textContent])"))


def check_kept(page, graph: AttributionGraph, nodes: float, edges: float) -> None:
    """The view's numbers, and through the search the nodes that other views show, are Python's."""
    mask, edge_mask = prune_masks(graph, nodes, edges)
    small = graph.prune(nodes, edges)
    shown = kept_texts(page)
    assert shown["nodes"] == f"{mask.sum()} of {len(graph)} in this page"
    assert shown["edges"] == f"{edge_mask.sum():,} of {graph.n_edges:,} in this page"
    measured = scores(small)
    assert float(shown["replacement"]) == pytest.approx(measured["replacement"], abs=6e-4)
    assert float(shown["completeness"]) == pytest.approx(measured["completeness"], abs=6e-4)
    start = np.zeros(len(small))
    np.add.at(start, small.target_nodes, small.target_weights)
    arrived = flow(rows_by_level(small, np.nan_to_num(small.nodes.input_abs.astype(np.float64))), start / start.sum())
    assert is_share(shown["tokens"].partition(" ")[0], arrived[small.nodes.kind == "embedding"].sum())
    page.get_by_label("Search").fill("kind:feature")
    assert page.locator("#found").inner_text() == f"{(mask & (graph.nodes.kind == 'feature')).sum()} found"
    page.locator("#search").fill("")
    page.locator("#tab-pruning").click()


def test_sliders_and_fields_prune_at_once_as_python_does(open_page):
    graph = larger()
    page = open_page(graph, "right=pruning")
    assert kept_texts(page)["nodes"] == f"{len(graph)} of {len(graph)} in this page"
    slider = page.get_by_label("Node share", exact=True)
    slider.focus()
    for _ in range(60):
        page.keyboard.press("ArrowLeft")
    assert in_hash(page)["nodes"] == ["0.7"]
    check_kept(page, graph, 0.7, 1)
    page.get_by_label("Edge share as a number").fill("0.85")
    page.keyboard.press("Enter")
    assert page.get_by_label("Edge share", exact=True).input_value() == "0.85"
    page.locator("#tab-pruning").click()
    check_kept(page, graph, 0.7, 0.85)
    for wrong, becomes in (("7", "1"), ("", "1"), ("-3", "0")):
        page.get_by_label("Edge share as a number").fill(wrong)
        page.keyboard.press("Enter")
        assert page.get_by_label("Edge share as a number").input_value() == becomes
    page.get_by_role("button", name="Reset").click()
    assert not {"nodes", "edges"} & set(in_hash(page))
    assert kept_texts(page)["nodes"] == f"{len(graph)} of {len(graph)} in this page"
    assert page.get_by_role("button", name="Reset").is_disabled()


def test_one_drag_is_one_step_of_undo(open_page):
    page = open_page(larger(), "right=pruning")
    page.get_by_label("Node share", exact=True).focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.locator("#undo").click()
    assert "nodes" not in in_hash(page)
    assert page.locator("#undo").is_disabled()
    page.locator("#redo").click()
    assert in_hash(page)["nodes"] == ["0.975"]


def test_the_graph_draws_only_edges_that_are_kept(open_page):
    graph = larger()
    node = int(graph.target_nodes[0])
    row = slice(graph.indptr[node], graph.indptr[node + 1])
    colours = {}
    for edges in (1.0, 0.3):
        page = open_page(graph, f"right=pruning&node={graph.node_ids[node]}&edges={edges}")
        colours[edges] = sum(bluish_and_orange(page))
    few = prune_masks(graph, 1, 0.3)[1][row].sum()
    assert 0 < few < row.stop - row.start
    assert 0 < colours[0.3] < 0.7 * colours[1.0]


@pytest.mark.parametrize("axis", ["nodes", "edges"])
def test_the_curve_reads_what_python_computes(open_page, axis):
    graph = larger()
    page = open_page(graph, "right=pruning&nodes=0.9&edges=0.9")
    page.get_by_label("Along").select_option(axis)
    page.wait_for_selector(".curve[data-done]")
    page.wait_for_function("axis => document.querySelector('.curve .axis').textContent.startsWith(axis)", arg=axis[:4])
    page.wait_for_selector(".curve[data-done]")
    curve = page.get_by_role("slider", name="Scores against the threshold")
    assert float(curve.get_attribute("aria-valuenow")) == pytest.approx(0.9)
    curve.focus()
    page.keyboard.press("Home")
    read = {}
    for _ in range(int(curve.get_attribute("data-done"))):
        read[float(curve.get_attribute("aria-valuenow"))] = curve.get_attribute("aria-valuetext")
        page.keyboard.press("ArrowRight")
    assert len(read) >= 15
    assert max(read) == 1
    for value, text in read.items():
        nodes, edges = (value, 0.9) if axis == "nodes" else (0.9, value)
        small = graph.prune(nodes, edges)
        measured = scores(small)
        told = dict(part.rsplit(" ", 1) for part in text.partition(": ")[2].split(", "))
        assert is_share(told["replacement"], measured["replacement"])
        assert is_share(told["completeness"], measured["completeness"])
        assert is_share(told["nodes kept"], len(small) / len(graph))
        assert page.locator(".curve polyline").count() == 4
    dashes = page.eval_on_selector_all(
        ".curve polyline", "all => all.map(one => getComputedStyle(one).strokeDasharray)")
    assert len(set(dashes)) == 4
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert in_hash(page)[axis] == ["0.05"]


def test_measuring_the_curve_does_not_hold_up_the_page(open_page):
    graph = annotate(random_graph(7, n_layers=10, n_pos=6, per_layer=60, density=0.4))
    assert graph.n_edges > 50_000
    page = open_page(graph)
    longest = page.evaluate("""async () => {
      const waits = [];
      let last = performance.now();
      const beat = setInterval(() => { const now = performance.now(); waits.push(now - last); last = now; }, 1);
      document.getElementById("tab-pruning").click();
      last = performance.now();
      while (!document.querySelector(".curve[data-done]")) await new Promise((resolve) => setTimeout(resolve, 20));
      clearInterval(beat);
      return waits.sort((a, b) => b - a).slice(0, 3); }""")
    assert longest[2] < 250  # the whole takes several times that; tests share their machine


def test_a_page_of_a_larger_graph_tells_its_limits(open_page):
    graph = larger()
    page = open_page(graph, "right=pruning", thresholds=(0.8, 0.9))
    small = graph.prune(0.8, 0.9)
    held, _ = widened(graph, 0.8, 0.9)
    shown = kept_texts(page)
    assert shown["nodes"] == f"{len(small)} of {len(held)} in this page, {len(graph)} before pruning"
    assert shown["edges"] == f"{small.n_edges:,} of {held.n_edges:,} in this page, {graph.n_edges:,} before pruning"
    assert page.get_by_label("Node share", exact=True).get_attribute("max") == "0.95"
    for name, most in (("Node", "0.95"), ("Edge", "1")):
        page.get_by_label(f"{name} share as a number").fill("1")
        page.keyboard.press("Enter")
        assert page.get_by_label(f"{name} share as a number").input_value() == most
    assert kept_texts(page)["nodes"].startswith(f"{len(held)} of {len(held)} in this page")
    assert kept_texts(page)["edges"].startswith(f"{held.n_edges:,} of {held.n_edges:,} in this page")
    assert "up to node share 0.95 and edge share 1" in page.locator("#pruning").inner_text()


def test_a_limit_between_two_steps_of_the_slider_is_reached(open_page):
    page = open_page(larger().prune(0.8123, 1), "right=pruning")
    slider = page.get_by_label("Node share", exact=True)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert in_hash(page)["nodes"] == ["0.805"]
    page.keyboard.press("ArrowRight")
    assert "nodes" not in in_hash(page)
    assert page.get_by_label("Node share as a number").input_value() == "0.8123"
