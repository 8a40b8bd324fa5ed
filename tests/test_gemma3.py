"""The frozen pass and the other forward passes, against Hugging Face's own outputs and the formulas."""

from typing import Any

import pytest
import torch
from tiny_models import randomise, text_config, text_folder
from torch.nn.functional import gelu
from transformers import Gemma3ForCausalLM

import circuits
from circuits.frozen import FrozenPass
from circuits.gemma3 import Gemma3

TOKENS = [2, 17, 99, 31, 5, 64, 99, 120, 8, 77, 41, 13]
"""Longer than the sliding window of 5."""


def logits(model: Gemma3) -> torch.Tensor:
    return model.logits_with_mlps(torch.tensor([TOKENS]))[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    return circuits.load_model(text_folder(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def frozen(model: Gemma3) -> FrozenPass:
    return model.freeze(TOKENS)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The norm written from its formula (Gemma 3 report)."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * (1 + weight)


def test_freeze_records_what_hugging_face_computes(model: Gemma3, frozen: FrozenPass) -> None:
    """Patterns and residual streams from Hugging Face's own outputs; the block between them from its formula."""
    reference = Gemma3ForCausalLM(text_config(attn_implementation="eager"))
    randomise(reference)
    with torch.no_grad():
        out = reference.eval()(torch.tensor([TOKENS]), output_attentions=True, output_hidden_states=True)
        residual = [states[0] for states in out.hidden_states]
        torch.testing.assert_close(frozen.embeddings, residual[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(
            residual[0], reference.model.embed_tokens.weight[TOKENS] * 32**0.5, rtol=0, atol=1e-5)
        for i, (layer, ours) in enumerate(zip(reference.model.layers, frozen.layers, strict=True)):
            torch.testing.assert_close(ours.pattern, out.attentions[i][0], rtol=0, atol=1e-6)
            x, attn, mlp = residual[i], layer.self_attn, layer.mlp
            values = attn.v_proj(rms_norm(x, layer.input_layernorm.weight)).view(12, 2, 12)
            heads = torch.einsum("hqp,phk->qhk", out.attentions[i][0], values.repeat_interleave(2, 1))
            mid = x + rms_norm(attn.o_proj(heads.flatten(1)), layer.post_attention_layernorm.weight)
            mlp_in = rms_norm(mid, layer.pre_feedforward_layernorm.weight)
            mlp_raw = mlp.down_proj(gelu(mlp.gate_proj(mlp_in), approximate="tanh") * mlp.up_proj(mlp_in))
            mlp_out = rms_norm(mlp_raw, layer.post_feedforward_layernorm.weight)
            torch.testing.assert_close(frozen.mlp_in[i], mlp_in, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(frozen.mlp_out[i], mlp_out, rtol=1e-5, atol=1e-5)
            if i + 1 < len(frozen.layers):  # the last of Hugging Face's states is after the final norm
                torch.testing.assert_close(mid + mlp_out, residual[i + 1], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ours.attn_in_gain * x, rms_norm(x, layer.input_layernorm.weight),
                                       rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ours.mlp_in_gain * mid, mlp_in, rtol=1e-5, atol=1e-5)
            written = torch.einsum("hqp,hkd,pd->qhk", ours.pattern, ours.w_v.repeat_interleave(2, 0),
                                   ours.attn_in_gain * x)
            frozen_attn = torch.einsum("dhk,qhk->qd", ours.w_o, written) * ours.attn_out_gain
            torch.testing.assert_close(x + frozen_attn, mid, rtol=1e-4, atol=1e-4)
        last = mid[-1] + mlp_out[-1]
    torch.testing.assert_close(frozen.final_normed, residual[-1][-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frozen.final_gain * last, frozen.final_normed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frozen.logits, out.logits[0, -1], rtol=0, atol=1e-5)


def test_patterns_respect_windows(frozen: FrozenPass) -> None:
    position = torch.arange(len(TOKENS))
    distance = position[:, None] - position
    for i, layer in enumerate(frozen.layers):
        seen = (distance >= 0) & (distance < 5) if i % 2 == 0 else distance >= 0
        assert bool((layer.pattern[:, ~seen] == 0).all())
        assert bool((layer.pattern[:, seen] > 0).all())
        torch.testing.assert_close(layer.pattern.sum(-1), torch.ones(4, 12), rtol=0, atol=1e-5)


def test_eager_and_fused_attention_agree(model: Gemma3, frozen: FrozenPass) -> None:
    assert model.hf.config._attn_implementation == "sdpa"
    torch.testing.assert_close(logits(model)[-1], frozen.logits, rtol=0, atol=1e-5)


def test_an_error_leaves_the_model_as_it_was(model: Gemma3) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.hf.model.layers[2].mlp.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        model.freeze(TOKENS)
    handle.remove()
    assert model.hf.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in model.hf.modules())


def test_mlp_boundaries(model: Gemma3, frozen: FrozenPass) -> None:
    mlp_in, mlp_out = model.mlp_boundaries(torch.tensor([TOKENS, TOKENS[::-1]]))
    assert mlp_in.shape == mlp_out.shape == (2, 12, 4, 32)
    torch.testing.assert_close(mlp_in[0].transpose(0, 1), frozen.mlp_in, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mlp_out[0].transpose(0, 1), frozen.mlp_out, rtol=1e-4, atol=1e-5)


def test_replacing_mlp_outputs(model: Gemma3, frozen: FrozenPass) -> None:
    plain = logits(model)
    same = model.logits_with_mlps(torch.tensor([TOKENS]), lambda layer, x, y: frozen.mlp_out[layer][None])
    torch.testing.assert_close(same[0], plain, rtol=1e-4, atol=1e-4)
    seen = []

    def zero(layer: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append((layer, tuple(x.shape), tuple(y.shape)))
        return torch.zeros_like(y)

    without = model.logits_with_mlps(torch.tensor([TOKENS]), zero)
    assert seen == [(layer, (1, 12, 32), (1, 12, 32)) for layer in range(4)]
    assert float((without - plain).abs().max()) > 0.1
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)


def test_decoding_step_by_step(model: Gemma3, frozen: FrozenPass) -> None:
    """With the cache, past the sliding window."""
    hidden, cache = model.decode(torch.tensor([TOKENS[:4]]))
    for token in TOKENS[4:]:
        hidden, cache = model.decode(torch.tensor([[token]]), cache)
    torch.testing.assert_close((hidden @ model.unembedding.T)[0], frozen.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden[0], frozen.final_normed, rtol=1e-4, atol=1e-5)
