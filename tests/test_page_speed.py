"""The page is quick where it is large: 5,000 nodes and 100,000 edges, with feature cards, on one core without a GPU.

Other programs on the machine make every time longer and none shorter, so the best of a few tries is held against the
limits. Where even that is too long on a machine with more to do than cores, the browser's own processor time is, plus
the two frames that a measured answer waits for: what it would take if nothing else ran.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_graphs import random_cards

from circuits.graphs.page import write

TRIES = 6
FRAMES = 2 * 1000 / 60


@pytest.fixture(scope="module")
def speed() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        import page_speed

        yield page_speed


@pytest.fixture(scope="module")
def large_page(speed: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph = speed.page_graph()
    assert len(graph) == 5000
    assert graph.n_edges >= 100_000
    graph = replace(graph, cards=random_cards(graph, contexts=2))
    path = tmp_path_factory.mktemp("speed") / "graph.html"
    write(graph, path)
    return path


def test_paint_hover_selection_and_panning_are_within_the_limits(speed, large_page, browser):
    limits = speed.LIMITS
    best: dict[str, float] = dict.fromkeys(limits, float("inf"))
    own = dict(best)
    for _ in range(TRIES):
        report = speed.measure(browser, large_page)
        assert report["hover_ms"]["n"] == speed.HOVERS
        assert report["select_ms"]["n"] == speed.SELECTIONS
        assert report["panned_px"] > 1000
        for name in limits:
            figure = report[name] if isinstance(report[name], int) else report[name]["worst"]
            best[name] = min(best[name], figure)
        for name, milliseconds in report["cpu_ms"].items():
            own[name] = min(own[name], milliseconds)
        if all(best[name] < limit for name, limit in limits.items()):
            break
    late = {name: best[name] for name, limit in limits.items() if best[name] >= limit}
    if late and os.getloadavg()[0] > (os.cpu_count() or 1):
        late = {name: (best[name], own[name]) for name in late if own[name] + FRAMES >= limits[name]}
    assert not late, (late, report)
