"""Interventions on one prompt, checked and sorted into what each layer has to do.

Shapes: B interventions, n edits of a layer, P positions, D d_model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.interventions.edits import (
    OPERATIONS,
    DirectionEdit,
    ErrorEdit,
    FeatureEdit,
    Intervention,
    TokenEdit,
    positions_of,
)
from circuits.interventions.modes import Mode
from circuits.interventions.reading import FeatureReader
from circuits.replacement import LocalReplacement
from circuits.transcoder import Transcoders


@dataclass(frozen=True)
class FeatureChanges:
    """Features to change at one layer."""

    reader: FeatureReader
    item: Tensor
    """(n,) which intervention; below, position and number of the feature in the reader."""
    position: Tensor
    which: Tensor
    operation: Tensor
    """(n,) index into OPERATIONS."""
    amount: Tensor
    """(n,)"""

    def wanted(self, before: Tensor, now: Tensor) -> Tensor:
        """(n,) the values to be, from those on the unchanged prompt and those of this moment."""
        scaled, added = self.amount * before, now + self.amount
        return torch.where(self.operation == 0, scaled, torch.where(self.operation == 1, self.amount, added))


@dataclass(frozen=True)
class Additions:
    """Vectors to add to the residual stream after one layer; after the embeddings for layer -1."""

    item: Tensor
    """(n,)"""
    position: Tensor
    """(n,)"""
    vector: Tensor
    """(n, D)"""


@dataclass(frozen=True)
class Compiled:
    """What a pass needs to know of B interventions."""

    first_layer: Tensor
    """(B,) where each one's first edit is; -1: at the embeddings."""
    first_position: Tensor
    """(B,) before it nothing can change."""
    features: dict[int, FeatureChanges]
    additions: dict[int, Additions]


@dataclass
class _Found:
    """One layer's edits while they are collected."""

    features: list[tuple[int, int, int, int, float]] = field(default_factory=list)
    """(item, position, feature, operation, amount)"""
    additions: list[tuple[int, int, Tensor]] = field(default_factory=list)
    """(item, position, vector)"""

    def places(self) -> list[tuple[int, int]]:
        """Intervention and position of each."""
        return [(item, position) for item, position, *_ in self.features] + [
            (item, position) for item, position, _ in self.additions]


def compile_edits(transcoders: Transcoders, local: LocalReplacement, interventions: Sequence[Intervention],
                  mode: Mode) -> Compiled:
    """Check interventions against the prompt, and sort their edits by layer.

    Raises:
        InputError: a layer, feature or position that does not exist; a feature that is to be scaled where it is not
            active, or changed twice; an edit outside of the layers that are clamped; no edit.
    """
    if not interventions:
        raise InputError("there is no intervention: give at least one")
    mode.check(local.n_layers)
    found: dict[int, _Found] = defaultdict(_Found)
    for item, intervention in enumerate(interventions):
        if not intervention.edits:
            raise InputError(f"intervention {item} ({intervention.name or 'unnamed'}) changes nothing: give it an edit")
        for edit in intervention.edits:
            layer = -1 if isinstance(edit, TokenEdit) else edit.layer
            _check_layer(layer, edit, local.n_layers, mode)
            if isinstance(edit, FeatureEdit):
                found[layer].features += [(item, position, edit.feature, OPERATIONS.index(edit.operation), edit.amount)
                                          for position in _feature_positions(transcoders, local, edit)]
            else:
                found[layer].additions += [(item, *write) for write in _additions(local, edit)]
    places = [(layer, item, position) for layer, edits in found.items() for item, position in edits.places()]
    first_layer, first_position = (torch.full((len(interventions),), local.n_layers + local.n_positions)
                                   for _ in range(2))
    for layer, item, position in places:
        first_layer[item] = min(int(first_layer[item]), layer)
        first_position[item] = min(int(first_position[item]), position)
    features = {layer: _feature_changes(transcoders, local, layer, edits.features)
                for layer, edits in found.items() if edits.features}
    additions = {layer: _stacked(edits.additions) for layer, edits in found.items() if edits.additions}
    return Compiled(first_layer, first_position, features, additions)


