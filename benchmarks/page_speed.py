"""Milliseconds that a graph's page takes to open, to answer the pointer and a selection, and to scroll, in Chromium.

    python benchmarks/page_speed.py --json result.json

The graph is random, with the structure of a long prompt's pruned graph: 5,000 nodes, 100,000 edges that go up in layer
and never back in position, heavy-tailed weights. Chromium is the system's, without a GPU. A time ends at the second
animation frame after what was to be seen was drawn: the first one has been painted by then.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measured_run import conclude
from playwright.sync_api import Browser, Page, sync_playwright
from provenance import provenance

from circuits.graphs import AttributionGraph, Header, NodeTable
from circuits.graphs.page import write

NODES, EDGES, LAYERS, POSITIONS, LOGITS = 5_000, 100_000, 26, 48, 10
LIMITS = {"first_paint_ms": 2000, "hover_ms": 100, "select_ms": 100, "pan_block_ms": 200}
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SELECTED = "document.getElementById('panel').dataset.node"
HOVERS, SELECTIONS, WHEELS = 50, 30, 40
WORDS = ["sport", "athlete", "names of people", "plural", "after a colon", "city", "capital", "country", "is a", "the"]

WATCH = """
  const painted = (then) => requestAnimationFrame(() => requestAnimationFrame(() => then(performance.now())));
  window.times = { first: null, hover: [], select: [] };
  new MutationObserver((_, observer) => {
    if (!document.documentElement?.hasAttribute("data-ready")) return;
    observer.disconnect();
    painted((now) => (window.times.first = now));
  }).observe(document, { attributes: true, childList: true, subtree: true });
  for (const [type, name] of [["pointermove", "hover"], ["click", "select"]]) {
    window.addEventListener(type, (event) => painted((now) => window.times[name].push(now - event.timeStamp)), true);
  }
  window.watchFrames = (view) => {
    const found = { gap: 0, task: 0, moved: 0, stop: false };
    let last = performance.now();
    let left = view.scrollLeft;
    view.addEventListener("scroll", () => {
      found.moved += Math.abs(view.scrollLeft - left);
      left = view.scrollLeft;
    });
    const frame = () => {
      found.gap = Math.max(found.gap, performance.now() - last);
      last = performance.now();
      if (!found.stop) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) found.task = Math.max(found.task, entry.duration);
    }).observe({ entryTypes: ["longtask"] });
    window.watched = found;
  };
