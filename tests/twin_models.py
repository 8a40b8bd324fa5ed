"""A tiny model and its twin of other width and depth that computes the same, its features renumbered.

Shapes: L layers, D d_model, F features of a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from test_prompt import write_tokenizer
from tiny_models import randomise, text_config
from torch import Tensor
from transcoder_folders import Dictionary, dictionary, native_folder
from transformers import Gemma3ForCausalLM

LAYERS, WIDTH, FEATURES = 4, 32, 24
_RESIDUAL_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                   "post_feedforward_layernorm")
_IN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_OUT = ("o_proj", "down_proj")


class Twins(NamedTuple):
    """Folders of two models and their transcoders."""

    model: str
    twin: str
    transcoders: str
    twin_transcoders: str
    layer: int
    """Layers of the twin for one of the model's: layer l of the model is its layer (l + 1) * layer - 1."""
    number: list[list[int]]
    """Of layer l and feature f of the model, the feature of the twin."""

    def of(self, layer: int, feature: int) -> tuple[int, int]:
        """Layer and number in the twin."""
        return (layer + 1) * self.layer - 1, self.number[layer][feature]


def isometry(wide: int, narrow: int, seed: int) -> Tensor:
    """(wide, narrow) orthonormal columns in float64."""
    made = torch.randn(wide, narrow, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(made)[0]


def twins(root: Path, *, width: int = WIDTH, depth: int = 1, span: int = LAYERS, seed: int = 0) -> Twins:
    """The residual stream of the twin is the model's, rotated into ``width`` dimensions; before each of its layers
    stand ``depth`` - 1 that do nothing."""
    model = _without_gains(Gemma3ForCausalLM(text_config()), seed)
    turned = isometry(width, WIDTH, seed + 1)
    model.save_pretrained(root / "model")
    _twin(model, turned, depth).save_pretrained(root / "twin")
    for name in ("model", "twin"):
        write_tokenizer(root / name)
    made = scaled_dictionary(span, seed)
    generator = torch.Generator().manual_seed(seed + 2)
    orders = [torch.randperm(FEATURES, generator=generator) for _ in range(LAYERS)]
    return Twins(
        str(root / "model"), str(root / "twin"), native_folder(root / "clt", made),
        native_folder(root / "twin-clt", _turned(made, turned, depth, span, orders)), depth,
        [torch.argsort(order).tolist() for order in orders])


def scaled_dictionary(span: int, seed: int = 0) -> Dictionary:
    """Random, for the tiny model, with writes of the size of its MLPs'."""
    made = dictionary(span=span, n_layers=LAYERS, features=FEATURES, d_model=WIDTH, seed=seed)
    for parts, scale in ((made.w_enc, 0.5), (made.w_dec, 0.15), (made.b_dec, 0.1)):
        for tensor in parts:
            tensor *= scale
    return made


def _without_gains(model: Gemma3ForCausalLM, seed: int) -> Gemma3ForCausalLM:
    """Random weights; norms of the residual stream without gains, so that they commute with rotations."""
    randomise(model, seed)
    for name, parameter in model.named_parameters():
        if any(norm in name for norm in _RESIDUAL_NORMS) or name == "model.norm.weight":
            parameter.data.zero_()
    return model


def _twin(model: Gemma3ForCausalLM, turned: Tensor, depth: int) -> Gemma3ForCausalLM:
    wide, narrow = turned.shape
    shrink = (narrow / wide) ** 0.5  # a norm divides by the root of a mean over more dimensions
    types = [kind for kind in model.config.layer_types for _ in range(depth)]
    made = Gemma3ForCausalLM(text_config(hidden_size=wide, num_hidden_layers=len(types), layer_types=types,
                                         rms_norm_eps=model.config.rms_norm_eps * narrow / wide))
    randomise(made, 99)
    own = dict(model.named_parameters())
    for name, parameter in made.named_parameters():
        part = name.split(".")
        same = own.get(name)
        if "layers" in part:
            at, idle = divmod(int(part[2]) + 1, depth)
            same = own[".".join([*part[:2], str(max(at - 1, 0)), *part[3:]])]
            if idle and part[-2] in _OUT:
                parameter.data.zero_()
                continue
        assert same is not None
        value = same.data.double()
        if part[-2] in _IN:
            value = value @ turned.T
        elif part[-2] in _OUT:
            value = turned @ value
        elif part[-2] == "embed_tokens":
            value = value @ turned.T * shrink
        elif part[-2] in _RESIDUAL_NORMS:
            value = torch.full((wide,), shrink - 1, dtype=torch.float64)
        elif part[-2] == "norm":
            value = torch.zeros(wide)  # the unembedding is shrunk already
        parameter.data = value.float()
    return made


def _turned(made: Dictionary, turned: Tensor, depth: int, span: int, orders: list[Tensor]) -> Dictionary:
    """The dictionary of the twin: features of its other layers never fire."""
    wide = len(turned)
    silent = dictionary(span=span * depth, n_layers=LAYERS * depth, features=FEATURES, d_model=wide, seed=77)
    for at in range(LAYERS * depth):
        silent.threshold[at][:] = 1e9
        silent.b_dec[at][:] = 0.0
    for at, order in enumerate(orders):
        to = (at + 1) * depth - 1
        silent.w_enc[to] = (made.w_enc[at][order].double() @ turned.T).float()
        silent.b_enc[to], silent.threshold[to] = made.b_enc[at][order], made.threshold[at][order]
        silent.b_dec[to] = (turned @ made.b_dec[at].double()).float()
        silent.w_dec[to][:] = 0.0
        writes = (made.w_dec[at][order].double() @ turned.T).float()
        silent.w_dec[to][:, :writes.shape[1] * depth:depth] = writes
    return silent
