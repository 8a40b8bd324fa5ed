"""Which entries of the pre-activations fire in training, and the penalties on how many do.

Shapes: L layers, T tokens of a batch, F features of a layer (this process's share), N entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from circuits.training.ranks import Ranks


@dataclass(frozen=True)
class Firing:
    """Entries of one layer's (T, F) pre-activations that take part in a step, sorted by token, then feature."""

    token: Tensor
    """(N,) int64"""
    feature: Tensor
    """(N,) int64"""
    value: Tensor
    """(N,) float32 activations; 0 for entries just below a trained threshold."""
    offsets: Tensor
    """(T + 1,) int64: entries of token t are offsets[t]:offsets[t+1]."""
    near: Tensor | None = None
    """(N,) bool, entries within the straight-through kernel of their threshold; None for BatchTopK."""

    def within(self, start: int, stop: int) -> Firing:
        """The entries of features start to stop - 1."""
        keep = (self.feature >= start) & (self.feature < stop)
        return entries(self.token[keep], self.feature[keep], self.value[keep], len(self.offsets) - 1,
                       None if self.near is None else self.near[keep])


def entries(token: Tensor, feature: Tensor, value: Tensor, tokens: int, near: Tensor | None = None) -> Firing:
    """Firing from its columns, sorted by token."""
    return Firing(token, feature, value, bag_offsets(token, tokens), near)


def bag_offsets(index: Tensor, size: int) -> Tensor:
    """(size + 1,) where the run of each value 0 to size - 1 starts once ``index`` is sorted, and where all end."""
    return functional.pad(torch.bincount(index, minlength=size).cumsum(0), (1, 0))


def batch_top_k(pre: list[Tensor], active: int, threshold: Tensor, ranks: Ranks) -> list[Firing]:
    """The ``active * T`` largest positive pre-activations of each layer over the batch, and over all processes.

    Args:
        pre: per layer (T, F).
        threshold: (L,) moving average of the smallest entry kept; it narrows the search, nothing else.
    """
    tokens = len(pre[0])
    keep = active * tokens
    found = [_largest(p.flatten(), keep, float(t)) for p, t in zip(pre, threshold, strict=True)]
    if ranks.size > 1:
        values = torch.full((len(pre), keep), -torch.inf, device=pre[0].device)
        for layer, near in enumerate(found):
            values[layer, :len(near)] = pre[layer].flatten()[near]
        cut = ranks.gather(values).transpose(0, 1).flatten(1).topk(keep).values[:, -1]
        found = [near[pre[layer].flatten()[near] >= cut[layer]] for layer, near in enumerate(found)]
    return [entries(near // p.shape[1], near % p.shape[1], p.flatten()[near], tokens)
            for near, p in zip(found, pre, strict=True)]


def _largest(flat: Tensor, keep: int, threshold: float) -> Tensor:
    """Indices of the ``keep`` largest positive entries, ascending."""
    near = torch.nonzero(flat > 0.5 * max(threshold, 0.0))[:, 0]
    if len(near) < keep:
        near = torch.nonzero(flat > 0)[:, 0]
    if len(near) > keep:
        near = near[flat[near].topk(keep).indices].sort().values
    return near


def jump_relu(pre: Tensor, threshold: Tensor, bandwidth: float) -> Firing:
    """Entries above their feature's threshold (F,), and those the straight-through kernel reaches below it
    (arXiv 2407.14435, section 3)."""
    token, feature = torch.nonzero(pre > threshold - 0.5 * bandwidth, as_tuple=True)
    value, limit = pre[token, feature], threshold[feature]
    near = value < limit + 0.5 * bandwidth
    return entries(token, feature, torch.where(value > limit, value, 0.0), len(pre), near)


@dataclass(frozen=True)
class Penalty:
    """Gemma Scope 2's sparsity terms of one layer: quadratic in L0 around a target, and on frequent features."""

    target: int
    l0: float
    frequency: float
    limit: float

    def loss_and_slope(self, firing: Firing, features: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """The penalty, and its derivative by the frequency of each feature (F,)."""
        tokens = len(firing.offsets) - 1
        frequency = torch.bincount(firing.feature[firing.value > 0], minlength=features) / tokens
        excess = ranks.sum_(frequency.sum()) / self.target - 1.0
        over = frequency > self.limit
        logs = torch.where(over, torch.log10(frequency / self.limit), 0.0)
        loss = self.l0 * excess.square() + self.frequency / self.target * ranks.sum_(logs.sum())
        slope = 2.0 * self.l0 * excess / self.target + torch.where(
            over, self.frequency / self.target / (math.log(10.0) * frequency.clamp_min(1e-12)), 0.0)
        return loss, slope
