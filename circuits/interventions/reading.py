"""Chosen features of one layer: read from any residual stream, and the vectors they write.

Shapes: n reads, U features, S output layers, D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuits.transcoder import Transcoders


class FeatureReader:
    """Reads features of a layer.

    Args:
        features: (U,) int64, ascending.
        device: where they are read and written.
    """

    def __init__(self, transcoders: Transcoders, layer: int, features: Tensor, device: torch.device):
        self.layer, self.features, self.outputs = layer, features, transcoders.output_layers(layer)
        self._transcoders = transcoders
        self._top_k = transcoders.top_k(layer) is not None
        self.encoders = transcoders.encoder_rows(layer, features).to(device)
        self.biases = transcoders.encoder_bias(layer, features).to(device)
        threshold = transcoders.threshold(layer)
        self.thresholds = (torch.zeros_like(self.biases) if threshold is None
                           else threshold.to(device)[features.to(device)])
        self.decoders = transcoders.decoder_rows(layer, features).to(device)
        """(U, S, D)"""

    def read(self, x: Tensor, which: Tensor) -> Tensor:
        """(n,) activations of the features numbered ``which`` (n,) where the layer's MLP reads ``x`` (n, D)."""
        if self._top_k:
            return self._read_top_k(x, which)
        pre = (x * self.encoders[which]).sum(-1) + self.biases[which]
        return torch.where(pre > self.thresholds[which], pre, 0.0)

    def _read_top_k(self, x: Tensor, which: Tensor) -> Tensor:
        """Which features are among the k largest depends on all of them."""
        row, feature, value = (t.to(x.device) for t in self._transcoders.encode(self.layer, x))
        wanted = self.features.to(x.device)[which][row] == feature
        return x.new_zeros(len(x)).index_put((row[wanted],), value[wanted])
