"""The page of a comparison in a real browser: what is lit, told and drawn, and that foreign strings stay text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from page_samples import HOSTILE, sample_graph
from page_tabs import Watched, resize
from playwright.sync_api import Browser, Page
from random_graphs import random_cards

from circuits.comparing import page_content
from circuits.comparing.page import render, write_page
from circuits.comparing.page_content import by_cards, flows, nearest
from circuits.errors import InputError
from circuits.graphs.compare import Comparison, compare
from circuits.graphs.compare_words import pair_sentences
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.supernode_flow import Supernodes

LIT = """([side, nodes]) => nodes.map((node) => {
  const shape = document.getElementById(`node-${side}-${node}`);
  shape.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  const lit = (role) => [...document.querySelectorAll(`.node.${role}`)].map((found) => found.id);
  return [lit("selected"), lit("match")]; })"""


def hostile_graph() -> AttributionGraph:
    """Labels, tokens, names, prompt and promoted tokens are hostile."""
    n = len(sample_graph(90))
    graph = sample_graph(90, labels=[HOSTILE[i % len(HOSTILE)] for i in range(n)])
    tokens = [HOSTILE[i % len(HOSTILE)] for i in range(len(graph.header.tokens))]
    cards = random_cards(graph)
    cards = replace(cards, texts={token: f"{HOSTILE[token % len(HOSTILE)][:50]}{token}" for token in cards.texts})
    header = replace(graph.header, token_texts=tokens, prompt=HOSTILE[1], transcoders=HOSTILE[0])
    return replace(graph, header=header, cards=cards)


def without(graph: AttributionGraph, one_of: int, model: str) -> AttributionGraph:
    """Every so many-th feature left out."""
    features = np.flatnonzero(graph.nodes.kind == "feature")
    keep = np.ones(len(graph), bool)
    keep[features[::one_of]] = False
    left = graph.subgraph(keep)
    return replace(left, header=replace(left.header, model=model))


@pytest.fixture(scope="module")
def found() -> Comparison:
    whole = hostile_graph()
    return compare([without(whole, 4, "<b>first"), without(whole, 7, "second</script><i>"), without(whole, 3, "third")])


@pytest.fixture(scope="module")
def opened(found: Comparison, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page; at the end there must have been no error and no request but the file."""
    path = tmp_path_factory.mktemp("compared") / "page.html"
    write_page(found, path)
    tab = Watched(browser)
    tab.page.set_default_timeout(120_000)  # plotly takes long to start where much else runs
    page = tab.open(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    yield page
    assert tab.problems == []
    assert tab.requests == {path.as_uri()}
    tab.page.close()


@pytest.fixture
def page(opened: Page) -> Page:
    """The page as it opens, with nothing selected."""
    if opened.input_value("#pair") != "0":
        opened.select_option("#pair", "0")
    opened.focus("#sides svg")
    opened.keyboard.press("Escape")
    return opened


def drawn(found: Comparison, side: int) -> list[int]:
    return np.flatnonzero(found.graphs[side].side.pruned.nodes.kind != "constant").tolist()


def test_selecting_a_node_lights_exactly_its_match(found: Comparison, page: Page) -> None:
    forth = found.pairs[0].alignment.partners()
    back = {b: a for a, b in forth.items()}
    assert len(found.pairs[0].alignment.matches) > 10
    for side, partners in ((0, forth), (1, back)):
        nodes = drawn(found, side)
        assert set(nodes) - set(partners)  # some have none
        lit = page.evaluate(LIT, [side, nodes])
        for node, (selected, match) in zip(nodes, lit, strict=True):
            assert selected == [f"node-{side}-{node}"]
            assert match == ([f"node-{1 - side}-{partners[node]}"] if node in partners else [])


def test_unmatched_features_are_hollow_and_say_what_comes_nearest(found: Comparison, page: Page) -> None:
    pair = found.pairs[0]
    sides = [found.graphs[i].side.pruned for i in (0, 1)]
    near = nearest(*by_cards(*sides), pair.alignment.window)
    for side in (0, 1):
        unmatched = set(drawn(found, side)) - {pairs[side] for pairs in pair.alignment.partners().items()}
        hollow = page.eval_on_selector_all(
            f".side:nth-child({side + 1}) .node.unmatched", "shapes => shapes.map(shape => Number(shape.dataset.node))")
        assert set(hollow) == unmatched
    listed = pair.alignment.unmatched[0].tolist()
    assert page.eval_on_selector_all("#unmatched section:first-child [data-unmatched]",
                                     "all => all.map(one => Number(one.dataset.unmatched))") == listed
    with_near = next(node for node in listed if node in near[0])
    page.evaluate(LIT, [0, [with_near]])
    assert "no match" in page.inner_text("#card")
    candidate = page.locator("#card [data-nearest]")
    node, alike = near[0][with_near]
    assert candidate.get_attribute("data-nearest") == str(node)
    assert f"{alike:.3f}" in page.inner_text("#card")
    candidate.click()
    assert page.eval_on_selector_all(".node.selected", "all => all.map(one => one.id)") == [f"node-1-{node}"]


def test_the_nearest_is_the_most_alike_of_its_position_less_what_depth_takes() -> None:
    graphs = [sample_graph(200, seed) for seed in (1, 2)]
    sides = by_cards(*(replace(graph, cards=random_cards(graph, seed)) for seed, graph in enumerate(graphs)))
    best = nearest(*sides, 0.25)
    for one, two, near in ((*sides, best[0]), (*sides[::-1], best[1])):
        apart = 0
        for row, node in enumerate(one.nodes.tolist()):
            away = np.abs(one.places.depth[row] - two.places.depth)
            allowed = (two.places.position == one.places.position[row]) & (away <= 0.25)
            score = np.where(allowed, one.scores(two, np.array([row]))[0] * (1 - 2 * away), 0.0)
            assert near.get(node, (0, 0.0))[1] == pytest.approx(score.max(initial=0.0), rel=1e-5)
            if node in near:
                assert two.nodes[score.argmax()] == near[node][0]
                apart += away[score.argmax()] > 0
        assert apart > 20


def test_the_card_tells_what_the_alignment_says(found: Comparison, page: Page) -> None:
    match = next(match for match in found.pairs[0].alignment.matches if match.shared)
    page.evaluate(LIT, [1, [match.second]])
    facts = dict(page.eval_on_selector_all(
        "#card .between .facts div", "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"))
    assert float(facts["score"]) == pytest.approx(match.score, abs=5e-4)
    assert float(facts["a match needs"]) == pytest.approx(found.pairs[0].alignment.limit, abs=5e-4)
    assert float(facts["confidence"].rstrip("%")) == pytest.approx(100 * match.confidence, abs=0.05)
    assert float(facts["ahead of the next best"].replace("−", "-")) == pytest.approx(match.margin, abs=5e-4)
    assert page.locator("#card .between .chips li").count() == len(match.shared)
    assert page.locator("#card .own").nth(0).locator(".chips .shared").count() >= 1


def test_keys_walk_and_go_to_the_match(found: Comparison, page: Page) -> None:
    partners = found.pairs[0].alignment.partners()
    page.keyboard.press("ArrowDown")
    logit = page.get_attribute(".node.selected", "id")
    assert page.locator(f"#{logit}.logit").count() == 1
    met = set()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft", "ArrowDown", "ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
        met.add(page.get_attribute(".node.selected", "id"))
    assert len(met) >= 4
    assert all(node.startswith("node-0-") for node in met)
    first, second = next(iter(partners.items()))
    page.evaluate(LIT, [0, [first]])
    page.focus("#sides svg")
    page.keyboard.press("m")
    assert page.get_attribute(".node.selected", "id") == f"node-1-{second}"
    assert page.get_attribute(".node.match", "id") == f"node-0-{first}"
    page.keyboard.press("Escape")
    assert page.locator(".node.selected, .node.match").count() == 0


def read(text: str) -> float | None:
    return None if text == "–" else float(text.replace(",", "").replace("−", "-"))


def rows(page: Page, table: str) -> dict[str, list[str]]:
    return dict(page.eval_on_selector_all(f"{table} tbody tr", "rows => rows.map(row => [row.dataset.name, "
                                          "[...row.querySelectorAll('td')].map(cell => cell.textContent)])"))


def test_numbers_are_those_of_the_comparison(found: Comparison, page: Page) -> None:
    numbers = found.numbers()
    shown = rows(page, "[data-pair='0'] .measures")
    assert list(shown) == list(numbers["pairs"][0]["measures"])
    for name, told in numbers["pairs"][0]["measures"].items():
        has_null = told["chance"] is not None
        for text, value in zip(shown[name], (told["value"], told["chance"], told["limit"],
                                             told["p"] if has_null else None), strict=False):
            assert read(text) == (None if value is None else pytest.approx(value, abs=6e-4))
        assert shown[name][4] == ({True: "yes", False: "no"}[told["agrees"]] if has_null else "–")
    scores = rows(page, "#scores")
    for side, graph in enumerate(numbers["graphs"]):
        for name, value in [*graph["scores"].items(), *((f"ends.{end}", x) for end, x in graph["ends"].items()),
                            ("decided.half", graph["decided"]["half"]), ("steps", graph["mean_steps_without_errors"])]:
            assert read(scores[name][side]) == (None if value is None else pytest.approx(value, rel=0.06, abs=6e-4))
    matches = numbers["pairs"][0]["alignment"]["matches"]
    cells = page.eval_on_selector_all("#matches tbody tr", "rows => rows.map(row => [Number(row.dataset.match), "
                                      "row.cells[4].textContent, row.cells[5].textContent])")
    ids = found.graphs[0].side.pruned.node_ids
    assert [ids[node] for node, _, _ in cells] == [match["first"] for match in matches]
    assert [float(score) for _, score, _ in cells] == pytest.approx([match["score"] for match in matches], abs=6e-4)
    sentences = page.locator(".words[data-pair='0'] li").all_text_contents()
    assert [re.sub(r"\s", " ", told) for told in sentences] == [
        re.sub(r"\s", " ", told).encode("utf-8", "replace").decode() for told in pair_sentences(found, found.pairs[0])]


def test_a_click_on_a_head_puts_matches_in_another_order(page: Page) -> None:
    head = page.locator("#matches th").nth(6)
    order = []
    for _ in range(2):
        head.locator("button").click()
        cells = page.locator("#matches tbody td:nth-child(7)").all_text_contents()
        order.append([float(text.strip("<%")) for text in cells])
    assert order[0] == sorted(order[0], reverse=True)
    assert order[1] == sorted(order[1])
    assert order[0][0] > order[0][-1]
    page.locator("#matches tbody button").first.click()
    match = page.get_attribute("#matches tbody tr", "data-match")
    assert page.get_attribute(".node.selected", "id") == f"node-0-{match}"


def test_another_pair_shows_its_own_graph_and_matches(found: Comparison, page: Page) -> None:
    page.select_option("#pair", "1")
    name = found.graphs[2].name
    assert page.locator("#sides h3 bdi").all_text_contents() == [found.graphs[0].name, name]
    first, second = next(iter(found.pairs[1].alignment.partners().items()))
    assert page.evaluate(LIT, [0, [first]]) == [[[f"node-0-{first}"], [f"node-1-{second}"]]]
    assert page.locator("#matches tbody tr").count() == len(found.pairs[1].alignment.matches)
    assert page.locator(".words:visible").count() == page.locator(".measures:visible").count() == 1
    page.wait_for_function("""() => { // plotly takes a moment to fit a figure into what was hidden
        const width = shape => document.querySelector(shape).getBoundingClientRect().width;
        return Math.abs(width("#tokens_1") - width("#tokens_1 .main-svg")) <= 2; }""")


def test_figures_hold_the_numbers(found: Comparison, page: Page) -> None:
    numbers = found.numbers()["graphs"]
    data = page.evaluate("Object.fromEntries([...document.querySelectorAll('.plot')].map(plot => [plot.id, "
                         "plot.data.map(({ y, z, name }) => ({ y, z, name }))]))")
    grids = [np.array(graph["depth_grid"]) for graph in numbers]
    np.testing.assert_allclose(data["places_first_0"][0]["z"], grids[0], atol=1e-6)
    np.testing.assert_allclose(data["places_difference_1"][0]["z"], grids[2] - grids[0], atol=1e-6)
    np.testing.assert_allclose(data["tokens_0"][1]["y"], numbers[1]["token_influence"], atol=1e-6)
    cumulative = np.array(numbers[0]["decided"]["cumulative"])
    np.testing.assert_allclose(data["decided_0"][0]["y"], cumulative / cumulative[-1], rtol=1e-5)
    labels = page.locator("#tokens_0 .xtick").all_text_contents()
    assert any("<script>" in label for label in labels)  # as text
    assert "reading_0" not in data  # no model was opened
    assert any("<b>first" in text for text in page.locator("#tokens_0 .legendtext").all_text_contents())


def test_hostile_strings_are_text(found: Comparison, page: Page) -> None:
    for side in (0, 1):
        page.evaluate(LIT, [side, drawn(found, side)[::3]])
        page.hover(f"#node-{side}-{found.pairs[0].alignment.matches[0].first if side == 0 else drawn(found, 1)[0]}",
                   force=True)
    assert page.evaluate("window.__pwned") is None
    assert page.locator("img, #sides i, h1 b, h1 i").count() == 0
    outside = re.sub(r'<script type="application/json"[^>]*>.*?</script>', "", render(found), flags=re.DOTALL)
    assert "<script>window.__pwned" not in outside
    assert "<img src=x" not in outside
    assert "second</script>" not in outside


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_scrolls_sideways_and_columns_are_shared(page: Page, width: int) -> None:
    resize(page, width)
    # plotly takes a moment to fit figures into another width
    page.wait_for_function("width => document.documentElement.scrollWidth === width", arg=width)
    tokens = page.eval_on_selector_all("#sides svg", "all => all.map(svg => [...svg.querySelectorAll('.axes .token')]"
                                       ".map(text => text.getAttribute('x')))")
    assert tokens[0] == tokens[1]
    resize(page, 1280)


def test_flows_between_the_same_ends_are_shared() -> None:
    names, members = ["a", "b"], [np.array([0]), np.array([1])]
    one, two = np.zeros((5, 5)), np.zeros((5, 5))  # a, b, outputs, two tokens
    one[0, 3], one[2, 0], one[1, 4] = 0.5, 0.3, 0.2
    two[1, 3], two[2, 1], two[1, 0] = 0.4, 0.5, 0.1
    first, second = flows(Supernodes(names, members, False, one), Supernodes(names, members, False, two), [(0, 1)])
    assert first == [(0, 3, 0.5, 0.4), (2, 0, 0.3, 0.3), (1, 4, 0.2, 0.0)]
    assert second == [(2, 1, 0.5, 0.3), (1, 3, 0.4, 0.4), (1, 0, 0.1, 0.0)]


def test_shared_flow_adds_up_to_the_measure(found: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_content, "LEAST_FLOW", 1e-12)  # else flows too small to be drawn are missing
    pair = found.pairs[0]
    assert 0.05 < pair.flow.overlap.value < 0.999
    for side in flows(found.graphs[0].supernodes, found.graphs[1].supernodes, pair.flow.pairs):
        assert sum(flow[2] for flow in side) == pytest.approx(1, abs=1e-5)
        assert sum(flow[3] for flow in side) == pytest.approx(pair.flow.overlap.value, abs=1e-5)


def test_a_place_that_cannot_be_written_is_refused(found: Comparison, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_page(found, tmp_path / "missing" / "page.html")
