"""Where on the prompt the features of a graph fired: pruned nodes included, so that a page can show all of them.

Shapes: A places at which a feature fired.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.errors import InputError

if TYPE_CHECKING:
    from circuits.graphs.nodes import NodeTable

ACTIVATION_DTYPES: dict[str, Any] = {
    "layer": np.int32, "feature": np.int32, "position": np.int32, "value": np.float32}
"""Of the columns, in order."""


@dataclass(frozen=True, eq=False)
class Activations:
    """Places on the prompt where features fired, sorted by layer, feature and position; each place once.

    Raises:
        InputError: columns of other dtypes or unequal lengths, not sorted, or values that are not finite.
    """

    layer: np.ndarray
    """(A,) int32"""
    feature: np.ndarray
    """(A,) int32"""
    position: np.ndarray
    """(A,) int32"""
    value: np.ndarray
    """(A,) float32 activation there."""

    def __post_init__(self) -> None:
        for name, dtype in ACTIVATION_DTYPES.items():
            column = getattr(self, name)
            if column.dtype != dtype or column.shape != (len(self.value),):
                raise InputError(f"activations.{name} is {column.dtype} of shape {column.shape}, expected "
                                 f"{np.dtype(dtype)} of shape ({len(self.value)},)")
        negative = [name for name in ("layer", "feature", "position") if (getattr(self, name) < 0).any()]
        if negative:
            raise InputError(f"activations.{negative[0]} holds numbers below 0")
        if not np.isfinite(self.value).all():
            raise InputError("activations.value must be finite numbers")
        feature = np.diff(self._keys)
        if not ((feature > 0) | ((feature == 0) & (np.diff(self.position) > 0))).all():
            raise InputError("activations must rise by layer, feature and position, each place once")

    def __len__(self) -> int:
        return len(self.value)

    @cached_property
    def _keys(self) -> np.ndarray:
        return feature_keys(self.layer, self.feature)

    def of(self, layer: int, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (n,) int32 at which a feature fired, ascending, and its activations (n,) float32 there."""
        wanted = (int(layer) << 32) + int(feature)
        part = slice(int(np.searchsorted(self._keys, wanted)), int(np.searchsorted(self._keys, wanted, side="right")))
        return self.position[part], self.value[part]

    def left(self, nodes: NodeTable) -> Activations:
        """The rows of features that still have a node in the table ``nodes``."""
        features = nodes.kind == "feature"
        kept = np.isin(self._keys, feature_keys(nodes.layer[features], nodes.feature[features]))
        return Activations(**{name: getattr(self, name)[kept] for name in ACTIVATION_DTYPES})


def activations_of_nodes(nodes: NodeTable) -> Activations:
    """What the feature nodes say themselves; of two nodes of one feature at one place, the first."""
    found = np.flatnonzero(nodes.kind == "feature")
    found = found[np.lexsort((nodes.position[found], nodes.feature[found], nodes.layer[found]))]
    columns = np.stack([nodes.layer[found], nodes.feature[found], nodes.position[found]])
    first = np.ones(len(found), dtype=bool)
    first[1:] = (np.diff(columns, axis=1) != 0).any(0)
    found = found[first]
    return Activations(**{name: nodes[name][found].astype(dtype) for name, dtype in ACTIVATION_DTYPES.items()})


def feature_keys(layer: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """(n,) int64, one number for each layer and feature, in the order of (layer, feature)."""
    return (layer.astype(np.int64) << 32) + feature
