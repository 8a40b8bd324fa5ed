"""How far up the layers a prediction follows the model: changes of the residual stream, predicted beside measured.

Shapes: n ablated features, B of them together, R rows of a pass, L layers, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.interventions.passes import Observer
from circuits.interventions.rows import Rows

QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, eq=False)
class LayerAgreement:
    """Of every ablated feature and layer; NaN at layers up to the feature's own, where nothing is predicted yet."""

    cosine: np.ndarray
    """(n, L) between predicted and measured change of the residual stream after the layer, all positions together."""
    error: np.ndarray
    """(n, L) squared norm of their difference over that of the measured change."""
    feature_layer: np.ndarray
    """(n,)"""

    def by_layer(self) -> dict[str, list[Any]]:
        """Quartiles over features at each layer that any of them reaches."""
        return self._summary(np.broadcast_to(np.arange(self.cosine.shape[1]), self.cosine.shape), "layer")

    def by_distance(self) -> dict[str, list[Any]]:
        """Quartiles over features and layers that lie equally far apart."""
        return self._summary(np.arange(self.cosine.shape[1]) - self.feature_layer[:, None], "distance")

    def _summary(self, place: np.ndarray, name: str) -> dict[str, list[Any]]:
        known = np.isfinite(self.cosine) & np.isfinite(self.error)
        places = np.unique(place[known])
        found: dict[str, list[Any]] = {name: places.tolist()}
        for measure, values in (("cosine", self.cosine), ("error", self.error)):
            found[measure] = [np.quantile(values[known & (place == p)], QUARTILES).tolist() for p in places]
        return found


class Residuals(Observer):
    """Keeps every layer's changes of the residual stream: for few interventions at a time."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Tensor, Tensor]] = []
        """(layer, (R,) interventions, (R, D) changes)"""

    def residual(self, layer: int, rows: Rows, change: Tensor) -> None:
        self.seen.append((layer, rows.item + self.first, change.clone()))


def agreement(predicted: Residuals, measured: Residuals, feature_layer: np.ndarray, n_layers: int) -> LayerAgreement:
    """Compare two passes of the same B ablations of features of ``feature_layer`` (B,)."""
    sums = torch.zeros(4, len(feature_layer), n_layers, dtype=torch.float64)
    for (layer, item, one), (_, _, two) in zip(predicted.seen, measured.seen, strict=True):
        for into, product in zip(sums, (one * two, one * one, two * two, (one - two).square()), strict=True):
            into[:, layer].index_add_(0, item, product.sum(-1).double().cpu())
    both, first, second, difference = sums.numpy()
    above = (np.arange(n_layers) > feature_layer[:, None]) & (second > 0) & (first > 0)

    def ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
        return np.divide(over, under, out=np.full_like(over, np.nan), where=above)

    return LayerAgreement(ratio(both, np.sqrt(first * second)), ratio(difference, second), feature_layer)


def joined(parts: list[LayerAgreement]) -> LayerAgreement:
    """Those of several chunks of features as one."""
    return LayerAgreement(*(np.concatenate([getattr(part, name) for part in parts])
                            for name in ("cosine", "error", "feature_layer")))
