"""What both sides of vs_circuit_tracer.py measure, alike: wall time of the span, peak memory of the process."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


def measure(span: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """Run ``span`` once; its result and its figures.

    Returns:
        What ``span`` returned; ``seconds`` on the wall, ``cpu_seconds`` over all threads (far below seconds times
        threads: other programs took the processor), ``peak_bytes`` of the process, opening the model included, and
        ``opened_bytes``, the peak before the span.
    """
    opened, start, cpu_start = peak_bytes(), time.perf_counter(), time.process_time()
    result = span()
    return result, {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start,
                    "peak_bytes": peak_bytes(), "opened_bytes": opened}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write beside the target, then rename: a reader never sees half a file."""
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    scratch.replace(path)


def conclude(report: dict[str, Any], lines: Iterable[str], failed: bool, json_file: str | None) -> None:
    """End a program: write ``report`` to ``json_file`` if one is named, print ``lines``, exit with 1 if it failed."""
    if json_file:
        write_json(Path(json_file), report)
    for line in lines:
        print(line)
    if failed:
        sys.exit(1)
