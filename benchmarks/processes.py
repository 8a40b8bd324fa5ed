"""Child processes of the benchmarks: each measured run is one, leaves one JSON, and need not be run twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from measured_run import write_json
from provenance import commit

RESULT, STAMP = "run.json", "stamp.json"


class RunFailed(Exception):
    """A child process that did not end well; the message has the end of its output."""


def child(command: list[Any], log: Path, threads: int = 1, offline: bool = True) -> None:
    """Run a command to its end with its output in ``log``.

    Raises:
        RunFailed: it ended with another status than 0.
    """
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads),
                       TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1" if offline else "0")
    words = [str(part) for part in command]
    with log.open("w", encoding="utf-8") as output:
        status = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, env=environment).returncode
    if status:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        killed = " (killed: too little memory?)" if status == -9 else ""
        raise RunFailed(f"{tail}\n{' '.join(words)} ended with status {status}{killed}; all its output is in {log}")


def measured(command: list[Any], folder: Path, threads: int = 1, resume: bool = False) -> dict[str, Any]:
    """Run a command that writes ``folder/run.json``, and return what it wrote.

    Args:
        resume: take the result of an earlier run of the same command and commit, if it ended well.

    Raises:
        RunFailed: see :func:`child`; or it wrote nothing.
    """
    stamp = {"command": [str(part) for part in command], "threads": threads, "commit": commit()}
    if not (resume and finished(folder, stamp)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        child(command, folder / "log.txt", threads)
        if not (folder / RESULT).is_file():
            raise RunFailed(f"{' '.join(stamp['command'])} left no {folder / RESULT}")
        write_json(folder / STAMP, stamp)  # last: what lacks it is unfinished
    return read(folder)


def finished(folder: Path, stamp: dict[str, Any]) -> bool:
    """Whether ``folder`` holds a finished run with this stamp."""
    path = folder / STAMP
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")) == stamp


def read(folder: Path) -> dict[str, Any]:
    """What a run left."""
    return json.loads((folder / RESULT).read_text(encoding="utf-8"))


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def warm(folder: Path) -> None:
    """Read the files below ``folder`` once, so that no run pays for the disk in another's stead."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
