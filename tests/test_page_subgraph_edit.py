"""What one does in the subgraph: it is in the address and in undo, by pointer and by keyboard."""

from __future__ import annotations

import numpy as np
import pytest
from page_boxes import at, box_of, boxes, drag, fragment, groups_in_hash, pins_in_hash, strongest
from page_tabs import in_hash

NAMES = ["one, two; three", "\u05e9\u05dc\u05d5\u05dd 100%", "<b>\U0001f468\u200d\U0001f469\u200d\U0001f467</b>"]


def test_dragging_moves_a_box_in_undo_and_hash(graph, open_page):
    pins = strongest(graph)
    page = open_page(graph, fragment(graph, pins))
    key = graph.node_ids[pins[3]]
    before = boxes(page)
    start = at(page, key)
    scale = page.evaluate("new DOMMatrix(getComputedStyle(document.querySelector('.canvas > g')).transform).a")
    drag(page, start, (start[0] + 30, start[1] - 20))
    page.get_by_role("button", name="Fit to the view").click()
    (name, x, _), = (item.split(",") for item in in_hash(page)["places"][0].split(";"))
    assert name == key
    moved = page.evaluate("key => document.querySelector(`.box[data-key='${key}']`).transform.baseVal[0].matrix.e", key)
    assert moved == float(x)
    page.get_by_role("button", name="Undo").click()
    assert "places" not in in_hash(page)
    assert boxes(page)[key]["x"] == pytest.approx(before[key]["x"], abs=0.5)
    page.get_by_role("button", name="Redo").click()
    page.reload()
    page.wait_for_selector(".box")
    after = boxes(page)
    other = graph.node_ids[pins[-1]]
    assert (after[key]["x"] - after[other]["x"]) / scale == pytest.approx(
        (before[key]["x"] + 30 - before[other]["x"]) / scale, abs=2)
    page.get_by_role("button", name="Reset layout").click()
    assert "places" not in in_hash(page)
    assert boxes(page) == before


