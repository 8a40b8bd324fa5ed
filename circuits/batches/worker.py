"""A process that traces prompts for the batch that started it: ``python -m circuits.batches.worker``.

It reads JSON lines, first a :class:`circuits.batches.task.Job`, then prompts, one at a time, and answers each with a
line when its row is written. It ends, whatever it does, when its input ends: then the one who started it has no more
prompts, or is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO


def main() -> None:
    """Answers go to what was standard output; what libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    from circuits.memory import return_freed_memory

    return_freed_memory()
    serve(sys.stdin.buffer, answers)


def serve(commands: BinaryIO, answers: BinaryIO) -> None:
    """Trace what ``commands`` ask for until they end; this ends the process."""
    queue: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_listen, args=(commands, queue), daemon=True).start()
    from circuits.batches.prompts import Prompt
    from circuits.batches.task import Job, PromptTracer

    def tell(**values: str) -> None:
        try:
            answers.write(json.dumps(values).encode() + b"\n")
            answers.flush()
        except BrokenPipeError:
            os._exit(0)

    try:
        tracer = PromptTracer(Job.from_dict(queue.get()))
        tell(kind="ready")
        while True:
            asked = queue.get()
            tracer(Prompt.model_validate(asked["prompt"]), asked["attempt"])
            tell(kind="done")
    except Exception as error:  # not of a prompt, whose row says it: of all of them
        tell(kind="refused", error=type(error).__name__, message=str(error))


def _listen(commands: BinaryIO, queue: SimpleQueue[Any]) -> None:
    for line in commands:
        queue.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
