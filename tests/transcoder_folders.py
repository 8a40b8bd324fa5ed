"""One small random dictionary, written in each weight format's layout (written from FORMATS, not with the readers)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from circuits.checkpoints import native

VARIANT = "width_16k_l0_small"


@dataclass
class Dictionary:
    """Lists by layer. W_dec[i] is (F, S_i, D), written to layers i .. i + S_i - 1; skip is y += x @ skip."""

    w_enc: list[Tensor]
    b_enc: list[Tensor]
    threshold: list[Tensor]
    w_dec: list[Tensor]
    b_dec: list[Tensor]
    skip: list[Tensor] | None

    @property
    def n_layers(self) -> int:
        return len(self.w_enc)

    @property
    def d_model(self) -> int:
        return self.w_enc[0].shape[1]

    def encode(self, layer: int, x: Tensor) -> Tensor:
        """(P, F) dense JumpReLU activations."""
        pre = x @ self.w_enc[layer].T + self.b_enc[layer]
        return torch.where(pre > self.threshold[layer], pre, 0.0)


def dictionary(*, span: int, skip: bool = False, n_layers: int = 4, features: int = 24, d_model: int = 8,
               seed: int = 0) -> Dictionary:
    """Random and asymmetric: no two entries are equal, so a transposition or a shifted layer shows."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Dictionary(
        w_enc=[randn(features, d_model) for _ in range(n_layers)],
        b_enc=[randn(features) for _ in range(n_layers)],
        threshold=[randn(features).abs() for _ in range(n_layers)],
        w_dec=[randn(features, min(span, n_layers - i), d_model) for i in range(n_layers)],
        b_dec=[randn(d_model) for _ in range(n_layers)],
        skip=[randn(d_model, d_model) for _ in range(n_layers)] if skip else None)


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def gemma_scope_tensors(d: Dictionary, layer: int) -> dict[str, Tensor]:
    """Everything of a Gemma Scope 2 layer but its decoder."""
    tensors = {"w_enc": d.w_enc[layer].T, "b_enc": d.b_enc[layer], "b_dec": d.b_dec[layer],
               "threshold": d.threshold[layer]}
    return tensors | ({"affine_skip_connection": d.skip[layer]} if d.skip else {})


def gemma_scope_config(d: Dictionary, layer: int | None, **changes: Any) -> dict[str, Any]:
    """``config.json`` of a layer; of a CLT, whose hook points are lists, without ``layer``."""
    points: dict[str, Any] = {}
    for key, norm in (("hf_hook_point_in", "pre"), ("hf_hook_point_out", "post")):
        names = [f"model.layers.{i}.{norm}_feedforward_layernorm.output" for i in range(d.n_layers)]
        points[key] = names if layer is None else names[layer]
    return {**points, "width": len(d.b_enc[0]), "model_name": "google/gemma-3-270m", "architecture": "jump_relu",
            "l0": 15, "affine_connection": d.skip is not None, "type": "transcoder", **changes}


def gemma_scope_plt(folder: Path, d: Dictionary, *, config: bool = True, family: str = "transcoder_all",
                    variant: str = VARIANT) -> str:
    """Write the layer folders under ``folder/family``; returns the source that names them."""
    name = variant + ("_affine" if d.skip else "")
    for i in range(d.n_layers):
        layer = folder / family / f"layer_{i}_{name}"
        save(layer / "params.safetensors", gemma_scope_tensors(d, i) | {"w_dec": d.w_dec[i][:, 0]})
        (layer / "examples.safetensors").write_bytes(b"large")
        if config:
            (layer / "config.json").write_text(json.dumps(gemma_scope_config(d, i)))
    return str(folder / family / name)


def gemma_scope_clt(folder: Path, d: Dictionary, *, config: bool = True) -> str:
    """Decoders as a full rectangle; the columns before a layer's own hold values that nobody may read."""
    target = folder / "clt" / ("width_262k_l0_medium" + ("_affine" if d.skip else ""))
    for i in range(d.n_layers):
        rectangle = torch.full((len(d.b_enc[i]), d.n_layers, d.d_model), 1e9)
        rectangle[:, i:] = d.w_dec[i]
        save(target / f"params_layer_{i}.safetensors", gemma_scope_tensors(d, i) | {"w_dec": rectangle})
    (target / "examples.safetensors").write_bytes(b"large")
    if config:
        (target / "config.json").write_text(json.dumps(gemma_scope_config(d, None, type="clt", width=262144)))
    return str(target)


def tracer_config(folder: Path, kind: str, **changes: Any) -> None:
    """circuit-tracer's ``config.yaml``; a change to None leaves the key out."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_name": "google/gemma-3-270m", "model_kind": kind, "feature_input_hook": "mlp.hook_in",
              "feature_output_hook": "hook_mlp_out", **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))


def tracer_plt(folder: Path, d: Dictionary, *, threshold: bool = True, **changes: Any) -> str:
    for i in range(d.n_layers):
        tensors = {"W_enc": d.w_enc[i], "W_dec": d.w_dec[i][:, 0], "b_enc": d.b_enc[i], "b_dec": d.b_dec[i]}
        tensors |= {"activation_function.threshold": d.threshold[i]} if threshold else {}
        tensors |= {"W_skip": d.skip[i].T} if d.skip else {}
        save(folder / f"layer_{i}.safetensors", tensors)
    tracer_config(folder, "transcoder_set", **changes)
    return str(folder)


def tracer_clt(folder: Path, d: Dictionary, *, threshold: bool = True, **changes: Any) -> str:
    for i in range(d.n_layers):
        tensors = {f"W_enc_{i}": d.w_enc[i], f"b_enc_{i}": d.b_enc[i], f"b_dec_{i}": d.b_dec[i]}
        tensors |= {f"threshold_{i}": d.threshold[i]} if threshold else {}
        save(folder / f"W_enc_{i}.safetensors", tensors)
        save(folder / f"W_dec_{i}.safetensors", {f"W_dec_{i}": d.w_dec[i]})
    tracer_config(folder, "cross_layer_transcoder", **changes)
    return str(folder)


def native_folder(folder: Path, d: Dictionary, *, storage: str = "float32", labels: bool = False,
                  keep: list[Tensor] | None = None, **changes: Any) -> str:
    """``keep``: (F, S_i) of each layer, the decoder vectors that are stored."""
    span = d.w_dec[0].shape[1]
    settings = {"kind": "clt" if span > 1 else "plt", "n_layers": d.n_layers, "d_model": d.d_model,
                "d_transcoder": len(d.b_enc[0]), "span": span, "model_name": "gemma-3-270m", "masked_prefix": 1}
    native.write_config(folder, **{**settings, **changes})
    for i in range(d.n_layers):
        tensors = {"W_enc": d.w_enc[i], "W_dec": d.w_dec[i], "b_enc": d.b_enc[i], "b_dec": d.b_dec[i],
                   "threshold": d.threshold[i]}
        tensors |= {"skip": d.skip[i]} if d.skip else {}
        tensors |= {"W_dec_keep": keep[i]} if keep else {}
        if labels:
            ids = torch.arange(len(d.b_enc[i]), dtype=torch.int32)[:, None]
            tensors |= {"promoted_tokens": 1000 * i + 10 * ids + torch.arange(3),
                        "active_tokens": 5000 + 1000 * i + 10 * ids + torch.arange(3)}
        native.write_layer(folder, i, tensors, storage)
    return str(folder)
