"""What features are compared by where dictionaries share no numbering and no basis (METHOD 9).

A signature is a row in a space that both models share: logits of the vocabulary that the feature raises and lowers,
tokens of the vocabulary whose embeddings excite it, activations on the same text. Rows are sparse.

Shapes: M features, C columns of a view, m and n chosen features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.sparse import csr_array

from circuits.graphs.activations import feature_keys
from circuits.graphs.cards import FeatureCards
from circuits.graphs.group_names import folded

WRITES, READS, CORPUS, PROMOTED = "writes", "reads", "corpus", "promoted"
VIEWS = {WRITES: "decoder to unembedding", READS: "embedding to encoder", CORPUS: "activations on the same text",
         PROMOTED: "promoted tokens of the cards"}
"""Views by name, in words."""


@dataclass(frozen=True, eq=False)
class View:
    """One kind of signature. Two features are as similar as the product of their rows less that of their offsets."""

    rows: csr_array
    """(M, C) of length 1, or such that a row's square less its offset's is 1; a feature of which nothing is known has
    an empty row."""
    offset: np.ndarray
    """(M,) float64: 0, and for activations the mean over the standard deviation, so that the product is Pearson's
    correlation and the rows stay sparse."""

    @property
    def known(self) -> np.ndarray:
        """(M,) bool: the feature has a signature."""
        return np.diff(self.rows.indptr) > 0


@dataclass(frozen=True, eq=False)
class Signatures:
    """Signatures of M features, ascending by layer and feature, each once."""

    layer: np.ndarray
    """(M,)"""
    feature: np.ndarray
    """(M,)"""
    views: dict[str, View]
    """By name of VIEWS; columns mean the same in every model."""
    texts: Mapping[int, str] = field(default_factory=dict, repr=False)
    """Of the columns of ``writes`` or ``promoted``. Foreign strings."""
    spare: np.ndarray | None = None
    """(M,) bool: features of the dictionary that are in no graph, drawn at random: a null needs more signatures than
    a graph has. None: there are no such."""

    @property
    def known(self) -> np.ndarray:
        """(M,) bool: the feature has a signature in some view."""
        views = [view.known for view in self.views.values()]
        return np.any(views, axis=0) if views else np.zeros(len(self.layer), dtype=bool)

    def find(self, layer: np.ndarray, feature: np.ndarray) -> np.ndarray:
        """(n,) rows of features, -1 for those without."""
        keys, wanted = feature_keys(self.layer, self.feature), feature_keys(layer, feature)
        if not len(keys):
            return np.full(len(wanted), -1)
        rows = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[rows] == wanted, rows, -1)

    def widened(self, columns: int) -> Signatures:
        """The same with at least so many columns in every view."""
        return replace(self, views={name: View(_widened(view.rows, columns), view.offset)
                                    for name, view in self.views.items()})

    def take(self, rows: np.ndarray) -> dict[str, View]:
        """The views of some features (n,), which may come often."""
        return {name: View(view.rows[rows], view.offset[rows]) for name, view in self.views.items()}


def _widened(rows: csr_array, columns: int) -> csr_array:
    return csr_array((rows.data, rows.indices, rows.indptr), shape=(rows.shape[0], max(columns, rows.shape[1])))


def unit_rows(rows: csr_array) -> View:
    """A view whose similarity is the cosine of ``rows`` (M, C)."""
    rows = csr_array(rows, dtype=np.float64, copy=True)
    rows.eliminate_zeros()
    sizes = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    rows.data /= np.repeat(sizes, np.diff(rows.indptr))
    return View(rows, np.zeros(rows.shape[0]))


def correlated_rows(rows: csr_array) -> View:
    """A view whose similarity is Pearson's correlation of ``rows`` (M, C), the zeros that are not stored counted in.
    A row that is the same everywhere has no correlation, and gets no signature."""
    rows = csr_array(rows, dtype=np.float64, copy=True)
    mean = np.asarray(rows.sum(1)).ravel() / rows.shape[1]
    spread = np.sqrt(np.maximum(np.asarray(rows.multiply(rows).sum(1)).ravel() / rows.shape[1] - mean**2, 0.0))
    spread[spread <= 1e-6 * np.abs(mean)] = 0.0  # of a constant, what rounding leaves
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    rows.data *= np.repeat(scale, np.diff(rows.indptr)) / math.sqrt(rows.shape[1])
    rows.eliminate_zeros()
    return View(rows, mean * scale)


def similarities(one: Mapping[str, View], two: Mapping[str, View], rows: np.ndarray) -> dict[str, np.ndarray]:
    """By view that both have, (m, n) similarity in [-1, 1] of the features ``rows`` (m,) of one with all n of the
    other; NaN where one of the two has no signature."""
    made = {}
    for name in (name for name in VIEWS if name in one and name in two):
        a, b = one[name], two[name]
        alike = (a.rows[rows] @ b.rows.T).toarray() - np.outer(a.offset[rows], b.offset)
        made[name] = np.where(np.outer(a.known[rows], b.known), np.clip(alike, -1.0, 1.0), np.nan)
    return made


def promoted_rows(cards: FeatureCards | None, names: list[tuple[int, int]], columns: dict[str, int]) -> csr_array:
    """(M, C) scores of the tokens that the features ``names`` (layer, feature) promote, spaces and capitals aside.

    Args:
        columns: the column of each token; new ones are added, so that C grows: bring earlier rows to the width of the
            last ones with ``resize``.
    """
    entries: list[tuple[int, int, float]] = []
    for row, name in enumerate(names):
        card = -1 if cards is None else cards.find(*name)
        if cards is None or card < 0:
            continue
        lists = cards.promoted
        for i in range(lists.start[card], lists.start[card + 1]):
            column = columns.setdefault(folded(cards.texts[int(lists.token[i])]), len(columns))
            if lists.score[i] > 0:
                entries.append((row, column, float(lists.score[i])))
    rows, places, scores = np.array(entries, dtype=np.float64).reshape(-1, 3).T
    return csr_array((scores, (rows.astype(np.int64), places.astype(np.int64))),
                     shape=(len(names), max(1, len(columns))))


def card_signatures(cards: FeatureCards | None, columns: dict[str, int]) -> Signatures:
    """Signatures from cards, where no model is at hand. Args: see :func:`promoted_rows`."""
    layer, feature = (np.zeros(0, np.int32),) * 2 if cards is None else (cards.layer, cards.feature)
    rows = promoted_rows(cards, list(zip(layer.tolist(), feature.tolist(), strict=True)), columns)
    return Signatures(layer, feature, {PROMOTED: unit_rows(rows)}, {i: text for text, i in columns.items()})
