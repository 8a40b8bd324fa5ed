"""What a graph carries of its features' meaning: tokens they promote and suppress, and texts on which they fire.

Shapes: M features, C contexts of all of them, T tokens of all contexts, n tokens of one kind of list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from circuits.errors import InputError
from circuits.graphs.activations import feature_keys

if TYPE_CHECKING:
    from circuits.graphs.graph import AttributionGraph

MAX_CARDS = 5000
"""Features of a graph that get a card, those of largest influence: more would fill a file that nobody reads."""
CONTEXTS = 6
"""Contexts of a feature that a page shows."""
LIST_DTYPES: dict[str, Any] = {"start": np.int32, "token": np.int32, "score": np.float32}
CONTEXT_DTYPES: dict[str, Any] = {"start": np.int32, "peak": np.uint8, "quantile": np.float32, "first": np.int32,
                                  "token": np.int32, "activation": np.uint8}
CARD_DTYPES: dict[str, Any] = {"layer": np.int32, "feature": np.int32, "density": np.float32,
                               "max_activation": np.float32}
"""Of the columns of :class:`TokenLists`, :class:`Contexts` and :class:`FeatureCards`."""


@dataclass(frozen=True, eq=False)
class TokenLists:
    """One list of tokens for each feature, the strongest first; feature i's is ``start[i]:start[i + 1]``."""

    start: np.ndarray
    """(M + 1,) int32"""
    token: np.ndarray
    """(n,) int32 vocabulary id"""
    score: np.ndarray
    """(n,) float32: what an activation of 1 adds to the token's logit on the direct path, before the final norm's
    scale, relative to other tokens; below 0 for suppressed ones."""

    def __post_init__(self) -> None:
        _check_columns(self, LIST_DTYPES)
        _check_starts("a token list's start", self.start, len(self.token))
        _require(len(self.score) == len(self.token), f"{len(self.score)} scores for {len(self.token)} tokens")
        _require(bool(np.isfinite(self.score).all()), "scores of tokens must be finite numbers")

    def take(self, features: np.ndarray) -> TokenLists:
        """The lists of the features at ``features`` (m,) integers."""
        start, inside = _ragged(self.start, features)
        return TokenLists(start, self.token[inside], self.score[inside])


