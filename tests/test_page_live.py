"""The page behind the real server: saving what was made into the file, and tracing again."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from page_samples import HOSTILE, sample_graph
from page_tabs import in_hash

from circuits.graphs import load

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from circuits.serve.folder import GraphFolder
from circuits.serve.jobs import Jobs, Result
from circuits.serve.server import Server, listen
from circuits.serve.site import Site

HOST = "127.0.0.1"


class Traces:
    """Stands in for the model: goes on when told, and saves a graph or fails."""

    def __init__(self, folder):
        self.folder, self.asked, self.go, self.fail = folder, [], threading.Event(), ""

    def __call__(self, request, report):
        from circuits.errors import InputError

        self.asked.append(request)
        report("rows", 30, 120)
        while not self.go.wait(0.02):
            report("rows", 30, 120)
        if self.fail:
            raise InputError(self.fail)
        return Result(self.folder.add(sample_graph(), request.name or request.prompt), ["a <b>warning</b>"])


class Served:
    def __init__(self, root):
        self.folder = GraphFolder(root)
        self.site = Site(self.folder)
        self.traces = Traces(self.folder)
        self.site.jobs = Jobs(self.traces)
        opened = listen(HOST, 0)
        self.address = f"http://{HOST}:{opened.getsockname()[1]}"
        self.server = Server(self.site, HOST)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [opened]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    def close(self):
        self.traces.go.set()
        self.site.closing = self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def served(tmp_path):
    server = Served(tmp_path / "graphs")
    yield server
    server.close()


@pytest.fixture
def open_live(served, tab):
    """Opens a graph of the server; at the end no request may have left it."""
    tab.problems.clear()
    tab.requests.clear()

    def open_(graph, fragment="", name="jordan.safetensors"):
        graph.save(served.folder.root / name)
        page = tab.open(f"{served.address}/graphs/{name}" + (f"#{fragment}" if fragment else ""))
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_
    assert all(url.startswith((served.address + "/", "about:")) for url in tab.requests)


def saved(page):
    page.wait_for_function("() => document.getElementById('save-status').textContent === 'saved'")


def test_saving_keeps_what_was_made_in_the_file(served, open_live, tab):
    graph = sample_graph()
    features = np.flatnonzero(graph.nodes.kind == "feature")
    a, b, c = map(int, features[[2, 5, 8]])
    ids = graph.node_ids
    graph = replace(graph, header=replace(graph.header, pinned=[ids[c]]))
    page = open_live(graph)
    assert page.locator("#save").is_disabled()
    assert page.locator("#save-status").inner_text() == "saved"
    key = f"{graph.nodes.layer[a]}/{graph.nodes.feature[a]}"
    page.evaluate("hash => { location.hash = hash }",
                  f"pins={ids[c]}&groups=a%2520%253Cb%253E,{ids[a]},{ids[b]}&label={key},mine")
    page.wait_for_function("() => document.getElementById('save-status').textContent.includes('not saved')")
    page.keyboard.press("Control+s")
    saved(page)
    kept = load(served.folder.root / "jordan.safetensors")
    assert kept.header.pinned == [ids[c], ids[a], ids[b]]
    assert kept.header.supernodes == [["a <b>", ids[a], ids[b]]]
    changed = np.flatnonzero(kept.nodes.label != graph.nodes.label)
    assert set(kept.nodes.label[changed]) == {"mine"}
    assert set(changed) == {i for i in map(int, features) if (graph.nodes.layer[i], graph.nodes.feature[i])
                            == (graph.nodes.layer[a], graph.nodes.feature[a])}
    page.keyboard.press("Control+z")  # taken back here, so the file differs until it is saved again
    assert page.locator("#save-status").inner_text() == "● not saved"
    page.locator("#save").click()
    saved(page)
    again = load(served.folder.root / "jordan.safetensors")
    assert again.nodes.label.tolist() == graph.nodes.label.tolist()
    assert (again.header.pinned, again.header.supernodes) == ([ids[c]], [])
    assert tab.problems == []


def test_a_file_that_changed_meanwhile_is_not_overwritten(served, open_live, tab):
    graph = sample_graph()
    ids = graph.node_ids
    page = open_live(graph)
    page.evaluate("hash => { location.hash = hash }", f"pins={ids[20]}")
    path = served.folder.root / "jordan.safetensors"
    replace(graph, header=replace(graph.header, supernodes=[["theirs", ids[30], ids[31]]])).save(path)
    page.locator("#save:enabled").click()
    page.wait_for_selector(".notice[role=alert]")
    assert "changed by someone else" in page.locator(".notice").inner_text()
    assert load(path).header.supernodes == [["theirs", ids[30], ids[31]]]
    assert page.locator("#save-status").inner_text() == "● not saved"
    page.get_by_role("button", name="Reload").click()
    page.wait_for_function("() => document.getElementById('notices') === null"
                           " && document.querySelector('html[data-ready]') !== null")
    assert ids[20] in in_hash(page)["pins"][0]
    page.locator("#save:enabled").click()
    saved(page)
    assert set(load(path).header.pinned) == {ids[20], ids[30], ids[31]}
    assert load(path).header.supernodes == [["theirs", ids[30], ids[31]]]
    assert len(tab.problems) == 1  # the browser's own line for the answer 412
    assert "412" in tab.problems[0]


def test_a_server_that_is_gone_is_said_once_and_nothing_is_lost(served, open_live, tab):
    graph = sample_graph()
    page = open_live(graph)
    page.evaluate("hash => { location.hash = hash }", f"pins={graph.node_ids[20]}")
    served.close()
    page.locator("#save:enabled").click()
    page.locator("#save:enabled").click()
    page.wait_for_selector(".notice[role=alert]")
    assert page.locator(".notice").count() == 1
    assert "the server does not answer" in page.locator(".notice").inner_text()
    assert in_hash(page)["pins"] == [graph.node_ids[20]]
    page.get_by_role("button", name="Trace again…").click()
    page.get_by_role("button", name="Trace", exact=True).click()
    page.wait_for_selector(".trace-said.problem")
    assert "does not answer" in page.locator(".trace-said").inner_text()
    assert page.get_by_role("button", name="Trace", exact=True).is_enabled()
    assert all("ERR_CONNECTION_REFUSED" in problem for problem in tab.problems)


def test_tracing_again_with_progress_leads_to_the_new_graph(served, open_live, tab):
    graph = sample_graph()
    settings = graph.header.settings | {"target": " basketball", "versus": " tennis", "coverage": 0.9}
    page = open_live(replace(graph, header=replace(graph.header, settings=settings)))
    assert page.get_by_role("link", name="Gallery").get_attribute("href") == "/"
    page.get_by_role("button", name="Trace again…").click()
    assert page.get_by_role("textbox", name="Prompt").input_value() == graph.header.prompt
    page.get_by_role("textbox", name="Prompt").fill("the sky p1?/")
    page.get_by_label("Versus").fill("")
    page.get_by_label("Name").fill("again")
    page.get_by_role("button", name="Trace", exact=True).click()
    page.wait_for_function("() => document.querySelector('.trace-said').textContent === 'rows 30 of 120'")
    bar = page.get_by_role("progressbar")
    assert (bar.get_attribute("value"), bar.get_attribute("max")) == ("30", "120")
    page.keyboard.press("4")  # keys of the page stay asleep below the dialog
    page.get_by_role("button", name="Close", exact=True).click()
    page.get_by_role("button", name="Trace again…").click()  # it went on
    served.traces.go.set()
    link = page.get_by_role("link", name="Open again.safetensors")
    link.wait_for()
    assert page.locator(".trace-said small").inner_text() == "a <b>warning</b>"
    request = served.traces.asked[0]
    assert (request.prompt, request.target, request.versus, request.coverage, request.name, request.chat) == (
        "the sky p1?/", " basketball", None, 0.9, "again", False)
    assert page.locator("#tab-graph[aria-selected=true]").count() == 1
    link.click()
    page.wait_for_url("**/graphs/again.safetensors")
    page.wait_for_selector("html[data-ready]", state="attached")
    assert tab.problems == []


def test_cancel_and_failure_are_told(served, open_live):
    page = open_live(sample_graph())
    page.get_by_role("button", name="Trace again…").click()
    page.get_by_role("button", name="Trace", exact=True).click()
    page.get_by_role("button", name="Cancel the trace").click()
    page.wait_for_function("() => document.querySelector('.trace-said').textContent === 'Cancelled.'")
    assert page.get_by_role("button", name="Cancel the trace").is_hidden()
    served.traces.fail = "no <i>such</i> token"
    served.traces.go.set()
    page.get_by_role("button", name="Trace", exact=True).click()
    page.wait_for_selector(".trace-said.problem")
    assert page.locator(".trace-said").inner_text() == "no <i>such</i> token"
    assert len(served.traces.asked) == 2
    page.get_by_label("Coverage").fill("7")
    page.get_by_role("button", name="Trace", exact=True).click()  # the browser says what is wrong with the number
    assert page.evaluate("document.querySelector('#trace-dialog input:invalid').type") == "number"
    assert len(served.traces.asked) == 2


def test_hostile_prompts_and_labels_stay_text(served, open_live, tab):
    graph = sample_graph()
    label = np.array([HOSTILE[i % len(HOSTILE)] for i in range(len(graph))], dtype=object)
    graph = replace(graph, nodes=replace(graph.nodes, label=label), header=replace(
        graph.header, prompt="".join(HOSTILE)[:20_000], settings={"target": HOSTILE[0], "versus": HOSTILE[1]}))
    page = open_live(graph, f"pins={graph.node_ids[0]}", name="a, b (1)+=@.safetensors")
    page.get_by_role("button", name="Trace again…").click()
    page.get_by_role("button", name="Close", exact=True).click()
    page.locator("#save:enabled").click()
    saved(page)
    assert load(served.folder.root / "a, b (1)+=@.safetensors").header.pinned == [graph.node_ids[0]]
    assert page.evaluate("window.__pwned") is None
    assert tab.problems == []


def test_a_page_that_is_a_file_has_none_of_this(tab, tmp_path):
    from circuits.graphs.page import write

    write(sample_graph(), tmp_path / "page.html")
    page = tab.open((tmp_path / "page.html").as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.locator("#save, #trace, .live").count() == 0
