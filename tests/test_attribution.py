"""Every edge against autograd on the frozen model, conservation, and the certificate (METHOD 3, 4)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import multimodal_folder, text_folder
from transcoder_folders import Dictionary, dictionary, gemma_scope_clt, gemma_scope_plt, tracer_plt

import circuits
from circuits.errors import ConservationError, InputError, ModelError
from circuits.gemma3 import Gemma3

TOKENS = [2, 17, 99, 31, 5, 64, 99, 120, 8, 77, 41, 13]
N_LAYERS, D_MODEL = 4, 32


def small_dictionary(kind: str, skip: bool) -> Dictionary:
    made = dictionary(span=N_LAYERS if kind == "clt" else 1, skip=skip, n_layers=N_LAYERS, features=20, d_model=D_MODEL)
    for parts, scale in ((made.w_enc, 0.3), (made.w_dec, 0.1), (made.b_dec, 0.1), (made.skip or [], 0.1)):
        for tensor in parts:
            tensor *= scale
    return made


def write(folder: Path, kind: str, skip: bool) -> tuple[Dictionary, str]:
    made = small_dictionary(kind, skip)
    return made, (gemma_scope_clt if kind == "clt" else gemma_scope_plt)(folder, made)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"text": text_folder(root / "text"), "multimodal": multimodal_folder(root / "multimodal")}


def frozen_hidden(model: Gemma3, frozen, writes: torch.Tensor, embeddings: torch.Tensor, made: Dictionary,
                  ) -> tuple[list[torch.Tensor], torch.Tensor]:
    """MLP inputs of every layer and the final norm's output of the frozen model, written from METHOD 1 with einsum
    on Hugging Face's own weights, differentiable in ``writes`` (L, P, D) and ``embeddings`` (P, D)."""
    hf = model.hf.model
    x, inputs = embeddings, []
    for i, layer in enumerate(hf.layers):
        f = frozen.layers[i]
        v = layer.self_attn.v_proj(x * f.attn_in_gain).view(len(x), model.n_kv_heads, model.head_dim)
        v = v.repeat_interleave(model.n_heads // model.n_kv_heads, 1)
        z = torch.einsum("hqp,phk->qhk", f.pattern, v).flatten(1)
        x = x + layer.self_attn.o_proj(z) * f.attn_out_gain
        mlp_in = x * f.mlp_in_gain
        inputs.append(mlp_in)
        x = x + writes[i] + (mlp_in @ made.skip[i] if made.skip else 0)
    return inputs, x[-1] * frozen.final_gain


@pytest.mark.parametrize(("kind", "skip", "checkpoint"), [
    ("plt", False, "text"), ("plt", True, "text"), ("clt", False, "text"), ("clt", True, "text"),
    ("clt", True, "multimodal")])
def test_every_edge_equals_autograd(folders: dict[str, Path], tmp_path: Path, kind: str, skip: bool,
                                    checkpoint: str) -> None:
    model = circuits.load_model(folders[checkpoint], device="cpu")
    made, source = write(tmp_path, kind, skip)
    graph = circuits.trace(model, circuits.open_transcoders(source), tokens=TOKENS, coverage=1.0, max_logits=5)
    nodes, ours = graph.nodes, graph.adjacency().toarray()
    frozen = model.freeze(TOKENS)
    # sources: everything written at each layer, one part per node
    parts = torch.zeros(len(nodes), N_LAYERS, len(TOKENS), D_MODEL)
    features = np.flatnonzero(nodes.kind == "feature")
    for n in features:
        layer, position, feature = int(nodes.layer[n]), int(nodes.position[n]), int(nodes.feature[n])
        for j in range(made.w_dec[layer].shape[1]):
            parts[n, layer + j, position] = made.w_dec[layer][feature, j] * float(nodes.value[n])
    linear = torch.stack([frozen.mlp_in[i] @ made.skip[i] if skip else torch.zeros_like(frozen.mlp_in[i])
                          for i in range(N_LAYERS)])
    error = frozen.mlp_out - linear - parts.sum(0) - torch.stack(made.b_dec)[:, None]
    for n in np.flatnonzero(nodes.kind == "error"):
        parts[n, nodes.layer[n], nodes.position[n]] = error[nodes.layer[n], nodes.position[n]]
    for n in np.flatnonzero(nodes.kind == "constant"):
        layer, position = int(nodes.layer[n]), int(nodes.position[n])
        if position < 0:
            parts[n, layer, 1:] = made.b_dec[layer]
        else:
            parts[n, layer, position] = (frozen.mlp_out - linear)[layer, position]
    torch.testing.assert_close(parts.sum(0) + linear, frozen.mlp_out, rtol=0, atol=1e-5)
    writes = parts.sum(0).requires_grad_(True)
    embeddings = frozen.embeddings.clone().requires_grad_(True)
    inputs, final = frozen_hidden(model, frozen, writes, embeddings, made)
    torch.testing.assert_close(torch.stack(inputs).detach(), frozen.mlp_in, rtol=1e-4, atol=1e-5)

    unembedding = model.unembedding
    for t in np.flatnonzero(nodes.expanded):
        if nodes.kind[t] == "feature":
            layer = int(nodes.layer[t])
            value = inputs[layer][int(nodes.position[t])] @ made.w_enc[layer][int(nodes.feature[t])]
        else:
            value = final @ (unembedding[int(nodes.token[t])] - unembedding.mean(0))
        d_writes, d_embeddings = torch.autograd.grad(value, (writes, embeddings), retain_graph=True,
                                                     allow_unused=True)
        expected = torch.zeros(len(nodes))
        if d_writes is not None:
            expected = (parts * d_writes).sum((1, 2, 3))
        tokens = np.flatnonzero(nodes.kind == "embedding")
        expected[tokens] = (frozen.embeddings * d_embeddings).sum(1)
        np.testing.assert_allclose(ours[t], expected.numpy(), rtol=0, atol=2e-5 * float(expected.abs().max()))
        np.testing.assert_allclose(nodes.input_sum[t], float(value.detach()), rtol=1e-3, atol=1e-4)
    assert len(features) > 50
    assert graph.conservation < 1e-5
    assert graph.unexplored == 0


def test_certificate_bounds_what_is_missing(folders: dict[str, Path], tmp_path: Path) -> None:
    model = circuits.load_model(folders["text"], device="cpu")
    _, source = write(tmp_path, "clt", True)
    transcoders = circuits.open_transcoders(source)
    full = circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0)
    total = full.target_weights.sum()
    for settings in ({"coverage": 0.6}, {"coverage": 0.95}, {"max_features": 30}):
        part = circuits.trace(model, transcoders, tokens=TOKENS, **settings)
        expanded = part.nodes.expanded & (part.nodes.kind == "feature")
        assert len(part) == len(full)
        assert expanded.sum() < len(full.nodes.kind == "feature")
        if "coverage" in settings:
            assert part.unexplored <= 1 - settings["coverage"]
        else:
            assert expanded.sum() == 30
        changed = np.abs(part.nodes.influence - full.nodes.influence).max() / total
        assert changed <= part.unexplored + 1e-6
        ours, theirs = part.adjacency(), full.adjacency()
        rows = np.flatnonzero(part.nodes.expanded)
        np.testing.assert_allclose(ours[rows].toarray(), theirs[rows].toarray(), rtol=1e-3, atol=1e-5)


