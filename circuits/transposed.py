"""The transpose of one frozen layer, and gradients that few positions and directions still describe (METHOD 1, 4).

Shapes: P positions of a batch's causal cone, B targets of a batch, D d_model, H query heads, G key/value heads,
K head_dim, R factors of a target, Q distinct target positions of a batch.

Norm gains are a scale per position times a vector: the vectors are folded into W_O and W_V, the scales into the scores
of the pattern, so that crossing a layer is products only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.frozen import FrozenLayer
from circuits.kernels.attention import mix_stored, transposed_attention, transposed_patterns
from circuits.kernels.products import add_product


class TransposedLayer:
    """One layer's attention and affine skip, transposed, with weights laid out for it.

    Args:
        skip: (D, D) with y += x @ skip, or None.
        resident: keep the weights; otherwise they are read, and given up, each time the layer is crossed.
        patterns: keep the attention patterns; otherwise they are computed anew each time, in tiles.
    """

    def __init__(self, layer: FrozenLayer, skip: Tensor | None, dtype: torch.dtype, resident: bool = True,
                 patterns: bool = False):
        self.frozen, self.dtype, self.resident = layer, dtype, resident
        self.device = layer.queries.device
        self.n_heads, _, self.head_dim = layer.queries.shape
        self.n_groups = len(layer.keys)
        self.d_model = len(layer.attn_in_norm)
        self.log_norm = layer.log_sums - layer.attn_out_scale.log()
        self.key_bias = layer.attn_in_scale.log()
        self.patterns = transposed_patterns(layer.queries, layer.keys, self.log_norm, self.key_bias,
                                            layer.window) if patterns else None
        self.skip = None if skip is None else (skip.to(self.device).T * layer.mlp_in_norm).to(dtype).contiguous()
        self.skip_scale = layer.mlp_in_scale.to(dtype)
        self._weights: tuple[Tensor, Tensor] | None = None

    def weights(self) -> tuple[Tensor, Tensor]:
        """W_O (H, D, K) and W_V (G, K, D) with the norms' vectors folded in."""
        if self._weights is not None:
            return self._weights
        w_v, w_o = self.frozen.projections()
        w_o = (w_o * self.frozen.attn_out_norm[:, None, None]).to(self.dtype).permute(1, 0, 2).contiguous()
        weights = w_o, (w_v * self.frozen.attn_in_norm).to(self.dtype)
        if self.resident:
            self._weights = weights
        return weights

    def flops(self, cone: int) -> float:
        """Operations to cross this layer densely, for one target whose cone has ``cone`` positions."""
        seen = cone / 2 if self.frozen.window is None else min(cone / 2, self.frozen.window)
        return 2 * cone * self.head_dim * (self.d_model * (self.n_heads + self.n_groups) + self.n_heads * seen)

    def cross(self, state: Tensor, scratch: Scratch) -> None:
        """Add to ``state`` (P, B, D), the gradient at the layer's output, what passes through attention."""
        w_o, w_v = self.weights()
        n_pos, batch, _ = state.shape
        by_head = scratch.take("heads", self.n_heads, n_pos * batch, self.head_dim)
        rows = state.view(-1, self.d_model)
        for head in range(self.n_heads):
            add_product(by_head[head], rows, w_o[head])
        mixed = scratch.take("mixed", self.n_groups, n_pos, batch, self.head_dim)
        self.mix(by_head.view(self.n_heads, n_pos, batch, self.head_dim), mixed)
        for group in range(self.n_groups):
            add_product(rows, mixed[group].view(-1, self.head_dim), w_v[group], beta=1.0)

    def mix(self, by_head: Tensor, out: Tensor | None = None, *, sum_heads: bool = True) -> Tensor:
        """(G, P, B, K) gradients by head (H, P, B, K) brought from queries to keys; (H, P, B, K) one by one."""
        n_pos = by_head.shape[1]
        if self.patterns is not None:
            if out is None:
                out = by_head.new_empty(self.n_groups if sum_heads else self.n_heads, *by_head.shape[1:])
            return mix_stored(by_head, self.patterns, out, self.frozen.window)
        keys = self.frozen.keys[:, :n_pos]
        if not sum_heads:
            keys = keys.repeat_interleave(self.n_heads // self.n_groups, 0)
        return transposed_attention(by_head, self.frozen.queries[:, :n_pos], keys, self.log_norm[:, :n_pos],
                                    self.key_bias[:n_pos], self.frozen.window, out)

    def add_skip(self, state: Tensor, scratch: Scratch) -> None:
        """Add to ``state`` (P, B, D) what passes through the affine skip and pre_feedforward_layernorm."""
        if self.skip is not None:
            passed = scratch.take("heads", state.shape[0] * state.shape[1], self.d_model)
            add_product(passed, state.view(-1, self.d_model), self.skip)
            state.addcmul_(passed.view_as(state), self.skip_scale[:len(state), None, None])


class Scratch:
    """Buffers that every product of one batch is written into: fresh ones would cost more to map than the smaller
    products to compute."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """The named buffer as a tensor of this shape; what it held before is lost."""
        size = torch.Size(shape).numel()
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return self._buffers[name].narrow(0, 0, size).view(shape)


@dataclass
class Factors:
    """Gradients of targets sorted by position: ``state[p, b] = sum_r weight[q(b), r, p] vector[r, b]``.

    A gradient starts at one position; each attention layer spreads it by H patterns, which targets at one position
    share: while the factors are fewer than the positions, the wide products are made for factors alone.
    """

    vectors: Tensor
    """(R, B, D); the first factor stands at the targets' own positions and nowhere else."""
    weight: Tensor
    """(Q, R, P)"""
    position: list[int]
    """(Q,) ascending."""
    ends: list[int]
    """(Q,) where each position's targets end."""

    @classmethod
    def start(cls, vectors: Tensor, position: Tensor) -> Factors:
        """Targets' gradients (B, D) where they enter, at ``position`` (B,) ascending."""
        distinct, count = torch.unique_consecutive(position, return_counts=True)
        weight = vectors.new_zeros(len(distinct), 1, int(distinct[-1]) + 1)
        weight[torch.arange(len(distinct), device=weight.device), 0, distinct] = 1
        return cls(vectors[None], weight, distinct.tolist(), count.cumsum(0).tolist())

    def __len__(self) -> int:
        return len(self.vectors)

    def to(self, device: torch.device) -> None:
        """Move to another layer's device."""
        self.vectors, self.weight = self.vectors.to(device), self.weight.to(device)

    def dense(self, state: Tensor) -> Tensor:
        """Write the gradients into ``state`` (P, B, D)."""
        n_factors, _, d_model = self.vectors.shape
        first = 0
        for i, (position, end) in enumerate(zip(self.position, self.ends, strict=True)):
            state[position + 1:, first:end] = 0
            part = self.vectors[:, first:end].reshape(n_factors, -1)
            here = state.new_empty(position + 1, part.shape[1])
            add_product(here, self.weight[i, :, :position + 1].T, part)
            state[:position + 1, first:end] = here.view(position + 1, -1, d_model)
            first = end
        return state

    def add_skip(self, layer: TransposedLayer) -> None:
        """What the affine skip adds: a second factor for each that stands at several positions."""
        if layer.skip is None:
            return
        d_model = self.vectors.shape[2]
        passed = torch.empty_like(self.vectors)
        add_product(passed.view(-1, d_model), self.vectors.view(-1, d_model), layer.skip)
        counts = torch.tensor(self.ends).diff(prepend=torch.tensor([0]))
        own = layer.skip_scale[self.position].repeat_interleave(counts.to(layer.device))
        first = self.vectors[:1] + passed[:1] * own[:, None]
        self.vectors = torch.cat([first, self.vectors[1:], passed[1:]])
        scaled = self.weight[:, 1:] * layer.skip_scale[:self.weight.shape[2]]
        self.weight = torch.cat([self.weight, scaled], 1)

    def cross(self, layer: TransposedLayer) -> None:
        """Pass through attention and stay factors: H more for each one."""
        w_o, w_v = layer.weights()
        by_head = self._by_head(layer, w_o)
        _, batch, d_model = self.vectors.shape
        passed = by_head.new_empty(layer.n_heads, by_head.shape[1], d_model)
        per_group = layer.n_heads // layer.n_groups
        for head in range(layer.n_heads):
            add_product(passed[head], by_head[head], w_v[head // per_group])
        spread = self._spread(layer)  # (H, P, Q, R)
        weight = spread.permute(2, 0, 3, 1).reshape(len(self.position), -1, self.weight.shape[2])
        self.vectors = torch.cat([self.vectors, passed.view(-1, batch, d_model)])
        self.weight = torch.cat([self.weight, weight], 1)

    def cross_into(self, layer: TransposedLayer, state: Tensor, scratch: Scratch) -> None:
        """Pass through attention and stop being factors: ``state`` (P, B, D), which holds the gradients, gains what
        passes."""
        w_o, w_v = layer.weights()
        by_head = self._by_head(layer, w_o).view(layer.n_groups, -1, *self.vectors.shape[:2], layer.head_dim)
        spread = self._spread(layer)
        spread = spread.view(layer.n_groups, -1, *spread.shape[1:])  # (G, H/G, P, Q, R)
        n_pos, batch, d_model = state.shape
        mixed = scratch.take("mixed", n_pos, batch, layer.head_dim)
        for group in range(layer.n_groups):
            first = 0
            for i, (position, end) in enumerate(zip(self.position, self.ends, strict=True)):
                mixed[position + 1:, first:end] = 0
                part = by_head[group, :, :, first:end].reshape(-1, (end - first) * layer.head_dim)
                weight = spread[group, :, :position + 1, i].permute(1, 0, 2).reshape(position + 1, -1)
                here = mixed.new_empty(position + 1, part.shape[1])
                add_product(here, weight, part)
                mixed[:position + 1, first:end] = here.view(position + 1, -1, layer.head_dim)
                first = end
            add_product(state.view(-1, d_model), mixed.view(-1, layer.head_dim), w_v[group], beta=1.0)

    def _by_head(self, layer: TransposedLayer, w_o: Tensor) -> Tensor:
        """(H, R * B, K)"""
        rows = self.vectors.view(-1, self.vectors.shape[2])
        by_head = rows.new_empty(layer.n_heads, len(rows), layer.head_dim)
        for head in range(layer.n_heads):
            add_product(by_head[head], rows, w_o[head])
        return by_head

    def _spread(self, layer: TransposedLayer) -> Tensor:
        """(H, P, Q, R) the factors' weights after each head's pattern."""
        n_pos = self.weight.shape[2]
        if len(self) == 1:  # all at one position: one row of each pattern
            where = torch.tensor(self.position, device=layer.device)
            rows = layer.frozen.pattern_rows(where, n_pos)
            rows = rows * layer.frozen.attn_out_scale[where, None] * layer.frozen.attn_in_scale[:n_pos]
            return rows.permute(0, 2, 1)[..., None].to(self.weight.dtype)
        # mixing knows rows of head_dim numbers: the weights fill as many as they need
        flat = self.weight.permute(2, 0, 1).flatten(1)
        n_weights = flat.shape[1]
        n_rows = -(-n_weights // layer.head_dim)
        padded = flat.new_zeros(layer.n_heads, n_pos, n_rows * layer.head_dim)
        padded[:, :, :n_weights] = flat
        mixed = layer.mix(padded.view(layer.n_heads, n_pos, n_rows, layer.head_dim), sum_heads=False)
        return mixed.view(layer.n_heads, n_pos, -1)[:, :, :n_weights].reshape(layer.n_heads, n_pos, -1, len(self))

    def flops(self, layer: TransposedLayer, with_skip: bool) -> tuple[float, float, float]:
        """Operations for one target to cross ``layer``: staying factors, becoming dense, and densely."""
        cone = self.weight.shape[2]
        n = 2 * len(self) - 1 if with_skip and layer.skip is not None else len(self)
        wide = 2 * layer.d_model * layer.n_heads * layer.head_dim
        after = n * (1 + layer.n_heads)
        # products as thin as the number of factors run at a fraction of the speed of wide ones
        dense = cone * after * layer.d_model * (6 if after < 64 else 3)
        spread = n * layer.n_heads * cone * cone * len(self.position) / self.vectors.shape[1]
        stay = 2 * n * wide + dense + spread
        leave = n * wide + 2 * cone * layer.head_dim * (2 * n * layer.n_heads + layer.n_groups * layer.d_model) + spread
        return stay, leave, layer.flops(cone)
