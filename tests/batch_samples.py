"""What tests of batches share: a tiny model with a tokenizer, prompts, comparison of graphs, and quick workers."""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from forked_processes import start_process
from test_prompt import write_tokenizer
from tiny_models import text_folder
from transcoder_folders import dictionary, gemma_scope_clt

import circuits.graphs
from circuits.batches.settings import BatchSettings
from circuits.graphs.nodes import NodeTable

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "paris paris x mo", "answer": " x", "family": "one", "kind": 7},
    {"id": "ids", "tokens": [2, 17, 99, 31, 5, 64], "answer": 3},
    {"id": "named", "prompt": "paris x", "target": " x", "versus": "paris", "family": "two"}]


def tiny_settings(root: Path, **changes: Any) -> BatchSettings:
    """Settings that trace with a tiny model, made under ``root``."""
    model = text_folder(root / "model")
    write_tokenizer(model)
    made = dictionary(span=4, n_layers=4, features=20, d_model=32)
    for parts, scale in ((made.w_enc, 0.3), (made.w_dec, 0.1), (made.b_dec, 0.1)):
        for tensor in parts:
            tensor *= scale
    return BatchSettings(model=str(model), transcoders=gemma_scope_clt(root, made), device="cpu", threads=1,
                         **({"max_logits": 3} | changes))


def random_prompts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [{"tokens": [2, *draw.integers(3, 128, draw.integers(3, 7)).tolist()]} for _ in range(count)]


def assert_same_graph(left: Path, right: Path) -> None:
    """Equal to the last bit, the time of tracing aside."""
    a, b = circuits.graphs.load(left), circuits.graphs.load(right)
    assert asdict(a.header) | {"created": ""} == asdict(b.header) | {"created": ""}
    for name in ("indptr", "indices", "weights", "target_nodes", "target_weights"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    for column in fields(NodeTable):
        x, y = a.nodes[column.name], b.nodes[column.name]
        assert x.tolist() == y.tolist() if x.dtype == object else x.tobytes() == y.tobytes(), column.name


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what no two runs share."""
    return {key: value for key, value in row.items() if key not in ("seconds", "peak_memory_bytes", "attempts")}


class ForkedWorker:
    """Stands for the ``Popen`` of a worker: a process that is forked with everything imported.

    Args:
        folder: for the two pipes.
    """

    def __init__(self, folder: Path):
        folder.mkdir()
        pipes = folder / "commands", folder / "answers"
        for pipe in pipes:
            os.mkfifo(pipe)
        self._process = start_process(_serve, *pipes, output=folder / "said")
        self.pid = self._process.pid
        self.stdin, self.stdout = pipes[0].open("wb"), pipes[1].open("rb")

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a worker", timeout or 0)

    def kill(self) -> None:
        self._process.kill()


def _serve(commands: Path, answers: Path) -> None:
    from circuits.batches.worker import serve

    with commands.open("rb") as asked, answers.open("wb") as told:
        serve(asked, told)
