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
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array

from circuits.graphs.activations import feature_keys
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.group_names import folded

ROUNDS = 50
"""Shuffles of the null."""
PERCENTILE = 95.0
NEARER = 1e-9
"""What a layer of distance costs: of equally similar features the nearest match."""
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
    key: np.ndarray
    """(M,) int64 one number for each feature, the same at all positions"""
    layer: np.ndarray
    position: np.ndarray
    share: np.ndarray
    """(M,) of the influence of all features"""
    signature: csr_array
    """(M, V) rows of length 1"""


class _Pairs(NamedTuple):
    """Pairs of all positions: places in the two lists of features, and how similar."""

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray


_NO_PAIRS = _Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


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
    pairs, null = _all_pairs(one, two, window, np.random.default_rng(seed))
    similar = np.concatenate([np.empty(0), *(made.similarity for made in null)])
    limit = float(np.percentile(similar, PERCENTILE)) if len(similar) else math.nan
    found = [_beyond(made, limit) for made in (pairs, *null)]
    influence, *chance = [(float(one.share[made.first].sum()), float(two.share[made.second].sum())) for made in found]
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
    nodes, cards = graph.nodes, graph.feature_cards()
    features = np.flatnonzero(nodes.kind == "feature")
    total = float(nodes.influence[features].sum(dtype=np.float64)) or 1.0
    lists: dict[int, dict[int, float]] = {}
    if cards is not None:
        start, token, score = cards.promoted.start, cards.promoted.token, np.maximum(cards.promoted.score, 0.0)
        for node in features.tolist():
            card = cards.find(nodes.layer[node], nodes.feature[node])
            said: dict[int, float] = {}
            for i in range(start[card], start[card + 1]) if card >= 0 else ():
                column = columns.setdefault(folded(cards.texts[int(token[i])]), len(columns))
                said[column] = said.get(column, 0.0) + float(score[i])
            if any(said.values()):
                lists[node] = said
    known = np.array(list(lists), dtype=np.int64)
    sizes = np.array([math.sqrt(sum(x * x for x in said.values())) for said in lists.values()])
    lengths = np.array([len(said) for said in lists.values()], dtype=np.int64)
    weights = np.array([x for said in lists.values() for x in said.values()]) / np.repeat(sizes, lengths)
    indices = np.array([column for said in lists.values() for column in said], dtype=np.int64)
    signature = csr_array((weights, indices, np.append(0, np.cumsum(lengths))),
                          shape=(len(known), max(1, len(columns))))
    return _Features(known, feature_keys(nodes.layer[known], nodes.feature[known]), nodes.layer[known],
                     nodes.position[known], nodes.influence[known].astype(np.float64) / total, signature)


def _all_pairs(one: _Features, two: _Features, window: int, rng: np.random.Generator) -> tuple[_Pairs, list[_Pairs]]:
    """The best pairs at all positions, and those of every round of the null; no rounds where no position has one."""
    pairs, rounds = [_NO_PAIRS], [list[_Pairs]() for _ in range(ROUNDS)]
    for position in np.intersect1d(one.position, two.position):
        a, b = np.flatnonzero(one.position == position), np.flatnonzero(two.position == position)
        similarity = np.minimum((one.signature[a] @ two.signature.T).toarray(), 1.0)
        away = np.abs(one.layer[a][:, None] - two.layer[b])
        pairs.append(_paired(a, b, similarity[:, b], away, window))
        for made, drawn in zip(rounds, _drawn(two, b, window, rng), strict=False):
            made.append(_paired(a, b, similarity[:, drawn], away, window))
    return _joined(pairs), [_joined(made) for made in rounds if made]


def _paired(a: np.ndarray, b: np.ndarray, similarity: np.ndarray, away: np.ndarray, window: int) -> _Pairs:
    """The best pairs of the features ``a`` (m,) and ``b`` (n,) of one position, ``away`` (m, n) layers apart."""
    near = away <= window
    worth = np.where(near, similarity, 0.0) - NEARER * np.minimum(away, window + 1)
    rows, places = linear_sum_assignment(worth, maximize=True)
    chosen = near[rows, places]
    rows, places = rows[chosen], places[chosen]
    return _Pairs(a[rows], b[places], similarity[rows, places])


def _drawn(two: _Features, here: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """(ROUNDS, n) for each of the features ``here`` (n,) of one position another whose signature it gets, one that does
    not fire here and is within the window, or in any layer where there is none; (0, n) where all fire here."""
    elsewhere = np.flatnonzero(~np.isin(two.key, two.key[here]))
    _, once = np.unique(two.key[elsewhere], return_index=True)
    pool = elsewhere[once]
    if not len(pool):
        return np.empty((0, len(here)), np.int64)
    close = [pool[np.abs(two.layer[pool] - layer) <= window] for layer in two.layer[here]]
    return np.stack([rng.choice(some if len(some) else pool, ROUNDS) for some in close], axis=1)


def _joined(parts: list[_Pairs]) -> _Pairs:
    return _Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _beyond(pairs: _Pairs, limit: float) -> _Pairs:
    """Those more similar than the limit; none where there is no limit."""
    kept = pairs.similarity > limit
    return _Pairs(*(column[kept] for column in pairs))


def _shared(one: _Features, two: _Features, first: int, second: int, texts: list[str]) -> tuple[str, ...]:
    """The tokens that make up most of the similarity of two features, by their places in the lists."""
    sides = [(made.signature, slice(*made.signature.indptr[at:at + 2])) for made, at in ((one, first), (two, second))]
    common, *places = np.intersect1d(*(made.indices[row] for made, row in sides), return_indices=True)
    products = np.prod([made.data[row][place] for (made, row), place in zip(sides, places, strict=True)], axis=0)
    return tuple(texts[column] for column in common[np.argsort(-products, kind="stable")[:SHARED]])


def _count(graph: AttributionGraph) -> int:
    return int((graph.nodes.kind == "feature").sum())
