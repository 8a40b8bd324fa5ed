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


def changed_activations(transcoders: Transcoders, layer: int, before: Tensor, moved: Tensor, at: Tensor
                         ) -> tuple[Tensor, Tensor, Tensor]:
    """Row, feature and change of every activation that differs, where the MLP reads ``before[at] + moved`` (r, D)
    and not ``before[at]``."""
    row, feature, value = transcoders.encode(layer, before[at] + moved)
    position, old_feature, old_value = transcoders.encode(layer, before)
    count = torch.bincount(position, minlength=len(before))
    ends = count.cumsum(0)
    lengths = count[at.to(count.device)]
    old_row = torch.arange(len(at), device=lengths.device).repeat_interleave(lengths)
    start = (ends - count)[at.to(count.device)] - (lengths.cumsum(0) - lengths)
    old = torch.arange(len(old_row), device=lengths.device) + start.repeat_interleave(lengths)
    key = torch.cat([row, old_row]) * transcoders.d_transcoder[layer] + torch.cat([feature, old_feature[old]])
    distinct, number = torch.unique(key, return_inverse=True)
    change = value.new_zeros(len(distinct)).index_add_(0, number, torch.cat([value, -old_value[old]]))
    differs = change != 0
    size = transcoders.d_transcoder[layer]
    return ((distinct[differs] // size).to(moved.device), (distinct[differs] % size).to(moved.device),
            change[differs].to(moved.device))
