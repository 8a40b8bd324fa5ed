"""What the edges of a graph alone say of ablating a feature, without running the model.

Shapes: N nodes, n features, K logits.
"""

from __future__ import annotations

import numpy as np

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import levels


def linear_effects(graph: AttributionGraph, features: np.ndarray) -> np.ndarray:
    """(n, K) changes of the logit nodes' values when one of ``features`` (n,) is ablated.

    A node whose value falls by some share sends that share less along its edges; a feature's value follows its input.
    So signs count, and what cancels cancels, which influence leaves out. It takes active features to stay active and
    silent ones silent, and knows only the nodes and edges that the graph has.
    """
    nodes, edges = graph.nodes, graph.adjacency().astype(np.float64)
    shares = np.zeros((len(graph), len(features)))
    shares[features, np.arange(len(features))] = -1.0
    level, is_feature = levels(graph), nodes.kind == "feature"
    for depth in np.unique(level[is_feature]):
        here = np.flatnonzero(is_feature & (level == depth) & (nodes.value != 0))
        shares[here] += (edges[here] @ shares) / nodes.value[here, None]
    return (edges[np.flatnonzero(nodes.kind == "logit")] @ shares).T
