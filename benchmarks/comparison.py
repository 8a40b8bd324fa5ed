"""One case of vs_circuit_tracer.py: the runs of both sides at one prompt length with one set of transcoders, the
checks between them, and the figures that passed.

What must hold before a figure is given: for the task ``full``, the two matrices are the same; for ``pruned``, the
nodes kept are those kept of the full matrix, ours and circuit-tracer's.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kept_nodes
import numpy as np
from edge_matrix import EdgeMatrix, MatricesDiffer, compare
from measured_run import write_json
from processes import RunFailed, read
from provenance import commit

MATRIX_LIMIT = {"float32": 1e-4, "mixed": 1e-2, "bfloat16": 1e-2}
"""Largest relative Frobenius difference from circuit-tracer's float32 matrix, by our rows' arithmetic. Correct float32
tracers differ by about 5e-7; bfloat16 rows by 0.4% (METHOD 4)."""
REDUCED_JACCARD = 0.98
"""Least agreement of the nodes kept of a full matrix in reduced precision with those of float32's."""
PRUNED_JACCARD = 0.95
"""Least agreement of the nodes kept of a graph of certified coverage with those kept of the full matrix."""
CONSERVATION_LIMIT = 1e-4
"""Largest relative residual of our float32 rows; correct ones stay near 1e-6 (METHOD 3)."""
SIDES = ("gemma-circuits", "circuit-tracer")


class CheckFailed(Exception):
    """The two sides did not compute the same thing, so their times do not compare."""


@dataclass(frozen=True)
class Run:
    """One process: ours with a task and the rows' arithmetic, or circuit-tracer's with a batch size."""

    repeat: int
    folder: Path
    task: str = ""
    rows: str = ""
    batch_size: int | None = None

    @property
    def side(self) -> str:
        return SIDES[self.batch_size is not None]

    @property
    def label(self) -> str:
        return (f"{self.side} {self.task}, {self.rows} rows" if self.batch_size is None
                else f"{self.side} 0.5.0, batch size {self.batch_size}")


Execute = Callable[[Run], dict[str, Any]]
"""Runs one process and returns what it measured; raises RunFailed."""


def plan(folder: Path, repeat: int, variants: list[tuple[str, str]], batch_sizes: list[int]) -> list[Run]:
    """The runs of one repeat, both sides in turn; which goes first alternates between repeats.

    Args:
        variants: (task, rows) of ours.
    """
    runs = [Run(repeat, folder / f"{repeat}-ours-{task}-{rows}", task, rows) for task, rows in variants]
    runs += [Run(repeat, folder / f"{repeat}-circuit-tracer-{size}", batch_size=size) for size in batch_sizes]
    return runs if repeat % 2 == 0 else runs[::-1]


@dataclass(frozen=True)
class Repeat:
    """All runs of one repeat, checked against each other."""

    figures: dict[Run, dict[str, Any]]
    """Of the runs that ended well."""
    checks: dict[str, dict[str, Any]]
    """By task and rows; with the key ``failure`` where something did not hold."""

    @classmethod
    def run(cls, runs: list[Run], execute: Execute, record: Path, setup: dict[str, Any], resume: bool) -> Repeat:
        """Execute ``runs`` and check them; edges go afterwards, which would fill the disk.

        Args:
            record: file for the checks. With ``resume``, a repeat whose checks all passed is not run again.
        """
        stamp = {"runs": [run.label for run in runs], "commit": commit()}
        if resume and record.is_file():
            known = json.loads(record.read_text(encoding="utf-8"))
            if known["stamp"] == stamp:
                return cls({run: read(run.folder) for run in runs}, known["checks"])
        record.unlink(missing_ok=True)
        figures, failures = {}, {}
        for run in runs:
            try:
                figures[run] = execute(run)
            except RunFailed as error:
                failures[run] = str(error)
        checks = {f"{run.task} {run.rows}": _checked(run, runs, figures, failures, setup)
                  for run in runs if run.batch_size is None}
        if not any("failure" in check for check in checks.values()):
            write_json(record, {"stamp": stamp, "checks": checks})
            for run in runs:
                (run.folder / "edges.npy").unlink(missing_ok=True)
        return cls(figures, checks)


def _checked(run: Run, runs: list[Run], figures: dict[Run, dict[str, Any]], failures: dict[Run, str],
             setup: dict[str, Any]) -> dict[str, Any]:
    peers = [other for other in runs if other.batch_size is not None]
    if lost := next((failures[other] for other in (run, *peers) if other in failures), None):
        return {"failure": lost}
    reference = next((other for other in figures if (other.task, other.rows) == ("full", "float32")
                      and other != run), None)
    mine = figures[run]
    try:
        check = (check_full(run, peers, reference, setup["d_model"] ** 0.5) if run.task == "full" else
                 check_pruned(run, peers, reference))
        if run.rows == "float32" and not mine["conservation"] <= CONSERVATION_LIMIT:
            raise CheckFailed(f"{run.label}: conservation residual {mine['conservation']:.1e}, allowed is "
                              f"{CONSERVATION_LIMIT:.0e}")
        if run.task == "pruned" and not mine["unexplored"] <= 1 - setup["coverage"]:
            raise CheckFailed(f"{run.label}: {mine['unexplored']:.4f} of influence is unexplored, allowed is "
                              f"{1 - setup['coverage']:.4f}")
    except CheckFailed as error:
        return {"failure": str(error)}
    return check | {"conservation": mine["conservation"], "unexplored": mine["unexplored"],
                    "active_features": mine["active_features"],
                    "rows_computed_share": mine["rows_computed"] / max(mine["active_features"], 1)}


