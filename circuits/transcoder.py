"""Transcoders: features that read each MLP's input and write in place of its output (METHOD 2).

A cross-layer transcoder (CLT) is the general case, a per-layer one (PLT) the case of span 1; an affine skip is an
optional matrix. Opened, not loaded: every tensor is read from the files when it is asked for.

Shapes: L layers, P positions, F features of a layer, D d_model, S output layers of a feature, n chosen features.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from circuits import bundled, checkpoints
from circuits.checkpoints import gemma_scope2
from circuits.checkpoints.layer import Checkpoint, Layer
from circuits.errors import FormatError, InputError, ModelError
from circuits.hub import snapshot
from circuits.kernels.encode import encode
from circuits.placement import resolve_device

MAX_TILE = 1 << 24
"""Elements of the largest pre-activation or encoder tile (64 MiB of float32)."""
_GEMMA3 = {(18, 640): "gemma-3-270m", (26, 1152): "gemma-3-1b", (34, 2560): "gemma-3-4b", (48, 3840): "gemma-3-12b",
           (62, 5376): "gemma-3-27b"}


@dataclass(frozen=True)
class Encoder:
    """One layer's encoder, float32: a = pre where pre > threshold (JumpReLU), or relu(pre), or its k largest."""

    w_enc: Tensor
    """(F, D); may be a transposed view of the mapped file."""
    b_enc: Tensor
    """(F,)"""
    threshold: Tensor | None
    """(F,); None: ReLU."""
    k: int | None
    """TopK after ReLU."""