def test_arrow_keys_move_the_focused_box_as_one_step(graph, open_page):
    pins = strongest(graph)
    key = graph.node_ids[pins[2]]
    page = open_page(graph, fragment(graph, pins))
    place = "key => { const { e, f } = document.querySelector(`.box[data-key='${key}']`).transform.baseVal[0].matrix;" \
            "return [e, f] }"
    x, y = page.evaluate(place, key)
    box_of(page, key).focus()
    for pressed in ("ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(pressed)
    assert page.evaluate(place, key) == [pytest.approx(x + 20, abs=1), pytest.approx(y - 10, abs=1)]
    assert page.evaluate("document.activeElement.dataset.key") == key
    page.keyboard.press("Control+z")
    assert page.evaluate(place, key) == [x, y]


def test_supernode_from_several_chosen_by_pointer_and_keyboard(graph, open_page):
    pins = strongest(graph)
    keys = [graph.node_ids[i] for i in pins]
    page = open_page(graph, fragment(graph, pins))
    box_of(page, keys[0]).locator(".frame").click()
    assert in_hash(page)["node"] == [keys[0]]
    box_of(page, keys[1]).locator(".frame").click(modifiers=["Shift"])
    box_of(page, keys[2]).focus()
    page.keyboard.press("Shift+Enter")
    assert page.locator(".box.chosen").count() == 3
    page.get_by_label("Name of the new supernode").fill(NAMES[0])
    page.keyboard.press("Enter")
    made = [(NAMES[0], set(pins[:3]))]
    assert groups_in_hash(page, graph) == made
    assert page.evaluate("document.activeElement.dataset.key") == "g0"
    assert boxes(page)["g0"]["text"] == NAMES[0]
    page.keyboard.press("Control+z")
    assert groups_in_hash(page, graph) == []
    page.keyboard.press("Control+y")
    assert groups_in_hash(page, graph) == made
    page.reload()
    page.wait_for_selector(".box.supernode")
    assert boxes(page)["g0"]["text"] == NAMES[0]
    assert set(boxes(page)) == {"g0", *keys[3:]}


def test_rubber_band_chooses_what_it_touches(graph, open_page):
    tokens = list(map(int, np.flatnonzero(graph.nodes.kind == "embedding")[:5]))
    page = open_page(graph, fragment(graph, [*strongest(graph), *tokens]))
    pane = page.locator("#subgraph svg.canvas").bounding_box()
    row = [key for key, box in boxes(page).items() if graph.nodes.kind[graph.node_ids.index(key)] == "embedding"]
    top = min(boxes(page)[key]["y"] for key in row)
    page.keyboard.down("Shift")
    drag(page, (pane["x"] + 2, pane["y"] + pane["height"] - 3), (pane["x"] + pane["width"] - 3, top + 4))
    page.keyboard.up("Shift")
    chosen = page.eval_on_selector_all(".box.chosen", "boxes => boxes.map(box => box.dataset.key)")
    below = [key for key, box in boxes(page).items() if box["y"] + box["height"] > top + 4]
    assert sorted(chosen) == sorted(below)
    assert set(row) <= set(chosen)
    assert page.locator("#subgraph .band").count() == 0


@pytest.mark.parametrize("name", [*NAMES, "a\0b", "x" * 600])
def test_renaming_in_place_with_any_text(graph, open_page, name):
    pins = strongest(graph)
    page = open_page(graph, fragment(graph, pins, [("old", pins[:3]), ("other", pins[3:5])]))
    box_of(page, "g0").locator("> .frame").dblclick()
    page.get_by_label("Name of the supernode").evaluate("(field, text) => { field.value = text }", name)
    page.keyboard.press("Enter")
    wanted = [(name.replace("\0", "")[:500], set(pins[:3])), ("other", set(pins[3:5]))]
    assert groups_in_hash(page, graph) == wanted
    page.keyboard.press("Control+z")
    assert groups_in_hash(page, graph)[0][0] == "old"
    page.keyboard.press("Control+y")
    page.reload()
    page.wait_for_selector(".box.supernode")
    assert groups_in_hash(page, graph) == wanted
    shown = boxes(page)["g0"]["text"]
    assert len(shown) > 1
    assert shown.removesuffix("…").replace(" ", "") in wanted[0][0].replace(" ", "")
    box_of(page, "g0").focus()
    page.keyboard.press("F2")
    page.keyboard.type("never")
    page.keyboard.press("Escape")
    assert groups_in_hash(page, graph) == wanted
    assert page.evaluate("document.activeElement.dataset.key") == "g0"


def test_editing_a_nodes_label_in_place(graph, open_page):
    pins = strongest(graph)
    page = open_page(graph, fragment(graph, pins))
    key = graph.node_ids[pins[0]]
    box_of(page, key).focus()
    page.keyboard.press("Enter")
    page.get_by_role("toolbar", name="Subgraph").get_by_role("button", name="Edit label").click()
    page.keyboard.type("<i>mine</i>")
    page.keyboard.press("Enter")
    assert boxes(page)[key]["text"] == "<i>mine</i>"
    page.keyboard.press("Control+z")
    assert boxes(page)[key]["text"] != "<i>mine</i>"


def test_nodes_are_dragged_into_and_out_of_supernodes(graph, open_page):
    pins = strongest(graph)
    groups = [("one", pins[:2]), ("two", pins[2:4])]
    page = open_page(graph, fragment(graph, pins, groups))
    drag(page, at(page, graph.node_ids[pins[5]]), at(page, "g0"))
    assert groups_in_hash(page, graph) == [("one", {*pins[:2], pins[5]}), ("two", set(pins[2:4]))]
    assert graph.node_ids[pins[5]] not in boxes(page)
    box_of(page, "g0").locator("> .frame").click()
    page.get_by_role("button", name="Show members").click()
    assert box_of(page, "g0").locator(".chip").count() == 3
    chip = page.locator(f".chip[data-chip='{pins[0]}']")
    inside = chip.bounding_box()
    middle = (inside["x"] + inside["width"] / 2, inside["y"] + inside["height"] / 2)
    drag(page, middle, at(page, "g1"))
    assert groups_in_hash(page, graph) == [("one", {pins[1], pins[5]}), ("two", {*pins[2:4], pins[0]})]
    page.keyboard.press("Control+z")
    pane = page.locator("#subgraph svg.canvas").bounding_box()
    inside = page.locator(f".chip[data-chip='{pins[0]}']").bounding_box()
    drag(page, (inside["x"] + 30, inside["y"] + 8), (pane["x"] + 60, pane["y"] + 20))
    assert groups_in_hash(page, graph)[0] == ("one", {pins[1], pins[5]})
    assert pins[0] in pins_in_hash(page, graph)
    free = boxes(page)[graph.node_ids[pins[0]]]
    page.keyboard.press("Control+z")
    assert groups_in_hash(page, graph)[0] == ("one", {*pins[:2], pins[5]})
    assert free["group"] is False
    page.keyboard.press("Control+z")
    assert groups_in_hash(page, graph) == [("one", set(pins[:2])), ("two", set(pins[2:4]))]


def test_members_are_moved_split_and_unpinned_by_keyboard(graph, open_page):
    pins = strongest(graph)
    page = open_page(graph, fragment(graph, pins, [("one", pins[:3]), ("two", pins[3:5])]))
    box_of(page, "g0").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Show members").press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Hide members"
    page.locator(f".chip[data-chip='{pins[0]}']").focus()
    page.keyboard.press("Delete")
    assert groups_in_hash(page, graph)[0] == ("one", set(pins[1:3]))
    page.locator(f".chip[data-chip='{pins[1]}']").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Take out").press("Enter")
    assert groups_in_hash(page, graph)[0] == ("one", {pins[2]})
    box_of(page, graph.node_ids[pins[0]]).focus()
    page.keyboard.press("Enter")
    page.get_by_label("Put into a supernode").select_option(label="two")
    assert groups_in_hash(page, graph)[1] == ("two", {*pins[3:5], pins[0]})
    box_of(page, "g1").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Split").press("Enter")
    assert groups_in_hash(page, graph) == [("one", {pins[2]})]
    assert sorted(pins_in_hash(page, graph)) == sorted(pins)
    box_of(page, "g0").focus()
    page.keyboard.press("Delete")
    assert pins[2] not in pins_in_hash(page, graph)
    for _ in range(5):
        page.keyboard.press("Control+z")
    assert groups_in_hash(page, graph) == [("one", set(pins[:3])), ("two", set(pins[3:5]))]
