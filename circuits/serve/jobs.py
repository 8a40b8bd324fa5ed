"""Traces that were asked for: a short queue, one worker thread, progress, and cancelling at any time. Questions that
someone waits for go between them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from secrets import token_hex
from threading import Condition, Thread
from typing import Any

from circuits.errors import CircuitsError
from circuits.serve.question import Question, Report
from circuits.serve.refusal import Refusal, sentence
from circuits.serve.schemas import State, TraceRequest, TraceState

MAX_WAITING = 8
KEPT = 50
"""Traces that ended and are still listed."""
MAX_QUESTIONS = 8
"""Questions that may wait."""


@dataclass(frozen=True)
class Result:
    """What a trace made."""

    graph: str
    warnings: list[str] = field(default_factory=list)


class _Cancelled(BaseException):
    """Raised by the progress callback, through all the code that calls it: no ``except Exception`` may catch it."""


@dataclass(eq=False)
class Job:
    """One trace; read it with :meth:`Jobs.look`."""

    request: TraceRequest
    id: str = field(default_factory=lambda: token_hex(8))
    state: State = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    error: str | None = None
    result: Result | None = None
    created: str = field(default_factory=lambda: _now())
    finished: str | None = None
    cancelled: bool = False
    version: int = 0
    """Rises with every change that anyone could see."""


class Jobs:
    """The queue and its worker.

    Args:
        work: traces a request and saves the graph, calling its second argument as it goes on. Runs in one thread.
    """

    def __init__(self, work: Callable[[TraceRequest, Report], Result]):
        self._work = work
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._questions: deque[Question[Any]] = deque()
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._loop, name="circuits-trace", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 20.0) -> bool:
        """Cancel everything and wait for the worker at most ``timeout`` seconds; whether it has ended."""
        with self._changed:
            self._closing = True
            for job in self._jobs.values():
                self._cancel(job)
            for question in self._questions:
                question.drop()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(self, request: TraceRequest) -> Job:
        """Put a request in the queue.

        Raises:
            Refusal: 429; ``MAX_WAITING`` wait already. 503; the server is closing.
        """
        with self._changed:
            if self._closing:
                raise Refusal(503, "the server is closing: start it again")
            if len(self._waiting) >= MAX_WAITING:
                raise Refusal(429, f"{MAX_WAITING} traces wait already: try again when one is done, or cancel one")
            job = Job(request)
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._touch()
            return job

    def ask(self, question: Question[Any]) -> None:
        """Have the worker answer a question when the trace that runs is done, before those that wait.

        Raises:
            Refusal: 429; ``MAX_QUESTIONS`` wait already. 503; the server is closing.
        """
        with self._changed:
            if self._closing:
                raise Refusal(503, "the server is closing: start it again")
            if len(self._questions) >= MAX_QUESTIONS:
                raise Refusal(429, f"{MAX_QUESTIONS} questions to the model wait already: try again in a moment")
            self._questions.append(question)
            self._changed.notify_all()

    def drop(self, question: Question[Any]) -> None:
        """Nobody waits for the answer any more, or it is there."""
        with self._changed:
            if question in self._questions:
                self._questions.remove(question)
        question.drop()

    def find(self, job_id: str) -> Job:
        """Raises:
            Refusal: 404; no such trace, or it ended long ago.
        """
        with self._changed:
            if job_id not in self._jobs:
                raise Refusal(404, "there is no such trace: it ended long ago, or the server was started again since")
            return self._jobs[job_id]

    def all(self) -> list[TraceState]:
        """Every trace that is remembered, newest first."""
        with self._changed:
            return [self._describe(job) for job in reversed(self._jobs.values())]

    def look(self, job: Job) -> tuple[TraceState, int]:
        """Where a trace stands, and a number that rises with every change of it."""
        with self._changed:
            return self._describe(job), job.version

    def cancel(self, job: Job) -> None:
        """End a trace: at once where it waits, at its next report of progress where it runs. One that has ended stays
        as it is."""
        with self._changed:
            self._cancel(job)

    def _cancel(self, job: Job) -> None:
        if job.state == "waiting":
            self._waiting.remove(job)
            self._end(job, "cancelled")
        elif job.state == "running":
            job.cancelled, job.stage = True, "cancelling"
            self._touch()

    def _loop(self) -> None:
        while (task := self._next()) is not None:
            if isinstance(task, Question):
                task.run()
            else:
                self._trace(task)

    def _trace(self, job: Job) -> None:
        try:
            result = self._work(job.request, partial(self._report, job))
        except _Cancelled:
            self._ended(job, "cancelled")
        except CircuitsError as error:
            self._ended(job, "failed", sentence(error))
        except MemoryError:
            self._ended(job, "failed", "the memory is full: shorten the prompt, or set a number of features")
        except Exception as error:
            logging.getLogger(__name__).exception("a trace failed")
            self._ended(job, "failed", f"internal error ({type(error).__name__}): this is a bug; report it "
                        "with what the server's terminal says")
        else:
            job.result = result
            self._ended(job, "done")

    def _next(self) -> Job | Question[Any] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._questions or self._closing)
            if self._closing:
                return None
            if self._questions:
                return self._questions.popleft()
            job = self._waiting.popleft()
            job.state = "running"
            self._touch()
            return job

    def _report(self, job: Job, stage: str, done: int, total: int) -> None:
        with self._changed:
            if job.cancelled:
                raise _Cancelled
            job.stage, job.done, job.total = stage, int(done), int(total)
            job.version += 1

    def _ended(self, job: Job, state: State, error: str | None = None) -> None:
        with self._changed:
            self._end(job, state, error)

    def _end(self, job: Job, state: State, error: str | None = None) -> None:
        job.state, job.error, job.finished = state, error, _now()
        ended = [old.id for old in self._jobs.values() if old.finished is not None]
        for old in ended[:-KEPT]:
            del self._jobs[old]
        self._touch()

    def _touch(self) -> None:
        """Any of them may stand elsewhere in the queue now."""
        for job in self._jobs.values():
            job.version += 1
        self._changed.notify_all()

    def _describe(self, job: Job) -> TraceState:
        running = any(other.state == "running" for other in self._jobs.values())
        ahead = running + self._waiting.index(job) if job.state == "waiting" else 0
        return TraceState(
            id=job.id, state=job.state, request=job.request, ahead=ahead, stage=job.stage, done=job.done,
            total=job.total, error=job.error, graph=job.result.graph if job.result else None,
            warnings=job.result.warnings if job.result else [], created=job.created, finished=job.finished)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
