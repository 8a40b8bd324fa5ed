"""Random per-layer transcoders at the scales of a real model, in circuit-tracer's layout.

Shapes: P positions, F features of a layer, D d_model.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from circuits.gemma3 import FrozenPass, Gemma3

WIDTH = 16384
ACTIVE = 10
"""Mean active features per layer and position; real sets of this width have 10 to 20 (FORMATS: l0 small)."""
SEED = 0


def write(work: Path, model: Gemma3, tokens: list[int], counted: int) -> Path:
    """The set for ``tokens``, made where ``work`` lacks it; ``counted``: see :func:`threshold_between`."""
    folder = work / f"random-plt-{model.n_layers}x{WIDTH}-{ACTIVE}-seed{SEED}-{len(tokens)}"
    if folder.is_dir():
        return folder
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    frozen = model.freeze(tokens)
    for layer in range(model.n_layers):
        save_file(_layer(frozen, layer, counted), scratch / f"layer_{layer}.safetensors")
    (scratch / "config.yaml").write_text(
        "model_name: google/gemma-3-270m\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
        "feature_output_hook: hook_mlp_out\n", encoding="utf-8")
    scratch.rename(folder)
    return folder


def _layer(frozen: FrozenPass, layer: int, counted: int) -> dict[str, Tensor]:
    """Random directions, at scales that make sense for the layer: about as large together as the MLP's output."""
    generator = torch.Generator().manual_seed(1000 * SEED + layer)
    x, y = frozen.mlp_in[layer, 1:], frozen.mlp_out[layer, 1:]
    d_model = x.shape[1]
    in_scale, out_scale = float(x.square().mean().sqrt()), float(y.square().mean().sqrt())

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    w_enc, b_enc = randn(WIDTH, d_model) / d_model ** 0.5, 0.1 * in_scale * randn(WIDTH)
    threshold = threshold_between(x @ w_enc.T + b_enc, ACTIVE, counted - 1)
    return {"W_enc": w_enc, "b_enc": b_enc, "W_dec": randn(WIDTH, d_model) * (out_scale / threshold / ACTIVE ** 0.5),
            "b_dec": 0.1 * out_scale * randn(d_model), "activation_function.threshold": torch.full((WIDTH,), threshold)}


def threshold_between(pre: Tensor, active: float, counted: int | None = None) -> float:
    """A threshold that about ``active`` features per position pass, in the widest gap between values near there:
    rounding, which differs between programs, must not decide whether a feature is active.

    Args:
        pre: (P, F) pre-activations.
        active: mean over positions, may be a fraction.
        counted: positions that are counted, from the first; the gap is one of all of them.
    """
    values = pre[:counted]
    wanted = max(1, round(active * len(values)))
    slack = max(1, wanted // 50)
    near = values.flatten().topk(min(wanted + slack, values.numel())).values[max(wanted - slack - 1, 0):]
    inside = pre[(pre <= near[0]) & (pre >= near[-1])].sort().values
    if len(inside) < 2:
        raise ValueError(f"{values.numel()} pre-activations are too few for {active} active features per position")
    widest = int(inside.diff().argmax())
    return float((inside[widest] + inside[widest + 1]) / 2)
