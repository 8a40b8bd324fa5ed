"""What sources write, carried forward through the frozen layers, and gradients of targets, carried back (METHOD 6).

Shapes: L layers, P positions of a batch, S sources, T targets, D d_model, H query heads, G key/value heads, K head_dim.
Both states are (P, S or T, D), position first. A layer is crossed in two steps, attention, then MLP: the affine skip
passes on what stands before it, and what is written at the layer joins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.attention.components import Components
from circuits.kernels.edges import add_effects
from circuits.kernels.products import add_product
from circuits.replacement import LocalReplacement, Writes
from circuits.sweep import Starts
from circuits.transposed import Scratch, TransposedLayer


@dataclass(frozen=True)
class Sources:
    """Some of a replacement model's source nodes, and all that they write."""

    layer: np.ndarray
    """(S,) from whose MLP output on each writes; -1 for embeddings, which are there before layer 0."""
    position: np.ndarray
    """(S,) the first at which each writes."""
    numbers: np.ndarray
    """(S,) in the replacement model."""
    writes: list[Writes]
    """Per layer; their ``node`` counts within these sources."""

    @classmethod
    def of(cls, local: LocalReplacement, numbers: np.ndarray) -> Sources:
        """The distinct sources ``numbers`` (S,)."""
        every = Components.of(local)
        first = np.where(every.position < 0, local.masked, every.position)
        return cls(every.layer[numbers], first[numbers], numbers, _chosen(local.writes, numbers, local.n_sources))

    def take(self, index: np.ndarray) -> Sources:
        """Those at ``index``, in this order."""
        return Sources(self.layer[index], self.position[index], self.numbers[index],
                       _chosen(self.writes, index, len(self.numbers)))

    def of_number(self, number: int) -> int | None:
        """Where a node of the replacement model stands here; None where it does not."""
        at = np.flatnonzero(self.numbers == number)
        return int(at[0]) if len(at) else None


@dataclass(frozen=True)
class BackAtLayer:
    """The gradients of the targets that a layer's attention reaches."""

    state: Tensor
    """(P, T', D) at the output of attention."""
    by_head: Tensor
    """(H, P, T', K) with respect to what each head brings to each position, before W_O; the scale (P,) of the norm
    after attention is left out, as :class:`TransposedLayer` has it in the pattern."""


@dataclass(frozen=True)
class Back:
    """Targets carried back, kept at every layer. They are sorted by layer, the highest first: a layer's attention
    reaches the first ones."""

    cone: int
    """Positions up to the last target's."""
    layers: dict[int, BackAtLayer]
    """Of the layers whose attention reaches any."""
    written: Tensor
    """(L, S, T) effect of what each source writes at each layer."""


@torch.no_grad()
def carry_back(local: LocalReplacement, layers: list[TransposedLayer], starts: Starts, sources: Sources) -> Back:
    """Gradients from where they enter down to layer 0.

    Args:
        starts: sorted by layer, the highest first.
        sources: whose writes the gradients meet.
    """
    cone = int(starts.position.max()) + 1
    enters = starts.layer.tolist()
    written = torch.zeros(local.n_layers, len(sources.numbers), len(enters), device=local.frozen.embeddings.device)
    scratch: dict[torch.device, Scratch] = {}
    found = {}
    state = starts.vector.new_empty(cone, 0, starts.vector.shape[1])
    state = _joined(state, starts, enters, local.n_layers)
    for index in reversed(range(min(local.n_layers, enters[0] + 1))):
        at = layers[index]
        state = state.to(at.device)
        _add_written(written[index, :, :state.shape[1]], state, local, sources, index)
        at.add_skip(state, scratch.setdefault(at.device, Scratch(at.dtype, at.device)))
        state = _joined(state, starts, enters, index)
        w_o, w_v = at.weights()
        by_head = _by_head(state, w_o)
        found[index] = BackAtLayer(state, by_head)
        state = state + torch.einsum("gptk,gkd->ptd", at.mix(by_head), w_v)
    return Back(cone, found, written)


