"""The rows of a batch of interventions: only the positions that each one can change.

Shapes: B interventions, R rows, P positions, N any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """A row for every position from an intervention's first on; interventions by their first layer, so that those that
    a layer can have changed are the first rows."""

    item: Tensor
    """(R,) number of the intervention, as the caller counts."""
    position: Tensor
    """(R,)"""
    order: list[int]
    """(B,) interventions in the order of their rows."""
    first: list[int]
    """(B,) first position of each, in that order."""
    start: list[int]
    """(B + 1,) where each one's rows start, in that order."""
    layer: list[int]
    """(B,) first layer of each, in that order."""

    @classmethod
    def of(cls, first_layer: Tensor, first_position: Tensor, n_positions: int) -> Rows:
        """Rows of interventions that start at these layers (B,) and positions (B,)."""
        order = sorted(range(len(first_layer)), key=lambda i: (int(first_layer[i]), int(first_position[i])))
        first = [min(int(first_position[i]), n_positions) for i in order]
        length = torch.tensor([n_positions - p for p in first])
        start = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
        position = torch.arange(int(start[-1])) - (start[:-1] - torch.tensor(first)).repeat_interleave(length)
        return cls(torch.tensor(order).repeat_interleave(length), position, order, first, start.tolist(),
                   [int(first_layer[i]) for i in order])

    def entered(self, layer: int) -> int:
        """Interventions that a layer's attention may see: whose first edit is below it."""
        return sum(first < layer for first in self.layer)

    def find(self, item: Tensor, position: Tensor) -> Tensor:
        """(N,) rows of interventions (N,) at positions (N,), which must not be before their first."""
        place = torch.empty(len(self.order), dtype=torch.int64)
        place[self.order] = torch.tensor(self.start[:-1]) - torch.tensor(self.first)
        return place.to(item.device)[item] + position

    def groups(self, n: int, most: int) -> Iterator[tuple[slice, int]]:
        """The first ``n`` interventions in runs that hold at most ``most`` rows when all are padded to the longest,
        one at least; with each run its smallest first position."""
        begin, low = 0, 0
        for i in range(n):
            first = min(low, self.first[i]) if i > begin else self.first[i]
            if i > begin and (i - begin + 1) * (self.end - first) > most:
                yield slice(begin, i), low
                begin, first = i, self.first[i]
            low = first
        if begin < n:
            yield slice(begin, n), low

    @property
    def end(self) -> int:
        """P"""
        return self.first[0] + self.start[1] if self.order else 0

    def padded(self, group: slice, low: int, tensor: Tensor) -> Tensor:
        """(b, P - low, ...) the rows (R, ...) of a group's interventions, zero before each one's first position."""
        out = tensor.new_zeros(group.stop - group.start, self.end - low, *tensor.shape[1:])
        some = slice(self.start[group.start], self.start[group.stop])
        out[self._local(group).to(tensor.device), self.position[some].to(tensor.device) - low] = tensor[some]
        return out

    def unpadded(self, group: slice, low: int, padded: Tensor) -> Tensor:
        """The rows of a group from (b, P - low, ...): what :meth:`padded` made."""
        some = slice(self.start[group.start], self.start[group.stop])
        return padded[self._local(group).to(padded.device), self.position[some].to(padded.device) - low]

    def _local(self, group: slice) -> Tensor:
        """Of each row of a group, the number of its intervention inside of the group."""
        lengths = torch.tensor(self.start[group.start + 1:group.stop + 1]) - torch.tensor(
            self.start[group.start:group.stop])
        return torch.arange(group.stop - group.start).repeat_interleave(lengths)
