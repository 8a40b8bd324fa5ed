"""How each format lays out a set of transcoders on disk: the files of a layer, and the settings beside them.

Shapes: L layers, F features of a layer, D d_model, S output layers of a feature. The readers of these layouts are
native.py, circuit_tracer.py and gemma_scope2.py; :mod:`circuits.checkpoints.export` writes with what is here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import yaml
from torch import Tensor
from torch.nn import functional

from circuits.checkpoints import circuit_tracer, gemma_scope2, native
from circuits.checkpoints.weight_file import save
from circuits.graphs.store import replacing
from circuits.weights import ALIASES

if TYPE_CHECKING:
    from circuits.transcoder import Transcoders


class Layout(Protocol):
    """Where one format keeps what, relative to the folder written."""

    @property
    def place(self) -> str:
        """What to open, relative to the folder; ``.`` for the folder itself."""

    def names(self, layer: int) -> list[str]:
        """Files of a layer."""

    def settings(self) -> dict[str, str]:
        """Name and text of the files beside the weights."""

    def write(self, folder: Path, layer: int) -> None:
        """Read one layer and write its files."""


@dataclass(frozen=True)
class NativeLayout:
    """``config.json`` and ``layer_{i}.safetensors``; labels and what is known of the training go along."""

    transcoders: Transcoders
    storage: str

    place = "."

    def names(self, layer: int) -> list[str]:
        return [f"layer_{layer}.safetensors"]

    def _span(self) -> int:
        return max(len(self.transcoders.output_layers(i)) for i in range(self.transcoders.n_layers))

    def settings(self) -> dict[str, str]:
        t = self.transcoders
        # quality was measured on weights that another storage would round
        config = native.config_text(
            kind=t.kind, n_layers=t.n_layers, d_model=t.d_model, d_transcoder=t.d_transcoder[0], span=self._span(),
            model_name=t.model_name, masked_prefix=t.masked_positions, k=t.top_k(0),
            training=_native_config(t).get("training"))
        return {"config.json": config}

    def write(self, folder: Path, layer: int) -> None:
        t = self.transcoders
        encoder, skip = t.encoder(layer), t.skip(layer)
        w_dec = _decoder(t, layer, min(self._span(), t.n_layers - layer))
        tensors = {"W_enc": encoder.w_enc, "b_enc": encoder.b_enc, "W_dec": w_dec, "b_dec": t.b_dec(layer)}
        tensors |= {} if encoder.threshold is None else {"threshold": encoder.threshold}
        tensors |= {} if skip is None else {"skip": skip}
        labels = t.label_tokens(layer, torch.arange(t.d_transcoder[layer]))
        if labels is not None:
            tensors |= {"promoted_tokens": labels[0], "active_tokens": labels[1]}
        keep = w_dec.any(-1)
        if not keep.all():
            tensors["W_dec_keep"] = keep
        native.write_layer(folder, layer, tensors, self.storage)


@dataclass(frozen=True)
class CircuitTracerLayout:
    """``config.yaml`` with layer_{i}, or W_enc_{i} and W_dec_{i}, as circuit-tracer 0.5.0 loads them.

    Its own CLT files have no place for a skip. Such a CLT is written as the published ones with a skip are: Gemma
    Scope 2's files, listed in ``config.yaml``, the last one twice because circuit-tracer leaves the last entry out.
    circuit-tracer takes such a list from a hub repository with "gemma-scope-2" in its name, as hf:// entries.
    """

    transcoders: Transcoders
    with_skip: bool
    with_threshold: bool

    place = "."

    def names(self, layer: int) -> list[str]:
        if self._shards():
            return [_shard(layer)]
        return [f"{stem}_{layer}.safetensors" for stem in
                (("layer",) if self.transcoders.kind == "plt" else ("W_enc", "W_dec"))]

    def _shards(self) -> bool:
        return self.transcoders.kind == "clt" and self.with_skip

    def settings(self) -> dict[str, str]:
        t = self.transcoders
        config: dict[str, Any] = {"model_name": _hub_name(t)} if t.model_name else {}
        config |= {"model_kind": {kind: name for name, kind in circuit_tracer.KINDS.items()}[t.kind],
                   "feature_input_hook": circuit_tracer.HOOK_IN, "feature_output_hook": circuit_tracer.HOOK_OUT}
        if self._shards():
            config["transcoders"] = [_shard(i) for i in (*range(t.n_layers), t.n_layers - 1)]
        return {"config.yaml": yaml.safe_dump(config, sort_keys=False)}

    def write(self, folder: Path, layer: int) -> None:
        t = self.transcoders
        if self._shards():
            save(folder / _shard(layer), _scope_tensors(t, layer, self.with_skip))
            return
        encoder, b_dec = t.encoder(layer), t.b_dec(layer)
        threshold = _threshold(t, layer) if self.with_threshold else None
        if t.kind == "plt":
            tensors = {"W_enc": encoder.w_enc, "b_enc": encoder.b_enc, "b_dec": b_dec,
                       "W_dec": _decoder(t, layer, 1)[:, 0]}
            tensors |= {} if threshold is None else {"activation_function.threshold": threshold}
            tensors |= {"W_skip": _skip(t, layer).T} if self.with_skip else {}
            save(folder / f"layer_{layer}.safetensors", tensors)
            return
        tensors = {f"W_enc_{layer}": encoder.w_enc, f"b_enc_{layer}": encoder.b_enc, f"b_dec_{layer}": b_dec}
        tensors |= {} if threshold is None else {f"threshold_{layer}": threshold}
        save(folder / f"W_enc_{layer}.safetensors", tensors)
        save(folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": _decoder(t, layer, t.n_layers - layer)})


@dataclass(frozen=True)
class GemmaScope2Layout:
    """transcoder_all/layer_{i}_{variant}/params.safetensors, or clt/{variant}/params_layer_{i}.safetensors."""

    transcoders: Transcoders
    with_skip: bool

    @cached_property
    def _variant(self) -> str:
        t = self.transcoders
        width = sum(t.d_transcoder) if t.kind == "clt" else t.d_transcoder[0]
        size = next((f"{width // unit}{letter}" for unit, letter in ((1_000_000, "m"), (1_000, "k")) if width >= unit),
                    str(width))
        l0 = self._l0
        # what the published names mean (FORMATS): small 10 to 20 active features, medium 30 to 60, big 60 to 150
        label = "unknown" if l0 is None else "small" if l0 < 25 else "medium" if l0 < 60 else "big"
        return f"width_{size}_l0_{label}" + ("_affine" if self.with_skip else "")

    @cached_property
    def _l0(self) -> float | None:
        """Active features per layer and position, where this project measured them."""
        quality = _native_config(self.transcoders).get("quality")
        measured = quality.get("active_per_position") if isinstance(quality, dict) else None
        return measured / self.transcoders.n_layers if isinstance(measured, float) and measured > 0 else None

    @property
    def place(self) -> str:
        return f"{'clt' if self.transcoders.kind == 'clt' else 'transcoder_all'}/{self._variant}"

    def _folder(self, layer: int) -> str:
        return self.place if self.transcoders.kind == "clt" else f"transcoder_all/layer_{layer}_{self._variant}"

    def names(self, layer: int) -> list[str]:
        name = _shard(layer) if self.transcoders.kind == "clt" else "params.safetensors"
        return [f"{self._folder(layer)}/{name}"]

    def settings(self) -> dict[str, str]:
        t = self.transcoders
        if t.kind == "clt":
            every = [_hooks(i) for i in range(t.n_layers)]
            return {f"{self.place}/config.json": self._config([point_in for point_in, _ in every],
                                                              [point_out for _, point_out in every])}
        return {f"{self._folder(i)}/config.json": self._config(*_hooks(i)) for i in range(t.n_layers)}

    def _config(self, point_in: str | list[str], point_out: str | list[str]) -> str:
        t = self.transcoders
        width = sum(t.d_transcoder) if t.kind == "clt" else t.d_transcoder[0]
        config = {"hf_hook_point_in": point_in, "hf_hook_point_out": point_out, "width": width,
                  "model_name": _hub_name(t), "architecture": "jump_relu", "l0": self._l0,
                  "affine_connection": self.with_skip, "type": "clt" if t.kind == "clt" else "transcoder"}
        return json.dumps({key: value for key, value in config.items() if value not in (None, "")}, indent=2) + "\n"

    def write(self, folder: Path, layer: int) -> None:
        (name,) = self.names(layer)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save(folder / name, _scope_tensors(self.transcoders, layer, self.with_skip))


def write_settings(folder: Path, layout: Layout) -> None:
    """Write the files beside the weights; a reader takes the folder for complete by them, so they come last."""
    for name, text in layout.settings().items():
        with replacing(folder / name) as scratch:
            scratch.write_text(text, encoding="utf-8")


def _scope_tensors(t: Transcoders, layer: int, with_skip: bool) -> dict[str, Tensor]:
    encoder = t.encoder(layer)
    w_dec = _decoder(t, layer, t.n_layers, first=layer) if t.kind == "clt" else _decoder(t, layer, 1)[:, 0]
    tensors = {"w_enc": encoder.w_enc.T, "b_enc": encoder.b_enc, "w_dec": w_dec, "b_dec": t.b_dec(layer),
               "threshold": _threshold(t, layer)}
    return tensors | ({"affine_skip_connection": _skip(t, layer)} if with_skip else {})


def _decoder(t: Transcoders, layer: int, outputs: int, first: int = 0) -> Tensor:
    """(F, outputs, D) decoder vectors, the layer's own at ``first``; zero before, and after the layer's span."""
    w_dec = t.decoder_rows(layer, torch.arange(t.d_transcoder[layer]))
    after = outputs - first - w_dec.shape[1]
    return functional.pad(w_dec, (0, 0, first, after)) if first or after else w_dec


def _threshold(t: Transcoders, layer: int) -> Tensor:
    threshold = t.threshold(layer)
    return torch.zeros(t.d_transcoder[layer]) if threshold is None else threshold  # JumpReLU at zero is ReLU


def _skip(t: Transcoders, layer: int) -> Tensor:
    skip = t.skip(layer)
    return torch.zeros(t.d_model, t.d_model) if skip is None else skip  # the format has one in every layer or in none


def _hooks(layer: int) -> tuple[str, str]:
    return f"model.layers.{layer}.{gemma_scope2.HOOK_IN}", f"model.layers.{layer}.{gemma_scope2.HOOK_OUT}"


def _hub_name(t: Transcoders) -> str:
    return ALIASES.get(t.model_name, t.model_name)


def _shard(layer: int) -> str:
    return f"params_layer_{layer}.safetensors"


def _native_config(t: Transcoders) -> dict[str, Any]:
    return native.read_config(t.folder) if t.folder is not None and native.matches(t.folder) else {}
