"""One measure of how alike two graphs are, and its null: the same measure once something is shuffled.

A measure is beyond chance where it is above the 95th percentile of its null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

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


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """1 - total variation distance of two distributions of one shape; NaN where one of them is all zeros."""
    return float(np.minimum(one, two).sum()) if one.any() and two.any() else math.nan


def plain(value: float) -> float | None:
    """A number as JSON holds it: None for NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Pearson's; NaN where one is constant."""
    a, b = one - one.mean(), two - two.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 0 else math.nan


def used_columns(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns in which either has something: features are not read at the first positions, and shuffling those in
    would make chance look worse than it is."""
    used = one.any(0) | two.any(0)
    return one[:, used], two[:, used]


def same_length(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both (n,), the shorter one filled up with zeros."""
    length = max(len(one), len(two))
    return np.pad(one, (0, length - len(one))), np.pad(two, (0, length - len(two)))


def measure(alike: Callable[[np.ndarray, np.ndarray], float], one: np.ndarray, two: np.ndarray, seed: int | None
            ) -> Measure:
    """``alike`` of two arrays. Null: the last axis of the second shuffled by ``seed``, the order as it is counted in;
    without a seed there is none."""
    value = alike(one, two)
    if seed is None or math.isnan(value):
        return without_null(value, one.shape[-1])
    return against(value, [alike(one, two[..., order]) for order in orders(one.shape[-1], seed)], one.shape[-1])


def against(value: float, null: Sequence[float], shuffled: int, *, counted: bool = True) -> Measure:
    """``value`` beside the values of its null.

    Args:
        counted: the null holds the value itself; where not, it is counted in for p.
    """
    made = np.array(null)
    reached = np.count_nonzero(made >= value - 1e-12)  # an order that changes nothing is as good, whatever rounding
    own = 0 if counted else 1
    return Measure(value, float(made.mean()), float(np.quantile(made, 1 - LEVEL)),
                   float((reached + own) / (len(made) + own)), shuffled)


def without_null(value: float, shuffled: int = 0) -> Measure:
    """A value that cannot be told from chance."""
    return Measure(value, math.nan, math.nan, 1.0, shuffled)


def orders(n: int, seed: int) -> list[np.ndarray]:
    """The order as it is, and all others of n things, or SHUFFLES at random where there are more."""
    if math.factorial(n) <= SHUFFLES:
        return [np.array(order) for order in permutations(range(n))]
    rng = np.random.default_rng(seed)
    return [np.arange(n), *(rng.permutation(n) for _ in range(SHUFFLES))]
