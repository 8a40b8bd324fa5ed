"""The training loop: same weights whether killed or not, on one process or two; learning rate, order of shards."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_processes import run_ranks, start_process
from safetensors.torch import load_file

from circuits.errors import InputError
from circuits.training.ranks import join
from circuits.training.settings import TrainSettings
from circuits.training.start import start_from
from circuits.training.trainer import learning_rate, schedule, train
from circuits.transcoder import open_transcoders

L, D, T = 3, 8, 120
SETTINGS = TrainSettings(features=16, span=2, active=3, epochs=2, shards=3, batch=30, lr=3e-3, seed=2,
                         decoder_penalty=0.1)
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_training_trainer import run
run(Path(sys.argv[1]))
"""


class Memory:
    """Shards held in memory, and which were dropped."""

    n_layers, d_model, tokens_per_shard = L, D, T

    def __init__(self, shards_in_quota: int | None = None) -> None:
        generator = torch.Generator().manual_seed(4)
        self.shards_in_quota, self.dropped, self.reads = shards_in_quota, [], []
        w = torch.randn(L, D, D, generator=generator)
        self.shards = []
        for _ in range(6):
            x = torch.randn(T, L, D, generator=generator)
            self.shards.append((x.bfloat16(), torch.einsum("tld,lde->tle", x.relu(), w).bfloat16()))

    def read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert index not in self.dropped
        self.reads.append(index)
        return self.shards[index]

    def drop(self, index: int) -> None:
        self.dropped.append(index)


def run(folder: Path, pause: float = 0.0, **changes: Any) -> None:
    """Trains in a process of its own, or in several that share the features."""
    train(Memory(), replace(SETTINGS, **changes), folder, checkpoint_seconds=0.0, ranks=join("cpu"),
          progress=lambda p: time.sleep(pause))


@pytest.mark.parametrize("sparsity", ["batchtopk", "jumprelu"])
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(tmp_path: Path, sparsity: str) -> None:
    steps = []
    for wait in (0.0, 0.13, 0.31):  # seconds after the first checkpoint; each time further
        process = start_process(partial(run, sparsity=sparsity), tmp_path / "killed", 0.05)
        before = (tmp_path / "killed" / "checkpoint.safetensors").stat().st_mtime_ns if steps else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            path = tmp_path / "killed" / "checkpoint.safetensors"
            if path.exists() and path.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
        steps.append(json.loads(_metadata(tmp_path / "killed" / "checkpoint.safetensors")["step"]))
    assert 0 < steps[0] < steps[2] < 24
    settings = replace(SETTINGS, sparsity=sparsity)
    resumed = train(Memory(), settings, tmp_path / "killed")
    whole = train(Memory(), settings, tmp_path / "whole")
    assert set(resumed.state()) == set(whole.state())
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("changes", [{}, {"sparsity": "jumprelu"}, {"matryoshka": (0.3,)}], ids=str)
def test_two_processes_give_the_result_of_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    run_ranks(2, partial(run, **changes), tmp_path / "two", output=tmp_path)
    train(Memory(), replace(SETTINGS, **changes), tmp_path / "one")
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")
    # one log, written by the first process
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_of_two_processes_of_torchrun_goes_on_with_one(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(here=str(Path(__file__).parent)))
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script,
                    tmp_path / "two"], check=True, capture_output=True, timeout=240,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})
    steps = []
    train(Memory(), replace(SETTINGS, epochs=3), tmp_path / "two", progress=lambda p: steps.append(p.step))
    assert steps[0] == 25
    assert steps[-1] == 36


def test_every_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from circuits.training.ranks import own_device

    assert own_device(torch.device("cuda")) == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device(torch.device("cuda")) == "cuda:3"
    assert own_device(torch.device("cuda:1")) == "cuda:1"
    assert own_device(torch.device("cpu")) == "cpu"


def test_features_that_cannot_be_shared_out_are_refused() -> None:
    from circuits.training.ranks import Ranks

    with pytest.raises(InputError, match="multiple of 3"):
        Ranks(0, 3).check(16)


