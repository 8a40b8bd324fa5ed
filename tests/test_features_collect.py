"""Feature data collected from a stream equals what dense arrays of all activations give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import text_folder
from transcoder_folders import Dictionary, dictionary, native_folder, tracer_clt

import circuits
from circuits.errors import FormatError, InputError
from circuits.features import FeatureData, collect_features, feature_data, text_activations
from circuits.features.activity import AFTER, BEFORE, TOKENS, TOP, LayerActivity, histogram_bin
from circuits.gemma3 import Gemma3
from circuits.transcoder import Transcoders

LAYERS, FEATURES, WIDTH = 4, 24, 32
PREFIX = 2
CANDIDATES = torch.arange(3, 128, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    return circuits.load_model(text_folder(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def made() -> Dictionary:
    made = dictionary(span=4, n_layers=LAYERS, features=FEATURES, d_model=WIDTH)
    for bias, threshold in zip(made.b_enc, made.threshold, strict=True):
        bias[3] = -1000.0  # never fires
        bias[5], threshold[5] = -20.0, 0.1  # seldom fires
    made.threshold[1][7] = -0.5  # fires below zero, too
    return made


@pytest.fixture(scope="module")
def transcoders(made: Dictionary, tmp_path_factory: pytest.TempPathFactory) -> Transcoders:
    return circuits.open_transcoders(native_folder(tmp_path_factory.mktemp("clt"), made))


@pytest.fixture(scope="module")
def shards() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two of one length and one of another, as streams have."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(9, 30), (7, 30), (6, 11)]
    return [(torch.randint(0, 128, (b, p + PREFIX), generator=generator, dtype=torch.int32),
             torch.randn(b, p, LAYERS, WIDTH, generator=generator).to(torch.bfloat16)) for b, p in shapes]


@pytest.fixture(scope="module")
def data(model, transcoders, shards, monkeypatch_module) -> FeatureData:
    monkeypatch_module.setattr("circuits.features.collect._POSITIONS", 100)  # several batches a shard
    return collect_features(model, transcoders, shards, text="random", candidates=CANDIDATES)


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def dense(made: Dictionary, shards, layer: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, activations (P, F)) of every sequence; entries of silent features are NaN."""
    found = []
    for tokens, mlp_in in shards:
        for row, x in zip(tokens, mlp_in, strict=True):
            pre = x[:, layer].float() @ made.w_enc[layer].T + made.b_enc[layer]
            found.append((row.numpy(), torch.where(pre > made.threshold[layer], pre, torch.nan).numpy()))
    return found


@pytest.mark.parametrize("layer", range(LAYERS))
def test_counts_histograms_and_tokens(data, made, shards, layer: int) -> None:
    sequences = dense(made, shards, layer)
    fired = np.concatenate([acts for _, acts in sequences])
    tokens = np.concatenate([tokens[PREFIX:] for tokens, _ in sequences])
    live = np.flatnonzero(~np.isnan(fired).all(0))
    np.testing.assert_array_equal(data.live(layer), live)
    assert 3 not in live
    assert data.read(layer, 3) is None
    np.testing.assert_allclose(data.density(layer), (~np.isnan(fired)).mean(0))
    for i in live:
        feature = data.read(layer, i)
        here = ~np.isnan(fired[:, i])
        values = fired[here, i]
        assert feature.count == here.sum() == feature.histogram.sum()
        assert feature.density == pytest.approx(here.mean())
        assert feature.max_activation == pytest.approx(values.max(), rel=1e-5)
        edges = feature.bin_edges
        assert edges[-2] <= values.max() < edges[-1]
        expected = np.histogram(np.clip(values, edges[0], None), edges)[0]
        np.testing.assert_array_equal(feature.histogram, expected)
        strongest = {}
        for token, value in zip(tokens[here], values, strict=True):
            strongest[token] = max(value, strongest.get(token, -np.inf))
        ranked = sorted(strongest, key=strongest.get, reverse=True)[:TOKENS]
        assert feature.fired_on.tokens.tolist() == ranked
        np.testing.assert_allclose(feature.fired_on.scores, [strongest[t] for t in ranked], rtol=1e-3)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_top_contexts(data, made, shards, layer: int) -> None:
    sequences = dense(made, shards, layer)
    for i in data.live(layer):
        feature = data.read(layer, i)
        best = []
        for tokens, acts in sequences:
            if not np.isnan(acts[:, i]).all():
                place = int(np.nanargmax(acts[:, i]))
                best.append((acts[place, i], place, tokens, acts[:, i]))
        best = sorted(best, key=lambda found: -found[0])[:TOP]
        top = [context for context in feature.contexts if context.quantile == 1]
        assert len(top) == len(best)
        for context, (_, place, tokens, acts) in zip(top, best, strict=True):
            window = slice(max(0, place + PREFIX - BEFORE), place + PREFIX + AFTER + 1)
            assert context.tokens.tolist() == tokens[window].tolist()
            assert context.peak == min(BEFORE, place + PREFIX)
            whole = np.concatenate([np.zeros(PREFIX), np.nan_to_num(acts).clip(0)])
            rounding = 1.01 * max(0, feature.max_activation) / 255  # small ones are rounded up
            np.testing.assert_allclose(context.activations, whole[window], atol=rounding)


