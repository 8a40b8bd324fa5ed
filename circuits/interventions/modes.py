"""What reacts to an intervention, and what is held."""

from __future__ import annotations

import re
from dataclasses import dataclass

from circuits.errors import InputError


@dataclass(frozen=True)
class Mode:
    """What stays as it was on the unchanged prompt, and what is computed anew.

    MLPs are ``clamped``: their features and errors keep their values, and only an affine skip, a linear part of the
    path, passes changes on; ``replaced``: features respond as the transcoder has them, errors keep their values; or
    ``free``: the model's own MLPs are computed.
    """

    patterns_frozen: bool = False
    norms_frozen: bool = False
    mlps: str = "free"
    clamped: range | None = None
    """Layers whose MLPs are clamped whatever ``mlps`` says: constrained patching (Ameisen et al. 2025, "Circuit
    Tracing"). Edits are made, and their cross-layer writes applied, inside of these only."""

    def mlp(self, layer: int) -> str:
        """clamped, replaced or free."""
        return "clamped" if self.clamped is not None and layer in self.clamped else self.mlps

    @property
    def needs_model(self) -> bool:
        """Whether anything of the model is computed that the frozen pass did not leave behind."""
        return not (self.patterns_frozen and self.norms_frozen and self.mlps != "free")

    def check(self, n_layers: int) -> None:
        """Raises:
            InputError: clamped layers that the model does not have.
        """
        if self.clamped is not None and not (len(self.clamped) and 0 <= self.clamped[0] <= self.clamped[-1] < n_layers):
            raise InputError(f"layers {self.clamped.start} to {self.clamped.stop - 1} cannot be clamped: expected a "
                             f"range inside 0 to {n_layers - 1}")


FROZEN = Mode(patterns_frozen=True, norms_frozen=True, mlps="clamped")
"""Direct effects: patterns, norm scales and other features held. What an edge of the graph says."""
REPLACED = Mode(patterns_frozen=True, norms_frozen=True, mlps="replaced")
"""The local replacement model: patterns and norm scales held, features respond. What the whole graph says."""
FREE = Mode()
"""The model itself."""


def constrained(first: int, last: int, *, patterns_frozen: bool = False, norms_frozen: bool = False) -> Mode:
    """Constrained patching: MLPs of layers ``first`` to ``last`` (both included) are clamped but for the edits, the
    layers after them run freely."""
    return Mode(patterns_frozen, norms_frozen, clamped=range(first, last + 1))


def read_mode(text: str) -> Mode:
    """``frozen``, ``replaced``, ``free``, or two layers ``FIRST-LAST`` for constrained patching.

    Raises:
        InputError: anything else.
    """
    named = {"frozen": FROZEN, "replaced": REPLACED, "free": FREE}
    if text in named:
        return named[text]
    if match := re.fullmatch(r"(\d{1,4})-(\d{1,4})", text, re.ASCII):
        return constrained(int(match[1]), int(match[2]))
    raise InputError(f"mode is {text!r}: expected frozen, replaced, free, or layers such as 5-12 for constrained "
                     "patching")
