"""What is known of one feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

BINS_PER_OCTAVE = 4
LISTS = ("promoted", "suppressed", "exciting", "fired_on")
"""The fields of :class:`Feature` that are lists of tokens."""


@dataclass(frozen=True)
class TokenScores:
    """Tokens, strongest first, and how strong each is."""

    tokens: np.ndarray
    """(n,) int64 ids"""
    scores: np.ndarray
    """(n,) float32"""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Context:
    """A stretch of text on which a feature fired."""

    tokens: np.ndarray
    """(n,) int64 ids"""
    activations: np.ndarray
    """(n,) float32; 0 where the feature is silent."""
    peak: int
    """Place in ``tokens`` that the context was chosen for."""
    quantile: float
    """Share of the feature's activations at or below the peak's; 1 for top contexts."""


@dataclass(frozen=True)
class Feature:
    """What is known of one live feature. The file rounds activations to 1/255 of the largest, scores to float16."""

    layer: int
    feature: int
    count: int
    """Positions it fired on."""
    positions: int
    """Positions looked at."""
    max_activation: float
    first_bin: int
    """Histogram bin i holds activations from 2^((first_bin + i) / BINS_PER_OCTAVE) to the next power; the first bin
    also all below."""
    histogram: np.ndarray
    """(bins,) int64, sums to ``count``"""
    contexts: tuple[Context, ...]
    """Top contexts from different sequences, strongest first; then some from the middle of its activations."""
    promoted: TokenScores
    """Logit effects of activation 1; see :func:`circuits.features.tokens.logit_effects`."""
    suppressed: TokenScores
    exciting: TokenScores
    """Pre-activations from embeddings; see :func:`circuits.features.tokens.embedding_scores`."""
    fired_on: TokenScores
    """Distinct tokens with the largest activation on each."""
    effect_spread: float
    """Standard deviation of its logit effects over the candidates."""
    candidates: int
    """Tokens that could be promoted, suppressed or exciting: by default those that occur in the text."""
    texts: Mapping[int, str] = field(default_factory=dict, repr=False)
    """Text of every token above."""

    @property
    def density(self) -> float:
        """Share of positions it fired on."""
        return self.count / self.positions

    @property
    def bin_edges(self) -> np.ndarray:
        """(bins + 1,)"""
        return np.exp2((self.first_bin + np.arange(len(self.histogram) + 1)) / BINS_PER_OCTAVE)
