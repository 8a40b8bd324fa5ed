"""What is told of every match: by which views, how far from the next best, how particular to its position.

Shapes: M and M' features of the two graphs, m of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from circuits.graphs.pairing import Pairs, faded
from circuits.graphs.placed import Features
from circuits.graphs.signatures import PROMOTED, WRITES, similarities

SHARED = 4
"""Most tokens that a match names."""
SAME = 1e-9
"""Rounding of scores."""


class Details(NamedTuple):
    """Of pairs; columns of one length."""

    similarities: list[dict[str, float]]
    """By view, those that are known."""
    margin: np.ndarray
    """Score less that of the best other pair at the position that one of the two could be in."""
    elsewhere: np.ndarray
    """Share of the other positions of both graphs at which one of the two has as good a partner; 0 if not asked."""


def details_of(one: Features, two: Features, pairs: Pairs, window: float, fall: float, *, elsewhere: bool) -> Details:
    """Args:
        window, fall: as the pairs were made with.
        elsewhere: look at other positions too.
    """
    made = Details([{} for _ in pairs.first], np.zeros(len(pairs.first)), np.zeros(len(pairs.first)))
    for position in np.unique(one.places.position[pairs.first]).tolist():
        here = np.flatnonzero(one.places.position[pairs.first] == position)
        a, b, score = pairs.first[here], pairs.second[here], pairs.similarity[here]
        for name, values in similarities(one.views, two.views, a).items():
            for i, value in zip(here.tolist(), values[np.arange(len(b)), b].tolist(), strict=True):
                if not np.isnan(value):
                    made.similarities[i][name] = value
        forward, backward = _all_scores(one, two, a, window, fall), _all_scores(two, one, b, window, fall)
        best = np.maximum(_best_other(forward, two, position, b), _best_other(backward, one, position, a))
        made.margin[here] = score - best
        if elsewhere:
            found = [_other_positions(scores >= score[:, None] - SAME, side, position)
                     for scores, side in ((forward, two), (backward, one))]
            made.elsewhere[here] = sum(hits for hits, _ in found) / max(sum(count for _, count in found), 1)
    return made


def shared_tokens(one: Features, two: Features, first: int, second: int) -> tuple[str, ...]:
    """Tokens that both features promote, by their places in the lists; those that make up most of the similarity
    first."""
    name = WRITES if WRITES in one.views and WRITES in two.views else PROMOTED
    if name not in one.views or name not in two.views:
        return ()
    rows = [side.views[name].rows for side in (one, two)]
    columns, values = zip(*((row.indices[part], row.data[part]) for row, part in zip(
        rows, (slice(*row.indptr[at:at + 2]) for row, at in zip(rows, (first, second), strict=True)), strict=True)),
                          strict=True)
    common, *places = np.intersect1d(*columns, return_indices=True)
    both = np.minimum(values[0][places[0]], values[1][places[1]]) > 0  # suppressed by both are alike, too
    products = (values[0][places[0]] * values[1][places[1]])[both]
    top = common[both][np.argsort(-products, kind="stable")[:SHARED]].tolist()
    return tuple(one.texts.get(column, f"[{column}]") for column in top)


def _all_scores(one: Features, two: Features, rows: np.ndarray, window: float, fall: float) -> np.ndarray:
    """(m, M') scores of the features ``rows`` (m,) with all of the other graph, whatever their positions."""
    away = np.abs(one.places.depth[rows][:, None] - two.places.depth)
    return faded(one.scores(two, rows), away, window, fall)


def _best_other(scores: np.ndarray, side: Features, position: int, partner: np.ndarray) -> np.ndarray:
    """(m,) best score (m, M') with a feature of the position that is not the ``partner`` (m,); 0 where none is."""
    others = np.where(side.places.position == position, scores, 0.0)
    others[np.arange(len(partner)), partner] = 0.0
    return others.max(1, initial=0.0)


def _other_positions(reached: np.ndarray, side: Features, position: int) -> tuple[np.ndarray, int]:
    """(m,) number of positions but this one at which any of ``reached`` (m, M') is, and how many there are."""
    others = [place for place in np.unique(side.places.position).tolist() if place != position]
    hits = [reached[:, side.places.position == place].any(1) for place in others]
    return np.sum(hits, axis=0) if hits else np.zeros(len(reached)), len(others)
