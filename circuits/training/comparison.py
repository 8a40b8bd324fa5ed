"""Text in batches, and the next-token distributions of a changed model beside the original's.

Shapes: B sequences, P positions, V vocabulary, N measured positions of a batch (those that are not masked).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from circuits.prompt import masked_prefix

MAX_LOGITS = 1 << 27
"""Elements of a batch's logits (512 MiB of float32): 512 positions of Gemma's vocabulary."""
MAX_POSITIONS = 4096
"""Positions of a batch, where the vocabulary is small."""
MAX_COMPARED = 1 << 24
"""Elements of the logits turned into log-probabilities at once."""


@dataclass(frozen=True)
class Batch:
    """Sequences of one length with masked prefixes of one length."""

    tokens: Tensor
    """(B, P)"""
    masked: int

    def following(self) -> Tensor:
        """(B, P - masked) the token after each measured position; -1 after the last."""
        following = self.tokens.roll(-1, 1)
        following[:, -1] = -1
        return following[:, self.masked:]


def in_batches(sequences: Sequence[Sequence[int]], vocab_size: int) -> Iterator[Batch]:
    """The longest sequences first, as many at once as MAX_LOGITS and MAX_POSITIONS allow; those that are only a masked
    prefix are left out."""

    def shape(tokens: Sequence[int]) -> tuple[int, int]:
        return len(tokens), masked_prefix(tokens)

    for (length, masked), group in groupby(sorted(sequences, key=shape, reverse=True), key=shape):
        if length <= masked:
            continue
        alike = list(group)
        size = max(1, min(MAX_LOGITS // vocab_size, MAX_POSITIONS) // length)
        for start in range(0, len(alike), size):
            yield Batch(torch.tensor(alike[start:start + size]), masked)


class Comparison:
    """Next-token distributions of a changed model beside the original's, at measured positions."""

    def __init__(self) -> None:
        self.positions, self.predicted, self.same = 0, 0, 0
        self.divergence, self.original, self.changed = 0.0, 0.0, 0.0

    def add(self, batch: Batch, original: Tensor, changed: Tensor) -> None:
        """Args: logits (B, P, V) of the two models."""
        rows = max(1, MAX_COMPARED // original.shape[-1])
        for p, q, following in zip(original, changed, batch.following().to(original.device), strict=True):
            for part in zip(p[batch.masked:].split(rows), q[batch.masked:].split(rows), following.split(rows),
                            strict=True):
                self._add_rows(*part)

    def _add_rows(self, original: Tensor, changed: Tensor, following: Tensor) -> None:
        """Args: logits (n, V) of the two models, and the token that follows (n,), -1 where none does."""
        log_p, log_q = original.float().log_softmax(-1), changed.float().log_softmax(-1)
        self.divergence += float((log_p.exp() * (log_p - log_q)).sum())
        self.same += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        known, at = following >= 0, following.clamp(min=0)[:, None]
        self.original -= float(log_p.gather(1, at)[known].sum())
        self.changed -= float(log_q.gather(1, at)[known].sum())
        self.positions += len(following)
        self.predicted += int(known.sum())

    @property
    def kl(self) -> float:
        """Nats per position, from the original."""
        return self.divergence / self.positions

    @property
    def agreement(self) -> float:
        """Share of positions with the same likeliest token."""
        return self.same / self.positions

    @property
    def loss(self) -> float:
        """Cross entropy of the text's next tokens under the changed model, nats per token; NaN without any."""
        return self.changed / self.predicted if self.predicted else math.nan

    @property
    def loss_original(self) -> float:
        """The same under the original model."""
        return self.original / self.predicted if self.predicted else math.nan