def check_full(run: Run, peers: list[Run], reference: Run | None, token_factor: float) -> dict[str, Any]:
    """Our matrix against every one of circuit-tracer's; in reduced precision also the nodes kept of it against those
    of float32's.

    Raises:
        CheckFailed: they differ.
    """
    worst: dict[str, float] = {}
    ours = EdgeMatrix.load(run.folder)
    for peer in peers:
        try:
            found = compare(ours, EdgeMatrix.load(peer.folder), token_factor, MATRIX_LIMIT[run.rows])
        except MatricesDiffer as error:
            raise CheckFailed(f"{run.label} against {peer.label}: {error}") from error
        for name, value in found.items():
            worst[name] = max(value, worst.get(name, 0.0))
    check: dict[str, Any] = {"limit": MATRIX_LIMIT[run.rows], "relative_differences": worst, "logits": len(ours.logits),
                             "rows": ours.edges.shape[0], "columns": ours.edges.shape[1]}
    if run.rows != "float32":
        if reference is None:
            raise CheckFailed(f"{run.label}: no float32 run to compare the kept nodes with; give --rows float32 too")
        check["kept_as_float32"] = _agreement(run, "kept", reference, "kept", REDUCED_JACCARD)
    return check


def check_pruned(run: Run, peers: list[Run], reference: Run | None) -> dict[str, Any]:
    """The nodes we keep against those kept of the full matrix: circuit-tracer's with its tokens scaled as the model
    scales them, and our own. How its own pruning agrees, with tokens a factor sqrt(d_model) too small, is reported
    and decides nothing.

    Raises:
        CheckFailed: they differ, or there is nothing to compare with.
    """
    check: dict[str, Any] = {"limit": PRUNED_JACCARD}
    if reference is not None:
        check["kept_of_our_full_matrix"] = _agreement(run, "kept", reference, "kept", PRUNED_JACCARD)
    for peer in peers:
        if kept_nodes.load(peer.folder, "kept_scaled") is not None:
            found = _agreement(run, "kept", peer, "kept_scaled", PRUNED_JACCARD)
            check["kept_by_circuit_tracer"] = min(found, check.get("kept_by_circuit_tracer", found),
                                                  key=lambda agreement: agreement["all"])
            check["kept_by_circuit_tracer_unscaled"] = _agreement(run, "kept", peer, "kept", None)
    if len(check) == 1:
        raise CheckFailed(f"{run.label}: neither side pruned the full matrix, so there is nothing to check it against")
    return check


def _agreement(one: Run, name: str, two: Run, other: str, limit: float | None) -> dict[str, float]:
    """Jaccard indices of two kept sets: ``all`` nodes but constants, and ``decided`` ones, features and errors."""
    left, right = kept_nodes.load(one.folder, name), kept_nodes.load(two.folder, other)
    if left is None or right is None:
        raise CheckFailed(f"{(one if left is None else two).folder} has no set of kept nodes: run it again")
    found = {"all": kept_nodes.jaccard(left, right),
             "decided": kept_nodes.jaccard(left, right, kept_nodes.DECIDED)}
    if limit is not None and not found["all"] >= limit:
        raise CheckFailed(f"{one.label} and {two.label} keep other nodes: Jaccard {found['all']:.3f}, at least {limit} "
                          "is needed")
    return found


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least, most and number of repeats."""
    listed = list(values)
    return {"median": statistics.median(listed), "min": min(listed), "max": max(listed), "n": len(listed)}


def summarise(task: str, ours: list[dict[str, Any]], theirs: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over repeats, and circuit-tracer's divided by ours: at each batch size, and at its fastest.

    Args:
        task: ``full`` counts attribution alone; ``pruned`` also pruning, on both sides.
        ours: one dict per repeat with ``seconds``, ``peak_bytes`` and ``pruning`` (the same two).
        theirs: the same by batch size; where pruning was ``skipped`` for lack of memory, the ratio is a lower bound.
    """
    mine, settings = _totals(task, ours), []
    for size, runs in sorted(theirs.items()):
        total = _totals(task, runs)
        settings.append({"batch_size": size, **total, "time_ratio": _ratio(total, mine, "seconds"),
                         "memory_ratio": _ratio(total, mine, "peak_bytes")})
    summary: dict[str, Any] = {"gemma_circuits": mine, "circuit_tracer": settings}
    if settings:
        fastest = min(settings, key=lambda setting: setting["seconds"]["median"])
        summary |= {"fastest_batch_size": fastest["batch_size"], "time_ratio": fastest["time_ratio"],
                    "memory_ratio": fastest["memory_ratio"], "lower_bound": fastest["pruning_skipped"]}
    return summary


def _totals(task: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    pruning = [run["pruning"] if task == "pruned" else {} for run in runs]
    skipped = task == "pruned" and any("skipped" in part for part in pruning)
    seconds = [part.get("seconds", 0.0) for part in pruning]
    total: dict[str, Any] = {
        "seconds": spread(run["seconds"] + part for run, part in zip(runs, seconds, strict=True)),
        "peak_bytes": spread(max(run["peak_bytes"], part.get("peak_bytes", 0))
                             for run, part in zip(runs, pruning, strict=True)), "pruning_skipped": skipped}
    if task == "pruned":
        total |= {"attribution_seconds": spread(run["seconds"] for run in runs), "pruning_seconds": spread(seconds)}
    return total


def _ratio(theirs: dict[str, Any], ours: dict[str, Any], name: str) -> float:
    return float(np.divide(theirs[name]["median"], ours[name]["median"]))
