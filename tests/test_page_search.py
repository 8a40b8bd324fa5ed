"""The search: every way to ask finds what Python finds, in order of influence, and says what matched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from page_samples import HOSTILE, TOKENS
from page_tabs import selected, wait_until_listed
from random_graphs import random_cards

from circuits.graphs.graph import AttributionGraph


def found(page, query: str) -> list[int]:
    """What the search finds; the panel must list it, in the same order, as far as it goes."""
    page.get_by_label("Search").fill(query)
    wait_until_listed(page)
    while page.locator("#panel .all").count():
        page.locator("#panel .all").click()
    return page.eval_on_selector_all("#panel button[data-node]", "rows => rows.map(row => Number(row.dataset.node))")


def by_influence(graph: AttributionGraph, mask) -> list[int]:
    return sorted(np.flatnonzero(mask).tolist(), key=lambda node: -graph.nodes.influence[node])


def test_search_filters_by_label(graph, page):
    wanted = [i for i, label in enumerate(graph.nodes.label) if "basketball" in label.lower()]
    assert sorted(found(page, "BasketBall")) == wanted
    assert page.locator("#found").inner_text() == f"{len(wanted)} found"
    page.keyboard.press("Enter")
    assert selected(page, graph) == max(wanted, key=lambda i: graph.nodes.influence[i])
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert page.get_by_label("Search").input_value() == ""
    assert found(page, "no such label") == []
    assert "Nothing found" in page.locator("#panel").inner_text()


def test_fields_and_numbers(graph, page):
    nodes = graph.nodes
    kind, layer, position = nodes.kind, nodes.layer, nodes.position
    inside = ~np.isin(kind, ["embedding", "logit"])
    feature = int(np.flatnonzero(kind == "feature")[7])
    number, its_layer = int(nodes.feature[feature]), int(layer[feature])
    token = np.array([" Jordan" in TOKENS[p] if p >= 0 else False for p in position])
    colon = np.array(["a colon" in text for text in nodes.label])
    label = np.array(["game" in text for text in nodes.label])
    expected = {
        "layer:12": inside & (layer == 12), "layer:L12": inside & (layer == 12),
        "layer:3-5": inside & (layer >= 3) & (layer <= 5),
        "layer:emb": kind == "embedding", "layer:out": kind == "logit", "position:4": position == 4,
        "pos:4": position == 4,
        "pos:2-3": (position == 2) | (position == 3), "position:all": position == -1, "kind:error": kind == "error",
        "kind:features": kind == "feature", "KIND:token": kind == "embedding", "token:jordan": token,
        'token:" Jordan"': token,
        "token:␣Jordan": token, f"feature:{number}": (kind == "feature") & (nodes.feature == number),
        f"feature:{its_layer}/{number}": (layer == its_layer) & (nodes.feature == number),
        f"{its_layer}/{number}": (layer == its_layer) & (nodes.feature == number),
        "game layer:12": label & inside & (layer == 12),
        'layer:12 kind:feature "a colon"': (layer == 12) & (kind == "feature") & colon,
        "kind:error layer:": kind == "error", "layer:twelve": np.zeros(len(graph), bool),
        "position:-1": np.zeros(len(graph), bool),
        "↵": (kind == "embedding") & (position == 9),
    }
    for query, mask in expected.items():
        assert found(page, query) == by_influence(graph, mask), query


def test_promoted_tokens_and_what_matched(graph, open_page):
    cards = random_cards(graph)
    page = open_page(replace(graph, cards=cards))
    promotes = np.zeros(len(graph), bool)
    for i in np.flatnonzero(graph.nodes.kind == "feature"):
        row = cards.find(int(graph.nodes.layer[i]), int(graph.nodes.feature[i]))
        tokens = cards.promoted.token[cards.promoted.start[row]:cards.promoted.start[row + 1]] if row >= 0 else []
        promotes[i] = 117 in tokens
    assert promotes.sum() > 3
    assert found(page, "promotes:t117") == by_influence(graph, promotes)
    assert set(page.locator("#panel .why").all_text_contents()) == {'promotes "␣t117"'}
    assert found(page, "t117") == by_influence(graph, promotes)
    assert found(page, "t117 kind:feature layer:0-17") == by_influence(graph, promotes)
    why = page.locator("#panel .why").first.inner_text().split(" · ")
    assert why[0] == 'promotes "␣t117"'
    assert why[1] == "feature"
    assert why[2].startswith("layer L")
    assert found(page, "token:sport")
    assert set(page.locator("#panel .why").all_text_contents()) == {'token "␣sport"'}


def test_only_what_is_shown_is_found_and_edited_labels_count(graph, open_page):
    page = open_page(graph, "nodes=0.4")
    few = found(page, "kind:feature")
    assert 0 < len(few) < (graph.nodes.kind == "feature").sum()
    node = few[3]
    page.get_by_label("Search").fill("")
    page.evaluate("([id]) => { location.hash = `node=${id}` }", [graph.node_ids[node]])
    page.wait_for_selector(f"#panel.card[data-node='{node}']")
    page.keyboard.press("F2")
    page.get_by_label("Label", exact=True).fill("quite another name")
    page.keyboard.press("Enter")
    assert found(page, "another name") == [node]


def test_long_lists_open_on_request(page):
    page.get_by_label("Search").fill("e")
    count = int(page.locator("#found").inner_text().split()[0])
    assert count > 200
    wait_until_listed(page)
    assert page.locator("#panel button[data-node]").count() == 100
    page.get_by_role("button", name=f"Show all {count}").click()
    assert page.locator("#panel button[data-node]").count() == count


ODD = [*HOSTILE[:6], *HOSTILE[7:11], ":", '"', "::", 'token:"', "/", "(", "\\", "constructor:x", "__proto__:1"]


def test_hostile_queries_are_only_text(graph, page):
    for query in ODD:
        nodes = found(page, query)
        if query.strip('":\u2028\u2029') not in ("", "token"):  # the others ask for nothing, or not yet
            assert nodes == [i for i in nodes if query.lower() in graph.nodes.label[i].lower()], query
        else:
            assert page.locator("#found").inner_text(), query
        assert page.evaluate("[window.__pwned, document.images.length]") == [None, 0], query


def test_hostile_labels_are_found_as_they_are(graph, open_page):
    label = graph.nodes.label.copy()
    label[20:20 + len(HOSTILE)] = HOSTILE
    page = open_page(replace(graph, nodes=replace(graph.nodes, label=label)))
    assert found(page, '"onerror=window"') == [21]
    assert found(page, '"{{7*7}}"') == [27]
    assert found(page, "\u05e9\u05dc\u05d5\u05dd") == [23]
    assert page.evaluate("[window.__pwned, document.images.length]") == [None, 0]
