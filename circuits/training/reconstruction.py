"""MLP outputs as transcoders predict them, on the model's own activations or inside the model in place of its MLPs.

Shapes: B sequences, P positions, M masked leading positions, D d_model, F features of a layer, N positions of a batch
that are not masked (B * (P - M)), n active (position, feature) pairs, S output layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuits.transcoder import Transcoders

MAX_ROWS = 1 << 26
"""Elements of the largest block of decoder rows read at once (256 MiB of float32)."""


class Reconstruction:
    """Predictions layer after layer, for one pass over one batch; what a feature writes to later layers waits here."""

    def __init__(self, transcoders: Transcoders):
        self.transcoders = transcoders
        self.fired = torch.empty(0, dtype=torch.long)
        """(n,) the features active at the layer asked for last, one entry per position they fired at."""
        self._pending: dict[int, Tensor] = {}

    def layer(self, layer: int, x: Tensor) -> Tensor:
        """(N, D) float32 prediction of the MLP output at ``layer`` from its input ``x`` (N, D); layers must come in
        order."""
        x = x.float()
        position, self.fired, value = (t.to(x.device) for t in self.transcoders.encode(layer, x))
        self._write(layer, position, self.fired, value, x)
        y_hat = self._pending.pop(layer) + self.transcoders.b_dec(layer).to(x)
        skip = self.transcoders.skip(layer)
        return y_hat if skip is None else y_hat + x @ skip.to(x)

    def _write(self, layer: int, position: Tensor, feature: Tensor, value: Tensor, x: Tensor) -> None:
        outputs = self.transcoders.output_layers(layer)
        for output in outputs:
            self._pending.setdefault(output, torch.zeros_like(x))
        # each feature's vectors are read once however often it fired, and never all features' at once
        distinct, place = feature.unique(return_inverse=True)
        size = max(1, MAX_ROWS // (len(outputs) * x.shape[1]))
        for start in range(0, len(distinct), size):
            rows = self.transcoders.decoder_rows(layer, distinct[start:start + size]).to(x)
            here = slice(None) if len(distinct) <= size else (place >= start) & (place < start + size)
            for j, output in enumerate(outputs):
                self._pending[output].index_add_(0, position[here], rows[place[here] - start, j] * value[here, None])


class Replacement:
    """Takes the place of every MLP output but the masked positions' (for :meth:`Gemma3.logits_with_mlps`).

    Args:
        errors: (N, D) per layer, added to the predictions; none without it.
    """

    def __init__(self, transcoders: Transcoders, masked: int, errors: list[Tensor] | None = None):
        self.reconstruction, self.masked, self.errors = Reconstruction(transcoders), masked, errors

    def __call__(self, layer: int, mlp_in: Tensor, mlp_out: Tensor) -> Tensor:
        y_hat = self.reconstruction.layer(layer, unmasked(mlp_in, self.masked))
        if self.errors is not None:
            y_hat = y_hat + self.errors[layer]
        return with_unmasked(mlp_out, self.masked, y_hat)


class MeanAblation:
    """Puts each layer's mean output in place of the MLP's, the masked positions excepted.

    Args:
        mean: (L, D)
    """

    def __init__(self, mean: Tensor, masked: int):
        self.mean, self.masked = mean, masked

    def __call__(self, layer: int, mlp_in: Tensor, mlp_out: Tensor) -> Tensor:
        return with_unmasked(mlp_out, self.masked, self.mean[layer])


def unmasked(x: Tensor, masked: int) -> Tensor:
    """(N, D) float32 rows of ``x`` (B, P, D) at the positions that are not masked, sequence after sequence."""
    return x[:, masked:].flatten(0, 1).float()


def with_unmasked(x: Tensor, masked: int, rows: Tensor) -> Tensor:
    """``x`` (B, P, D) with ``rows`` (N, D), or one row for all, at the positions that are not masked."""
    changed = x.clone()
    changed[:, masked:] = rows.to(x).view(*x[:, masked:].shape) if rows.ndim > 1 else rows.to(x)
    return changed
