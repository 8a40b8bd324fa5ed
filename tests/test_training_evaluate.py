"""Evaluation against a dense computation, against a dictionary that is exact by construction, and its text files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import text_folder
from transcoder_folders import (
    Dictionary,
    dictionary,
    gemma_scope_clt,
    gemma_scope_plt,
    native_folder,
    tracer_clt,
    tracer_plt,
)

import circuits
from circuits.errors import InputError, ModelError
from circuits.gemma3 import Gemma3
from circuits.training import comparison, held_out, reconstruction
from circuits.training.evaluate import Quality, evaluate_on_sequences, evaluate_sets
from circuits.training.graph_quality import Prompt, score_graphs
from circuits.training.held_out import read_sequences, sample_sequences
from circuits.transcoder import Transcoders

SEQUENCES = [[2, 17, 99, 31, 5, 64], [2, 8, 77, 41, 13, 90], [2, 30, 31], [2, 11, 12]]
MEASURED = 14
"""Their positions without <bos>."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    return circuits.load_model(text_folder(tmp_path_factory.mktemp("model")), device="cpu")


def small(**settings) -> Dictionary:
    """Random, and small enough that the replaced model stays near the original."""
    made = dictionary(n_layers=4, features=20, d_model=32, **settings)
    for tensor in [*made.w_dec, *made.b_dec, *(made.skip or [])]:
        tensor *= 0.05
    return made


def predict(made: Dictionary, layer: int, inputs: list[torch.Tensor]) -> torch.Tensor:
    """(P, D) all layers' features densely."""
    y_hat = made.b_dec[layer] + sum(made.encode(i, inputs[i]) @ made.w_dec[i][:, layer - i]
                                    for i in range(layer + 1) if layer - i < made.w_dec[i].shape[1])
    return y_hat if made.skip is None else y_hat + inputs[layer] @ made.skip[layer]


