"""Workers as Ray actors, on this machine or on a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

from circuits.batches.events import Event
from circuits.batches.prompts import Prompt
from circuits.batches.task import Job, PromptTracer
from circuits.errors import InputError
from circuits.hub import first_line


class RayWorker:
    """What runs as an actor.

    Args:
        place: folder to work in, where relative paths start.
    """

    def __init__(self, job: dict[str, Any], place: str):
        self._job, self._place = Job.from_dict(job), place

    def open(self) -> dict[str, str]:
        """Load the model; the rest of an :class:`Event`."""
        try:
            with suppress(OSError):  # a path that must be there is looked for below
                os.chdir(self._place)
            self._tracer = PromptTracer(self._job)
        except Exception as error:
            return {"kind": "refused", "error": type(error).__name__, "message": str(error)}
        return {"kind": "ready"}

    def trace(self, prompt: dict[str, Any], attempt: int) -> dict[str, str]:
        """Trace a prompt; the rest of an :class:`Event`."""
        try:
            self._tracer(Prompt.model_validate(prompt), attempt)
        except Exception as error:
            return {"kind": "refused", "error": type(error).__name__, "message": str(error)}
        return {"kind": "done"}


class RayCrew:
    """See :class:`circuits.batches.events.Crew`. A worker is its actor's handle.

    Args:
        job: its folder, model and transcoders must be where every node finds them.
        address: of a running cluster, as ``ray.init`` takes it; None: of the environment variable RAY_ADDRESS, else a
            new one on this machine.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or no node of it has the processors for one worker.
    """

    def __init__(self, job: Job, address: str | None):
        self._ray, self._job = _import_ray(), replace(job, folder=os.path.abspath(job.folder))
        self._own = not self._ray.is_initialized()
        if self._own:
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR,
                               include_dashboard=None if address else False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(f"cannot use the Ray cluster {address or 'of this machine'}: {first_line(error)}"
                                 ) from None
        self._pending: dict[Any, Any] = {}
        """What is being computed: the actor that computes it."""
        self._actors: set[Any] = set()
        threads, gpus = job.settings.threads or 1, int(job.settings.device.startswith("cuda"))
        nodes = [node["Resources"] for node in self._ray.nodes() if node.get("Alive", True)]
        if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes):
            self.close()
            raise InputError(f"no node of the Ray cluster has {threads} processors{' and a GPU' if gpus else ''} for "
                             "a worker: give fewer --threads or another --device")
        self._remote = self._ray.remote(RayWorker).options(num_cpus=threads, num_gpus=gpus)

    def start(self) -> Hashable:
        actor = self._remote.remote(self._job.as_dict(), os.getcwd())
        self._actors.add(actor)
        self._pending[actor.open.remote()] = actor
        return actor

    def give(self, worker: Hashable, prompt: Prompt, attempt: int) -> None:
        actor: Any = worker
        self._pending[actor.trace.remote(prompt.model_dump(), attempt)] = actor

    def wait(self) -> Event:
        (first, *_), _ = self._ray.wait(list(self._pending), num_returns=1)
        actor = self._pending.pop(first)
        try:
            return Event(actor, **self._ray.get(first))
        except self._ray.exceptions.RayError as error:
            self._actors.discard(actor)
            return Event(actor, "died", message=first_line(error))

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        if self._own:
            self._ray.shutdown()


def _import_ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'gemma-circuits[ray]', or use --engine local") from None
    return ray
