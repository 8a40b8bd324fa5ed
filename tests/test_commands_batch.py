"""``circuits batch`` in this process: files, numbers, exit status, and what it says."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from batch_samples import PROMPTS, tiny_settings

import circuits.graphs
from circuits import cli
from circuits.batches.settings import BatchSettings


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Done]:
    """Run ``circuits batch`` with arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["circuits", "batch", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        out, err = capfd.readouterr()
        return Done(status, out, err)

    return run


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> BatchSettings:
    return tiny_settings(tmp_path_factory.mktemp("tiny"))


def tiny(settings: BatchSettings) -> list[str]:
    return ["--model", settings.model, "--transcoders", settings.transcoders, "--device", "cpu", "--threads", "1"]


def write(path: Path, prompts: list[dict]) -> None:
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))


def test_a_batch_and_its_rerun(run, settings: BatchSettings, tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [*PROMPTS, {"id": "bad", "prompt": "paris", "target": "\x1b[31m[red]"}])
    done = run("p.jsonl", "-o", "out", *tiny(settings), "--limit", 2, "--max-logits", 2, "--logit-prob", 1,
               "--max-features", 5, "--coverage", 0.9, "--node-threshold", 0.7, "--edge-threshold", 0.9, "--memory",
               "9GiB")
    assert done.status == 0, done.err
    assert "2 (2 traced now, 0 before)" in done.out
    assert "wrote out/summary.jsonl" in done.out
    rows = [json.loads(line) for line in (tmp_path / "out" / "summary.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["00001", "ids"]
    header = circuits.graphs.load(tmp_path / "out" / rows[0]["graph"]).header
    wanted = {"coverage": 0.9, "max_features": 5, "max_logits": 2, "logit_prob": 1.0, "node_threshold": 0.7,
              "edge_threshold": 0.9, "expanded_features": 5}
    assert {name: header.settings[name] for name in wanted} == wanted
    again = run("p.jsonl", "-o", "out", *tiny(settings))
    assert again.status == 2
    assert "error: out was begun with other settings: coverage was 0.9, is 0.95; max_features was 5" in again.err
    assert "\n" not in again.err.strip()


def test_failed_prompts_are_named_and_the_status_says_so(run, settings: BatchSettings, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"id": "bad", "prompt": "paris", "target": "\x1b[31m[red]"}
    lines = "".join(json.dumps(prompt) + "\n" for prompt in [PROMPTS[0], bad])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    done = run("-", "-o", "out", *tiny(settings), "--no-prune", "--pages")
    assert done.status == 1
    assert "bad failed: InputError: " in done.out
    assert "[red]" in done.out
    assert "\x1b[31m[red]" not in done.out
    assert "answered right" in done.out
    assert (tmp_path / "out" / "pages" / "00001.html").is_file()
    row = json.loads((tmp_path / "out" / "rows" / "00001.json").read_text())
    assert row["nodes"] == row["pruned_nodes"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["absent.jsonl"], "cannot read absent.jsonl"),
    (["p.jsonl", "--engine", "slurm"], "expected local or ray"),
    (["p.jsonl", "--coverage", "0"], "coverage is 0"),
    (["p.jsonl", "--memory", "much"], "memory is 'much'"),
    (["p.jsonl", "--retries", "-1"], "retries is -1"),
    (["bad.jsonl"], "bad.jsonl, line 2: expected either 'prompt'")])
def test_bad_input_is_one_line_before_any_work(run, tmp_path: Path, arguments: list[str], message: str) -> None:
    write(tmp_path / "p.jsonl", PROMPTS)
    write(tmp_path / "bad.jsonl", [PROMPTS[0], {}])
    done = run(*arguments, "-o", "out")
    assert done.status == 2
    assert message in done.err
    assert "\n" not in done.err.strip()
    assert not (tmp_path / "out").exists()
