"""Head loadings: how much of an edge each attention head carries, at every layer (METHOD 6).

Shapes: L layers, H query heads, S sources, T targets, P positions, D d_model, K head_dim.

Between an edge's source and its target every attention layer moves some of what the source wrote: by each of its heads,
or by none, past them in the residual stream. Heads and bypass add up to the edge at every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from circuits.attention.carried import Back, BackAtLayer, Sources, carry_back, carry_forward
from circuits.errors import InputError
from circuits.replacement import LocalReplacement
from circuits.sweep import Starts
from circuits.transposed import TransposedLayer

HELD = 1 << 27
"""Most numbers of gradients that are held at once, over all layers (512 MiB), but for one target's: for each position
and layer D + H * K of them. Their sources are carried forward once for them all."""
CARRIED = 1 << 23
"""Most numbers of sources that are carried forward at once, but for one source's."""
MOST = 256
"""Most sources, and targets, whose loadings are computed at once."""
ENOUGH = 32
"""Targets, or sources, from which on others of another position are left to the next batch: products take every
position that one of a batch has."""


@dataclass(frozen=True)
class Block:
    """Loadings of all pairs of some targets and some sources."""

    targets: np.ndarray
    """(T,) among the targets that were asked for; below, among the sources."""
    sources: np.ndarray
    loadings: Tensor
    """(L, H, T, S)"""
    bypass: Tensor
    """(L, T, S)"""


@torch.no_grad()
def head_loadings(local: LocalReplacement, sources: np.ndarray, starts: Starts) -> tuple[Tensor, Tensor]:
    """Loadings of all pairs of ``sources`` and targets: of an edge s -> t, at layer m, the part that head h moves,
    ``sum_q <gradient of t at q, out_gain W_O[h] sum_p pattern[h, q, p] W_V in_gain (s at p)>``, and the bypass, the
    part that layer m's attention does not touch: what is on its way in the residual stream, and what the source writes
    only at layer m or above.

    Above the target's layer everything has arrived, and up to the source's own layer nothing has been written: there
    loadings are 0 and the bypass is the edge.

    Args:
        sources: (S,) distinct source node numbers.
        starts: of the T targets; see :func:`circuits.graph_nodes.starts_of`.

    Returns:
        (L, H, T, S) loadings and (L, T, S) bypass; at every layer the loadings and the bypass sum to the edge.

    Raises:
        InputError: numbers that are no sources, or twice the same; or targets that enter before attention.
    """
    n_heads = len(local.frozen.layers[0].queries)
    shape = len(starts.layer), len(sources)
    device = local.frozen.embeddings.device
    loadings = torch.zeros(local.n_layers, n_heads, *shape, device=device)
    bypass = torch.zeros(local.n_layers, *shape, device=device)
    for block in loading_blocks(local, sources, starts):
        at = torch.from_numpy(block.targets)[:, None], torch.from_numpy(block.sources)
        loadings[:, :, at[0], at[1]] = block.loadings
        bypass[:, at[0], at[1]] = block.bypass
    return loadings, bypass


@torch.no_grad()
def loading_blocks(local: LocalReplacement, sources: np.ndarray, starts: Starts,
                   wanted: Callable[[np.ndarray], np.ndarray] | None = None) -> Iterator[Block]:
    """:func:`head_loadings` in blocks of bounded memory (HELD, CARRIED, MOST). Pairs in no block have no effect.

    Args:
        wanted: which of the sources (s,) some targets (t,) are to be paired with; by default all.
    """
    sources = np.ascontiguousarray(sources, dtype=np.int64)
    _check(local, sources, starts)
    every = Sources.of(local, sources)
    layers = [TransposedLayer(layer, skip, torch.float32, resident=False)
              for layer, skip in zip(local.frozen.layers, local.skips, strict=True)]
    for group in _target_groups(starts, layers[0], local.n_layers):
        targets = np.concatenate(group)
        stop = int(starts.position[torch.from_numpy(targets)].max()) + 1
        index = np.arange(len(sources)) if wanted is None else np.unique(wanted(targets))
        index = index[every.position[index] < stop]
        if len(index) == 0:
            continue
        chosen = every.take(index)
        backs = [carry_back(local, layers, _taken(starts, batch), chosen) for batch in group]
        for part in _source_batches(chosen, layers[0], stop):
            yield from _blocks(local, starts, list(zip(group, backs, strict=True)), chosen, part, index)


def _check(local: LocalReplacement, sources: np.ndarray, starts: Starts) -> None:
    if len(sources) and (sources.min() < 0 or sources.max() >= local.n_sources):
        raise InputError(f"sources has numbers from {sources.min()} to {sources.max()}: expected source nodes, 0 to "
                         f"{local.n_sources - 1}")
    if len(np.unique(sources)) < len(sources):
        raise InputError("sources has the same node twice: give each once")
    if starts.before_attention:
        raise InputError("starts enter before their layer's attention, which would not count: give targets that are "
                         "features or logits")