def test_batches_do_not_change_rows(folders: dict[str, Path], tmp_path: Path) -> None:
    model = circuits.load_model(folders["text"], device="cpu")
    _, source = write(tmp_path, "clt", True)
    transcoders = circuits.open_transcoders(source)
    graphs = [circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0, batch=batch) for batch in (1, 7, None)]
    for other in graphs[1:]:
        np.testing.assert_allclose(graphs[0].adjacency().toarray(), other.adjacency().toarray(), rtol=1e-4, atol=1e-6)


def test_targets(folders: dict[str, Path], tmp_path: Path) -> None:
    model = circuits.load_model(folders["text"], device="cpu")
    _, source = write(tmp_path, "plt", False)
    transcoders = circuits.open_transcoders(source)
    both = circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0, max_logits=2, logit_prob=1.0)
    a, b = both.nodes.token[both.target_nodes].tolist()
    contrast = circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0, target=a, versus=b)
    rows = both.adjacency().toarray()[both.target_nodes]
    row = contrast.adjacency().toarray()[contrast.target_nodes[0]]
    n = len(both) - 2
    np.testing.assert_allclose(row[:n], (rows[0] - rows[1])[:n], rtol=1e-3, atol=1e-5)
    assert contrast.nodes.token[contrast.target_nodes].tolist() == [-1]
    direction = model.unembedding[a] - model.unembedding[b]
    same = circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0, direction=direction)
    np.testing.assert_allclose(same.adjacency().toarray()[-1][:n], row[:n], rtol=1e-3, atol=1e-5)
    named = circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0, target=a)
    np.testing.assert_allclose(named.adjacency().toarray()[-1][:n], rows[0][:n], rtol=1e-4, atol=1e-6)
    logits = model.freeze(TOKENS).logits
    assert named.nodes.value[-1] == pytest.approx(float(logits[a] - logits.mean()), rel=1e-5)


