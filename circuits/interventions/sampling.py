"""Choosing the next token from its logits: greedily, or with a temperature, top-k and top-p.

Shapes: B texts, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from circuits.errors import InputError


class Sampler:
    """Chooses the next token of every text of a batch.

    All texts meet the same noise: token v is chosen where log p_v plus a Gumbel number of v is largest, and step n of
    every text has the same Gumbel numbers (the "Gumbel-max trick", arXiv 2110.01515). So each text is drawn from its
    own distribution, does not depend on which others are in the batch, and two texts whose distributions are equal stay
    equal: what differs comes from the edits, not from luck.

    Args:
        temperature: 0 takes the likeliest token.
        top_k: only the k likeliest tokens, after the temperature.
        top_p: then only the likeliest that together hold at least this probability (nucleus, arXiv 1904.09751).

    Raises:
        InputError: a setting out of its range.
    """

    def __init__(self, temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0):
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature is {temperature}: expected 0 (greedy) or a positive number")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}: expected at least 1")
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"top_p is {top_p}: expected more than 0, at most 1")
        if not 0 <= seed < 1 << 63:
            raise InputError(f"seed is {seed}: expected 0 to 2^63 - 1")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits: Tensor) -> Tensor:
        """(B,) int64 tokens from logits (B, V); each call is the next step."""
        if self.temperature == 0:
            return logits.argmax(-1)
        exponential = torch.empty(logits.shape[-1], dtype=torch.float64).exponential_(generator=self._generator)
        return (self.log_probabilities(logits) - exponential.log().to(logits.device)).argmax(-1)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """(B, V) float64 of the distribution that is drawn from, temperature above 0; minus infinity for tokens that
        are left out."""
        # from the largest down, or a small temperature would make infinities
        scaled = (logits.double() - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None:
            kth = scaled.topk(min(self.top_k, scaled.shape[-1])).values[..., -1:]
            scaled = scaled.masked_fill(scaled < kth, -torch.inf)
        if self.top_p is not None:
            ordered, order = scaled.sort(-1, descending=True)
            probability = ordered.softmax(-1)
            enough = probability.cumsum(-1) - probability >= self.top_p  # before this token
            scaled = scaled.masked_fill(torch.zeros_like(enough).scatter(-1, order, enough), -torch.inf)
        return scaled.log_softmax(-1)