"""
"""Runs before the page's own scripts; the page's policy does not hold for it."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How fast a graph's page is.")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--edges", type=int, default=EDGES)
    parser.add_argument("--positions", type=int, default=POSITIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args(arguments)
    graph = page_graph(options.nodes, options.edges, options.positions, options.seed)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "graph.html"
        write(graph, path)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        report = {"benchmark": "page speed", **provenance(), "chromium": browser.version, "nodes": len(graph),
                  "edges": graph.n_edges, "page_bytes": path.stat().st_size, **measure(browser, path)}
        browser.close()
    figures = {name: report[name] for name in (*LIMITS, "panned_px", "cpu_ms")}
    conclude(report, [json.dumps(figures)], False, options.json)


def page_graph(n_nodes: int = NODES, n_edges: int = EDGES, n_pos: int = POSITIONS, seed: int = 0) -> AttributionGraph:
    """A random graph of about that many nodes and edges; features crowd towards the end of the prompt."""
    rng = np.random.default_rng(seed)
    n_errors, n_constants = n_nodes // 8, LAYERS
    n_features = n_nodes - n_pos - n_errors - n_constants - LOGITS
    sizes = [n_pos, n_constants, n_features, n_errors, LOGITS]
    kind = np.repeat(["embedding", "constant", "feature", "error", "logit"], sizes)
    crowd = np.linspace(0.3, 1, n_pos - 1)
    inner = n_features + n_errors
    layer = np.concatenate([np.full(n_pos, -1), np.arange(LAYERS), rng.integers(0, LAYERS, inner),
                            np.full(LOGITS, LAYERS)])
    position = np.concatenate([np.arange(n_pos), np.full(n_constants, -1),
                               rng.choice(np.arange(1, n_pos), inner, p=crowd / crowd.sum()),
                               np.full(LOGITS, n_pos - 1)])
    computed = np.isin(kind, ["feature", "logit"])
    indptr, indices, weights = _edges(rng, kind, layer, position, n_edges)
    rows = np.repeat(np.arange(n_nodes), np.diff(indptr))
    total = np.bincount(rows, np.abs(weights) * (kind[indices] != "constant"), minlength=n_nodes)
    tokens = [f" {WORDS[i % len(WORDS)].split()[0]}" for i in range(n_pos)]
    labels = [", ".join(rng.choice(WORDS, 3)) if k == "feature" else "" for k in kind]
    nodes = NodeTable.build(
        n_nodes, kind=kind, layer=layer, position=position, label=np.array(labels, dtype=object),
        feature=np.where(kind == "feature", np.arange(n_nodes), -1), expanded=computed,
        token=np.where(np.isin(kind, ["embedding", "logit"]), np.arange(n_nodes), -1),
        value=np.where(computed, rng.gamma(2, 4, n_nodes), 0), influence=rng.pareto(2.0, n_nodes) * 0.01,
        input_sum=np.where(computed, np.bincount(rows, weights, minlength=n_nodes), np.nan),
        input_abs=np.where(computed, total * 1.2, np.nan))
    header = Header(prompt="".join(tokens), tokens=list(range(n_pos)), token_texts=tokens, n_layers=LAYERS,
                    model="random", transcoders="random", transcoder_kind="clt")
    return AttributionGraph(nodes, indptr, indices, weights, np.flatnonzero(kind == "logit").astype(np.int32),
                            np.geomspace(0.5, 0.01, LOGITS).astype(np.float32), header)


def _edges(rng: np.random.Generator, kind: np.ndarray, layer: np.ndarray, position: np.ndarray, n_edges: int
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CSR rows (N + 1,), (E,), (E,) from sources below and not to the right; logits have ten times a feature's."""
    share = np.where(kind == "logit", 10.0, kind == "feature") * np.maximum(layer + 1, 1)
    wanted = rng.poisson(n_edges * share / share.sum())
    lengths, indices = np.zeros(len(kind), np.int64), []
    for node in np.flatnonzero(wanted):
        sources = np.flatnonzero((layer < layer[node]) & (position <= position[node]) & (kind != "logit"))
        row = np.sort(rng.choice(sources, min(len(sources), wanted[node]), replace=False))
        lengths[node] = len(row)
        indices.append(row)
    joined = np.concatenate(indices).astype(np.int32)
    return np.append(0, np.cumsum(lengths)), joined, (rng.standard_normal(len(joined)) ** 3).astype(np.float32)


def measure(browser: Browser, path: Path) -> dict[str, Any]:
    """Figures of the page in the file ``path``, in a tab of its own.

    Returns:
        ``first_paint_ms`` from the start of the navigation; {median, worst, n} of ``hover_ms`` and ``select_ms``;
        ``pan_block_ms``: the longest of all tasks and gaps between frames while the link view scrolls over
        ``panned_px``; ``cpu_ms``: processor time of all of the browser's processes, by the same names, of one hover,
        selection or turn of the wheel on average.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.add_init_script(WATCH)
    report: dict[str, Any] = {}
    cpu = {"first_paint_ms": _processor_ms()}
    page.goto(path.as_uri())
    _until(page, "times.first !== null")
    cpu["first_paint_ms"] = _processor_ms() - cpu["first_paint_ms"]
    report["first_paint_ms"] = round(page.evaluate("times.first"))
    page.wait_for_timeout(1000)
    for part in (_hover, _select, _pan):
        figures, processor = part(page)
        report |= figures
        cpu |= processor
    page.close()
    return report | {"cpu_ms": {name: round(milliseconds) for name, milliseconds in cpu.items()}}


def _processor_ms() -> float:
    """Processor time so far of the browser's processes that this one started."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if "chrom" in process.name():
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.Error:  # it has just ended
            continue
    return 1000 * total


def _spots(page: Page, count: int) -> list[tuple[float, float]]:
    """Points spread over the link view."""
    box = page.locator("#overlay").bounding_box()
    assert box is not None
    rng = np.random.default_rng(1)
    return [(box["x"] + 40 + x * (box["width"] - 50), box["y"] + y * (box["height"] - 45))
            for x, y in rng.random((count, 2))]


def _hover(page: Page) -> tuple[dict[str, Any], dict[str, float]]:
    page.evaluate("times.hover = []")
    started = _processor_ms()
    for x, y in _spots(page, HOVERS):
        page.mouse.move(x, y)
        page.wait_for_timeout(40)
    _until(page, f"times.hover.length >= {HOVERS}")
    used = _processor_ms() - started
    return {"hover_ms": _summary(page.evaluate("times.hover"))}, {"hover_ms": used / HOVERS}


def _select(page: Page) -> tuple[dict[str, Any], dict[str, float]]:
    """Clicks in the link view; those that change the selection are counted."""
    times: list[float] = []
    used = 0.0
    for x, y in _spots(page, 20 * SELECTIONS):
        before = page.evaluate(SELECTED)
        page.mouse.move(x, y)
        if page.locator("#overlay.on-node").count() == 0:
            continue
        page.wait_for_timeout(60)
        page.evaluate("times.select = []")
        started = _processor_ms()
        page.mouse.click(x, y)
        _until(page, "times.select.length > 0")
        stopped = _processor_ms()
        if page.evaluate(SELECTED) != before:
            times += page.evaluate("times.select")
            used += stopped - started
        if len(times) == SELECTIONS:
            break
    page.keyboard.press("Escape")
    return {"select_ms": _summary(times)}, {"select_ms": used / len(times)}


def _pan(page: Page) -> tuple[dict[str, Any], dict[str, float]]:
    """Turns of the wheel, forth and back, while the view has the most faint edges that it offers."""
    x, y = _spots(page, 1)[0]
    page.mouse.move(x, y)
    page.select_option("#edges", page.locator("#edges option").last.get_attribute("value"))
    page.wait_for_selector("#base[data-whole]")
    page.evaluate("watchFrames(document.getElementById('plot'))")
    started = _processor_ms()
    for step in range(WHEELS):
        forth = 1 if step < WHEELS / 2 else -1
        page.mouse.wheel(-forth * 170, forth * 60)
        page.wait_for_timeout(30)
    used = _processor_ms() - started
    found = page.evaluate("() => { watched.stop = true; return watched }")
    if found["moved"] == 0:
        raise RuntimeError("the link view holds all of this graph, so it cannot scroll: ask for more positions")
    figures = {"pan_block_ms": round(max(found["gap"], found["task"])), "panned_px": round(found["moved"])}
    return figures, {"pan_block_ms": used / WHEELS}


def _until(page: Page, expression: str) -> None:
    """Wait for it to be true; the page's policy forbids Playwright's own way, which evaluates text in the page."""
    for _ in range(1000):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(10)
    raise RuntimeError(f"not true within 10 s: {expression}")


def _summary(times: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(times)), "worst": round(max(times)), "n": len(times)}


if __name__ == "__main__":
    main()
