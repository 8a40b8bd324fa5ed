"""What the features of one layer did on a text, kept while activations stream by; no loop over features or entries.

Shapes: B sequences, P positions, F features, n entries (activations that fired), k kept of each feature, W window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuits.features.feature import BINS_PER_OCTAVE

BEFORE, AFTER = 14, 5
"""Positions of a context before and after its peak: what comes before explains a causal model's activation."""
TOP, SAMPLED, TOKENS = 10, 8, 8
"""Kept of each feature: strongest contexts, contexts of activations drawn at random, tokens."""
LOWEST_OCTAVE, OCTAVES = -10, 32
"""The histogram's range: 2^-10 to 2^22."""


class LayerActivity:
    """Counts, histogram, best contexts and strongest tokens of one layer's features."""

    def __init__(self, n_features: int, device: torch.device | str = "cpu", seed: int = 0):
        self.count = torch.zeros(n_features, dtype=torch.int64, device=device)
        self.histogram = torch.zeros(n_features, OCTAVES * BINS_PER_OCTAVE, dtype=torch.int32, device=device)
        self.largest = torch.full((n_features,), -torch.inf, device=device)
        self.top, self.sampled = Contexts(n_features, TOP, device), Contexts(n_features, SAMPLED, device)
        self.tokens = StrongestTokens(n_features, TOKENS, device)
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def add(self, position: Tensor, feature: Tensor, value: Tensor, tokens: Tensor, first: int) -> None:
        """Take in what fired on some sequences.

        Args:
            position, feature, value: (n,) as :meth:`Transcoders.encode` gives them for the flattened B * P positions.
            tokens: (B, P) the token at each position.
            first: number of the first of these sequences; no sequence may come twice.
        """
        n_features, n_positions = len(self.count), tokens.shape[1]
        self.count += torch.bincount(feature, minlength=n_features)
        self.largest.scatter_reduce_(0, feature, value, "amax")
        places = feature * self.histogram.shape[1] + histogram_bin(value)
        self.histogram.view(-1).index_add_(0, places, torch.ones_like(places, dtype=torch.int32))
        self.tokens.add(feature, tokens.flatten()[position], value)
        fired = _Fired(position * n_features + feature, value, n_features, n_positions)
        self.top.add(position, feature, value, fired, first)
        priority = torch.rand(value.shape, generator=self._generator, device=value.device)
        self.sampled.add(position, feature, priority, fired, first)


def histogram_bin(value: Tensor) -> Tensor:
    """(n,) int64: ``BINS_PER_OCTAVE`` to a doubling, from ``2 ** LOWEST_OCTAVE`` up; all below, zero and negative
    values included, count in the first and all above in the last."""
    bins = ((value.clamp_min(2.0**LOWEST_OCTAVE).log2() - LOWEST_OCTAVE) * BINS_PER_OCTAVE).floor().long()
    return bins.clamp_(0, OCTAVES * BINS_PER_OCTAVE - 1)


class _Fired:
    """The entries of a batch, to be looked up by (position, feature)."""

    def __init__(self, key: Tensor, value: Tensor, n_features: int, n_positions: int):
        self.key, self.value, self.n_features, self.n_positions = key, value, n_features, n_positions

    def window(self, position: Tensor, feature: Tensor) -> Tensor:
        """(m, W) activations of each feature around a position (m,) of the flattened batch, inside its sequence."""
        shift = torch.arange(-BEFORE, AFTER + 1, device=position.device)
        place = (position % self.n_positions)[:, None] + shift
        wanted = (position[:, None] + shift) * self.n_features + feature[:, None]
        found = torch.searchsorted(self.key, wanted).clamp_max_(len(self.key) - 1)
        fires = (self.key[found] == wanted) & (place >= 0) & (place < self.n_positions)
        return torch.where(fires, self.value[found], 0.0)


