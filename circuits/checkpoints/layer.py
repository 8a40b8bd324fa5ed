"""One transcoder layer on disk, and what the weight formats share: dense layers and checks across layers.

Shapes: F features of the layer, D d_model, S output layers, n chosen features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from circuits.checkpoints.weight_file import WeightFile
from circuits.errors import FormatError


class Layer(Protocol):
    """What a weight format provides for one layer. Tensors come back on the CPU, float32, read when asked for.

    A format may store decoders as it likes (a rectangle, a triangle, or only some (feature, output layer) pairs):
    ``decoder_rows`` fills in the rest.
    """

    @property
    def path(self) -> Path:
        """The file that errors name."""

    @property
    def n_features(self) -> int: ...

    @property
    def d_model(self) -> int: ...

    @property
    def n_outputs(self) -> int:
        """S: the layer writes to its own layer and the next S - 1."""

    @property
    def k(self) -> int | None:
        """TopK's k; None for ReLU and JumpReLU."""

    def encoder(self, start: int, stop: int) -> Tensor:
        """(stop - start, D) encoder vectors of a range of features; may be a view of the mapped file."""

    def encoder_rows(self, features: Tensor) -> Tensor:
        """(n, D)"""

    def vector(self, name: str) -> Tensor | None:
        """``b_enc`` (F,), ``b_dec`` (D,) or ``threshold`` (F,; None where the activation has none)."""

    def decoder_rows(self, features: Tensor) -> Tensor:
        """(n, S, D); zero where nothing is stored."""

    def decoder_outputs(self, features: Tensor) -> Tensor:
        """(n, S) bool: the decoder vectors that are stored; all of them where the format has no other way."""

    def skip(self) -> Tensor | None:
        """(D, D) with y += x @ skip, or None."""

    def labels(self, features: Tensor) -> tuple[Tensor, Tensor] | None:
        """Promoted and active token ids, each (n, k) int32, where the file has them."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder, whatever its format."""

    kind: str
    """``clt`` or ``plt``."""
    layers: list[Layer]
    model_name: str = ""
    masked_positions: int | None = None
    folder: Path | None = None
    """Where the set lies; a Gemma Scope 2 per-layer set is spread over several folders and has one of its own, named
    like its variant, beside them, which need not exist."""