def own_pass(model: Gemma3) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Per sequence, MLP inputs and outputs of every layer (P - 1, D)."""
    passes = [model.mlp_boundaries(torch.tensor([s])) for s in SEQUENCES]
    return [([x[0, 1:, i] for i in range(4)], [y[0, 1:, i] for i in range(4)]) for x, y in passes]


def dense_changed(model: Gemma3, output: Callable[[int, list[torch.Tensor]], torch.Tensor]) -> dict[str, float]:
    """KL, agreement and loss with every MLP output after <bos> made by ``output(layer, inputs so far)``."""
    kl, same, losses = 0.0, 0.0, []
    for tokens in SEQUENCES:
        seen: list[torch.Tensor] = []

        def mlp(layer: int, mlp_in: torch.Tensor, mlp_out: torch.Tensor, seen=seen) -> torch.Tensor:
            seen.append(mlp_in[0, 1:])
            return torch.cat([mlp_out[0, :1], output(layer, seen)])[None]

        plain = model.logits_with_mlps(torch.tensor([tokens]))[0, 1:]
        other = model.logits_with_mlps(torch.tensor([tokens]), mlp)[0, 1:]
        kl += float(torch.nn.functional.kl_div(other.log_softmax(-1), plain.log_softmax(-1), log_target=True,
                                               reduction="sum"))
        same += float((plain.argmax(-1) == other.argmax(-1)).sum())
        losses.append(torch.nn.functional.cross_entropy(other[:-1], torch.tensor(tokens[2:]), reduction="none"))
    return {"kl": kl / MEASURED, "top1_agreement": same / MEASURED, "loss": float(torch.cat(losses).mean())}


def check_dense(model: Gemma3, made: Dictionary, quality: Quality) -> None:
    numbers, own = quality.numbers(), own_pass(model)
    inputs = [torch.cat([x[i] for x, _ in own]) for i in range(4)]
    outputs = [torch.cat([y[i] for _, y in own]) for i in range(4)]
    shares = [(made.encode(i, inputs[i]) > 0).float().mean(0) for i in range(4)]
    for i, y in enumerate(outputs):
        fvu = (y - predict(made, i, inputs)).square().sum() / (y - y.mean(0)).square().sum()
        assert numbers["fvu_by_layer"][i] == pytest.approx(float(fvu), rel=1e-4)
        np.testing.assert_allclose(quality.density[i], shares[i], rtol=1e-6)
        assert numbers["active_by_layer"][i] == pytest.approx(float(shares[i].sum()), rel=1e-5)
        assert numbers["dead_by_layer"][i] == pytest.approx(float((shares[i] == 0).float().mean()))
        assert numbers["dense_by_layer"][i] == pytest.approx(float((shares[i] > 0.1).float().mean()))
    every = torch.cat(shares)
    assert numbers["fvu_mean"] == pytest.approx(sum(numbers["fvu_by_layer"]) / 4)
    assert numbers["active_per_position"] == pytest.approx(float(every.sum()), rel=1e-5)
    assert numbers["dead_fraction"] == pytest.approx(float((every == 0).float().mean()))
    assert numbers["dense_fraction"] == pytest.approx(float((every > 0.1).float().mean()))
    replaced = dense_changed(model, lambda layer, seen: predict(made, layer, seen))
    ablated = dense_changed(model, lambda layer, seen: outputs[layer].mean(0).expand_as(seen[0]))
    loss = float(torch.cat([torch.nn.functional.cross_entropy(
        model.logits_with_mlps(torch.tensor([s]))[0, 1:-1], torch.tensor(s[2:]), reduction="none")
        for s in SEQUENCES]).mean())
    expected = {"kl": replaced["kl"], "top1_agreement": replaced["top1_agreement"], "loss_replaced": replaced["loss"],
                "kl_mean_ablated": ablated["kl"], "loss_mean_ablated": ablated["loss"], "loss": loss,
                "loss_recovered": (ablated["loss"] - replaced["loss"]) / (ablated["loss"] - loss),
                "top1_with_errors": 1.0, "positions": MEASURED}
    for key, value in expected.items():
        assert numbers[key] == pytest.approx(value, rel=1e-3), key
    assert numbers["kl"] > 1e-3
    assert abs(numbers["kl_with_errors"]) < 1e-5


@pytest.mark.parametrize(("write", "settings"), [
    (gemma_scope_clt, dict(span=4, skip=True)), (gemma_scope_plt, dict(span=1, skip=True)),
    (gemma_scope_plt, dict(span=1)), (tracer_clt, dict(span=4)), (tracer_plt, dict(span=1, skip=True)),
    (native_folder, dict(span=2, skip=True)), (native_folder, dict(span=1))])
def test_measures_equal_a_dense_computation_in_every_format(model: Gemma3, tmp_path: Path, write, settings) -> None:
    made = small(**settings)
    check_dense(model, made, evaluate_on_sequences(model, circuits.open_transcoders(write(tmp_path, made)), SEQUENCES))


def test_topk(model: Gemma3, tmp_path: Path) -> None:
    made = small(span=1)
    for threshold in made.threshold:
        threshold.zero_()
    source = tracer_plt(tmp_path, made, threshold=False, activation="topk", k=3)
    quality = evaluate_on_sequences(model, circuits.open_transcoders(source), SEQUENCES)

    class TopK(Dictionary):
        def encode(self, layer: int, x: torch.Tensor) -> torch.Tensor:
            value, feature = super().encode(layer, x).topk(3)
            return torch.zeros(len(x), 20).scatter(1, feature, value)

    check_dense(model, TopK(**vars(made)), quality)
    assert max(quality.active_by_layer) <= 3 + 1e-9


def test_small_batches_and_blocks_change_nothing(model: Gemma3, tmp_path: Path, monkeypatch) -> None:
    transcoders = circuits.open_transcoders(gemma_scope_clt(tmp_path, small(span=4, skip=True)))
    before = evaluate_on_sequences(model, transcoders, SEQUENCES).numbers()
    assert len(list(comparison.in_batches(SEQUENCES, 128))) == 2
    monkeypatch.setattr(comparison, "MAX_POSITIONS", 6)
    monkeypatch.setattr(comparison, "MAX_COMPARED", 2 * 128)
    monkeypatch.setattr(reconstruction, "MAX_ROWS", 3 * 4 * 32)
    assert len(list(comparison.in_batches(SEQUENCES, 128))) == 3
    after = evaluate_on_sequences(model, transcoders, SEQUENCES[::-1]).numbers()
    assert {k: pytest.approx(v, rel=1e-4, abs=1e-6) for k, v in before.items()} == after


def test_sets_side_by_side(model: Gemma3, tmp_path: Path) -> None:
    """The same numbers as alone, and the model's own passes shared."""
    sets = [circuits.open_transcoders(gemma_scope_clt(tmp_path / "a", small(span=4))),
            circuits.open_transcoders(gemma_scope_plt(tmp_path / "b", small(span=1, skip=True, seed=1)))]
    ran: list[int] = []
    handle = model.hf.register_forward_hook(lambda *_: ran.append(1))
    both = evaluate_sets(model, sets, SEQUENCES)
    handle.remove()
    # two batches: plain twice and ablated once, each set once, and on the first batch with error terms
    assert len(ran) == 2 * (3 + 2) + 2
    for together, transcoders in zip(both, sets, strict=True):
        assert together.numbers() == evaluate_on_sequences(model, transcoders, SEQUENCES).numbers()
    assert both[0].fvu_mean != both[1].fvu_mean


