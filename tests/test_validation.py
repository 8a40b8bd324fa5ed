"""Predicted beside measured: the frozen check finds wrong graphs, and everything measured equals a slow loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from test_attribution import D_MODEL, N_LAYERS, TOKENS, small_dictionary
from tiny_models import text_folder
from torch import Tensor
from transcoder_folders import gemma_scope_clt, gemma_scope_plt

import circuits
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graph_nodes import source_numbers
from circuits.graphs import AttributionGraph
from circuits.interventions import intervene as running
from circuits.interventions.edits import FeatureEdit, Intervention, ablate
from circuits.interventions.intervene import Outcome, intervene
from circuits.interventions.modes import FREE, REPLACED, Mode
from circuits.interventions.passes import Observer
from circuits.interventions.rows import Rows
from circuits.transcoder import Transcoders
from circuits.validation import ablation, frozen, layers, steering
from circuits.validation.correlation import bootstrap, log_pearson, pearson, ranks, shuffled_spearman, spearman
from circuits.validation.frozen import LIMIT, FrozenCheck, check_frozen
from circuits.validation.linear import linear_effects
from circuits.validation.rerun import Rerun
from circuits.validation.validate import Validation, validate

one_kind = pytest.mark.parametrize("case", ["skip clt"], indirect=True)
"""For what does not depend on the kind of transcoder."""


def silent(stage: str, done: int, total: int) -> None:
    """No progress."""


@dataclass
class Case:
    model: Gemma3
    transcoders: Transcoders
    graph: AttributionGraph
    """Every node and edge."""
    report: Validation
    whole: Rerun

    @property
    def kept(self) -> AttributionGraph:
        return self.report.graph

    def rerun(self, graph: AttributionGraph) -> Rerun:
        return replace(self.whole, graph=graph, numbers=source_numbers(graph, self.whole.local))

    def check(self, graph: AttributionGraph) -> FrozenCheck:
        return check_frozen(self.rerun(graph), silent)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    return circuits.load_model(text_folder(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module", params=["plt", "skip", "clt", "skip clt"])
def case(request: pytest.FixtureRequest, model: Gemma3, tmp_path_factory: pytest.TempPathFactory) -> Case:
    made = small_dictionary("clt" if "clt" in request.param else "plt", "skip" in request.param)
    write = gemma_scope_clt if "clt" in request.param else gemma_scope_plt
    transcoders = circuits.open_transcoders(write(tmp_path_factory.mktemp("set"), made))
    graph = circuits.trace(model, transcoders, tokens=TOKENS, coverage=1.0, max_logits=3)
    return Case(model, transcoders, graph, graph.validate(model, transcoders, controls=1, multipliers=(0.0, 2.0)),
                Rerun.of(graph, model, transcoders, None, silent))


@pytest.fixture
def clt(model: Gemma3, tmp_path: Path) -> Transcoders:
    return circuits.open_transcoders(gemma_scope_clt(tmp_path, small_dictionary("clt", False)))


def test_doubling_a_node_changes_its_targets_by_its_edges(case: Case) -> None:
    found = case.report.frozen
    assert (found.n_nodes, found.n_edges) == (len(case.graph) - 3, case.graph.n_edges)
    assert found.passed
    assert 0 < found.median_relative_error < found.max_relative_error < LIMIT
    assert found.n_cancelled < 0.1 * found.n_edges
    logits = np.flatnonzero(case.graph.nodes.kind == "logit")
    expected = case.graph.adjacency()[logits].toarray().T
    np.testing.assert_allclose(found.direct, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    errors = [edge.relative_error for edge in found.worst]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == found.max_relative_error


@pytest.mark.parametrize("rank", [0.1, 0.5, 1.0])
def test_one_edge_that_is_one_percent_wrong_is_found_and_named(case: Case, rank: float) -> None:
    graph, order = case.graph, np.argsort(np.abs(case.graph.weights))
    wrong = int(order[round(rank * (len(order) - 1))])
    weights = graph.weights.copy()
    weights[wrong] *= 1.01
    found = case.check(replace(graph, weights=weights))
    assert not found.passed
    target = int(np.searchsorted(graph.indptr, wrong, side="right")) - 1
    assert (found.worst[0].source, found.worst[0].target) == (
        graph.node_ids[graph.indices[wrong]], graph.node_ids[target])
    assert found.worst[0].edge == pytest.approx(1.01 * found.worst[0].measured, rel=1e-3)


def test_edges_of_every_kind_of_source_are_checked(case: Case) -> None:
    """The usual mistake METHOD 3 names, an unscaled embedding, and the like for every other kind."""
    for kind in ("feature", "error", "embedding", "constant"):
        from_kind = case.graph.nodes.kind[case.graph.indices] == kind
        weights = np.where(from_kind, case.graph.weights / D_MODEL**0.5, case.graph.weights)
        found = case.check(replace(case.graph, weights=weights.astype(np.float32)))
        assert found.max_relative_error > 0.5, kind


@one_kind
def test_an_edge_that_causality_forbids_is_found(case: Case) -> None:
    """From a later position: the intervention reaches nothing there."""
    nodes = case.graph.nodes
    target = int(np.flatnonzero((nodes.kind == "feature") & (nodes.layer == 2) & (nodes.position == 3))[0])
    later = int(np.flatnonzero((nodes.kind == "feature") & (nodes.layer == 0) & (nodes.position == 9))[0])
    edges = case.graph.adjacency().tolil()
    assert edges[target, later] == 0
    edges[target, later] = 1.0
    wrong = edges.tocsr()
    found = case.check(replace(case.graph, indptr=wrong.indptr.astype(np.int64), indices=wrong.indices.astype(np.int32),
                               weights=wrong.data.astype(np.float32)))
    assert found.max_relative_error == pytest.approx(1.0)


@one_kind
def test_features_whose_numbers_are_swapped_are_found(case: Case) -> None:
    nodes = case.graph.nodes
    first = int(np.flatnonzero((nodes.kind == "feature") & (nodes.layer == 1))[0])
    assert (nodes.layer[first], nodes.position[first]) == (nodes.layer[first + 1], nodes.position[first + 1])
    feature, value = nodes.feature.copy(), nodes.value.copy()
    for column in (feature, value):
        column[[first, first + 1]] = column[[first + 1, first]]
    found = case.check(replace(case.graph, nodes=replace(nodes, feature=feature, value=value)))
    assert found.max_relative_error > 0.1


def test_other_decoders_are_found(model: Gemma3, tmp_path: Path) -> None:
    """The encoders are the same, so every feature has the value that the graph says."""
    made = small_dictionary("clt", True)
    graph = circuits.trace(model, circuits.open_transcoders(gemma_scope_clt(tmp_path / "one", made)), tokens=TOKENS)
    for decoder in made.w_dec:
        decoder *= 1.02
    other = circuits.open_transcoders(gemma_scope_clt(tmp_path / "two", made))
    assert not check_frozen(Rerun.of(graph, model, other, None, silent), silent).passed


@one_kind
@pytest.mark.parametrize("whole", [7, 10_000])
def test_chunks_do_not_change_the_frozen_check(case: Case, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    """Chunks of calls, and of passes within a call."""
    monkeypatch.setattr(frozen, "AT_ONCE", 70)
    monkeypatch.setattr(running, "NUMBERS", whole * D_MODEL * len(TOKENS))
    found = case.check(case.graph)
    assert found.passed
    np.testing.assert_allclose(found.direct, case.report.frozen.direct, rtol=1e-3, atol=1e-5)


@one_kind
def test_a_graph_with_dropped_edges_is_checked_on_those_it_has(case: Case) -> None:
    found = case.check(case.kept)
    assert found.n_edges == case.kept.n_edges < case.graph.n_edges
    assert found.passed


def one_by_one(case: Case, mode: Mode, features: np.ndarray) -> list[Outcome]:
    nodes = case.kept.nodes
    local = case.whole.local
    return [intervene(case.model, case.transcoders, local, ablate(*map(int, (
        nodes.layer[n], nodes.feature[n], nodes.position[n]))), mode) for n in features]


def test_effects_equal_a_loop_over_single_ablations(case: Case) -> None:
    found, kept = case.report.ablations, case.kept
    assert (kept.nodes.kind[found.nodes] == "feature").all()
    assert len(found.nodes) == (kept.nodes.kind == "feature").sum() > 10
    some = slice(None, None, 9)
    logits = kept.nodes.token[kept.nodes.kind == "logit"].tolist()
    assert found.weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.weights, kept.target_weights / kept.target_weights.sum(), rtol=1e-6)
    for mode, ours in ((FREE, found.measured), (REPLACED, found.predicted)):
        outcomes = one_by_one(case, mode, found.nodes[some])
        changes = torch.cat([o.logit_changes for o in outcomes])
        expected = changes[:, logits] - changes.mean(1, keepdim=True)
        np.testing.assert_allclose(ours[some], expected.numpy(), rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        if mode is FREE:
            np.testing.assert_allclose(found.kl[some], torch.cat([o.kl for o in outcomes]), rtol=1e-3, atol=1e-6)
            by_hand = (expected.abs().numpy() * found.weights).sum(1)
            np.testing.assert_allclose(found.size(ours)[some], by_hand, rtol=1e-3, atol=1e-5)


@one_kind
def test_chunks_do_not_change_effects(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "AT_ONCE", 7)
    direct = np.zeros((len(case.kept), 3), np.float32)
    parts = ablation.ablate_features(case.rerun(case.kept), direct, True, silent)
    whole = case.report.ablations
    np.testing.assert_allclose(parts.measured, whole.measured, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(parts.kl, whole.kl, rtol=1e-3, atol=1e-6)
    for name, found in whole.layers.items():
        np.testing.assert_allclose(parts.layers[name].cosine, found.cosine, rtol=1e-3, atol=1e-4)


class Streams(Observer):
    """Changes of the residual stream of a single intervention, (P, D) by layer."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def residual(self, layer: int, rows: Rows, change: Tensor) -> None:
        self.found.append(torch.zeros(len(TOKENS), D_MODEL).index_copy(0, rows.position, change))