@dataclass(frozen=True)
class DenseLayer:
    """A layer stored as plain floating-point matrices; the fields say under which names and orientations.

    Raises:
        FormatError: a tensor is missing, misshapen, of a foreign dtype or not finite.
    """

    path: Path
    file: WeightFile
    decoder_file: WeightFile
    names: dict[str, str]
    """Names in the files of ``w_enc``, ``w_dec``, ``b_enc``, ``b_dec`` and, where stored, ``threshold``, ``skip``."""
    n_features: int
    d_model: int
    n_outputs: int
    encoder_is_dxf: bool = False
    """The encoder is stored (D, F), not (F, D)."""
    first_output: int = 0
    """Decoders are stored for outputs from this one back; the rectangle's earlier columns are not used."""
    skip_is_out_by_in: bool = False
    """The skip is stored for y += x @ skip.T."""
    k: int | None = None

    @classmethod
    def open(cls, file: WeightFile, names: dict[str, str], *, decoder_file: WeightFile | None = None,
             rectangle: tuple[int, int] | None = None, triangle: int | None = None, encoder_is_dxf: bool = False,
             skip_is_out_by_in: bool = False, k: int | None = None) -> DenseLayer:
        """Check one layer's headers and biases.

        Args:
            rectangle: (first output used, outputs stored) of a decoder (F, outputs, D).
            triangle: outputs of a decoder (F, outputs, D) that starts at the layer itself.
            Without either, the decoder is (F, D).
        """
        decoders = decoder_file or file
        (n_features,) = file.expect(names["b_enc"], (None,))
        (d_model,) = file.expect(names["b_dec"], (None,))
        file.expect(names["w_enc"], (d_model, n_features) if encoder_is_dxf else (n_features, d_model))
        first, stored = rectangle or (0, triangle)
        dec_shape = (n_features, d_model) if stored is None else (n_features, stored, d_model)
        decoders.expect(names["w_dec"], dec_shape)
        for name, shape in (("threshold", (n_features,)), ("skip", (d_model, d_model))):
            if name in names:
                file.expect(names[name], shape)
        for opened in {file, decoders}:
            opened.refuse_unknown(set(names.values()))
        for name in ("b_enc", "b_dec", "threshold"):
            if name in names:
                file.finite_vector(names[name])
        if k is not None and not 0 < k <= n_features:
            raise FormatError(f"{file.path}: k is {k}, expected 1 to {n_features} (features of the layer)")
        return cls(path=file.path, file=file, decoder_file=decoders, names=names, n_features=n_features,
                   d_model=d_model, n_outputs=1 if stored is None else stored - first, encoder_is_dxf=encoder_is_dxf,
                   first_output=first, skip_is_out_by_in=skip_is_out_by_in, k=k)

    def encoder(self, start: int, stop: int) -> Tensor:
        w = self.file.tensor(self.names["w_enc"])
        return (w[:, start:stop].T if self.encoder_is_dxf else w[start:stop]).float()

    def encoder_rows(self, features: Tensor) -> Tensor:
        name = self.names["w_enc"]
        if self.encoder_is_dxf:  # a feature is a column, spread over the whole matrix
            return self.file.tensor(name).index_select(1, features).T.float()
        return self.file.rows(name, features).float()

    def vector(self, name: str) -> Tensor | None:
        return self.file.tensor(self.names[name]).float() if name in self.names else None

    def decoder_rows(self, features: Tensor) -> Tensor:
        rows = self.decoder_file.rows(self.names["w_dec"], features, self.first_output).float()
        return rows.view(len(features), self.n_outputs, self.d_model)

    def decoder_outputs(self, features: Tensor) -> Tensor:
        return torch.ones(len(features), self.n_outputs, dtype=torch.bool)

    def skip(self) -> Tensor | None:
        if "skip" not in self.names:
            return None
        skip = self.file.tensor(self.names["skip"]).float()
        return skip.T if self.skip_is_out_by_in else skip

    def labels(self, features: Tensor) -> tuple[Tensor, Tensor] | None:
        return None


def require_contiguous(found: dict[int, Path], where: Path, hint: str = "") -> list[Path]:
    """The files of layers 0..L-1 in order.

    Raises:
        FormatError: none, or a gap.
    """
    missing = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    if missing or not found:
        named = ", ".join(map(str, missing)) or "all of them"
        raise FormatError(f"{where} has layers {', '.join(map(str, sorted(found)))} but lacks {named}: every layer is "
                          f"needed, download the missing files{hint}")
    return [found[i] for i in range(len(found))]


def require_distinct(layers: list[Layer]) -> None:
    """Refuse a layer's file that is a copy of another's, as a list with a repeated shard makes.

    Raises:
        FormatError: naming both files.
    """
    by_biases: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        digest = hashlib.sha256()
        for name in ("b_enc", "b_dec", "threshold"):
            vector = layer.vector(name)
            digest.update(b"" if vector is None else vector.numpy().tobytes())
        by_biases.setdefault(digest.hexdigest(), []).append(i)
    for group in by_biases.values():
        # untrained dictionaries may share constant biases; then the weights decide (read last: they are far apart)
        first_rows = [layers[i].encoder(0, 1).clone() for i in group] if len(group) > 1 else []
        for (i, a), (j, b) in combinations(zip(group, first_rows, strict=False), 2):
            if bool(a.any()) and torch.equal(a, b):
                raise FormatError(f"{layers[j].path} repeats {layers[i].path}: layer {j} is a copy of layer {i}. "
                                  "Download or copy it again, or delete it if it is one file too many")


def require_equal_width(layers: list[Layer], where: Path) -> None:
    """Refuse layers of different d_model.

    Raises:
        FormatError: naming the two layers.
    """
    for i, layer in enumerate(layers):
        if layer.d_model != layers[0].d_model:
            raise FormatError(f"in {where}, layer {i} has d_model {layer.d_model}, layer 0 has {layers[0].d_model}: "
                              "the folder mixes transcoders of different models")
