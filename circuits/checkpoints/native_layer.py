"""One layer of the native format (:mod:`circuits.checkpoints.native`): what is in its file, read and checked.

Shapes: F features, D d_model, S output layers (the layer itself and the next S - 1), n kept decoder vectors, k tokens
of a label.

Decoders are stored whole, as W_dec (F, S, D), or only the vectors that matter, feature after feature:
  W_dec_kept (n, D)     the vectors, with W_dec_kept_scale (n,) where they are int8
  W_dec_start (F + 1,)  int64 or int32; feature f has vectors W_dec_start[f] up to W_dec_start[f + 1], perhaps none
  W_dec_output (n,)     uint8 output layer of each vector, counted from the feature's own; ascending within a feature
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from circuits.checkpoints.weight_file import FLOATING, WeightFile
from circuits.errors import FormatError

LABELS = ("promoted_tokens", "active_tokens")
SCALE_DIMS = {"W_enc": (1,), "W_dec": (2,), "W_dec_kept": (1,), "skip": (0,)}
"""The dimensions of each matrix that share one int8 scale."""
_INDICES = ("W_dec_start", "W_dec_output")


@dataclass(frozen=True)
class NativeLayer:
    """One layer's file; dequantised on the way out."""

    path: Path
    file: WeightFile
    n_features: int
    d_model: int
    n_outputs: int
    k: int | None = None

    @classmethod
    def open(cls, path: Path, n_features: int, d_model: int, n_outputs: int, k: int | None = None) -> NativeLayer:
        """Check one layer's header, biases, scales and offsets against the folder's settings.

        Raises:
            FormatError: missing, damaged or contradicting tensors.
        """
        file = WeightFile(path)
        file.expect("b_enc", (n_features,))
        file.expect("b_dec", (d_model,))
        shapes: dict[str, tuple[int, ...]] = {"W_enc": (n_features, d_model)}
        if "W_dec_kept" in file.shapes:
            shapes["W_dec_kept"] = (_expect_kept(file, n_features, n_outputs), d_model)
        else:
            shapes["W_dec"] = (n_features, n_outputs, d_model)
        if "skip" in file.shapes:
            shapes["skip"] = (d_model, d_model)
        scales = [_expect_matrix(file, name, shape) for name, shape in shapes.items()]
        small = ["b_enc", "b_dec", *filter(None, scales)]
        if "threshold" in file.shapes:
            if k is not None:
                raise FormatError(f"{path} has thresholds, but config.json says k {k}: a TopK layer has none")
            file.expect("threshold", (n_features,))
            small.append("threshold")
        for name in small:
            file.finite_vector(name)
        has = [name for name in LABELS if name in file.shapes]
        if len(has) == 1:
            raise FormatError(f"{path} has {has[0]} alone: expected both {' and '.join(LABELS)}, or neither")
        for name in has:
            file.expect(name, (n_features, None), ("I32",))
        file.refuse_unknown({*shapes, *(f"{name}_scale" for name in shapes), *LABELS})
        return cls(path, file, n_features, d_model, n_outputs, k)

    def encoder(self, start: int, stop: int) -> Tensor:
        w_enc, scale = self.file.tensor("W_enc")[start:stop].float(), self._scale("W_enc")
        return w_enc if scale is None else w_enc * scale[start:stop, None]

    def encoder_rows(self, features: Tensor) -> Tensor:
        return self._rows("W_enc", features)

    def vector(self, name: str) -> Tensor | None:
        return self.file.tensor(name).float() if name in self.file.shapes else None

    def decoder_rows(self, features: Tensor) -> Tensor:
        if "W_dec" in self.file.shapes:
            return self._rows("W_dec", features)
        entry, row, output = self._kept(features)
        rows = torch.zeros(len(features), self.n_outputs, self.d_model)
        rows[row, output] = self._rows("W_dec_kept", entry)
        return rows

    def decoder_outputs(self, features: Tensor) -> Tensor:
        stored = torch.ones(len(features), self.n_outputs, dtype=torch.bool)
        if "W_dec" not in self.file.shapes:
            _, row, output = self._kept(features)
            stored.fill_(False)[row, output] = True
        return stored

    def skip(self) -> Tensor | None:
        if "skip" not in self.file.shapes:
            return None
        skip, scale = self.file.tensor("skip").float(), self._scale("skip")
        return skip if scale is None else skip * scale

    def labels(self, features: Tensor) -> tuple[Tensor, Tensor] | None:
        if LABELS[0] not in self.file.shapes:
            return None
        promoted, active = (self.file.tensor(name).index_select(0, features) for name in LABELS)
        return promoted, active

    def _kept(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The kept vectors of the features: index among all kept, row in ``features`` and output layer, each (m,)."""
        start = self.file.tensor("W_dec_start")
        begin, count = (column.index_select(0, features).long() for column in (start, start.diff()))
        row = torch.arange(len(features)).repeat_interleave(count)
        first = count.cumsum(0) - count
        entry = torch.arange(len(row)) + (begin - first)[row]
        return entry, row, self.file.tensor("W_dec_output").index_select(0, entry).long()

    def _rows(self, name: str, features: Tensor) -> Tensor:
        rows, scale = self.file.rows(name, features).float(), self._scale(name)
        return rows if scale is None else rows.mul_(scale.index_select(0, features)[..., None])

    def _scale(self, name: str) -> Tensor | None:
        return self.file.tensor(f"{name}_scale") if f"{name}_scale" in self.file.shapes else None


def _expect_matrix(file: WeightFile, name: str, shape: tuple[int, ...]) -> str | None:
    """Check a matrix and, if it is int8, its scale, whose name is returned."""
    file.expect(name, shape, (*FLOATING, "I8"))
    scale = f"{name}_scale"
    if file.dtypes[name] != "I8":
        if scale in file.shapes:
            raise FormatError(f"{file.path} has {scale}, but {name} is {file.dtypes[name]}: scales belong to I8 only")
        return None
    file.expect(scale, tuple(size for dim, size in enumerate(shape) if dim not in SCALE_DIMS[name]), ("F32",))
    return scale


def _expect_kept(file: WeightFile, n_features: int, n_outputs: int) -> int:
    """Check where the kept decoder vectors belong; returns their number."""
    if "W_dec" in file.shapes:
        raise FormatError(f"{file.path} has both W_dec and W_dec_kept: expected all decoder vectors or the kept ones")
    file.expect("W_dec_start", (n_features + 1,), ("I64", "I32"))
    (kept,) = file.expect("W_dec_output", (None,), ("U8",))
    start, output = (file.tensor(name).long() for name in _INDICES)
    # compared, not subtracted: differences of hostile offsets overflow
    if int(start[0]) != 0 or int(start[-1]) != kept or bool((start[1:] < start[:-1]).any()):
        raise FormatError(f"W_dec_start in {file.path} must rise from 0 to the {kept} entries of W_dec_output: the "
                          "file is damaged, download or copy it again")
    place = torch.arange(n_features).repeat_interleave(start.diff()) * n_outputs + output
    if bool((output >= n_outputs).any()) or bool((place.diff() <= 0).any()):
        raise FormatError(f"W_dec_output in {file.path} must name output layers from 0 to {n_outputs - 1}, ascending "
                          "within a feature: the file is damaged, or config.json's span is that of another dictionary")
    return kept
