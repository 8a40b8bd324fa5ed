"""The page's mathematics alone in a browser, for tests that compare it with Python's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.page.bundle import script
from circuits.graphs.page.content import page_content
from circuits.graphs.page.packed import pack

ENTRIES = ("prune", "influence", "graph", "packed")


class Modules:
    """Functions of the page's modules on one graph: expressions may name ``graph`` and whatever they export."""

    def __init__(self, page: Page):
        self.page = page
        made = ", ".join(f"...(() => {{ {script(f'{name}.js')}\nreturn module_{name}; }})()" for name in ENTRIES)
        self.names = ", ".join(page.evaluate(f"Object.keys(globalThis.modules = {{ {made} }})"))

    def open(self, graph: AttributionGraph, shown: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """Read ``graph`` as the page does; ``shown`` are the masks it opens with."""
        values, columns = page_content(graph, shown)
        self.page.evaluate("""async (data) => {
          globalThis.graph = new modules.Graph(await modules.unpack(data)); }""", pack(values, columns))

    def value(self, expression: str) -> Any:
        """What an expression gives, as plain values."""
        return self.page.evaluate(f"() => {{ const {{ {self.names} }} = modules; return {expression}; }}")

    def run(self, expression: str, *fields: str) -> dict[str, np.ndarray]:
        """Typed arrays among the fields of what an expression gives."""
        found = self.value(f"(({{ {', '.join(fields)} }}) => [{', '.join(f'Array.from({name})' for name in fields)}])"
                           f"({expression})")
        return dict(zip(fields, map(np.array, found), strict=True))


@pytest.fixture(scope="module")
def modules(browser: Browser) -> Iterator[Modules]:
    page = browser.new_page()
    page.goto("about:blank")
    yield Modules(page)
    page.close()
