"""What stays of a model on one prompt once attention patterns and norm scales are frozen (METHOD 1).

Shapes: L layers, P positions, D d_model, H query heads, G key/value heads, K head_dim, V vocabulary.

Patterns are not stored: L x H x P x P does not fit for long prompts. Queries, keys and the log-sum-exp of every row of
scores say the same in L x H x P x K, and give back any tile of a pattern when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

QUERY_TILE = 1 << 22
"""Scores computed at once in the forward pass, over all heads."""


@dataclass(frozen=True)
class FrozenLayer:
    """One layer's attention as a linear map of the residual stream, and the scale of the norm before its MLP.

    ``x_q += out_gain[q] * sum_h W_O[h] sum_p pattern[h, q, p] W_V[g(h)] (in_gain[p] * x_p)``; a norm's gain is its
    scale at the position times (1 + w). All float32, on the layer's device.
    """

    queries: Tensor
    """(H, P, K) after q_norm, rotary embedding and the score scale."""
    keys: Tensor
    """(G, P, K) after k_norm and rotary embedding."""
    log_sums: Tensor
    """(H, P) log-sum-exp of each query's scores."""
    window: int | None
    """Positions a query sees, itself included; None for all before it."""
    attn_in_scale: Tensor
    """(P,) rsqrt(mean x^2 + eps) of input_layernorm; below, of the norms after attention and before the MLP."""
    attn_out_scale: Tensor
    mlp_in_scale: Tensor
    attn_in_norm: Tensor
    """(D,) 1 + w of input_layernorm; below, of the norms after attention and before the MLP."""
    attn_out_norm: Tensor
    mlp_in_norm: Tensor
    projections: Callable[[], tuple[Tensor, Tensor]]
    """W_V (G, K, D) and W_O (D, H, K); read when called, for they may lie on another device or on disk."""

    @property
    def w_v(self) -> Tensor:
        """(G, K, D)"""
        return self.projections()[0]

    @property
    def w_o(self) -> Tensor:
        """(D, H, K)"""
        return self.projections()[1]

    @property
    def attn_in_gain(self) -> Tensor:
        """(P, D) input_layernorm as a diagonal map."""
        return self.attn_in_scale[:, None] * self.attn_in_norm

    @property
    def attn_out_gain(self) -> Tensor:
        """(P, D) post_attention_layernorm as a diagonal map."""
        return self.attn_out_scale[:, None] * self.attn_out_norm

    @property
    def mlp_in_gain(self) -> Tensor:
        """(P, D) pre_feedforward_layernorm as a diagonal map."""
        return self.mlp_in_scale[:, None] * self.mlp_in_norm

    @property
    def pattern(self) -> Tensor:
        """(H, P, P) attention after softmax; rows are queries. Computed anew: for one prompt's inspection."""
        return self.pattern_rows(torch.arange(self.queries.shape[1], device=self.queries.device))

    def head_pattern(self, head: int) -> Tensor:
        """(P, P) attention after softmax of one query head."""
        key_head = head // (len(self.queries) // len(self.keys))
        positions = torch.arange(self.queries.shape[1], device=self.queries.device)
        scores = scores_of(self.queries[[head]], self.keys[[key_head]], positions, 0, self.window)
        return scores.sub_(self.log_sums[[head], :, None]).exp_()[0]

    def transported(self, change: Tensor, first: int = 0) -> Tensor:
        """What each head brings to each position of changes of the residual stream, before W_O.

        Args:
            change: (B, P', D) at the positions from ``first`` on, before the layer; there is none before ``first``.

        Returns:
            (H, B, P', K)
        """
        positions = torch.arange(first, first + change.shape[1], device=change.device)
        values = torch.einsum("bpd,gkd->gpbk", change * self.attn_in_gain[positions], self.w_v)
        pattern = self.pattern_rows(positions, int(positions[-1]) + 1)[..., first:].unflatten(0, (len(values), -1))
        mixed = pattern @ values.flatten(2)[:, None]  # (G, H / G, P', B * K)
        return mixed.flatten(0, 1).unflatten(-1, values.shape[2:]).transpose(1, 2)

    def written(self, by_head: Tensor, first: int = 0) -> Tensor:
        """(B, P', D) what the layer's attention adds to the residual stream: :meth:`transported` (H, B, P', K) after
        W_O and the norm."""
        written = torch.einsum("hbpk,dhk->bpd", by_head, self.w_o)
        return written * self.attn_out_gain[first:first + written.shape[1]]

    def pattern_rows(self, positions: Tensor, n_keys: int | None = None) -> Tensor:
        """(H, n, m) attention of the queries at ``positions`` (n,) over the first ``n_keys`` keys, or all."""
        scores = scores_of(self.queries[:, positions], self.keys[:, :n_keys], positions, 0, self.window)
        return scores.sub_(self.log_sums[:, positions, None]).exp_()


@dataclass(frozen=True)
class FrozenPass:
    """One ordinary forward pass of a prompt with everything the replacement model freezes."""

    tokens: list[int]
    embeddings: Tensor
    """(P, D) output of the embedding module, already multiplied by sqrt(D)."""
    layers: list[FrozenLayer]
    mlp_in: Tensor
    """(L, P, D) output of pre_feedforward_layernorm: what features read."""
    mlp_out: Tensor
    """(L, P, D) output of post_feedforward_layernorm: what transcoders replace."""
    final_gain: Tensor
    """(D,) final norm as a diagonal map at the last position."""
    final_normed: Tensor
    """(D,) output of the final norm at the last position."""
    logits: Tensor
    """(V,) at the last position, float32."""
    gathered: bool = False
    """The weights are spread over devices, memory and disk: each layer's are brought when they are asked for."""


def attend(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Causal attention in tiles of queries.

    Args:
        queries: (H, P, K), scaled; keys, values: (G, P, K); all float32.
        window: positions a query sees, itself included; None for all before it.

    Returns:
        (H, P, K) outputs and (H, P) log-sum-exp of each query's scores.
    """
    heads, n_pos, head_dim = queries.shape
    groups = len(keys)
    out, log_sums = torch.empty_like(queries), queries.new_empty(heads, n_pos)
    tile = max(1, min(n_pos, QUERY_TILE // (heads * n_pos)))
    for start in range(0, n_pos, tile):
        stop = min(start + tile, n_pos)
        first = 0 if window is None else max(0, start - window + 1)
        positions = torch.arange(start, stop, device=queries.device)
        scores = scores_of(queries[:, start:stop], keys[:, first:stop], positions, first, window)
        log_sums[:, start:stop] = torch.logsumexp(scores, -1)
        pattern = scores.sub_(log_sums[:, start:stop, None]).exp_()
        out[:, start:stop] = (pattern.view(groups, -1, stop - first) @ values[:, first:stop]).view(heads, -1, head_dim)
    return out, log_sums


def scores_of(queries: Tensor, keys: Tensor, positions: Tensor, first: int, window: int | None) -> Tensor:
    """(H, n, m) scores of the queries (H, n, K) at ``positions`` (n,) with the keys (G, m, K) from position ``first``
    on; minus infinity where the query does not see the key."""
    heads, n, head_dim = queries.shape
    groups, m, _ = keys.shape
    scores = (queries.reshape(groups, -1, head_dim) @ keys.transpose(1, 2)).view(heads, n, m)
    distance = positions[:, None] - (first + torch.arange(m, device=keys.device))
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return scores.masked_fill_(hidden, -torch.inf)
