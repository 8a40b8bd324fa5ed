"""This engine side by side with circuit-tracer 0.5.0: same weights, same prompts, alternating processes.

    python benchmarks/vs_circuit_tracer.py --tokens 9 70 140 --transcoders random-plt bundled-clt \\
        --tasks full pruned --rows float32 mixed --repeats 3 --json result.json

Gemma 3 270M with 16,384 random features a layer of which about 10 fire at each position, or with the bundled CLT.
``full``: the matrix of all edges, nothing pruned. ``pruned``: ours computes rows until at most 1 - coverage of
influence is unexplored and prunes; circuit-tracer computes the full matrix and prunes it with its own prune_graph.

Each run is a fresh process. Time is the wall clock from token ids on, with model and transcoders opened before;
memory is the process's peak, opening included. No figure is shown unless its check (comparison.py) passed.
circuit-tracer is run at each of --batch-sizes and compared at its fastest. It runs the prompt in as many copies, with
the logits of every position, so its memory grows with them: its own default of 512 takes 8 GB for 9 tokens and would
take some 60 GB for 70. Killed, the tool goes on where it was with --resume.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from comparison import Execute, Repeat, Run, plan, summarise
from measured_run import write_json
from peer import BATCH_SIZES, REQUIREMENTS, environment, require_memory
from processes import RunFailed, child, measured, warm
from provenance import provenance

from circuits.errors import CircuitsError
from circuits.weights import cache_folder

HERE = Path(__file__).parent
MODEL = "gemma-3-270m"
TRANSCODERS = ("random-plt", "bundled-clt")
TASKS = ("full", "pruned")
ROWS = ("float32", "mixed", "bfloat16")


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    work = Path(options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    for tokens in options.tokens:
        require_memory(tokens, max(_batch_sizes(options, tokens)))
    try:
        peer_python = environment(work)
        child([sys.executable, HERE / "circuits_run.py", "prepare", work, MODEL, *options.transcoders],
              work / "prepare.log", options.threads, offline=False)
    except RunFailed as error:
        sys.exit(str(error))
    setup = json.loads((work / "setup.json").read_text(encoding="utf-8")) | {"coverage": options.coverage}
    report: dict[str, Any] = {
        "benchmark": "side by side with circuit-tracer", **provenance(), "threads": options.threads,
        "model": setup["model_name"], "peer": REQUIREMENTS, "coverage": setup["coverage"],
        "node_threshold": setup["node_threshold"], "edge_threshold": setup["edge_threshold"],
        "transcoders": {name: {key: value for key, value in setup["transcoders"][name].items()
                               if key not in ("ours", "theirs")} for name in options.transcoders},
        "span": "token ids to the result; model and transcoders opened before, weights read in the span", "cases": []}
    for kind in options.transcoders:
        for tokens in options.tokens:
            execute = partial(_execute, kind=kind, n_tokens=tokens, options=options, work=work, setup=setup,
                              peer_python=peer_python)
            report["cases"] += _case(kind, tokens, options, execute, work / "runs" / f"{kind}-{tokens}", setup)
            if options.json:  # after each case: what is measured is kept
                write_json(Path(options.json), report)
    for line in _lines(report):
        print(line)
    if any("failure" in case for case in report["cases"]):
        sys.exit(1)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory against circuit-tracer 0.5.0.")
    parser.add_argument("--tokens", type=int, nargs="+", choices=sorted(BATCH_SIZES), default=[9],
                        help="lengths of the prompt")
    parser.add_argument("--transcoders", nargs="+", choices=TRANSCODERS, default=["random-plt"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["float32"], help="arithmetic of our rows")
    parser.add_argument("--coverage", type=float, default=0.95,
                        help="share of influence that our certified graphs explore")
    parser.add_argument("--repeats", type=_positive, default=1, help="runs of each side; medians are compared")
    parser.add_argument("--threads", type=_positive, default=os.cpu_count(), help="CPU threads of either side")
    parser.add_argument("--batch-sizes", type=_positive, nargs="+",
                        help="batch sizes to try circuit-tracer at (default: those that fit into 24 GB)")
    parser.add_argument("--work", default=cache_folder() / "vs-circuit-tracer",
                        help="folder for circuit-tracer's environment and the transcoders (5 GB), kept between runs")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--resume", action="store_true", help="keep runs that an earlier call finished at this commit")
    options = parser.parse_args(arguments)
    if options.json and not Path(options.json).resolve().parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist; make it first")
    for name in ("tokens", "transcoders", "tasks", "rows"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _batch_sizes(options: argparse.Namespace, n_tokens: int) -> list[int]:
    return sorted(set(options.batch_sizes or BATCH_SIZES[n_tokens]))


def _case(kind: str, n_tokens: int, options: argparse.Namespace, execute: Execute, folder: Path,
          setup: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run both sides; one result for each task and arithmetic, with figures only where every repeat's checks passed."""
    variants = [(task, rows) for task in options.tasks for rows in options.rows]
    batch_sizes = _batch_sizes(options, n_tokens)
    repeats = [Repeat.run(plan(folder, repeat, variants, batch_sizes), execute, folder / f"{repeat}-checked.json",
                          setup, options.resume) for repeat in range(options.repeats)]
    peers = {size: [figures for repeat in repeats for run, figures in repeat.figures.items() if run.batch_size == size]
             for size in batch_sizes}
    for task, rows in variants:
        result: dict[str, Any] = {"transcoders": kind, "tokens": n_tokens, "task": task, "rows": rows}
        checks = [repeat.checks[f"{task} {rows}"] for repeat in repeats]
        if failure := next((check["failure"] for check in checks if "failure" in check), None):
            yield result | {"failure": failure}
        else:
            ours = [figures for repeat in repeats for run, figures in repeat.figures.items()
                    if (run.task, run.rows) == (task, rows)]
            yield result | {"checks": checks, "summary": summarise(task, ours, peers), "runs": ours,
                            "runs_of_circuit_tracer": peers}


