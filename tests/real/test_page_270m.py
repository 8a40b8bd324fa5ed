"""The page of a real graph, driven from file:// without a network and on the server; ``make check-real`` runs these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pytest
from page_tabs import Watched, centre, in_hash, listed, read_number
from playwright.sync_api import Page, expect
from served_folder import served

import circuits
from circuits.graphs import AttributionGraph, neuronpedia
from circuits.serve.folder import GraphFolder
from circuits.serve.site import Site
from circuits.serve.tracer import Source

pytestmark = pytest.mark.real

PROMPT = "Fact: Michael Jordan plays the sport of"


@pytest.fixture(scope="module")
def whole() -> AttributionGraph:
    model = circuits.load_model("gemma-3-270m", device="cpu")
    return circuits.trace(model, circuits.open_transcoders("bundled"), PROMPT)


@pytest.fixture(scope="module")
def small(whole: AttributionGraph) -> AttributionGraph:
    return whole.prune(0.8, 0.98)


@pytest.fixture
def real_page(whole: AttributionGraph, open_page) -> Page:
    """From file://; at the end nothing was said on the console, and nothing but the file was asked for."""
    page = open_page(whole, thresholds=(0.8, 0.98))
    page.context.set_offline(True)
    return page


def shown_size(page: Page) -> tuple[int, int]:
    facts = dict(zip(page.locator("#facts dt").all_text_contents(), page.locator("#facts dd").all_text_contents(),
                     strict=True))
    nodes, edges = facts["Size"].split(", ")
    return int(nodes.split()[0].replace(",", "")), int(edges.split()[0].replace(",", ""))


def test_it_opens_with_what_pruning_keeps_and_prunes_on_exactly(real_page, whole, small):
    assert shown_size(real_page) == (len(small), small.n_edges)
    real_page.get_by_role("tab", name="Pruning").click()
    for nodes, edges in ((0.7, 0.98), (0.6, 0.9), (0.85, 0.95)):
        real_page.get_by_role("spinbutton", name="Node share").fill(str(nodes))
        real_page.get_by_role("spinbutton", name="Edge share").fill(str(edges))
        real_page.keyboard.press("Enter")
        expected = whole.prune(nodes, edges)
        assert shown_size(real_page) == (len(expected), expected.n_edges)


def test_the_card_of_a_feature_adds_up(real_page, small):
    real_page.locator("#panel button[data-node]:has(.icon.feature)").first.click()
    assert real_page.locator("#panel").inner_text()
    node_id = real_page.evaluate("new URLSearchParams(location.hash.slice(1)).get('node')")
    node = small.node_ids.index(node_id)
    row = slice(small.indptr[node], small.indptr[node + 1])
    rows = listed(real_page, "inputs")
    assert len(rows) == min(100, row.stop - row.start)
    weights = np.sort(np.abs(small.weights[row]))[::-1]
    np.testing.assert_allclose([abs(weight) for _, weight, _ in rows], weights[:len(rows)], rtol=6e-4)
    parts = real_page.eval_on_selector_all(
        "#panel .account tr", "rows => rows.map(row => [row.dataset.part, row.cells[1].textContent])")
    total = dict(parts)["total"]
    assert read_number(total) == pytest.approx(small.nodes.input_sum[node], rel=1e-3)
    parted = sum(read_number(weight) for part, weight in parts if part != "total")
    assert parted == pytest.approx(read_number(total), abs=2e-3 * float(small.nodes.input_abs[node]))
    text = real_page.locator("#panel").inner_text().lower()
    for expected in ("promote", "suppress", "examples"):
        assert expected in text


def test_paths_groups_and_subgraph(real_page, whole, tmp_path):
    page = real_page
    page.get_by_role("tab", name="Explanation").click()
    page.locator("#explanation").get_by_role("button", name="Light").first.click()
    assert page.locator("#explanation [aria-pressed=true]").count() >= 1
    page.locator("#explanation").get_by_role("button", name="Pin").first.click()
    page.get_by_role("tab", name="Supernodes").click()
    page.locator("#groups").get_by_role("button", name="Accept").first.click()
    page.get_by_role("tab", name="Subgraph").click()
    assert page.locator("#subgraph .box").count() >= 2
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as SVG").click()
    download.value.save_as(tmp_path / "subgraph.svg")
    assert "basketball" in (tmp_path / "subgraph.svg").read_text()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="File").click()
    with page.expect_download() as download:
        page.get_by_label("Download JSON").click()
    download.value.save_as(tmp_path / "graph.json")
    back = neuronpedia.read(tmp_path / "graph.json")
    assert back.node_ids == whole.prune(0.8, 0.98).node_ids
    assert len(back.header.supernodes) == 1
    assert len(back.header.pinned) >= 2


