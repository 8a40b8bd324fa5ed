"""The whole engine on Gemma 3 270M with the bundled transcoder; ``make check-real`` runs these."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import circuits
from circuits import attribution
from circuits.features import feature_data
from circuits.training.evaluate import evaluate_on_sequences
from circuits.training.graph_quality import read_prompts, score_graphs
from circuits.training.held_out import sample_sequences

pytestmark = pytest.mark.real

PROMPTS = Path(__file__).parents[2] / "benchmarks" / "prompts.jsonl"
PROMPT = "Fact: Michael Jordan plays the sport of"
CLI = [str(Path(sys.executable).parent / "circuits")]


@pytest.fixture(scope="module")
def model():
    return circuits.load_model("gemma-3-270m", device="cpu")


@pytest.fixture(scope="module")
def transcoders():
    return circuits.open_transcoders("bundled")


def test_the_weights_are_the_real_ones(model) -> None:
    tokens = model.tokenizer(PROMPT)["input_ids"]
    probabilities = model.freeze(tokens).logits.softmax(-1)
    assert float(probabilities[model.tokenizer.encode(" basketball", add_special_tokens=False)[0]]) == pytest.approx(
        0.61, abs=0.02)


def test_full_graph_conserves(model, transcoders) -> None:
    graph = circuits.trace(model, transcoders, PROMPT, coverage=1.0)
    assert graph.conservation < 1e-4
    assert graph.unexplored == 0
    assert not graph.header.warnings
    print("conservation", graph.conservation, "scores", graph.scores, "nodes", len(graph))


def test_certificate_holds(model, transcoders) -> None:
    full = circuits.trace(model, transcoders, PROMPT, coverage=1.0)
    part = circuits.trace(model, transcoders, PROMPT, coverage=0.95)
    assert part.unexplored <= 0.05
    rows = part.header.settings["expanded_features"] / full.header.settings["expanded_features"]
    changed = np.abs(part.nodes.influence - full.nodes.influence).max() / full.target_weights.sum()
    assert changed <= part.unexplored + 1e-6

    agreement = jaccard(part, full)
    print("rows", rows, "largest change", changed, "Jaccard at 0.8", agreement)
    assert agreement > 0.9


def jaccard(a: circuits.graphs.AttributionGraph, b: circuits.graphs.AttributionGraph) -> float:
    """Agreement of the nodes, constants left out, that pruning keeps of two graphs."""
    kept = []
    for graph in (a, b):
        small = graph.prune(0.8, 0.98)
        kept.append({i for i, kind in zip(small.node_ids, small.nodes.kind, strict=True) if kind != "constant"})
    return len(kept[0] & kept[1]) / len(kept[0] | kept[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed"])
def test_cheap_rows_keep_the_same_nodes(model, transcoders, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "fast_16_bit", lambda _: True)  # mixed is to mix, wherever this runs
    exact = circuits.trace(model, transcoders, PROMPT)
    cheap = circuits.trace(model, transcoders, PROMPT, dtype=dtype)
    assert cheap.header.settings["tail_dtype"] == "bfloat16"
    agreement = jaccard(cheap, exact)
    print(dtype, "Jaccard at 0.8 with float32:", agreement, "residual", cheap.conservation)
    assert agreement >= 0.98


def test_layers_on_disk_give_the_same_graph(model, transcoders) -> None:
    """--device-map disk: one layer's weights in memory at a time."""
    spread = circuits.load_model("gemma-3-270m", device="cpu", device_map="disk")
    settings = {"max_features": 50, "max_logits": 2}
    ours, whole = (circuits.trace(one, transcoders, PROMPT, **settings) for one in (spread, model))
    np.testing.assert_array_equal(ours.nodes.expanded, whole.nodes.expanded)
    np.testing.assert_allclose(ours.weights, whole.weights, rtol=0, atol=1e-6 * float(np.abs(whole.weights).max()))


def test_a_long_prompt_stays_within_its_memory(transcoders, tmp_path: Path) -> None:
    """512 tokens and 100 rows under --memory 2GiB, in a process of its own."""
    text = (PROMPTS.parent / "long_prompt.txt").read_text(encoding="utf-8")
    tokens = circuits.load_model("gemma-3-270m", device="cpu").tokenizer(text)["input_ids"][:512]
    subprocess.run([*CLI, "trace", "--tokens", ",".join(map(str, tokens)), "--max-features", "100", "--memory",
                    "2GiB", "--json", "n.json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    numbers = json.loads((tmp_path / "n.json").read_text())
    print("512 tokens, 100 rows:", numbers["seconds"], "s", numbers["peak_memory_bytes"] / 2**30, "GiB")
    assert numbers["peak_memory_bytes"] < 2.1 * 2**30


def test_bundled_transcoder_quality(model, transcoders) -> None:
    """Held-out text: sampled from the whole vocabulary with a seed training did not use. Bounds are what was measured
    when it was made, with a little room; the README quotes these figures."""
    sequences = sample_sequences(model, tokens=8128, seed=777)
    measured = evaluate_on_sequences(model, transcoders, sequences)
    quality = measured.numbers()
    print("QUALITY", json.dumps(quality))
    assert quality["fvu_mean"] <= 0.175
    assert max(quality["fvu_by_layer"]) <= 0.33
    assert quality["active_per_position"] <= 200
    assert quality["top1_agreement"] >= 0.40
    assert quality["kl"] <= quality["kl_mean_ablated"] / 3.3
    assert quality["loss_recovered"] >= 0.68
    assert quality["dense_fraction"] <= 0.02


def test_bundled_transcoder_graphs(model, transcoders) -> None:
    """Unpruned graphs of the 20 prompts of the benchmarks, completeness over nodes with inputs."""
    graphs = score_graphs(model, [transcoders], read_prompts(model, PROMPTS))[0]
    print("GRAPHS", json.dumps(graphs.numbers()))
    assert graphs.replacement_score >= 0.52
    assert graphs.completeness_score >= 0.73


def test_every_bundled_feature_has_data_and_few_are_dead(transcoders) -> None:
    data = feature_data(transcoders)
    density = np.concatenate([data.density(layer) for layer in range(transcoders.n_layers)])
    print("positions", data.positions, "dead", (density == 0).mean(), "dense", (density > 0.1).mean())
    assert data.positions > 300_000
    assert (density == 0).mean() <= 0.06
    assert (density > 0.1).mean() <= 0.02
    assert all(data.read(layer, int(i)) is not None for layer in range(18) for i in data.live(layer)[::40])
    folder = transcoders.folder
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 90e6
    assert (folder / "features.bin").stat().st_size < 25e6


def test_a_trace_from_the_shell_is_quick_and_small(tmp_path: Path) -> None:
    """At most 20 s and 4 GB from the shell to the written page (two cores, weights converted before)."""
    started = time.monotonic()
    done = subprocess.run([*CLI, "trace", PROMPT, "-o", "g.html", "-o", "g.json", "-o", "g.safetensors", "--json",
                           "n.json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "n.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print("seconds", seconds, "peak bytes", peak)
    assert numbers["targets"][0]["label"].startswith('Output " basketball"')
    assert seconds <= 20
    assert peak <= 4e9
    assert numbers["peak_memory_bytes"] <= 4e9