@pytest.mark.parametrize("name", ["norms_frozen", "norms_free"])
def test_agreement_by_layer_equals_single_passes(case: Case, name: str) -> None:
    found, local = case.report.ablations, case.whole.local
    ours = found.layers[name]
    mode = Mode(patterns_frozen=True, norms_frozen=name == "norms_frozen", mlps="replaced")
    nodes = case.kept.nodes
    for i, n in list(enumerate(found.nodes))[::9]:
        layer = int(nodes.layer[n])
        edit = Intervention((FeatureEdit(layer, int(nodes.feature[n]), int(nodes.position[n])),))
        streams = []
        for chosen in (mode, FREE):
            streams.append(Streams())
            intervene(case.model, case.transcoders, local, edit, chosen, observer=streams[-1])
        assert np.isnan(ours.cosine[i, :layer + 1]).all()
        for above in range(layer + 1, N_LAYERS):
            predicted, measured = (stream.found[above].flatten() for stream in streams)
            assert ours.cosine[i, above] == pytest.approx(
                float(torch.cosine_similarity(predicted, measured, dim=0)), abs=1e-4)
            assert ours.error[i, above] == pytest.approx(
                float((predicted - measured).square().sum() / measured.square().sum()), rel=1e-3, abs=1e-5)


def test_summary_by_layer_and_by_distance() -> None:
    nan = math.nan
    one = layers.LayerAgreement(np.array([[nan, 0.9, 0.5], [nan, nan, 0.7]]),
                                np.array([[nan, 0.1, 2.0], [nan, nan, 1.0]]), np.array([0, 1]))
    assert one.by_layer()["layer"] == [1, 2]
    assert one.by_layer()["cosine"] == [pytest.approx([0.9] * 3), pytest.approx([0.55, 0.6, 0.65])]
    assert one.by_distance()["distance"] == [1, 2]
    assert one.by_distance()["error"] == [pytest.approx([0.325, 0.55, 0.775]), pytest.approx([2.0] * 3)]


