"""Attention of interventions that are padded to one length, in tiles of queries.

Shapes: b interventions, P positions, Q positions from the first that changes on, H query heads, G key/value heads,
K head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from circuits.frozen import FrozenLayer

SCORES = 1 << 24
"""Computed at once, over all heads and interventions; one query of one intervention at least."""


def queries_at_once(n_heads: int, n_keys: int) -> int:
    """How many queries' scores, over all heads and keys, are computed at once."""
    return max(1, SCORES // (n_heads * n_keys))


def frozen_patterns(frozen: FrozenLayer, low: int) -> Iterator[tuple[slice, Tensor]]:
    """The pattern between positions from ``low`` on, in tiles of queries (H, q, m) over the keys they may see."""
    n_heads, n_pos, _ = frozen.queries.shape
    tile = queries_at_once(n_heads, n_pos)
    for start in range(low, n_pos, tile):
        positions = torch.arange(start, min(start + tile, n_pos), device=frozen.queries.device)
        stop = int(positions[-1]) + 1
        yield slice(start - low, stop - low), frozen.pattern_rows(positions, stop)[..., low:]


def attend_padded(queries: Tensor, keys: Tensor, values: Tensor, low: int, window: int | None) -> Tensor:
    """(b, Q, H, K) attention of padded queries (b, Q, H, K) from position ``low`` on, over keys and values
    (b, P, G, K)."""
    b, n_queries, n_heads, head_dim = queries.shape
    groups = keys.shape[2]
    queries = queries.transpose(1, 2).unflatten(1, (groups, -1))  # (b, G, H / G, Q, K)
    keys, values = keys.permute(0, 2, 3, 1), values.transpose(1, 2)  # (b, G, K, P), (b, G, P, K)
    out = queries.new_empty(b, groups, n_heads // groups, n_queries, head_dim)
    tile = queries_at_once(b * n_heads, keys.shape[3])
    for start in range(0, n_queries, tile):
        stop = min(start + tile, n_queries)
        at = low + torch.arange(start, stop, device=keys.device)
        first = 0 if window is None else max(0, low + start - window + 1)
        seen = slice(first, low + stop)
        scores = (queries[..., start:stop, :].flatten(2, 3) @ keys[..., seen]).unflatten(2, (-1, stop - start))
        distance = at[:, None] - torch.arange(first, low + stop, device=keys.device)
        scores.masked_fill_((distance < 0) | (distance >= (window or n_queries + low)), -torch.inf)
        mixed = scores.softmax(-1).flatten(2, 3) @ values[:, :, seen]
        out[..., start:stop, :] = mixed.unflatten(2, (-1, stop - start))
    return out.flatten(1, 2).transpose(1, 2)
