"""What one attribution graph measures by itself, for comparisons.

Shapes: L layers, P positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.lengths import ENDS, PathLengths, path_lengths
from circuits.graphs.measure import plain


@dataclass(frozen=True, eq=False)
class Side:
    """A graph and what it measures by itself."""

    graph: AttributionGraph
    pruned: AttributionGraph
    """The part whose features are compared."""
    lengths: PathLengths
    without_errors: PathLengths
    """The same with errors left out."""
    token_influence: np.ndarray
    """(P,) share of the influence that reaches tokens."""
    feature_influence: np.ndarray
    """(L, P) share of features' influence."""

    @property
    def name(self) -> str:
        """Of the transcoders."""
        return self.graph.header.transcoders or "a graph"

    @property
    def kind(self) -> str:
        """clt or plt."""
        return self.graph.header.transcoder_kind

    @property
    def scores(self) -> dict[str, float]:
        """Of the whole graph; counts are whole numbers."""
        graph, features = self.graph, self.graph.nodes.kind == "feature"
        return {"replacement": graph.scores.get("replacement", math.nan),
                "completeness": graph.scores.get("completeness", math.nan), "unexplored": graph.unexplored,
                "conservation": graph.conservation, "active_features": int(features.sum()), "nodes": len(graph),
                "edges": graph.n_edges, "pruned_nodes": len(self.pruned), "pruned_edges": self.pruned.n_edges}

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"transcoders": self.graph.header.transcoders, "kind": self.kind,
                "scores": {name: plain(value) for name, value in self.scores.items()},
                "ends": {end: self.lengths.share(end) for end in ENDS},
                "mean_steps": {end: plain(self.lengths.mean(end)) for end in ENDS[:2]},
                "mean_steps_without_errors": plain(self.without_errors.mean()),
                "steps": {end: self.lengths.distribution(end).tolist() for end in ENDS[:2]},
                "token_influence": self.token_influence.tolist(),
                "feature_influence": self.feature_influence.tolist()}


def side_of(graph: AttributionGraph, pruned: AttributionGraph) -> Side:
    """What ``graph`` measures; ``pruned`` is the part of it whose features are compared.

    Raises:
        InputError: no target has weight, or an edge does not go up in layer.
    """
    lengths, nodes = path_lengths(graph), graph.nodes
    n_pos = max(len(graph.header.tokens), int(nodes.position.max()) + 1)
    tokens, places = np.zeros(n_pos), np.zeros((max(graph.header.n_layers, int(nodes.layer.max())), n_pos))
    embedding, feature = nodes.kind == "embedding", nodes.kind == "feature"
    np.add.at(tokens, nodes.position[embedding], lengths.influence[embedding])
    np.add.at(places, (nodes.layer[feature], nodes.position[feature]), lengths.influence[feature])
    return Side(graph, pruned, lengths, path_lengths(graph, errors=False), tokens / (tokens.sum() or 1.0),
                places / (places.sum() or 1.0))