def _target_groups(starts: Starts, layer: TransposedLayer, n_layers: int) -> list[list[np.ndarray]]:
    """Batches of targets, each sorted by layer, the highest first, in groups that fit into HELD."""
    layers, positions = starts.layer.cpu().numpy(), starts.position.cpu().numpy()
    order = np.lexsort((layers, positions))[::-1]
    per_layer = layer.d_model + layer.n_heads * layer.head_dim
    groups: list[list[np.ndarray]] = []
    held = HELD
    for first, end in _runs(positions[order] + 1, HELD // (n_layers * per_layer)):
        batch = order[first:end]
        size = int(positions[batch[0]] + 1) * int(np.minimum(layers[batch] + 1, n_layers).sum()) * per_layer
        if held + size > HELD:
            groups.append([])
            held = 0
        held += size
        groups[-1].append(batch[np.argsort(-layers[batch], kind="stable")])
    return groups


def _source_batches(sources: Sources, layer: TransposedLayer, stop: int) -> list[np.ndarray]:
    """Batches of sources, each sorted by layer."""
    order = np.lexsort((sources.layer, sources.position))
    runs = _runs(stop - sources.position[order], CARRIED // (layer.d_model + layer.n_heads * layer.head_dim))
    return [batch[np.argsort(sources.layer[batch], kind="stable")] for batch in (order[i:j] for i, j in runs)]


def _runs(extent: np.ndarray, room: int) -> list[tuple[int, int]]:
    """Cut items of falling ``extent`` (n,) positions into runs of at most ``room`` positions, if one item has not more,
    and MOST items; a run of ENOUGH ends where the extent falls."""
    cuts = [0]
    for i in range(1, len(extent)):
        length, first = i - cuts[-1], int(extent[cuts[-1]])
        if length == MOST or (length + 1) * first > room or (length >= ENOUGH and extent[i] < extent[i - 1]):
            cuts.append(i)
    return list(pairwise([*cuts, len(extent)])) if len(extent) else []


def _taken(starts: Starts, index: np.ndarray) -> Starts:
    at = torch.from_numpy(index).to(starts.vector.device)
    return Starts(starts.layer[at], starts.position[at], starts.vector[at])


def _blocks(local: LocalReplacement, starts: Starts, backs: list[tuple[np.ndarray, Back]], sources: Sources,
            part: np.ndarray, index: np.ndarray) -> Iterator[Block]:
    """Of the batches of targets that were carried back, with the sources ``part`` of those at ``index``."""
    first = int(sources.position[part].min())
    backs = [(targets, back) for targets, back in backs if back.cone > first]
    last_layer = max((max(back.layers) for _, back in backs), default=-1)
    stop = max((back.cone for _, back in backs), default=first)
    n_heads, device = len(local.frozen.layers[0].queries), local.frozen.embeddings.device
    found = [Block(targets, index[part], torch.zeros(local.n_layers, n_heads, len(targets), len(part), device=device),
                   _written_later(back, torch.from_numpy(part))) for targets, back in backs]
    for layer, state, by_head in carry_forward(local, sources.take(part), first, stop, last_layer):
        gain = local.frozen.layers[layer].attn_out_scale
        for block, (_, back) in zip(found, backs, strict=True):
            if layer in back.layers:
                _contract(block, layer, back.layers[layer], gain, state, by_head, first)
    for block in found:
        edge = block.loadings[0].sum(0) + block.bypass[0]
        enters = starts.layer[torch.from_numpy(block.targets)].to(device)
        arrived = torch.arange(local.n_layers, device=device)[:, None] > enters
        block.bypass[arrived] = edge.expand_as(block.bypass)[arrived]
        yield block


def _written_later(back: Back, part: Tensor) -> Tensor:
    """(L, T, S) effect of what the sources write at each layer or above."""
    return back.written[:, part].flip(0).cumsum(0).flip(0).transpose(1, 2).contiguous()


def _contract(block: Block, layer: int, gradient: BackAtLayer, gain: Tensor, state: Tensor, by_head: Tensor,
              first: int) -> None:
    """Set a layer's loadings, and add to its bypass what is on its way in the residual stream.

    Args:
        gain: (P,) scale of the norm after attention.
        state, by_head: of the sources, from position ``first`` on; see :func:`carry_forward`.
    """
    cone, n_targets, _ = gradient.state.shape
    pair = slice(n_targets), slice(state.shape[1])
    for head, moved in enumerate(by_head):
        scaled = gradient.by_head[head, first:] * gain[first:cone, None, None]
        carried = _product(scaled, moved.permute(1, 2, 0)[:cone - first])
        block.loadings[layer, head][pair] = carried.to(block.loadings.device)
    passing = _product(gradient.state[first:], state.transpose(1, 2)[:cone - first])
    block.bypass[layer][pair] += passing.to(block.bypass.device)


def _product(gradients: Tensor, changes: Tensor) -> Tensor:
    """(T, S) sum over positions of products of (P, T, N) and (P, N, S)."""
    return torch.addbmm(gradients.new_zeros(gradients.shape[1], changes.shape[2]), gradients, changes)
