"""What the tests of the subgraph read from the page and do in it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from page_tabs import in_hash
from playwright.sync_api import Locator, Page

from circuits.graphs.graph import AttributionGraph


def strongest(graph: AttributionGraph, count: int = 15) -> list[int]:
    """Nodes of largest influence and the first target, as "Pin 15 nodes" takes them."""
    order = np.argsort(-graph.nodes.influence, kind="stable")
    nodes = [int(i) for i in order if graph.nodes.kind[i] in ("feature", "error", "embedding")][:count]
    return [*nodes, int(graph.target_nodes[0])]


def fragment(graph: AttributionGraph, pins: list[int], groups: list[tuple[str, list[int]]] = (), left: str = "subgraph"
             ) -> str:
    ids = lambda nodes: ",".join(graph.node_ids[i] for i in nodes)  # noqa: E731
    text = ";".join(f"{quote(name, safe='')},{ids(nodes)}" for name, nodes in groups)
    return f"left={left}&pins={quote(ids(pins))}" + (f"&groups={quote(text, safe='')}" if groups else "")


def boxes(page: Page) -> dict[str, dict[str, Any]]:
    found = page.eval_on_selector_all(".box", """boxes => boxes.map(box => { const { x, y, width, height } =
      box.querySelector(".frame").getBoundingClientRect();
      return { key: box.dataset.key, x, y, width, height, group: box.classList.contains("supernode"),
        pruned: box.classList.contains("pruned"),
        text: [...box.querySelectorAll(":scope > .label")].map(line => line.textContent).join(" ") } })""")
    return {box["key"]: box for box in found}


def links(page: Page) -> dict[tuple[str, str], tuple[float, float, int]]:
    """{(source, target): (weight, share, number of edges)}."""
    found = page.eval_on_selector_all("g.link", """links => links.map(({ dataset }) => [dataset.source, dataset.target,
      Number(dataset.weight), Number(dataset.share), Number(dataset.count)])""")
    return {(source, target): tuple(rest) for source, target, *rest in found}


def groups_in_hash(page: Page, graph: AttributionGraph) -> list[tuple[str, set[int]]]:
    found = in_hash(page).get("groups", [""])[0]
    parts = [group.split(",") for group in found.split(";") if group]
    return [(unquote(name), {graph.node_ids.index(i) for i in ids}) for name, *ids in parts]


def pins_in_hash(page: Page, graph: AttributionGraph) -> list[int]:
    return [graph.node_ids.index(i) for i in in_hash(page).get("pins", [""])[0].split(",") if i]


def at(page: Page, key: str) -> tuple[float, float]:
    """A point of the box's frame near its top, where no member stands."""
    box = boxes(page)[key]
    return box["x"] + box["width"] / 2, box["y"] + 5


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    page.mouse.move(*end)
    page.mouse.up()


def box_of(page: Page, key: str) -> Locator:
    return page.locator(f".box[data-key='{key}']")
