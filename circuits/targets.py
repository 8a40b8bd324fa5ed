"""What a trace explains: top logits, one token, a contrast of two, or any direction (METHOD 3).

Shapes: V vocabulary, D d_model, K targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.frozen import FrozenPass
from circuits.gemma3 import Gemma3
from circuits.prompt import single_token, token_text


@dataclass(frozen=True)
class Targets:
    """Directions in the final norm's output whose causes are traced."""

    vectors: Tensor
    """(K, D); a target's value is the product with the final norm's output at the last position."""
    values: Tensor
    """(K,) what the edges into each target must sum to."""
    weights: Tensor
    """(K,) probabilities of logits; 1 for a contrast or a direction."""
    tokens: list[int]
    """(K,) vocabulary ids; -1 for a contrast or a direction."""
    labels: list[str]


def choose_targets(model: Gemma3, frozen: FrozenPass, *, max_logits: int = 10, logit_prob: float = 0.95,
                   target: str | int | None = None, versus: str | int | None = None,
                   direction: Tensor | None = None) -> Targets:
    """The targets of a trace.

    Without ``target`` or ``direction``: the fewest top logits that hold ``logit_prob`` of the probability, at most
    ``max_logits``. A logit's value is its distance from the mean logit (the unembedding is demeaned).

    Args:
        target: one token, as text or id.
        versus: a second token: the target becomes logit(target) - logit(versus).
        direction: (D,) in the space of the unembedding.

    Raises:
        InputError: contradictory or impossible choices.
    """
    if not isinstance(max_logits, int) or max_logits < 1:
        raise InputError(f"max_logits is {max_logits}: expected a whole number of at least 1")
    if not 0 < logit_prob <= 1:
        raise InputError(f"logit_prob is {logit_prob}: expected a share above 0 and at most 1")
    if versus is not None and target is None:
        raise InputError("versus needs a target: the trace explains logit(target) - logit(versus)")
    if direction is not None and target is not None:
        raise InputError("give either a target token or a direction, not both")
    if direction is not None:
        return _direction(model, frozen, direction)
    if target is not None and versus is not None:
        return _contrast(model, frozen, _token_id(model, target), _token_id(model, versus))
    probabilities = frozen.logits.softmax(-1)
    if target is not None:
        tokens = torch.tensor([_token_id(model, target)], device=frozen.logits.device)
    else:
        top = probabilities.topk(min(max_logits, len(probabilities)))
        enough = int((top.values.cumsum(0) < logit_prob).sum()) + 1
        tokens = top.indices[:enough]
    ids = tokens.tolist()
    return Targets(
        vectors=model.unembedding[tokens].float() - model.mean_unembedding,
        values=frozen.logits[tokens] - frozen.logits.mean(),
        weights=probabilities[tokens], tokens=ids,
        labels=[f'Output "{token_text(model, t)}" (p={p:.3f})'
                for t, p in zip(ids, probabilities[tokens].tolist(), strict=True)])


def _contrast(model: Gemma3, frozen: FrozenPass, token: int, other: int) -> Targets:
    if token == other:
        raise InputError(f"target and versus are the same token {token_text(model, token)!r}: their difference is 0")
    probabilities = frozen.logits.softmax(-1)
    label = (f'Output "{token_text(model, token)}" (p={float(probabilities[token]):.3f}) '
             f'minus "{token_text(model, other)}" (p={float(probabilities[other]):.3f})')
    return Targets(vectors=(model.unembedding[token].float() - model.unembedding[other].float())[None],
                   values=(frozen.logits[token] - frozen.logits[other])[None],
                   weights=torch.ones(1), tokens=[-1], labels=[label])


def _direction(model: Gemma3, frozen: FrozenPass, direction: Tensor) -> Targets:
    vector = torch.as_tensor(direction, dtype=torch.float32, device=frozen.logits.device)
    if vector.shape != (model.d_model,) or not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
        raise InputError(f"direction has shape {tuple(vector.shape)}: expected ({model.d_model},) finite numbers, "
                         "not all zero")
    return Targets(vectors=vector[None], values=(frozen.final_normed @ vector)[None], weights=torch.ones(1),
                   tokens=[-1], labels=["Direction"])


def _token_id(model: Gemma3, token: str | int) -> int:
    if isinstance(token, str):
        return single_token(model, token)
    if not 0 <= int(token) < model.vocab_size:
        raise InputError(f"target token id {token} is outside the vocabulary (0 to {model.vocab_size - 1})")
    return int(token)
