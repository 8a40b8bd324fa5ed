"""What a feature means in the vocabulary, from weights alone: tokens it promotes, and tokens that excite it.

Shapes: F features of a layer, n chosen features, D d_model, V' tokens looked at, k of them kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.gemma3 import Gemma3
from circuits.transcoder import Transcoders

_TILE = 1 << 23
"""Elements of a tile of (n, vocabulary)."""
_ROWS = 2048
"""Features whose decoder rows are read at once."""


@dataclass(frozen=True)
class Extremes:
    """The k highest and lowest of each row of a (n, V') matrix that is never formed whole."""

    top_tokens: Tensor
    """(n, k) int64, highest first"""
    top: Tensor
    """(n, k) float32"""
    bottom_tokens: Tensor
    """(n, k) int64, lowest first"""
    bottom: Tensor
    spread: Tensor
    """(n,) standard deviation over the tokens"""


@torch.no_grad()
def logit_effects(model: Gemma3, transcoders: Transcoders, layer: int, features: Tensor, tokens: Tensor,
                  k: int) -> Extremes:
    """What an activation of 1 adds to the logits of some ``tokens`` (V',) on the direct path.

    The map is: sum of the feature's decoder vectors over all layers it writes to, times the final norm's gain (1 + w;
    its scale, a positive number at each position, is left out), times the unembedding. From that the mean over the
    tokens is taken off, which no choice among them depends on, and the mean over all features of the layer, which says
    nothing about this one.
    """
    written = torch.cat([transcoders.decoder_rows(layer, rows).sum(1)
                         for rows in torch.arange(transcoders.d_transcoder[layer]).split(_ROWS)])
    direction = (written[features.to(written.device)] - written.mean(0)) * model.final_norm_gain.to(written.device)
    return extremes(direction.to(model.device), lambda part: model.unembedding[part].float(),
                     tokens.to(model.device), k)


@torch.no_grad()
def embedding_scores(model: Gemma3, transcoders: Transcoders, layer: int, features: Tensor, tokens: Tensor,
                     k: int) -> Extremes:
    """What a token's embedding alone would add to the pre-activations, for the ``tokens`` (V',) asked about.

    The map is: the embedding as if it were the whole residual stream, scaled to unit mean square and multiplied by the
    gain (1 + w) of the layer's pre_feedforward_layernorm, times the encoder. The mean over the tokens is taken off.
    Attention and earlier layers are left out, so this says most in the first layers.
    """
    direction = transcoders.encoder_rows(layer, features).to(model.device) * model.mlp_norm_gain(layer)

    def normed(part: Tensor) -> Tensor:
        embedding = model.embedding[part].float() * model.d_model**0.5
        return embedding * torch.rsqrt(embedding.square().mean(-1, keepdim=True) + model.norm_eps)

    return extremes(direction, normed, tokens.to(model.device), k)


def extremes(direction: Tensor, vectors: Callable[[Tensor], Tensor], tokens: Tensor, k: int) -> Extremes:
    """Of ``direction @ vectors(tokens).T``, each row less its mean; a tile at a time.

    Args:
        direction: (n, D)
        vectors: called with some of the tokens, gives (tokens, D).
    """
    parts = tokens.split(max(64, _TILE // max(1, len(direction))))
    mean = torch.stack([vectors(part).double().sum(0) for part in parts]).sum(0) / len(tokens)
    shift = (direction @ mean.float())[:, None]
    high, low = (_Highest(len(direction), min(k, len(tokens)), direction.device) for _ in range(2))
    squares = torch.zeros(len(direction), device=direction.device)
    for part in parts:
        values = direction @ vectors(part).T - shift
        squares += torch.linalg.vector_norm(values, dim=1).square()
        high.add(values, part)
        low.add(values.neg_(), part)
    return Extremes(high.token, high.value, low.token, -low.value, (squares / len(tokens)).sqrt())


class _Highest:
    """The k highest values of each row, over tiles of columns."""

    def __init__(self, n: int, k: int, device: torch.device):
        self.value = torch.full((n, k), -torch.inf, device=device)
        self.token = torch.full((n, k), -1, dtype=torch.int64, device=device)

    def add(self, values: Tensor, tokens: Tensor) -> None:
        value, place = values.topk(min(self.value.shape[1], values.shape[1]), 1)
        self.value, order = torch.cat([self.value, value], 1).topk(self.value.shape[1], 1)
        self.token = torch.cat([self.token, tokens[place]], 1).gather(1, order)
