"""Workers as processes of this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Hashable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

from circuits.batches.events import Event
from circuits.batches.prompts import Prompt
from circuits.batches.task import Job

SECONDS_TO_END = 5.0


class LocalCrew:
    """See :class:`circuits.batches.events.Crew`. A worker is told by its process's id."""

    def __init__(self, job: Job):
        self._job = job
        self._workers: dict[Hashable, _Process] = {}
        self._events: SimpleQueue[Event] = SimpleQueue()

    def start(self) -> int:
        process = _Process()
        self._workers[process.pid] = process
        Thread(target=self._listen, args=(process,), daemon=True).start()
        self._send(process.pid, self._job.as_dict())
        return process.pid

    def give(self, worker: Hashable, prompt: Prompt, attempt: int) -> None:
        self._send(worker, {"prompt": prompt.model_dump(), "attempt": attempt})

    def wait(self) -> Event:
        return self._events.get()

    def close(self) -> None:
        for process in self._workers.values():
            process.close()
        for process in self._workers.values():
            process.end()
        self._workers.clear()

    def _send(self, worker: Hashable, values: dict[str, Any]) -> None:
        with suppress(OSError):  # it has died, which its end of the other pipe tells
            self._workers[worker].send(json.dumps(values).encode() + b"\n")

    def _listen(self, process: _Process) -> None:
        for line in process.answers:
            with suppress(ValueError):  # the last line of a killed worker may be cut
                self._events.put(Event(process.pid, **json.loads(line)))
        self._events.put(Event(process.pid, "died", message=process.epitaph()))


def start_process(said: IO[bytes]) -> Any:
    """A ``Popen`` of :mod:`circuits.batches.worker` with pipes, its standard error going to the file ``said``."""
    # -P: the current folder is no place for modules, though it may hold some of the same names
    return subprocess.Popen([sys.executable, "-P", "-m", "circuits.batches.worker"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=said)


class _Process:
    """One worker process, its pipes, and what it says on standard error."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        self._popen = start_process(self._said)
        self._commands, self.answers, self.pid = self._popen.stdin, self._popen.stdout, self._popen.pid

    def send(self, line: bytes) -> None:
        """Raises:
            OSError: it is gone.
        """
        self._commands.write(line)
        self._commands.flush()

    def close(self) -> None:
        """No more prompts: it ends at once."""
        with suppress(OSError):
            self._commands.close()

    def end(self) -> None:
        """Wait for its end, and hasten it where it takes long."""
        try:
            self._popen.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def epitaph(self) -> str:
        """How it ended, once it has closed its answers, and the last line it said."""
        self.end()
        code = self._popen.returncode
        how = f"exit status {code}" if code >= 0 else _signal_name(-code)
        self._said.seek(max(0, self._said.seek(0, 2) - 4096))
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        self._said.close()
        return f"{how}: {lines[-1]}" if lines and code >= 0 else how


def _signal_name(number: int) -> str:
    """What the signal is called, and what a kill mostly means."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name}, as the system does when memory is full" if name == "SIGKILL" else name
