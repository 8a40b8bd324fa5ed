"""Side by side with circuit-tracer: alternation, ratios, and no figure without its check. Processes are stand-ins."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

N, N_LAYERS, N_POS, FACTOR = 5, 3, 4, 5.0
SETUP: dict[str, Any] = {
    "d_model": FACTOR ** 2, "model_name": "m", "n_layers": N_LAYERS, "coverage": 0.95, "node_threshold": 0.8,
    "edge_threshold": 0.98, "transcoders": {"random-plt": {"kind": "plt", "ours": "o", "theirs": "t"}}}


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


class Stand:
    """Both programs: writes the files a run leaves. Fields say what is wrong with them."""

    def __init__(self) -> None:
        self.scale, self.lost, self.unexplored, self.skipped = 1.0, 0, 0.04, False
        self.fails = ""
        self.calls: list[str] = []

    def __call__(self, run: Any, **_: Any) -> dict[str, Any]:
        import edge_matrix
        import kept_nodes
        from processes import RunFailed

        self.calls.append(run.label)
        if run.label == self.fails:
            raise RunFailed("killed: too little memory?")
        run.folder.mkdir(parents=True, exist_ok=True)
        ours = run.batch_size is None
        rng = np.random.default_rng(1)
        edges = rng.standard_normal((N + 2, N + N_LAYERS * (N_POS - 1) + N_POS)).astype(np.float32)
        edges *= self.scale if ours else 1
        if not ours:
            edges[:, -N_POS:] /= FACTOR
        small = {"features": np.stack([np.arange(N) % N_LAYERS, np.ones(N), np.arange(N)], 1).astype(np.int64),
                 "values": np.ones(N, np.float32), "logits": np.array([7, 3]),
                 "probabilities": np.array([0.6, 0.3], np.float32), "tokens": np.arange(N_POS)}
        edge_matrix.write(run.folder, small, edges.shape, [edges])
        count = 20 - (self.lost if ours and run.task == "pruned" else 0)
        kept = kept_nodes.rows("feature", np.arange(count) % N_LAYERS, np.arange(count), np.arange(count))
        for name in ("kept",) if ours or self.skipped else ("kept", "kept_scaled"):
            kept_nodes.write(run.folder, name, [kept])
        pruning: dict[str, Any] = {"seconds": 0.5 if ours else 2.0, "peak_bytes": 3e9, "nodes": 30}
        figures = {"seconds": 1.0 if ours else 4.0, "peak_bytes": 1e9 if ours else 2e9, "conservation": 1e-6,
                   "unexplored": self.unexplored if run.task == "pruned" else 0.0, "active_features": 10,
                   "rows_computed": 5, "pruning": {"skipped": "no memory"} if self.skipped and not ours else pruning}
        (run.folder / "run.json").write_text(json.dumps(figures))
        return figures


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The program with stand-ins for every process; call it with more arguments."""
    import vs_circuit_tracer as program

    stand, work, result = Stand(), tmp_path / "work", tmp_path / "result.json"
    work.mkdir()
    (work / "setup.json").write_text(json.dumps(SETUP))
    monkeypatch.setattr(program, "require_memory", lambda *_: None)
    monkeypatch.setattr(program, "environment", lambda _: Path("python"))
    monkeypatch.setattr(program, "child", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(program, "_execute", stand)

    def run(*arguments: str) -> dict[str, Any]:
        program.main(["--work", str(work), "--json", str(result), "--batch-sizes", "64", *arguments])
        return json.loads(result.read_text())

    return SimpleNamespace(run=run, stand=stand, result=result, work=work)


def test_equal_graphs_give_figures(bench, capsys: pytest.CaptureFixture) -> None:
    full, pruned = bench.run("--repeats", "2")["cases"]
    assert (full["summary"]["time_ratio"], full["summary"]["memory_ratio"]) == (4, 2)
    # (4 + 2) / (1 + 0.5), and the peak of pruning on both sides
    assert (pruned["summary"]["time_ratio"], pruned["summary"]["memory_ratio"]) == (4, 1)
    assert pruned["checks"][0]["kept_by_circuit_tracer"] == {"all": 1.0, "decided": 1.0}
    assert pruned["checks"][0]["rows_computed_share"] == 0.5
    assert "4.00 times our time" in capsys.readouterr().out
    assert not list(bench.work.rglob("edges.npy"))


@pytest.mark.parametrize(("field", "value", "task", "named"), [
    ("scale", 1.001, "full", "relative differences above"), ("lost", 2, "pruned", "Jaccard 0.900"),
    ("unexplored", 0.06, "pruned", "0.0600 of influence is unexplored"), ("unexplored", float("nan"), "pruned", "nan")])
def test_a_failed_check_hides_the_figures(bench, capsys: pytest.CaptureFixture, field: str, value: float, task: str,
                                          named: str) -> None:
    setattr(bench.stand, field, value)
    with pytest.raises(SystemExit):
        bench.run()
    failed = [case for case in json.loads(bench.result.read_text())["cases"] if "failure" in case]
    assert [case["task"] for case in failed] == [task]
    assert named in failed[0]["failure"]
    assert not {"summary", "runs", "runs_of_circuit_tracer"} & set(failed[0])
    assert "FAILED" in capsys.readouterr().out


def test_a_killed_run_fails_what_needs_it_alone(bench) -> None:
    bench.stand.fails = "gemma-circuits pruned, float32 rows"
    with pytest.raises(SystemExit):
        bench.run()
    full, pruned = json.loads(bench.result.read_text())["cases"]
    assert "summary" in full
    assert "killed" in pruned["failure"]


def test_without_its_pruning_the_ratio_is_a_lower_bound(bench, capsys: pytest.CaptureFixture) -> None:
    bench.stand.skipped = True
    _, pruned = bench.run()["cases"]
    assert pruned["summary"]["lower_bound"]
    assert pruned["summary"]["time_ratio"] == pytest.approx(4 / 1.5)
    assert "kept_by_circuit_tracer" not in pruned["checks"][0]
    assert "more than 2.67 times our time" in capsys.readouterr().out


def test_nothing_to_check_against_is_no_pass(bench) -> None:
    bench.stand.skipped = True
    with pytest.raises(SystemExit):
        bench.run("--tasks", "pruned")
    assert "nothing to check it against" in json.loads(bench.result.read_text())["cases"][0]["failure"]


def test_reduced_rows_need_the_float32_ones(bench) -> None:
    with pytest.raises(SystemExit):
        bench.run("--tasks", "full", "--rows", "mixed")
    assert "give --rows float32 too" in json.loads(bench.result.read_text())["cases"][0]["failure"]
    _, mixed = bench.run("--tasks", "full", "--rows", "float32", "mixed")["cases"]
    assert mixed["checks"][0]["kept_as_float32"]["all"] == 1.0


def test_a_checked_repeat_is_not_run_again(bench) -> None:
    before = bench.run()["cases"]
    bench.stand.calls.clear()
    assert bench.run("--resume")["cases"] == before
    assert bench.stand.calls == []
    bench.run("--resume", "--rows", "float32", "mixed")
    assert len(bench.stand.calls) == 5
    bench.run()
    assert len(bench.stand.calls) == 8


def test_sides_alternate(tmp_path: Path) -> None:
    from comparison import plan

    first, second = (plan(tmp_path, repeat, [("full", "float32"), ("pruned", "mixed")], [64, 128]) for repeat in (0, 1))
    assert [(run.task, run.batch_size) for run in first] == [("full", None), ("pruned", None), ("", 64), ("", 128)]
    assert [run.label for run in second] == [run.label for run in first[::-1]]
    assert len({run.folder for run in (*first, *second)}) == 8


def test_ratios_compare_medians_with_the_fastest_setting() -> None:
    from comparison import summarise

    def runs(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
        return [{"seconds": s, "peak_bytes": b, "pruning": {"seconds": 1e3, "peak_bytes": 1e3}} for s, b in pairs]

    summary = summarise("full", runs((1, 10), (9, 10), (2, 30)), {256: runs((8, 40), (8, 40)), 512: runs((6, 50))})
    assert summary["gemma_circuits"]["seconds"] == {"median": 2, "min": 1, "max": 9, "n": 3}
    assert summary["fastest_batch_size"] == 512
    assert (summary["time_ratio"], summary["memory_ratio"]) == (3, 5)
    assert [setting["time_ratio"] for setting in summary["circuit_tracer"]] == [4, 3]


def test_jaccard_counts_kinds_apart() -> None:
    import kept_nodes

    a = np.concatenate([kept_nodes.rows("feature", np.array([0, 1, 2]), np.array([1, 1, 1]), np.array([5, 6, 7])),
                        kept_nodes.rows("embedding", np.array(-1), np.arange(3))])
    b = np.concatenate([kept_nodes.rows("feature", np.array([0, 1]), np.array([1, 1]), np.array([5, 8])),
                        kept_nodes.rows("embedding", np.array(-1), np.arange(3))])
    assert kept_nodes.jaccard(a, b) == 4 / 7
    assert kept_nodes.jaccard(a, b, kept_nodes.DECIDED) == 1 / 4
    assert kept_nodes.jaccard(a[:0], b[:0]) == 1


def test_what_does_not_fit_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peer
    import vs_circuit_tracer as program

    def forbidden(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(program, "child", forbidden)
    monkeypatch.setattr(program, "environment", forbidden)
    monkeypatch.setattr(peer, "available_memory", lambda: 12e9)
    monkeypatch.setattr(peer, "memory_needed", lambda tokens, size: 1e15 if size == 128 else 0)
    with pytest.raises(SystemExit, match=r"for 70 tokens at batch size 128, 12.0 GB are available"):
        program.main(["--tokens", "70", "--work", str(tmp_path)])


def test_a_process_is_run_once_and_its_failure_told(tmp_path: Path) -> None:
    import sys

    from processes import RunFailed, measured

    code = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); (p / 'run.json').write_text('{\"n\": %d}')"
    folder = tmp_path / "run"

    def run(n: int, resume: bool) -> int:
        return measured([sys.executable, "-c", code % n, folder], folder, resume=resume)["n"]

    assert run(1, False) == 1
    (folder / "mark").touch()
    assert run(1, True) == 1
    assert (folder / "mark").exists()
    assert run(2, True) == 2  # another command
    (folder / "stamp.json").unlink()  # killed before its end
    assert run(2, True) == 2
    with pytest.raises(RunFailed, match="no way"):
        measured([sys.executable, "-c", "raise SystemExit('no way')"], tmp_path / "bad")
    with pytest.raises(RunFailed, match=r"left no .*run.json"):
        measured([sys.executable, "-c", "pass"], tmp_path / "silent")