class Contexts:
    """The k entries of each feature with the highest scores, from different sequences."""

    def __init__(self, n_features: int, k: int, device: torch.device | str):
        self.score = torch.full((n_features, k), -torch.inf, device=device)
        """(F, k) descending; -inf where there are fewer."""
        self.sequence = torch.full((n_features, k), -1, dtype=torch.int64, device=device)
        self.place = torch.zeros((n_features, k), dtype=torch.int64, device=device)
        """(F, k) position of the peak in its sequence."""
        self.value = torch.zeros((n_features, k), device=device)
        self.window = torch.zeros((n_features, k, BEFORE + 1 + AFTER), device=device)

    def add(self, position: Tensor, feature: Tensor, score: Tensor, fired: _Fired, first: int) -> None:
        better = (score > self.score[feature, -1]).nonzero()[:, 0]
        if not len(better):
            return
        sequence = position[better] // fired.n_positions
        one = _best_of(feature[better] * (int(sequence.max()) + 1) + sequence, score[better])  # one a sequence
        better, sequence = better[one], sequence[one]
        rows, table = _table(feature[better], score[better], self.score.shape[1])
        kept, entry = table >= 0, better[table.clamp_min(0)]
        window = torch.zeros(*entry.shape, self.window.shape[2], device=score.device)
        window[kept] = fired.window(position[entry[kept]], feature[entry[kept]])
        new = {"score": torch.where(kept, score[entry], -torch.inf), "sequence": first + sequence[table.clamp_min(0)],
               "place": position[entry] % fired.n_positions, "value": fired.value[entry], "window": window}
        order = torch.cat([self.score[rows], new["score"]], 1).sort(dim=1, descending=True, stable=True).indices
        order = order[:, :self.score.shape[1]]
        for name, values in new.items():
            state = getattr(self, name)
            both = torch.cat([state[rows], values], 1)
            state[rows] = both.gather(1, order if both.ndim == 2 else order[..., None].expand(-1, -1, both.shape[2]))


class StrongestTokens:
    """The k distinct tokens on which each feature was most active, and its largest activation on each."""

    def __init__(self, n_features: int, k: int, device: torch.device | str):
        self.value = torch.full((n_features, k), -torch.inf, device=device)
        self.token = torch.full((n_features, k), -1, dtype=torch.int64, device=device)

    def add(self, feature: Tensor, token: Tensor, value: Tensor) -> None:
        better = (value > self.value[feature, -1]).nonzero()[:, 0]
        if not len(better):
            return
        better = better[_best_of(feature[better] * (int(token.max()) + 1) + token[better], value[better])]
        rows, table = _table(feature[better], value[better], self.value.shape[1])
        entry = better[table.clamp_min(0)]
        tokens = torch.cat([self.token[rows], torch.where(table >= 0, token[entry], -1)], 1)
        values = torch.cat([self.value[rows], torch.where(table >= 0, value[entry], -torch.inf)], 1)
        values, order = values.sort(dim=1, descending=True, stable=True)
        tokens, order = tokens.gather(1, order).sort(dim=1, stable=True)
        values = values.gather(1, order)  # of a token that is here twice, the larger value is now first
        values[:, 1:][tokens[:, 1:] == tokens[:, :-1]] = -torch.inf
        self.value[rows], order = values.topk(self.value.shape[1], 1)
        self.token[rows] = torch.where(self.value[rows] > -torch.inf, tokens.gather(1, order), -1)


def _by_group(group: Tensor, score: Tensor) -> Tensor:
    """Order of entries by group, then score from high to low, then as they came."""
    order = torch.sort(score, descending=True, stable=True).indices
    return order[torch.sort(group[order], stable=True).indices]


def _best_of(group: Tensor, score: Tensor) -> Tensor:
    """Entry with the highest score of each group; the earliest where several have it."""
    order = _by_group(group, score)
    group = group[order]
    return order[torch.cat([group.new_ones(1, dtype=torch.bool), group[1:] != group[:-1]])]


def _table(feature: Tensor, score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The features present (R,), and (R, at most k) the entries of each with the highest scores; -1 where there are
    fewer."""
    rows, row, counts = feature.unique(return_inverse=True, return_counts=True)
    order = _by_group(row, score)
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[row[order]]
    k = min(k, int(counts.max()))
    table = torch.full((len(rows), k), -1, dtype=torch.int64, device=order.device)
    kept = rank < k
    table[row[order[kept]], rank[kept]] = order[kept]
    return rows, table
