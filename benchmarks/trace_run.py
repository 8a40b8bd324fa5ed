"""One traced prompt in a process of its own, for the benchmarks that compare such runs.

    python trace_run.py JOB THREADS FOLDER

JOB is JSON: ``model`` and ``tokens`` (ids), ``transcoders`` (null: the model is only run, which gives the memory it
needs without us), ``settings`` (arguments of circuits.trace), ``device``. Leaves FOLDER/run.json.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measured_run import measure, peak_bytes, write_json

import circuits
from circuits.memory import return_freed_memory
from circuits.prompt import masked_prefix


def main(job_text: str, threads: str, folder: str) -> None:
    job = json.loads(job_text)
    torch.set_num_threads(int(threads))
    return_freed_memory()  # as the command line does
    started = time.perf_counter()
    model = circuits.load_model(job["model"], device=job.get("device", "cpu"))
    report: dict[str, Any] = {"load_seconds": time.perf_counter() - started}
    if job["transcoders"] is None:
        _, figures = measure(lambda: model.freeze(job["tokens"]))
    else:
        report |= traced(model, job)
        figures = {}
    write_json(Path(folder, "run.json"), report | figures | device_memory(model.device))


def traced(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds to open the transcoders and to trace, what the graph says of itself, and the memory of it all."""
    started = time.perf_counter()
    transcoders = circuits.open_transcoders(job["transcoders"], device=model.device)
    opened = time.perf_counter() - started

    def span() -> Any:
        graph = circuits.trace(model, transcoders, tokens=job["tokens"], **job["settings"])
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return graph

    graph, figures = measure(span)
    header = graph.header
    n_active, n_positions = header.settings["active_features"], len(job["tokens"]) - masked_prefix(job["tokens"])
    return {"open_seconds": opened, **figures, "conservation": graph.conservation, "unexplored": graph.unexplored,
            "active_features": n_active, "active_per_position": n_active / n_positions,
            "rows_computed": header.settings["expanded_features"], "nodes": len(graph), "edges": graph.n_edges,
            "settings": header.settings}


def device_memory(device: torch.device) -> dict[str, int]:
    """Peak bytes of the process and, on a GPU, of what PyTorch had allocated there."""
    found = {"peak_bytes": peak_bytes()}
    if device.type == "cuda":
        found["device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
