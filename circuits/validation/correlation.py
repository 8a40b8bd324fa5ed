"""How well one list of numbers ranks another. float64, numpy only.

Shapes: n pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of (n,) and (n,); NaN for fewer than two pairs, or where one side is constant."""
    if len(x) < 2:
        return math.nan
    x, y = (np.asarray(side, np.float64) - np.mean(side, dtype=np.float64) for side in (x, y))
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else math.nan


def ranks(x: np.ndarray) -> np.ndarray:
    """(n,) float64 ranks from 0 on; equal values share the mean of theirs."""
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[which]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of (n,) and (n,); NaN as for :func:`pearson`."""
    return pearson(ranks(x), ranks(y))


def log_pearson(x: np.ndarray, y: np.ndarray) -> tuple[float, int]:
    """Correlation of the logarithms of (n,) and (n,), and how many pairs were left out because one side is not above
    zero."""
    both = (np.asarray(x) > 0) & (np.asarray(y) > 0)
    return pearson(np.log(x[both]), np.log(y[both])), int((~both).sum())


def shuffled_spearman(x: np.ndarray, y: np.ndarray, shuffles: int, seed: int) -> tuple[float, float]:
    """Mean and 95th percentile of the rank correlation when ``x`` (n,) is shuffled: what chance gives."""
    rng = np.random.default_rng(seed)
    x, y = ranks(x), ranks(y)
    found = [pearson(rng.permutation(x), y) for _ in range(shuffles)]
    return float(np.mean(found)), float(np.quantile(found, 0.95))


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, resamples: int, seed: int) -> tuple[float, float]:
    """2.5% and 97.5% quantiles of ``statistic`` of the indices of ``n`` items drawn with replacement."""
    rng = np.random.default_rng(seed)
    found = [statistic(rng.integers(n, size=n)) for _ in range(resamples)]
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (math.nan, math.nan)
    return float(low), float(high)