class Transcoders:
    """The transcoders of every layer of a model; made by :func:`open_transcoders`.

    Tensors come back float32 on ``device``. Reading raises FormatError where the files hold NaN or infinity, and
    InputError for a layer or feature that does not exist.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, device: str | torch.device = "cpu"):
        self.name = name
        self.kind = checkpoint.kind
        """``clt`` or ``plt``."""
        self.model_name = checkpoint.model_name
        """The model they were trained on; empty when the files do not say."""
        self.masked_positions = checkpoint.masked_positions
        """Positions at the start of a prompt that training left out; None when the files do not say."""
        self.folder = checkpoint.folder
        """Where the set lies, and with it what is known of its features; None for a set that is in no folder. It need
        not exist yet: the layers of a Gemma Scope 2 per-layer set lie in folders beside it."""
        self.device = resolve_device(str(device))
        self._layers = checkpoint.layers
        self.n_layers = len(self._layers)
        self.d_model = self._layers[0].d_model
        self.d_transcoder = tuple(layer.n_features for layer in self._layers)

    def output_layers(self, layer: int) -> range:
        """Layers that a feature of ``layer`` writes to."""
        return range(layer, layer + self._layer(layer).n_outputs)

    def encoder(self, layer: int) -> Encoder:
        """The whole encoder of a layer; :meth:`encode` and :meth:`encoder_rows` need less memory."""
        stored = self._layer(layer)
        w_enc = self._read(stored, "the encoder", stored.encoder(0, stored.n_features))
        return Encoder(w_enc, self._vector(stored, "b_enc"), self._threshold(stored), stored.k)

    @torch.no_grad()
    def encode(self, layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Active features of a layer.

        Args:
            x: (P, D) outputs of the layer's pre_feedforward_layernorm.

        Returns:
            position (n,) int64, feature (n,) int64, value (n,) float32; sorted by position, then feature. No tensor
            of more than MAX_TILE elements is made on the way, however many features there are (but for one
            position's row, and one feature's column).
        """
        stored = self._layer(layer)
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise InputError(f"x has shape {list(x.shape)}, expected (positions, {self.d_model})")
        x = x.to(self.device, torch.float32)
        b_enc, threshold = self._vector(stored, "b_enc"), self._threshold(stored)
        if stored.k is not None:
            return self._encode_topk(stored, x, b_enc, stored.k)
        tile = max(1, min(stored.n_features, MAX_TILE // self.d_model))
        found = []
        for start in range(0, stored.n_features, tile):
            part = slice(start, min(start + tile, stored.n_features))
            w_enc = stored.encoder(part.start, part.stop).to(self.device)
            position, feature, value = encode(x, w_enc, b_enc[part], None if threshold is None else threshold[part])
            found.append((position, feature + start, value))
        position, feature, value = (torch.cat(parts) for parts in zip(*found, strict=True))
        self._check_finite(stored, value, x)
        order = torch.argsort(position, stable=True)
        return position[order], feature[order], value[order]

    def _encode_topk(self, stored: Layer, x: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """TopK ranks all features of a position, so the tiles are of positions."""
        rows = max(1, MAX_TILE // stored.n_features)
        w_enc = stored.encoder(0, stored.n_features).to(self.device)
        found = []
        for start in range(0, max(len(x), 1), rows):
            pre = torch.addmm(b_enc, x[start:start + rows], w_enc.T)
            self._check_finite(stored, pre, x)
            pre.relu_()
            value, feature = pre.topk(k, dim=1)
            feature, order = feature.sort(dim=1)
            value = value.gather(1, order)
            row, column = (value > 0).nonzero(as_tuple=True)
            found.append((row + start, feature[row, column], value[row, column]))
        position, feature, value = (torch.cat(parts) for parts in zip(*found, strict=True))
        return position, feature, value

    def _check_finite(self, stored: Layer, pre: Tensor, x: Tensor) -> None:
        # one sum is cheaper than looking at every element, and is only finite where all are
        if not torch.isfinite(pre.sum()) and not torch.isfinite(pre).all():
            if not torch.isfinite(x).all():
                raise InputError(f"x has NaN or infinite values, so {stored.path.name} cannot be encoded: check the "
                                 "model's forward pass and dtype")
            raise FormatError(f"the encoder in {stored.path} gives NaN or infinite pre-activations: the file is "
                              "damaged, download or copy it again")

    def encoder_rows(self, layer: int, features: Tensor) -> Tensor:
        """(n, D) encoder vectors of the features (n,)."""
        stored = self._layer(layer)
        return self._read(stored, "the encoder", stored.encoder_rows(self._indices(layer, features)))

    def encoder_bias(self, layer: int, features: Tensor) -> Tensor:
        """(n,) encoder biases of the features (n,)."""
        return self._vector(self._layer(layer), "b_enc")[self._indices(layer, features).to(self.device)]

    def decoder_rows(self, layer: int, features: Tensor) -> Tensor:
        """(n, S, D) decoder vectors of the features (n,) into each of :meth:`output_layers`; reads only those."""
        stored = self._layer(layer)
        return self._read(stored, "a decoder row", stored.decoder_rows(self._indices(layer, features)))

    def decoder_outputs(self, layer: int, features: Tensor) -> Tensor:
        """(n, S) bool: into which of :meth:`output_layers` the features (n,) have a decoder vector; where not, it is
        zero. All true for a format that stores every vector."""
        return self._layer(layer).decoder_outputs(self._indices(layer, features)).to(self.device)

    def b_dec(self, layer: int) -> Tensor:
        """(D,) decoder bias: what is written at ``layer`` whatever is active."""
        return self._vector(self._layer(layer), "b_dec")

    def threshold(self, layer: int) -> Tensor | None:
        """(F,) JumpReLU thresholds of a layer; None for ReLU and TopK."""
        return self._threshold(self._layer(layer))

    def top_k(self, layer: int) -> int | None:
        """Active features a position keeps, where the layer is TopK."""
        return self._layer(layer).k

    def skip(self, layer: int) -> Tensor | None:
        """(D, D) affine skip, y += x @ skip at ``layer``; None without one."""
        stored = self._layer(layer)
        skip = stored.skip()
        return None if skip is None else self._read(stored, "the skip", skip)

    def label_tokens(self, layer: int, features: Tensor) -> tuple[Tensor, Tensor] | None:
        """Token ids the features (n,) promote, and those they were most active on, each (n, k) int32; None where the
        files do not hold them."""
        return self._layer(layer).labels(self._indices(layer, features))

    def check_model(self, n_layers: int, d_model: int, model_name: str) -> None:
        """Whether these transcoders fit a model.

        Raises:
            ModelError: other layer count or width.
        """
        for what, own, other in (("layers", self.n_layers, n_layers), ("dimensions", self.d_model, d_model)):
            if own != other:
                trained_for = f" (it was trained on {self.model_name})" if self.model_name else ""
                raise ModelError(f"transcoder has {own} {what}, model has {other}: open the one trained for "
                                 f"{_GEMMA3.get((n_layers, d_model), model_name)}, not {self.name}{trained_for}")

    def _layer(self, layer: int) -> Layer:
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer is {layer}, expected 0 to {self.n_layers - 1}")
        return self._layers[layer]

    def _indices(self, layer: int, features: Tensor) -> Tensor:
        """Features as (n,) int64 on the CPU, where the files are."""
        features = torch.as_tensor(features, dtype=torch.int64, device="cpu")
        limit = self._layer(layer).n_features
        if features.ndim != 1 or bool(((features < 0) | (features >= limit)).any()):
            raise InputError(f"features of layer {layer} must be a list of numbers from 0 to {limit - 1}")
        return features

    def _vector(self, stored: Layer, name: str) -> Tensor:
        vector = stored.vector(name)
        assert vector is not None  # every format checks its biases on opening
        return vector.to(self.device)

    def _threshold(self, stored: Layer) -> Tensor | None:
        threshold = stored.vector("threshold")
        return None if threshold is None else threshold.to(self.device)

    def _read(self, stored: Layer, what: str, tensor: Tensor) -> Tensor:
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise FormatError(f"{what} of {stored.path} has NaN or infinite values: the file is damaged, download or "
                              "copy it again")
        return tensor.to(self.device)


def open_transcoders(source: str | Path = "bundled", device: str | torch.device = "cpu",
                     model: str = "") -> Transcoders:
    """Open the transcoders of every layer of a model, lazily.

    Args:
        source: ``bundled`` or another name in :data:`circuits.bundled.TRANSCODERS`; a local folder of any format in
            :mod:`circuits.checkpoints`; or a hub path,
            ``org/repo/path``. A Gemma Scope 2 per-layer set is named by its folder and variant, as in
            ``google/gemma-scope-2-270m-pt/transcoder_all/width_16k_l0_small_affine``, locally too.
        device: where the tensors asked for go.
        model: name of the model whose set ``bundled`` means; Gemma 3 270M by default.

    Raises:
        InputError: nothing there, or several sets and none named.
        FormatError: damaged, incomplete or foreign files; what cannot stand in for every MLP.
        ModelError: no access to the repository, or the hub cannot be reached.
    """
    text = str(source)
    if not text.strip():
        raise InputError("transcoders is empty: give bundled, a folder, or a hub path such as "
                         "google/gemma-scope-2-270m-pt/transcoder_all/width_16k_l0_small_affine")
    if text == "bundled":
        text = bundled.set_for(model)
    if text in bundled.TRANSCODERS:
        folder = bundled.ASSETS / bundled.TRANSCODERS[text]
        if not (folder / "config.json").is_file():
            raise InputError(f"this installation has no bundled transcoder ({folder} is absent): reinstall "
                             "gemma-circuits, or give a folder or a hub path")
        return Transcoders(text, checkpoints.native.open_folder(folder), device)
    path = Path(text).expanduser()
    if path.is_file():
        raise InputError(f"{path} is a file: give the folder that holds every layer's file")
    checkpoint = checkpoints.read(path)
    if checkpoint is None:
        checkpoint = _from_hub(text)
    return Transcoders(text, checkpoint, device)


def _from_hub(text: str) -> Checkpoint:
    if text.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", text):
        raise InputError(f"there is no transcoder at {text!r}: expected bundled, a folder, or a hub path "
                         "org/repo/folder")
    organisation, name, *rest = text.rstrip("/").split("/")
    repo, path = f"{organisation}/{name}", "/".join(rest)
    if "gemma-scope-2" in name:
        gemma_scope2.refuse_family(path)
    if rest and re.match(r"layer_\d+_width_", rest[-1]):
        raise InputError(gemma_scope2.one_layer_message(text.rstrip("/")))
    root = snapshot(repo, checkpoints.hub_patterns(path), ignore=["*examples.safetensors"])
    checkpoint = checkpoints.read(root / path) if rest or (root.is_dir() and any(root.iterdir())) else None
    if checkpoint is None:
        raise InputError(f"{repo} has no transcoder at {path or 'its root'}: look up the folder on its page, and name "
                         "a per-layer set with its variant, such as transcoder_all/width_16k_l0_small_affine")
    return checkpoint
