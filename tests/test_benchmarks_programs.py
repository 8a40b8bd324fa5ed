"""The other benchmark programs on tiny models: their files, their checks, and that a failed check hides figures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import text_folder

FEATURES = 96


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def clt(tmp_path: Path, model: Path) -> Path:
    import google_size

    folder = tmp_path / "clt" / google_size.NAME
    assert google_size.write(folder, str(model), FEATURES, active=50.0) == 4
    return folder


def test_a_generated_clt_has_google_s_layout(clt: Path, model: Path) -> None:
    from google_size_shards import DECAY
    from safetensors.torch import load_file

    import circuits

    shards = [load_file(clt / f"params_layer_{i}.safetensors") for i in range(4)]
    for layer, shard in enumerate(shards):
        assert {name: tuple(tensor.shape) for name, tensor in shard.items()} == {
            "w_enc": (32, FEATURES), "w_dec": (FEATURES, 4, 32), "b_enc": (FEATURES,), "b_dec": (32,),
            "threshold": (FEATURES,), "affine_skip_connection": (32, 32)}
        assert all(tensor.dtype == torch.float32 for tensor in shard.values())
        assert not shard["w_dec"][:, :layer].any()
        assert shard["w_dec"][:, layer:].any((0, 2)).all()
    # relative to what each output layer needs, norms fall with distance: two writers of one output layer differ so
    entries = [shards[layer]["w_dec"][:, 3].std() * shards[layer]["threshold"][0] for layer in (2, 3)]
    assert float(entries[0] / entries[1]) == pytest.approx(DECAY, rel=0.1)  # 3,072 random entries each
    opened = circuits.open_transcoders(clt)
    prompt = json.loads((clt / "generator.json").read_text())["prompt"]
    graph = circuits.trace(circuits.load_model(model, device="cpu"), opened, tokens=prompt, max_features=40)
    assert opened.kind == "clt"
    assert graph.header.settings["active_features"] / (len(prompt) - 1) == pytest.approx(50, rel=0.05)
    assert graph.conservation < 1e-4


def test_writing_goes_on_where_it_stopped(clt: Path, model: Path) -> None:
    import google_size

    shard, other = clt / "params_layer_2.safetensors", clt / "params_layer_1.safetensors"
    before, untouched = shard.read_bytes(), other.stat().st_mtime_ns
    shard.unlink()
    (clt / ".params_layer_2.safetensors.partial").write_bytes(before[:1000])
    assert google_size.write(clt, str(model), FEATURES, active=50.0) == 1
    assert shard.read_bytes() == before
    assert other.stat().st_mtime_ns == untouched
    with pytest.raises(google_size.CannotWrite, match="begun with seed 0, now it is 1"):
        google_size.write(clt, str(model), FEATURES, active=50.0, seed=1)


def test_a_full_disk_is_refused_before_writing(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import google_size

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(google_size.CannotWrite, match=r"needs 1.1 GB for 4 shards, its disk has 0.0 GB free"):
        google_size.write(tmp_path / "clt", str(model), FEATURES)
    assert not list((tmp_path / "clt").glob("*.safetensors"))


def test_the_published_size_is_twelve_gibibytes() -> None:
    from google_size import FEATURES as REAL
    from google_size_shards import Shape

    assert 18 * Shape(18, REAL, 640, 50.0, 0).shard_bytes / 2**30 == pytest.approx(12, abs=0.2)


def test_a_trace_s_figures_hang_on_its_checks(clt: Path, model: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    import google_size

    runs = {"conservation": 1e-6, "active_per_position": 50.0, "unexplored": 0.04, "open_seconds": 1.0, "seconds": 2.0,
            "peak_bytes": 300, "active_features": 9, "rows_computed": 5, "edges": 7}

    def trace(**changes: Any) -> dict[str, Any]:
        monkeypatch.setattr(google_size, "measured", lambda command, *_: {
            **runs, **changes, **({"peak_bytes": 100} if '"transcoders": null' in command[2] else {})})
        return google_size.trace(clt, str(model), 8, 0.95, "float32", 1, tmp_path)

    assert trace()["figures"]["beyond_model_bytes"] == 200
    for changes, named in (({"conservation": 2e-4}, "2.0e-04"), ({"conservation": float("nan")}, "nan"),
                           ({"active_per_position": 24.0}, "24.0 features"),
                           ({"active_per_position": 101.0}, "101.0 features")):
        report = trace(**changes)
        assert named in report["failure"]
        assert "figures" not in report
        assert "FAILED" in google_size.lines(report)[0]


def test_growth_is_the_slope_of_logarithms() -> None:
    from scaling import exponents

    points = [{"tokens": n, "seconds": {"median": 3 * n ** 2}, "beyond_model_bytes": {"median": n ** 1.5},
               "edges": {"median": 5 * n}} for n in (64, 128, 512)]
    assert exponents(points) == pytest.approx({"seconds": 2, "beyond_model_bytes": 1.5, "edges": 1})
    assert exponents(points[:1]) == {}


def test_scaling_measures_every_length(clt: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scaling
    import trace_run

    def in_this_process(command: list[Any], folder: Path, *_: Any) -> dict[str, Any]:
        folder.mkdir(parents=True)
        trace_run.main(command[2], str(torch.get_num_threads()), str(folder))
        return json.loads((folder / "run.json").read_text())

    monkeypatch.setattr(trace_run, "return_freed_memory", lambda: None)
    monkeypatch.setattr(scaling, "measured", in_this_process)
    report = scaling.run(str(model), str(clt), (8, 16), 10, "float32", 1, 1, tmp_path / "runs")
    assert [point["tokens"] for point in report["points"]] == [8, 16]
    assert all(point["rows_computed"] == 10 and point["seconds"]["median"] > 0 for point in report["points"])
    assert all(0 < point["coverage_reached"] <= 1 for point in report["points"])
    monkeypatch.setattr(scaling, "measured", lambda *_: {"conservation": float("nan"), "peak_bytes": 1})
    report = scaling.run(str(model), str(clt), (8, 16), 10, "float32", 1, 1, tmp_path / "more")
    assert "nan" in report["failure"]
    assert "points" not in report


def test_the_long_prompt_repeats_nothing() -> None:
    from scaling import TEXT

    words = TEXT.read_text(encoding="utf-8").split()
    phrases = list(zip(*(words[i:] for i in range(6)), strict=False))
    assert len(words) > 900
    assert len(set(phrases)) == len(phrases)


def test_pruning_is_checked_by_another_calculation() -> None:
    import pruning

    graph = pruning.full_graph(60, 4, 5, seed=0)
    report = pruning.run(graph, 1)
    assert report["seconds"]["n"] == 1
    pruned = graph.prune(pruning.NODE_THRESHOLD, pruning.EDGE_THRESHOLD)
    assert "below the cut" in pruning.check(graph, graph)
    assert pruning.check(graph, pruned) == ""
    influence = pruning._influence(graph)[:60]
    at = next(i for i in range(len(pruned)) if pruned.nodes.kind[i] == "feature"
              and influence[pruned.nodes.feature[i]] == max(influence[f] for f in pruned.nodes.feature if f >= 0))
    without = pruned.subgraph(np.arange(len(pruned)) != at)
    assert "missing" in pruning.check(graph, without)


def test_every_kernel_is_checked_before_it_is_timed() -> None:
    from kernel_cases import CASES, FLOAT32_CASES

    import kernels

    cpu = torch.device("cpu")
    for make in (*CASES, *FLOAT32_CASES):
        case = make(kernels.QUICK, torch.float32, cpu, 0)
        entry = kernels.measure_case(case, "float32", "reference", 1e9, 1e9, cpu, 1)
        assert entry["error"] <= case.limit, case.name
        assert entry["share"] > 0
        for wrong in (float("nan"), 2 * case.limit):
            bad = kernels.measure_case(replace(case, check=lambda wrong=wrong: wrong), "float32", "reference", 1.0, 1.0,
                                       cpu, 1)
            assert "off float64" in bad["failure"]
            assert "seconds" not in bad


def test_the_page_shows_figures_and_failures(tmp_path: Path) -> None:
    import bench_page
    from provenance import provenance

    spread = {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}
    side = {"seconds": spread, "peak_bytes": spread, "pruning_skipped": False}
    summary = {"gemma_circuits": side, "circuit_tracer": [{"batch_size": 64, **side, "time_ratio": 7.25,
                                                           "memory_ratio": 3.5}], "fastest_batch_size": 64,
               "time_ratio": 7.25, "memory_ratio": 3.5, "lower_bound": False}
    common = {"transcoders": "random-plt", "tokens": 9, "rows": "float32"}
    report = {**provenance(), "not_run": {"gpu": "no GPU here"}, "parts": {
        "side by side": {"cases": [{**common, "task": "full", "summary": summary, "checks": [{"limit": 1e-4}]},
                                   {**common, "task": "pruned", "failure": "Jaccard <0.9>"}]},
        "pruning": {"seconds": spread}, "broken": {"failure": "killed"}}}
    bench_page.write(tmp_path / "bench.html", report)
    page = (tmp_path / "bench.html").read_text(encoding="utf-8")
    for text in ("7.25", "Jaccard &lt;0.9&gt;", "FAILED: killed", "no GPU here", report["versions"]["torch"]):
        assert text in page
    assert "<script src=" not in page
    assert page.count("Plotly.newPlot(") >= 1


def test_thresholds_leave_rounding_no_say() -> None:
    from random_transcoders import ACTIVE, threshold_between

    pre = torch.randn(139, 2000, generator=torch.Generator().manual_seed(0))
    threshold = threshold_between(pre, ACTIVE, 69)
    assert abs(int((pre[:69] > threshold).sum()) / 69 - ACTIVE) < 0.03 * ACTIVE
    assert float((pre - threshold).abs().min()) > 5e-5


def test_parts_that_ended_well_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench

    work, counted = tmp_path / "bench", tmp_path / "counted"
    program = tmp_path / "program.py"
    program.write_text("import json, pathlib, sys\n"
                       f"open({str(counted)!r}, 'a').write(sys.argv[1])\n"
                       "pathlib.Path(sys.argv[3]).write_text(json.dumps({'seconds': 1.0}))\n"
                       f"sys.exit(sys.argv[1] == 'b' and not pathlib.Path({str(tmp_path / 'mended')!r}).exists())\n")
    monkeypatch.setattr(bench, "quick_parts", lambda _: [bench.Part(name, str(program), (name,)) for name in "ab"])
    arguments = ["--quick", "--work", str(work), "--resume"]
    with pytest.raises(SystemExit, match="failed: b"):
        bench.main(arguments)
    parts = json.loads((work / "bench.json").read_text())["parts"]
    assert parts["a"] == {"seconds": 1.0}
    assert "ended with status 1" in parts["b"]["failure"]
    (tmp_path / "mended").touch()
    bench.main(arguments)
    assert counted.read_text() == "abb"
    assert json.loads((work / "bench.json").read_text())["parts"] == {"a": {"seconds": 1.0}, "b": {"seconds": 1.0}}
    assert "FAILED" not in (work / "bench.html").read_text()
