"""What two attribution graphs of one prompt agree on: made with two transcoder sets, they describe one model.

A cross-layer transcoder can do in one step what the model does in several (Lange et al. 2026), so what a graph says
should be looked for in a graph of per-layer transcoders too. Every measure of agreement comes with its null: the same
measure with the second graph's positions, layers or lists of tokens shuffled, from a fixed seed. Two graphs agree in a
measure where it is above the 95th percentile of its null.

Shapes: L layers, P positions, S steps of the longest path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from circuits.errors import InputError
from circuits.graphs.agreement_features import FeatureMatches, match_features
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.measure import Measure, correlation, measure, overlap, plain, same_length, used_columns
from circuits.graphs.side import Side, side_of


@dataclass(frozen=True, eq=False)
class Agreement:
    """What :func:`compare` found."""

    first: Side
    second: Side
    tokens: Measure
    """Overlap of the influence of tokens: the sum over tokens of the smaller share, 1 - total variation distance.
    Null: tokens shuffled."""
    token_order: Measure
    """Spearman correlation of the influence of tokens. Null: tokens shuffled."""
    places: Measure
    """Overlap of features' influence by layer and position. Null: positions shuffled, those with features."""
    layers: Measure
    """Overlap of features' influence by layer. Null: layers shuffled."""
    positions: Measure
    """Overlap of features' influence by position. Null: positions shuffled, those with features."""
    steps: float
    """Overlap of the numbers of steps of paths from tokens; NaN where no token is reached. It has no null."""
    features: FeatureMatches

    @property
    def shortening(self) -> float:
        """Steps by which paths from tokens are shorter in the first graph than in the second, on average."""
        return self.second.lengths.mean() - self.first.lengths.mean()

    @property
    def shortening_without_errors(self) -> float:
        """The same with errors left out: what the errors themselves shorten does not count."""
        return self.second.without_errors.mean() - self.first.without_errors.mean()

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        measures = {name: getattr(self, name).numbers()
                    for name in ("tokens", "token_order", "places", "layers", "positions")}
        header = self.first.graph.header
        return {"prompt": header.prompt, "model": header.model, "token_texts": header.token_texts,
                "targets": [str(self.first.graph.nodes.label[node]) for node in self.first.graph.target_nodes],
                "first": self.first.numbers(), "second": self.second.numbers(), **measures,
                "steps": {"value": plain(self.steps), "shortening": plain(self.shortening),
                          "shortening_without_errors": plain(self.shortening_without_errors)},
                "features": self.features.numbers(self.first.pruned, self.second.pruned)}


def compare(first: AttributionGraph, second: AttributionGraph, *, node_threshold: float = 0.8,
            edge_threshold: float = 0.98, window: int | None = None, seed: int = 0) -> Agreement:
    """Compare two graphs of one prompt, one model and the same targets.

    Args:
        node_threshold, edge_threshold: what the graphs are pruned to before their features are matched; everything
            else is measured on the graphs as they are.
        window: layers between two features that may match; by default a quarter of the model's.
        seed: of every null.

    Raises:
        InputError: graphs of different prompts, models or targets, or without targets; a threshold outside [0, 1]; a
            negative window; an edge that does not go up in layer.
    """
    _check_pair(first, second)
    check_window(window)
    one, two = (side_of(graph, graph.prune(node_threshold, edge_threshold)) for graph in (first, second))
    layers = max(1, first.header.n_layers // 4) if window is None else window
    places, tokens = (one.feature_influence, two.feature_influence), (one.token_influence, two.token_influence)
    used = used_columns(*places)
    return Agreement(
        one, two, tokens=measure(overlap, *tokens, seed),
        token_order=measure(correlation, rankdata(tokens[0]), rankdata(tokens[1]), seed),
        places=measure(overlap, *used, seed), layers=measure(overlap, places[0].sum(1), places[1].sum(1), seed),
        positions=measure(overlap, used[0].sum(0), used[1].sum(0), seed),
        steps=overlap(*same_length(one.lengths.distribution(), two.lengths.distribution())),
        features=match_features(one.pruned, two.pruned, layers, seed))


def check_window(window: int | None) -> None:
    """That features can be matched within it.

    Raises:
        InputError: below 0.
    """
    if window is not None and window < 0:
        raise InputError(f"window is {window}: expected a number of layers from 0 up")


def _check_pair(first: AttributionGraph, second: AttributionGraph) -> None:
    one, two = first.header, second.header
    for what, a, b in (("prompts", one.tokens, two.tokens), ("models", one.model, two.model),
                       ("numbers of layers", one.n_layers, two.n_layers)):
        if a != b:
            raise InputError(f"the graphs are of different {what} ({a} and {b}): trace one prompt of one model with "
                             "both transcoder sets")
    asked = [[graph.nodes.token[graph.target_nodes].tolist(), graph.header.settings.get("target"),
              graph.header.settings.get("versus")] for graph in (first, second)]
    if asked[0] != asked[1] or not np.allclose(first.target_weights, second.target_weights, rtol=1e-3):
        labels = [", ".join(str(graph.nodes.label[node]) for node in graph.target_nodes) for graph in (first, second)]
        raise InputError(f"the graphs have different targets ({labels[0]} and {labels[1]}): trace both with the same "
                         "settings")