def test_other_settings_than_the_checkpoints_are_refused(tmp_path: Path) -> None:
    train(Memory(), SETTINGS, tmp_path)
    with pytest.raises(InputError, match=r"other settings \(lr differ"):
        train(Memory(), replace(SETTINGS, lr=1e-4), tmp_path)
    with pytest.raises(InputError, match="lower batch"):
        train(Memory(), replace(SETTINGS, batch=121), tmp_path / "other")


def test_training_lowers_the_error_and_reports_it(tmp_path: Path) -> None:
    seen = []
    train(Memory(), replace(SETTINGS, epochs=12), tmp_path, progress=seen.append)
    assert sum(seen[-1].fvu) < 0.8 * sum(seen[0].fvu)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60, 80, 100, 120, 140, 144]
    assert lines[-1]["tokens"] == 144 * 30
    assert lines[-1]["active"] == pytest.approx([3.0] * L, abs=0.01)
    assert len(lines[-1]["dead"]) == len(lines[-1]["threshold"]) == L


def test_jumprelu_reaches_its_target_l0(tmp_path: Path) -> None:
    settings = replace(SETTINGS, sparsity="jumprelu", epochs=60, active=4, l0_penalty=10.0, lr=0.01, bandwidth=0.3)
    train(Memory(), settings, tmp_path)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["active"] == pytest.approx([4.0] * L, rel=0.3)


def test_shards_are_read_in_windows_of_the_quota_and_dropped_after_their_last_pass(tmp_path: Path) -> None:
    shards = Memory(shards_in_quota=2)
    settings = replace(SETTINGS, shards=5, epochs=2)
    order = schedule(settings, 2)
    assert [sorted(order[i:i + 4]) for i in (0, 4)] == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert order[8:] == [4, 4]
    train(shards, settings, tmp_path, keep=1)
    assert shards.reads[1:] == order  # the first read sets the scales
    assert sorted(shards.dropped) == [0, 1, 2, 3]
    kept = Memory()
    train(kept, SETTINGS, tmp_path / "all")
    assert kept.dropped == []


def test_starts_from_a_trained_set_and_adds_features(tmp_path: Path) -> None:
    from circuits.checkpoints import native

    first = train(Memory(), replace(SETTINGS, epochs=30), tmp_path / "first")
    for layer in range(L):
        native.write_layer(tmp_path / "set", layer, first.folded(layer), "float32")
    native.write_config(tmp_path / "set", kind="clt", n_layers=L, d_model=D, d_transcoder=16, span=2, model_name="tiny",
                        masked_prefix=1, training={})
    trained = open_transcoders(tmp_path / "set")
    x, y = Memory().read(0)
    settings = replace(SETTINGS, features=24, active=3, seed=9)
    start_fvu = {}
    for name, start in (("cold", None), ("warm", lambda clt: start_from(clt, trained, x, y))):
        seen = []
        clt = train(Memory(), settings, tmp_path / name, start=start, progress=seen.append)
        start_fvu[name] = sum(seen[0].fvu)
    assert start_fvu["warm"] < 0.8 * start_fvu["cold"]
    with pytest.raises(InputError, match="expected at least as many"):
        start_from(train(Memory(), replace(SETTINGS, features=8), tmp_path / "small"), trained, x, y)
    with pytest.raises(InputError, match="span"):
        start_from(train(Memory(), replace(SETTINGS, span=1), tmp_path / "plt"), trained, x, y)
    assert clt.features == 24


def test_learning_rate_schedule() -> None:
    settings = TrainSettings(lr=1.0, warmup=0.02, decay=0.3)
    assert [learning_rate(settings, p) for p in (0.0, 0.02, 0.5, 1.0)] == [0.0, 1.0, 1.0, 0.0]
    assert learning_rate(settings, 0.85) == pytest.approx(0.5)
    assert learning_rate(replace(settings, warmup=0.0, decay=0.0), 0.0) == 1.0
