"""Where two graphs' influence lies, side by side, when their models have different numbers of layers.

Shapes: L layers, P positions, G steps of the common depth grid.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import rankdata, wasserstein_distance

from circuits.graphs.lengths import PathLengths
from circuits.graphs.measure import Measure, correlation, measure, overlap, same_length, used_columns, without_null

MEASURES = {
    "matched_influence": "influence of matched features (Jaccard)",
    "supernode_flow": "flow between matched supernodes: overlap",
    "tokens": "influence of tokens: overlap",
    "token_order": "influence of tokens: Spearman",
    "positions": "features by position: overlap",
    "depths": "features by relative depth: overlap",
    "places": "features by position and depth: overlap",
    "depth_by_position": "features' depth at each position: 1 - earth mover's distance",
    "steps": "numbers of steps from tokens: overlap",
    "relative_steps": "steps over layers: 1 - earth mover's distance"}
"""Measures of a pair of graphs, 1 for equal ones, and what their rows and axes say."""


def on_grid(places: np.ndarray, grid: int) -> np.ndarray:
    """(G, P) influence (L, P) with every layer spread over its share of the depth."""
    layers = len(places)
    low, high = np.arange(layers) / layers, np.arange(1, layers + 1) / layers
    edges = np.arange(grid + 1) / grid
    shared = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
    return (np.maximum(shared, 0.0) * layers) @ places


def place_measures(one: np.ndarray, two: np.ndarray, seed: int | None) -> dict[str, Measure]:
    """Of features' influence on a common grid, each (G, P). Null: depths, or positions, shuffled; see measure."""
    a, b = used_columns(one, two)
    return {"positions": measure(overlap, a.sum(0), b.sum(0), seed),
            "depths": measure(overlap, a.sum(1), b.sum(1), seed), "places": measure(overlap, a, b, seed),
            "depth_by_position": measure(depth_likeness, a, b, seed)}


def token_measures(one: np.ndarray, two: np.ndarray, seed: int | None) -> dict[str, Measure]:
    """Of the shares (P,) of tokens. Null: tokens shuffled; see measure."""
    return {"tokens": measure(overlap, one, two, seed),
            "token_order": measure(correlation, rankdata(one), rankdata(two), seed)}


def depth_likeness(one: np.ndarray, two: np.ndarray) -> float:
    """1 - the earth mover's distance along depth of the influence (G, P) at each position, a position weighted by the
    smaller of its shares; NaN where no position has influence in both."""
    mass = one.sum(0), two.sum(0)
    weight = np.minimum(*mass)
    if not weight.any():
        return math.nan
    used = weight > 0
    cumulative = [np.cumsum(part[:, used] / total[used], axis=0) for part, total in zip((one, two), mass, strict=True)]
    distance = np.abs(cumulative[0] - cumulative[1]).sum(0) / len(one)
    return 1.0 - float(distance @ weight[used] / weight.sum())


def step_measures(one: tuple[PathLengths, int], two: tuple[PathLengths, int]) -> dict[str, Measure]:
    """Of the numbers of steps of paths from tokens, errors left out. Without a null of their own: graphs of unrelated
    prompts say what is chance.

    Args:
        one, two: path lengths and the number of layers.
    """
    a, b = (lengths.distribution() for lengths, _ in (one, two))
    relative = math.nan
    if a.any() and b.any():
        relative = 1.0 - float(wasserstein_distance(np.arange(len(a)) / one[1], np.arange(len(b)) / two[1], a, b))
    return {"steps": without_null(overlap(*same_length(a, b))), "relative_steps": without_null(relative)}
