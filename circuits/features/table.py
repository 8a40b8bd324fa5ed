"""From what a layer's features did on a text to what is written about each of them.

Shapes: S sequences, n live features of a layer, k contexts, W window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.features.activity import AFTER, BEFORE, LOWEST_OCTAVE, TOKENS, Contexts, LayerActivity, histogram_bin
from circuits.features.feature import BINS_PER_OCTAVE, LISTS, Context, Feature, TokenScores
from circuits.features.tokens import embedding_scores, logit_effects
from circuits.gemma3 import Gemma3
from circuits.transcoder import Transcoders

BINS = 16
"""Of a feature's histogram: four octaves down from its largest activation."""
MIDDLE = (0.5, 0.2)
"""Quantiles of a feature's activations that get a context: maxima alone mislead about what it mostly fires on."""


class Sample:
    """Tokens of all sequences, end to end."""

    def __init__(self) -> None:
        self._tokens: list[np.ndarray] = []
        self._prefixes: list[int] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, tokens: Tensor, prefix: int) -> None:
        """Take in sequences (B, prefix + P)."""
        self._tokens += list(tokens.to("cpu", torch.int32).numpy())
        self._prefixes += [prefix] * len(tokens)

    def vocabulary(self) -> Tensor:
        """The distinct tokens, ascending."""
        return torch.from_numpy(np.unique(np.concatenate(self._tokens))).long()

    def windows(self, sequence: np.ndarray, place: np.ndarray) -> np.ndarray:
        """(..., W) tokens around position ``place`` (...) of each sequence, counted after its prefix; -1 where the
        sequence does not reach."""
        flat = np.concatenate(self._tokens)
        ends = np.cumsum([0, *map(len, self._tokens)])
        centre = ends[sequence] + np.array(self._prefixes)[sequence] + place
        index = centre[..., None] + np.arange(-BEFORE, AFTER + 1)
        inside = (index >= ends[sequence][..., None]) & (index < ends[sequence + 1][..., None])
        return np.where(inside, flat[np.where(inside, index, 0)], -1)


class LayerTable:
    """One layer's live features as numpy arrays, ready to be written."""

    def __init__(self, model: Gemma3, transcoders: Transcoders, layer: int, activity: LayerActivity, sample: Sample,
                 tokens: Tensor):
        """
        Args:
            tokens: (V',) the ones that may be called promoted, suppressed or exciting.
        """
        self.layer = layer
        live = activity.count.nonzero()[:, 0]
        self.live, self.count, self.largest, self.histogram = _numpy(
            live, activity.count[live], activity.largest[live], activity.histogram[live])
        self.contexts = [_ContextTable(contexts, live, sample) for contexts in (activity.top, activity.sampled)]
        self.fired_on = _numpy(activity.tokens.token[live], activity.tokens.value[live])
        effects = logit_effects(model, transcoders, layer, live, tokens, TOKENS)
        excited = embedding_scores(model, transcoders, layer, live, tokens, TOKENS)
        (self.effect_spread,) = _numpy(effects.spread)
        self.promoted, self.suppressed, self.exciting = (
            _numpy(effects.top_tokens, effects.top), _numpy(effects.bottom_tokens, effects.bottom),
            _numpy(excited.top_tokens, excited.top))

    def used(self) -> Iterator[np.ndarray]:
        """Token ids, as often as they occur; -1 for none."""
        for contexts in self.contexts:
            yield contexts.tokens
        for tokens, _ in (self.fired_on, self.promoted, self.suppressed, self.exciting):
            yield tokens

    def features(self, positions: int, candidates: int) -> Iterator[Feature]:
        """Every live feature, in order."""
        shares = self.histogram.cumsum(1) / self.count[:, None]
        last = self.histogram.shape[1] - 1 - (self.histogram[:, ::-1] > 0).argmax(1)
        for i, feature in enumerate(self.live.tolist()):
            lowest = int(last[i]) - BINS + 1
            padded = np.pad(self.histogram[i].astype(np.int64), (BINS, 0))[lowest + BINS:last[i] + 1 + BINS].copy()
            padded[0] += self.histogram[i, :max(0, lowest)].sum()
            scores: dict[str, Any] = {name: _present(getattr(self, name), i) for name in LISTS}
            yield Feature(
                self.layer, feature, int(self.count[i]), positions, float(self.largest[i]),
                lowest + LOWEST_OCTAVE * BINS_PER_OCTAVE, padded, tuple(self._contexts(i, shares[i])), **scores,
                effect_spread=float(self.effect_spread[i]), candidates=candidates)

    def _contexts(self, i: int, shares: np.ndarray) -> Iterator[Context]:
        """The top contexts, then for each of MIDDLE the nearest of the others; quantiles by the histogram's bins."""
        top, sampled = self.contexts
        found = top.present(i)
        yield from (top.context(i, j, 1.0) for j in found)
        taken = {int(top.sequence[i, j]) for j in found}
        values = torch.from_numpy(sampled.value[i])
        quantiles = shares[histogram_bin(values).numpy()]
        free = [j for j in sampled.present(i) if int(sampled.sequence[i, j]) not in taken]
        for wanted in MIDDLE:
            if free:
                j = min(free, key=lambda j: abs(quantiles[j] - wanted))
                free.remove(j)
                yield sampled.context(i, j, min(float(quantiles[j]), 0.99))  # 1 marks the top contexts


class _ContextTable:
    """Contexts of a layer's live features with their text."""

    def __init__(self, contexts: Contexts, live: Tensor, sample: Sample):
        self.score, self.sequence, self.value, self.window = _numpy(
            *(column[live] for column in (contexts.score, contexts.sequence, contexts.value, contexts.window)))
        (place,) = _numpy(contexts.place[live])
        self.tokens = sample.windows(np.maximum(self.sequence, 0), place)
        self.tokens[self.sequence < 0] = -1

    def present(self, i: int) -> list[int]:
        return np.flatnonzero(self.sequence[i] >= 0).tolist()

    def context(self, i: int, j: int, quantile: float) -> Context:
        inside = self.tokens[i, j] >= 0
        return Context(self.tokens[i, j, inside], self.window[i, j, inside], int(inside[:BEFORE].sum()), quantile)


def tokens_by_use(tables: Iterable[LayerTable]) -> np.ndarray:
    """(V,) the token ids that occur in the tables, the most frequent first."""
    used = np.concatenate([tokens.ravel() for table in tables for tokens in table.used()])
    ids, counts = np.unique(used[used >= 0], return_counts=True)
    return ids[np.argsort(-counts, kind="stable")].astype(np.int64)


def _present(table: list[np.ndarray], i: int) -> TokenScores:
    tokens, scores = table
    kept = tokens[i] >= 0
    return TokenScores(tokens[i, kept], scores[i, kept])


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.cpu().numpy() for tensor in tensors]
