"""The view of strongest paths, in a real browser: its sentences, shares and coverage against graphs/explain.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from page_samples import HOSTILE
from page_tabs import in_hash, is_share, selected
from random_graphs import fed_by_a_constant, random_graph

from circuits.graphs.explain import explain
from circuits.graphs.graph import AttributionGraph, Header, NodeTable
from circuits.graphs.page.content import PATHS
from circuits.graphs.paths import Path
from circuits.graphs.prune import prune_masks
from circuits.graphs.scores import annotate


@pytest.fixture(scope="module")
def whole() -> AttributionGraph:
    """Unpruned, so that Python says what pruning keeps of it."""
    return annotate(random_graph(4, n_layers=6, n_pos=5, per_layer=12, unexpanded=0.1))


def strongest(graph: AttributionGraph) -> int:
    return int(graph.target_nodes[np.argmax(graph.target_weights)])


def said(graph: AttributionGraph, path: Path, names: list[str]) -> str:
    """The sentence of a path as the page words it."""
    nodes, words = graph.nodes, []
    for i, (node, weight) in enumerate(zip(path.nodes[:-1], path.weights, strict=True)):
        place = [f"layer {nodes.layer[node]}"] if nodes.kind[node] == "feature" else []
        if i == 0 or nodes.position[node] != nodes.position[path.nodes[i - 1]]:
            place.append(f"position {nodes.position[node]}")
        words.append(names[node] + (f" ({', '.join(place)})" if place else "") + (" → " if weight > 0 else " ⊣ "))
    return "".join(words) + f"{'raises' if path.sign > 0 else 'lowers'} {names[path.nodes[-1]]}"


def parts_shown(page) -> dict[str, str]:
    return dict(page.eval_on_selector_all("#explanation .parts-list div", "rows => rows.map(r => [r.dataset.part,"
                                          "r.querySelector('dd').textContent])"))


def test_sentences_and_shares_are_those_of_python(whole, open_page):
    page = open_page(whole, "right=explanation")
    names = [str(label) for label in whole.nodes.label]
    for target in (None, *whole.target_nodes.tolist()):
        page.locator("#target").select_option("" if target is None else str(target))
        told = explain(whole, strongest(whole) if target is None else target, PATHS)
        items = page.locator("#explanation .paths li")
        assert len(told.paths) > 5
        assert items.count() == len(told.paths)
        covered = 0.0
        for i, path in enumerate(told.paths):
            covered += path.share
            sentence = items.nth(i).locator(".said").evaluate("said => said.textContent").replace("  ", " ")
            assert sentence == said(whole, path, names)
            assert is_share(items.nth(i).locator("b").inner_text(), path.share)
            assert is_share(items.nth(i).locator(".foot > span").nth(1).inner_text().removeprefix("Σ "), covered)
        shown = parts_shown(page)
        expected = {"tokens": told.parts.listed, "others": told.parts.other_paths, "errors": told.parts.errors,
                    "pruned": told.parts.pruned, "unexplored": told.parts.unexplored, "constants": told.parts.constants}
        assert sum(expected.values()) == pytest.approx(1, abs=1e-6)
        assert all(is_share(shown.get(name, "0.0%"), share) for name, share in expected.items())
        lead, closing = (page.locator(f"#explanation .{name}").inner_text() for name in ("lead", "closing"))
        assert f"Tokens carry {100 * told.paths.total:.1f}% of what decides" in lead
        assert f"carry {100 * told.paths.covered:.1f}% of the target" in closing


def test_a_path_is_lit_and_put_out_by_button_row_and_escape(whole, open_page):
    page = open_page(whole, "right=explanation")
    told = explain(whole, None, PATHS)
    light = page.get_by_role("button", name="Light path 2 in the graph")
    lit = page.locator("#explanation .paths li.lit")
    ids = ",".join(whole.node_ids[node] for node in told.paths[1].nodes)
    light.focus()
    page.keyboard.press("Enter")
    assert light.get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Light path 2 in the graph"
    assert in_hash(page)["path"] == [ids]
    assert lit.count() == 1
    page.keyboard.press("Escape")
    assert light.get_attribute("aria-pressed") == "false"
    assert "path" not in in_hash(page)
    page.locator("#explanation .paths li").nth(1).locator(".bar").click()
    assert in_hash(page)["path"] == [ids]
    page.get_by_role("button", name="Light path 1 in the graph").click()
    assert light.get_attribute("aria-pressed") == "false"
    assert lit.count() == 1
    page.get_by_role("button", name="Light path 1 in the graph").click()
    assert lit.count() == 0
    again = open_page(whole, f"right=explanation&path={ids}")
    assert again.get_by_role("button", name="Light path 2 in the graph").get_attribute("aria-pressed") == "true"


def test_paths_are_pinned_and_their_nodes_selected(whole, open_page):
    page = open_page(whole, "right=explanation")
    path = explain(whole, None, PATHS).paths[2]
    pin = page.get_by_role("button", name="Pin path 3")
    pin.click()
    assert pin.get_attribute("aria-pressed") == "true"
    assert set(in_hash(page)["pins"][0].split(",")) == {whole.node_ids[node] for node in path.nodes}
    pin.click()
    assert "pins" not in in_hash(page)
    page.locator("#explanation .paths li").nth(2).locator("button.node").first.click()
    assert selected(page, whole) == path.nodes[0]
    assert in_hash(page).get("right", ["node"]) == ["node"]
    page.go_back()
    assert page.locator("#explanation").is_visible()
    page.get_by_role("button", name="Pin all paths").click()
    pinned = {node for one in explain(whole, None, PATHS).paths for node in one.nodes}
    assert set(in_hash(page)["pins"][0].split(",")) == {whole.node_ids[node] for node in pinned}


def test_paths_that_pruning_cuts_are_marked(whole, open_page):
    nodes, edges = prune_masks(whole, 0.4, 0.5)
    kept = {(int(whole.indices[e]), t) for t in range(len(whole))
            for e in range(whole.indptr[t], whole.indptr[t + 1]) if edges[e]}
    expected = [not (all(nodes[list(path.nodes)]) and all(step in kept for step in pairwise(path.nodes)))
                for path in explain(whole, None, PATHS).paths]
    assert 0 < sum(expected) < len(expected)
    page = open_page(whole, "right=explanation&nodes=0.4&edges=0.5")
    notes = page.locator("#explanation .gone")
    assert [notes.nth(i).is_visible() for i in range(notes.count())] == expected
    assert page.eval_on_selector_all("#explanation .paths li", "all => all.map(one =>"
                                     "one.classList.contains('pruned'))") == expected


@pytest.mark.parametrize(("label", "settings", "expected"), [
    ('Output " Paris" (p=0.100) minus " London" (p=0.020)', {}, '"␣Paris" over "␣London"'),
    ('Output " Paris" (p=0.100)', {}, '"␣Paris"'),
    ("some direction", {"target": " Paris", "versus": " London"}, "␣Paris over ␣London"),
    ("some direction", {}, "some direction")])
def test_a_contrast_is_told_as_one_over_the_other(whole, open_page, label, settings, expected):
    labels = whole.nodes.label.copy()
    labels[whole.target_nodes[0]] = label
    one = replace(whole, target_nodes=whole.target_nodes[:1], target_weights=np.ones(1, np.float32),
                  nodes=replace(whole.nodes, label=labels), header=replace(whole.header, settings=settings))
    page = open_page(one, "right=explanation")
    assert page.locator("#explanation .lead button.node").inner_text() == expected
    sentence = page.locator("#explanation .said").first.inner_text()
    assert sentence.endswith((f"raises {expected}", f"lowers {expected}"))


def test_what_cannot_be_explained_says_why(open_page, whole):
    alone = fed_by_a_constant()
    page = open_page(replace(alone, target_nodes=np.array([0], np.int32)), "right=explanation")
    assert "No path from a token reaches this target" in page.locator("#explanation").inner_text()
    assert parts_shown(page) == {"tokens": "0.0%", "constants": "100.0%"}
    none = np.array([], np.int32)
    empty = AttributionGraph(NodeTable.build(0, kind=np.array([], "<U9")), np.zeros(1, np.int64), none,
                             none.astype(np.float32), none, none.astype(np.float32), Header())
    page = open_page(empty, "right=explanation")
    assert "This graph has no target" in page.locator("#explanation").inner_text()
    many = replace(whole, target_nodes=np.repeat(whole.target_nodes, 6), target_weights=np.full(12, 0.05, np.float32))
    page = open_page(many, "right=explanation")
    assert page.locator("#explanation .paths li").count() == PATHS


def test_hostile_names_stay_text(graph, open_page):
    labels = np.array([HOSTILE[i % len(HOSTILE)] for i in range(len(graph))], dtype=object)
    header = replace(graph.header, token_texts=HOSTILE[:10], settings={"target": HOSTILE[1], "versus": HOSTILE[0]})
    page = open_page(replace(graph, nodes=replace(graph.nodes, label=labels), header=header), "right=explanation")
    assert page.locator("#explanation .paths li").count() == PATHS
    assert page.evaluate("window.__pwned") is None
    assert page.locator("#explanation img, #explanation script").count() == 0
    assert all(text.startswith("isolate") for text in page.eval_on_selector_all(
        "#explanation bdi", "all => all.map(one => getComputedStyle(one).unicodeBidi)"))
    assert page.evaluate("(() => { const e = document.getElementById('explanation');"
                         "return e.scrollWidth - e.clientWidth })()") == 0
