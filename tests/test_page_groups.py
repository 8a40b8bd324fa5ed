"""The panel "Supernodes": one's own and the suggested ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from page_boxes import fragment, groups_in_hash, pins_in_hash, strongest
from page_samples import HOSTILE
from page_tabs import in_hash, read_number
from playwright.sync_api import Locator, Page

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.page import content, render

PANEL = "#groups"


@dataclass(frozen=True)
class Suggestion:
    nodes: tuple[int, ...]
    name: str
    reason: str = "All at one position"
    cohesion: float = 0.625
    separation: float = 0.25
    influence: float = 0.1


@pytest.fixture
def suggested(graph: AttributionGraph, monkeypatch: pytest.MonkeyPatch) -> list[Suggestion]:
    nodes = [i for i in strongest(graph, 40) if graph.nodes.kind[i] == "feature"]
    found = [Suggestion(tuple(nodes[:3]), "sports, games; more"), Suggestion(tuple(nodes[3:5]), HOSTILE[0], HOSTILE[1]),
             Suggestion(tuple(nodes[5:20]), "many")]
    monkeypatch.setattr(content, "suggest", lambda graph, cards=None: found)
    return found


def suggestion(page: Page, index: int) -> Locator:
    return page.locator(f"{PANEL} [data-suggestion='{index}']")


def own(page: Page, key: str) -> Locator:
    return page.locator(f"{PANEL} [data-group='{key}']")


def headings(page: Page) -> list[str]:
    return page.locator(f"{PANEL} h3").all_text_contents()


def members(card: Locator) -> list[int]:
    return [int(text) for text in card.locator("li").evaluate_all("rows => rows.map(row => row.dataset.nodes)")]


def test_own_supernodes_show_their_members_and_influence(graph, open_page):
    pins = strongest(graph)
    page = open_page(graph, fragment(graph, pins, [("one", pins[:3]), ("two", pins[3:5])]) + "&right=groups")
    assert headings(page)[0] == "My supernodes (2)"
    for key, nodes in (("g0", pins[:3]), ("g1", pins[3:5])):
        assert members(own(page, key)) == nodes
        said = own(page, key).locator(".hint").inner_text()
        assert read_number(said.split("influence ")[1]) == pytest.approx(graph.nodes.influence[nodes].sum(), rel=1e-3)
    own(page, "g0").locator("button.member").first.click()
    assert in_hash(page)["node"] == [graph.node_ids[pins[0]]]


def test_own_supernodes_are_renamed_split_and_left(graph, open_page):
    pins = strongest(graph)
    page = open_page(graph, fragment(graph, pins, [("one", pins[:3]), ("two", pins[3:5])]) + "&right=groups")
    name = own(page, "g0").get_by_label("Name of the supernode")
    name.fill("x; y, \u05e9 %2C")
    name.press("Enter")
    assert groups_in_hash(page, graph)[0] == ("x; y, \u05e9 %2C", set(pins[:3]))
    name.fill("never")
    name.press("Escape")
    assert name.input_value() == "x; y, \u05e9 %2C"
    name.fill("")
    name.press("Enter")
    assert name.input_value() == "x; y, \u05e9 %2C"
    own(page, "g0").get_by_role("button", name="Take out").first.press("Enter")
    assert groups_in_hash(page, graph)[0][1] == set(pins[1:3])
    own(page, "g1").get_by_role("button", name="Split").click()
    assert len(groups_in_hash(page, graph)) == 1
    assert sorted(pins_in_hash(page, graph)) == sorted(pins)
    own(page, "g0").get_by_role("button", name="Unpin").click()
    assert groups_in_hash(page, graph) == []
    assert set(pins_in_hash(page, graph)) == set(pins) - set(pins[1:3])
    for left in ([1], [1, 1], [2, 1]):
        page.keyboard.press("Control+z")
        assert len(groups_in_hash(page, graph)) == len(left)
    page.keyboard.press("Control+z")
    assert groups_in_hash(page, graph) == [("one", set(pins[:3])), ("two", set(pins[3:5]))]
    for _ in range(4):
        page.keyboard.press("Control+y")
    assert groups_in_hash(page, graph) == []


def test_suggestions_show_reason_and_measures(graph, open_page, suggested):
    page = open_page(render(graph), "right=groups")
    assert headings(page) == ["My supernodes (0)", "Suggestions (3)"]
    for index, one in enumerate(suggested):
        card = suggestion(page, index)
        assert card.locator("strong").inner_text() == one.name
        assert card.locator(".reason").inner_text() == one.reason
        assert "cohesion 0.63, separation 0.25" in card.locator(".hint").inner_text()
        assert members(card) == list(one.nodes)
    assert page.locator(f"{PANEL} details li").count() == 3
    assert page.evaluate("window.__pwned") is None
    assert page.locator("img").count() == 0


def test_accepting_makes_a_supernode(graph, open_page, suggested):
    page = open_page(render(graph), "right=groups")
    suggestion(page, 0).get_by_role("button", name="Accept").click()
    made = [(suggested[0].name, set(suggested[0].nodes))]
    assert groups_in_hash(page, graph) == made
    assert set(pins_in_hash(page, graph)) == set(suggested[0].nodes)
    assert headings(page) == ["My supernodes (1)", "Suggestions (2)", "Accepted (1)"]
    page.keyboard.press("Control+z")
    assert headings(page) == ["My supernodes (0)", "Suggestions (3)"]
    assert pins_in_hash(page, graph) == []
    page.keyboard.press("Control+y")
    page.reload()
    page.wait_for_selector(f"{PANEL} [data-group]")
    assert groups_in_hash(page, graph) == made
    assert headings(page) == ["My supernodes (1)", "Suggestions (2)", "Accepted (1)"]


def test_editing_before_accepting(graph, open_page, suggested):
    page = open_page(render(graph), "right=groups")
    card = suggestion(page, 0)
    card.get_by_role("button", name="Edit").press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    card.get_by_label("Name of the supernode").fill("mine")
    boxes = card.get_by_role("checkbox")
    assert boxes.count() == 3
    boxes.nth(1).press("Space")
    assert card.get_by_label("Name of the supernode").input_value() == "mine"
    assert not boxes.nth(1).is_checked()
    card.get_by_role("button", name="Accept").click()
    assert groups_in_hash(page, graph) == [("mine", {suggested[0].nodes[0], suggested[0].nodes[2]})]
    page.keyboard.press("Control+z")
    suggestion(page, 1).get_by_role("button", name="Edit").click()
    suggestion(page, 1).get_by_role("button", name="Cancel").click()
    assert suggestion(page, 1).get_by_role("checkbox").count() == 0


def test_dismissing_and_bringing_back(graph, open_page, suggested):
    page = open_page(render(graph), "right=groups")
    suggestion(page, 1).get_by_role("button", name="Dismiss").click()
    assert headings(page) == ["My supernodes (0)", "Suggestions (2)", "Dismissed (1)"]
    page.keyboard.press("Control+z")
    assert headings(page) == ["My supernodes (0)", "Suggestions (3)"]
    page.keyboard.press("Control+y")
    page.get_by_role("button", name="Bring back").click()
    assert headings(page) == ["My supernodes (0)", "Suggestions (3)"]


def test_pruned_members_are_greyed_and_not_taken(graph, open_page, monkeypatch):
    features = np.flatnonzero(graph.nodes.kind == "feature").tolist()
    monkeypatch.setattr(content, "suggest", lambda graph, cards=None: [Suggestion(tuple(features), "all")])
    page = open_page(render(graph), "right=groups&nodes=0.3&edges=0.5")
    card = suggestion(page, 0)
    gone = [int(i) for i in card.locator("li.gone").evaluate_all("rows => rows.map(row => row.dataset.nodes)")]
    assert 0 < len(gone) < len(features)
    assert card.locator("li.gone small.note").count() == len(gone)
    assert f"{len(features) - len(gone)} nodes, {len(gone)} more pruned now" in card.locator(".hint").inner_text()
    card.get_by_role("button", name="Edit").click()
    assert card.get_by_role("checkbox", disabled=True).count() == len(gone)
    card.get_by_role("button", name="Accept").click()
    assert groups_in_hash(page, graph) == [("all", set(features) - set(gone))]
    assert headings(page) == ["My supernodes (1)", "Suggestions (0)", "Accepted (1)"]


def test_pointing_at_members_rings_them(graph, open_page, suggested):
    page = open_page(render(graph), "right=groups")
    overlay = "document.getElementById('overlay').toDataURL()"
    before = page.evaluate(overlay)
    suggestion(page, 0).locator(".member").first.hover()
    one = page.evaluate(overlay)
    assert one != before
    suggestion(page, 0).locator(".member").nth(1).focus()
    assert page.evaluate(overlay) not in (before, one)
    page.mouse.move(5, 5)
    page.evaluate("document.activeElement.blur()")
    assert page.evaluate(overlay) == before


def test_a_graph_without_suggestions_says_so(graph, open_page, monkeypatch):
    monkeypatch.setattr(content, "suggest", lambda graph, cards=None: [])
    page = open_page(render(graph), "right=groups")
    assert "came without suggestions" in page.locator(PANEL).inner_text()