def test_unexplained_adds_up_search_table_and_keys(real_page, whole, small):
    page = real_page
    page.get_by_role("tab", name="Unexplained").click()
    page.wait_for_function("() => document.getElementById('unexplained').innerText.includes('%')")
    assert f"{whole.scores['replacement']:.3f}" in page.locator("#unexplained").inner_text()
    page.get_by_label("Search").fill("kind:feature promotes:basket")
    assert page.locator("#found").inner_text() != "0 found"
    page.get_by_label("Search").fill("")
    page.get_by_role("tab", name="Table").click()
    assert page.locator("#table tbody tr").count() == min(100, len(small))
    page.get_by_role("tab", name="Graph", exact=True).click()
    page.focus("#overlay")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    target = int(small.target_nodes[0])
    row = slice(small.indptr[target], small.indptr[target + 1])
    strongest = small.node_ids[small.indices[row][np.argmax(np.abs(small.weights[row]))]]
    page.wait_for_function("id => new URLSearchParams(location.hash.slice(1)).get('node') === id", arg=strongest)


def test_hover_labels_targets_undo_reload_pictures_and_import(real_page, whole, small, tmp_path):
    page = real_page
    page.mouse.move(*centre(page, "emb", 5))  # the first column holds constants: this is position 4
    assert "Jordan" in page.locator("#preview").inner_text()
    feature = int(np.flatnonzero(small.nodes.kind == "feature")[np.argmax(
        small.nodes.influence[small.nodes.kind == "feature"])])
    page.locator(f"#panel button[data-node]:has-text('{small.nodes.layer[feature]}/{small.nodes.feature[feature]}')"
                 ).first.click()
    page.locator("#panel").get_by_role("button", name="Edit label").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("my name, with <b>")
    page.keyboard.press("Enter")
    assert "my name, with <b>" in page.locator("#panel h2").inner_text()
    page.locator("#panel").get_by_role("button", name="Pin", exact=True).click()
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+y")
    target = int(whole.target_nodes[1])
    page.locator("#target").select_option(index=2)
    assert in_hash(page)["target"] == [whole.node_ids[target]]
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert "my name, with <b>" in page.locator("#panel h2").inner_text()
    assert in_hash(page)["pins"] == [small.node_ids[feature]]
    page.get_by_role("tab", name="Subgraph").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").click()
    download.value.save_as(tmp_path / "subgraph.png")
    assert (tmp_path / "subgraph.png").read_bytes().startswith(b"\x89PNG")
    made = small.header.supernodes
    edited = replace(small, header=replace(small.header, pinned=small.node_ids[:2], supernodes=[
        *made, ["from a file", small.node_ids[0], small.node_ids[1]]]))
    edited.to_neuronpedia(tmp_path / "edited.json")
    page.get_by_role("button", name="File").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_label("Open annotations").click()
    chooser.value.set_files(tmp_path / "edited.json")
    expect(page.locator(".notice")).to_contain_text("1 supernode applied")
    assert "from%20a%20file" in in_hash(page)["groups"][0] or "from a file" in in_hash(page)["groups"][0]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, small: AttributionGraph) -> Iterator[str]:
    folder = GraphFolder(tmp_path_factory.mktemp("graphs"))
    folder.add(small, "jordan")
    with served(Site(folder, Source())) as client:
        yield f"http://127.0.0.1:{client.port}/"


def test_on_the_server_a_prompt_is_traced_shown_and_annotated(browser, address):
    tab = Watched(browser)
    page = tab.open(address)
    expect(page.locator(".card")).to_have_count(1)
    page.get_by_role("textbox", name="Prompt").fill("The opposite of small is")
    page.get_by_role("button", name="Trace").click()
    first = page.locator(".traces li").first
    expect(first).to_have_attribute("data-state", "done", timeout=240_000)
    expect(page.locator(".card")).to_have_count(2)
    page.get_by_role("link", name="Open the graph").click()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert "opposite" in page.locator("#prompt").inner_text()
    page.locator("#panel button[data-node]:has(.icon.feature)").first.click()
    page.locator("#panel").get_by_role("button", name="Pin", exact=True).click()
    page.get_by_role("button", name="Save", exact=True).click()
    name = urlsplit(page.url).path.rpartition("/")[2]
    expect(page.locator("#tools")).to_contain_text("saved")
    expect(page.locator("#tools")).not_to_contain_text("not saved")
    kept = page.evaluate("name => fetch(`/api/graphs/${name}`).then((answer) => answer.json())", name)
    assert [kept["header"]["pinned"]] == [[page.evaluate("new URLSearchParams(location.hash.slice(1)).get('node')")]]
    assert tab.problems == []
    assert {urlsplit(url).netloc for url in tab.requests if not url.startswith(("blob:", "data:"))} <= {
        urlsplit(address).netloc, ""}
    page.close()
