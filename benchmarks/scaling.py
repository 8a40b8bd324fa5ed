"""How time and memory grow with the prompt: 64 to 1,024 tokens with the bundled CLT, at a fixed number of rows.

    python benchmarks/scaling.py --json result.json                          growth, 500 rows at every length
    python benchmarks/scaling.py --lengths 1024 --rows-computed 5000 --json long.json

Every length is a process of its own. The text is long_prompt.txt, cut to the length. Exponents are least-squares slopes
of log(figure) over log(tokens); memory is that beyond the model's own (a process that only runs the prompt). Figures
are given only when in every run the edges into each target sum to its value (CONSERVATION_LIMIT).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from comparison import spread
from measured_run import conclude
from processes import RunFailed, measured
from provenance import provenance

from circuits.weights import cache_folder

HERE = Path(__file__).parent
TEXT = HERE / "long_prompt.txt"
LENGTHS = (64, 128, 256, 512, 1024)
CONSERVATION_LIMIT = {"float32": 1e-4, "mixed": 0.1, "bfloat16": 0.1}
"""Largest relative residual, by the rows' arithmetic. Correct float32 rows stay near 1e-6; bfloat16 has 8 bits, and the
worst of thousands of rows cancels a few of them."""
FITTED = ("seconds", "beyond_model_bytes", "edges")


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    try:
        report = run(options.model, options.transcoders, options.lengths, options.rows_computed, options.rows,
                     options.threads, options.repeats, Path(options.work), options.resume)
    except RunFailed as error:
        sys.exit(str(error))
    conclude(report, lines(report), "failure" in report, options.json)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Growth of time and memory with the length of the prompt.")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--transcoders", default="bundled")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens")
    parser.add_argument("--rows-computed", type=int, default=500, help="features whose rows are computed")
    parser.add_argument("--rows", choices=tuple(CONSERVATION_LIMIT), default="float32", help="arithmetic of the rows")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--work", default=cache_folder() / "scaling", help="folder for the runs")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--resume", action="store_true", help="keep runs that an earlier call finished")
    return parser.parse_args(arguments)


def prompt(model_name: str, length: int) -> list[int]:
    """The first ``length`` tokens of the text; seeded ids for a model without a tokenizer.

    Raises:
        RunFailed: the text is shorter.
    """
    import circuits
    from circuits.prompt import tokenize

    model = circuits.load_model(model_name, device="cpu")
    if model.tokenizer is None:
        ids = np.random.default_rng(0).integers(3, model.vocab_size, length - 1)
        return [2, *ids.tolist()]
    tokens = tokenize(model, TEXT.read_text(encoding="utf-8"))
    if len(tokens) < length:
        raise RunFailed(f"{TEXT} is {len(tokens)} tokens of {model_name}, expected at least {length}: choose shorter "
                        "--lengths")
    return tokens[:length]


def run(model: str, transcoders: str, lengths: Sequence[int], n_rows: int, rows: str, threads: int, repeats: int,
        work: Path, resume: bool = False) -> dict[str, Any]:
    """Every length ``repeats`` times; ``points`` and ``exponents`` only when all checks passed, else ``failure``.

    Raises:
        RunFailed: a child process did not end well.
    """
    tokens = prompt(model, max(lengths))
    report: dict[str, Any] = {"benchmark": "growth with the prompt", **provenance(), "threads": threads,
                              "rows": rows, "rows_computed": n_rows, "transcoders": transcoders}
    points = []
    for length in sorted(set(lengths)):
        job = {"model": model, "tokens": tokens[:length], "transcoders": transcoders,
               "settings": {"coverage": 1.0, "max_features": n_rows, "dtype": rows}}
        alone = _child(job | {"transcoders": None}, threads, work / f"{length}-model", resume)
        runs = [_child(job, threads, work / f"{length}-{n_rows}-{rows}-{repeat}", resume)
                for repeat in range(repeats)]
        limit = CONSERVATION_LIMIT[rows]
        if bad := [run["conservation"] for run in runs if not run["conservation"] <= limit]:  # a NaN must not pass
            return report | {"failure": f"{length} tokens: conservation residual {bad[0]:.1e} in {rows}, allowed is "
                                        f"{limit:.0e}"}
        points.append(_point(length, runs, alone["peak_bytes"]))
    return report | {"points": points, "exponents": exponents(points)}


def _child(job: dict[str, Any], threads: int, folder: Path, resume: bool) -> dict[str, Any]:
    return measured([sys.executable, HERE / "trace_run.py", json.dumps(job), threads, folder], folder, threads, resume)


def _point(length: int, runs: list[dict[str, Any]], model_bytes: int) -> dict[str, Any]:
    first = runs[0]
    return {"tokens": length, "seconds": spread(run["seconds"] for run in runs),
            "peak_bytes": spread(run["peak_bytes"] for run in runs), "model_peak_bytes": model_bytes,
            "beyond_model_bytes": spread(max(run["peak_bytes"] - model_bytes, 1) for run in runs),
            "conservation": max(run["conservation"] for run in runs),
            **{name: first[name] for name in ("active_features", "rows_computed", "nodes")},
            "edges": spread(run["edges"] for run in runs), "coverage_reached": 1 - first["unexplored"]}


def exponents(points: list[dict[str, Any]]) -> dict[str, float]:
    """Slope of the log of each figure over the log of the tokens, over all points; none for fewer than two."""
    if len(points) < 2:
        return {}
    x = np.log([point["tokens"] for point in points])
    return {name: float(np.polyfit(x, np.log([point[name]["median"] for point in points]), 1)[0]) for name in FITTED}


def lines(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    if "failure" in report:
        return [f"FAILED, so no figures are shown: {report['failure']}"]
    worst = max(point["conservation"] for point in report["points"])
    found = [f"{report['rows_computed']:,} rows at most, {report['rows']}; conservation {worst:.1e}",
             f"{'tokens':>8}{'features':>10}{'rows':>8}{'seconds':>10}{'peak GiB':>10}{'beyond model':>14}"
             f"{'coverage':>10}"]
    found += [f"{point['tokens']:8}{point['active_features']:10}{point['rows_computed']:8}"
              f"{point['seconds']['median']:10.1f}{point['peak_bytes']['median'] / 2**30:10.2f}"
              f"{point['beyond_model_bytes']['median'] / 2**30:14.2f}{point['coverage_reached']:10.3f}"
              for point in report["points"]]
    if report["exponents"]:
        found.append("growth: " + ", ".join(f"{name.replace('_', ' ')} ~ tokens^{value:.2f}"
                                            for name, value in report["exponents"].items()))
    return found


if __name__ == "__main__":
    main()
