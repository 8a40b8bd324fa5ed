"""What two attribution graphs of one prompt agree on: made with two transcoder sets, they describe one model.

A cross-layer transcoder can do in one step what the model does in several (Lange et al. 2026), so what a graph says
should be looked for in a graph of per-layer transcoders too. Every measure of agreement comes with its null: the same
measure with the second graph's positions, layers or lists of tokens shuffled, from a fixed seed. Two graphs agree in a
measure where it is above the 95th percentile of its null.

Shapes: L layers, P positions, S steps of the longest path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from scipy.stats import rankdata

from circuits.errors import InputError
from circuits.graphs.agreement_features import FeatureMatches, match_features
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.lengths import ENDS, PathLengths, path_lengths

SHUFFLES = 1000
LEVEL = 0.05
"""Share of the null that may reach an agreement."""


@dataclass(frozen=True, eq=False)
class Measure:
    """One measure of agreement, higher for graphs that are more alike, against its null."""

    value: float
    """NaN where one of the graphs has nothing to compare."""
    chance: float
    """Mean over the null."""
    limit: float
    """95th percentile of the null."""
    p: float
    """Share of the null, the graphs themselves counted in, that reaches the value."""
    shuffled: int
    """Positions or layers that the null shuffles: below four, no value can be told from chance."""

    @property
    def agrees(self) -> bool:
        """Whether the value is beyond chance."""
        return self.p <= LEVEL

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {name: plain(value) for name, value in vars(self).items()} | {"agrees": self.agrees}


@dataclass(frozen=True, eq=False)
class Side:
    """What one of the two graphs measures by itself."""

    graph: AttributionGraph
    pruned: AttributionGraph
    """What :attr:`Agreement.features` compares."""
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
    one, two = (_side(graph, node_threshold, edge_threshold) for graph in (first, second))
    layers = max(1, first.header.n_layers // 4) if window is None else window
    places, tokens = (one.feature_influence, two.feature_influence), (one.token_influence, two.token_influence)
    used = _used(*places)
    return Agreement(
        one, two, tokens=_measure(overlap, *tokens, seed),
        token_order=_measure(_correlation, rankdata(tokens[0]), rankdata(tokens[1]), seed),
        places=_measure(overlap, *used, seed), layers=_measure(overlap, places[0].sum(1), places[1].sum(1), seed),
        positions=_measure(overlap, used[0].sum(0), used[1].sum(0), seed),
        steps=overlap(*_same_length(one.lengths.distribution(), two.lengths.distribution())),
        features=match_features(one.pruned, two.pruned, layers, seed))


def check_window(window: int | None) -> None:
    """That features can be matched within it.

    Raises:
        InputError: below 0.
    """
    if window is not None and window < 0:
        raise InputError(f"window is {window}: expected a number of layers from 0 up")


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """1 - total variation distance of two distributions of one shape; NaN where one of them is all zeros."""
    return float(np.minimum(one, two).sum()) if one.any() and two.any() else math.nan


def plain(value: float) -> float | None:
    """A number as JSON holds it: None for NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


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


def _side(graph: AttributionGraph, node_threshold: float, edge_threshold: float) -> Side:
    lengths, nodes = path_lengths(graph), graph.nodes
    n_pos = max(len(graph.header.tokens), int(nodes.position.max()) + 1)
    tokens, places = np.zeros(n_pos), np.zeros((max(graph.header.n_layers, int(nodes.layer.max())), n_pos))
    embedding, feature = nodes.kind == "embedding", nodes.kind == "feature"
    np.add.at(tokens, nodes.position[embedding], lengths.influence[embedding])
    np.add.at(places, (nodes.layer[feature], nodes.position[feature]), lengths.influence[feature])
    return Side(graph, graph.prune(node_threshold, edge_threshold), lengths, path_lengths(graph, errors=False),
                tokens / (tokens.sum() or 1.0), places / (places.sum() or 1.0))


def _used(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns in which either has something: features are not read at the first positions, and shuffling those in
    would make chance look worse than it is."""
    used = one.any(0) | two.any(0)
    return one[:, used], two[:, used]


def _same_length(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    length = max(len(one), len(two))
    return np.pad(one, (0, length - len(one))), np.pad(two, (0, length - len(two)))


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Pearson's; NaN where one is constant."""
    a, b = one - one.mean(), two - two.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 0 else math.nan


def _measure(alike: Callable[[np.ndarray, np.ndarray], float], one: np.ndarray, two: np.ndarray, seed: int) -> Measure:
    """Null: the last axis of the second shuffled."""
    value = alike(one, two)
    if math.isnan(value):
        return Measure(value, math.nan, math.nan, 1.0, one.shape[-1])
    null = np.array([alike(one, two[..., order]) for order in _orders(one.shape[-1], seed)])
    reached = np.count_nonzero(null >= value - 1e-12)  # an order that changes nothing is as good, whatever rounding
    return Measure(value, float(null.mean()), float(np.quantile(null, 1 - LEVEL)), float(reached / len(null)),
                   one.shape[-1])


def _orders(n: int, seed: int) -> list[np.ndarray]:
    """The order as it is, and all others of n things, or SHUFFLES at random where there are more."""
    if math.factorial(n) <= SHUFFLES:
        return [np.array(order) for order in permutations(range(n))]
    rng = np.random.default_rng(seed)
    return [np.arange(n), *(rng.permutation(n) for _ in range(SHUFFLES))]