def test_linear_effects_are_the_slope_of_the_replacement_model(case: Case) -> None:
    """All edges are there: a small change must do what they say, where it moves no feature across its threshold."""
    graph, rerun, step = case.graph, case.whole, 0.02
    features = np.flatnonzero(graph.nodes.kind == "feature")[::7]
    said = linear_effects(graph, features)
    small = intervene(case.model, case.transcoders, rerun.local, [
        Intervention((rerun.edit(int(n), 1 - step),)) for n in features], REPLACED)
    found = rerun.on_targets(small.final_changes) / step
    close = np.isclose(found, said, rtol=5e-3, atol=2e-3 * np.abs(said).max()).all(1)
    assert close.mean() > 0.85  # the others move a feature across its threshold, however small the step
    assert np.abs(said - case.report.frozen.direct[features] * -1).max() > 0.1 * np.abs(said).max()


def test_correlations_against_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = np.exp(rng.normal(size=80)), rng.integers(6, size=80).astype(float)  # with ties
    assert (ranks(y) + 1 == scipy.stats.rankdata(y)).all()
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    found, left_out = log_pearson(x, y)
    both = y > 0
    assert left_out == (~both).sum() > 0
    assert found == pytest.approx(scipy.stats.pearsonr(np.log(x[both]), np.log(y[both])).statistic)
    assert spearman(x, -(x**3)) == pytest.approx(-1)
    assert math.isnan(spearman(x, np.ones(80)))
    assert math.isnan(spearman(x[:1], y[:1]))


