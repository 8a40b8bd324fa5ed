"""What processes that trace tell the one that hands out prompts, and how it hands them out."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from circuits import errors
from circuits.batches.prompts import Prompt
from circuits.errors import ModelError


@dataclass(frozen=True)
class Event:
    """What happened to a worker: its model is loaded; its prompt's row is written; it can trace no prompt at all, since
    the model cannot be opened or the folder not be written; it is gone."""

    worker: Hashable
    kind: Literal["ready", "done", "refused", "died"]
    error: str = ""
    """refused: the error's type."""
    message: str = ""


class Crew(Protocol):
    """Workers of one engine, each with one prompt at a time."""

    def start(self) -> Hashable:
        """Begin one more worker; it reports when it is ready."""

    def give(self, worker: Hashable, prompt: Prompt, attempt: int) -> None:
        """Have a worker that is ready or done trace a prompt."""

    def wait(self) -> Event:
        """The next thing that happens."""

    def close(self) -> None:
        """End all workers."""


class Foreman:
    """Gives every prompt to some worker until all are done.

    A prompt whose worker dies is put back behind the others ``retries`` times, and a new worker takes the dead one's
    place.

    Args:
        prompts: with the number of attempts that failed before.
        done: called with each prompt whose row is written.
        lost: called with a prompt that nobody tries again, the attempts made of it, and why.
    """

    def __init__(self, crew: Crew, prompts: Sequence[tuple[Prompt, int]], retries: int, *,
                 done: Callable[[Prompt], None], lost: Callable[[Prompt, int, str], None]):
        self._crew, self._retries, self._done, self._lost = crew, retries, done, lost
        self._waiting = deque(prompts)
        self._busy: dict[Hashable, tuple[Prompt, int]] = {}
        self._idle: set[Hashable] = set()
        self._starting: set[Hashable] = set()
        self._deaths: Counter[str] = Counter()
        self._failed_starts = 0

    def run(self, workers: int) -> None:
        """
        Raises:
            CircuitsError: no worker can trace any prompt.
        """
        for _ in range(min(workers, len(self._waiting))):
            self._starting.add(self._crew.start())
        while self._waiting or self._busy:
            event = self._crew.wait()
            if event.kind == "refused":
                kind = getattr(errors, event.error, ModelError)
                raise kind(event.message if kind.__name__ == event.error else
                           f"a worker cannot trace ({event.error}: {event.message})")
            if event.kind == "died":
                self._bury(event)
            else:
                self._starting.discard(event.worker)
                self._failed_starts = 0
                if event.kind == "done":
                    self._done(self._busy.pop(event.worker)[0])
                self._idle.add(event.worker)
            self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            worker, (prompt, failed) = self._idle.pop(), self._waiting.popleft()
            self._busy[worker] = prompt, failed
            self._crew.give(worker, prompt, failed + 1)

    def _bury(self, event: Event) -> None:
        self._starting.discard(event.worker)
        self._idle.discard(event.worker)
        if event.worker not in self._busy:
            self._failed_starts += 1
            if self._failed_starts > self._retries:
                raise ModelError(f"workers die before their first prompt ({event.message}): if the memory is too small "
                                 "for so many models, start fewer workers")
        else:
            prompt, failed = self._busy.pop(event.worker)
            self._deaths[prompt.id] += 1
            if (deaths := self._deaths[prompt.id]) <= self._retries:
                self._waiting.append((prompt, failed + 1))
            else:
                times = "once" if deaths == 1 else f"{deaths} times"
                self._lost(prompt, failed + 1, f"killed the worker {times} ({event.message})")
        if len(self._waiting) > len(self._idle) + len(self._starting):
            self._starting.add(self._crew.start())
