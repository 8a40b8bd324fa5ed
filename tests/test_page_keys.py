"""The link view by keyboard alone: it walks along edges, selects, pins, scrolls to where it is, and lists its keys."""

from __future__ import annotations

import re

import numpy as np
import pytest
from page_samples import sample_graph
from page_tabs import in_hash, read_number, wait_for_layout
from playwright.sync_api import expect


def selected(page) -> int | None:
    """The selected node; the address follows more slowly where much changes."""
    node = page.evaluate("document.getElementById('panel').dataset.node")
    return int(node) if node else None


def test_arrows_walk_along_edges_and_p_pins(graph, page):
    page.focus("#overlay")
    page.keyboard.press("ArrowDown")  # the first step shows the first target
    assert page.locator("#said").inner_text().startswith("logit")
    assert page.locator("#preview").is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    first, *_ = targets = graph.target_nodes.tolist()
    in_row = sorted(targets, key=lambda node: -graph.nodes.influence[node])
    at = in_row[in_row.index(first) + 1]
    assert selected(page) == at
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    assert_walks_along_inputs(graph, page, first)
    page.keyboard.press("p")
    assert page.locator("#said").inner_text() == "Pinned"
    row = slice(graph.indptr[first], graph.indptr[first + 1])
    weakest = graph.indices[row][np.argmin(np.abs(graph.weights[row]))]
    assert in_hash(page)["pins"] == [graph.node_ids[weakest]]
    page.keyboard.press("p")
    assert "pins" not in in_hash(page)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    outputs = graph.adjacency()[:, [weakest]].toarray().ravel()
    assert selected(page) == int(np.argmax(np.abs(outputs)))


def assert_walks_along_inputs(graph, page, node: int) -> None:
    """Down and then right meets every input of ``node`` where the keyboard is, largest weight first."""
    row = slice(graph.indptr[node], graph.indptr[node + 1])
    order = graph.indices[row][np.argsort(-np.abs(graph.weights[row]), kind="stable")]
    page.keyboard.press("ArrowDown")
    for i, source in enumerate(order):
        influence = re.search(r"influence (\S+)$", page.locator("#said").inner_text())
        assert read_number(influence[1]) == pytest.approx(graph.nodes.influence[source], rel=6e-4), i
        page.keyboard.press("ArrowRight")


def test_the_view_is_reached_by_tab_and_lists_its_keys(page):
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert {"search", "edges", "color", "overlay"} <= set(reached)
    assert page.get_by_role("application", name="Attribution graph").count() == 1
    page.focus("#overlay")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog")
    text = dialog.inner_text()
    for key in ("↑ ↓", "← →", "Home", "Enter", "Space", "P", "Escape", "/", "1 … 5", "Ctrl Z", "Ctrl Y", "?"):
        assert key in text
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    for key, tab_name in zip("12345", ("graph", "subgraph", "split", "table", "attention"), strict=True):
        page.keyboard.press(key)
        assert page.locator(f"#tab-{tab_name}").get_attribute("aria-selected") == "true"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def test_the_keyboard_scrolls_to_its_node_and_keeps_its_preview(open_page):
    wide = sample_graph(5200, seed=3)
    page = open_page(wide)
    assert page.evaluate("(v => v.scrollWidth > v.clientWidth + 100)(document.getElementById('plot'))")
    page.focus("#overlay")
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
        wait_for_layout(page)
        box = page.locator("#plot").bounding_box()
        shown = page.locator("#preview").bounding_box()
        assert shown is not None
        assert box["x"] - 340 <= shown["x"] <= box["x"] + box["width"]
