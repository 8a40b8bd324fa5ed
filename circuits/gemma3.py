"""Gemma 3 as the engine sees it. The only file that names Hugging Face's Gemma 3 modules.

Shapes: L layers, P positions, D d_model, H query heads, G key/value heads, K head_dim, V vocabulary.
Block (Gemma 3 report, arXiv 2503.19786): x += post_attn_norm(attn(in_norm(x))); x += post_ff_norm(mlp(pre_ff_norm(x))).
Every norm is RMSNorm with gain (1 + w): norm(x) = x * rsqrt(mean(x^2) + eps) * (1 + w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuits.errors import InputError, ModelError
from circuits.hub import first_line
from circuits.model_folder import open_tokenizer, quiet_transformers, read_tensors, text_settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class FrozenLayer:
    """What stays of one layer once patterns and norm scales are frozen: a linear map of the residual stream.

    ``x_q += attn_out_gain[q] * sum_h W_O[h] sum_p pattern[h, q, p] W_V[g(h)] (attn_in_gain[p] * x_p)``
    (METHOD 1). Gains are (1 + w) times the norm's scale at that position.
    """

    pattern: Tensor
    """(H, P, P) attention after softmax; rows are queries."""
    attn_in_gain: Tensor
    """(P, D) input_layernorm."""
    attn_out_gain: Tensor
    """(P, D) post_attention_layernorm."""
    mlp_in_gain: Tensor
    """(P, D) pre_feedforward_layernorm."""
    w_v: Tensor
    """(G, K, D)"""
    w_o: Tensor
    """(D, H, K)"""


@dataclass(frozen=True)
class FrozenPass:
    """One ordinary forward pass of a prompt with everything the replacement model freezes."""

    tokens: list[int]
    embeddings: Tensor
    """(P, D) output of the embedding module, already multiplied by sqrt(D)."""
    layers: list[FrozenLayer]
    mlp_in: Tensor
    """(L, P, D) output of pre_feedforward_layernorm: what features read."""
    mlp_out: Tensor
    """(L, P, D) output of post_feedforward_layernorm: what transcoders replace."""
    final_gain: Tensor
    """(D,) final norm as a diagonal map at the last position."""
    final_normed: Tensor
    """(D,) output of the final norm at the last position."""
    logits: Tensor
    """(V,) at the last position, float32."""


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
    def from_folder(cls, folder: Path, *, name: str, dtype: str = "float32", device: str = "auto") -> Gemma3:
        """Open a checkpoint folder (text or multimodal) in Hugging Face's layout.

        Raises:
            InputError: unknown ``dtype`` or ``device``.
            ModelError: missing, truncated or foreign files.
        """
        check_dtype(dtype)
        where = resolve_device(device)
        hf_model = _open_text_model(Path(folder), name, DTYPES[dtype])
        return cls(_move(hf_model, where, name), open_tokenizer(Path(folder)), name)

    @property
    def device(self) -> torch.device:
        return self.hf.device

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
        return 1.0 + self.hf.model.norm.weight.float()

    def mlp_norm_gain(self, layer: int) -> Tensor:
        """(D,) 1 + w of a layer's pre_feedforward_layernorm, without its scale."""
        return 1.0 + self.hf.model.layers[layer].pre_feedforward_layernorm.weight.float()

    @torch.no_grad()
    def freeze(self, tokens: list[int]) -> FrozenPass:
        """Run ``tokens`` once and record patterns, norm gains, MLP inputs and outputs.

        Returns float32 tensors on the model's device whatever the model's dtype.
        """
        seen: dict[tuple[int, str], Tensor] = {}
        taps = self._frozen_taps(seen)
        with _eager_attention(self.hf.config), _hooks(taps):
            hidden = self.hf.model(torch.tensor([tokens], device=self.device), use_cache=False).last_hidden_state
            logits = self.hf.lm_head(hidden[:, -1])[0].float()
        layers = [self._frozen_layer(i, seen) for i in range(self.n_layers)]
        return FrozenPass(
            tokens=list(tokens), embeddings=seen[-1, "embeddings"], layers=layers,
            mlp_in=torch.stack([seen[i, "mlp_in"] for i in range(self.n_layers)]),
            mlp_out=torch.stack([seen[i, "mlp_out"] for i in range(self.n_layers)]),
            final_gain=self.norm_gain(self.hf.model.norm, seen[-1, "final_in"][-1:])[0],
            final_normed=hidden[0, -1].float(), logits=logits)

    def _frozen_taps(self, seen: dict[tuple[int, str], Tensor]) -> list[tuple[Any, Callable[..., None]]]:
        def tap(index: int, name: str, read: Callable[[Any, Any], Tensor]) -> Callable[..., None]:
            def hook(_module: Any, inputs: Any, output: Any) -> None:
                seen[index, name] = read(inputs, output)[0].float()
            return hook

        taps = [(self.hf.model.embed_tokens, tap(-1, "embeddings", lambda _, out: out)),
                (self.hf.model.norm, tap(-1, "final_in", lambda ins, _: ins[0]))]
        for i, layer in enumerate(self.hf.model.layers):
            taps += [(layer.input_layernorm, tap(i, "attn_in", lambda ins, _: ins[0])),
                     (layer.self_attn, tap(i, "pattern", lambda _, out: out[1])),
                     (layer.post_attention_layernorm, tap(i, "attn_out", lambda ins, _: ins[0])),
                     (layer.pre_feedforward_layernorm, tap(i, "resid_mid", lambda ins, _: ins[0])),
                     (layer.pre_feedforward_layernorm, tap(i, "mlp_in", lambda _, out: out)),
                     (layer.post_feedforward_layernorm, tap(i, "mlp_out", lambda _, out: out))]
        return taps

    def _frozen_layer(self, index: int, seen: dict[tuple[int, str], Tensor]) -> FrozenLayer:
        layer = self.hf.model.layers[index]
        attn = layer.self_attn
        return FrozenLayer(
            pattern=seen[index, "pattern"],
            attn_in_gain=self.norm_gain(layer.input_layernorm, seen[index, "attn_in"]),
            attn_out_gain=self.norm_gain(layer.post_attention_layernorm, seen[index, "attn_out"]),
            mlp_in_gain=self.norm_gain(layer.pre_feedforward_layernorm, seen[index, "resid_mid"]),
            w_v=attn.v_proj.weight.float().view(self.n_kv_heads, self.head_dim, self.d_model),
            w_o=attn.o_proj.weight.float().view(self.d_model, self.n_heads, self.head_dim))

    def norm_gain(self, norm: Any, x: Tensor) -> Tensor:
        """(P, D) the norm as a diagonal map at its values on ``x`` (P, D): (1 + w) * rsqrt(mean x^2 + eps)."""
        return (1.0 + norm.weight.float()) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.norm_eps)

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


def check_dtype(dtype: str) -> None:
    """Raises:
        InputError: a name that is not in DTYPES.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")


def resolve_device(device: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` as a torch device that exists here.

    Raises:
        InputError: a device of another form, or one this machine lacks.
    """
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError:
        where = None
    if where is None or where.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device is {device!r}: expected auto, cpu, cuda, cuda:N or mps")
    missing = (where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count()) or (
        where.type == "mps" and not has_mps)
    if missing:
        raise InputError(f"device {device} is not on this machine: use --device auto")
    return where


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


def _move(model: Any, where: torch.device, name: str) -> Any:
    try:
        return model.to(where)
    except RuntimeError as error:  # out of memory, or a driver that does not work
        raise ModelError(f"{name} cannot be moved to {where} ({first_line(error)}): use --device cpu, a smaller model "
                         "or --model-dtype bfloat16") from error


@contextmanager
def _hooks(taps: list[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in taps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _eager_attention(config: Any) -> Iterator[None]:
    """Patterns are only returned by the eager implementation; the fused one is faster everywhere else."""
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
