"""This project's own transcoder folder: ``config.json`` and one ``layer_{i}.safetensors`` per layer.

Shapes: F features, D d_model, S output layers (the layer itself and the next S - 1), k tokens of a label.
Tensors of a layer: W_enc (F, D), W_dec (F, S, D), optional skip (D, D; y += x @ skip); b_enc (F,), b_dec (D,) and
optional threshold (F,) in float32; optional promoted_tokens and active_tokens (F, k) int32. The matrices are float32,
bfloat16, or int8 with float32 scales beside them: W_enc_scale (F,), W_dec_scale (F, S), skip_scale (D,) per output
column. An int8 weight is worth its value times its scale. A layer without thresholds is ReLU, or TopK where
config.json has k. Version 2 (version 1 is read as well) may store only some of the decoder vectors in place of W_dec:
see :mod:`circuits.checkpoints.native_layer`. Other files in the folder are left alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.checkpoints.layer import Checkpoint, Layer, require_distinct
from circuits.checkpoints.native_layer import LABELS, SCALE_DIMS, NativeLayer
from circuits.checkpoints.weight_file import read_json, save
from circuits.errors import FormatError, InputError
from circuits.graphs.store import replacing

FORMAT = "gemma-circuits-transcoder"
VERSION = 2
STORAGE = {"int8": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def matches(folder: Path) -> bool:
    """Whether ``folder`` is of this format: its ``config.json`` says so."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("format") == FORMAT


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's settings, checked; ``training`` and ``quality`` are free-form.

    Raises:
        FormatError: a newer version, or a field that is missing or of another type.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config.get("format") != FORMAT:
        raise FormatError(f"{path} says format {config.get('format')}, expected {FORMAT}")
    version = config.get("version")
    if not isinstance(version, int) or version < 1:
        raise FormatError(f"{path} says version {version!r}, expected 1 to {VERSION}")
    if version > VERSION:
        raise FormatError(f"{path} is of format version {version}, this gemma-circuits reads up to {VERSION}: upgrade "
                          "it (pip install -U gemma-circuits)")
    for name in ("n_layers", "d_model", "d_transcoder", "span"):
        if not _is_count(config.get(name)) or config[name] < 1:
            raise FormatError(f"{path} says {name} {config.get(name)!r}, expected a whole number of at least 1")
    if config.get("kind") not in ("clt", "plt"):
        raise FormatError(f"{path} says kind {config.get('kind')!r}, expected clt or plt")
    if config["kind"] == "plt" and config["span"] != 1:
        raise FormatError(f"{path} says kind plt with span {config['span']}: a per-layer transcoder has span 1")
    masked = config.get("masked_prefix")
    if masked is not None and not _is_count(masked):
        raise FormatError(f"{path} says masked_prefix {masked!r}, expected a number of positions or null")
    k = config.get("k")
    if k is not None and not (_is_count(k) and 1 <= k <= config["d_transcoder"]):
        raise FormatError(f"{path} says k {k!r}, expected 1 to {config['d_transcoder']} active features or null")
    return config


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def hub_patterns(path: str) -> list[str]:
    """What to download for ``path`` inside a repository."""
    prefix = f"{path}/" if path else ""
    layers = (f"layer_{digits}.safetensors" for digits in ("[0-9]", "[0-9][0-9]"))
    # what is known of the features lies beside the weights
    return [f"{prefix}{name}" for name in ("config.json", *layers, "features.bin", "labels.json")]


def open_folder(folder: Path) -> Checkpoint:
    """Open a folder written by :func:`write_config` and :func:`write_layer`.

    Raises:
        FormatError: settings of a newer version, missing, extra, damaged or contradicting files.
    """
    config = read_config(folder)
    n_layers, span = config["n_layers"], config["span"]
    for entry in folder.glob("layer_*.safetensors"):
        match = re.fullmatch(r"layer_(0|[1-9]\d*)\.safetensors", entry.name)
        if match is None or int(match[1]) >= n_layers:
            raise FormatError(f"{entry} is none of the {n_layers} layers that config.json names: delete it, or correct "
                              "n_layers")
    missing = [i for i in range(n_layers) if not (folder / f"layer_{i}.safetensors").is_file()]
    if missing:
        raise FormatError(f"{folder} lacks layer_{missing[0]}.safetensors ({n_layers - len(missing)} of {n_layers} "
                          "layers are there): download or copy it again")
    layers: list[Layer] = [
        NativeLayer.open(folder / f"layer_{i}.safetensors", config["d_transcoder"], config["d_model"],
                         min(span, n_layers - i), config.get("k")) for i in range(n_layers)]
    require_distinct(layers)
    return Checkpoint(config["kind"], layers, str(config.get("model_name") or ""), config.get("masked_prefix"),
                      folder)


