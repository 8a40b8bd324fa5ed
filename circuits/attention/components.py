"""What the residual stream of a prompt is the sum of: the sources of its local replacement model, by number (METHOD 3).

Shapes: S source nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from circuits.features.known import feature_name
from circuits.replacement import LocalReplacement

KINDS = ("feature", "error", "embedding", "constant")
"""In the order of source numbers."""


@dataclass(frozen=True)
class Component:
    """One source node; -1 where a column does not apply, as in a graph's node table."""

    source: int
    """Its number in the :class:`LocalReplacement`."""
    kind: str
    layer: int
    position: int
    """-1 for a decoder bias, which is written at every position that is not masked."""
    feature: int

    def words(self, token_texts: Sequence[str], label: str = "") -> str:
        """What it is, for people.

        Args:
            token_texts: the text of each prompt token.
            label: of the feature, if it has one.
        """
        if self.kind == "constant" and self.position < 0:
            return f"Decoder bias of layer {self.layer}"
        token = f'"{token_texts[self.position]}"'
        if self.kind == "feature":
            return f"{feature_name(self.layer, self.feature, label)} at {token}"
        if self.kind == "embedding":
            return f"Token {token}"
        return f"{'Error' if self.kind == 'error' else 'MLP output'} of layer {self.layer} at {token}"


@dataclass(frozen=True, eq=False)
class Components:
    """All source nodes as columns of equal length S; ``components[number]`` is one of them."""

    kind: np.ndarray
    """int8 into KINDS."""
    layer: np.ndarray
    """int32: where it is written (a feature: where it is read); -1 for embeddings."""
    position: np.ndarray
    """int32; -1 for decoder biases."""
    feature: np.ndarray
    """int32; -1 for other kinds."""

    @classmethod
    def of(cls, local: LocalReplacement) -> Components:
        """The sources of ``local`` in the order of their numbers."""
        active, masked = local.active, local.masked
        layers, positions = np.arange(local.n_layers), np.arange(local.n_positions)
        unmasked = positions[masked:]
        counts = [len(active), local.n_errors, local.n_positions, local.n_sources - local.first_constant]
        layer = [active.layer.cpu().numpy(), np.repeat(layers, len(unmasked)), np.full(local.n_positions, -1),
                 layers, np.repeat(layers, masked)]
        position = [active.position.cpu().numpy(), np.tile(unmasked, local.n_layers), positions,
                    np.full(local.n_layers, -1), np.tile(positions[:masked], local.n_layers)]
        feature = np.full(local.n_sources, -1, np.int32)
        feature[:len(active)] = active.feature.cpu().numpy()
        return cls(np.repeat(np.arange(len(KINDS), dtype=np.int8), counts), np.concatenate(layer).astype(np.int32),
                   np.concatenate(position).astype(np.int32), feature)

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, source: int) -> Component:
        return Component(int(source), KINDS[self.kind[source]], int(self.layer[source]), int(self.position[source]),
                         int(self.feature[source]))

    def before(self, layer: int, position: int) -> np.ndarray:
        """(C,) int64 numbers of the sources that can be present before ``layer``'s attention at ``position``."""
        return np.flatnonzero((self.layer < layer) & (self.position <= position))
