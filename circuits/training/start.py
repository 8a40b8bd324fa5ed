"""Start a training run from a trained transcoder set, with more features where the new one is larger.

Shapes: L layers, S span, F features of a layer, T tokens of a sample, D d_model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.training.clt import TrainableCLT
from circuits.training.resample import plant
from circuits.training.trainer import scaled
from circuits.transcoder import Transcoders


@torch.no_grad()
def start_from(clt: TrainableCLT, transcoders: Transcoders, x: Tensor, y: Tensor) -> None:
    """Set ``clt`` to a trained set; features it has beyond that set's are made from tokens the set explains badly.

    Args:
        clt: a new run, its scales set (:meth:`TrainableCLT.start_linear`).
        x, y: (T, L, D) unscaled activations of a sample.

    Raises:
        InputError: other layers, width or span, more features, or several processes.
    """
    if clt.ranks.size > 1:
        raise InputError("a run over several processes cannot start from a trained set: start it with one process, "
                         "stop it after its first checkpoint, and go on with several")
    spans = [len(transcoders.output_layers(layer)) for layer in range(transcoders.n_layers)]
    if (transcoders.n_layers, transcoders.d_model) != (clt.n_layers, clt.d_model) or any(
            own < other for own, other in zip(clt.spans, spans, strict=True)):
        raise InputError(f"{transcoders.name} has {transcoders.n_layers} layers of width {transcoders.d_model} and "
                         f"span {max(spans)}: expected {clt.n_layers} of {clt.d_model} and span at most "
                         f"{clt.settings.span}")
    if max(transcoders.d_transcoder) > clt.features:
        raise InputError(f"{transcoders.name} has {max(transcoders.d_transcoder)} features per layer, the new one "
                         f"{clt.features}: expected at least as many")
    for layer in range(clt.n_layers):
        _copy_layer(clt, transcoders, layer)
    xs, ys = scaled(x.to(clt.device), clt.x_scale), scaled(y.to(clt.device), clt.y_scale)
    error = _reconstruction(clt, transcoders, xs) - ys
    generator = torch.Generator().manual_seed(clt.settings.seed)
    for layer in range(clt.n_layers):
        new = torch.arange(transcoders.d_transcoder[layer], clt.features, device=clt.device)
        plant(clt, layer, new, xs[layer], error, generator)


def _copy_layer(clt: TrainableCLT, transcoders: Transcoders, layer: int) -> None:
    encoder = transcoders.encoder(layer)
    n = len(encoder.w_enc)
    clt.w_enc[layer][:n] = encoder.w_enc.to(clt.device) * clt.x_scale[layer]
    clt.b_enc[layer][:n] = encoder.b_enc.to(clt.device)
    threshold = torch.zeros(n) if encoder.threshold is None else encoder.threshold
    clt.threshold[layer] = threshold.mean()
    if clt.jumprelu:
        clt.log_threshold[layer][:n] = threshold.clamp_min(1e-3).log().to(clt.device)
    rows = transcoders.decoder_rows(layer, torch.arange(n)).to(clt.device)
    clt.w_dec[layer].zero_()
    for j in range(rows.shape[1]):
        clt.w_dec[layer][j, :n] = rows[:, j] / clt.y_scale[layer + j]
    clt.b_dec[layer].copy_(transcoders.b_dec(layer).to(clt.device) / clt.y_scale[layer])
    skip = transcoders.skip(layer)
    if clt.skip and skip is not None:
        clt.skip[layer].copy_(skip.to(clt.device) * (clt.x_scale[layer] / clt.y_scale[layer]))


def _reconstruction(clt: TrainableCLT, transcoders: Transcoders, x: Tensor) -> Tensor:
    """(L, T, D) what the trained features, at their thresholds, reconstruct; scaled."""
    y_hat = torch.stack([clt.b_dec[i] + (x[i] @ clt.skip[i] if clt.skip else 0.0) for i in range(clt.n_layers)])
    for layer, n in enumerate(transcoders.d_transcoder):
        pre = clt.pre_activations(layer, x[layer])[:, :n]
        value = torch.where(pre > clt.threshold[layer].clamp_min(0.0), pre, 0.0)
        for j in range(clt.spans[layer]):
            y_hat[layer + j] += value @ clt.w_dec[layer][j, :n]
    return y_hat
