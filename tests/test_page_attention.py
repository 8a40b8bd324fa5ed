"""The page's edge card, attention view and checks in a real browser: their numbers, what they open, foreign text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from page_samples import HOSTILE, sample_graph, sample_heads, sample_validation
from page_tabs import go_to, in_hash, read_number, selected

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.heads import HeadTable
from circuits.graphs.page import render
from circuits.graphs.prune import prune_masks


@pytest.fixture(scope="module")
def graph() -> AttributionGraph:
    graph = sample_graph()
    return replace(graph, heads=sample_heads(graph), header=replace(graph.header, validation=sample_validation(graph)))


def heads_of(graph: AttributionGraph) -> HeadTable:
    assert graph.heads is not None
    return graph.heads


def longest_edge(graph: AttributionGraph) -> tuple[int, int]:
    """(source, target) of the edge with most parts."""
    heads = heads_of(graph)
    pairs, count = np.unique(np.stack([heads.source, heads.target]), axis=1, return_counts=True)
    source, target = pairs[:, count.argmax()].tolist()
    return source, target


def weight_of(graph: AttributionGraph, source: int, target: int) -> float:
    return float(graph.adjacency().toarray()[target, source])


def head_name(heads: HeadTable, row: int) -> str:
    return f"L{heads.layer[row]}H{heads.head[row]}"


def share(text: str) -> float:
    return read_number(text.removesuffix("%")) / 100 if not text.endswith("<0.1%") else 0


def fragment(graph: AttributionGraph, source: int, target: int) -> str:
    return f"edge={graph.node_ids[source]}%2C{graph.node_ids[target]}"


def test_a_row_opens_its_edge_and_the_edge_tells_its_heads(graph, page):
    heads = heads_of(graph)
    source, target = longest_edge(graph)
    go_to(page, graph, target)
    page.locator(f"ol.inputs li:has(button[data-node='{source}']) .open-edge").press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "H2"
    assert in_hash(page)["edge"] == [f"{graph.node_ids[source]},{graph.node_ids[target]}"]
    weight, rows = weight_of(graph, source, target), heads.of(target, source)
    assert len(rows) > 5
    facts = dict(zip(page.locator("#panel dt").all_text_contents(), page.locator("#panel dd").all_text_contents(),
                     strict=True))
    assert read_number(facts["weight"]) == pytest.approx(weight, rel=6e-4)
    assert page.locator("#panel .lead em").inner_text() == ("raises" if weight > 0 else "lowers")
    texts = "all => all.map(one => [...one.children].map(part => part.textContent))"
    shown = page.eval_on_selector_all(".edge-heads li", texts)
    assert [row[0] for row in shown] == [head_name(heads, row) for row in rows]
    for row, (_, _, loading, part) in zip(rows, shown, strict=True):
        assert read_number(loading) == pytest.approx(heads.loading[row], rel=6e-4)
        assert share(part) == pytest.approx(heads.loading[row] / weight, abs=6e-4)
    widths = page.eval_on_selector_all(".edge-heads .bar span", "all => all.map(s => parseFloat(s.style.width))")
    np.testing.assert_allclose(widths, 100 * np.abs(heads.loading[rows] / heads.loading[rows[0]]), atol=1e-3)
    layers = page.eval_on_selector_all(".by-layer tbody tr", texts)
    assert [row[0].split()[0] for row in layers] == [f"L{layer}" for layer in np.unique(heads.layer[rows])]
    for layer, (_, listed, _, rest, rest_share) in zip(np.unique(heads.layer[rows]), layers, strict=True):
        total = heads.loading[rows][heads.layer[rows] == layer].sum()
        assert read_number(listed) == pytest.approx(total, rel=1e-3)
        assert read_number(rest) == pytest.approx(weight - total, rel=1e-2, abs=1e-4)
        assert share(rest_share) == pytest.approx(1 - total / weight, abs=6e-4)
    page.get_by_role("button", name="Light this edge in the graph").click()
    assert in_hash(page)["path"] == [f"{graph.node_ids[source]},{graph.node_ids[target]}"]
    page.keyboard.press("Escape")
    assert "path" not in in_hash(page)
    page.keyboard.press("Escape")
    assert "edge" not in in_hash(page)
    assert selected(page, graph) == target


def test_another_node_closes_the_edge_and_back_opens_it_again(graph, open_page, html):
    source, target = longest_edge(graph)
    page = open_page(html, fragment(graph, source, target))
    assert page.locator(".edge-heads").count() == 1
    page.locator(f"#panel .lead button[data-node='{source}']").click()
    assert selected(page, graph) == source
    assert "edge" not in in_hash(page)
    assert page.locator(".edge-heads").count() == 0
    page.go_back()
    page.wait_for_selector(".edge-heads")


def test_an_edge_that_is_pruned_says_so(graph, open_page, html):
    source, target = longest_edge(graph)
    page = open_page(html, fragment(graph, source, target) + "&nodes=0.1&edges=0.1")
    assert "at the current thresholds" in page.locator("#panel .about").inner_text()
    page = open_page(html, fragment(graph, target, source))
    assert page.locator(".edge-heads").count() == 0


def test_a_head_of_an_edge_opens_its_pattern(graph, open_page, html):
    heads = heads_of(graph)
    source, target = longest_edge(graph)
    rows = heads.of(target, source)
    views = set(zip(heads.view_layer.tolist(), heads.view_head.tolist(), strict=True))
    seen = {(int(heads.layer[row]), int(heads.head[row])) in views: int(row) for row in rows}
    assert set(seen) == {True, False}
    for has_pattern, row in seen.items():
        page = open_page(html, fragment(graph, source, target))
        page.locator(".edge-heads").get_by_text(head_name(heads, row), exact=True).click()
        assert in_hash(page)["head"] == [f"{heads.layer[row]}.{heads.head[row]}"]
        assert page.locator(".edge-heads").count() == 1  # the edge stays open beside it
        assert page.locator(".patternmap").is_visible() == has_pattern
        assert page.locator("#head").input_value() == f"{heads.layer[row]}.{heads.head[row]}"
        text = page.locator("#attention .lead").inner_text()
        assert ("attention sink" in text) == has_pattern
        assert ("is not in this page" in text) == (not has_pattern)


def test_the_pattern_is_read_by_keyboard_and_pointer(graph, open_page, html):
    heads = heads_of(graph)
    page = open_page(html, "left=attention")
    options = page.locator("#head optgroup").first.locator("option").all_text_contents()
    assert [option.split(":")[0] for option in options] == [
        f"L{layer}H{head}" for layer, head in zip(heads.view_layer, heads.view_head, strict=True)]
    page.locator("#head").select_option(f"{heads.view_layer[2]}.{heads.view_head[2]}")
    sink = heads.pattern[2, 1:, 0].mean()
    assert f"on average, {100 * sink:.1f}%" in page.locator("#attention .lead").inner_text()
    grid = page.get_by_role("grid", name="Attention pattern, queries by keys")
    assert (grid.get_attribute("aria-rowcount"), grid.get_attribute("aria-colcount")) == ("10", "10")
    cell = grid.get_by_role("gridcell")
    cell.focus()
    page.keyboard.press("PageUp")
    told = page.evaluate("""() => { const cell = document.activeElement, told = [];
      const press = (key) => cell.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      for (let query = 0; query < 10; query++, press("ArrowDown")) {
        press("Home");
        for (let key = 0; key < 10; key++, press("ArrowRight")) told.push(cell.getAttribute("aria-label"));
      }
      return told; }""")
    for text, (query, key) in zip(told, np.ndindex(10, 10), strict=True):
        where, _, weight = text.rpartition(": ")
        assert f"({query}), key" in where
        assert where.endswith(f"({key})")
        if key > query:
            assert weight == "the key comes after the query"
        else:
            assert weight == "<0.0001" or float(weight) == pytest.approx(heads.pattern[2, query, key], abs=6e-5)
    page.get_by_role("button", name="Larger cells").click()
    x, y = cell_centre(page, 7, 4)
    page.mouse.move(x, y)
    assert cell.get_attribute("aria-label").startswith("query \u2068␣sport\u2069 (7), key \u2068␣Jordan\u2069 (4)")
    depth = page.evaluate("""([x, y]) => { const canvas = document.querySelector(".patternmap canvas");
      const box = canvas.getBoundingClientRect();
      const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
      copy.drawImage(canvas, 0, 0);
      return [x, x + 36 * 5].map((place) => copy.getImageData((place - box.left) * devicePixelRatio,
        (y - box.top) * devicePixelRatio, 1, 1).data[3]); }""", [x, y])
    assert depth[0] > 0
    assert depth[1] == 0  # a key after the query
    page.get_by_role("button", name="Smaller cells").click()
    page.mouse.click(*cell_centre(page, 9, 0))
    assert in_hash(page)["cell"] == ["9,0"]


def cell_centre(page, query: int, key: int) -> tuple[float, float]:
    left = page.locator(".patternmap .keys span").nth(key).bounding_box()
    top = page.locator(".patternmap .queries span").nth(query).bounding_box()
    return left["x"] + left["width"] / 2, top["y"] + top["height"] / 2


def test_a_cell_tells_its_score_and_its_components_are_nodes(graph, open_page, html):
    heads = heads_of(graph)
    page = open_page(html, "left=attention")
    assert page.locator(".pairs").count() == 0
    offered = page.locator(".offers button")
    assert offered.count() == 4
    page.mouse.click(*cell_centre(page, 9, 8))
    pairs = np.flatnonzero((heads.pair_view == 0) & (heads.pair_query == 9) & (heads.pair_key == 8))
    pairs = pairs[np.argsort(-np.abs(heads.pair_value[pairs]))]
    assert read_number(page.locator(".score b").inner_text()) == pytest.approx(heads.pair_score[pairs[0]], rel=6e-4)
    rows = page.locator(".pairs tbody tr")
    assert rows.count() == len(pairs) == 5
    nodes = []
    for pair, row in zip(pairs, rows.all(), strict=True):
        cells = row.locator("td").all()
        assert read_number(cells[2].inner_text()) == pytest.approx(heads.pair_value[pair], rel=6e-4)
        assert share(cells[3].inner_text()) == pytest.approx(heads.pair_value[pair] / heads.pair_score[pair], abs=6e-4)
        for cell, node, name in ((cells[0], heads.pair_query_node[pair], heads.pair_query_name[pair]),
                                 (cells[1], heads.pair_key_node[pair], heads.pair_key_name[pair])):
            button = cell.locator("button[data-node]")
            assert button.count() == (node >= 0)
            if node < 0:
                assert cell.inner_text() == name
            else:
                assert button.get_attribute("data-node") == str(node)
                nodes.append(int(node))
    listed = heads.pair_value[pairs].sum()
    numbers = page.locator(".score .hint").inner_text()
    assert read_number(numbers.split("add up to ")[1].split(";")[0]) == pytest.approx(listed, rel=1e-3)
    page.locator(f".pairs button[data-node='{nodes[0]}']").first.click()
    assert selected(page, graph) == nodes[0]
    assert page.locator(".pairs").is_visible()
    page.mouse.click(*cell_centre(page, 3, 2))
    assert "is not taken apart in this page" in page.locator(".score").inner_text()
    page.locator(".offers button").first.click()
    assert page.locator(".pairs").count() == 1


def test_edges_that_a_head_carries_open_their_card(graph, open_page, html):
    heads = heads_of(graph)
    page = open_page(html, "left=attention")
    rows = np.flatnonzero((heads.layer == heads.view_layer[0]) & (heads.head == heads.view_head[0]))
    rows = rows[np.argsort(-np.abs(heads.loading[rows]), kind="stable")]
    shown = page.eval_on_selector_all(".carried button", "all => all.map(b => [...b.children].map(c => c.textContent))")
    assert len(shown) == len(rows) > 3
    for row, (_, loading, part) in zip(rows, shown, strict=True):
        assert read_number(loading) == pytest.approx(heads.loading[row], rel=6e-4)
        whole = weight_of(graph, int(heads.source[row]), int(heads.target[row]))
        assert share(part) == pytest.approx(heads.loading[row] / whole, abs=6e-4)
    page.locator(".carried button").nth(1).click()
    ids = [graph.node_ids[heads.source[rows[1]]], graph.node_ids[heads.target[rows[1]]]]
    assert in_hash(page)["edge"] == [",".join(ids)]
    assert page.locator(".edge-heads").count() == 1
    page = open_page(graph, "left=attention", thresholds=(0.9, 0.9))  # it holds more edges than it shows
    kept = prune_masks(graph, 0.9, 0.9)[1]
    targets = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    pairs = set(zip(targets[kept].tolist(), graph.indices[kept].tolist(), strict=True))
    left = sum((heads.target[row], heads.source[row]) in pairs for row in rows)
    assert 0 < page.locator(".carried button").count() == left < len(rows)


def test_a_long_prompt_scrolls_to_the_chosen_cell(graph, open_page):
    n = 200
    header = replace(graph.header, token_texts=[f" t{i}" for i in range(n)], tokens=list(range(n)))
    long = replace(graph, header=header, heads=None)
    long = replace(long, heads=sample_heads(long, n_views=2))
    page = open_page(long, f"left=attention&cell={n - 1}%2C{n - 2}")
    box, cell = page.locator(".patternmap").bounding_box(), page.locator(".patternmap .cell").bounding_box()
    assert box["x"] < cell["x"] < box["x"] + box["width"]
    assert box["y"] < cell["y"] < box["y"] + box["height"]
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    assert page.locator(".patternmap canvas").bounding_box()["height"] <= box["height"]
    page.locator(".patternmap .cell").press("PageUp")
    page.locator(".patternmap .cell").press("Home")
    assert page.locator(".patternmap").evaluate("map => [map.scrollLeft, map.scrollTop]") == [0, 0]


def test_hostile_names_of_components_stay_text(graph, open_page):
    heads = heads_of(graph)
    names = [HOSTILE[i % len(HOSTILE)] for i in range(len(heads.pair_value))]
    nowhere = np.full(len(names), -1, np.int32)
    validation = {"effects": [[HOSTILE[0], 1.0, 2.0], ["a", "b", 1], None, 5, [1, 2]], "created": HOSTILE[1],
                  "spearman_influence": HOSTILE[0], "n_features": "many"}
    page = open_page(replace(graph, header=replace(graph.header, validation=validation), heads=replace(
        heads, pair_query_name=names, pair_key_name=names[::-1], pair_query_node=nowhere, pair_key_node=nowhere)),
        "left=attention&right=checked&cell=9%2C0")
    assert page.locator(".pairs tbody tr").count() == 5
    assert HOSTILE[0] in page.locator(".pairs").inner_text()
    assert "(not in this page)" in page.locator("#checked .told").inner_text()
    assert HOSTILE[0] in page.locator("#checked .told").inner_text()
    assert page.locator("#checked .scatter .dot").count() == 1
    assert page.locator("#attention img, #attention script, #checked img, #checked script").count() == 0
    assert page.evaluate("window.__pwned") is None
    wide = "id => (e => e.scrollWidth - e.clientWidth)(document.getElementById(id))"
    assert [page.evaluate(wide, name) for name in ("attention", "checked")] == [0, 0]


def test_a_page_without_heads_or_checks_says_how_to_get_them(open_page):
    bare = sample_graph(40)
    rows = np.repeat(np.arange(len(bare)), np.diff(bare.indptr))
    page = open_page(bare, f"left=attention&right=checked&head=1.1&cell=99%2C1&"
                           f"{fragment(bare, int(bare.indices[0]), int(rows[0]))}")
    assert "circuits attention graph.safetensors -o page.html" in page.locator("#attention").inner_text()
    assert "circuits validate graph.safetensors" in page.locator("#checked").inner_text()
    page.locator("#tab-node").click()
    assert {"head", "cell"} & set(in_hash(page)) == set()
    assert "circuits attention graph.safetensors -o page.html" in page.locator("#panel").inner_text()


@pytest.fixture(scope="module")
def html(graph: AttributionGraph) -> str:
    return render(graph)


def test_what_was_measured_stands_in_the_card_and_the_panel(graph, page):
    checks = graph.header.validation
    page.locator("#tab-checked").click()
    rows = dict(page.eval_on_selector_all("#checked tr[data-measure]",
                                          "all => all.map(tr => [tr.dataset.measure, tr.cells[1].textContent])"))
    assert list(rows) == [name for name, value in checks.items() if isinstance(value, float)]
    for name, text in rows.items():
        rounding = 1e-9 if name == "frozen_max_relative_error" else 6e-4
        assert read_number(text) == pytest.approx(checks[name], abs=rounding)
    assert page.locator("#checked .lead").inner_text().startswith(f"{checks['n_features']} features were ablated")
    known = [effect for effect in checks["effects"] if effect[0] in graph.node_ids]
    assert page.locator(".scatter .dot").count() == len(checks["effects"]) == len(known) + 1
    assert page.locator(".scatter .gone").count() == 1
    worst = sorted(known, key=lambda effect: -abs(effect[1] - effect[2]))[:10]
    listed = page.eval_on_selector_all("#checked ol button", "all => all.map(b => [Number(b.dataset.node),"
                                       "b.children[3].textContent, b.children[4].textContent])")
    assert [graph.node_ids[node] for node, _, _ in listed] == [effect[0] for effect in worst]
    for (_, predicted, measured), effect in zip(listed, worst, strict=True):
        assert (read_number(predicted), read_number(measured)) == pytest.approx(effect[1:], rel=6e-4)
    node = graph.node_ids.index(known[3][0])
    go_to(page, graph, node)
    facts = dict(zip(page.locator("#panel dt").all_text_contents(), page.locator("#panel dd").all_text_contents(),
                     strict=True))
    assert read_number(facts["ablated, predicted"]) == pytest.approx(known[3][1], rel=6e-4)
    assert read_number(facts["measured"]) == pytest.approx(known[3][2], rel=6e-4)


def test_points_of_the_plot_are_read_and_select_their_node(graph, page):
    effects = sorted(graph.header.validation["effects"], key=lambda effect: effect[1])
    page.locator("#tab-checked").click()
    plot, told = page.locator(".scatter"), page.locator("#checked .told")
    plot.focus()
    page.keyboard.press("Home")
    for effect in effects[:5]:
        text = told.inner_text()
        assert read_number(text.split("predicted ")[1].split(",")[0]) == pytest.approx(effect[1], rel=6e-4)
        assert read_number(text.split("measured ")[1]) == pytest.approx(effect[2], rel=6e-4)
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert graph.node_ids[selected(page, graph)] == effects[5][0]
    page.locator("#tab-checked").click()
    dots = page.eval_on_selector_all(".scatter .dot", "all => all.map(d => (({ x, y, width }) => [x + width / 2, y +"
                                     "width / 2])(d.getBoundingClientRect()))")
    middle = page.locator(".scatter .same").bounding_box()
    for (x, y), (_, predicted, measured) in zip(dots, effects, strict=True):
        right, up = (x - middle["x"]) / middle["width"] - 0.5, 0.5 - (y - middle["y"]) / middle["height"]
        scale = max(abs(value) for effect in effects for value in effect[1:])
        expected = [np.sign(value) * np.sqrt(abs(value) / scale) / 2 for value in (predicted, measured)]
        assert (right, up) == pytest.approx(expected, abs=3e-3)
    page.mouse.click(*dots[0])
    assert graph.node_ids[selected(page, graph)] == effects[0][0]