def exact(model: Gemma3, folder: Path) -> Transcoders:
    """Features that look up every position of SEQUENCES: feature i is 1 at position i and 0 at the others."""
    inputs, outputs = (torch.stack([torch.cat([layers[side][i] for layers in own_pass(model)]) for i in range(4)])
                       for side in (0, 1))
    made = dictionary(span=1, features=MEASURED, d_model=32)
    for i in range(4):
        made.w_enc[i] = torch.linalg.pinv(inputs[i].double()).T.float().contiguous()
        made.w_dec[i] = outputs[i][:, None]
        made.b_enc[i], made.b_dec[i] = torch.zeros(MEASURED), torch.zeros(32)
        made.threshold[i] = torch.full((MEASURED,), 0.5)
    return circuits.open_transcoders(gemma_scope_plt(folder, made))


def test_an_exact_dictionary_scores_perfectly(model: Gemma3, tmp_path: Path) -> None:
    transcoders = exact(model, tmp_path)
    quality = evaluate_on_sequences(model, transcoders, SEQUENCES)
    numbers = quality.numbers()
    assert numbers["fvu_mean"] == pytest.approx(0, abs=1e-6)
    assert numbers["kl"] == pytest.approx(0, abs=1e-5)
    assert numbers["kl_mean_ablated"] > 0.01
    assert numbers["loss_recovered"] == pytest.approx(1, abs=1e-3)
    assert (numbers["top1_agreement"], numbers["active_per_position"]) == (1.0, pytest.approx(4))
    assert (numbers["dead_fraction"], numbers["dense_fraction"]) == (0.0, 0.0)  # each fires on one of 14 positions
    (graphs,) = score_graphs(model, [transcoders], [Prompt("a", SEQUENCES[0]), Prompt("b", SEQUENCES[2])])
    assert graphs.replacement_score == pytest.approx(1, abs=1e-3)
    assert graphs.completeness_score == pytest.approx(1, abs=1e-3)


def test_graph_scores_are_those_of_unpruned_graphs(model: Gemma3, tmp_path: Path) -> None:
    sets = [circuits.open_transcoders(gemma_scope_clt(tmp_path / "a", small(span=4))),
            circuits.open_transcoders(gemma_scope_plt(tmp_path / "b", small(span=1)))]
    prompts = [Prompt("one", SEQUENCES[0]), Prompt("two", SEQUENCES[1])]
    for transcoders, quality in zip(sets, score_graphs(model, sets, prompts), strict=True):
        numbers = quality.numbers()
        graphs = [circuits.trace(model, transcoders, tokens=p.tokens, coverage=1.0) for p in prompts]
        for key, name in (("replacement_score", "replacement"), ("completeness_score", "completeness")):
            each = [graph.scores[name] for graph in graphs]
            assert min(each) > 0
            assert max(each) < 1
            assert [p[key] for p in numbers["prompts"]] == pytest.approx(each)
            assert numbers[key] == pytest.approx(sum(each) / 2)
        assert [p["prompt"] for p in numbers["prompts"]] == ["one", "two"]
        assert [p["unexplored"] for p in numbers["prompts"]] == [0, 0]
    (partial,) = score_graphs(model, sets[:1], prompts[:1], coverage=0.5)
    assert 0 < partial.prompts[0].unexplored <= 0.5
    with pytest.raises(InputError, match="coverage is 2"):
        score_graphs(model, sets, prompts, coverage=2)
    with pytest.raises(InputError, match="no prompts"):
        score_graphs(model, sets, [])


