"""The subgraph of the page: what stands where, and links that equal sums over the adjacency."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from page_boxes import box_of, boxes, fragment, links, pins_in_hash, strongest
from page_samples import HOSTILE, sample_graph
from page_tabs import resize
from random_graphs import random_graph

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import influence


def expected_links(graph: AttributionGraph, units: dict[str, list[int]]) -> dict[tuple[str, str], tuple[float, ...]]:
    adjacency, constant = graph.adjacency().toarray().astype(np.float64), graph.nodes.kind == "constant"
    shown = np.array([np.abs(row[~constant]).sum() for row in adjacency])
    total = np.where(graph.nodes.input_abs > 0, graph.nodes.input_abs, shown)
    found = {}
    for source, sources in units.items():
        for target, targets in units.items():
            block = adjacency[np.ix_(targets, sources)]
            if source == target or not block.any():
                continue
            steady = block[:, ~constant[sources]]
            share = np.abs(steady).sum() / total[targets].sum() if steady.any() else np.nan
            found[source, target] = (block.sum(), share, np.count_nonzero(block))
    return found


def test_empty_subgraph_pins_the_strongest(graph, open_page):
    page = open_page(graph, "left=subgraph")
    assert page.locator("#subgraph h3").inner_text() == "Nothing is pinned yet"
    assert page.get_by_role("button", name="Save as SVG").count() == 0
    page.get_by_role("button", name="Pin the 15 most influential nodes of this target").click()
    wanted = strongest(graph)
    assert set(boxes(page)) == {graph.node_ids[i] for i in wanted}
    assert sorted(pins_in_hash(page, graph)) == sorted(wanted)
    page.get_by_role("button", name="Undo").click()
    assert boxes(page) == {}
    page.get_by_role("button", name="Pin the 15 most influential features of this target").click()
    assert {graph.nodes.kind[graph.node_ids.index(key)] for key in boxes(page)} == {"feature", "logit"}


def test_pin_the_path(graph, open_page):
    nodes = [strongest(graph)[0], int(graph.target_nodes[0])]
    page = open_page(graph, "left=subgraph&path=" + ",".join(graph.node_ids[i] for i in nodes))
    page.get_by_role("button", name="Pin the lit path").click()
    assert pins_in_hash(page, graph) == nodes
    page = open_page(graph, "left=subgraph")
    page.get_by_role("button", name="Pin the strongest path").click()
    assert pins_in_hash(page, graph) == list(graph.top_paths(int(graph.target_nodes[0])).paths[0].nodes)


@pytest.mark.parametrize("count", [15, 60])
def test_boxes_stand_by_layer_and_none_over_another(graph, open_page, count):
    pins = strongest(graph, count)
    page = open_page(graph, fragment(graph, pins))
    found = boxes(page)
    for one, other in combinations(found.values(), 2):
        apart = max(abs(one[a] + one[s] / 2 - other[a] - other[s] / 2) - (one[s] + other[s]) / 2
                    for a, s in (("x", "width"), ("y", "height")))
        assert apart > 0, (one, other)
    layer = {graph.node_ids[i]: graph.nodes.layer[i] for i in pins}
    for one, other in combinations(found, 2):
        lower, higher = sorted((one, other), key=layer.__getitem__)
        if layer[lower] < layer[higher]:
            middle = {key: found[key]["y"] + found[key]["height"] / 2 for key in (lower, higher)}
            assert middle[lower] >= middle[higher] - 12
    for lower, higher in links(page):
        assert found[lower]["y"] > found[higher]["y"] + found[higher]["height"] - 1


def test_links_are_the_edges_between_pinned_nodes(graph, open_page):
    pins = [*strongest(graph, 30), *map(int, np.flatnonzero(graph.nodes.kind == "constant"))]
    expected = expected_links(graph, {graph.node_ids[i]: [i] for i in pins})
    found = links(open_page(graph, fragment(graph, pins)))
    assert len(expected) > 60
    assert set(found) == set(expected)
    for ends, numbers in expected.items():
        assert found[ends] == pytest.approx(numbers, rel=1e-5, nan_ok=True), ends


def test_links_of_supernodes_add_up(graph, open_page):
    pins = strongest(graph, 40)
    constants = list(map(int, np.flatnonzero(graph.nodes.kind == "constant")[:3]))
    groups = [("a", [*pins[0:12:2], *constants]), ("b", pins[1:12:2]), ("c", pins[12:20])]
    page = open_page(graph, fragment(graph, pins, groups))
    units = {f"g{i}": nodes for i, (_, nodes) in enumerate(groups)}
    grouped = {node for nodes in units.values() for node in nodes}
    expected = expected_links(graph, units | {graph.node_ids[i]: [i] for i in pins if i not in grouped})
    found = links(page)
    assert set(found) == set(expected)
    assert any((target, source) in found for source, target in found)  # two supernodes feed each other
    for ends, numbers in expected.items():
        assert found[ends] == pytest.approx(numbers, rel=1e-5, nan_ok=True), ends
    said = page.locator("#subgraph ul.unseen li").first.inner_text()
    top = max(expected.items(), key=lambda item: np.nan_to_num(item[1][1]))[1]
    assert f"share {100 * top[1]:.1f}%" in said
    assert (" raises " in said) == (top[0] >= 0)
    page.evaluate("""() => document.querySelector(".link[data-source=g0][data-target=g1] .reach")
      .dispatchEvent(new PointerEvent("pointerover", { bubbles: true }))""")
    told = page.locator("#subgraph .tip").inner_text()
    _, share, count = expected["g0", "g1"]
    assert f"of {count} edges (raising" in told
    assert f"{100 * share:.1f}% of all inputs of its members" in told
    assert page.locator(".link:not(.dim)").count() == 1


def test_pruned_pins_stay_dashed_without_edges(open_page):
    graph = random_graph(3, n_layers=6, n_pos=4, per_layer=10)
    graph = replace(graph, nodes=replace(graph.nodes, influence=influence(graph).astype(np.float32)))
    small = graph.prune(0.5, 0.9)
    gone = set(graph.node_ids) - set(small.node_ids)
    pins = strongest(graph, 60)
    page = open_page(graph, fragment(graph, pins) + "&nodes=0.5&edges=0.9")
    found = boxes(page)
    pruned = {key for key, box in found.items() if box["pruned"]}
    assert pruned == {graph.node_ids[i] for i in pins} & gone
    assert 0 < len(pruned) < len(pins)
    ends = {key for link in links(page) for key in link}
    assert ends
    assert not ends & pruned
    one = box_of(page, sorted(pruned)[0])
    assert "pruned now" in one.text_content()
    assert "pruned now" in one.get_attribute("aria-label")
    assert one.locator(".frame").evaluate("frame => getComputedStyle(frame).strokeDasharray") != "none"


def test_boxes_have_names_and_ring_nodes_elsewhere(graph, open_page):
    pins = strongest(graph)
    page = open_page(graph, fragment(graph, pins, left="split"))
    for node in pins:
        spoken = box_of(page, graph.node_ids[node]).get_attribute("aria-label")
        assert f"{graph.nodes.position[node]}, influence" in spoken
    page.get_by_role("button", name="Fit to the view").click()
    overlay = "document.getElementById('overlay').toDataURL()"
    before = page.evaluate(overlay)
    box_of(page, graph.node_ids[pins[0]]).locator(".frame").hover()
    tip = page.locator("#subgraph .tip")
    assert tip.is_visible()
    assert "influence" in tip.inner_text()
    assert page.evaluate(overlay) != before
    page.mouse.move(5, 5)
    assert tip.is_hidden()
    assert page.evaluate(overlay) == before


def test_hostile_labels_stay_text_and_inside_their_boxes(graph, open_page):
    labels = np.array([HOSTILE[i % len(HOSTILE)] for i in range(len(graph))], dtype=object)
    header = replace(graph.header, prompt="".join(HOSTILE))
    hostile = replace(graph, nodes=replace(graph.nodes, label=labels), header=header)
    pins = strongest(graph, 30)
    page = open_page(hostile, fragment(hostile, pins, [(text, [pins[i]]) for i, text in enumerate(HOSTILE[:3])]))
    wide = page.eval_on_selector_all(".box", """boxes => boxes.flatMap(box => { const frame =
      box.querySelector(".frame").getBBox(); return [...box.querySelectorAll(".label")].map(line => line.getBBox())
      .filter(line => line.x + line.width > frame.x + frame.width
        || line.y + line.height > frame.y + frame.height) })""")
    assert wide == []
    assert page.locator("#subgraph img, #subgraph script").count() == 0
    box_of(page, "g0").locator("> .frame").hover()
    assert page.locator("#subgraph .tip bdi").first.inner_text() == HOSTILE[0]
    assert page.evaluate("window.__pwned") is None


def test_the_view_is_not_cut_off(graph, open_page):
    page = open_page(graph, fragment(graph, strongest(graph)))
    for width in (1280, 800):
        resize(page, width)
        page.get_by_role("button", name="Fit to the view").click()
        pane = page.locator("#subgraph svg.canvas").bounding_box()
        for box in boxes(page).values():
            for start, size in (("x", "width"), ("y", "height")):
                assert pane[start] <= box[start]
                assert box[start] + box[size] <= pane[start] + pane[size]
        assert page.evaluate("document.documentElement.scrollWidth") == width
    resize(page, 1280)


def test_a_larger_subgraph_is_drawn_quickly(open_page):
    large = sample_graph(2000, seed=1)
    page = open_page(large, fragment(large, strongest(large, 200)))
    assert page.locator(".box").count() == 201
    box_of(page, large.node_ids[strongest(large)[0]]).focus()
    took = page.evaluate("""() => [1, 2, 3, 4].map(() => { const start = performance.now();
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
      return performance.now() - start; })""")
    assert min(took) < 400


def test_what_cannot_be_pinned_is_not_offered_and_buttons_tell_what_they_do(graph, open_page):
    silent = replace(graph, nodes=replace(graph.nodes, influence=np.zeros(len(graph), np.float32)),
                     target_nodes=graph.target_nodes[:0], target_weights=graph.target_weights[:0])
    page = open_page(silent, "left=subgraph")
    for what in ("15 most influential nodes of this target", "15 most influential features of this target",
                 "strongest path"):
        assert page.get_by_role("button", name=f"Pin the {what}").is_disabled()
    page = open_page(graph, f"left=subgraph&pins={graph.node_ids[100]}")
    bar = page.get_by_role("toolbar", name="Subgraph")
    for what in ("nodes", "features"):
        offered = bar.get_by_role("button", name=f"Pin the 15 most influential {what} of this target")
        assert offered.inner_text() == f"Pin 15 {what}"
        assert offered.is_enabled()
