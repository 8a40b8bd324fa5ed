"""What the graph does not explain: the page's sums against Python's, and the view with its map in a real browser."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from page_samples import HOSTILE
from page_tabs import is_share, selected
from random_graphs import fed_by_a_constant, random_graph

from circuits.graphs.explain import explain
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.prune import prune_masks
from circuits.graphs.scores import annotate, scores

PARTS = ("tokens", "errors", "pruned", "unexplored", "constants")


def graphs() -> list[AttributionGraph]:
    """Whole graphs, and graphs that lack part of their inputs."""
    kinds = [{}, {"unexpanded": 0.3}, {"shuffle": True, "unexpanded": 0.2, "per_layer": 9}, {"constants": False}]
    made = [annotate(random_graph(seed, **options)) for seed, options in enumerate(kinds)]  # type: ignore[arg-type]
    return [*made, made[2].prune(0.8, 0.8), annotate(fed_by_a_constant()),
            replace(made[0], nodes=replace(made[0].nodes, input_abs=np.full(len(made[0]), np.nan, np.float32)))]


def python_ends(graph: AttributionGraph, start: np.ndarray, kept: np.ndarray) -> dict[tuple[str, int], float]:
    """Shares of ``start`` (N,) by (part, node), over the edges of the mask ``kept`` (E,), from dense matrices."""
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    dense = np.zeros((len(graph), len(graph)))
    np.add.at(dense, (rows, graph.indices), np.abs(graph.weights.astype(np.float64)))
    dense[:, graph.nodes.kind == "constant"] = 0
    total = np.fmax(np.where(graph.nodes.input_abs > 0, graph.nodes.input_abs, 0), dense.sum(1))
    dense[rows[~kept], graph.indices[~kept]] = 0
    share = np.divide(dense, total[:, None], out=np.zeros_like(dense), where=total[:, None] > 0)
    start = start / start.sum()
    mass = np.linalg.solve((np.eye(len(graph)) - share).T, start)
    found: dict[tuple[str, int], float] = {}
    for i, kind in enumerate(graph.nodes.kind):
        part = {"embedding": "tokens", "error": "errors"}.get(str(kind))
        lost = mass[i]
        if part is None and total[i] > 0:
            part, lost = "pruned", mass[i] * (1 - share[i].sum())
        elif part is None:
            part = "unexplored" if kind == "feature" and not graph.nodes.expanded[i] else "constants"
        if lost > 0:
            found[part, i] = lost
    return found


@pytest.mark.parametrize("number", range(7))
def test_ends_are_those_of_python_and_add_up(modules, number):
    graph = graphs()[number]
    modules.open(graph)
    every = np.zeros(len(graph))
    np.add.at(every, graph.target_nodes, graph.target_weights)
    for target in (None, *graph.target_nodes.tolist()):
        start = every if target is None else np.eye(len(graph))[target]
        for shares in (None, (0.6, 0.7)):
            mask = np.ones(graph.n_edges, bool)
            if shares is not None:
                text = modules.value(f"prune(graph, {{ nodes: {shares[0]}, edges: {shares[1]} }}).edges.join('')")
                mask = np.array(list(text)) == "1"
            at = "null" if shares is None else f"prune(graph, {{ nodes: {shares[0]}, edges: {shares[1]} }}).edges"
            found = modules.value(f"endsOf(graph, startOf(graph, {'null' if target is None else target}), {at})")
            expected = python_ends(graph, start, mask)
            assert sum(found[part] for part in PARTS) == pytest.approx(1, abs=1e-9)
            for part in PARTS:
                assert found[part] == pytest.approx(sum(v for (p, _), v in expected.items() if p == part), abs=1e-7)
            places = {(place["part"], place["node"]): place["share"] for place in found["places"]}
            for key in places.keys() | {key for key in expected if key[0] != "tokens"}:
                assert places.get(key, 0) == pytest.approx(expected.get(key, 0), abs=1e-7)


@pytest.mark.parametrize("number", [0, 1, 4, 5])
def test_ends_of_all_a_page_holds_are_the_parts_of_an_explanation(modules, number):
    graph = graphs()[number]
    modules.open(graph)
    for target in graph.target_nodes.tolist():
        found = modules.value(f"endsOf(graph, startOf(graph, {target}))")
        told = explain(graph, target).parts
        assert found["tokens"] == pytest.approx(told.listed + told.other_paths, abs=1e-6)
        for part in PARTS[1:]:
            assert found[part] == pytest.approx(getattr(told, part), abs=1e-6)


def test_constants_are_measured_beside(modules):
    graph = annotate(fed_by_a_constant())
    modules.open(graph)
    assert modules.value("endsOf(graph, startOf(graph))")["constantInput"] == pytest.approx(0.5 * 1.0 / 1.5)


def whole() -> AttributionGraph:
    return annotate(random_graph(4, n_layers=6, n_pos=5, per_layer=12, unexpanded=0.1))


def numbers(page) -> dict[str, str]:
    return dict(page.eval_on_selector_all("#unexplained .parts-list div", "rows => rows.map(r => [r.dataset.part,"
                                          "r.querySelector('dd').textContent])"))


def test_the_view_tells_parts_and_scores_of_what_is_kept(open_page):
    graph = whole()
    for fragment, target, shares in (("", None, None), ("&nodes=0.6&edges=0.8", None, (0.6, 0.8)),
                                     ("&nodes=0.6&edges=0.8&target=", int(graph.target_nodes[1]), (0.6, 0.8))):
        page = open_page(graph, f"right=unexplained{fragment}{'' if target is None else graph.node_ids[target]}")
        start = np.zeros(len(graph))
        np.add.at(start, graph.target_nodes, graph.target_weights)
        edges = np.ones(graph.n_edges, bool) if shares is None else prune_masks(graph, *shares)[1]
        expected = python_ends(graph, start if target is None else np.eye(len(graph))[target], edges)
        shown = numbers(page)
        for part in PARTS:
            assert is_share(shown.get(part, "0.0%"), sum(v for (p, _), v in expected.items() if p == part))
        rows = page.eval_on_selector_all("#unexplained .scores tbody tr", "all => all.map(r => [r.cells[1].textContent,"
                                         "r.cells[2].textContent])")
        assert float(rows[0][0]) == pytest.approx(graph.header.scores["replacement"], abs=6e-4)
        if target is None:
            measured = scores(graph if shares is None else graph.prune(*shares))
            assert [float(row[1]) for row in rows] == pytest.approx(
                [measured["replacement"], measured["completeness"]], abs=6e-4)
        worst = sorted(((v, i) for (p, i), v in expected.items() if p != "tokens"), reverse=True)[:10]
        listed = page.eval_on_selector_all("#unexplained ol button", "all => all.map(b => [Number(b.dataset.node),"
                                           "b.lastElementChild.textContent])")
        assert [node for node, _ in listed] == [i for _, i in worst]
        assert all(is_share(text, share) for (_, text), (share, _) in zip(listed, worst, strict=True))


def cell_share(graph: AttributionGraph, expected: dict[tuple[str, int], float], layer: int | str, position: int,
               parts: tuple[str, ...] = PARTS[1:]) -> float:
    nodes = graph.nodes
    where = nodes.kind == "logit" if layer == "out" else (nodes.layer == layer) & (nodes.kind != "logit")
    return sum(v for (p, i), v in expected.items() if p in parts and where[i] and nodes.position[i] == position)


def test_the_map_is_read_and_used_by_keyboard_and_pointer(open_page):
    graph = whole()
    page = open_page(graph, "right=unexplained&nodes=0.6&edges=0.8")
    start = np.zeros(len(graph))
    np.add.at(start, graph.target_nodes, graph.target_weights)
    expected = python_ends(graph, start, prune_masks(graph, 0.6, 0.8)[1])
    grid = page.get_by_role("grid", name="Lost influence by layer and position")
    assert (grid.get_attribute("aria-rowcount"), grid.get_attribute("aria-colcount")) == ("7", "5")
    cell = grid.get_by_role("gridcell")
    cell.focus()
    for _ in range(8):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    seen: dict[tuple[int | str, int], float] = {}
    layers: list[int | str] = ["out", 5, 4, 3, 2, 1, 0]
    for layer in layers:
        for position in range(5):
            text = cell.get_attribute("aria-label")
            where = "targets" if layer == "out" else f"layer {layer}"
            assert text.startswith(f"{where}, position {position} t{position}: ")
            share = cell_share(graph, expected, layer, position)
            seen[layer, position] = share
            told = text.partition(": ")[2]
            assert told == "nothing lost" if share == 0 else is_share(told.partition(" ")[0], share)
            assert page.locator("#unexplained .told").inner_text() == text
            page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Home")
    assert sum(seen.values()) == pytest.approx(sum(v for (p, _), v in expected.items() if p != "tokens"))
    worst = max(seen, key=lambda key: seen[key])
    empty = next(key for key in seen if seen[key] == 0 and key[0] != "out")
    box = page.locator(".heatmap canvas").bounding_box()
    wide = page.locator(".heatmap .column-names span").first.bounding_box()["width"]

    def click(layer: int | str, position: int) -> None:
        row = 0 if layer == "out" else 6 - int(layer)
        page.mouse.click(box["x"] + 30 + (position + 0.5) * wide, box["y"] + 13 * (row + 0.5))

    click(*worst)
    strongest = max((v, i) for (p, i), v in expected.items()
                    if p != "tokens" and cell_share(graph, {(p, i): v}, *worst) > 0)[1]
    assert selected(page, graph) == strongest
    assert page.evaluate("document.activeElement.closest('#panel') !== null")
    page.locator("#tab-unexplained").click()
    click(*empty)
    assert page.get_by_label("Search").input_value() == f"layer:{empty[0]} position:{empty[1]}"


def test_one_part_can_be_mapped_alone_and_colours_follow_shares(open_page):
    graph = whole()
    page = open_page(graph, "right=unexplained&nodes=0.6&edges=0.8")
    start = np.zeros(len(graph))
    np.add.at(start, graph.target_nodes, graph.target_weights)
    expected = python_ends(graph, start, prune_masks(graph, 0.6, 0.8)[1])
    page.get_by_label("Show").select_option("errors")
    read = """([columns, rows]) => { const canvas = document.querySelector(".heatmap canvas"), d = devicePixelRatio;
      const wide = document.querySelector(".column-names span").getBoundingClientRect().width;
      const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return rows.map((_, r) => columns.map((_, c) => {
        const i = 4 * (Math.round(13 * (r + .5) * d) * width + Math.round((30 + (c + .5) * wide) * d));
        return data[i + 3] * (255 - data[i + 1]); })); }"""
    depth = np.array(page.evaluate(read, [list(range(5)), list(range(7))]), float)
    share = np.array([[cell_share(graph, expected, layer, position, ("errors",)) for position in range(5)]
                      for layer in ("out", 5, 4, 3, 2, 1, 0)])
    assert (depth[share == 0] == depth[share == 0][0]).all()
    assert np.unravel_index(depth.argmax(), depth.shape) == np.unravel_index(share.argmax(), share.shape)
    lost = share > 0
    assert np.corrcoef(np.argsort(np.argsort(depth[lost])), np.argsort(np.argsort(share[lost])))[0, 1] > 0.99


def test_a_prompt_of_a_thousand_tokens_scrolls(open_page):
    graph = whole()
    tokens = [f"t{i}" for i in range(1000)]
    page = open_page(replace(graph, header=replace(graph.header, token_texts=tokens, tokens=list(range(1000)))),
                     "right=unexplained")
    assert page.locator(".column-names span").first.bounding_box()["width"] == 9
    cell = page.locator(".heatmap .cell")
    cell.focus()
    took = page.evaluate("""() => { const before = performance.now();
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "End", bubbles: true }));
      return performance.now() - before; }""")
    assert took < 100
    assert "position 999 t999" in cell.get_attribute("aria-label")
    map_box, cell_box = page.locator(".heatmap").bounding_box(), cell.bounding_box()
    assert map_box["x"] < cell_box["x"] < map_box["x"] + map_box["width"]
    assert page.locator(".heatmap").evaluate("map => map.scrollLeft") > 8000
    assert page.locator(".heatmap canvas").bounding_box()["width"] < 2000
    assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_hostile_tokens_and_labels_stay_text(graph, open_page):
    labels = np.array([HOSTILE[i % len(HOSTILE)] for i in range(len(graph))], dtype=object)
    page = open_page(replace(graph, nodes=replace(graph.nodes, label=labels),
                             header=replace(graph.header, token_texts=HOSTILE[:10])), "right=unexplained")
    for _ in range(12):
        page.locator(".heatmap .cell").press("ArrowRight")
        page.locator(".heatmap .cell").press("ArrowDown")
    assert page.evaluate("window.__pwned") is None
    assert page.locator("#unexplained img, #unexplained script").count() == 0
    assert page.locator("#unexplained .told bdi").count() == 1
    assert page.evaluate("(() => { const e = document.getElementById('unexplained');"
                         "return e.scrollWidth - e.clientWidth })()") == 0


def test_a_file_without_row_totals_says_so(open_page):
    page = open_page(graphs()[6], "right=unexplained")
    assert "does not say how large inputs were before pruning" in page.locator("#unexplained").inner_text()
