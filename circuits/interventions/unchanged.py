"""One layer of the unchanged prompt, beside which a changed one is computed.

Shapes: P positions, D d_model, G key/value heads, K head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.block import Block
from circuits.frozen import attend


@dataclass(frozen=True)
class Unchanged:
    """One layer of the unchanged prompt, computed as the changed ones are: differences are then of the change alone."""

    x: Tensor
    """(P, D) residual stream before the layer."""
    attn_in: Tensor
    """(P, D) output of input_layernorm."""
    keys: Tensor
    """(P, G, K)"""
    values: Tensor
    """(P, G, K)"""
    attn_raw: Tensor
    """(P, D) before post_attention_layernorm."""
    mid: Tensor
    """(P, D) residual stream between attention and MLP."""
    mlp_in: Tensor
    """(P, D) output of pre_feedforward_layernorm."""
    mlp_raw: Tensor
    """(P, D) before post_feedforward_layernorm."""
    out: Tensor
    """(P, D) residual stream after the layer."""

    @classmethod
    def of(cls, block: Block, x: Tensor) -> Unchanged:
        """The layer on its input (P, D)."""
        positions = torch.arange(len(x), device=x.device)
        attn_in = block.norm(x, block.attn_in_norm)
        keys, values = block.keys(attn_in, positions), block.values(attn_in)
        queries = block.queries(attn_in, positions)
        by_head, _ = attend(queries.transpose(0, 1).contiguous(), keys.transpose(0, 1).contiguous(),
                            values.transpose(0, 1).contiguous(), block.window)
        raw = block.attention_output(by_head.transpose(0, 1))
        mid = x + block.norm(raw, block.attn_out_norm)
        mlp_in = block.norm(mid, block.mlp_in_norm)
        mlp_raw = block.mlp(mlp_in)
        return cls(x, attn_in, keys, values, raw, mid, mlp_in, mlp_raw, mid + block.norm(mlp_raw, block.mlp_out_norm))
