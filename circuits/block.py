"""One layer of Gemma 3 as plain tensors and functions, for passes that change something on the way (METHOD 1).

Shapes: P positions, R rows (any positions of any runs), D d_model, H query heads, G key/value heads, K head_dim,
I width of the MLP. All float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True)
class Block:
    """The weights of a layer; made by :meth:`circuits.gemma3.Gemma3.block`.

    ``x += attn_out(o(attention(attn_in(x))))``, then ``x += mlp_out(mlp(mlp_in(x)))``, where the four norms are
    RMSNorm: ``norm(x) = x * scale(x) * gain``.
    """

    w_q: Tensor
    """(H, K, D)"""
    w_k: Tensor
    """(G, K, D)"""
    w_v: Tensor
    """(G, K, D)"""
    w_o: Tensor
    """(D, H, K)"""
    q_norm: Tensor
    """(K,) 1 + w; below, of every norm."""
    k_norm: Tensor
    attn_in_norm: Tensor
    """(D,)"""
    attn_out_norm: Tensor
    mlp_in_norm: Tensor
    mlp_out_norm: Tensor
    w_gate: Tensor
    """(I, D)"""
    w_up: Tensor
    """(I, D)"""
    w_down: Tensor
    """(D, I)"""
    activation: Callable[[Tensor], Tensor]
    frequencies: Tensor
    """(K / 2,) rotary angle per position, of this layer's type."""
    rotary_scale: float
    """Factor on cosine and sine; 1 in released models."""
    score_scale: float
    """query_pre_attn_scalar ** -0.5"""
    window: int | None
    """Positions a query sees, itself included; None for all before it."""
    eps: float

    def scale(self, x: Tensor) -> Tensor:
        """(..., 1) what RMSNorm multiplies ``x`` (..., N) by before its gain."""
        return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def norm(self, x: Tensor, gain: Tensor) -> Tensor:
        """(..., N) RMSNorm of ``x`` (..., N) with ``gain`` (N,), 1 + w."""
        return x * self.scale(x) * gain

    def queries(self, x: Tensor, positions: Tensor) -> Tensor:
        """(R, H, K) of normed inputs ``x`` (R, D) at ``positions`` (R,): after q_norm, rotary and the score scale."""
        return self.rotate(self.norm(self.project(self.w_q, x), self.q_norm), positions) * self.score_scale

    def keys(self, x: Tensor, positions: Tensor) -> Tensor:
        """(R, G, K) of normed inputs ``x`` (R, D) at ``positions`` (R,): after k_norm and rotary."""
        return self.rotate(self.norm(self.project(self.w_k, x), self.k_norm), positions)

    def values(self, x: Tensor) -> Tensor:
        """(R, G, K) of normed inputs ``x`` (R, D)."""
        return self.project(self.w_v, x)

    @staticmethod
    def project(weight: Tensor, x: Tensor) -> Tensor:
        """(..., H, K) products of ``x`` (..., D) with ``weight`` (H, K, D)."""
        return linear(x, weight.flatten(0, 1)).unflatten(-1, weight.shape[:2])

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary embedding of ``x`` (R, N, K) at ``positions`` (R,): orthogonal up to ``rotary_scale``."""
        angle = positions[:, None].float() * self.frequencies
        cos, sin = ((f * self.rotary_scale)[:, None] for f in (angle.cos(), angle.sin()))
        low, high = x.chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    def attention_output(self, by_head: Tensor) -> Tensor:
        """(..., D) what the heads' outputs (..., H, K) give, before post_attention_layernorm."""
        return linear(by_head.flatten(-2), self.w_o.flatten(1))

    def mlp(self, x: Tensor) -> Tensor:
        """(..., D) the MLP of normed inputs (..., D), before post_feedforward_layernorm."""
        return linear(self.activation(linear(x, self.w_gate)).mul_(linear(x, self.w_up)), self.w_down)