def _execute(run: Run, kind: str, n_tokens: int, options: argparse.Namespace, work: Path, setup: dict[str, Any],
             peer_python: Path) -> dict[str, Any]:
    """Run one side in its process; what it measured.

    Raises:
        RunFailed: it did not end well.
    """
    print(f"running {run.label}: {kind}, {n_tokens} tokens", file=sys.stderr)
    if (source := Path(setup["transcoders"][kind]["theirs"])).is_dir():
        warm(source)
    settings, common = work / "setup.json", [options.threads, run.folder]
    if run.batch_size is None:
        command = [sys.executable, HERE / "circuits_run.py", "trace", settings, kind, n_tokens, run.task, run.rows,
                   options.coverage]
    else:
        prune = int("pruned" in options.tasks)
        command = [peer_python, HERE / "circuit_tracer_run.py", settings, kind, n_tokens, run.batch_size, prune]
    return measured([*command, *common], run.folder, options.threads, options.resume)


def _lines(report: dict[str, Any]) -> Iterator[str]:
    for case in report["cases"]:
        if "summary" in case:
            yield from _case_lines(case)
        elif "failure" in case:
            yield f"\n{_title(case)}: FAILED, so no times are shown"
            yield f"  {case['failure']}"


def _title(case: dict[str, Any]) -> str:
    return f"{case['transcoders']}, {case['tokens']} tokens, {case['task']}, {case['rows']} rows"


def _case_lines(case: dict[str, Any]) -> Iterator[str]:
    check, summary = case["checks"][0], case["summary"]
    yield f"\n{_title(case)}: {check['active_features']:,} active features"
    if case["task"] == "full":
        yield (f"  same nodes; largest relative difference {max(check['relative_differences'].values()):.1e} (limit "
               f"{check['limit']:.0e})")
    else:
        agreed = "; ".join(f"{name.replace('_', ' ')} {check[name]['all']:.3f}" for name in check
                           if name.startswith("kept_"))
        yield (f"  Jaccard of the nodes kept: {agreed} (limit {check['limit']}); unexplored {check['unexplored']:.4f}, "
               f"rows computed {check['rows_computed_share']:.0%}")
    yield f"  {'':36}{'seconds':>10}{'peak GB':>10}{'time x':>10}{'memory x':>10}"
    yield _line("gemma-circuits", summary["gemma_circuits"], 1.0, 1.0)
    for setting in summary["circuit_tracer"]:
        note = " without pruning" if setting["pruning_skipped"] else ""
        yield _line(f"circuit-tracer 0.5.0, batch {setting['batch_size']}{note}", setting, setting["time_ratio"],
                    setting["memory_ratio"])
    yield (f"  at its fastest (batch size {summary['fastest_batch_size']}) circuit-tracer takes "
           f"{'more than ' if summary['lower_bound'] else ''}{summary['time_ratio']:.2f} times our time and "
           f"{summary['memory_ratio']:.2f} times our memory")


def _line(name: str, figures: dict[str, Any], time_ratio: float, memory_ratio: float) -> str:
    return (f"  {name:36}{figures['seconds']['median']:10.1f}{figures['peak_bytes']['median'] / 1e9:10.2f}"
            f"{time_ratio:10.2f}{memory_ratio:10.2f}")


if __name__ == "__main__":
    try:
        main()
    except CircuitsError as error:
        sys.exit(str(error))
