"""Graphs compared with their models at hand: twins that compute the same in other dimensions, and chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_graphs_compare import headed
from test_prompt import write_tokenizer
from tiny_models import text_folder
from transcoder_folders import native_folder
from twin_models import FEATURES, LAYERS, Twins, scaled_dictionary, twins

import circuits
from circuits.comparing.compare import Opened, compare, feature_names, named_sources
from circuits.comparing.correlation import corpus_view
from circuits.comparing.lens import read_layers
from circuits.comparing.signatures import signatures_of, vocabulary_views, with_spares
from circuits.errors import InputError, ModelError
from circuits.graphs import AttributionGraph
from circuits.graphs.alignment import align
from circuits.graphs.compare import Comparison, Pair
from circuits.graphs.signatures import CORPUS, READS, WRITES, Signatures, View, similarities

TOKENS = [2, 17, 99, 31, 5, 64, 99, 120, 8, 77]


@pytest.fixture(scope="module", params=["rotated", "wider and deeper"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    root = tmp_path_factory.mktemp("twins")
    return twins(root) if request.param == "rotated" else twins(root, width=48, depth=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    root = tmp_path_factory.mktemp("world")
    model = text_folder(root / "model")
    write_tokenizer(model)
    return (circuits.load_model(model, device="cpu"),
            circuits.open_transcoders(native_folder(root / "clt", scaled_dictionary(LAYERS, seed=5))))


@pytest.fixture(scope="module")
def graph(world: Opened) -> AttributionGraph:
    return circuits.trace(*world, tokens=TOKENS, coverage=1.0, max_logits=1)


def opened(model: str, transcoders: str) -> Opened:
    return circuits.load_model(model, device="cpu"), circuits.open_transcoders(transcoders)


def right(found: Comparison, pair: Pair, folders: Twins) -> int:
    """Matches of a feature with what it became."""
    one, two = (found.graphs[i].side.pruned.nodes for i in (0, pair.second))
    return sum(folders.of(int(one.layer[match.first]), int(one.feature[match.first])) == (
        int(two.layer[match.second]), int(two.feature[match.second])) and
        one.position[match.first] == two.position[match.second] for match in pair.alignment.matches)


def test_rotated_twins_are_matched_feature_by_feature(folders: Twins, tmp_path: Path) -> None:
    models = [opened(folders.model, folders.transcoders), opened(folders.twin, folders.twin_transcoders)]
    graphs = [circuits.trace(*own, tokens=TOKENS, coverage=1.0, max_logits=3) for own in models]
    for a, b in zip(graphs[0].scores.values(), graphs[1].scores.values(), strict=True):
        assert a == pytest.approx(b, abs=2e-2 if folders.layer > 1 else 1e-5)  # idle layers have nodes, too
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("paris x mo s paris mo x s " * 40)
    found = compare(graphs, models, node_threshold=1.0, corpus=corpus)
    pair = found.pairs[0]
    n_features = pair.alignment.features[0]
    assert pair.alignment.features == (n_features, n_features)
    assert n_features > 150
    assert right(found, pair, folders) >= 0.95 * n_features
    assert right(found, pair, folders) == len(pair.alignment.matches)
    assert pair.alignment.views == (WRITES, READS, CORPUS)
    for match in pair.alignment.matches:
        assert min(match.similarities.values()) > 0.999
        assert match.score == pytest.approx(1 if folders.layer == 1 else 0.875, abs=1e-3)
    for name in ("matched_influence", "tokens", "positions", "places", "steps"):
        assert pair.measures[name].value > 0.97, name
    one, two = found.graphs
    assert one.decided.cumulative == pytest.approx(two.decided.cumulative[::folders.layer], rel=1e-4)
    assert one.reading is not None
    assert two.reading is not None
    np.testing.assert_allclose(one.reading.probability, two.reading.probability[::folders.layer], rtol=1e-4)


def test_names_in_the_graphs_open_the_models_one_by_one(folders: Twins) -> None:
    if folders.layer > 1:
        pytest.skip("once is enough")
    names = [(folders.model, folders.transcoders), (folders.twin, folders.twin_transcoders)]
    graphs = [circuits.trace(*opened(*own), tokens=TOKENS, coverage=0.8, max_logits=1) for own in names]
    told = [headed(made, model=model, transcoders=transcoders)
            for made, (model, transcoders) in zip(graphs, names, strict=True)]
    loads: list[str] = []
    found = compare(told, device="cpu", progress=lambda stage, done, total: loads.append(stage))
    assert len([stage for stage in loads if stage.startswith("loading")]) == 2
    assert right(found, found.pairs[0], folders) >= 0.95 * found.pairs[0].alignment.features[0]
    same = compare(graphs, names, device="cpu")
    assert [match.score for match in same.pairs[0].alignment.matches] == [
        match.score for match in found.pairs[0].alignment.matches]
    assert named_sources(graphs, None, None) is None
    assert named_sources(told, [folders.model, folders.model], None) == [
        (folders.model, folders.transcoders), (folders.model, folders.twin_transcoders)]


def known(own: Opened, graph: AttributionGraph) -> Signatures:
    layer, feature, spare = with_spares(*feature_names([graph]), own[1].d_transcoder, 0)
    return signatures_of(own[0], layer, feature, vocabulary_views(*own, layer, feature), spare)


def test_other_dictionaries_stay_at_the_null(world: Opened, graph: AttributionGraph, tmp_path: Path) -> None:
    """The same model with dictionaries that have nothing in common: about one pair in twenty reaches the limit."""
    first, matched, paired = graph.prune(0.95), 0, 0
    for seed in range(4):
        own = world[0], circuits.open_transcoders(native_folder(tmp_path / str(seed),
                                                                scaled_dictionary(LAYERS, seed=50 + seed)))
        second = circuits.trace(*own, tokens=TOKENS, coverage=0.9, max_logits=1).prune(0.95)
        found = align(first, second, (known(world, first), known(own, second)), seed=seed)
        matched, paired = matched + len(found.matches), paired + found.paired
    assert paired > 300
    assert matched / paired < 0.08  # 3 standard deviations of what features that fire several times leave uncertain


def test_unrelated_prompts_of_one_model_stay_at_the_null(world: Opened, graph: AttributionGraph) -> None:
    rng, first = np.random.default_rng(0), graph.prune(0.95)
    others = [circuits.trace(*world, tokens=[2, *rng.integers(6, 128, len(TOKENS) - 1).tolist()], coverage=0.9,
                             max_logits=1).prune(0.95) for _ in range(4)]
    found = [align(first, other, (known(world, first), known(world, other)), two_prompts=True) for other in others]
    matched, paired = sum(len(made.matches) for made in found), sum(made.paired for made in found)
    assert paired > 300
    assert matched / paired < 0.08
    # the same prompt with its last token changed shares what comes before
    near = circuits.trace(*world, tokens=[*TOKENS[:-1], 41], coverage=0.9, max_logits=1)
    related = compare([graph, near], [world] * 2, two_prompts=True, node_threshold=0.95, unrelated=others)
    own = related.pairs[0].alignment
    assert len(own.matches) + len(own.common) > 0.5 * own.paired
    assert related.pairs[0].beyond_unrelated("matched_influence") == pytest.approx(1 / 5)


def test_per_layer_against_cross_layer_and_three_graphs(world: Opened, graph: AttributionGraph, tmp_path: Path
                                                        ) -> None:
    """A per-layer set with the encoders of the cross-layer one: the same features, as far as first writes tell."""
    clt = scaled_dictionary(LAYERS, seed=5)
    per_layer = replace(clt, w_dec=[w[:, :1] for w in clt.w_dec])
    plt = circuits.open_transcoders(native_folder(tmp_path / "plt", per_layer))
    second = circuits.trace(world[0], plt, tokens=TOKENS, coverage=1.0, max_logits=1)
    found = compare([graph, second, graph], [world, (world[0], plt), world], node_threshold=0.95)
    assert [made.name for made in found.graphs[:2]] == ["model CLT clt (1)", "model PLT plt (2)"]
    cross, same = found.pairs
    nodes = [made.side.pruned.nodes for made in found.graphs]
    equal = [(nodes[0].layer[m.first], nodes[0].feature[m.first]) == (nodes[1].layer[m.second],
                                                                       nodes[1].feature[m.second])
             for m in cross.alignment.matches]
    assert len(equal) > 0.5 * cross.alignment.paired
    assert np.mean(equal) > 0.95
    assert cross.measures["matched_influence"].agrees
    assert cross.measures["tokens"].value < same.measures["tokens"].value == pytest.approx(1)
    assert len(same.alignment.matches) == same.alignment.features[0]


def test_vocabulary_views_are_the_ends_of_the_dense_maps(world: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    model, transcoders = world
    layer, feature = np.array([0, 0, 2, 3]), np.array([1, 4, 7, 2])
    monkeypatch.setattr("circuits.comparing.signatures.KEPT", 10)
    made = vocabulary_views(model, transcoders, layer, feature)
    gain = 1 + model.hf.model.norm.weight
    embedding = model.embedding * model.d_model**0.5
    normed = embedding * torch.rsqrt(embedding.square().mean(1, keepdim=True) + model.norm_eps)
    for row, (at, number) in enumerate(zip(layer.tolist(), feature.tolist(), strict=True)):
        every = transcoders.decoder_rows(at, torch.arange(FEATURES)).sum(1)
        encoder = transcoders.encoder_rows(at, torch.tensor([number]))[0]
        for name, dense in ((WRITES, model.unembedding @ ((every[number] - every.mean(0)) * gain)),
                            (READS, normed @ (encoder * model.mlp_norm_gain(at)))):
            values = (dense - dense.mean()).double().numpy()
            order = np.argsort(values)
            expected = np.zeros(model.vocab_size)
            ends = np.concatenate([order[:10], order[-10:]])
            expected[ends] = values[ends]
            np.testing.assert_allclose(made[name].rows[[row]].toarray()[0], expected / np.linalg.norm(expected),
                                       atol=1e-5)


def test_spares_are_others_of_the_same_layers() -> None:
    layer, feature = np.array([0, 0, 2]), np.array([3, 9, 5])
    made = with_spares(layer, feature, [100, 100, 30], 0)
    names = list(zip(*(column.tolist() for column in made), strict=True))
    assert names == sorted(names)
    own = {(at, number) for at, number, spare in names if not spare}
    assert own == {(0, 3), (0, 9), (2, 5)}
    others = [(at, number) for at, number, spare in names if spare]
    assert [at for at, _ in others] == [0] * 4 + [2] * 2  # two for each
    assert not own & set(others)
    assert int(with_spares(layer, feature, [13, 100, 7], 0)[2].sum()) == 3  # a tenth of 11, and of 6, rounded up


def test_corpus_views_correlate_what_the_transcoders_say(world: Opened) -> None:
    model, transcoders = world
    rng = np.random.default_rng(1)
    sequences = [[2, *rng.integers(6, 128, length).tolist()] for length in (20, 20, 20, 9, 20)]
    layer, feature = np.array([0, 1, 1, 3]), np.array([3, 0, 11, 20])
    view = corpus_view(model, transcoders, sequences, layer, feature)
    columns = []
    for at, number in zip(layer.tolist(), feature.tolist(), strict=True):
        found = []
        for ids in sequences:
            x = model.mlp_boundaries(torch.tensor([ids]))[0][0, 1:, at]
            position, numbers, value = transcoders.encode(at, x)
            found.append(torch.zeros(len(x)).index_put((position[numbers == number],), value[numbers == number]))
        columns.append(torch.cat(found).numpy())
    assert view.rows.shape == (4, sum(len(ids) - 1 for ids in sequences))
    made = similarities({CORPUS: view}, {CORPUS: view}, np.arange(4))[CORPUS]
    known = view.known
    assert known.sum() >= 3
    np.testing.assert_allclose(made[np.ix_(known, known)], np.corrcoef(np.array(columns)[known]), atol=1e-4)
    for name, empty in vocabulary_views(model, transcoders, layer[:0], feature[:0]).items():
        assert isinstance(empty, View)
        assert empty.rows.shape[0] == 0, name


def test_what_is_read_after_the_last_layer_is_the_models_output(world: Opened) -> None:
    model = world[0]
    with torch.no_grad():
        out = model.hf(torch.tensor([TOKENS]), output_hidden_states=True)
    target = int(out.logits[0, -1].argsort()[-3])
    reading = read_layers(model, TOKENS, target)
    assert reading.rank[-1] == 3
    assert len(reading.rank) == LAYERS + 1
    for at, hidden in enumerate(out.hidden_states[:-1]):  # the last is the final norm's output
        logits = model.hf.lm_head(model.hf.model.norm(hidden[0, -1]))
        assert reading.probability[at] == pytest.approx(float(logits.softmax(-1)[target]), rel=1e-4)
        assert reading.rank[at] == int((logits > logits[target]).sum()) + 1
    assert reading.probability[-1] == pytest.approx(float(out.logits[0, -1].softmax(-1)[target]), rel=1e-4)


def test_refusals_come_before_the_work(world: Opened, graph: AttributionGraph, tmp_path: Path) -> None:
    def started(stage: str, done: int, total: int) -> None:
        raise AssertionError(f"{stage} began")

    for settings, words in (({"window": 2.0}, "window is 2.0"),
                            ({"models": [world]}, "1 models are named for 2 graphs"),
                            ({"with_models": False, "corpus": tmp_path / "x.txt"}, "when no model is opened"),
                            ({"models": None}, "does not say which model")):
        with pytest.raises(InputError, match=words):
            compare([graph, headed(graph, model="")], progress=started, **settings)
    with pytest.raises(InputError, match="have different tokenizers"):
        compare([graph, headed(graph, token_texts=["?"] * len(TOKENS))], progress=started)
    with pytest.raises(ModelError, match="neither a folder"):
        compare([graph, graph], [("./nowhere", "bundled")] * 2)
    with pytest.raises(InputError, match="1 models are named for 2 graphs"):
        named_sources([graph, graph], ["a"], None)
    with pytest.raises(InputError, match="name the model that it was traced with"):
        compare([headed(graph, n_layers=6)] * 2, [world] * 2)
    foreign = circuits.load_model(text_folder(tmp_path / "other", vocab_size=160), device="cpu"), world[1]
    with pytest.raises(InputError, match="have different vocabularies"):
        compare([graph, graph], [world, foreign])


def test_without_models_nothing_is_opened(graph: AttributionGraph) -> None:
    def started(stage: str, done: int, total: int) -> None:
        raise AssertionError(f"{stage} began")

    found = compare([graph, graph], with_models=False, progress=started)
    assert found.graphs[0].reading is None
    assert found.pairs[0].alignment.views in ((), ("promoted",))
