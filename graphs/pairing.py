"""Features of two graphs paired one to one, position by position, and the same with shuffled signatures.

Shapes: M and N features of the two graphs, m and n of them at one position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

ROUNDS = 50
"""Shuffles of the null."""
PERCENTILE = 95.0
CALIBRATED_BY = 30
"""Pairs that were not made, from which on their mean says what chance is."""
NEARER = 1e-9
"""What a unit of distance in depth costs: of equally similar features the nearest are paired."""


class Places(NamedTuple):
    """Where the features of a graph stand."""

    key: np.ndarray
    """(M,) int64 one number for each feature, the same at all positions."""
    position: np.ndarray
    depth: np.ndarray
    """(M,) layer, or share of the layers."""


class Pairs(NamedTuple):
    """Pairs of all positions: places in the two lists of features, and how similar."""

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray

    def among(self, kept: np.ndarray) -> Pairs:
        """Those in the mask ``kept``."""
        return Pairs(*(column[kept] for column in self))


Alike = Callable[[np.ndarray], np.ndarray]
"""Gives the similarity (m, N) of some features (m,) of the first graph to all features of the second."""


class Mean(NamedTuple):
    """Mean of similarities, and how many they are."""

    mean: float
    size: int

    @classmethod
    def of(cls, parts: list[np.ndarray]) -> Mean:
        """Of numbers that come in parts."""
        values = np.concatenate([np.empty(0), *parts])
        return cls(float(values.mean()), len(values)) if len(values) else cls(0.0, 0)


class Paired(NamedTuple):
    """What :func:`pair_up` makes."""

    pairs: Pairs
    null: list[Pairs]
    """Of every round."""
    unpaired: Mean
    """Of the features that stood at one position within the window and were not paired; and the same in the null."""
    null_unpaired: Mean

    def calibrated_null(self) -> list[Pairs]:
        """The null for signatures of what features read. Features that fire at one position read one input, and
        resemble each other for that alone; those of the null fire elsewhere. So the null is raised by as much as the
        features that were not paired are more alike here, on average, up to 1, which only a feature itself reaches.
        (Spreads are not compared: similarities have long tails, which scaling would drive beyond anything that is.)
        """
        here, there = self.unpaired, self.null_unpaired
        if min(here.size, there.size) < CALIBRATED_BY:
            return self.null
        raised = max(0.0, here.mean - there.mean)
        return [made._replace(similarity=np.maximum(made.similarity, np.minimum(made.similarity + raised, 1.0)))
                for made in self.null]


def pair_up(one: Places, two: Places, alike: Alike, window: float, fall: float = 0.0,
            rng: np.random.Generator | None = None, *, distinct: bool = False) -> Paired:
    """At each position the features at most ``window`` apart in depth are paired so that the similarities sum to the
    most; a unit of distance takes the share ``fall`` off a similarity.

    Args:
        rng: makes the null: ROUNDS times the same when every feature of the second graph has the signature of another
            of its features, one of about the same depth that does not fire at this position. No rounds without it, or
            where no position has such features.
    """
    n_rounds = 0 if rng is None else ROUNDS
    pairs, rounds = [_NO_PAIRS], [list[Pairs]() for _ in range(n_rounds)]
    left: list[np.ndarray] = []
    null_left: list[np.ndarray] = []
    for position in np.intersect1d(one.position, two.position):
        a, b = np.flatnonzero(one.position == position), np.flatnonzero(two.position == position)
        similarity, away = alike(a), np.abs(one.depth[a][:, None] - two.depth[b])
        pairs.append(_paired(a, b, similarity[:, b], away, window, fall, left))
        if rng is not None:
            for made, drawn in zip(rounds, _drawn(two, b, window, rng, distinct), strict=False):
                made.append(_paired(a, b, similarity[:, drawn], away, window, fall, null_left))
    null = [_joined(made) for made in rounds if made]
    return Paired(_joined(pairs), null, Mean.of(left), Mean.of(null_left))


def faded(similarity: np.ndarray, away: np.ndarray, window: float, fall: float) -> np.ndarray:
    """(m, n) similarities less what the distance takes off; 0 beyond the window."""
    return np.where(away <= window, similarity * (1.0 - fall * away), 0.0)


def _paired(a: np.ndarray, b: np.ndarray, similarity: np.ndarray, away: np.ndarray, window: float, fall: float,
            left: list[np.ndarray]) -> Pairs:
    """The best pairs of the features ``a`` (m,) and ``b`` (n,) of one position, ``away`` (m, n) apart; ``left`` takes
    the scores of the others."""
    score, near = faded(similarity, away, window, fall), away <= window
    rows, places = linear_sum_assignment(score - NEARER * np.minimum(away, window + 1), maximize=True)
    others = near.copy()
    others[rows, places] = False
    left.append(score[others])
    chosen = near[rows, places]
    rows, places = rows[chosen], places[chosen]
    return Pairs(a[rows], b[places], score[rows, places])


def _drawn(two: Places, here: np.ndarray, window: float, rng: np.random.Generator, distinct: bool) -> np.ndarray:
    """(ROUNDS, n) for each of the features ``here`` (n,) of one position another whose signature it gets, one that
    does not fire here and is within the window, or at any depth where there is none; (0, n) where all fire here."""
    elsewhere = np.flatnonzero(~np.isin(two.key, two.key[here]))
    _, once = np.unique(two.key[elsewhere], return_index=True)
    pool = elsewhere[once]
    if not len(pool):
        return np.empty((0, len(here)), np.int64)
    if distinct:
        return np.stack([_distinct(two, here, pool, window, rng) for _ in range(ROUNDS)])
    close = [pool[np.abs(two.depth[pool] - depth) <= window] for depth in two.depth[here]]
    return np.stack([rng.choice(some if len(some) else pool, ROUNDS) for some in close], axis=1)


def _distinct(two: Places, here: np.ndarray, pool: np.ndarray, window: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) of the ``pool``, none twice as long as it suffices."""
    drawn, free = np.empty(len(here), np.int64), rng.permutation(pool)
    for depth in rng.permutation(np.unique(two.depth[here])):
        wanted = np.flatnonzero(two.depth[here] == depth)
        near = np.abs(two.depth[free] - depth) <= window
        taken = free[near][:len(wanted)]
        drawn[wanted[:len(taken)]] = taken
        free = free[~np.isin(free, taken)]
        if len(taken) < len(wanted):
            close = pool[np.abs(two.depth[pool] - depth) <= window]
            drawn[wanted[len(taken):]] = rng.choice(close if len(close) else pool, len(wanted) - len(taken))
    return drawn


_NO_PAIRS = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def _joined(parts: list[Pairs]) -> Pairs:
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