def test_other_contexts_come_from_the_middle_and_from_other_sequences(data, made, shards) -> None:
    seen = 0
    for layer in range(LAYERS):
        sequences = dense(made, shards, layer)
        for i in data.live(layer):
            feature = data.read(layer, i)
            values = np.concatenate([acts[:, i] for _, acts in sequences])
            values = values[~np.isnan(values)]
            others = [context for context in feature.contexts if context.quantile < 1]
            assert len(others) <= 2
            top = {tuple(c.tokens) for c in feature.contexts if c.quantile == 1}
            for context in others:
                assert tuple(context.tokens) not in top
                peak, rounding = context.activations[context.peak], max(0, feature.max_activation) / 255
                low, high = (np.exp2(np.floor(4 * np.log2(max(v, 2**-10)) + 1) / 4)  # end of the histogram's bin
                             for v in (peak - rounding, peak + rounding))
                assert (values < low).mean() - 0.003 <= context.quantile <= (values < high).mean() + 0.003
                seen += 1
    assert seen > 20


@pytest.mark.parametrize("layer", range(LAYERS))
def test_promoted_suppressed_and_exciting_tokens(data, model, made, layer: int) -> None:
    decoder = made.w_dec[layer].sum(1)
    direction = (decoder - decoder.mean(0)) * (1 + model.hf.model.norm.weight)
    effects = direction @ model.hf.lm_head.weight[CANDIDATES].T
    effects -= effects.mean(1, keepdim=True)
    norm = model.hf.model.layers[layer].pre_feedforward_layernorm
    scores = norm(model.hf.model.embed_tokens(CANDIDATES)) @ made.w_enc[layer].T
    scores = (scores - scores.mean(0)).T
    for i in data.live(layer):
        feature = data.read(layer, i)
        for name, expected in (("promoted", effects[i]), ("suppressed", -effects[i]), ("exciting", scores[i])):
            value, token = expected.topk(TOKENS)
            sign = -1 if name == "suppressed" else 1
            found = getattr(feature, name)
            np.testing.assert_allclose(found.scores, sign * value, rtol=2e-3)
            assert found.tokens.tolist() == CANDIDATES[token].tolist()
        assert feature.effect_spread == pytest.approx(float(effects[i].std(correction=0)), rel=2e-3)
        assert feature.texts[int(feature.promoted.tokens[0])] == f"[{feature.promoted.tokens[0]}]"


def test_a_stream_in_any_parts_gives_the_same(model, transcoders, shards, data, tmp_path: Path) -> None:
    one_by_one = [(tokens[i:i + 1], mlp_in[i:i + 1]) for tokens, mlp_in in shards for i in range(len(tokens))]
    other = collect_features(model, transcoders, one_by_one, path=tmp_path / "f.bin")
    for layer in range(LAYERS):
        for i in data.live(layer):
            a, b = data.read(layer, i), other.read(layer, i)
            assert a.count == b.count
            # float32 products of other batch sizes round differently
            assert a.max_activation == pytest.approx(b.max_activation, rel=1e-5, abs=1e-5)
            assert a.histogram.tolist() == b.histogram.tolist()
            assert a.fired_on.tokens.tolist() == b.fired_on.tokens.tolist()
            for x, y in zip(a.contexts[:TOP], b.contexts[:TOP], strict=True):
                if x.quantile == y.quantile == 1:
                    assert x.tokens.tolist() == y.tokens.tolist()


