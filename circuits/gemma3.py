"""Gemma 3 as the engine sees it. The only file that names Hugging Face's Gemma 3 modules.

Shapes: L layers, P positions, D d_model, H query heads, G key/value heads, K head_dim, V vocabulary.
Block (Gemma 3 report, arXiv 2503.19786): x += post_attn_norm(attn(in_norm(x))); x += post_ff_norm(mlp(pre_ff_norm(x))).
Every norm is RMSNorm with gain (1 + w): norm(x) = x * rsqrt(mean(x^2) + eps) * (1 + w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.block import Block
from circuits.errors import InputError, ModelError
from circuits.frozen import FrozenLayer, FrozenPass, attend
from circuits.hub import first_line
from circuits.memory import MappedFiles
from circuits.model_folder import open_tokenizer, quiet_transformers, read_tensors, text_settings
from circuits.placement import place, resolve_device, weight

_RECORDING = "circuits_recording"
UNEMBEDDED_AT_ONCE = 16384
"""Tokens of the vocabulary whose logits are computed at once."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Gemma3:
    """A Gemma 3 text model with its tokenizer; opened by :func:`circuits.load_model`."""

    def __init__(self, hf_model: Any, tokenizer: Any, name: str):
        config = hf_model.config
        for field, plain in (("attention_bias", False), ("use_bidirectional_attention", False),
                             ("attn_logit_softcapping", None), ("final_logit_softcapping", None)):
            if (getattr(config, field, plain) or plain) != plain:
                raise ModelError(f"{name}: config.{field} is {getattr(config, field)}; released Gemma 3 models have "
                                 f"{plain}, and the frozen model would be wrong with anything else")
        self.hf = hf_model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.n_layers: int = config.num_hidden_layers
        self.d_model: int = config.hidden_size
        self.n_heads: int = config.num_attention_heads
        self.n_kv_heads: int = config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = config.max_position_embeddings
        self.norm_eps: float = config.rms_norm_eps

    @classmethod
    def from_folder(cls, folder: Path, *, name: str, dtype: str = "float32", device: str = "auto",
                    device_map: str | dict[str, Any] | None = None) -> Gemma3:
        """Open a checkpoint folder (text or multimodal) in Hugging Face's layout.

        Args:
            device_map: see :func:`circuits.placement.place`; None puts everything on ``device``.

        Raises:
            InputError: unknown ``dtype``, ``device`` or ``device_map``.
            ModelError: missing, truncated or foreign files.
        """
        check_dtype(dtype)
        where = resolve_device(device)
        hf_model = _open_text_model(Path(folder), name, DTYPES[dtype])
        return cls(place(hf_model, where, device_map, name), open_tokenizer(Path(folder)), name)

    @property
    def device(self) -> torch.device:
        """Where prompts enter and targets are read; layers may lie elsewhere."""
        return self.hf.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.dtype

    @property
    def unembedding(self) -> Tensor:
        """(V, D)"""
        return self.hf.lm_head.weight

    @property
    def embedding(self) -> Tensor:
        """(V, D) before the multiplication by sqrt(D)."""
        return self.hf.model.embed_tokens.weight

    @property
    def final_norm_gain(self) -> Tensor:
        """(D,) 1 + w of the final norm, without its scale."""
        return 1.0 + weight(self.hf.model.norm)

    def embed(self, tokens: Tensor) -> Tensor:
        """(..., D) float32 embeddings of tokens (...), multiplied by sqrt(D)."""
        return self.hf.model.embed_tokens(tokens.to(self.device)).float()

    def final_norm(self, x: Tensor) -> Tensor:
        """(..., D) the final norm of residual streams (..., D), float32."""
        return x * self._scale(x)[..., None] * self.final_norm_gain

    def unembed(self, x: Tensor) -> Tensor:
        """(..., V) float32 logits of outputs of the final norm (..., D), float32."""
        parts = self.unembedding.detach().split(UNEMBEDDED_AT_ONCE)
        # in this order CPUs are about twice as fast where rows are few
        logits = torch.cat([part.float() @ x.reshape(-1, self.d_model).T for part in parts]).T
        return logits.reshape(*x.shape[:-1], -1)

    def mlp_norm_gain(self, layer: int) -> Tensor:
        """(D,) 1 + w of a layer's pre_feedforward_layernorm, without its scale."""
        return 1.0 + weight(self.hf.model.layers[layer].pre_feedforward_layernorm, self.device)

    @torch.no_grad()
    def freeze(self, tokens: list[int]) -> FrozenPass:
        """Run ``tokens`` once and record queries, keys, norm scales, MLP inputs and outputs.

        Returns float32 tensors whatever the model's dtype: each layer's on that layer's device, the rest on the
        model's.
        """
        seen: dict[tuple[int, str], Tensor] = {}
        files = MappedFiles()
        once = [(layer, lambda module, _inputs, _out: files.give_back(module.parameters()))
                for layer in self.hf.model.layers]
        with _recording_attention(self.hf.config, seen), _hooks(self._frozen_taps(seen) + once):
            hidden = self.hf.model(torch.tensor([tokens], device=self.device), use_cache=False).last_hidden_state
        logits = torch.cat([torch.nn.functional.linear(hidden[0, -1], part).float()
                            for part in self._unembedding_parts(files)])
        final_scale = self._scale(seen[-1, "final_in"][-1])
        return FrozenPass(
            tokens=list(tokens), embeddings=seen[-1, "embeddings"].to(self.device),
            layers=[self._frozen_layer(i, seen) for i in range(self.n_layers)],
            mlp_in=torch.stack([seen[i, "mlp_in"].to(self.device) for i in range(self.n_layers)]),
            mlp_out=torch.stack([seen[i, "mlp_out"].to(self.device) for i in range(self.n_layers)]),
            final_gain=self.final_norm_gain * final_scale.to(self.device), final_normed=hidden[0, -1].float(),
            logits=logits, gathered=getattr(self.hf, "hf_device_map", None) is not None)

    @cached_property
    def mean_unembedding(self) -> Tensor:
        """(D,) float32, over the vocabulary."""
        total = torch.zeros(self.d_model, dtype=torch.float32, device=self.device)
        for part in self._unembedding_parts(MappedFiles()):
            total += part.sum(0, dtype=torch.float32)
        return total / self.vocab_size

    def _unembedding_parts(self, files: MappedFiles) -> Iterator[Tensor]:
        """The unembedding, some tokens at a time; each part's memory is given back afterwards."""
        for part in self.unembedding.detach().split(UNEMBEDDED_AT_ONCE):
            yield part
            files.give_back([part])

    def _frozen_taps(self, seen: dict[tuple[int, str], Tensor]) -> list[tuple[Any, Callable[..., None]]]:
        def tap(index: int, name: str, read: Callable[[Any, Any], Tensor]) -> Callable[..., None]:
            def hook(_module: Any, inputs: Any, output: Any) -> None:
                seen[index, name] = read(inputs, output)[0].float()
            return hook

        def scale(ins: Any, _out: Any) -> Tensor:
            return self._scale(ins[0].float())

        taps = [(self.hf.model.embed_tokens, tap(-1, "embeddings", lambda _, out: out)),
                (self.hf.model.norm, tap(-1, "final_in", lambda ins, _: ins[0]))]
        for i, layer in enumerate(self.hf.model.layers):
            taps += [(layer.input_layernorm, tap(i, "attn_in_scale", scale)),
                     (layer.post_attention_layernorm, tap(i, "attn_out_scale", scale)),
                     (layer.pre_feedforward_layernorm, tap(i, "mlp_in_scale", scale)),
                     (layer.pre_feedforward_layernorm, tap(i, "mlp_in", lambda _, out: out)),
                     (layer.post_feedforward_layernorm, tap(i, "mlp_out", lambda _, out: out))]
        return taps

    def _frozen_layer(self, index: int, seen: dict[tuple[int, str], Tensor]) -> FrozenLayer:
        layer = self.hf.model.layers[index]
        attn = layer.self_attn
        recorded = {name: seen[index, name] for name in ("queries", "keys", "log_sums", "attn_in_scale",
                                                         "attn_out_scale", "mlp_in_scale")}
        where = recorded["queries"].device

        def projections() -> tuple[Tensor, Tensor]:
            return (weight(attn.v_proj, where).view(self.n_kv_heads, self.head_dim, self.d_model),
                    weight(attn.o_proj, where).view(self.d_model, self.n_heads, self.head_dim))

        return FrozenLayer(
            **{name: tensor.to(where) for name, tensor in recorded.items()}, window=attn.sliding_window,
            attn_in_norm=1.0 + weight(layer.input_layernorm, where),
            attn_out_norm=1.0 + weight(layer.post_attention_layernorm, where),
            mlp_in_norm=1.0 + weight(layer.pre_feedforward_layernorm, where), projections=projections)

    def block(self, layer: int) -> Block:
        """The weights of a layer as float32 on its device; read when called, for they may lie on disk."""
        module = self.hf.model.layers[layer]
        attn, mlp = module.self_attn, module.mlp
        frequencies, rotary_scale = _rotary(self.hf.model, attn)
        heads, groups = (self.n_heads, self.head_dim, -1), (self.n_kv_heads, self.head_dim, -1)
        return Block(
            w_q=weight(attn.q_proj).view(heads), w_k=weight(attn.k_proj).view(groups),
            w_v=weight(attn.v_proj).view(groups), w_o=weight(attn.o_proj).view(-1, *heads[:2]),
            q_norm=1.0 + weight(attn.q_norm), k_norm=1.0 + weight(attn.k_norm),
            attn_in_norm=1.0 + weight(module.input_layernorm),
            attn_out_norm=1.0 + weight(module.post_attention_layernorm),
            mlp_in_norm=1.0 + weight(module.pre_feedforward_layernorm),
            mlp_out_norm=1.0 + weight(module.post_feedforward_layernorm), w_gate=weight(mlp.gate_proj),
            w_up=weight(mlp.up_proj), w_down=weight(mlp.down_proj), activation=mlp.act_fn,
            frequencies=frequencies.float(), rotary_scale=float(rotary_scale), score_scale=float(attn.scaling),
            window=attn.sliding_window, eps=self.norm_eps)

    def _scale(self, x: Tensor) -> Tensor:
        """(...,) what RMSNorm multiplies ``x`` (..., D) by before its gain: rsqrt(mean x^2 + eps)."""
        return torch.rsqrt(x.pow(2).mean(-1) + self.norm_eps)

    def mlp_boundaries(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """MLP inputs and outputs of a batch.

        Args:
            tokens: (B, P) integers.

        Returns:
            (B, P, L, D) outputs of pre_feedforward_layernorm and of post_feedforward_layernorm.
        """
        with self.record_mlps() as recorded, torch.no_grad():
            self.hf.model(tokens.to(self.device), use_cache=False)
        return torch.stack(recorded["in"], 2), torch.stack(recorded["out"], 2)

    @contextmanager
    def record_mlps(self) -> Iterator[dict[str, list[Tensor]]]:
        """While open, forward passes append each layer's MLP input and output (B, P, D), in layer order."""
        recorded: dict[str, list[Tensor]] = {"in": [], "out": []}
        taps = []
        for layer in self.hf.model.layers:
            taps += [(layer.pre_feedforward_layernorm, lambda _m, _i, out: recorded["in"].append(out)),
                     (layer.post_feedforward_layernorm, lambda _m, _i, out: recorded["out"].append(out))]
        with _hooks(taps):
            yield recorded

    @torch.no_grad()
    def logits_with_mlps(self, tokens: Tensor, mlp: Callable[[int, Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Logits (B, P, V) with every MLP's output passed through ``mlp``.

        Args:
            tokens: (B, P)
            mlp: called as ``mlp(layer, mlp_in, mlp_out)`` with (B, P, D) tensors; returns what takes the place of
                the post_feedforward_layernorm output. Without it this is the ordinary model.
        """
        taps = []
        if mlp is not None:
            inputs: dict[int, Tensor] = {}
            for i, layer in enumerate(self.hf.model.layers):
                taps += [(layer.pre_feedforward_layernorm, lambda _m, _i, out, i=i: inputs.__setitem__(i, out)),
                         (layer.post_feedforward_layernorm, lambda _m, _i, out, i=i: mlp(i, inputs[i], out))]
        with _hooks(taps):
            return self.hf(tokens.to(self.device), use_cache=False).logits

    @torch.no_grad()
    def decode(self, tokens: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """One decoding step: final hidden states (B, D) after ``tokens`` (B, P), and the cache to pass on.

        ``hidden @ unembedding.T`` are the logits.
        """
        out = self.hf.model(tokens.to(self.device), past_key_values=cache, use_cache=True)
        return out.last_hidden_state[:, -1], out.past_key_values


def _rotary(model: Any, attn: Any) -> tuple[Tensor, float]:
    """(K / 2,) frequencies of a layer's type and the factor on cosine and sine; transformers 4 had a module for each
    type, 5 has one for both."""
    local = attn.sliding_window is not None
    if hasattr(model, "rotary_emb_local"):
        module = model.rotary_emb_local if local else model.rotary_emb
        return module.inv_freq, module.attention_scaling
    kind = "sliding_attention" if local else "full_attention"
    return getattr(model.rotary_emb, f"{kind}_inv_freq"), getattr(model.rotary_emb, f"{kind}_attention_scaling")


def check_dtype(dtype: str) -> None:
    """Raises:
        InputError: a name that is not in DTYPES.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")


def _open_text_model(folder: Path, name: str, dtype: torch.dtype) -> Any:
    import transformers

    try:
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig
    except ImportError as error:
        raise ModelError(f"transformers {transformers.__version__} has no Gemma 3: pip install 'transformers>=4.57'"
                         ) from error
    settings = text_settings(folder, name)
    only_new = "rope_parameters" in settings and "rope_theta" not in settings
    if only_new and int(transformers.__version__.split(".")[0]) < 5:
        raise ModelError(f"{folder / 'config.json'} was written by transformers 5, whose rotary settings transformers "
                         f"{transformers.__version__} would ignore: pip install 'transformers>=5'")
    with quiet_transformers():
        try:
            config = Gemma3TextConfig.from_dict(settings)
            with torch.device("meta"):
                shapes = {key: tuple(tensor.shape) for key, tensor in Gemma3ForCausalLM(config).state_dict().items()}
        except Exception as error:  # transformers and torch raise many kinds for impossible settings
            raise ModelError(f"{folder / 'config.json'} does not describe a Gemma 3 model: {first_line(error)}"
                             ) from error
        if config.tie_word_embeddings:
            del shapes["lm_head.weight"]
        # tensors that are already read: transformers then keeps the mapped memory, and has nothing to report
        return Gemma3ForCausalLM.from_pretrained(None, config=config, state_dict=read_tensors(folder, shapes),
                                                 dtype=dtype, attn_implementation="sdpa")


@contextmanager
def _hooks(taps: list[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in taps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recording_attention(config: Any, seen: dict[tuple[int, str], Tensor]) -> Iterator[None]:
    """While open, attention is computed by :func:`circuits.frozen.attend` and leaves what freezes it in ``seen``."""
    from transformers import AttentionInterface

    def record(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
               scaling: float, **_: Any) -> tuple[Tensor, None]:
        queries, keys = query[0].float() * scaling, key[0].float()
        out, log_sums = attend(queries, keys, value[0].float(), module.sliding_window)
        for name, tensor in (("queries", queries), ("keys", keys), ("log_sums", log_sums)):
            seen[module.layer_idx, name] = tensor
        return out.transpose(0, 1)[None].to(query.dtype), None

    # a name transformers knows no mask for: it then makes none
    AttentionInterface.register(_RECORDING, record)
    before = config._attn_implementation
    config._attn_implementation = _RECORDING
    try:
        yield
    finally:
        config._attn_implementation = before
