"""What a graph claims, tested on Gemma 3 270M with the bundled transcoder; ``make check-real`` runs these."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import circuits
from circuits.attention.edge_heads import graph_head_loadings
from circuits.attention.qk import qk_attribution
from circuits.graph_nodes import replacement_of
from circuits.interventions.edits import FeatureEdit, Intervention
from circuits.interventions.intervene import intervene
from circuits.interventions.modes import FROZEN, constrained

pytestmark = pytest.mark.real

PROMPT = "Fact: Michael Jordan plays the sport of"
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def model():
    return circuits.load_model("gemma-3-270m", device="cpu")


@pytest.fixture(scope="module")
def transcoders():
    return circuits.open_transcoders("bundled")


@pytest.fixture(scope="module")
def graph(model, transcoders):
    return circuits.trace(model, transcoders, PROMPT).prune()


@pytest.fixture(scope="module")
def local(graph, model, transcoders):
    return replacement_of(graph, model, transcoders)


def test_validation(graph, model, transcoders) -> None:
    """Frozen doubling of every kept node, and the influence ahead of its three baselines."""
    numbers = graph.validate(model, transcoders, layers=False, steering=False).numbers()
    print({key: value for key, value in numbers.items() if isinstance(value, float)})
    assert numbers["frozen_max_relative_error"] <= 1e-4
    assert numbers["spearman_influence"] > max(numbers["spearman_edge"], numbers["spearman_activation"])
    assert abs(numbers["spearman_shuffled"]) < 0.1


def test_heads_and_what_passes_by_sum_to_every_edge(graph, model, transcoders, local) -> None:
    found = graph_head_loadings(graph, model, transcoders, local=local)
    print("edges", len(found), "largest difference", found.differences().max())
    assert found.differences().max() < 1e-4
    assert len(found) == graph.n_edges


@pytest.mark.parametrize("layer", [3, 5, 14, 17])
def test_pairs_sum_to_the_score(model, local, layer: int) -> None:
    worst = 0.0
    for head, query, key in ((0, 8, 3), (1, 7, 7), (3, 8, 0)):
        found = qk_attribution(model, local, layer, head, query, key)
        recorded = local.frozen.layers[layer]
        vectors = recorded.queries[head, query].double(), recorded.keys[0, key].double()  # small ones are cancellation
        assert found.score == pytest.approx(float(vectors[0] @ vectors[1]), rel=1e-5)
        worst = max(worst, found.residual)
    print("layer", layer, "residual", worst)
    assert worst < 1e-5


def test_constrained_patching_of_all_layers_is_the_direct_effect(graph, model, transcoders, local) -> None:
    features = np.flatnonzero(graph.nodes.kind == "feature")
    columns = (graph.nodes.layer, graph.nodes.feature, graph.nodes.position)
    given = [Intervention((FeatureEdit(*(int(c[node]) for c in columns), amount=2.0),)) for node in features]
    held = constrained(0, model.n_layers - 1, patterns_frozen=True, norms_frozen=True)
    patched, direct = (intervene(model, transcoders, local, given, mode).final_changes for mode in (held, FROZEN))
    scale = direct.abs().amax(1, keepdim=True).clamp_min(1e-3)
    print("largest difference", float(((patched - direct).abs() / scale).max()))
    torch.testing.assert_close(patched / scale, direct / scale, rtol=0, atol=1e-4)


def test_a_hundred_ablations_cost_less_than_a_quarter_of_as_many_runs(tmp_path) -> None:
    """The benchmark compares them in one process, on one thread, and checks that they agree."""
    done = subprocess.run([sys.executable, str(BENCHMARKS / "ablations.py"), "--json", str(tmp_path / "a.json")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout.strip())
    assert json.loads((tmp_path / "a.json").read_text())["figures"]["least_ratio"] >= 4
