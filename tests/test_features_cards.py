"""The cards of a traced graph: equal to feature data, to the weights without it, and made only when asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from random_graphs import assert_same
from tiny_models import text_folder
from transcoder_folders import dictionary, native_folder

import circuits
from circuits.features import FeatureData, TranscoderCards, collect_features, text_activations
from circuits.features import cards as module
from circuits.features.activity import TOKENS
from circuits.features.tokens import logit_effects
from circuits.gemma3 import Gemma3
from circuits.graphs import load
from circuits.graphs.cards import FeatureCards, TokenLists
from circuits.prompt import token_text
from circuits.transcoder import Transcoders

PROMPT = [2, 11, 12, 13, 99, 12]
LAYERS, FEATURES = 4, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    return circuits.load_model(text_folder(tmp_path_factory.mktemp("model")), device="cpu")


def small_set(folder: Path) -> Transcoders:
    made = dictionary(span=LAYERS, n_layers=LAYERS, features=FEATURES, d_model=32)
    for tensor in [*made.w_dec, *made.b_dec]:
        tensor *= 0.1
    for bias in made.b_enc:
        bias[3] = -1000.0  # never fires
    return circuits.open_transcoders(native_folder(folder, made))


@pytest.fixture
def transcoders(tmp_path: Path) -> Transcoders:
    return small_set(tmp_path / "set")


def collected(model: Gemma3, transcoders: Transcoders) -> FeatureData:
    generator = torch.Generator().manual_seed(0)
    sequences = torch.cat([torch.full((40, 1), 2), torch.randint(3, 128, (40, 9), generator=generator)], 1).tolist()
    return collect_features(model, transcoders, text_activations(model, sequences))


def listed(column: TokenLists, i: int) -> tuple[list[int], list[float]]:
    part = slice(column.start[i], column.start[i + 1])
    return column.token[part].tolist(), column.score[part].tolist()


def assert_from_weights(model: Gemma3, transcoders: Transcoders, cards: FeatureCards, i: int) -> None:
    layer, feature = int(cards.layer[i]), int(cards.feature[i])
    effects = logit_effects(model, transcoders, layer, torch.tensor([feature]), torch.arange(model.vocab_size), TOKENS)
    for column, tokens, scores in ((cards.promoted, effects.top_tokens, effects.top),
                                   (cards.suppressed, effects.bottom_tokens, effects.bottom)):
        found, values = listed(column, i)
        assert found == tokens[0].tolist()
        np.testing.assert_allclose(values, scores[0], rtol=1e-4, atol=1e-6)
        assert all(cards.texts[token] == token_text(model, token) for token in found)
    assert cards.contexts.start[i] == cards.contexts.start[i + 1]
    assert np.isnan(cards.max_activation[i])


def assert_from_data(data: FeatureData, cards: FeatureCards, i: int) -> None:
    known = data.read(int(cards.layer[i]), int(cards.feature[i]))
    assert known is not None
    assert cards.density[i] == np.float32(known.density)
    assert cards.max_activation[i] == np.float32(known.max_activation)
    for column, expected in ((cards.promoted, known.promoted), (cards.suppressed, known.suppressed)):
        assert listed(column, i) == (expected.tokens.tolist(), expected.scores.tolist())
    c = cards.contexts
    assert c.start[i + 1] - c.start[i] == len(known.contexts) > 0
    for j, context in zip(range(c.start[i], c.start[i + 1]), known.contexts, strict=True):
        part = slice(c.first[j], c.first[j + 1])
        assert c.token[part].tolist() == context.tokens.tolist()
        assert (c.peak[j], c.quantile[j]) == (context.peak, np.float32(context.quantile))
        np.testing.assert_allclose(c.activation[part] / 255 * known.max_activation, context.activations, rtol=1e-5)
    assert all(cards.texts[token] == text for token, text in known.texts.items() if token in cards.texts)


def test_cards_from_feature_data_and_from_weights_for_what_it_lacks(model: Gemma3, transcoders: Transcoders) -> None:
    data = collected(model, transcoders)
    layers, features = np.array([2, 0, 1, 1, 1, 2]), np.array([5, 7, 3, 2, 2, 8])
    cards = TranscoderCards(model, transcoders, data).of(layers, features)
    names = list(zip(cards.layer.tolist(), cards.feature.tolist(), strict=True))
    assert names == [(0, 7), (1, 2), (1, 3), (2, 5), (2, 8)]
    for i, name in enumerate(names):
        if name == (1, 3):
            assert cards.density[i] == 0
            assert_from_weights(model, transcoders, cards, i)
        else:
            assert_from_data(data, cards, i)


def test_cards_from_weights_alone(model: Gemma3, transcoders: Transcoders) -> None:
    cards = TranscoderCards(model, transcoders).of(np.arange(LAYERS).repeat(3), np.tile([0, 3, 23], LAYERS))
    assert len(cards) == 3 * LAYERS
    assert np.isnan(cards.density).all()
    for i in range(len(cards)):
        assert_from_weights(model, transcoders, cards, i)
    assert len(TranscoderCards(model, transcoders).of(np.zeros(0, int), np.zeros(0, int))) == 0


def test_a_mean_over_some_features_and_candidates_among_some_tokens(model: Gemma3, transcoders: Transcoders,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEAN_OF", 6)
    monkeypatch.setattr(module, "MERGES", range(10, 40))
    monkeypatch.setattr(module, "CHARACTERS", range(100, 110))
    (promoted, suppressed), = module.weight_lists(model, transcoders, [(1, 5)]).values()
    written = transcoders.decoder_rows(1, torch.arange(FEATURES)).sum(1)
    direction = (written[5] - written[[0, 4, 8, 12, 16, 20]].mean(0)) * model.final_norm_gain
    candidates = torch.tensor([*range(10, 40), *range(100, 110)])
    effects = model.unembedding[candidates].float() @ direction
    value, place = (effects - effects.mean()).sort(descending=True)
    assert promoted.tokens.tolist() == candidates[place[:TOKENS]].tolist()
    assert suppressed.tokens.tolist() == candidates[place.flip(0)[:TOKENS]].tolist()
    np.testing.assert_allclose(promoted.scores, value[:TOKENS].detach(), rtol=1e-4, atol=1e-6)


def test_a_traced_graph_has_cards_when_they_are_asked_for(model: Gemma3, transcoders: Transcoders, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    data = collected(model, transcoders)
    asked = []
    make = TranscoderCards.of
    monkeypatch.setattr(TranscoderCards, "of", lambda self, *names: asked.append(len(names[0])) or make(self, *names))
    graph = circuits.trace(model, transcoders, tokens=PROMPT)
    small = graph.prune(0.6, 0.9)
    assert asked == []
    small.save(tmp_path / "g.safetensors")
    cards = small.feature_cards()
    assert cards is not None
    nodes = small.nodes
    assert asked == [len({(nodes.layer[i], nodes.feature[i]) for i in np.flatnonzero(nodes.kind == "feature")})]
    assert asked == [len(cards)]
    again = load(tmp_path / "g.safetensors")
    assert_same(again, small)
    assert isinstance(again.cards, FeatureCards)
    whole = graph.prompt_activations()
    assert len(whole) == (graph.nodes.kind == "feature").sum()
    assert (nodes.kind == "feature").sum() < len(again.prompt_activations()) < len(whole)
    for i in range(len(cards)):
        assert_from_data(data, cards, i)
        one = (int(cards.layer[i]), int(cards.feature[i]))
        for found, expected in zip(again.prompt_activations().of(*one), whole.of(*one), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_damaged_feature_data_costs_contexts_and_a_warning(model: Gemma3, transcoders: Transcoders) -> None:
    data = collected(model, transcoders)
    graph = circuits.trace(model, transcoders, tokens=PROMPT)
    assert not [warning for warning in graph.header.warnings if "labels" in warning]
    cards = graph.feature_cards()
    assert cards is not None
    (bad,) = np.flatnonzero((cards.layer == 1) & (cards.contexts.start[1:] > cards.contexts.start[:-1]))[:1]
    name = int(cards.layer[bad]), int(cards.feature[bad])
    raw = bytearray(data.path.read_bytes())
    end = int(data._ends[FEATURES * name[0] + name[1]])
    raw[end - 3] ^= 0xFF  # in the block's checksum
    data.path.write_bytes(raw)
    graph = circuits.trace(model, transcoders, tokens=PROMPT)
    (warning,) = [warning for warning in graph.header.warnings if "labels" in warning]
    assert f"layer {name[0]} have no labels" in warning
    assert f"block of feature {name[0]}/{name[1]}" in warning
    cards = graph.feature_cards()
    assert cards is not None
    assert_from_weights(model, transcoders, cards, cards.find(*name))
    assert np.isnan(cards.density[cards.find(*name)])
    assert_from_data(data, cards, cards.find(*name) - 1)
    data.path.write_bytes(b"noise" * 100)
    graph = circuits.trace(model, transcoders, tokens=PROMPT)
    assert any("features have no labels" in warning for warning in graph.header.warnings)
    cards = graph.feature_cards()
    assert cards is not None
    assert_from_weights(model, transcoders, cards, 0)
