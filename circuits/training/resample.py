"""New features in place of dead ones, or beside trained ones: each made from one token the transcoder explains badly
(neuron resampling, transformer-circuits.pub/2023/monosemantic-features).

Shapes: L layers, S span, F features of a layer, T tokens of a batch, D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuits.training.clt import DEAD_TOKENS, TrainableCLT

OWN_VALUE = 2.0
"""A new feature's pre-activation at the token it is made from, in thresholds; at the mean input it is OWN_MEAN."""
OWN_MEAN = 0.4
WRITE = 0.3
"""Share of that token's error a new feature writes there: less than all of it, for most of one token's error is its
own."""


@torch.no_grad()
def resample_dead(clt: TrainableCLT, adam: torch.optim.Optimizer, x: Tensor, y: Tensor, step: int) -> int:
    """Replace the features silent for DEAD_TOKENS tokens, and forget their moments in ``adam``.

    Args:
        x, y: (L, T, D) scaled, one batch.
        step: seeds the choice of tokens.

    Returns:
        How many were replaced, over all layers and processes.
    """
    dead = clt.ranks.whole((clt.quiet_tokens > DEAD_TOKENS).to(torch.uint8), 1).bool()
    if not bool(dead.any()):
        return 0
    error = clt.errors(clt.fire(x), x, y)[-1]
    generator = torch.Generator().manual_seed(clt.settings.seed * 15485863 + step)
    for layer in range(clt.n_layers):
        features = plant(clt, layer, dead[layer].nonzero()[:, 0], x[layer], error, generator)
        clt.quiet_tokens[layer, features] = 0
        for name in ("w_enc", "b_enc", "w_dec", "log_threshold"):
            for parameter in getattr(clt, name)[layer:layer + 1]:
                for moment in ("exp_avg", "exp_avg_sq"):
                    if moment in adam.state[parameter]:
                        adam.state[parameter][moment].index_fill_(1 if name == "w_dec" else 0, features, 0.0)
    return int(dead.sum())


@torch.no_grad()
def plant(clt: TrainableCLT, layer: int, features: Tensor, x: Tensor, error: Tensor, generator: torch.Generator
          ) -> Tensor:
    """Make ``features`` of a layer anew, each from one token drawn by the error left in the layers it can write to.

    Args:
        features: (n,) numbers in the whole layer, ascending; the same in every process.
        x: (T, D) the layer's inputs; error: (L, T, D) reconstruction minus target; both scaled.

    Returns:
        Which of this process's features they are.
    """
    span, ranks = clt.spans[layer], clt.ranks
    weight = error[layer:layer + span].square().sum((0, 2)).cpu()
    token = torch.multinomial(weight, max(1, len(features)), replacement=len(features) > len(weight),
                              generator=generator)[:len(features)].to(x.device)
    own = features % ranks.size == ranks.rank
    features, token = features[own] // ranks.size, token[own]
    mean = x.mean(0)
    direction = x[token] - mean
    limit = clt.mean_threshold(layer).clamp_min(1e-3)
    gain = (OWN_VALUE - OWN_MEAN) * limit / direction.square().sum(1).clamp_min(1e-12)
    w_enc = direction * gain[:, None]
    clt.w_enc[layer][features] = w_enc
    clt.b_enc[layer][features] = OWN_MEAN * limit - w_enc @ mean
    if clt.jumprelu:
        clt.log_threshold[layer][features] = limit.log()
    clt.w_dec[layer][:, features] = -WRITE * error[layer:layer + span][:, token] / (OWN_VALUE * limit)
    return features
