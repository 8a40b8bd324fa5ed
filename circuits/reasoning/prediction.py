"""What the graph's edges say of ablating many features at once, without running the model.

Shapes: N nodes, K logits, S sets of features.
"""

from __future__ import annotations

import numpy as np

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import levels


def direct_effects(graph: AttributionGraph, ablated: np.ndarray) -> np.ndarray:
    """(S, K) changes of the logit nodes' values when sets of features (N, S) are ablated and all others held."""
    return -(_into_logits(graph) @ ablated.astype(np.float64)).T


def linear_effects_together(graph: AttributionGraph, ablated: np.ndarray) -> np.ndarray:
    """(S, K) the same when the other features follow their inputs.

    What :func:`circuits.validation.linear.linear_effects` says of one feature: a node whose value falls by some share
    sends that share less along its edges. Features of a set stay ablated, whatever reaches them.
    """
    nodes, edges = graph.nodes, graph.adjacency().astype(np.float64)
    shares = -ablated.astype(np.float64)
    level, follows = levels(graph), (nodes.kind == "feature") & (nodes.value != 0)
    for depth in np.unique(level[follows]):
        here = np.flatnonzero(follows & (level == depth))
        shares[here] = np.where(ablated[here], -1.0, (edges[here] @ shares) / nodes.value[here, None])
    return (_into_logits(graph) @ shares).T


def _into_logits(graph: AttributionGraph) -> np.ndarray:
    """(K, N) dense: edges of the logit nodes, in node order."""
    return graph.adjacency()[np.flatnonzero(graph.nodes.kind == "logit")].astype(np.float64).toarray()
