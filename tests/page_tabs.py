"""A real browser for the page's tests: fixtures to import, and what they need to read the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from page_samples import sample_graph
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.page import render, write

EXECUTABLES = ("chromium-headless-shell", "chromium")  # the first opens a page in half the time
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


class Chromium:
    """One browser for the modules of tests that follow one another. While it is open, asyncio cannot be used in this
    thread: it is closed before a module that does not ask for it."""

    def __init__(self) -> None:
        self.playwright: Playwright | None = None
        self.browser: Browser | None = None

    def open(self) -> Browser:
        if self.browser is None:
            executable = next(filter(None, map(shutil.which, EXECUTABLES)), None)
            if executable is None:
                if os.environ.get("CI") == "true":
                    pytest.fail("chromium is not installed: the page cannot be tested")
                pytest.skip("chromium is not installed")
            self.playwright = sync_playwright().start()
            self.browser = self.playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        return self.browser

    def close(self) -> None:
        if self.browser is not None:
            self.browser.close()
        if self.playwright is not None:
            self.playwright.stop()
        self.browser = self.playwright = None


chromium = Chromium()


@pytest.fixture(scope="module")
def browser() -> Browser:
    return chromium.open()


class Watched:
    """A tab that remembers every console message, error and request."""

    def __init__(self, browser: Browser):
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.problems: list[str] = []
        self.requests: set[str] = set()
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.add(request.url.partition("#")[0]))

    def open(self, uri: str) -> Page:
        self.page.goto("about:blank")  # so that going to the same file again is a load, not a move within it
        self.page.goto(uri)
        return self.page


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Watched]:
    tab = Watched(browser)
    yield tab
    tab.page.close()


@pytest.fixture
def open_page(tab: Watched, graph: AttributionGraph, html: str, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a graph's page, or its HTML text, from file://; at the end there must have been no error and no request
    but the file. The page of ``graph`` itself is made once, so what a test changes in how pages are made is not in it.
    """
    path = tmp_path / "graph.html"
    tab.problems.clear()
    tab.requests.clear()

    def open_(shown: AttributionGraph | str, fragment: str = "", **options: Any) -> Page:
        if shown is graph and not options:
            shown = html
        if isinstance(shown, str):
            path.write_text(shown, encoding="utf-8")
        else:
            write(shown, path, **options)
        page = tab.open(path.as_uri() + (f"#{fragment}" if fragment else ""))
        page.wait_for_selector("html[data-ready]", state="attached")
        wait_for_layout(page)
        wait_until_listed(page)
        return page

    yield open_
    assert tab.problems == []
    assert tab.requests == {path.as_uri()}


@pytest.fixture(scope="module")
def graph() -> AttributionGraph:
    return sample_graph()


@pytest.fixture(scope="module")
def html(graph: AttributionGraph) -> str:
    return render(graph)


@pytest.fixture
def page(html: str, open_page: Callable[[str], Page]) -> Page:
    """The page of ``graph``."""
    return open_page(html)


def read_number(text: str) -> float:
    return float(text.replace("\u2212", "-"))


OUTSIDE = "\N{EN DASH}"  # constants stand outside the row total, so they have no share


def is_share(text: str, expected: float) -> bool:
    if text == "<0.1%":
        return 0 < expected < 5.1e-4
    return abs(float(text.removesuffix("%")) / 100 - expected) < 5.1e-4


def go_to(page: Page, graph: AttributionGraph, node: int) -> None:
    page.evaluate("id => { location.hash = `node=${encodeURIComponent(id)}` }", graph.node_ids[node])
    page.wait_for_selector(f"#panel.card[data-node='{node}']")
    wait_until_listed(page)


def in_hash(page: Page) -> dict[str, list[str]]:
    """The fields of the URL hash, which is written soon after a change, or at once when the page is left."""
    page.evaluate("() => { window.dispatchEvent(new Event('pagehide')); }")
    return parse_qs(page.evaluate("location.hash").removeprefix("#"))


def selected(page: Page, graph: AttributionGraph) -> int | None:
    found = in_hash(page).get("node")
    return graph.node_ids.index(found[0]) if found else None


def listed(page: Page, name: str) -> list[tuple[int, float, str]]:
    """(node, weight, share as written) of each row of the inputs or the outputs."""
    wait_until_listed(page)
    rows = page.eval_on_selector_all(
        f"ol.{name} button[data-node]",
        "rows => rows.map(row => [row.dataset.node, ...[...row.children].slice(3, 5).map(cell => cell.textContent)])")
    return [(int(node), read_number(weight), share) for node, weight, share in rows]


def centre(page: Page, row: str, column: int) -> tuple[float, float]:
    """Where a row and a column cross, from the labels on the axes."""
    y = page.evaluate("text => { const box = [...document.querySelectorAll('#rows span')]"
                      ".find(span => span.textContent === text).getBoundingClientRect();"
                      "return box.top + box.height / 2 }", row)
    x = page.evaluate("column => { const box = document.querySelectorAll('#columns span')[column]"
                      ".getBoundingClientRect(); return box.left + box.width / 2 }", column)
    return x, y


def wait_for_layout(page: Page) -> None:
    """The views take their size in the frame after the one in which it changes."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def resize(page: Page, width: int, height: int = 800) -> None:
    page.set_viewport_size({"width": width, "height": height})
    wait_for_layout(page)


def wait_until_listed(page: Page) -> None:
    """Of long lists the panel shows a part at once and more soon after."""
    page.wait_for_selector("#panel:not(:has([aria-busy]))", state="attached")


def wait_until_drawn(page: Page) -> None:
    """The link view is drawn over several frames: the strongest edges first, and the others under them."""
    page.wait_for_selector("#base[data-whole]")


def bluish_and_orange(page: Page) -> tuple[int, int]:
    """Pixels in the colours of positive and negative edges, which no node has."""
    wait_until_drawn(page)
    return tuple(page.evaluate(
        """() => { const base = document.getElementById("base"), counts = [0, 0];
        const copy = new OffscreenCanvas(base.width, base.height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(base, 0, 0);
        const { data } = copy.getImageData(0, 0, base.width, base.height);
        for (let i = 0; i < data.length; i += 4) {
          if (data[i + 3] < 150) continue;
          if (data[i + 2] - data[i] > 110) counts[0]++;
          if (data[i] - data[i + 2] > 110) counts[1]++;
        }
        return counts; }"""))
