"""Something that the worker computes while someone waits for the answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Event
from typing import Generic, TypeVar

T = TypeVar("T")
Report = Callable[[str, int, int], None]
"""Progress: called with a stage, what is done, and the most there can be."""


class _Dropped(BaseException):
    """Raised by the progress callback, through all the code that calls it: no ``except Exception`` may catch it."""


class Question(Generic[T]):
    """One question and its answer.

    Args:
        work: computes the answer, calling its argument as it goes on. Runs in the worker's thread.
    """

    def __init__(self, work: Callable[[Report], T]):
        self._work = work
        self._dropped = Event()
        self.answer: Future[T] = Future()

    def run(self) -> None:
        """Compute the answer, unless nobody waits for it any more."""
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.answer.set_result(self._work(self._report))
        except BaseException as error:  # all of it belongs to the one who asked, and the worker goes on
            self.answer.set_exception(error)

    def drop(self) -> None:
        """Nobody waits any more: it is not begun, or ends at its next report of progress."""
        self.answer.cancel()
        self._dropped.set()

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._dropped.is_set():
            raise _Dropped
