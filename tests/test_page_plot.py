"""The link view in a real browser: places, what is pointed at, lit, marked and dimmed."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
from page_samples import HOSTILE, N_LAYERS, TOKENS, sample_graph
from page_tabs import bluish_and_orange, centre, go_to, read_number, resize, wait_until_drawn

INK = """() => { const base = document.getElementById("base");
  const copy = new OffscreenCanvas(base.width, base.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(base, 0, 0);
  const { data } = copy.getImageData(0, 0, base.width, base.height);
  let count = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] > 200 && data[i] + data[i + 1] + data[i + 2] < 400) count++;
  }
  return count; }"""


def ink(page) -> int:
    """Pixels of the whole drawing that are neither empty nor nearly the page's colour (edges that nothing selects are
    faint)."""
    wait_until_drawn(page)
    return page.evaluate(INK)


def selected(page) -> int | None:
    """The selected node; the address follows more slowly where much changes."""
    node = page.evaluate("document.getElementById('panel').dataset.node")
    return int(node) if node else None


def picture(page) -> str:
    """The canvas of nodes and edges."""
    wait_until_drawn(page)
    return page.evaluate("document.getElementById('base').toDataURL()")


def preview_facts(page) -> dict[str, str]:
    lines = page.locator("#preview").inner_text().split("\n")
    return {"name": lines[0], **dict(zip(lines[1::2], lines[2::2], strict=True))}


def test_hover_previews_the_node_at_its_layer_and_position(graph, page):
    nodes = graph.nodes
    for position in (0, 4, 9):
        page.mouse.move(*centre(page, "emb", position + 1))  # the first column holds constants
        facts = preview_facts(page)
        node = int(np.flatnonzero((nodes.kind == "embedding") & (nodes.position == position))[0])
        token = TOKENS[position].replace(" ", "␣").replace("\n", "↵")
        assert token in facts["name"]
        assert facts["token id"] == str(nodes.token[node])
        page.mouse.click(*centre(page, "emb", position + 1))
        assert selected(page) == node
        page.keyboard.press("Escape")
    page.mouse.move(5, 5)
    assert page.locator("#preview").is_hidden()


def test_every_node_of_a_layer_can_be_hovered_with_its_numbers(graph, page):
    """A sweep along the row of one layer meets all of its nodes on that line, with their activation and influence."""
    _, y = centre(page, "L12", 1)
    met = {}
    box = page.locator("#plot").bounding_box()
    for x in range(int(box["x"]) + 40, int(box["x"] + box["width"]), 11):
        page.mouse.move(x, y)
        if page.locator("#preview").is_visible():
            met[page.locator("#preview").inner_text()] = x
    assert len(met) >= 10
    seen_kinds = set()
    for x in list(met.values())[:12]:
        page.mouse.move(x, y)
        facts = preview_facts(page)
        page.mouse.click(x, y)
        row = {name: graph.nodes[name][selected(page)] for name in graph.nodes.columns}
        seen_kinds.add(facts["kind"])
        assert int(facts["layer"]) == row["layer"] == 12
        assert facts["position"].split()[0] == str(row["position"])
        assert read_number(facts["influence"]) == pytest.approx(row["influence"], rel=6e-4)
        if row["kind"] == "feature":
            assert int(facts["feature"]) == row["feature"]
            assert read_number(facts["activation"]) == pytest.approx(row["value"], rel=6e-4)
            assert facts["name"] == (row["label"] or f"feature {row['feature']}")
        page.keyboard.press("Escape")
    assert "feature" in seen_kinds


def test_click_goes_along_edges_back_returns_escape_clears(graph, page):
    target = int(graph.target_nodes[0])
    assert bluish_and_orange(page) == (0, 0)
    page.locator("#panel button[data-node]").first.click()
    assert selected(page) == target
    assert min(bluish_and_orange(page)) > 200
    row = slice(graph.indptr[target], graph.indptr[target + 1])
    source = int(graph.indices[row][np.argmax(np.abs(graph.weights[row]))])
    page.locator(f"ol.inputs button[data-node='{source}']").click()
    assert selected(page) == source
    page.locator(f"ol.outputs button[data-node='{target}']").click()
    assert selected(page) == target
    page.go_back()
    assert selected(page) == source
    page.keyboard.press("Escape")
    page.wait_for_selector("#panel:not(.card)")
    assert selected(page) is None
    assert bluish_and_orange(page) == (0, 0)


def test_kinds_differ_by_shape(page):
    outlines = page.eval_on_selector_all("#legend path", "paths => paths.map(path => path.getAttribute('d'))")
    assert len(outlines) == len(set(outlines)) == 5


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_cut_off(page, width):
    resize(page, width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("(() => { const v = document.getElementById('plot');"
                         "return [v.scrollWidth - v.clientWidth, v.scrollHeight - v.clientHeight] })()") == [0, 0]
    rows = page.eval_on_selector_all(
        "#rows span", "spans => spans.map(s => { const { top, bottom } = s.getBoundingClientRect();"
                      "return [s.textContent, top, bottom] })")
    assert [row[0] for row in rows] == ["out", *(f"L{layer}" for layer in reversed(range(N_LAYERS))), "emb"]
    assert all(above[2] <= below[1] for above, below in pairwise(rows))
    columns = page.eval_on_selector_all("#columns span", "spans => spans.map(s => s.getBoundingClientRect().width)")
    assert min(columns) >= 55
    for part in ("#header", "#tools", "#facts"):
        assert page.evaluate("part => { const e = document.querySelector(part);"
                             "return e.scrollHeight - e.clientHeight }", part) <= 0
    resize(page, 1280)


def test_large_graphs_open_and_say_what_they_leave_out(open_page, monkeypatch):
    large = sample_graph(5200, seed=3)
    monkeypatch.setattr(import_module("circuits.graphs.page.content"), "MAX_EDGES", 20_000)
    page = open_page(large)
    said = page.locator("#warnings li").last.inner_text()
    assert f"holds the 20,000 strongest edges; {large.n_edges - 20_000:,} weaker ones were left out" in said
    assert page.locator("#edges option:checked").inner_text() == "strongest 1,000"
    page.select_option("#edges", "300")
    few = ink(page)
    at_once = page.evaluate(f"""() => {{ const edges = document.getElementById("edges");
      edges.value = "10000";
      edges.dispatchEvent(new Event("change", {{ bubbles: true }}));
      return ({INK})(); }}""")
    assert at_once < 1.2 * few  # the first frame has as many edges; the others follow without holding it up
    assert ink(page) > at_once
    column = len(TOKENS) // 2
    go_to(page, large, int(np.flatnonzero((large.nodes.kind == "embedding") & (large.nodes.position == column))[0]))
    assert sum(bluish_and_orange(page)) > 200


def test_a_lit_path_is_drawn_by_sign_up_to_its_target(graph, open_page):
    row = slice(graph.indptr[graph.target_nodes[0]], graph.indptr[graph.target_nodes[0] + 1])
    for sign, colour in ((1, 0), (-1, 1)):
        source = int(graph.indices[row][np.argmax(sign * graph.weights[row])])
        ids = [graph.node_ids[source], graph.node_ids[int(graph.target_nodes[0])]]
        page = open_page(graph, f"path={','.join(ids)}")
        found = bluish_and_orange(page)
        assert found[colour] > 200
        assert found[1 - colour] < 0.5 * found[colour]  # the rings of its nodes are near orange
        dimmed = ink(page)
        page.focus("#overlay")
        page.keyboard.press("Escape")
        assert bluish_and_orange(page) == (0, 0)
        assert ink(page) > 2 * dimmed


def test_pins_and_supernodes_are_marked_and_explained(graph, open_page):
    features = np.flatnonzero(graph.nodes.kind == "feature")[:20]
    ids = ",".join(graph.node_ids[i] for i in features)
    plain = open_page(graph)
    bare, shown = ink(plain), plain.locator("#legend li:visible").all_inner_texts()
    assert not {"pinned", "supernode"} & set(shown)
    page = open_page(graph, f"pins={ids}")
    with_pins = ink(page)
    assert with_pins > bare + 20 * 30
    assert "pinned" in page.locator("#legend li:visible").all_inner_texts()
    page = open_page(graph, f"groups=one,{ids}")
    assert ink(page) > with_pins + 20 * 5
    assert {"pinned", "supernode"} <= set(page.locator("#legend li:visible").all_inner_texts())


def test_a_search_dims_what_it_does_not_find(graph, page):
    everything = ink(page)
    page.get_by_label("Search").fill("layer:12")
    assert 0 < ink(page) < 0.3 * everything
    page.get_by_label("Search").fill("")
    assert ink(page) == everything


def test_rows_of_the_panel_ring_their_node(graph, page):
    assert page.evaluate("document.getElementById('overlay').toDataURL()") == page.evaluate(
        "(() => { const { width, height } = document.getElementById('overlay');"
        "return Object.assign(document.createElement('canvas'), { width, height }).toDataURL() })()")
    page.locator("#panel button[data-node]").nth(3).hover()
    ring = page.evaluate("document.getElementById('overlay').toDataURL()")
    page.locator("#panel button[data-node]").nth(4).hover()
    assert page.evaluate("document.getElementById('overlay').toDataURL()") != ring
    assert page.locator("#preview").is_hidden()


def test_colour_by_influence_has_one_order_in_light_and_dark(graph, page):
    assert page.locator("#ramp").is_hidden()
    by_kind = picture(page)
    page.get_by_label("Colour").select_option("influence")
    assert picture(page) != by_kind
    most = graph.nodes.influence[np.isin(graph.nodes.kind, ["feature", "error"])].max()
    assert read_number(page.locator("#ramp").inner_text().split()[-1]) == pytest.approx(most, rel=6e-4)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours = page.evaluate("['page', 'ramp-0', 'ramp-1', 'ramp-2', 'ramp-3', 'ramp-4'].map(name =>"
                                "getComputedStyle(document.body).getPropertyValue('--' + name).trim())")
        light = [luminance(colour) for colour in colours]
        steps = np.diff(np.cbrt(light[1:]))  # perceived lightness goes with the cube root
        assert (steps < -0.05).all() if scheme == "light" else (steps > 0.05).all()
        assert contrast(light[0], light[1]) > 1.7
        assert contrast(light[0], light[-1]) > 10
    page.emulate_media(color_scheme="light")
    page.get_by_label("Colour").select_option("kind")
    assert page.locator("#ramp").is_hidden()


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb (WCAG)."""
    digits = colour.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    values = np.array([int(part, 16) / 255 for part in re.findall("..", digits)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: float, two: float) -> float:
    return (max(one, two) + 0.05) / (min(one, two) + 0.05)


def test_size_follows_influence_on_the_chosen_target(graph, page):
    page.select_option("#edges", "0")  # other edges are the strongest for another target
    everything = picture(page)
    where = centre(page, "emb", 5)
    page.select_option("#target", str(int(graph.target_nodes[1])))
    assert picture(page) != everything
    assert centre(page, "emb", 5) == where  # sizes change, places do not
    page.select_option("#target", "")
    assert picture(page) == everything


def test_hostile_labels_are_previewed_as_text(graph, open_page):
    labels = np.array([HOSTILE[i % len(HOSTILE)] for i in range(len(graph))], dtype=object)
    page = open_page(replace(graph, nodes=replace(graph.nodes, label=labels),
                             header=replace(graph.header, token_texts=HOSTILE[:10])))
    names = set()
    for column in range(1, 11):
        page.mouse.move(*centre(page, "emb", column))
        names.add(page.locator("#preview bdi").first.text_content())
        box = page.locator("#preview").bounding_box()
        assert box["height"] < 300
        assert box["x"] + box["width"] <= 1280
    assert HOSTILE[0] in names
    assert page.locator("#columns bdi").nth(1).text_content() == HOSTILE[0].replace(" ", "␣")
    assert page.evaluate("window.__pwned") is None
    assert page.locator("img").count() == 0