@dataclass(frozen=True, eq=False)
class Contexts:
    """Stretches of text on which features fired; feature i's contexts are ``start[i]:start[i + 1]``, the tokens of
    context j are ``first[j]:first[j + 1]``."""

    start: np.ndarray
    """(M + 1,) int32"""
    peak: np.ndarray
    """(C,) uint8 place in the context of the token that it was chosen for."""
    quantile: np.ndarray
    """(C,) float32 share of the feature's activations at or below the peak's; 1 for the top contexts, which come
    first, strongest first; below 1 for typical ones."""
    first: np.ndarray
    """(C + 1,) int32"""
    token: np.ndarray
    """(T,) int32 vocabulary id"""
    activation: np.ndarray
    """(T,) uint8 activation, 255 for the feature's ``max_activation``; 0 only where it is silent."""

    def __post_init__(self) -> None:
        _check_columns(self, CONTEXT_DTYPES)
        _check_starts("contexts' start", self.start, len(self.peak))
        _check_starts("contexts' first", self.first, len(self.token))
        _require(len(self.first) == len(self.peak) + 1 == len(self.quantile) + 1,
                 f"{len(self.first) - 1} contexts have {len(self.peak)} peaks and {len(self.quantile)} quantiles")
        _require(len(self.activation) == len(self.token),
                 f"{len(self.activation)} activations for {len(self.token)} tokens of contexts")
        _require(bool((self.peak < np.diff(self.first)).all()), "the peak of a context must be one of its tokens")
        _require(bool(((self.quantile >= 0) & (self.quantile <= 1)).all()), "quantiles must lie between 0 and 1")

    def take(self, features: np.ndarray) -> Contexts:
        """The contexts of the features at ``features`` (m,) integers."""
        start, chosen = _ragged(self.start, features)
        return self._chosen(start, chosen)

    def limited(self, count: int) -> Contexts:
        """At most ``count`` contexts of each feature: a third of them typical ones and the others top ones, more of
        the one where there are too few of the other."""
        feature = np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))
        top = self.quantile >= 1
        # how many of its kind precede each context among its feature's
        before = np.where(top, _rank(top, feature, self.start), _rank(~top, feature, self.start))
        n_top = np.bincount(feature[top], minlength=len(self.start) - 1)
        n_typical = np.diff(self.start) - n_top
        for_typical = np.minimum(n_typical, np.maximum(count // 3, count - n_top))
        for_top = np.minimum(n_top, count - for_typical)
        kept = before < np.where(top, for_top[feature], for_typical[feature])
        starts = np.concatenate([[0], np.cumsum(for_top + for_typical)]).astype(np.int32)
        return self._chosen(starts, np.flatnonzero(kept))

    def _chosen(self, start: np.ndarray, chosen: np.ndarray) -> Contexts:
        first, inside = _ragged(self.first, chosen)
        return Contexts(start, self.peak[chosen], self.quantile[chosen], first, self.token[inside],
                        self.activation[inside])


@dataclass(frozen=True, eq=False)
class FeatureCards:
    """What is known of M features, by layer and feature; the lists' row i belongs to feature i.

    Raises:
        InputError: columns that do not fit together.
    """

    layer: np.ndarray
    """(M,) int32"""
    feature: np.ndarray
    """(M,) int32, ascending within a layer."""
    density: np.ndarray
    """(M,) float32 share of a text's positions on which the feature fired; NaN where no text was looked at."""
    max_activation: np.ndarray
    """(M,) float32 largest activation on that text; NaN where there is none."""
    promoted: TokenLists
    suppressed: TokenLists
    contexts: Contexts
    texts: dict[int, str] = field(repr=False)
    """The text of every token above. Foreign strings."""

    def __post_init__(self) -> None:
        _check_columns(self, CARD_DTYPES)
        lengths = {"feature": len(self.feature), "density": len(self.density),
                   "max_activation": len(self.max_activation), "promoted": len(self.promoted.start) - 1,
                   "suppressed": len(self.suppressed.start) - 1, "contexts": len(self.contexts.start) - 1}
        for name, length in lengths.items():
            _require(length == len(self), f"cards of {len(self)} features have {name} of {length}")
        _require(not len(self) or min(int(self.layer.min()), int(self.feature.min())) >= 0,
                 "layers and features of cards are numbers from 0")
        _require(bool((np.diff(feature_keys(self.layer, self.feature)) > 0).all()),
                 "cards must rise by layer and feature, each feature once")
        _require(not bool((self.density < 0).any() | (self.density > 1).any()), "densities must lie between 0 and 1")
        _require(not np.isinf(self.max_activation).any(), "largest activations must be finite, or NaN for unknown")
        missing = set(_used(self.promoted, self.suppressed, self.contexts)) - self.texts.keys()
        _require(not missing, f"token {min(missing, default=0)} of the cards has no text")

    def __len__(self) -> int:
        return len(self.layer)

    @cached_property
    def _keys(self) -> np.ndarray:
        return feature_keys(self.layer, self.feature)

    def find(self, layer: int, feature: int) -> int:
        """The row of a feature; -1 where nothing is known of it."""
        wanted = (int(layer) << 32) + int(feature)
        i = int(np.searchsorted(self._keys, wanted))
        return i if i < len(self) and self._keys[i] == wanted else -1

    def of(self, layer: np.ndarray, feature: np.ndarray) -> FeatureCards:
        """The cards of those of the features (n,) that something is known of."""
        return self.take(np.isin(self._keys, feature_keys(np.asarray(layer), np.asarray(feature))))

    def take(self, mask: np.ndarray) -> FeatureCards:
        """The cards in the mask (M,)."""
        rows = np.flatnonzero(mask)
        return self._with_texts(
            layer=self.layer[rows], feature=self.feature[rows], density=self.density[rows],
            max_activation=self.max_activation[rows], promoted=self.promoted.take(rows),
            suppressed=self.suppressed.take(rows), contexts=self.contexts.take(rows))

    def limited(self, contexts: int = CONTEXTS) -> FeatureCards:
        """The same with at most ``contexts`` contexts of each feature; see :meth:`Contexts.limited`."""
        return self._with_texts(
            layer=self.layer, feature=self.feature, density=self.density, max_activation=self.max_activation,
            promoted=self.promoted, suppressed=self.suppressed, contexts=self.contexts.limited(contexts))

    def columns(self) -> dict[str, np.ndarray]:
        """All columns by name; those of the lists as ``promoted.start``, ``contexts.peak`` and so on."""
        parts = {"": (self, CARD_DTYPES), "promoted.": (self.promoted, LIST_DTYPES),
                 "suppressed.": (self.suppressed, LIST_DTYPES), "contexts.": (self.contexts, CONTEXT_DTYPES)}
        return {prefix + name: getattr(part, name) for prefix, (part, names) in parts.items() for name in names}

    def _with_texts(self, **columns: Any) -> FeatureCards:
        """Cards of some of the same tokens, with the texts of those."""
        used = _used(columns["promoted"], columns["suppressed"], columns["contexts"])
        return FeatureCards(**columns, texts={token: self.texts[token] for token in used})


class CardSource(Protocol):
    """What can make cards when they are asked for. :class:`FeatureCards` is one too."""

    def of(self, layer: np.ndarray, feature: np.ndarray) -> FeatureCards:
        """The cards of those of the features (n,) that something is known of; each feature may be named often."""


def graph_cards(graph: AttributionGraph) -> FeatureCards | None:
    """Cards of the features of a graph, at most MAX_CARDS: those whose nodes have the largest influence together."""
    if graph.cards is None:
        return None
    nodes = graph.nodes
    features = np.flatnonzero(nodes.kind == "feature")
    keys, node = np.unique(feature_keys(nodes.layer[features], nodes.feature[features]), return_inverse=True)
    if len(keys) > MAX_CARDS:
        amounts = np.bincount(node, nodes.influence[features])
        keys = np.sort(keys[np.argsort(-amounts, kind="stable")[:MAX_CARDS]])
    return graph.cards.of((keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32))


def _used(promoted: TokenLists, suppressed: TokenLists, contexts: Contexts) -> list[int]:
    return np.unique(np.concatenate([promoted.token, suppressed.token, contexts.token])).tolist()


def _ragged(start: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts (m + 1,) int32 of some rows alone, and where their entries stand, in order."""
    lengths = np.diff(start)[rows]
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    inside = np.repeat(start[rows] - ends + lengths, lengths) + np.arange(total)
    return np.concatenate([[0], ends]).astype(np.int32), inside


def _rank(of: np.ndarray, feature: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(C,) how many contexts in the mask ``of`` come before each context of the same feature."""
    running = np.concatenate([[0], np.cumsum(of)])
    return running[:-1] - running[start[feature]]


def _check_columns(table: Any, dtypes: dict[str, Any]) -> None:
    for name, dtype in dtypes.items():
        column = getattr(table, name)
        _require(column.dtype == dtype and column.ndim == 1,
                 f"{name} of cards is {column.dtype} of shape {column.shape}, expected one dimension of "
                 f"{np.dtype(dtype)}")


def _check_starts(what: str, start: np.ndarray, length: int) -> None:
    _require(len(start) > 0 and int(start[0]) == 0 and int(start[-1]) == length and bool((np.diff(start) >= 0).all()),
             f"{what} must rise from 0 to {length}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InputError(otherwise)