@torch.no_grad()
def carry_forward(local: LocalReplacement, sources: Sources, first: int, stop: int, last_layer: int
                  ) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each layer up to ``last_layer`` that has sources below it: its number, what they are at its input,
    (P, S', D), and what each head brings of them to each position before W_O, (H, S', P, K). Positions ``first`` to
    ``stop``.

    Args:
        sources: sorted by layer; the first S' have entered below the layer. None may stand outside the positions.
    """
    state = local.frozen.embeddings.new_empty(stop - first, 0, local.frozen.embeddings.shape[1])
    state = _entered(state, local, sources, -1, first)
    here = slice(first, stop)
    for index, layer in enumerate(local.frozen.layers[:last_layer + 1]):
        state = state.to(layer.queries.device)
        if state.shape[1]:
            by_head = layer.transported(state.transpose(0, 1), first)
            yield index, state, by_head
            state = state + layer.written(by_head, first).transpose(0, 1)
            skip = local.skips[index]
            if skip is not None:
                state += (state * layer.mlp_in_gain[here, None]) @ skip.to(state.device)
        state = _entered(state, local, sources, index, first)


def _chosen(writes: list[Writes], index: np.ndarray, n_nodes: int) -> list[Writes]:
    """The writes of the nodes ``index`` (n,) of ``n_nodes``, which are numbered anew, in this order."""
    number = torch.full((n_nodes,), -1)
    number[torch.from_numpy(index)] = torch.arange(len(index))
    found = []
    for at in writes:
        node = number.to(at.node.device)[at.node]
        kept = node >= 0
        position = at.position[kept]
        ends = torch.bincount(position, minlength=len(at.ends)).cumsum(0).tolist()
        found.append(Writes(at.decoders, position, at.row[kept], at.value[kept], node[kept], ends))
    return found


def _joined(state: Tensor, starts: Starts, layer: list[int], index: int) -> Tensor:
    """``state`` (P, T', D) and the gradients that enter at layer ``index``."""
    n, count = state.shape[1], layer.count(index)
    if count == 0:
        return state
    new = state.new_zeros(len(state), count, state.shape[2])
    which = slice(n, n + count)
    new[starts.position[which].to(state.device), torch.arange(count, device=state.device)] = (
        starts.vector[which].to(state))
    return torch.cat([state, new], 1)


def _add_written(written: Tensor, state: Tensor, local: LocalReplacement, sources: Sources, index: int) -> None:
    """Add the effects (S, T') of what is written at a layer's MLP output, where the gradient is ``state``."""
    writes = sources.writes[index]
    n = writes.before(len(state))
    effects = torch.zeros(written.shape, device=state.device)
    add_effects(effects, writes.node[:n], state, writes.decoders, writes.position[:n], writes.row[:n],
                writes.value[:n])
    bias = sources.of_number(local.first_constant + index)
    if bias is not None:
        effects[bias] += (state[local.masked:] @ local.biases[index].to(state)).sum(0)
    written += effects.to(written.device)


def _by_head(state: Tensor, w_o: Tensor) -> Tensor:
    """(H, P, T', K) gradients ``state`` (P, T', D) as the heads see them, through W_O (H, D, K)."""
    n_heads, d_model, head_dim = w_o.shape
    rows = state.view(-1, d_model)
    by_head = rows.new_empty(n_heads, len(rows), head_dim)
    for head, weight in enumerate(w_o):
        add_product(by_head[head], rows, weight)
    return by_head.view(n_heads, *state.shape[:2], head_dim)


def _entered(state: Tensor, local: LocalReplacement, sources: Sources, index: int, first: int) -> Tensor:
    """``state`` (P, S', D) with what is written at the layer, or the embeddings (-1), and the sources that begin."""
    count = int(np.count_nonzero(sources.layer == index))
    state = torch.cat([state, state.new_zeros(len(state), count, state.shape[2])], 1)
    if index < 0:
        position = torch.from_numpy(sources.position[:count]).to(state.device)
        where = torch.from_numpy(sources.numbers[:count]) - local.first_embedding
        state[position - first, torch.arange(count, device=state.device)] = local.frozen.embeddings[where]
        return state
    writes = sources.writes[index]
    n = writes.before(first + len(state))
    vectors = writes.decoders[writes.row[:n]] * writes.value[:n, None]
    state[writes.position[:n] - first, writes.node[:n]] += vectors
    bias = sources.of_number(local.first_constant + index)
    if bias is not None:
        state[local.masked - first:, bias] += local.biases[index].to(state)
    return state
