"""How sure shares, means and differences over prompts are: intervals and tests that assume nothing but that prompts
are drawn independently of each other. numpy and scipy only.

Shapes: n prompts, F quantities, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import comb

import numpy as np
from scipy.sparse import csc_array
from scipy.stats import norm

LEVEL = 0.05
"""Chance of being wrong that intervals and tests allow."""
RESAMPLES = 1000
RELABELINGS = 9999
"""Ways of dividing the prompts that a permutation test looks at, where there are more; all of them where not."""
COLUMNS = 512
"""Quantities that are looked at at once."""


def wilson(count: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of a share that was found ``count`` (F,) times in ``n`` (Wilson 1927): it stays within 0 and 1 and
    holds for few prompts too.

    Returns:
        Low and high ends, (F,) each.
    """
    z2 = float(norm.isf(LEVEL / 2)) ** 2
    share = np.asarray(count, np.float64) / n
    middle = share + z2 / (2 * n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    return np.maximum((middle - half) / (1 + z2 / n), 0.0), np.minimum((middle + half) / (1 + z2 / n), 1.0)


def bootstrap_mean(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of the means of ``values`` (n, F) over prompts, which are drawn again with replacement (Efron 1979,
    percentiles). With fewer than about ten prompts it comes out too narrow.

    Returns:
        Low and high ends, (F,) each.
    """
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n
    ends = [np.quantile(weights @ part, [LEVEL / 2, 1 - LEVEL / 2], axis=0) for part in _columns(values)]
    low, high = np.concatenate([np.empty((2, 0)), *ends], axis=1)
    return low, high


def permutation_p(values: np.ndarray | csc_array, first: np.ndarray, seed: int) -> np.ndarray:
    """Chance that the means of two groups of prompts differ as much as they do when labels mean nothing.

    Every way of giving the labels to the prompts counts, or RELABELINGS of them at random and the one that is; a
    difference in either direction counts.

    Args:
        values: (n, F), dense or sparse
        first: (n,) bool: which prompts are of the first group; at least one of either.

    Returns:
        (F,) p values.
    """
    groups = _relabelings(first, seed)
    contrast = groups / first.sum() - ~groups / (~first).sum()
    p = []
    for part in _columns(values):
        found = np.abs(contrast @ part)
        # an order that changes nothing is as good, whatever rounding
        p.append((found >= found[0] - 1e-9 * (np.abs(part).max(0) + 1e-300)).mean(0))
    return np.concatenate([np.empty(0), *p])


def smallest_p(first: int, second: int) -> float:
    """What :func:`permutation_p` gives at best to groups of ``first`` and ``second`` prompts."""
    ways = comb(first + second, first)
    mirrored = 2 if first == second else 1  # the same division with the labels exchanged differs as much
    return mirrored / ways if ways <= RELABELINGS else 1 / (RELABELINGS + 1)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """(F,) q values: calling all with q up to 0.05 different is wrong for 5% of those on average (Benjamini and
    Hochberg 1995)."""
    order = np.argsort(p)[::-1]
    ranks = np.arange(len(p), 0, -1)
    q = np.empty(len(p))
    q[order] = np.minimum(np.minimum.accumulate(p[order] * len(p) / ranks), 1.0)
    return q


def _relabelings(first: np.ndarray, seed: int) -> np.ndarray:
    """(R, n) bool: divisions into groups of the same sizes, the one that is at the start."""
    n, size = len(first), int(first.sum())
    if comb(n, size) <= RELABELINGS:
        members = np.array(list(combinations(range(n), size)))
        groups = np.zeros((len(members), n), dtype=bool)
        np.put_along_axis(groups, members, True, axis=1)
        return np.concatenate([first[None], groups[(groups != first).any(1)]])
    rng = np.random.default_rng(seed)
    return np.stack([first, *(rng.permutation(first) for _ in range(RELABELINGS))])


def _columns(values: np.ndarray | csc_array) -> Iterator[np.ndarray]:
    for start in range(0, values.shape[1], COLUMNS):
        part = values[:, start:start + COLUMNS]
        yield part if isinstance(part, np.ndarray) else part.toarray()