@pytest.mark.parametrize(("few", "expected"), [(4096, "all"), (2, "occurring")])
def test_candidates_are_the_tokens_of_the_text_unless_few(model, transcoders, monkeypatch, few: int, expected: str,
                                                          tmp_path: Path) -> None:
    monkeypatch.setattr("circuits.features.collect.FEW_TOKENS", few)
    tokens = torch.tensor([[2, 5, 6, 7, 9, 11, 5, 6]], dtype=torch.int32)
    made = collect_features(model, transcoders, [(tokens, torch.randn(1, 7, LAYERS, WIDTH))], path=tmp_path / "f.bin")
    assert made.candidates == (128 if expected == "all" else 6)
    found = [made.read(layer, i) for layer in range(LAYERS) for i in made.live(layer)]
    promoted = {int(token) for feature in found for token in feature.promoted.tokens}
    assert (promoted <= {2, 5, 6, 7, 9, 11}) == (expected == "occurring")


def test_equal_activations_keep_the_first_sequences() -> None:
    activity = LayerActivity(1)
    none = torch.zeros(4, dtype=torch.int64)
    for first in range(0, 12, 4):
        activity.add(torch.arange(0, 12, 3), none, torch.ones(4), torch.zeros(4, 3, dtype=torch.int64), first)
    assert activity.top.sequence.tolist() == [list(range(TOP))]
    assert activity.tokens.token[0].tolist() == [0] + [-1] * (TOKENS - 1)
    assert histogram_bin(torch.tensor([-1.0, 0.0, 1e-9, 2.0**-10, 1.0, 1e30])).tolist() == [0, 0, 0, 0, 40, 127]


def test_data_is_found_beside_its_own_weights_only(model, transcoders, made, data, tmp_path: Path) -> None:
    found = feature_data(transcoders)
    assert found is not None
    assert found.header["text"] == "random"
    assert found.positions == 9 * 30 + 7 * 30 + 6 * 11
    converted = circuits.open_transcoders(tracer_clt(tmp_path / "same", made))
    assert feature_data(converted) is None
    (tmp_path / "same" / "features.bin").write_bytes(data.path.read_bytes())
    assert feature_data(converted) is not None
    other = circuits.open_transcoders(tracer_clt(tmp_path / "other", dictionary(span=4, d_model=WIDTH, seed=5)))
    (tmp_path / "other" / "features.bin").write_bytes(data.path.read_bytes())
    with pytest.raises(FormatError, match=r"other weights than .*collect it again"):
        feature_data(other)


def test_activations_of_sequences_of_any_length(model) -> None:
    ids = [[2, 5, 6, 7], [2, 9, 8, 3], [2], [2, 5], [2, 105, 2364, 107]]
    with pytest.raises(IndexError):
        list(text_activations(model, [[2, 5, 999]]))
    found = list(text_activations(model, ids[:4], batch=1))
    assert [tokens.tolist() for tokens, _ in found] == [[ids[0]], [ids[1]], [ids[3]]]
    for tokens, mlp_in in found:
        assert mlp_in.shape == (1, tokens.shape[1] - 1, LAYERS, WIDTH)
        frozen = model.freeze(tokens[0].tolist())
        torch.testing.assert_close(mlp_in[0], frozen.mlp_in.transpose(0, 1)[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("tokens", "mlp_in", "message"), [
    ((3, 8), (3, 9, LAYERS, WIDTH), "prefix"), ((3, 8), (2, 7, LAYERS, WIDTH), "shapes"),
    ((3, 8), (3, 7, LAYERS, 7), "shapes"), ((8,), (3, 7, LAYERS, WIDTH), "shapes"),
    ((3, 8), (3, 0, LAYERS, WIDTH), "shapes")])
def test_misshapen_activations(model, transcoders, tokens, mlp_in, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        collect_features(model, transcoders, [(torch.zeros(tokens), torch.zeros(mlp_in))], path=tmp_path / "f.bin")
    assert not (tmp_path / "f.bin").exists()


def test_nothing_to_collect_from(model, transcoders, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no activations"):
        collect_features(model, transcoders, [], path=tmp_path / "f.bin")
    with pytest.raises(InputError, match="cannot write"):
        collect_features(model, transcoders, [(torch.zeros(1, 4).int(), torch.ones(1, 3, LAYERS, WIDTH))],
                         path=tmp_path / "absent" / "f.bin")
