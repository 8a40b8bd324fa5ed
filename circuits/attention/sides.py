"""What every component of the residual stream adds to a head's query, or to a key, at one position (METHOD 6).

    query = score_scale * R (1 + w_q) * s_q W_Q x,    key = R (1 + w_k) * s_k W_K x

with x the layer's normed input and all norms' scales frozen. That is linear in the residual stream before the layer,
which is the sum of the source nodes, each carried there by the frozen maps. The transposed map carries back instead:
head_dim rows of a sweep, one for each number of the projected vector, hold what every source adds to it.

Shapes: D d_model, K head_dim, S source nodes, C components of a side (the sources that reach it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.attention.components import Components
from circuits.gemma3 import Gemma3
from circuits.planning import Size, plan
from circuits.replacement import LocalReplacement
from circuits.sweep import Starts, Sweep

ADDED_AT_ONCE = 1 << 16
"""Components that are copied to float64 at once to be summed."""
KEPT = 1 << 26
"""Most numbers of sides that a reader keeps for the next question: 256 MB."""


@dataclass(frozen=True, eq=False)
class Side:
    """The components of the residual stream that one side of a score reads, and what each adds to the head's vector.
    On the CPU."""

    source: np.ndarray
    """(C,) int64 source numbers, ascending for one position."""
    position: np.ndarray
    """(C,) int64 where the component is read: the query, or a key."""
    vectors: Tensor
    """(C, K) float32, after q_norm (k_norm), rotary embedding and, for queries, the score scale. Negated at a key that
    another is compared with."""

    def total(self) -> Tensor:
        """(K,) float64 sum of all components: the query, the key, or the difference of two keys."""
        return self.vectors.sum(0, dtype=torch.float64)

    def grouped(self, group: np.ndarray, n_groups: int) -> Tensor:
        """(n_groups, K) float64 sums of the components of each ``group`` (C,)."""
        sums = torch.zeros(n_groups, self.vectors.shape[1], dtype=torch.float64)
        groups = torch.from_numpy(group.astype(np.int64)).split(ADDED_AT_ONCE)
        for where, part in zip(groups, self.vectors.split(ADDED_AT_ONCE), strict=True):
            sums.index_add_(0, where, part.double())
        return sums

    def minus(self, other: Side) -> Side:
        """The components of both, those of ``other`` negated."""
        return Side(np.concatenate([self.source, other.source]), np.concatenate([self.position, other.position]),
                    torch.cat([self.vectors, -other.vectors]))

    def merged(self) -> Side:
        """One component for each source, with position -1: its vectors at all positions together."""
        source, group = np.unique(self.source, return_inverse=True)
        return Side(source, np.full(len(source), -1), self.grouped(group, len(source)).float())


class SideReader:
    """Reads sides of one prompt, and keeps them while there is room: heads share keys, and keys share a query.

    A side takes 4 K bytes for each component while it is made and kept: about 1 GB per million at head_dim 256.
    """

    def __init__(self, model: Gemma3, local: LocalReplacement):
        self.model, self.local = model, local
        self.components = Components.of(local)
        self._sweep: Sweep | None = None
        self._kept: dict[tuple[str, int, int, int], Side] = {}

    def query(self, layer: int, head: int, position: int) -> Side:
        """Of the query of ``head``."""
        return self._known(("query", layer, head, position), self._read_query)

    def key(self, layer: int, group: int, position: int) -> Side:
        """Of the key that the query heads of ``group`` share."""
        return self._known(("key", layer, group, position), self._read_key)

    def _known(self, which: tuple[str, int, int, int], read: Callable[[int, int, int], Side]) -> Side:
        side = self._kept.pop(which, None) or read(*which[1:])
        self._kept[which] = side  # the latest stands last
        while len(self._kept) > 1 and sum(kept.vectors.numel() for kept in self._kept.values()) > KEPT:
            del self._kept[next(iter(self._kept))]
        return side

    def _read_query(self, layer: int, head: int, position: int) -> Side:
        block = self.model.block(layer)
        return self._read(layer, position, block.w_q[head], block.q_norm * block.score_scale)

    def _read_key(self, layer: int, group: int, position: int) -> Side:
        block = self.model.block(layer)
        return self._read(layer, position, block.w_k[group], block.k_norm)

    def _read(self, layer: int, position: int, projection: Tensor, gain: Tensor) -> Side:
        """Components after ``projection`` (K, D), its norm with ``gain`` (K,), and rotary embedding."""
        source, vectors = self._projected(layer, position, projection)
        block = self.model.block(layer)
        scale = block.scale(vectors.sum(0, dtype=torch.float64)).float()  # of the actual vector: their sum
        where = torch.full((len(vectors),), position, device=gain.device)
        rotated = block.rotate((vectors * scale).to(gain.device)[:, None] * gain, where)[:, 0].cpu()
        return Side(source, np.full(len(source), position), rotated)

    def _projected(self, layer: int, position: int, projection: Tensor) -> tuple[np.ndarray, Tensor]:
        """(C,) sources that reach ``position`` before ``layer``, and (C, K) what each adds to the product of
        ``projection`` (K, D) with the normed input there."""
        frozen = self.local.frozen.layers[layer]
        gradients = projection * (frozen.attn_in_scale[position] * frozen.attn_in_norm)
        at = torch.full((len(gradients),), position)
        source = self.components.before(layer, position)
        rows = np.zeros((len(gradients), len(source)), np.float32)
        for part in self._full_rows().rows(Starts(torch.full_like(at, layer), at, gradients, before_attention=True)):
            for i, row in enumerate(part.targets):
                entries = slice(part.indptr[i], part.indptr[i + 1])
                rows[row, np.searchsorted(source, part.indices[entries])] = part.weights[entries]
        reaching = rows.any(0)
        return source[reaching], torch.from_numpy(np.ascontiguousarray(rows[:, reaching].T))

    def _full_rows(self) -> Sweep:
        """A sweep that keeps every entry of its rows."""
        if self._sweep is None:
            local = self.local
            heads, _, head_dim = local.frozen.layers[0].queries.shape
            size = Size(local.n_positions, local.n_sources, head_dim, local.n_layers, local.biases.shape[1], heads,
                        len(local.frozen.layers[0].keys), head_dim, any(skip is not None for skip in local.skips))
            self._sweep = Sweep(local, plan(size, local.biases.device, row_mass=1.0, gathered=local.frozen.gathered))
        return self._sweep
