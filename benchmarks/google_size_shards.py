"""A random CLT in the shapes and layout of Google's: written shard by shard, a few megabytes in memory at a time.

Shapes: L layers, F features of a layer, D d_model, P positions. A shard is ``params_layer_{i}.safetensors`` with w_enc
(D, F), w_dec (F, L, D) indexed by absolute layer, zero before the feature's own, b_enc, b_dec, threshold and
affine_skip_connection, all float32 (FORMATS, Gemma Scope 2).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from random_transcoders import threshold_between
from torch import Tensor

from circuits.checkpoints.gemma_scope2 import HOOK_IN, HOOK_OUT

DECAY = 0.7
"""A decoder vector's norm over that of the vector one output layer nearer."""
SHARE = 0.5
"""The features' joint output over the MLP's output, in root mean square: random directions explain nothing, so more
would only make the errors larger."""
SKIP = 0.05
"""The skip's output over the MLP's output."""
BLOCK = 512
"""Features whose decoder vectors are in memory at a time."""


@dataclass(frozen=True)
class Shape:
    """What decides every number in the files but for the model and the prompt that scales are taken from."""

    n_layers: int
    features: int
    d_model: int
    active: float
    """Features per position that fire over all layers, on the prompt."""
    seed: int

    @property
    def shard_bytes(self) -> int:
        floats = (self.features * self.d_model * (1 + self.n_layers) + 2 * self.features + self.d_model
                  + self.d_model ** 2)
        return 4 * floats

    def settings(self, model_name: str, source: list[int]) -> dict[str, object]:
        """What another writing must share to go on with the files of this one."""
        return {**asdict(self), "model": model_name, "prompt": source, "decay": DECAY, "share": SHARE, "skip": SKIP}


@dataclass(frozen=True)
class Scales:
    """Of one prompt: root mean squares per layer (L,) of the MLP's input and output, and the inputs (L, P, D)."""

    mlp_in: Tensor
    in_scale: Tensor
    out_scale: Tensor


def scales(mlp_in: Tensor, mlp_out: Tensor) -> Scales:
    """From what a forward pass recorded, (L, P, D) each, masked positions left out."""
    return Scales(mlp_in.clone(), *(x.square().mean((1, 2)).sqrt() for x in (mlp_in, mlp_out)))


def write_config(folder: Path, shape: Shape, model_name: str) -> None:
    """``config.json`` as the published sets have it."""
    points = {key: [f"model.layers.{i}.{hook}" for i in range(shape.n_layers)]
              for key, hook in (("hf_hook_point_in", HOOK_IN), ("hf_hook_point_out", HOOK_OUT))}
    (folder / "config.json").write_text(json.dumps({
        **points, "width": shape.n_layers * shape.features, "model_name": model_name, "architecture": "jump_relu",
        "l0": shape.active, "affine_connection": True, "type": "clt"}, indent=2) + "\n", encoding="utf-8")


def write_shard(path: Path, layer: int, shape: Shape, scale: Scales) -> None:
    """Write one layer's file beside ``path``, then rename: what bears the name is whole."""
    generator = torch.Generator().manual_seed(1000 * shape.seed + layer)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    d_model, features = shape.d_model, shape.features
    w_enc = randn(d_model, features) / d_model ** 0.5
    b_enc = 0.1 * scale.in_scale[layer] * randn(features)
    threshold = threshold_between(scale.mlp_in[layer] @ w_enc + b_enc, shape.active / shape.n_layers)
    small = {"affine_skip_connection": (SKIP * scale.out_scale[layer] / scale.in_scale[layer] / d_model ** 0.5
                                        * randn(d_model, d_model)),
             "b_dec": 0.1 * scale.out_scale[layer] * randn(d_model), "b_enc": b_enc,
             "threshold": torch.full((features,), threshold), "w_enc": w_enc}
    sizes = _decoder_sizes(layer, shape, scale, threshold)

    def decoders() -> Iterator[np.ndarray]:
        for first in range(0, features, BLOCK):
            block = torch.zeros(min(BLOCK, features - first), shape.n_layers, d_model)
            block[:, layer:] = randn(len(block), shape.n_layers - layer, d_model) * sizes[:, None]
            yield block.numpy()

    scratch = path.with_name(f".{path.name}.partial")
    shapes = {name: list(tensor.shape) for name, tensor in small.items()}
    with scratch.open("wb") as file:
        file.write(_header(shapes | {"w_dec": [features, shape.n_layers, d_model]}))
        for tensor in small.values():
            file.write(np.ascontiguousarray(tensor.numpy()).data)
        for block in decoders():
            file.write(block.data)
    scratch.replace(path)


def _decoder_sizes(layer: int, shape: Shape, scale: Scales, value: float) -> Tensor:
    """(L - layer,) standard deviation of decoder entries into each output layer, for features that fire at about
    ``value``: all layers together then write SHARE of the MLP's output."""
    outputs = torch.arange(layer, shape.n_layers)
    writers = torch.tensor([sum(DECAY ** (2 * distance) for distance in range(int(output) + 1)) for output in outputs])
    per_layer = shape.active / shape.n_layers
    return (SHARE * scale.out_scale[layer:] * DECAY ** (outputs - layer) / value
            / (per_layer * writers) ** 0.5)


def _header(shapes: dict[str, list[int]]) -> bytes:
    """A safetensors header for float32 tensors in this order; padded so that the data starts at a multiple of 8."""
    entries, start = {}, 0
    for name, shape in shapes.items():
        end = start + 4 * int(np.prod(shape))
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
