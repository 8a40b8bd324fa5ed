"""What is changed: features, errors, token embeddings, directions; one intervention is any number of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.errors import InputError

OPERATIONS = ("scale", "set", "add")
Positions = Sequence[int] | range | int | None


@dataclass(frozen=True)
class FeatureEdit:
    """Change a feature's activation.

    ``scale`` makes it ``amount`` times its value on the unchanged prompt (0 ablates it, -1 turns it round), ``set``
    makes it ``amount``, ``add`` adds ``amount``. While generating there is no unchanged prompt: ``scale`` is then of
    the value the feature would have at that moment.
    """

    layer: int
    feature: int
    positions: Positions = None
    """Of the prompt; negative ones count from its end. None: every position where features are read; for ``scale``,
    those where the feature is active."""
    operation: str = "scale"
    amount: float = 0.0
    generated: bool = False
    """At every generated token, too."""

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise InputError(f"operation is {self.operation!r}: expected one of {', '.join(OPERATIONS)}")
        _check_amount(self.amount)


@dataclass(frozen=True)
class ErrorEdit:
    """Make what the transcoder misses at a layer and position ``amount`` times what it is."""

    layer: int
    position: int
    amount: float = 0.0

    def __post_init__(self) -> None:
        _check_amount(self.amount)


@dataclass(frozen=True)
class TokenEdit:
    """Make the embedding of the token at ``position`` ``amount`` times what it is."""

    position: int
    amount: float = 0.0

    def __post_init__(self) -> None:
        _check_amount(self.amount)


@dataclass(frozen=True, eq=False)
class DirectionEdit:
    """Add ``amount`` times ``vector`` (D,) to the residual stream after a layer."""

    layer: int
    vector: Tensor
    positions: Positions = None
    """As in :class:`FeatureEdit`; None: every position but the masked ones."""
    amount: float = 1.0
    generated: bool = False

    def __post_init__(self) -> None:
        _check_amount(self.amount)
        if self.vector.ndim != 1 or not bool(torch.isfinite(self.vector).all()):
            raise InputError(f"vector has shape {list(self.vector.shape)}: expected one direction of finite numbers")


Edit = FeatureEdit | ErrorEdit | TokenEdit | DirectionEdit


@dataclass(frozen=True)
class Intervention:
    """Edits that are made together."""

    edits: tuple[Edit, ...]
    name: str = ""


def ablate(layer: int, feature: int, positions: Positions = None, *, generated: bool = False) -> Intervention:
    """Silence a feature."""
    return Intervention((FeatureEdit(layer, feature, positions, generated=generated),), f"ablate {layer}/{feature}")


def scale(layer: int, feature: int, amount: float, positions: Positions = None, *, generated: bool = False
          ) -> Intervention:
    """Make a feature ``amount`` times what it is."""
    return Intervention((FeatureEdit(layer, feature, positions, "scale", amount, generated),),
                        f"{layer}/{feature} = {amount:g}x")


def positions_of(positions: Positions, n_positions: int) -> list[int] | None:
    """Positions as a sorted list from 0 on, each once; None stays None.

    Raises:
        InputError: one that is not on the prompt, or none at all.
    """
    if positions is None:
        return None
    given = [positions] if isinstance(positions, int) else [int(p) for p in positions]
    if not given:
        raise InputError("an edit names no position: give at least one, or none for all")
    for position in given:
        if not -n_positions <= position < n_positions:
            raise InputError(f"position {position} is not on the prompt, which has {n_positions} tokens (0 to "
                             f"{n_positions - 1})")
    return sorted({position % n_positions for position in given})


def _check_amount(amount: float) -> None:
    if not math.isfinite(amount):
        raise InputError(f"the multiplier or amount is {amount}: expected a finite number")