def write_config(folder: Path, *, kind: str, n_layers: int, d_model: int, d_transcoder: int, span: int,
                 model_name: str = "", masked_prefix: int | None = None, k: int | None = None,
                 training: dict[str, Any] | None = None, quality: dict[str, Any] | None = None) -> None:
    """Write ``config.json``.

    Args:
        span: output layers of a feature, its own included; layer i writes to min(span, n_layers - i) layers.
        masked_prefix: positions at the start of a prompt that training left out.
        k: active features of a TopK transcoder; None for ReLU and JumpReLU.
        training, quality: anything JSON can hold.

    Raises:
        InputError: the folder cannot be written.
    """
    text = config_text(kind=kind, n_layers=n_layers, d_model=d_model, d_transcoder=d_transcoder, span=span,
                       model_name=model_name, masked_prefix=masked_prefix, k=k, training=training, quality=quality)
    _make(Path(folder))
    with replacing(Path(folder) / "config.json") as scratch:
        scratch.write_text(text, encoding="utf-8")


def config_text(*, training: dict[str, Any] | None = None, quality: dict[str, Any] | None = None,
                **settings: Any) -> str:
    """What :func:`write_config` writes, from the same arguments."""
    config = {"format": FORMAT, "version": VERSION, **settings, "training": training or {}, "quality": quality or {}}
    return json.dumps(config, indent=2) + "\n"


def write_layer(folder: Path, layer: int, tensors: dict[str, Tensor], storage: str = "int8") -> None:
    """Write ``layer_{layer}.safetensors``.

    Args:
        tensors: W_enc (F, D), W_dec (F, S, D), b_enc (F,), b_dec (D,), optionally threshold (F,), skip (D, D),
            promoted_tokens and active_tokens (F, k). With W_dec_keep (F, S) bool, only those vectors of W_dec are
            written and the others read as zero.
        storage: ``int8``, ``float32`` or ``bfloat16``; of W_enc, W_dec and skip.

    Raises:
        InputError: unknown storage or tensor name, NaN or infinity, the folder cannot be written.
        FormatError: tensors of contradicting shapes.
    """
    _check_tensors(layer, tensors, storage)
    n_features, n_outputs, d_model = tensors["W_dec"].shape
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if name in LABELS:
            stored[name] = tensor.int()
        elif name == "W_dec" and "W_dec_keep" in tensors:
            stored |= _kept(tensor.float(), tensors["W_dec_keep"].cpu(), storage)
        elif name in SCALE_DIMS:
            stored |= _stored(name, tensor.float(), storage)
        elif name != "W_dec_keep":
            stored[name] = tensor.float()
    _make(Path(folder))
    save(Path(folder) / f"layer_{layer}.safetensors", stored,
         check=lambda path: NativeLayer.open(path, n_features, d_model, n_outputs))


def _check_tensors(layer: int, tensors: dict[str, Tensor], storage: str) -> None:
    if storage not in STORAGE:
        raise InputError(f"storage is {storage!r}: expected one of {', '.join(STORAGE)}")
    known = {"W_enc", "W_dec", "W_dec_keep", "skip", *LABELS, "b_enc", "b_dec", "threshold"}
    if unknown := set(tensors) - known:
        raise InputError(f"layer {layer} has tensors {', '.join(sorted(unknown))}: expected some of "
                         f"{', '.join(sorted(known))}")
    if missing := {"W_enc", "W_dec", "b_enc", "b_dec"} - set(tensors):
        raise InputError(f"layer {layer} lacks {', '.join(sorted(missing))}")
    shape = tensors["W_dec"].shape
    if len(shape) != 3 or shape[1] > 256:
        raise InputError(f"W_dec of layer {layer} has shape {list(shape)}: expected (F, S, D) with S at most 256")
    for name, tensor in tensors.items():
        if name not in (*LABELS, "W_dec_keep") and not torch.isfinite(tensor).all():
            raise InputError(f"{name} of layer {layer} has NaN or infinite values: training diverged, write nothing")
    keep = tensors.get("W_dec_keep")
    if keep is not None and (keep.dtype != torch.bool or keep.shape != shape[:2]):
        raise InputError(f"W_dec_keep of layer {layer} is {keep.dtype} of shape {list(keep.shape)}: expected "
                         f"torch.bool of shape {list(shape[:2])}")


def _stored(name: str, tensor: Tensor, storage: str) -> dict[str, Tensor]:
    """The matrix in its storage dtype, with its scale for int8."""
    dtype = STORAGE[storage]
    if dtype is not None:
        return {name: tensor.to(dtype)}
    scale = tensor.abs().amax(SCALE_DIMS[name], keepdim=True) / 127.0
    quantised = (tensor / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(-127, 127).to(torch.int8)
    return {name: quantised, f"{name}_scale": scale.squeeze(SCALE_DIMS[name])}


def _kept(w_dec: Tensor, keep: Tensor, storage: str) -> dict[str, Tensor]:
    """The vectors of (F, S, D) where ``keep`` (F, S), and where they belong."""
    start = torch.zeros(len(keep) + 1, dtype=torch.int64)
    start[1:] = keep.sum(1).cumsum(0)
    output = keep.nonzero()[:, 1].to(torch.uint8)
    return {"W_dec_start": start, "W_dec_output": output, **_stored("W_dec_kept", w_dec[keep], storage)}


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}): choose a folder you may write to"
                         ) from error