def test_shuffling_leaves_chance_and_the_bootstrap_holds_the_value() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=150)
    y = x + rng.normal(size=150)
    mean, high = shuffled_spearman(x, y, 200, 0)
    assert abs(mean) < 0.03
    assert 0.08 < high < 0.2  # 1.64 / sqrt(149) = 0.134
    low, above = bootstrap(lambda i: spearman(x[i], y[i]), 150, 300, 0)
    assert low < spearman(x, y) < above
    assert 0.05 < above - low < 0.35
    assert shuffled_spearman(x, y, 20, 5) == shuffled_spearman(x, y, 20, 5) != shuffled_spearman(x, y, 20, 6)


@one_kind
def test_baselines_are_of_the_right_columns(case: Case) -> None:
    found = case.report.correlations
    ablations, graph = case.report.ablations, case.kept
    effect = np.abs(ablations.measured) @ ablations.weights
    edges = np.abs(case.graph.adjacency()[np.flatnonzero(case.graph.nodes.kind == "logit")].toarray()).T
    kept = [case.graph.node_ids.index(graph.node_ids[n]) for n in ablations.nodes]
    columns = {"influence": case.graph.nodes.influence[kept], "edge": edges[kept] @ ablations.weights,
               "activation": graph.nodes.value[ablations.nodes],
               "replaced": np.abs(ablations.predicted) @ ablations.weights}
    for key, column in columns.items():
        expected = scipy.stats.spearmanr(column, effect).statistic
        assert found[f"spearman_{key}"] == pytest.approx(expected, abs=5e-3), key
    assert found["spearman_influence_kl"] == pytest.approx(
        scipy.stats.spearmanr(ablations.influence, ablations.kl).statistic)
    assert abs(found["spearman_shuffled"]) < 0.1 < found["spearman_shuffled_95"]
    assert found["spearman_influence_low"] <= found["spearman_influence"] <= found["spearman_influence_high"]


def grouped(case: Case) -> AttributionGraph:
    """The pruned graph with two supernodes of its own, one of them with a token in it."""
    graph = case.kept
    features = [graph.node_ids[n] for n in np.flatnonzero(graph.nodes.kind == "feature")]
    token = next(i for i, kind in zip(graph.node_ids, graph.nodes.kind, strict=True) if kind == "embedding")
    return replace(graph, header=replace(graph.header, supernodes=[["one", *features[:3]], ["two", token, features[5]],
                                                                  ["none", token]]))


@one_kind
def test_supernodes_are_scaled_beside_matched_controls(case: Case) -> None:
    rerun = case.rerun(grouped(case))
    steered = steering.steer_supernodes(rerun, (0.0, 3.0), 2, 0, silent)
    assert [one.label for one in steered] == ["one", "two"]
    nodes, ids = rerun.graph.nodes, rerun.graph.node_ids
    in_graph = {(int(nodes.layer[n]), int(nodes.feature[n]), int(nodes.position[n]))
                for n in np.flatnonzero(nodes.kind == "feature")}
    for one in steered:
        members = [ids.index(i) for i in one.members]
        assert len(one.controls) == 2
        sets = [[rerun.edit(n, 0.0) for n in members], *([place(name) for name in names] for names in one.controls)]
        for features in sets[1:]:
            assert [e.layer for e in features] == nodes.layer[members].tolist()
            assert len(set(features)) == len(features)
            assert not in_graph & {(e.layer, e.feature, e.positions) for e in features}
        for at, multiplier in enumerate(one.multipliers):
            outcome = intervene(case.model, case.transcoders, rerun.local, [
                Intervention(tuple(replace(e, amount=multiplier) for e in features)) for features in sets])
            effects = (outcome.final_changes @ rerun.targets.vectors.T).numpy() @ rerun.weights
            np.testing.assert_allclose([one.effect[at], *one.control_effects[:, at]], effects, rtol=1e-3, atol=1e-4)
            probabilities = outcome.probabilities[:, rerun.targets.tokens[0]]
            np.testing.assert_allclose([one.probability[at], *one.control_probabilities[:, at]], probabilities,
                                       rtol=1e-3, atol=1e-6)
        assert one.ratio == pytest.approx(abs(one.effect[0]) / np.abs(one.control_effects[:, 0]).mean())
        assert one.probability_before == pytest.approx(
            float(rerun.local.frozen.logits.softmax(-1)[rerun.targets.tokens[0]]), rel=1e-4)
    again, other = (steering.steer_supernodes(rerun, (0.0,), 2, seed, silent) for seed in (0, 1))
    assert [one.controls for one in again] == [one.controls for one in steered]
    assert [one.controls for one in other] != [one.controls for one in steered]