def test_what_a_text_cannot_tell_is_none(model: Gemma3, tmp_path: Path) -> None:
    """One position has no variance and no next token."""
    transcoders = circuits.open_transcoders(gemma_scope_plt(tmp_path, small(span=1)))
    numbers = evaluate_on_sequences(model, transcoders, [[2, 5]]).numbers()
    assert numbers["positions"] == 1
    assert numbers["loss"] is None
    assert numbers["loss_recovered"] is None
    assert numbers["fvu_mean"] is None
    assert numbers["kl"] > 0
    with pytest.raises(InputError, match="nothing to measure"):
        evaluate_on_sequences(model, transcoders, [[2]])
    other = circuits.open_transcoders(gemma_scope_plt(tmp_path / "other", dictionary(span=1, n_layers=3, d_model=32)))
    with pytest.raises(ModelError, match="3 layers"):
        evaluate_sets(model, [transcoders, other], SEQUENCES)


def test_the_chat_prefix_is_not_measured(tmp_path: Path) -> None:
    model = circuits.load_model(text_folder(tmp_path / "tiny-it", vocab_size=2400), device="cpu")
    transcoders = circuits.open_transcoders(gemma_scope_plt(tmp_path, small(span=1)))
    chat = [2, 105, 2364, 107, 9, 8, 7]
    assert evaluate_on_sequences(model, transcoders, [chat, [2, 9, 8]]).positions == 3 + 2
    sampled = sample_sequences(model, tokens=7, length=7)
    assert [tokens[:4] for tokens in sampled] == [chat[:4]] * 3


def test_sampled_sequences(model: Gemma3, monkeypatch) -> None:
    sampled = sample_sequences(model, tokens=20, length=8)
    assert [len(tokens) for tokens in sampled] == [8, 8, 8]
    assert {tokens[0] for tokens in sampled} == {2}
    assert len({tuple(tokens) for tokens in sampled}) == 3
    assert sampled == sample_sequences(model, tokens=20, length=8)
    assert sampled != sample_sequences(model, tokens=20, length=8, seed=100)
    monkeypatch.setattr(held_out, "SAMPLED_AT_ONCE", 2)
    told: list[tuple[int, int]] = []
    blocks = sample_sequences(model, tokens=20, length=8, progress=lambda stage, *done: told.append(done))
    assert len({tuple(tokens) for tokens in blocks}) == 3
    assert told == sorted(told)
    assert told[-1] == (16, 16)
    for bad, message in ((dict(tokens=0, length=8), "0 tokens"), (dict(tokens=5, length=1), "length is 1"),
                         (dict(tokens=5, length=65), "length is 65: expected 2 to 64")):
        with pytest.raises(InputError, match=message):
            sample_sequences(model, **bad)


class Tokenizer:
    """One token a character."""

    bos_token_id = 2

    def __call__(self, text: str, add_special_tokens: bool) -> dict:
        return {"input_ids": [5 + ord(c) % 50 for c in text]}


@pytest.mark.parametrize(("content", "message"), [
    ('{"text": 3}\n', "line 1: 'text' must be a string"), ('\n{"body": "x"}\n', "line 2: .*'text' key"),
    ("nonsense\n", "'text' key"), ("[1]\n", "'text' key"), ("\n\n", "holds no text"), ('{"text": ""}', "no text")])
def test_bad_text_files(model: Gemma3, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_sequences(Gemma3(model.hf, Tokenizer(), "tiny"), path, length=8)


def test_text_files(model: Gemma3, tmp_path: Path) -> None:
    named = Gemma3(model.hf, Tokenizer(), "tiny")
    path = tmp_path / "text.jsonl"
    # a line separator inside a string does not end the line
    path.write_text('{"text": "abcd\u2028fgh"}\n\n{"text": "xyz"}\n', encoding="utf-8")
    assert [len(s) for s in read_sequences(named, path, length=6)] == [6, 4, 4]
    assert [len(s) for s in read_sequences(named, path, length=6, max_tokens=7)] == [6, 3]
    plain = tmp_path / "text.txt"
    plain.write_text('{"text": "abcdefgh"}')
    assert sum(len(s) - 1 for s in read_sequences(named, plain, length=64)) == 20
    for bad, message in ((dict(length=1), "length is 1"), (dict(length=65), "expected 2 to 64"),
                         (dict(length=6, max_tokens=0), "max_tokens is 0")):
        with pytest.raises(InputError, match=message):
            read_sequences(named, plain, **bad)
    with pytest.raises(InputError, match="cannot read"):
        read_sequences(named, tmp_path / "absent.txt", length=6)
    with pytest.raises(InputError, match="no tokenizer"):
        read_sequences(model, plain, length=6)
    plain.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_sequences(named, plain, length=6)