def test_a_wrong_graph_is_not_written(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                      ) -> None:
    """The usual mistake METHOD 3 names: the embedding without its factor sqrt(D)."""
    model = circuits.load_model(folders["text"], device="cpu")
    _, source = write(tmp_path, "clt", False)
    freeze = Gemma3.freeze

    def unscaled(self: Gemma3, tokens: list[int]):
        from dataclasses import replace

        frozen = freeze(self, tokens)
        return replace(frozen, embeddings=frozen.embeddings / D_MODEL**0.5)

    monkeypatch.setattr(Gemma3, "freeze", unscaled)
    with pytest.raises(ConservationError, match="graph would be wrong"):
        circuits.trace(model, circuits.open_transcoders(source), tokens=TOKENS)


def test_reconstruction_is_measured_and_a_bad_layer_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    model = circuits.load_model(folders["text"], device="cpu")
    made = small_dictionary("plt", False)
    made.b_dec[2] += 100
    graph = circuits.trace(model, circuits.open_transcoders(gemma_scope_plt(tmp_path, made)), tokens=TOKENS)
    assert len(graph.header.reconstruction) == N_LAYERS
    y = model.freeze(TOKENS).mlp_out[2, 1:]
    x = model.freeze(TOKENS).mlp_in[2, 1:]
    y_hat = made.encode(2, x) @ made.w_dec[2][:, 0] + made.b_dec[2]
    expected = float((y - y_hat).square().sum() / y.square().sum())
    assert graph.header.reconstruction[2] == pytest.approx(expected, rel=1e-4)
    assert any("layer 2 (" in warning for warning in graph.header.warnings)


@pytest.mark.parametrize("activation", ["jumprelu", "relu", "topk"])
def test_thresholds_of_features(folders: dict[str, Path], tmp_path: Path, activation: str) -> None:
    model = circuits.load_model(folders["text"], device="cpu")
    made = small_dictionary("plt", False)
    made.threshold[1][:5] = -0.25  # fires below zero, too
    if activation == "jumprelu":
        source = gemma_scope_plt(tmp_path, made)
    else:
        source = tracer_plt(tmp_path, made, threshold=False, **({"activation": "topk", "k": 7} if activation == "topk"
                                                                else {"activation": "relu"}))
    nodes = circuits.trace(model, circuits.open_transcoders(source), tokens=TOKENS).nodes
    features = nodes.kind == "feature"
    assert np.isnan(nodes.threshold[~features]).all()
    layer, feature = nodes.layer[features], nodes.feature[features]
    if activation == "topk":
        assert np.isnan(nodes.threshold[features]).all()
    else:
        expected = torch.stack(made.threshold).numpy()[layer, feature] if activation == "jumprelu" else np.zeros(1)
        assert (nodes.threshold[features] == expected).all()
        assert (nodes.value[features] > nodes.threshold[features]).all()
        assert ((layer == 1) & (feature < 5)).any()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"tokens": [2]}, "at least one more"),
    ({"tokens": [2, 500]}, "outside the vocabulary"),
    ({"tokens": [2] * 65}, "reads at most 64"),
    ({}, "either a prompt or tokens"),
    ({"prompt": "a", "tokens": [2, 3]}, "either a prompt or tokens"),
    ({"prompt": "  "}, "prompt is empty"),
    ({"prompt": "hello"}, "no tokenizer"),
    ({"tokens": TOKENS, "coverage": 0.0}, "coverage is 0.0"),
    ({"tokens": TOKENS, "coverage": 1.5}, "coverage is 1.5"),
    ({"tokens": TOKENS, "coverage": float("nan")}, "coverage is nan"),
    ({"tokens": TOKENS, "max_features": 0}, "max_features is 0"),
    ({"tokens": TOKENS, "logit_prob": 0.0}, "logit_prob is 0.0"),
    ({"tokens": TOKENS, "max_logits": 0}, "max_logits is 0"),
    ({"tokens": TOKENS, "versus": 3}, "versus needs a target"),
    ({"tokens": TOKENS, "target": 3, "versus": 3}, "same token"),
    ({"tokens": TOKENS, "target": 128}, "outside the vocabulary"),
    ({"tokens": TOKENS, "dtype": "int8"}, "dtype is 'int8'"),
    ({"tokens": TOKENS, "direction": torch.ones(3)}, r"expected \(32,\)")])
def test_bad_arguments(folders: dict[str, Path], tmp_path: Path, arguments: dict, message: str) -> None:
    model = circuits.load_model(folders["text"], device="cpu")
    _, source = write(tmp_path, "plt", False)
    with pytest.raises(InputError, match=message):
        circuits.trace(model, circuits.open_transcoders(source), **arguments)


def test_transcoders_of_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    model = circuits.load_model(folders["text"], device="cpu")
    other = gemma_scope_clt(tmp_path, dictionary(span=3, n_layers=3, d_model=D_MODEL))
    with pytest.raises((InputError, ModelError), match="3 layers"):
        circuits.trace(model, circuits.open_transcoders(other), tokens=TOKENS)