def place(name: str) -> FeatureEdit:
    """layer/feature at position"""
    pair, position = name.split(" at ")
    layer, feature = pair.split("/")
    return FeatureEdit(int(layer), int(feature), int(position))


@one_kind
def test_controls_are_near_and_as_strong(case: Case) -> None:
    rerun = case.rerun(grouped(case))
    [one, _] = steering.steer_supernodes(rerun, (0.0,), 1, 0, silent)
    active, nodes, ids = rerun.local.active, rerun.graph.nodes, rerun.graph.node_ids
    taken = set(rerun.numbers[nodes.kind == "feature"].tolist())
    for member, name in zip(one.members, one.controls[0], strict=True):
        n, chosen = ids.index(member), place(name)
        rest = [i for i in range(len(active)) if i not in taken and int(active.layer[i]) == nodes.layer[n]]
        away = {i: abs(int(active.position[i]) - int(nodes.position[n])) for i in rest}
        near = [i for i in rest if away[i] == min(away.values())]
        strength = {i: float(active.value[i]) * float(case.transcoders.decoder_rows(
            int(nodes.layer[n]), active.feature[i:i + 1]).norm()) for i in [*near, int(rerun.numbers[n])]}
        own = strength[int(rerun.numbers[n])]
        ranked = sorted(near, key=lambda i: abs(math.log(strength[i] / own)))
        found = next(i for i in near if int(active.feature[i]) == chosen.feature)
        assert int(active.position[found]) == chosen.positions
        assert found in ranked[:steering.ALIKE]
        taken.add(found)


@one_kind
def test_a_graph_that_is_not_pruned_is_pruned_and_one_that_is_is_not(case: Case) -> None:
    assert case.report.pruned
    assert len(case.kept) == len(case.graph.prune(0.8, 0.98)) < len(case.graph)
    narrow = case.graph.prune(0.7, 0.9)
    again = validate(narrow, case.model, case.transcoders, layers=False, steering=False)
    assert not again.pruned
    assert len(again.graph) == len(narrow)
    assert again.frozen.n_edges == narrow.n_edges
    assert [one.controls for one in case.report.steering] == [one.controls for one in steering.steer_supernodes(
        case.rerun(case.kept), (0.0,), 1, 0, silent)]
    assert not again.ablations.layers
    assert not again.steering


Make = Callable[[AttributionGraph], AttributionGraph]


@pytest.mark.parametrize(("change", "message"), [
    (lambda g: replace(g, nodes=replace(g.nodes, value=g.nodes.value * 1.1)), "Give the model and the transcoders"),
    (lambda g: g.subgraph(g.nodes.kind != "feature"), "no features to ablate once it is pruned"),
    (lambda g: replace(g, header=replace(g.header, tokens=[-1] * len(g.header.tokens))), "trace the prompt anew")])
def test_graphs_that_cannot_be_validated(model: Gemma3, clt: Transcoders, change: Make, message: str) -> None:
    graph = circuits.trace(model, clt, tokens=TOKENS, max_logits=1)
    with pytest.raises(InputError, match=message):
        validate(change(graph), model, clt)


def test_a_direction_must_be_given_again_and_a_contrast_need_not(model: Gemma3, clt: Transcoders) -> None:
    direction = model.unembedding[5].float() - model.unembedding[9].float()
    graph = circuits.trace(model, clt, tokens=TOKENS, direction=direction)
    with pytest.raises(InputError, match="give it as direction"):
        validate(graph, model, clt)
    settings = {"layers": False, "steering": True, "controls": 1, "multipliers": (0.0,)}
    found = validate(graph, model, clt, direction=direction, **settings)
    contrast = validate(circuits.trace(model, clt, tokens=TOKENS, target=5, versus=9), model, clt, **settings)
    assert found.frozen.passed
    np.testing.assert_allclose(found.ablations.measured, contrast.ablations.measured, rtol=1e-3, atol=1e-4)
    assert all(one.probability is None and one.probability_before is None for one in found.steering)


@one_kind
@pytest.mark.parametrize(("settings", "message"), [
    ({"multipliers": ()}, "multipliers are"), ({"multipliers": (math.nan,)}, "multipliers are"),
    ({"controls": -1}, "controls is -1")])
def test_bad_settings(case: Case, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(case.graph, case.model, case.transcoders, **settings)
