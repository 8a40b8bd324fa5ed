"""What differs between two families of prompts, against labels shuffled over the prompts.

Shapes: n prompts of both families, F features, C edges, R roles of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csc_array

from circuits.graphs.aggregate_edges import EdgeTable, Items
from circuits.graphs.aggregate_prompts import Prompt
from circuits.graphs.measure import plain
from circuits.graphs.resampling import LEVEL, benjamini_hochberg, permutation_p, smallest_p

FEW = 3
"""Fewer prompts on a side are not tested: no labels could be shuffled in a way that tells anything."""
MEASURES = {"replacement": "replacement score", "completeness": "completeness score",
            "unexplored": "unexplored influence", "tokens": "influence that reaches tokens",
            "features": "features in the pruned graph"}


@dataclass(frozen=True, eq=False)
class Tests:
    """One kind of quantity in both families; every column has an entry for each quantity (F,)."""

    first: np.ndarray
    """Mean over the first family's prompts."""
    second: np.ndarray
    p: np.ndarray
    """Of the difference of means, by permutation; NaN where nothing was tested."""
    q: np.ndarray
    """Corrected for the number of quantities of this kind."""

    def __len__(self) -> int:
        return len(self.first)

    @property
    def difference(self) -> np.ndarray:
        return self.first - self.second

    @property
    def found(self) -> np.ndarray:
        """(F,) bool: differences beyond chance."""
        return self.q <= LEVEL

    @property
    def order(self) -> np.ndarray:
        """(F,) the surest first, of equally sure ones the largest."""
        return np.lexsort((-np.abs(self.difference), np.nan_to_num(self.p, nan=1.0)))

    def numbers(self, i: int) -> dict[str, Any]:
        """Of one quantity, ready for JSON."""
        return {name: plain(float(getattr(self, name)[i])) for name in ("first", "second", "difference", "p", "q")}


@dataclass(frozen=True, eq=False)
class Difference:
    """The first family against the second."""

    first: str
    second: str
    sizes: tuple[int, int]
    keys: np.ndarray
    """(F,) features that are in enough prompts of the two together to be tested."""
    influence: Tests
    """(F,) of the mean share of influence."""
    presence: Tests
    """(F,) of the share of prompts in whose graph a feature is."""
    codes: np.ndarray
    """(C,) edges between items, likewise."""
    edges: Tests
    """(C,) of the share of influence that passes along."""
    roles: list[int]
    """(R,) items: roles of tokens."""
    tokens: Tests
    """(R,) of the share of what reaches tokens that reaches these."""
    measures: list[str]
    """Keys of MEASURES that all prompts have."""
    measured: Tests

    @property
    def tested(self) -> bool:
        """Whether there are enough prompts on both sides for a test."""
        return min(self.sizes) >= FEW

    @property
    def smallest_p(self) -> float:
        """What so many prompts can give at best."""
        return smallest_p(*self.sizes)


def tested_features(first: Sequence[Prompt], second: Sequence[Prompt], share: float) -> np.ndarray:
    """(F,) keys of the features that are in enough prompts of two families together: ``share`` of the smaller one,
    and FEW at least. Chosen without looking at who is of which family, so that the choice favours no difference."""
    keys, count = np.unique(np.concatenate([np.unique(prompt.key) for prompt in (*first, *second)]), return_counts=True)
    return keys[count >= enough(len(first), len(second), share)]


def enough(first: int, second: int, share: float) -> int:
    """Prompts of the two together that something must be in to be tested."""
    return max(FEW, int(np.ceil(share * min(first, second) - 1e-9)))


def influence_of(prompts: Sequence[Prompt], keys: np.ndarray) -> np.ndarray:
    """(n, F) share of every prompt's influence that passes through each of the features ``keys`` (F,), ascending."""
    found = np.zeros((len(prompts), len(keys)))
    for row, prompt in zip(found, prompts, strict=True):
        at = np.searchsorted(keys, prompt.key)
        known = at < len(keys)
        known[known] = keys[at[known]] == prompt.key[known]
        np.add.at(row, at[known], prompt.influence[known])
    return found


def compare_families(names: tuple[str, str], first: Sequence[Prompt], second: Sequence[Prompt], table: EdgeTable,
                     items: Items, share: float, seed: int) -> Difference:
    """Test everything that may differ.

    Args:
        table: of the first family's prompts and then the second's.
    """
    prompts = [*first, *second]
    of_first = np.arange(len(prompts)) < len(first)
    keys = tested_features(first, second, share)
    influence = influence_of(prompts, keys)
    table = table.columns(table.count >= enough(len(first), len(second), share))
    roles = range(len(items.keys), items.target)
    tokens = np.stack([_role_shares(prompt, items) for prompt in prompts])
    measures = [name for name in MEASURES if all(np.isfinite(prompt.measures[name]) for prompt in prompts)]
    measured = np.array([[prompt.measures[name] for name in measures] for prompt in prompts])
    used = np.flatnonzero(tokens.any(0))
    return Difference(
        *names, (len(first), len(second)), keys, _tests(influence, of_first, seed),
        _tests((influence > 0).astype(np.float64), of_first, seed), table.codes,
        _tests(table.flow, of_first, seed), [roles[i] for i in used.tolist()],
        _tests(tokens[:, used], of_first, seed), measures,
        _tests(measured.reshape(len(prompts), len(measures)), of_first, seed))


def _role_shares(prompt: Prompt, items: Items) -> np.ndarray:
    """(R,) of the influence that reaches tokens, the share of each role."""
    role = items.of_tokens(prompt.token_texts) - len(items.keys)
    shares = np.bincount(role, prompt.token_influence, items.target - len(items.keys))
    return shares / (shares.sum() or 1.0)


def _tests(values: np.ndarray | csc_array, first: np.ndarray, seed: int) -> Tests:
    """Of (n, F) values, dense or sparse."""
    count = values.shape[1]
    p = q = np.full(count, np.nan)
    if min(int(first.sum()), int((~first).sum())) >= FEW:
        p = permutation_p(values, first, seed)
        q = benjamini_hochberg(p)
    one, two = (np.asarray(values[rows].mean(0)).ravel() for rows in (np.flatnonzero(first), np.flatnonzero(~first)))
    return Tests(one, two, p, q)
