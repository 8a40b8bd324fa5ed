"""A batch from its prompts to its summary and gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.batches.events import Crew, Foreman
from circuits.batches.folder import BatchFolder
from circuits.batches.gallery import write_gallery, write_pages
from circuits.batches.prompts import Prompt, check_prompts, read_prompts
from circuits.batches.settings import BatchSettings
from circuits.batches.task import Job, PromptTracer, Report, failed_row
from circuits.errors import InputError

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class BatchResult:
    """What a batch left in its folder."""

    rows: list[dict[str, Any]]
    """As in ``summary.jsonl``, in the order of the prompts."""
    traced: int
    """Prompts of this run; the others were done before."""

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of prompts that have no graph."""
        return [row for row in self.rows if row["error"] is not None]


def trace_batch(prompts: str | Path | Sequence[Mapping[str, Any]], folder: str | Path,
                settings: BatchSettings | None = None, *, workers: int = 1, engine: str = "local",
                address: str | None = None, memory: int | None = None, retries: int = 2, limit: int | None = None,
                pages: bool = False, progress: Report = lambda stage, done, total: None) -> BatchResult:
    """Trace prompts into ``folder``: ``graphs/ID.safetensors`` each, ``summary.jsonl`` with a row of measures each, and
    ``index.html``, a gallery.

    What is there already is not traced again, what failed is. Results do not depend on the engine, on the number of
    workers or on the order of prompts: a graph is to the last bit that of a single process with as many threads, where
    ``memory`` does not cut the batches of rows (:func:`circuits.planning.plan`).

    Args:
        prompts: a JSONL file, ``-`` for standard input, or objects with the keys of
            :class:`circuits.batches.prompts.Prompt`.
        workers: processes, each with its own copy of the model. With one, this process traces; with more, or with
            Ray, one that is killed loses only its prompt.
        engine: ``local``, or ``ray``: workers are Ray actors, and every node must see ``folder`` under its path.
        address: of a running Ray cluster; by default one on this machine.
        memory: bytes that each process may hold on its device; by default an equal part of what is free at the start.
        retries: how often a prompt whose worker was killed is tried again.
        limit: only the first prompts.
        pages: write ``pages/ID.html`` too, the interactive page of each graph.

    Raises:
        InputError: impossible arguments; prompts that are none; a folder that cannot be written, where another batch
            works, or that was begun with other settings or prompts.
        CircuitsError: the model or the transcoders cannot be opened.
    """
    settings = settings or BatchSettings()
    _check(workers, engine, address, memory, retries, limit)
    asked = _prompts(prompts)[:limit]
    place = BatchFolder(Path(folder))
    with place.locked():
        settings = place.begin(settings, _threads(workers))
        waiting = place.pending(asked)
        if waiting:
            job = Job(str(folder), settings, _memory(settings, workers, engine) if memory is None else memory)
            tally = _Tally(place, len(asked) - len(waiting), len(asked), progress)
            if engine == "local" and workers == 1:
                _trace_here(job, waiting, tally)
            else:
                _trace_by(_crew(job, engine, address), waiting, workers, retries, tally)
        rows = place.summarise(asked)
        if pages:
            write_pages(place, rows, progress)
        write_gallery(place, rows, settings)
    return BatchResult(rows, len(waiting))


@dataclass
class _Tally:
    """How many prompts are done."""

    folder: BatchFolder
    count: int
    total: int
    progress: Report

    def done(self, prompt: Prompt) -> None:
        self.count += 1
        self.progress("prompts", self.count, self.total)

    def lost(self, prompt: Prompt, attempts: int, why: str) -> None:
        self.folder.write_row(failed_row(prompt, attempts, "WorkerKilled", why))
        self.done(prompt)


def _trace_here(job: Job, waiting: Sequence[tuple[Prompt, int]], tally: _Tally) -> None:
    import torch

    threads = torch.get_num_threads()
    try:
        tally.progress("loading the model", 0, 1)
        tracer = PromptTracer(job, tally.progress)
        tally.progress("prompts", tally.count, tally.total)
        for prompt, failed in waiting:
            tracer(prompt, failed + 1)
            tally.done(prompt)
    finally:
        torch.set_num_threads(threads)


def _trace_by(crew: Crew, waiting: Sequence[tuple[Prompt, int]], workers: int, retries: int, tally: _Tally) -> None:
    try:
        tally.progress("prompts", tally.count, tally.total)
        Foreman(crew, waiting, retries, done=tally.done, lost=tally.lost).run(workers)
    finally:
        crew.close()


def _crew(job: Job, engine: str, address: str | None) -> Crew:
    if engine == "ray":
        from circuits.batches.ray_crew import RayCrew

        return RayCrew(job, address)
    from circuits.batches.local import LocalCrew

    return LocalCrew(job)


def _prompts(prompts: str | Path | Sequence[Mapping[str, Any]]) -> list[Prompt]:
    if isinstance(prompts, str | Path):
        return read_prompts(prompts)
    return check_prompts((f"prompt {number}", number, fields) for number, fields in enumerate(prompts, 1))


def _threads(workers: int) -> int:
    """Of each process, where nobody says: as many as one trace would take, divided among them."""
    import torch

    return max(1, torch.get_num_threads() // workers)


def _memory(settings: BatchSettings, workers: int, engine: str) -> int | None:
    """Bytes for each process, fixed at the start: how rows are batched, and so their last bits, must not depend on what
    the others hold at the moment. A Ray actor has its GPU for itself."""
    from circuits.planning import free_memory, used_memory

    if engine == "ray" and settings.device.startswith("cuda"):
        return None
    from circuits.placement import resolve_device

    device = resolve_device(settings.device)
    return (free_memory(device) + used_memory(device)) // workers


def _check(workers: int, engine: str, address: str | None, memory: int | None, retries: int, limit: int | None
           ) -> None:
    for name, value, least in (("workers", workers, 1), ("memory", memory, 1), ("retries", retries, 0),
                               ("limit", limit, 1)):
        if value is not None and value < least:
            raise InputError(f"{name} is {value}: expected at least {least}")
    if engine not in ENGINES:
        raise InputError(f"engine is {engine!r}: expected {' or '.join(ENGINES)}")
    if address is not None and engine != "ray":
        raise InputError("address names a Ray cluster: give it with engine ray")
