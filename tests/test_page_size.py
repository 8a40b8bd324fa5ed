"""How large a page is, with real feature cards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from page_samples import sample_graph

from circuits import open_transcoders
from circuits.features import feature_data
from circuits.features.cards import TranscoderCards
from circuits.graphs.page import render


def test_2000_nodes_and_20000_edges_take_at_most_one_and_a_half_megabytes():
    graph = sample_graph(1740, seed=2)
    rng = np.random.default_rng(0)
    strongest = np.sort(rng.choice(graph.n_edges, 20_000, replace=False))
    keep = np.zeros(graph.n_edges, bool)
    keep[strongest] = True
    graph = graph.subgraph(np.ones(len(graph), bool), keep)
    assert len(graph) >= 2000
    assert graph.n_edges == 20_000
    transcoders = open_transcoders("bundled")
    data = feature_data(transcoders)
    assert data is not None
    nodes, feature = graph.nodes, graph.nodes.feature.copy()
    for layer in range(18):
        here = np.flatnonzero((nodes.kind == "feature") & (nodes.layer == layer))
        feature[here] = rng.choice(data.live(layer), len(here), replace=False)
    graph = replace(graph, nodes=replace(nodes, feature=feature), activations=None,
                    cards=TranscoderCards(None, transcoders, data))  # type: ignore[arg-type]
    cards = graph.feature_cards()
    assert cards is not None
    assert len(cards) > 1700
    size = len(render(graph).encode())
    assert size <= 1.5e6, size
    assert size >= 5e5, "without cards this would prove nothing"
