"""The page behind a server with a model: steering, heads of an edge and attention scores on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_samples import HOSTILE
from page_tabs import Watched, in_hash, read_number
from playwright.sync_api import Page, expect
from served_folder import Client, served, tiny_source

import circuits
from circuits.graphs import AttributionGraph
from circuits.serve.folder import GraphFolder
from circuits.serve.site import Site

PROMPT = "paris paris x mo x"
NAME = "paris.safetensors"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    source = tiny_source(tmp_path_factory.mktemp("tiny"))
    model = circuits.load_model(source.model, device="cpu")
    graph = circuits.trace(model, circuits.open_transcoders(source.transcoders), PROMPT, coverage=1.0, max_logits=3)
    site = Site(GraphFolder(tmp_path_factory.mktemp("graphs")), source)
    features = [graph.node_ids[i] for i in np.flatnonzero(graph.nodes.kind == "feature")[:4]]
    groups = [["two <b>features</b>", *features[:2]], ["with a constant", graph.node_ids[
        int(np.flatnonzero(graph.nodes.kind == "constant")[0])], features[2]]]
    replace(graph, header=replace(graph.header, supernodes=groups)).save(site.folder.root / NAME)
    return site


@pytest.fixture(scope="module")
def graph(site: Site) -> AttributionGraph:
    return site.folder.load(NAME)[0]


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[Client]:
    with served(site) as client:
        yield client


@pytest.fixture
def open_live(client: Client, tab: Watched) -> Iterator[Callable[[str], Page]]:
    """Opens the graph at the server with a hash; at the end nothing has gone wrong and no request left the server."""
    tab.problems.clear()
    tab.requests.clear()

    def open_(fragment: str = "right=steer", name: str = NAME) -> Page:
        page = tab.open(f"{client.origin}/graphs/{name}#{fragment}")
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_
    assert tab.problems == []
    assert all(url.startswith((client.origin + "/", "about:")) for url in tab.requests)


def feature(graph: AttributionGraph, place: int) -> int:
    return int(np.flatnonzero(graph.nodes.kind == "feature")[place])


def numbers(page: Page, table: str) -> list[list[float]]:
    """The numbers of a table, shares as such."""
    rows = page.locator(f".{table} tbody tr").all()
    return [[read_number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
             for text in row.locator("td").all_inner_texts()] for row in rows]


def steer(page: Page, tokens: int = 0) -> dict[str, Any]:
    """Run; what was sent."""
    page.get_by_label("Continue by").fill(str(tokens))
    with page.expect_response("**/steer") as answer:
        page.get_by_role("button", name="Run").click()
    page.wait_for_function("() => document.querySelector('.steer-said').textContent === ''")
    return json.loads(answer.value.request.post_data or "")


def test_steer_a_node_and_read_predicted_beside_measured(open_live: Callable[..., Page], client: Client,
                                                         graph: AttributionGraph) -> None:
    node = feature(graph, 5)
    page = open_live(f"right=steer&node={graph.node_ids[node]}")
    expect(page.locator("#tab-steer")).to_have_attribute("aria-selected", "true")
    assert page.get_by_role("button", name="Run").is_disabled()
    page.get_by_role("button", name="Add selected").click()
    assert page.get_by_role("button", name="Add selected").is_disabled()
    slider = page.get_by_role("slider")
    expect(slider).to_be_focused()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert page.locator(".steer-rows input[type=number]").input_value() == "-2"
    sent = steer(page, tokens=3)
    assert sent == {"nodes": [{"id": graph.node_ids[node], "multiplier": -2}], "generate": 3, "temperature": 0,
                    "seed": 0}
    expected = client.send("POST", f"/api/graphs/{NAME}/steer", sent).json()
    assert numbers(page, "steer-targets") == [
        pytest.approx([row["predicted"], row["measured"]], rel=1e-3) for row in expected["targets"]]
    assert numbers(page, "steer-tokens") == [
        pytest.approx([row[f"probability{which}"] for which in ("", "_predicted", "_measured")], abs=1e-3)
        for row in expected["tokens"]]
    changes = [row[-1] for row in numbers(page, "steer-features")]
    assert changes == pytest.approx([row["change"] for row in expected["reacting"]], rel=1e-3)
    assert page.locator(".written").all_inner_texts() == [
        expected["texts"][which]["text"] for which in ("unchanged", "steered")]
    inside = [row["id"] for row in expected["reacting"] if row["id"] is not None]
    buttons = page.locator(".steer-features button[data-node]")
    assert [int(at) for at in buttons.evaluate_all("all => all.map(one => one.dataset.node)")] == [
        graph.node_ids.index(node_id) for node_id in inside]
    buttons.first.click()
    assert in_hash(page)["node"] == inside[:1]


def test_supernodes_and_a_node_s_own_row(open_live: Callable[..., Page], graph: AttributionGraph) -> None:
    group, other = graph.header.supernodes
    page = open_live()
    choice = page.get_by_label("Add a supernode")
    assert choice.locator("option").all_inner_texts() == ["Add a supernode…", "two <b>features</b>", "with a constant"]
    choice.select_option(label="two <b>features</b>")
    choice.select_option(label="with a constant")
    page.get_by_role("spinbutton", name="Multiplier of two").fill("3.25")
    page.get_by_role("spinbutton", name="Multiplier of with a constant").fill("-1")
    assert page.get_by_role("slider", name="Multiplier of two").input_value() == "3.5"  # the nearest step
    page.get_by_role("button", name="Add pinned (3)").click()  # the constant cannot be steered
    for _ in range(2):
        page.locator(".steer-rows li").last.locator(".close").click()
    page.locator(".steer-rows li").nth(2).locator("input[type=number]").fill("7")
    sent = steer(page)["nodes"]
    assert {one["id"]: one["multiplier"] for one in sent} == {group[1]: 7, group[2]: 3.25, other[2]: -1}
    assert page.locator(".steer-rows li").count() == 3
    expect(page.locator(".steer-old")).to_be_hidden()
    page.get_by_role("button", name="Switch off two").click()
    assert page.get_by_role("spinbutton", name="Multiplier of two").input_value() == "0"
    expect(page.locator(".steer-old")).to_be_visible()  # what is shown is of other settings
    page.evaluate("hash => { location.hash = hash }", "right=steer&groups=&pins=")
    expect(page.locator(".steer-rows li")).to_have_count(1)  # rows of supernodes go with them


def test_what_the_server_refuses_is_one_sentence(open_live: Callable[..., Page], site: Site, graph: AttributionGraph,
                                                 tab: Watched) -> None:
    values = graph.nodes.value * 1.5
    other = replace(graph, nodes=replace(graph.nodes, value=values), header=replace(graph.header, model="<i>other</i>"))
    other.save(site.folder.root / "other.safetensors")
    page = open_live(f"right=steer&node={graph.node_ids[feature(graph, 0)]}", "other.safetensors")
    page.get_by_role("button", name="Add selected").click()
    page.get_by_role("button", name="Run").click()
    page.wait_for_selector(".steer-said.problem")
    assert "that the graph was made with: <i>other</i>" in page.locator(".steer-said").inner_text()
    expect(page.get_by_role("button", name="Run")).to_be_focused()
    page.locator(".steer-rows input[type=number]").fill("101")
    page.get_by_role("button", name="Run").click()  # the browser says what is wrong
    assert page.evaluate("document.querySelector('#steer input:invalid').type") == "number"
    assert len(tab.problems) == 1  # the browser's own line for the answer 422
    tab.problems.clear()


def test_stop_while_a_trace_runs(open_live: Callable[..., Page], site: Site, graph: AttributionGraph,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.jobs is not None
    begun, go = threading.Event(), threading.Event()

    def trace(request: Any, report: Any) -> Any:
        begun.set()
        go.wait(20)
        raise circuits.errors.InputError("enough")

    monkeypatch.setattr(site.jobs, "_work", trace)
    page = open_live(f"right=steer&node={graph.node_ids[feature(graph, 0)]}")
    page.evaluate("fetch('/api/traces', { method: 'POST', headers: { 'Content-Type': 'application/json' }, "
                  "body: JSON.stringify({ prompt: 'x' }) }).then(() => null)")
    assert begun.wait(20)
    page.get_by_role("button", name="Add selected").click()
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.steer-said').textContent === 'Stopped.'")
    expect(page.get_by_role("button", name="Run")).to_be_focused()
    go.set()
    steer(page)
    assert len(numbers(page, "steer-targets")) == 3


def test_heads_of_an_edge_on_demand(open_live: Callable[..., Page], client: Client, graph: AttributionGraph) -> None:
    target = int(graph.target_nodes[0])
    row = slice(graph.indptr[target], graph.indptr[target + 1])
    below = (graph.nodes.kind[graph.indices[row]] == "embedding")
    source = int(graph.indices[row][np.argmax(np.abs(graph.weights[row]) * below)])
    ends = [graph.node_ids[node] for node in (source, target)]
    page = open_live(f"right=node&edge={','.join(ends)}")
    page.get_by_role("button", name="Which attention heads carry it?").click()
    page.wait_for_selector(".edge-heads li")
    expected = client.get(f"/api/graphs/{NAME}/heads?source={ends[0]}&target={ends[1]}").json()["heads"]
    shown = page.locator(".edge-heads li")
    assert [read_number(text) for text in shown.locator("span:nth-of-type(2)").all_inner_texts()] == pytest.approx(
        [part["loading"] for part in expected], rel=1e-3)
    first = f"L{expected[0]['layer']}H{expected[0]['head']}"
    assert shown.first.locator("button").inner_text() == first
    shown.first.locator("button").click()
    assert page.get_by_role("spinbutton", name="Layer").input_value() == str(expected[0]["layer"])
    assert page.get_by_role("spinbutton", name="Head").input_value() == str(expected[0]["head"])


def test_any_attention_score_on_demand(open_live: Callable[..., Page], client: Client, graph: AttributionGraph,
                                       tab: Watched) -> None:
    page = open_live("left=attention")
    page.get_by_role("spinbutton", name="Layer").fill("3")
    page.get_by_role("spinbutton", name="Head").fill("1")
    page.get_by_role("combobox", name="Query").select_option("4")
    page.get_by_role("combobox", name="Key").select_option("2")
    page.get_by_role("button", name="Take it apart").click()
    page.wait_for_selector("#attention .pairs")
    expected = client.get(f"/api/graphs/{NAME}/attention?layer=3&head=1&query=4&key=2").json()
    shown = page.locator("#attention .pairs tbody tr")
    assert [read_number(text) for text in shown.locator("td:nth-child(3)").all_inner_texts()] == pytest.approx(
        [pair["value"] for pair in expected["pairs"]], rel=1e-3)
    assert f"{expected['score']:+.4}".replace("-", "−") in page.locator("#attention").inner_text()
    named = page.locator("#attention .pairs button[data-node]").first
    node = int(named.get_attribute("data-node") or -1)
    first = next(pair[side] for pair in expected["pairs"] for side in ("query_id", "key_id") if pair[side] is not None)
    assert graph.node_ids[node] == first
    named.click()
    assert in_hash(page)["node"] == [first]
    strongest = int(np.argmax(expected["pattern"]))
    with page.expect_response(lambda answer: f"key={strongest}" in answer.url):
        page.locator("#attention .offers button").first.click()
    page.get_by_role("spinbutton", name="Head").fill("9")
    page.get_by_role("button", name="Take it apart").click()
    page.wait_for_selector("#attention .problem")
    assert "heads 0 to 3" in page.locator("#attention .problem").inner_text()
    assert len(tab.problems) == 1
    tab.problems.clear()


def test_hostile_names_stay_text(open_live: Callable[..., Page], site: Site, graph: AttributionGraph) -> None:
    label = np.array([HOSTILE[i % len(HOSTILE)] for i in range(len(graph))], dtype=object)
    groups = [[text, graph.node_ids[feature(graph, i)]] for i, text in enumerate(HOSTILE[:4])]
    replace(graph, nodes=replace(graph.nodes, label=label), header=replace(graph.header, supernodes=groups)).save(
        site.folder.root / "hostile.safetensors")
    page = open_live("right=steer", "hostile.safetensors")
    choice = page.get_by_label("Add a supernode")
    for place in range(1, 5):
        choice.select_option(index=1)
        expect(page.locator(".steer-rows li")).to_have_count(place)
    steer(page)
    assert len(numbers(page, "steer-targets")) == 3
    assert page.evaluate("window.__pwned") is None


def test_a_page_without_a_model_does_not_steer(tab: Watched, graph: AttributionGraph, tmp_path: Path) -> None:
    graph.save(tmp_path / NAME)
    with served(Site(GraphFolder(tmp_path))) as client:
        page = tab.open(f"{client.origin}/graphs/{NAME}#right=steer")
        page.wait_for_selector("html[data-ready]", state="attached")
        assert page.locator("#tab-steer").count() == 0
        expect(page.locator("#tab-node")).to_have_attribute("aria-selected", "true")
        page.evaluate("hash => { location.hash = hash }", "left=attention")
        expect(page.locator("#attention")).to_be_visible()
        assert page.locator(".score-form, .asked").count() == 0
