"""One token after another with a cache of keys and values, and the edits of generated positions (METHOD 7).

Shapes: B texts, T positions in the cache, D d_model, H query heads, G key/value heads, K head_dim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.block import Block
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.interventions.compiled import Additions, FeatureChanges
from circuits.interventions.edits import OPERATIONS, DirectionEdit, FeatureEdit, Intervention
from circuits.interventions.passes import Observer
from circuits.interventions.reading import FeatureReader
from circuits.replacement import LocalReplacement
from circuits.transcoder import Transcoders


class Cache(Observer):
    """Keys and values of a batch of texts: the prompt's, seen in a pass, then one position at a time. Of a layer with
    a window only the prompt's positions that generated ones can see.

    Args:
        room: positions to be generated.
    """

    def __init__(self, local: LocalReplacement, room: int):
        self.n_positions = local.n_positions
        """Of the texts so far."""
        self._windows = [layer.window for layer in local.frozen.layers]
        self._room = room
        self._seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self._windows]
        self._stored: list[tuple[Tensor, Tensor]] = []
        self._filled: list[int] = []

    def keys_values(self, layer: int, keys: Tensor, values: Tensor) -> None:
        window = self._windows[layer]
        first = 0 if window is None else max(0, self.n_positions - window + 1)
        self._seen[layer].append((keys[:, :, first:].clone(), values[:, :, first:].clone()))

    def begin(self) -> None:
        """The passes over the prompt are done: make room for what comes."""
        for seen in self._seen:
            keys, values = (torch.cat(parts) for parts in zip(*seen, strict=True))
            self._filled.append(keys.shape[2])
            seen.clear()
            room = keys.new_zeros(*keys.shape[:2], self._room, keys.shape[3])
            self._stored.append((torch.cat([keys, room], 2), torch.cat([values, room], 2)))

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put in the keys and values (B, G, K) of one more position; gives all (B, G, T, K) that it sees."""
        at, window = self._filled[layer], self._windows[layer]
        self._filled[layer] += 1
        seen = slice(0 if window is None else max(0, at + 1 - window), at + 1)
        for stored, new in zip(self._stored[layer], (keys, values), strict=True):
            stored[:, :, at] = new
        every_key, every_value = self._stored[layer]
        return every_key[:, :, seen], every_value[:, :, seen]


@dataclass(frozen=True)
class GeneratedEdits:
    """What B interventions change at every generated position, by layer. Positions in it mean nothing."""

    features: dict[int, FeatureChanges]
    additions: dict[int, Additions]

    @classmethod
    def of(cls, transcoders: Transcoders, local: LocalReplacement, interventions: Sequence[Intervention]
           ) -> GeneratedEdits:
        """Raises:
            InputError: a layer or feature that does not exist, a direction of another size, a feature changed twice.
        """
        features: dict[int, dict[tuple[int, int], FeatureEdit]] = defaultdict(dict)
        additions: dict[int, list[tuple[int, DirectionEdit]]] = defaultdict(list)
        for item, intervention in enumerate(interventions):
            for edit in intervention.edits:
                if not isinstance(edit, FeatureEdit | DirectionEdit) or not edit.generated:
                    continue
                _check(edit, transcoders, local)
                if isinstance(edit, DirectionEdit):
                    additions[edit.layer].append((item, edit))
                elif (item, edit.feature) in features[edit.layer]:
                    raise InputError(f"{intervention.name or f'intervention {item}'} changes feature "
                                     f"{edit.layer}/{edit.feature} twice while generating: once is enough")
                else:
                    features[edit.layer][item, edit.feature] = edit
        devices = [layer.queries.device for layer in local.frozen.layers]
        return cls({layer: _feature_changes(transcoders, layer, edits, devices[layer])
                    for layer, edits in features.items()},
                   {layer: _additions(edits, devices[layer]) for layer, edits in additions.items()})


