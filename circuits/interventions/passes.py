"""A forward pass of many interventions at once: only the layers and positions that each one can change (METHOD 7).

The state is the change of the residual stream against the unchanged prompt, one row for every position of every
intervention that can differ. Layers go up once: an intervention joins at its first edit's layer. Where patterns, norms
and features are frozen everything is linear in the change; else the unchanged prompt is carried along and whatever is
not linear is computed for both.

Shapes: B interventions, R rows, P positions, D d_model, H query heads, G key/value heads, K head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear

from circuits.block import Block
from circuits.frozen import FrozenLayer
from circuits.gemma3 import Gemma3
from circuits.interventions.compiled import Compiled
from circuits.interventions.modes import Mode
from circuits.interventions.padded import attend_padded, frozen_patterns, queries_at_once
from circuits.interventions.reading import changed_activations
from circuits.interventions.rows import Rows
from circuits.interventions.unchanged import Unchanged
from circuits.replacement import LocalReplacement
from circuits.transcoder import Transcoders


class Observer:
    """Sees each layer on the way up; the base looks away."""

    first = 0
    """Of the interventions of this pass, in the numbers of the caller: rows count from it."""

    def mlp_input(self, layer: int, rows: Rows, before: Tensor, change: Tensor) -> None:
        """What the MLP and the features read.

        Args:
            before: (P, D) on the unchanged prompt.
            change: (r, D) of the first r of ``rows``; the others have none.
        """

    def residual(self, layer: int, rows: Rows, change: Tensor) -> None:
        """After the layer: (R, D) changes of the residual stream, zero for interventions that come later."""

    def keys_values(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Where patterns are free: (B, G, P, K) of each intervention's whole prompt, in the caller's order."""


