"""Features of a graph, where they stand and what they are compared by.

Shapes: N nodes, M features of a graph, m of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from circuits.graphs.activations import feature_keys
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.pairing import Pairs, Places
from circuits.graphs.signatures import Signatures, View, similarities

NOWHERE = -1
"""Position of features that do not fire, and their node."""


class Features(NamedTuple):
    """Features of a graph that have a signature."""

    nodes: np.ndarray
    """(M,) their nodes."""
    places: Places
    """Depths are shares of the layers."""
    share: np.ndarray
    """(M,) of the influence of all features."""
    views: dict[str, View]
    texts: Mapping[int, str]

    @classmethod
    def of(cls, graph: AttributionGraph, signatures: Signatures, *, spare: bool = False) -> Features:
        """Of the feature nodes of ``graph``, those of which ``signatures`` know something.

        Args:
            spare: the spare features come after them, at position NOWHERE and without node or influence.
        """
        nodes = graph.nodes
        features = np.flatnonzero(nodes.kind == "feature")
        amount = np.maximum(np.nan_to_num(nodes.influence[features].astype(np.float64)), 0.0)
        row = signatures.find(nodes.layer[features], nodes.feature[features])
        known = row >= 0
        known[known] = signatures.known[row[known]]
        chosen, rows = features[known], row[known]
        extra = rows[:0]
        if spare and signatures.spare is not None:
            extra = np.flatnonzero(signatures.spare & signatures.known)
        none, rows = np.full(len(extra), NOWHERE), np.append(rows, extra)
        layer = signatures.layer[rows]
        places = Places(feature_keys(layer, signatures.feature[rows]), np.append(nodes.position[chosen], none),
                        _depth(layer, graph))
        share = np.append(amount[known] / (amount.sum() or 1.0), np.zeros(len(extra)))
        return cls(np.append(chosen, none), places, share, signatures.take(rows), signatures.texts)

    def scores(self, other: Features, rows: np.ndarray) -> np.ndarray:
        """(m, M') mean of the known similarities of the features ``rows`` (m,) to all of ``other``, at least 0; 0
        where none is known in both."""
        made = list(similarities(self.views, other.views, rows).values())
        total, count = np.zeros((2, len(rows), len(other.nodes)))
        for view in made:
            total += np.nan_to_num(view)
            count += ~np.isnan(view)
        return np.maximum(total / np.maximum(count, 1), 0.0)


def relative_depth(graph: AttributionGraph) -> np.ndarray:
    """(N,) middle of a node's layer as a share of the layers: 0 below the first, 1 above the last."""
    return _depth(graph.nodes.layer, graph)


def _depth(layer: np.ndarray, graph: AttributionGraph) -> np.ndarray:
    return np.clip((layer + 0.5) / max(graph.header.n_layers, 1), 0.0, 1.0)


def jaccard(one: Features, two: Features, pairs: Pairs) -> float:
    """Sum over pairs of the smaller share of influence, over the sum of all shares less that; NaN where one of the
    graphs has no features."""
    both = float(np.minimum(one.share[pairs.first], two.share[pairs.second]).sum())
    return both / (2.0 - both) if one.share.any() and two.share.any() else math.nan
