"""Everything of the small world from nothing: both models, their transcoders, and how well they do.

Two processes of half the cores each train at once; what is done already is not done again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from circuits.bundled import MODELS
from circuits.errors import CircuitsError
from circuits.graphs.store import replacing
from circuits.small_world.tasks import documents

Report = Callable[[str, int, int], None]
TEXT_SEED = 500_000_000
"""Of the transcoders' text: not the models'."""
KINDS = ("clt", "plt")
SIZES = tuple(name.rsplit("-", 1)[-1] for name in MODELS)
SEQUENCES, SHARDS = 256, 64
"""Of the text that transcoders are trained on; one more shard measures them."""
TRANSCODERS: dict[str, dict[str, Any]] = {
    "s": {"features": 384, "active": 6}, "m": {"features": 384, "active": 6}}
TRAINING = {"lr": 2e-3, "sequences": SEQUENCES, "shards": SHARDS, "epochs": 2, "batch": 1024, "refit": 16}
SPAN = {"clt": 4, "plt": 1}
KEPT = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "training.json")


def build(folder: Path, progress: Report = lambda stage, done, total: None) -> dict[str, Any]:
    """Train ``small-world-s`` and ``-m`` and a CLT and a PLT for each, in ``folder``, which takes under an hour on two
    cores. What a package brings along comes to ``folder / "bundle"``.

    Killed, it goes on from there when called again; transcoder runs go on from their checkpoints.

    Returns:
        Accuracy by model and task, and the transcoders' quality; also in ``folder / "report.json"``.

    Raises:
        CircuitsError: a training process failed; its log is named.
    """
    from circuits.small_world.model import LENGTH

    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    text = folder / "text.jsonl"
    if not text.is_file():
        with replacing(text) as scratch, scratch.open("w", encoding="utf-8") as file:
            for document in documents(SEQUENCES * (SHARDS + 1), LENGTH - 2, TEXT_SEED):
                file.write(json.dumps({"text": document}) + "\n")
    models = {f"small-world-{size}": _Job(("-m", "circuits", "small-world", "model", size, "-o", str(
        folder / "models" / f"small-world-{size}"))) for size in reversed(SIZES)}  # the longer one first
    sets = {f"small-world-{size}-{kind}": _Job(_transcoder_command(folder, size, kind, LENGTH), f"small-world-{size}")
            for size in SIZES for kind in KINDS}
    _run_jobs(models | sets, folder / "logs", progress)
    return _finish(folder, time.monotonic() - started)


class _Job(NamedTuple):
    """A Python program, and the job that must be done before it."""

    arguments: tuple[str, ...]
    needs: str = ""


def _transcoder_command(folder: Path, size: str, kind: str, length: int) -> tuple[str, ...]:
    settings = {**TRAINING, **TRANSCODERS[size], "span": SPAN[kind], "length": length}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ("-m", "circuits", "train", "--model", str(folder / "models" / f"small-world-{size}"), "--no-skip",
            "--text", str(folder / "text.jsonl"), "-o", str(folder / f"small-world-{size}-{kind}"), *flags)


def _run_jobs(jobs: dict[str, _Job], logs: Path, progress: Report) -> None:
    """Run the jobs, two at a time, that have not ended well before.

    Raises:
        CircuitsError: one failed.
    """
    logs.mkdir(exist_ok=True)
    _end_orphans(logs)
    done = {name for name in jobs if (logs / f"{name}.done").is_file()}
    running: dict[str, subprocess.Popen[bytes]] = {}
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    started = time.monotonic()
    try:
        while len(done) < len(jobs):
            ready = [name for name, job in jobs.items() if name not in done and name not in running and (
                not job.needs or job.needs in done)]
            for name in ready[:2 - len(running)]:
                with (logs / f"{name}.log").open("ab") as log:
                    running[name] = subprocess.Popen(
                        [sys.executable, *jobs[name].arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                        env=os.environ | {"OMP_NUM_THREADS": threads})
                pid = running[name].pid
                (logs / f"{name}.pid").write_text(f"{pid} {psutil.Process(pid).create_time()}", encoding="ascii")
            progress(f"training {', '.join(running)}, {(time.monotonic() - started) / 60:.0f} min", len(done),
                     len(jobs))
            time.sleep(0.5)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if running.pop(name).returncode:
                    raise CircuitsError(f"training {name} failed: {logs / name}.log says why")
                (logs / f"{name}.done").touch()
                done.add(name)
    finally:
        for process in running.values():
            process.terminate()


def _end_orphans(logs: Path) -> None:
    """End what a killed build left running: two processes must not train one model."""
    for file in logs.glob("*.pid"):
        pid, created = file.read_text(encoding="ascii").split()
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if process.create_time() == float(created):
                process.kill()
                process.wait()
        file.unlink()


def _finish(folder: Path, seconds: float) -> dict[str, Any]:
    """Copy what a package needs, and measure it."""
    from circuits.small_world.answers import accuracy
    from circuits.weights import load_model

    report: dict[str, Any] = {"seconds": seconds}
    for size in SIZES:
        name = f"small-world-{size}"
        model, bundle = folder / "models" / name, folder / "bundle"
        shutil.rmtree(bundle / name, ignore_errors=True)
        (bundle / name).mkdir(parents=True)
        for file in KEPT:
            if (model / file).is_file():
                shutil.copy(model / file, bundle / name / file)
        for kind in KINDS:
            shutil.rmtree(bundle / f"{name}-{kind}", ignore_errors=True)
            shutil.copytree(folder / f"{name}-{kind}" / "transcoder", bundle / f"{name}-{kind}")
            config = json.loads((bundle / f"{name}-{kind}" / "config.json").read_text(encoding="utf-8"))
            report[f"{name}-{kind}"] = config["quality"]
        report[name] = {task: asdict(answers) for task, answers in accuracy(load_model(bundle / name)).items()}
    with replacing(folder / "report.json") as scratch:
        scratch.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report
