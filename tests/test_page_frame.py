"""The page's frame: tabs, enlarging a half, the splitter, and both widths the page is made for."""

from __future__ import annotations

import pytest
from page_tabs import in_hash, resize


def width(page, part: str) -> float:
    return page.locator(part).bounding_box()["width"]


def test_tabs_open_their_panes_by_click_and_arrow_keys(page):
    for name, pane in (("Subgraph", "#subgraph"), ("Table", "#table"), ("Attention", "#attention"), ("Graph", "#plot")):
        page.get_by_role("tab", name=name, exact=True).click()
        assert page.locator("#left-panes > .pane:visible").evaluate_all("all => all.map(p => p.id)") == [pane[1:]]
        assert page.get_by_role("tab", name=name, exact=True).get_attribute("aria-controls") == pane[1:]
    page.get_by_role("tab", name="Both").click()
    assert page.locator("#left-panes > .pane:visible").evaluate_all("all => all.map(p => p.id)") == ["plot", "subgraph"]
    page.get_by_role("tab", name="Node", exact=True).focus()
    opened = []
    for _ in range(6):
        page.keyboard.press("ArrowRight")
        opened.append(page.locator("#right-panes > .pane:visible").get_attribute("id"))
    assert opened == ["explanation", "unexplained", "groups", "pruning", "checked", "panel"]
    assert page.evaluate("document.activeElement.id") == "tab-node"
    assert page.locator("#right-tabs [tabindex='0']").count() == 1


def test_each_half_can_be_enlarged_and_escape_brings_both_back(page):
    for side, other in (("left", "right"), ("right", "left")):
        page.locator(f"#{side}-bar .enlarge").click()
        assert page.locator(f"#{other}").is_hidden()
        assert width(page, f"#{side}") == 1280
        assert in_hash(page)["large"] == [side]
        page.keyboard.press("Escape")
        assert page.locator(f"#{other}").is_visible()
        assert "large" not in in_hash(page)


def test_the_splitter_moves_by_pointer_and_keys_within_bounds(page):
    before = width(page, "#right")
    page.focus("#splitter")
    page.keyboard.press("ArrowLeft")
    assert width(page, "#right") == before + 24
    page.keyboard.press("ArrowRight")
    assert width(page, "#right") == before
    box = page.locator("#splitter").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(600, box["y"] + 200, steps=3)
    assert width(page, "#right") == pytest.approx(680, abs=6)
    page.mouse.move(1270, box["y"] + 200, steps=3)
    assert width(page, "#right") == 300
    page.mouse.up()
    assert page.evaluate("document.documentElement.scrollWidth") == 1280


@pytest.mark.parametrize("view", ["right=node", "right=explanation", "right=unexplained", "right=groups",
                                  "right=pruning", "right=checked", "left=attention", "left=table", "left=split",
                                  "left=subgraph"])
def test_no_view_is_wider_than_the_window(graph, open_page, html, view):
    page = open_page(html, f"{view}&pins={','.join(graph.node_ids[100:106])}")
    for size in (1280, 800):
        resize(page, size)
        assert page.evaluate("document.documentElement.scrollWidth") == size
        wide = page.evaluate("""() => [...document.querySelectorAll(
          ".tabbar, #right .pane:not([hidden]), #tools, #header")]
          .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.id || e.className)""")
        assert wide == [], size
    resize(page, 1280)


def test_choosing_a_target_changes_influence_everywhere(graph, page):
    page.get_by_role("tab", name="Explanation").click()
    said = page.locator("#explanation").inner_text()
    target = int(graph.target_nodes[1])
    page.locator("#target").select_option(str(target))
    assert in_hash(page)["target"] == [graph.node_ids[target]]
    assert page.locator("#explanation").inner_text() != said
    page.get_by_role("tab", name="Node", exact=True).click()
    first = page.locator("#panel .plain button[data-node]").nth(1).get_attribute("data-node")
    page.locator("#undo").click()
    assert "target" not in in_hash(page)
    assert page.locator("#target").input_value() == ""
    assert first is not None
