"""Where influence has arrived: the frontier's bookkeeping against the graph's own influence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_attribution import TOKENS, write
from tiny_models import text_folder

import circuits
from circuits import frontier
from circuits.row_store import RowStore


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    root: Path = tmp_path_factory.mktemp("frontier")
    model = circuits.load_model(text_folder(root / "model"), device="cpu")
    return model, circuits.open_transcoders(write(root / "clt", "clt", True)[1])


@pytest.mark.parametrize("settings", [{"coverage": 0.6}, {"coverage": 0.9}, {"max_features": 25}])
def test_what_arrived_is_the_graphs_influence(opened, monkeypatch: pytest.MonkeyPatch, settings: dict) -> None:
    seen: list[frontier.Frontier] = []
    start = frontier.Frontier.__init__

    def noted(self: frontier.Frontier, *arguments: object) -> None:
        start(self, *arguments)
        seen.append(self)

    monkeypatch.setattr(frontier.Frontier, "__init__", noted)
    graph = circuits.trace(*opened, tokens=TOKENS, **settings)
    features = graph.nodes.kind == "feature"
    (used,) = seen
    weight = float(graph.target_weights.sum())
    np.testing.assert_allclose(weight * used.arrived[:features.sum()], graph.nodes.influence[features], atol=1e-5)
    waiting = graph.nodes.influence[features & ~graph.nodes.expanded].sum() / weight
    assert graph.unexplored == pytest.approx(waiting, abs=1e-5)


def test_every_row_is_computed_once(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    add = RowStore.add

    def noted(self: RowStore, block) -> None:
        added.extend(block.targets.tolist())
        add(self, block)

    monkeypatch.setattr(RowStore, "add", noted)
    graph = circuits.trace(*opened, tokens=TOKENS, coverage=0.97)
    assert len(added) == len(set(added)) == graph.nodes.expanded.sum()


def test_influential_features_get_their_rows_first(opened) -> None:
    """By mass over the square root of cost: those left out have less of it than most of those that were taken."""
    graph = circuits.trace(*opened, tokens=TOKENS, coverage=0.9)
    nodes, features = graph.nodes, graph.nodes.kind == "feature"
    rank = nodes.influence / np.sqrt((nodes.layer + 1.0) * (nodes.position + 1.0))
    taken, left = rank[features & nodes.expanded], rank[features & ~nodes.expanded]
    assert len(left) > 5
    assert np.quantile(taken, 0.1) >= np.quantile(left, 0.9)


def test_a_limit_is_kept_and_used(opened) -> None:
    for limit in (1, 10, 40):
        graph = circuits.trace(*opened, tokens=TOKENS, max_features=limit, coverage=1.0)
        assert (graph.nodes.expanded & (graph.nodes.kind == "feature")).sum() == limit
