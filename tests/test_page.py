"""The exported page in a real browser: what it shows equals the graph's numbers, and hostile text stays text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from page_samples import HOSTILE
from page_tabs import centre, go_to

from circuits.errors import InputError
from circuits.graphs import page as page_module
from circuits.graphs.graph import AttributionGraph, Header, NodeTable
from circuits.graphs.page import MAX_NODES, content, render, write


def test_header_tells_what_was_traced(graph, page):
    assert page.title() == "Fact: Michael Jordan plays the sport of · attribution graph"
    assert page.locator("#prompt bdi").all_text_contents() == [
        "<bos>", "Fact", ":", "␣Michael", "␣Jordan", "␣plays", "␣the", "␣sport", "␣of", "↵"]
    facts = dict(zip(page.locator("#facts dt").all_text_contents(), page.locator("#facts dd").all_text_contents(),
                     strict=True))
    assert facts == {
        "Model": "gemma-3-270m", "Transcoders": "bundled (CLT)", "Replacement": "0.61", "Completeness": "0.80",
        "Unexplored": "4.8%", "Conservation": "3.1e-7",
        "Pruned": "nodes 0.8, edges 0.98 of 2,481 nodes, 1,234,567 edges",
        "Size": f"{len(graph)} nodes, {graph.n_edges:,} edges", "Reconstruction error": "0.19"}
    assert page.locator("#warnings").is_hidden()


def test_warnings_name_poorly_reconstructed_layers(graph, open_page):
    header = replace(graph.header, warnings=["layer 3 looks odd"], reconstruction=[0.2, 0.7, 1.25, float("nan")])
    page = open_page(replace(graph, header=header))
    first, second = page.locator("#warnings li").all_text_contents()
    assert first == "layer 3 looks odd"
    assert "L1 0.70, L2 1.25 (worse than predicting zero)." in second
    assert "L0" not in second


def test_content_security_policy_stops_other_scripts(graph, page, tab):
    html = render(graph)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)[1]
    assert policy.startswith("default-src &#39;none&#39;; script-src &#39;sha256-")
    assert "unsafe" not in policy
    assert html.index("Content-Security-Policy") < html.index("<style")
    page.evaluate("""() => { const script = document.createElement("script");
      script.textContent = "window.__pwned = 1"; document.body.append(script); }""")
    page.evaluate("fetch('https://example.invalid/').catch(() => 0)")
    assert page.evaluate("window.__pwned") is None
    assert len(tab.problems) >= 2
    assert all("Content Security Policy" in problem or "violates" in problem for problem in tab.problems)
    tab.problems.clear()


def test_hostile_text_is_shown_and_does_nothing(graph, open_page):
    labels = np.array([HOSTILE[i % len(HOSTILE)] for i in range(len(graph))], dtype=object)
    header = replace(graph.header, prompt="".join(HOSTILE), token_texts=HOSTILE[:10], model=HOSTILE[0],
                     transcoders=HOSTILE[1], warnings=list(HOSTILE), generator=HOSTILE[1],
                     settings={"target": HOSTILE[1], "versus": HOSTILE[6], HOSTILE[0]: HOSTILE[1]},
                     scores={HOSTILE[0]: 0.5, "replacement": float("nan")})
    page = open_page(replace(graph, nodes=replace(graph.nodes, label=labels), header=header))
    for node in range(len(HOSTILE)):
        go_to(page, graph, node)
    page.keyboard.press("Escape")
    for query in HOSTILE[:3]:
        page.get_by_label("Search").fill(query)
    page.get_by_label("Search").fill("")
    x, y = centre(page, "emb", 3)
    page.mouse.move(x, y)
    assert page.locator("#preview").is_visible()
    assert page.evaluate("window.__pwned") is None
    assert page.locator("img").count() == 0
    assert page.evaluate("document.scripts.length") == 2  # the libraries and the page's own: the data are gone
    prompt = page.locator("#prompt bdi").all_text_contents()
    assert prompt[0] == HOSTILE[0]
    assert prompt[2] == "⟨U+202E⟩right␣to␣left⟨U+202C⟩"
    assert prompt[3:6] == [HOSTILE[3], HOSTILE[4], "a⟨NUL⟩b"]
    assert prompt[9] == "⟨U+2028⟩⟨U+2029⟩"
    assert "⟨U+D800⟩" in page.locator("#warnings").inner_text()
    assert page.evaluate("getComputedStyle(document.querySelector('#prompt bdi')).unicodeBidi") == "isolate"
    assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_light_and_dark_follow_the_system(page):
    brightness = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colours = page.evaluate("(({ backgroundColor, color }) => [backgroundColor, color])"
                                "(getComputedStyle(document.body))")
        brightness[scheme] = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
    assert brightness["light"][0] > 600 > 200 > brightness["light"][1]
    assert brightness["dark"][1] > 600 > 200 > brightness["dark"][0]
    page.emulate_media(color_scheme="light")


def test_page_keeps_the_edges_with_the_largest_shares(graph, monkeypatch):
    monkeypatch.setattr(content, "MAX_EDGES", 100)
    _, columns = content.page_content(graph)
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    share = np.abs(graph.weights) / graph.nodes.input_abs[rows]
    best = np.sort(np.argsort(-share)[:100])
    assert columns["edges.indices"].tolist() == graph.indices[best].tolist()
    assert np.repeat(np.arange(len(graph)), np.diff(columns["edges.indptr"])).tolist() == rows[best].tolist()


def test_headers_of_others_become_plain_json(graph):
    settings = {"coverage": np.float32(0.5), "rows": (1, np.int64(2)), "nan": float("inf"), "path": Path("x"), 3: None}
    values, _ = content.page_content(replace(graph, header=replace(graph.header, settings=settings)))
    assert values["header"]["settings"] == {"coverage": 0.5, "rows": [1, 2], "nan": None, "path": "x", "3": None}


def test_an_empty_graph_opens(open_page):
    nothing = NodeTable.build(0, kind=np.array([], dtype="<U9"))
    none = np.array([], dtype=np.int32)
    empty = AttributionGraph(nothing, np.zeros(1, dtype=np.int64), none, none.astype(np.float32), none,
                             none.astype(np.float32), Header())
    page = open_page(empty)
    page.focus("#overlay")
    page.keyboard.press("ArrowUp")
    assert page.title() == "Attribution graph"


def test_write_replaces_whole_files_or_raises(graph, tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")
    write(graph, path)
    assert path.read_text(encoding="utf-8") == render(graph)
    for unusable in (tmp_path / "missing" / "page.html", tmp_path, tmp_path / "nul\0.html"):
        with pytest.raises(InputError, match="cannot write"):
            write(graph, unusable)
    monkeypatch.setattr(page_module, "MAX_NODES", 10)
    with pytest.raises(InputError, match=f"graph has {len(graph)} nodes, a page shows at most 10: prune"):
        write(graph, path)
    assert MAX_NODES > 10
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
