"""Rows of the graph by explicit backward steps through the frozen linear map (METHOD 4); no autograd.

Shapes: P positions of a batch's causal cone, B targets of a batch, D d_model, S source nodes. The state is (P, B, D):
the gradient of every target with respect to the residual stream, position first, so that every product is one large
matrix product. A batch's targets are of one layer, sorted by position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.errors import CircuitsError
from circuits.kernels.compact import compact
from circuits.kernels.edges import add_effects
from circuits.planning import Plan, out_of_memory
from circuits.replacement import LocalReplacement
from circuits.row_store import RowBlock
from circuits.transposed import Factors, Scratch, TransposedLayer

CARRIED = 1 << 25
"""Most numbers for embeddings carried forward through the first layer; beyond it gradients are carried back."""
ROWS_PER_WRITE, ROWS_PER_SCORE = 0.05, 0.001
"""Rows that could be multiplied in the time of gathering one write's decoder vector, and of one score of all heads."""
CUT_AT_ONCE = 4096
"""Targets that are cut into batches together."""


@dataclass(frozen=True)
class Starts:
    """Targets: where each one's gradient enters the residual stream."""

    layer: Tensor
    """(T,) the layer before whose MLP it enters; n_layers for targets on the final residual stream."""
    position: Tensor
    """(T,)"""
    vector: Tensor
    """(T, D) gradient there, the norm's gain included."""
    before_attention: bool = False
    """All enter before their layer's attention instead, where the layer reads queries, keys and values."""