class Pass:
    """One way up through the layers.

    Args:
        observers: called at every layer.
    """

    def __init__(self, model: Gemma3, transcoders: Transcoders, local: LocalReplacement, edits: Compiled, mode: Mode,
                 observers: Sequence[Observer] = ()):
        self.model, self.transcoders, self.local, self.edits, self.mode = model, transcoders, local, edits, mode
        self.observers = observers
        self.rows = Rows.of(edits.first_layer, edits.first_position, local.n_positions)
        self._pending: dict[int, Tensor] = {}

    @torch.no_grad()
    def run(self) -> tuple[Tensor, Tensor]:
        """(D,) output of the final norm at the last position, unchanged, and (B, D) its change."""
        local, rows, main = self.local, self.rows, self.local.frozen.embeddings.device
        change = torch.zeros(len(rows.item), local.biases.shape[1], device=main)
        self._add(-1, change)
        x = local.frozen.embeddings
        for layer in range(local.n_layers):
            frozen = local.frozen.layers[layer]
            change, x = change.to(frozen.queries.device), x.to(frozen.queries.device)
            block = self.model.block(layer) if self.mode.needs_model else None
            base = None if block is None else Unchanged.of(block, x)
            items = rows.entered(layer)
            n = rows.start[items]
            change[:n] += self._attention(layer, frozen, block, base, change[:n], items)
            self._mlp(layer, frozen, block, base, change, n)
            for observer in self.observers:
                observer.residual(layer, rows, change)
            x = x if base is None else base.out
        return self._final(change.to(main), x.to(main))

    def _final(self, change: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        last = torch.tensor([end - 1 for end in self.rows.start[1:]], device=change.device)
        at_end = change.new_zeros(len(last), change.shape[1])
        length = torch.tensor(self.rows.start[1:]) > torch.tensor(self.rows.start[:-1])
        at_end[torch.tensor(self.rows.order)[length]] = change[last[length]]
        if self.mode.norms_frozen:
            return self.local.frozen.final_normed, at_end * self.local.frozen.final_gain
        before = self.model.final_norm(x[-1])
        return before, self.model.final_norm(x[-1] + at_end) - before

    def _attention(self, layer: int, frozen: FrozenLayer, block: Block | None, base: Unchanged | None,
                   change: Tensor, items: int) -> Tensor:
        """(r, D) what the layer's attention adds to the changes (r, D) of the first ``items`` interventions."""
        rows, mode = self.rows, self.mode
        at = rows.position[:len(change)].to(change.device)
        if block is None or base is None:
            return self._mix_frozen(frozen, change * frozen.attn_in_gain[at], items) * frozen.attn_out_gain[at]
        normed = (base.attn_in[at] + change * frozen.attn_in_gain[at] if mode.norms_frozen
                  else block.norm(base.x[at] + change, block.attn_in_norm))
        if mode.patterns_frozen:
            raw = self._mix_frozen(frozen, normed - base.attn_in[at], items)
        else:
            raw = block.attention_output(self._mix_free(layer, block, base, normed, items)) - base.attn_raw[at]
        if mode.norms_frozen:
            return raw * frozen.attn_out_gain[at]
        return (block.norm(base.attn_raw[at] + raw, block.attn_out_norm)
                - block.norm(base.attn_raw, block.attn_out_norm)[at])

    def _mix_frozen(self, frozen: FrozenLayer, normed: Tensor, items: int) -> Tensor:
        """(r, D) the heads' output for changes (r, D) of what attention reads, patterns as they were."""
        w_v, w_o = frozen.projections()
        values = Block.project(w_v, normed)
        parts = [values.new_empty(0, len(frozen.queries), values.shape[2])]
        for group, low in self.rows.groups(items, queries_at_once(len(frozen.queries), self.local.n_positions)):
            padded = self.rows.padded(group, low, values)  # (b, Q, G, K)
            mixed = padded.new_empty(*padded.shape[:2], len(frozen.queries), padded.shape[3])
            for span, pattern in frozen_patterns(frozen, low):
                by_group = pattern.unflatten(0, (padded.shape[2], -1))  # (G, H / G, q, Q)
                mixed[:, span] = torch.einsum("ghqp,bpgk->bqghk", by_group, padded[:, :pattern.shape[2]]).flatten(2, 3)
            parts.append(self.rows.unpadded(group, low, mixed))
        return linear(torch.cat(parts).flatten(1), w_o.flatten(1))

    def _mix_free(self, layer: int, block: Block, base: Unchanged, normed: Tensor, items: int) -> Tensor:
        """(r, H, K) what the heads bring to the rows, from normed inputs (r, D)."""
        at = self.rows.position[:len(normed)].to(normed.device)
        queries, keys, values = block.queries(normed, at), block.keys(normed, at), block.values(normed)
        parts = [queries.new_empty(0, *queries.shape[1:])]
        for group, low in self.rows.groups(items, queries_at_once(queries.shape[1], self.local.n_positions)):
            mixed = attend_padded(self.rows.padded(group, low, queries), self._whole(group, base.keys, keys),
                                  self._whole(group, base.values, values), low, block.window)
            parts.append(self.rows.unpadded(group, low, mixed))
        self._report_cache(layer, items, base, keys, values)
        return torch.cat(parts)

    def _whole(self, group: slice, before: Tensor, rows: Tensor) -> Tensor:
        """(b, P, G, K): the unchanged keys or values (P, G, K) with the rows (r, G, K) of a group in place."""
        out = before.repeat(group.stop - group.start, 1, 1, 1)
        for i in range(group.start, group.stop):
            out[i - group.start, self.rows.first[i]:] = rows[self.rows.start[i]:self.rows.start[i + 1]]
        return out

    def _report_cache(self, layer: int, items: int, base: Unchanged, keys: Tensor, values: Tensor) -> None:
        looking = [o for o in self.observers if type(o).keys_values is not Observer.keys_values]
        if not looking:
            return
        order = torch.tensor(self.rows.order).argsort()
        both = [torch.cat([self._whole(slice(0, items), before, new), before.repeat(len(order) - items, 1, 1, 1)])
                for before, new in ((base.keys, keys), (base.values, values))]
        for observer in looking:
            observer.keys_values(layer, *(whole[order].transpose(1, 2) for whole in both))

    def _mlp(self, layer: int, frozen: FrozenLayer, block: Block | None, base: Unchanged | None, change: Tensor,
             n: int) -> None:
        """Add the layer's MLP, and the edits' writes, to ``change`` (R, D), whose first ``n`` rows may differ."""
        rows, mode = self.rows, self.mode
        at = rows.position[:n].to(change.device)
        if block is None or base is None or mode.norms_frozen:
            before = (self.local.frozen.mlp_in[layer] if base is None else base.mlp_in).to(change.device)
            moved = change[:n] * frozen.mlp_in_gain[at]
        else:
            before = base.mlp_in
            moved = block.norm(base.mid[at] + change[:n], block.mlp_in_norm) - before[at]
        for observer in self.observers:
            observer.mlp_input(layer, rows, before, moved)
        kind = mode.mlp(layer)
        if kind == "free":
            assert block is not None
            assert base is not None
            change[:n] += self._free_mlp(block, base, before[at] + moved, at)
        else:
            skip = self.local.skips[layer]
            if skip is not None:
                change[:n] += moved @ skip.to(change.device)
            if kind == "replaced":
                self._replaced_mlp(layer, before, moved, at)
        self._change_features(layer, before, moved, clamped=kind == "clamped")
        self._add(layer, change)

    def _free_mlp(self, block: Block, base: Unchanged, inputs: Tensor, at: Tensor) -> Tensor:
        raw = block.mlp(inputs)
        if self.mode.norms_frozen:
            return (raw - base.mlp_raw[at]) * (block.scale(base.mlp_raw) * block.mlp_out_norm)[at]
        return block.norm(raw, block.mlp_out_norm) - block.norm(base.mlp_raw, block.mlp_out_norm)[at]

    def _replaced_mlp(self, layer: int, before: Tensor, moved: Tensor, at: Tensor) -> None:
        """Features respond: put what they write, less what they wrote, to every layer they write to."""
        read = torch.nonzero(at >= self.local.masked)[:, 0]
        row, feature, value = changed_activations(self.transcoders, layer, before, moved[read], at[read])
        if not len(row):
            return
        starts = torch.searchsorted(row, torch.arange(len(read), device=row.device))
        features, which = torch.unique(feature, return_inverse=True)
        decoders = self.transcoders.decoder_rows(layer, features).to(before)
        for j, output in enumerate(self.transcoders.output_layers(layer)):
            written = embedding_bag(which, decoders[:, j].contiguous(), starts, mode="sum", per_sample_weights=value)
            waiting = self._waiting(output)
            waiting.index_add_(0, read.to(waiting.device), written.to(waiting.device))

    def _change_features(self, layer: int, before: Tensor, moved: Tensor, clamped: bool) -> None:
        """Put the edits' writes to every layer they go to, once each."""
        edits = self.edits.features.get(layer)
        if edits is None:
            return
        unchanged = edits.reader.read(before[edits.position], edits.which)
        now, row = unchanged.clone(), self.rows.find(edits.item, edits.position)
        inside = row < len(moved)
        if not clamped and bool(inside.any()):
            now[inside] = edits.reader.read(before[edits.position[inside]] + moved[row[inside]], edits.which[inside])
        difference = edits.wanted(unchanged, now) - now
        for j, output in enumerate(edits.reader.outputs):
            if self.mode.clamped is None or output in self.mode.clamped:
                waiting = self._waiting(output)
                written = difference[:, None] * edits.reader.decoders[edits.which, j]
                waiting.index_add_(0, row.to(waiting.device), written.to(waiting.device))

    def _waiting(self, layer: int) -> Tensor:
        """(R, D) what is to be added after a layer."""
        if layer not in self._pending:
            shape = len(self.rows.item), self.local.biases.shape[1]
            self._pending[layer] = torch.zeros(shape, device=self.local.frozen.layers[layer].queries.device)
        return self._pending[layer]

    def _add(self, layer: int, change: Tensor) -> None:
        """Add to ``change`` (R, D) what waits for the end of this layer, and the vectors that are given."""
        if layer in self._pending:
            change += self._pending.pop(layer)
        if (given := self.edits.additions.get(layer)) is not None:
            item, position = given.item.to(change.device), given.position.to(change.device)
            change.index_add_(0, self.rows.find(item, position), given.vector.to(change))