def _check(edit: FeatureEdit | DirectionEdit, transcoders: Transcoders, local: LocalReplacement) -> None:
    if not 0 <= edit.layer < local.n_layers:
        raise InputError(f"layer {edit.layer} cannot be changed: expected 0 to {local.n_layers - 1}")
    d_model = local.biases.shape[1]
    if isinstance(edit, DirectionEdit):
        if len(edit.vector) != d_model:
            raise InputError(f"the direction has {len(edit.vector)} dimensions, the model {d_model}")
    elif not 0 <= edit.feature < transcoders.d_transcoder[edit.layer]:
        raise InputError(f"layer {edit.layer} has no feature {edit.feature}: expected 0 to "
                         f"{transcoders.d_transcoder[edit.layer] - 1}")


def _feature_changes(transcoders: Transcoders, layer: int, edits: dict[tuple[int, int], FeatureEdit],
                     device: torch.device) -> FeatureChanges:
    item, feature = (torch.tensor(column) for column in zip(*edits, strict=True))
    distinct, which = torch.unique(feature, return_inverse=True)
    operation = torch.tensor([OPERATIONS.index(edit.operation) for edit in edits.values()])
    amount = torch.tensor([edit.amount for edit in edits.values()], dtype=torch.float32)
    item, which, operation, amount = (t.to(device) for t in (item, which, operation, amount))
    return FeatureChanges(FeatureReader(transcoders, layer, distinct, device), item, torch.zeros_like(item), which,
                          operation, amount)


def _additions(edits: list[tuple[int, DirectionEdit]], device: torch.device) -> Additions:
    item = torch.tensor([item for item, _ in edits], device=device)
    vectors = torch.stack([edit.amount * edit.vector.to(device, torch.float32) for _, edit in edits])
    return Additions(item, torch.zeros_like(item), vectors)


class Decoder:
    """The model on one more token of every text, in float32, with the edits made."""

    def __init__(self, model: Gemma3, cache: Cache, edits: GeneratedEdits):
        self.model, self.cache, self.edits = model, cache, edits

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """(B, D) output of the final norm after tokens (B,)."""
        x = self.model.embed(tokens)
        pending: dict[int, Tensor] = {}
        for layer in range(self.model.n_layers):
            block = self.model.block(layer)
            x = x.to(block.w_q.device)
            x = x + block.norm(self._attention(layer, block, block.norm(x, block.attn_in_norm)), block.attn_out_norm)
            mlp_in = block.norm(x, block.mlp_in_norm)
            x = x + block.norm(block.mlp(mlp_in), block.mlp_out_norm)
            self._change_features(layer, mlp_in, pending)
            if layer in pending:
                x = x + pending.pop(layer).to(x.device)
            if (given := self.edits.additions.get(layer)) is not None:
                x = x.index_add(0, given.item, given.vector)
        self.cache.n_positions += 1
        return self.model.final_norm(x.to(self.model.device))

    def _attention(self, layer: int, block: Block, normed: Tensor) -> Tensor:
        """(B, D) what the heads bring, from normed inputs (B, D)."""
        at = torch.full((len(normed),), self.cache.n_positions, device=normed.device)
        keys, values = self.cache.extended(layer, block.keys(normed, at), block.values(normed))
        queries = block.queries(normed, at).unflatten(1, (keys.shape[1], -1))  # (B, G, H / G, K)
        return block.attention_output(((queries @ keys.mT).softmax(-1) @ values).flatten(1, 2))

    def _change_features(self, layer: int, mlp_in: Tensor, pending: dict[int, Tensor]) -> None:
        """Put what the edits of this layer's features write to the layers they go to, once each."""
        if (edits := self.edits.features.get(layer)) is None:
            return
        now = edits.reader.read(mlp_in[edits.item], edits.which)
        difference = edits.wanted(now, now) - now
        for j, output in enumerate(edits.reader.outputs):
            if output not in pending:
                pending[output] = torch.zeros_like(mlp_in)
            pending[output].index_add_(0, edits.item, difference[:, None] * edits.reader.decoders[edits.which, j])
