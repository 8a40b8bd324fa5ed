"""Functions in processes of their own, forked from one that has imported what they need: importing it takes seconds."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 240.0
"""Seconds until processes that do not end are killed."""

_context = multiprocessing.get_context("forkserver")  # the tests' own process has threads: it cannot be forked itself
_context.set_forkserver_preload(["pytest", "circuits.cli", "circuits.training.run", "torch.distributed",
                                 "transformers.models.gemma3.modeling_gemma3"])


def start_process(function: Callable[..., None], *arguments: Any, output: Path | None = None, **environment: str
          ) -> BaseProcess:
    """A process that calls ``function``, which a module must have under its name, here and with this environment.

    Args:
        output: a file that gets what it writes to its standard output and standard error.
        environment: further variables.
    """
    process = _context.Process(target=_call, args=(function, arguments, os.getcwd(), output,
                                                   {**os.environ, **environment}))
    process.start()
    return process


def run_ranks(size: int, function: Callable[..., None], *arguments: Any, output: Path) -> str:
    """Calls ``function`` in ``size`` processes that find each other as those that ``torchrun`` starts do.

    Args:
        output: a folder for what they write.

    Returns:
        What they wrote, one after the other.

    Raises:
        AssertionError: one did not end well; with what they wrote.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(size),
              "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    files = [output / f"rank {rank}" for rank in range(size)]
    processes = [start_process(function, *arguments, output=file, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
                 for rank, file in enumerate(files)]
    for process in processes:
        process.join(PATIENCE)
        process.kill()
        process.join()
    written = "".join(file.read_text() for file in files)
    assert [process.exitcode for process in processes] == [0] * size, written
    return written


def _call(function: Callable[..., None], arguments: tuple[Any, ...], folder: str, output: Path | None,
          environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if output is not None:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    function(*arguments)
