"""Features of one graph matched with features of another of the same prompt, by the tokens that they promote.

Dictionaries share no numbering and no basis, but their features stand at the same positions and write to the same
logits. A feature's signature is its list of promoted tokens with their scores; two features are as similar as the
cosine of their signatures, spaces and capitals aside. At each position the features within a window of layers are
paired one to one so that the similarities sum to the most. A pair is a match where it is more similar than 95% of the
pairs made the same way when every feature of the second graph has the signature of another of its features, one of
about the same layer that does not fire at this position.

Shapes: M and N features of the two graphs, V promoted tokens, m and n of them at one position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from circuits.graphs.activations import feature_keys
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.pairing import PERCENTILE, Pairs, Places, pair_up
from circuits.graphs.signatures import promoted_rows, unit_rows

SHARED = 4
"""Most tokens that a pair names."""


@dataclass(frozen=True)
class Match:
    """A pair of features that are more alike than chance."""

    first: int
    """Node of the first graph."""
    second: int
    similarity: float
    shared: tuple[str, ...]
    """Tokens that both promote, those that make them alike most first. Foreign strings."""


@dataclass(frozen=True)
class FeatureMatches:
    """What :func:`match_features` found; pairs of numbers are of the first and the second graph."""

    matches: list[Match]
    """Those with the largest influence, of both features together, first."""
    compared: tuple[int, int]
    """Features whose promoted tokens are known."""
    features: tuple[int, int]
    paired: int
    """Pairs that were made, matches or not."""
    limit: float
    """Similarity above which a pair is a match; NaN where no null can be made, and then no pair is one."""
    influence: tuple[float, float]
    """Share of the influence of all these features that matched ones have."""
    chance: tuple[float, float]
    """The same in the null, on average."""
    window: int
    """Layers between two features that may be paired."""

    def numbers(self, first: AttributionGraph, second: AttributionGraph) -> dict[str, Any]:
        """Ready for JSON. Args: the graphs that were matched."""
        matches = [{"first": first.node_ids[match.first], "second": second.node_ids[match.second],
                    "labels": [str(first.nodes.label[match.first]), str(second.nodes.label[match.second])],
                    "similarity": match.similarity, "shared": list(match.shared)} for match in self.matches]
        limit = None if math.isnan(self.limit) else self.limit
        return {**vars(self), "limit": limit, "matched": len(matches), "matches": matches}


class _Features(NamedTuple):
    """Features of a graph whose promoted tokens are known."""

    nodes: np.ndarray
    """(M,) their nodes"""
    places: Places
    """Depths are layers."""
    share: np.ndarray
    """(M,) of the influence of all features"""
    signature: csr_array
    """(M, V) rows of length 1"""


def match_features(first: AttributionGraph, second: AttributionGraph, window: int, seed: int = 0) -> FeatureMatches:
    """Match the features of two graphs of one prompt, each of which carries feature cards; without, none match.

    Args:
        window: most layers between two features that may be paired.
        seed: of the null.
    """
    columns: dict[str, int] = {}
    one, two = (_features(graph, columns) for graph in (first, second))
    for features in (one, two):
        features.signature.resize(len(features.nodes), max(1, len(columns)))

    def alike(rows: np.ndarray) -> np.ndarray:
        return np.minimum((one.signature[rows] @ two.signature.T).toarray(), 1.0)

    made = pair_up(one.places, two.places, alike, window, rng=np.random.default_rng(seed))
    pairs, null = made.pairs, made.null
    similar = np.concatenate([np.empty(0), *(chance.similarity for chance in null)])
    limit = float(np.percentile(similar, PERCENTILE)) if len(similar) else math.nan
    found = [_beyond(some, limit) for some in (pairs, *null)]
    influence, *chance = [(float(one.share[some.first].sum()), float(two.share[some.second].sum())) for some in found]
    matched = found[0]
    order = np.argsort(-(one.share[matched.first] + two.share[matched.second]), kind="stable")
    texts = list(columns)
    matches = [Match(int(one.nodes[a]), int(two.nodes[b]), float(similarity), _shared(one, two, a, b, texts))
               for a, b, similarity in zip(*(column[order] for column in matched), strict=True)]
    by_chance = tuple(np.mean(chance, axis=0).tolist()) if chance else (0.0, 0.0)
    return FeatureMatches(
        matches, compared=(len(one.nodes), len(two.nodes)), paired=len(pairs.first), limit=limit, influence=influence,
        features=(_count(first), _count(second)), chance=(by_chance[0], by_chance[1]), window=window)


def _features(graph: AttributionGraph, columns: dict[str, int]) -> _Features:
    """``columns``: the column of each token; new ones are added, so that the width is known when both are read."""
    nodes = graph.nodes
    features = np.flatnonzero(nodes.kind == "feature")
    total = float(nodes.influence[features].sum(dtype=np.float64)) or 1.0
    names = list(zip(nodes.layer[features].tolist(), nodes.feature[features].tolist(), strict=True))
    view = unit_rows(promoted_rows(graph.feature_cards(), names, columns))
    known = features[view.known]
    layer, feature = nodes.layer[known], nodes.feature[known]
    return _Features(known, Places(feature_keys(layer, feature), nodes.position[known], layer),
                     nodes.influence[known].astype(np.float64) / total, view.rows[view.known])


def _beyond(pairs: Pairs, limit: float) -> Pairs:
    """Those more similar than the limit; none where there is no limit."""
    return pairs.among(pairs.similarity > limit)


def _shared(one: _Features, two: _Features, first: int, second: int, texts: list[str]) -> tuple[str, ...]:
    """The tokens that make up most of the similarity of two features, by their places in the lists."""
    sides = [(made.signature, slice(*made.signature.indptr[at:at + 2])) for made, at in ((one, first), (two, second))]
    common, *places = np.intersect1d(*(made.indices[row] for made, row in sides), return_indices=True)
    products = np.prod([made.data[row][place] for (made, row), place in zip(sides, places, strict=True)], axis=0)
    return tuple(texts[column] for column in common[np.argsort(-products, kind="stable")[:SHARED]])


def _count(graph: AttributionGraph) -> int:
    return int((graph.nodes.kind == "feature").sum())
