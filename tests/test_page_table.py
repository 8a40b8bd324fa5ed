"""The table: its cells are the graph's numbers, in the order and the files that were asked for."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from page_samples import HOSTILE, sample_graph
from page_tabs import in_hash, is_share, read_number, resize, selected

COLUMNS = ["id", "kind", "layer", "position", "token", "label", "activation", "influence", "share", "pinned"]
PAGE = 100
EDGES = ["source", "source at", "target", "target at", "weight", "share"]


@pytest.fixture
def table(graph, open_page):
    return open_page(graph, "left=table")


def cells(page) -> list[list[str]]:
    return page.eval_on_selector_all(
        "#table tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent.trim()))")


def shown(page) -> list[int]:
    return page.eval_on_selector_all("#table tbody tr", "rows => rows.map(row => Number(row.dataset.node))")


def head(page, name: str):
    return page.locator("#table thead").get_by_role("button", name=name, exact=True)


def edges_of(page) -> list[tuple[int, int]]:
    return [tuple(row) for row in page.eval_on_selector_all(
        "#table tbody tr", "rows => rows.map(r => [...r.querySelectorAll('button')].map(b => Number(b.dataset.node)))")]


def test_node_cells_are_the_graph(graph, table):
    nodes = graph.nodes
    assert table.locator("#table thead button").evaluate_all("all => all.map(b => b.dataset.column)") == COLUMNS
    order = np.argsort(-nodes.influence, kind="stable")[:PAGE].tolist()
    assert shown(table) == order
    total = max(nodes.influence.sum(), graph.header.settings["unpruned"]["influence"])
    for node, row in zip(order, cells(table), strict=True):
        of = dict(zip(COLUMNS, row, strict=True))
        kind = nodes.kind[node]
        assert of["id"] == graph.node_ids[node]
        assert of["kind"] == {"embedding": "token"}.get(kind, kind)
        assert of["layer"] == {"embedding": "emb", "logit": "out"}.get(kind, f"L{nodes.layer[node]}")
        assert of["position"] == ("all" if nodes.position[node] < 0 else str(nodes.position[node]))
        assert read_number(of["influence"]) == pytest.approx(nodes.influence[node], rel=6e-4)
        assert is_share(of["share"], nodes.influence[node] / total)
        if kind in ("feature", "logit"):
            assert read_number(of["activation"]) == pytest.approx(nodes.value[node], rel=6e-4)
        else:
            assert of["activation"] == ""


def test_nodes_are_sorted_by_a_click_and_the_other_way_by_another(graph, table):
    nodes = graph.nodes
    keys = {"id": np.array([x.lower() for x in graph.node_ids]), "position": nodes.position, "layer": nodes.layer,
            "activation": np.where(np.isin(nodes.kind, ["feature", "logit"]), nodes.value, np.nan),
            "influence": nodes.influence, "label": None}
    for name, key in keys.items():
        directions = []
        for _ in range(2):
            head(table, name).press("Enter")
            column = table.locator(f"#table th:has([data-column='{name}'])")
            directions.append(column.get_attribute("aria-sort"))
            assert table.locator("#table th[aria-sort=none]").count() == len(COLUMNS) - 1
            assert table.evaluate("document.activeElement.dataset.column") == name
            texts = [row[5].lower() for row in cells(table)]
            values = texts if key is None else [key[node] for node in shown(table) if key[node] == key[node]]
            assert values == sorted(values, reverse=directions[-1] == "descending"), name
        assert set(directions) == {"ascending", "descending"}, name


def test_edges_and_those_of_the_selected_node(graph, table):
    table.get_by_role("button", name="Edges", exact=True).click()
    weights, rows = graph.weights, np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    assert table.locator(".where").inner_text() == f"1–{PAGE} of {graph.n_edges:,}"
    head(table, "weight").click()
    order = np.argsort(-weights, kind="stable")[:PAGE]
    assert edges_of(table) == list(zip(graph.indices[order].tolist(), rows[order].tolist(), strict=True))
    for edge, row in zip(order, cells(table), strict=True):
        of = dict(zip(EDGES, row, strict=True))
        assert read_number(of["weight"]) == pytest.approx(weights[edge], rel=6e-4)
        if graph.nodes.kind[graph.indices[edge]] != "constant":
            assert is_share(of["share"], abs(weights[edge]) / graph.nodes.input_abs[rows[edge]])
    only = table.get_by_label("of the selected node only")
    assert only.is_disabled()
    node = edges_of(table)[0][0]
    table.locator("#table tbody button").first.click()
    assert selected(table, graph) == node
    only.check()
    mine = np.flatnonzero((rows == node) | (graph.indices == node))
    assert sorted(edges_of(table)) == sorted(zip(graph.indices[mine].tolist(), rows[mine].tolist(), strict=True))


def test_pages_lead_through_all_rows(graph, table):
    seen = shown(table)
    table.get_by_role("button", name="Next page").click()
    assert table.locator(".where").inner_text() == f"{PAGE + 1}–{2 * PAGE} of {len(graph)}"
    while table.get_by_role("button", name="Next page").is_enabled():
        seen += shown(table)
        table.get_by_role("button", name="Next page").click()
    seen += shown(table)
    assert sorted(seen) == list(range(len(graph)))
    table.get_by_role("button", name="First page").click()
    assert shown(table) == seen[:PAGE]


def test_search_and_pruning_filter_the_table(graph, table, open_page):
    table.get_by_label("Search").fill("kind:error")
    errors = set(np.flatnonzero(graph.nodes.kind == "error").tolist())
    assert set(shown(table)) == errors
    table.get_by_role("button", name="Edges", exact=True).click()
    assert table.locator(".where").inner_text().endswith(f"of {np.isin(graph.indices, list(errors)).sum():,}")
    table.get_by_label("Search").fill("no such thing")
    assert "finds nothing" in table.locator("#table tbody").inner_text()
    assert table.locator(".where").inner_text() == "0 rows"
    page = open_page(graph, "left=table&nodes=0.3&edges=0.5")
    assert 0 < len(shown(page)) < PAGE


def test_rows_are_selected_by_click_and_keyboard(graph, table):
    rows = shown(table)
    table.locator("#table tbody tr").nth(3).locator("td").nth(1).click()
    assert selected(table, graph) == rows[3]
    assert table.locator("#table [aria-current=true]").get_attribute("data-node") == str(rows[3])
    table.locator("#table tbody button").first.focus()
    for _ in range(2):
        table.keyboard.press("ArrowDown")
    table.keyboard.press("Enter")
    assert selected(table, graph) == rows[2]
    assert table.locator("#table tr.selected").count() == 1
    assert table.locator("#table tbody button[tabindex='0']").count() == 1
    table.keyboard.press("p")
    assert in_hash(table)["pins"] == [graph.node_ids[rows[2]]]
    assert [row[-1] for row in cells(table)].index("pinned") == 2


def test_csv_has_every_row_with_full_numbers_and_no_formulas(graph, open_page, tmp_path):
    label = graph.nodes.label.copy()
    strings = [*HOSTILE, "=1+1", "+x", "-x", "@x", 'say "a", b', "two\nlines", "\tx"]
    label[:len(strings)] = strings
    hostile = replace(graph, nodes=replace(graph.nodes, label=label))
    page = open_page(hostile, "left=table")
    rows = {row["id"]: row for row in downloaded(page, tmp_path)}
    assert len(rows) == len(graph)
    for i, node in enumerate(hostile.node_ids):
        assert np.float32(rows[node]["influence"]) == graph.nodes.influence[i]
        assert rows[node]["layer"] == str(graph.nodes.layer[i])
    for node, text in zip(hostile.node_ids, strings, strict=False):
        kept = text.replace("\0", "␀").replace("\ud800", "\ufffd")
        assert rows[node]["label"] == ("'" + kept if text[:1] in ("=", "+", "-", "@", "\t") and text else kept)
    page.get_by_role("button", name="Edges", exact=True).click()
    edges = downloaded(page, tmp_path)
    weights = {(row["source id"], row["target id"]): np.float32(row["weight"]) for row in edges}
    targets = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    ids = hostile.node_ids
    assert weights == {(ids[s], ids[t]): w for s, t, w in zip(graph.indices, targets, graph.weights, strict=True)}
    assert page.evaluate("[window.__pwned, document.images.length]") == [None, 0]


def downloaded(page, folder) -> list[dict[str, str]]:
    with page.expect_download() as waiting:
        page.get_by_role("button", name="CSV").click()
    waiting.value.save_as(folder / "table.csv")
    return list(csv.DictReader(io.StringIO((folder / "table.csv").read_bytes().decode("utf-8"), newline="")))


def test_copy_gives_tab_separated_rows(graph, open_page):
    page = open_page(graph, "left=table")
    page.evaluate("""() => { Object.defineProperty(navigator, "clipboard", { configurable: true,
      value: { writeText: async (text) => { window.copied = text; } } }) }""")
    page.get_by_role("button", name="Copy").click()
    page.wait_for_function("() => window.copied")
    assert page.locator("#table .hint").inner_text() == f"Copied {len(graph)} rows"
    rows = list(csv.DictReader(io.StringIO(page.evaluate("window.copied"), newline=""), delimiter="\t"))
    assert [row["id"] for row in rows] == [graph.node_ids[i] for i in np.argsort(-graph.nodes.influence, kind="stable")]
    page.evaluate("""() => { navigator.clipboard.writeText = () => Promise.reject(new Error("no"));
      document.execCommand = (name) => (window.old = [name, document.activeElement.value]) && true; }""")
    page.get_by_role("button", name="Copy").click()
    page.wait_for_function("() => window.old")
    assert page.evaluate("window.old[1] === window.copied.replaceAll('\\r', '')")  # as text areas have it


def test_long_labels_do_not_widen_the_page(graph, open_page):
    label = graph.nodes.label.copy()
    label[:] = "W" * 3000
    page = open_page(replace(graph, nodes=replace(graph.nodes, label=label)), "left=table")
    for width in (1280, 800):
        resize(page, width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("#table td.label").first.bounding_box()["width"] < 450
    resize(page, 1280)


def test_a_hundred_thousand_edges_stay_usable(open_page):
    large = sample_graph(7800, seed=3)
    assert large.n_edges > 95_000
    page = open_page(large, "left=table")
    page.get_by_role("button", name="Edges", exact=True).click()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # its own time, whatever else the machine does

    def busy() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(item["value"] for item in metrics if item["name"] == "TaskDuration")

    for name in ("weight", "source", "share", "target at"):
        took = []
        for _ in range(4):  # the first time ranks of names are made; the machine's noise only adds
            before = busy()
            page.evaluate("name => { document.querySelector(`[data-column='${name}']`).click();"
                          "document.getElementById('table').offsetHeight }", name)
            took.append(busy() - before)
        assert min(took) < 0.2, (name, took)  # seconds; 0.07 where nothing else uses the core's caches, twice that else
    session.detach()