def _check_layer(layer: int, edit: object, n_layers: int, mode: Mode) -> None:
    if isinstance(edit, TokenEdit):
        return
    if not 0 <= layer < n_layers:
        raise InputError(f"layer {layer} cannot be changed: expected 0 to {n_layers - 1}")
    if mode.clamped is not None and layer not in mode.clamped:
        raise InputError(f"an edit is at layer {layer}, outside of the clamped layers {mode.clamped[0]} to "
                         f"{mode.clamped[-1]}: choose a range that holds every edit")


def _feature_positions(transcoders: Transcoders, local: LocalReplacement, edit: FeatureEdit) -> list[int]:
    """Where an edit of a feature changes something."""
    size = transcoders.d_transcoder[edit.layer]
    if not 0 <= edit.feature < size:
        raise InputError(f"layer {edit.layer} has no feature {edit.feature}: expected 0 to {size - 1}")
    positions = positions_of(edit.positions, local.n_positions)
    name = f"feature {edit.layer}/{edit.feature}"
    if masked := [p for p in positions or [] if p < local.masked]:
        raise InputError(f"{name} cannot be changed at position {masked[0]}: features are not read at the first "
                         f"{local.masked} position(s)")
    if edit.operation != "scale":
        return positions if positions is not None else list(range(local.masked, local.n_positions))
    active = local.active
    here = (active.layer == edit.layer) & (active.feature == edit.feature)
    places = sorted(active.position[here].tolist())
    chosen = places if positions is None else [p for p in positions if p in places]
    if not chosen and not (edit.generated and positions is None):
        where = f"only at {', '.join(map(str, places))}" if places else "nowhere on this prompt"
        asked = "" if positions is None else f" at position {', '.join(map(str, positions))}"
        raise InputError(f"{name} is not active{asked} ({where}), so it cannot be scaled: choose an active one, or set "
                         "it to a value")
    return chosen


def _additions(local: LocalReplacement, edit: ErrorEdit | TokenEdit | DirectionEdit) -> list[tuple[int, Tensor]]:
    """(position, vector) that an edit adds."""
    if isinstance(edit, DirectionEdit):
        d_model = local.biases.shape[1]
        if len(edit.vector) != d_model:
            raise InputError(f"the direction has {len(edit.vector)} dimensions, the model {d_model}")
        positions = positions_of(edit.positions, local.n_positions)
        vector = edit.amount * edit.vector.to(local.biases)
        return [(p, vector) for p in (range(local.masked, local.n_positions) if positions is None else positions)]
    [position] = positions_of(edit.position, local.n_positions) or []
    if isinstance(edit, TokenEdit):
        return [(position, (edit.amount - 1) * local.frozen.embeddings[position])]
    if position < local.masked:
        raise InputError(f"there is no error at position {position}: features are not read at the first {local.masked} "
                         "position(s)")
    return [(position, (edit.amount - 1) * local.error(edit.layer, position).to(local.biases))]


def _feature_changes(transcoders: Transcoders, local: LocalReplacement, layer: int,
                     edits: list[tuple[int, int, int, int, float]]) -> FeatureChanges:
    item, position, feature, operation, amount = (torch.tensor(column) for column in zip(*edits, strict=True))
    key = torch.stack([item, position, feature])
    distinct, count = torch.unique(key, dim=1, return_counts=True)
    if len(count) != len(item):
        at, where, twice = distinct[:, count.argmax()].tolist()
        raise InputError(f"intervention {at} changes feature {layer}/{twice} at position {where} twice: once is enough")
    features, which = torch.unique(feature, return_inverse=True)
    device = local.frozen.layers[layer].queries.device
    return FeatureChanges(FeatureReader(transcoders, layer, features, device), item.to(device), position.to(device),
                          which.to(device), operation.to(device), amount.to(device, torch.float32))


def _stacked(additions: list[tuple[int, int, Tensor]]) -> Additions:
    item, position, vector = zip(*additions, strict=True)
    vectors = torch.stack(vector)
    return Additions(torch.tensor(item, device=vectors.device), torch.tensor(position, device=vectors.device), vectors)