class Sweep:
    """Computes rows for one local replacement model.

    Args:
        dtype: of states and products; sums over sources are kept in float32.
        plan: how many targets are computed at once, and what of a row is kept.
    """

    def __init__(self, replacement: LocalReplacement, plan: Plan, dtype: torch.dtype = torch.float32):
        self.model, self.plan, self.dtype = replacement, plan, dtype
        frozen = replacement.frozen
        self.layers = [TransposedLayer(layer, skip, dtype, plan.resident, plan.patterns)
                       for layer, skip in zip(frozen.layers, replacement.skips, strict=True)]
        self.biases = [bias.to(layer.device, dtype)
                       for bias, layer in zip(replacement.biases, self.layers, strict=True)]
        self.carried = _carry(frozen.embeddings, self.layers[0]) if (
            frozen.embeddings.numel() * replacement.n_positions <= CARRIED) else None
        self._rows_at_once = plan.rows_at_once
        writes = sum(len(w.node) for w in replacement.writes) / (replacement.n_layers * replacement.n_positions)
        self._per_position = ROWS_PER_WRITE * writes + (
            0 if plan.patterns else ROWS_PER_SCORE * min(replacement.n_positions, 1024) / 2)
        self._scratch: dict[torch.device, Scratch] = {}

    @torch.no_grad()
    def rows(self, starts: Starts) -> Iterator[RowBlock]:
        """Rows of all ``starts``, in batches, by layer and position: starts in node order give rows in node order.

        Memory that runs out costs the batch, which is tried again at half the size.

        Raises:
            CircuitsError: there is no memory for a single target.
        """
        layer, position = starts.layer.cpu().numpy(), starts.position.cpu().numpy()
        order = np.lexsort((position, layer))
        for same in np.split(order, np.flatnonzero(np.diff(layer[order])) + 1):
            waiting = self._batches(same, position)
            while waiting:
                chosen = waiting.pop(0)
                try:
                    edges = self._sweep(int(layer[chosen[0]]), torch.from_numpy(position[chosen]),
                                        starts.vector[torch.from_numpy(chosen).to(starts.vector.device)],
                                        starts.before_attention)
                    block = RowBlock.of(chosen, compact(edges, self.plan.row_mass, self.model.first_constant))
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    self._smaller_batches(len(chosen), error)
                    waiting = self._batches(np.concatenate([chosen, *waiting]), position)
                    continue
                yield block

    def _batches(self, targets: np.ndarray, position: np.ndarray) -> list[np.ndarray]:
        """Targets of one layer, sorted by position, cut where the least work results.

        A batch's products have a row for every target and every position up to its last, so fewer positions apart is
        less work, but every batch costs as much as some rows more: for its calls, for patterns computed anew at every
        layer, and for decoder vectors gathered.
        """
        batches: list[np.ndarray] = []
        for first in range(0, len(targets), CUT_AT_ONCE):
            part = targets[first:first + CUT_AT_ONCE]
            cone = position[part] + 1
            work, cut = np.zeros(len(part) + 1), np.zeros(len(part) + 1, np.int64)
            for end in range(1, len(part) + 1):
                longest = max(1, min(self.plan.targets_at_once, self._rows_at_once // int(cone[end - 1])))
                start = np.arange(max(0, end - longest), end)
                costs = work[start] + (end - start + self._per_position) * cone[end - 1] + self.plan.overhead
                best = int(np.argmin(costs))
                work[end], cut[end] = costs[best], start[best]
            end, found = len(part), []
            while end:
                found.append(part[cut[end]:end])
                end = int(cut[end])
            batches += reversed(found)
        return batches

    def _smaller_batches(self, size: int, error: Exception) -> None:
        self._scratch.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise CircuitsError(
                f"there is no memory to compute a single row of this prompt of {self.model.n_positions} tokens "
                f"({error}): use a shorter prompt, a smaller model, --dtype bfloat16 or a device with more memory"
                ) from error
        self._rows_at_once = max(1, min(self._rows_at_once, size * self.model.n_positions) // 2)

    def _sweep(self, layer: int, position: Tensor, vector: Tensor, before_attention: bool) -> Tensor:
        """(S, B) float32 edges from every source to each target of one layer; ``position`` (B,) ascending."""
        cone, batch = int(position[-1]) + 1, len(position)
        batch_state = _State(Factors.start(vector.to(self.dtype), position.to(vector.device)), cone, self)
        main = self.model.frozen.embeddings.device
        out = {device: torch.zeros(self.model.n_sources, batch, device=device)
               for device in {main, *(at.device for at in self.layers[:layer])}}
        if layer < self.model.n_layers and not before_attention:
            batch_state.cross(self.layers[layer])
        carried = self.carried is not None and layer > 0
        for below in reversed(range(layer)):
            at = self.layers[below]
            self._contract(below, batch_state.dense(at.device), out[at.device])
            if below or not carried:
                batch_state.cross(at, with_skip=True)
        edges = out.pop(main)
        for part in out.values():
            edges += part.to(main)
        state, first = batch_state.dense(main), self.model.first_embedding
        if carried:
            assert self.carried is not None
            edges[first:first + cone] = torch.bmm(
                self.carried[:cone, :cone], state.transpose(1, 2)).sum(0, dtype=torch.float32)
        else:
            embeddings = self.model.frozen.embeddings[:cone, None].to(self.dtype)
            edges[first:first + cone] = (embeddings @ state.transpose(1, 2))[:, 0].float()
        return edges

    def _contract(self, layer: int, state: Tensor, out: Tensor) -> None:
        """Add the effects of everything written at this layer's MLP output to ``out`` (S, B)."""
        writes = self.model.writes[layer]
        n = writes.before(len(state))
        add_effects(out, writes.node[:n], state, writes.decoders, writes.position[:n], writes.row[:n],
                    writes.value[:n])
        at_all = (state[self.model.masked:] @ self.biases[layer]).sum(0, dtype=torch.float32)
        out[self.model.first_constant + layer] += at_all

    def scratch(self, device: torch.device) -> Scratch:
        """This device's buffers."""
        return self._scratch.setdefault(device, Scratch(self.dtype, device))


class _State:
    """The gradients of one batch on their way down: factors while that is cheaper, then (P, B, D)."""

    def __init__(self, factors: Factors, cone: int, sweep: Sweep):
        self.factors: Factors | None = factors
        self.shape = cone, factors.vectors.shape[1], factors.vectors.shape[2]
        self.sweep = sweep
        self._dense: Tensor | None = None

    def dense(self, device: torch.device) -> Tensor:
        """(P, B, D) on ``device``."""
        if self._dense is None:
            assert self.factors is not None
            self.factors.to(device)
            self._dense = self.factors.dense(self.sweep.scratch(device).take("state", *self.shape))
        elif self._dense.device != device:
            self._dense = self.sweep.scratch(device).take("state", *self.shape).copy_(self._dense)
        return self._dense

    def cross(self, layer: TransposedLayer, with_skip: bool = False) -> None:
        """Add what passes through the layer's attention, and before that through its skip."""
        scratch = self.sweep.scratch(layer.device)
        if self.factors is None:
            state = self.dense(layer.device)
            if with_skip:
                layer.add_skip(state, scratch)
            layer.cross(state, scratch)
            return
        self.factors.to(layer.device)
        stay, leave, full = self.factors.flops(layer, with_skip)
        if stay < min(leave, full):
            if with_skip:
                self.factors.add_skip(layer)
            self.factors.cross(layer)
            self._dense = None
            return
        state = self.dense(layer.device)
        if with_skip:
            layer.add_skip(state, scratch)
        if leave < full:
            if with_skip:
                self.factors.add_skip(layer)
            self.factors.cross_into(layer, state, scratch)
        else:
            layer.cross(state, scratch)
        self.factors = None


def _carry(embeddings: Tensor, layer: TransposedLayer) -> Tensor:
    """(P, P, D) what each embedding (second) is at every position (first) after the first layer's attention and, as
    far as a gradient at its output sees it, its skip: the last crossing of every gradient, made once."""
    frozen, x = layer.frozen, embeddings.to(layer.device)
    w_v, w_o = frozen.projections()
    per_group = layer.n_heads // layer.n_groups
    values = torch.einsum("gkd,pd->gpk", w_v, x * frozen.attn_in_gain).repeat_interleave(per_group, 0)
    written = torch.einsum("dhk,hpk->hpd", w_o, values)
    carried = torch.einsum("hqp,hpd->qpd", frozen.pattern, written) * frozen.attn_out_gain[:, None]
    position = torch.arange(len(x), device=x.device)
    carried[position, position] += x
    carried = carried.to(embeddings.device, layer.dtype)
    if layer.skip is not None:
        carried += (carried @ layer.skip.T.to(carried.device)) * layer.skip_scale.to(carried.device)[:, None, None]
    return carried
