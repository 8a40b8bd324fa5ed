"""A CLT of Google's size: written, opened and traced.

    python benchmarks/google_size.py write FOLDER                    about 12 GiB; goes on where it was stopped
    python benchmarks/google_size.py trace FOLDER --json result.json

``write`` makes a random CLT with the names and shapes of gemma-scope-2-270m-pt/clt/width_262k_l0_medium_affine: 18
files, 14,560 features a layer, about 50 of them active per position over all layers. ``trace`` measures, each in a
process of its own: the model alone, then opening the CLT and tracing 30 tokens, first with its files dropped from the
page cache, then again. Nothing is reported unless the edges into every target sum to its value (relative residual of at
most 1e-4) and 25 to 100 features are active per position.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from google_size_shards import Scales, Shape, scales, write_config, write_shard
from measured_run import conclude, write_json
from processes import RunFailed, measured
from provenance import provenance

HERE = Path(__file__).parent
NAME = "width_262k_l0_medium_affine"
FEATURES = 14560
ACTIVE, ACTIVE_RANGE = 50.0, (25, 100)
CONSERVATION_LIMIT = 1e-4
SPARE_BYTES = 1 << 30
"""Left free on the disk."""
GENERATOR = "generator.json"


class CannotWrite(Exception):
    """The files cannot be written as asked."""


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    try:
        if options.command == "write":
            written = write(Path(options.folder), options.model, options.features, options.active, options.seed)
            print(f"wrote {written} shards, {options.folder} is complete")
            return
        report = trace(Path(options.folder), options.model, options.tokens, options.coverage, options.rows,
                       options.threads, Path(options.work or f"{options.folder}-runs"), options.resume)
    except (CannotWrite, RunFailed) as error:
        sys.exit(str(error))
    conclude(report, lines(report), "failure" in report, options.json)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A CLT of Google's size.")
    parser.add_argument("command", choices=("write", "trace"))
    parser.add_argument("folder", help=f"the CLT's folder, such as .../clt/{NAME}")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--features", type=int, default=FEATURES, help="of a layer")
    parser.add_argument("--active", type=float, default=ACTIVE, help="features per position over all layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=30, help="of the traced prompt")
    parser.add_argument("--coverage", type=float, default=0.95)
    parser.add_argument("--rows", default="float32", help="arithmetic of the rows")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", help="folder for the runs (default: FOLDER-runs)")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--resume", action="store_true", help="keep runs that an earlier call finished")
    return parser.parse_args(arguments)


def prompt(model: Any) -> list[int]:
    """The text that scales are taken from and of which the first tokens are traced; seeded ids without a tokenizer."""
    from circuits_run import N_TOKENS, PROMPT

    from circuits.prompt import tokenize

    if model.tokenizer is not None:
        return tokenize(model, PROMPT)[:N_TOKENS]
    import torch

    generator = torch.Generator().manual_seed(0)
    length = min(N_TOKENS, model.max_positions)
    return [2, *torch.randint(3, model.vocab_size, (length - 1,), generator=generator).tolist()]


def write(folder: Path, model_name: str, features: int = FEATURES, active: float = ACTIVE, seed: int = 0) -> int:
    """Write what ``folder`` lacks of the CLT; the number of shards written.

    Raises:
        CannotWrite: too little space, or shards of other settings there.
    """
    shape, scale, tokens = _measure(model_name, features, active, seed)
    shards = [folder / f"params_layer_{i}.safetensors" for i in range(shape.n_layers)]
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, shape.settings(model_name, tokens))
    missing = [i for i, shard in enumerate(shards) if not shard.is_file()]
    needed, free = shape.shard_bytes * len(missing) + SPARE_BYTES, shutil.disk_usage(folder).free
    if missing and free < needed:
        raise CannotWrite(f"{folder} needs {needed / 1e9:.1f} GB for {len(missing)} shards, its disk has "
                          f"{free / 1e9:.1f} GB free: free some space, or name a folder on another disk")
    for i in missing:
        write_shard(shards[i], i, shape, scale)
        print(f"{shards[i].name} written", file=sys.stderr, flush=True)
    write_config(folder, shape, "google/gemma-3-270m" if model_name == "gemma-3-270m" else "")
    return len(missing)


def _measure(model_name: str, features: int, active: float, seed: int) -> tuple[Shape, Scales, list[int]]:
    """One forward pass; the model is gone afterwards."""
    import circuits

    model = circuits.load_model(model_name, device="cpu")
    tokens = prompt(model)
    frozen = model.freeze(tokens)
    shape = Shape(model.n_layers, features, model.d_model, active, seed)
    return shape, scales(frozen.mlp_in[:, 1:], frozen.mlp_out[:, 1:]), tokens


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Note the settings in ``folder``, or check that what is there was begun with the same."""
    path = folder / GENERATOR
    if not path.is_file():
        if stray := sorted(folder.glob("*.safetensors")):
            raise CannotWrite(f"{folder} holds {stray[0].name}, which this program did not write: name a new folder")
        write_json(path, settings)
    elif (known := json.loads(path.read_text(encoding="utf-8"))) != settings:
        changed = next(key for key in settings if known.get(key) != settings[key])
        raise CannotWrite(f"{folder} was begun with {changed} {known.get(changed)}, now it is {settings[changed]}: "
                          "give the same, or name a new folder")


def trace(folder: Path, model_name: str, n_tokens: int, coverage: float, rows: str, threads: int, work: Path,
          resume: bool = False) -> dict[str, Any]:
    """Measure opening and tracing; ``figures`` are there only when the checks passed, else ``failure`` is.

    Raises:
        RunFailed: a child process did not end well.
    """
    settings = json.loads((folder / GENERATOR).read_text(encoding="utf-8"))
    job = {"model": model_name, "tokens": settings["prompt"][:n_tokens], "transcoders": str(folder),
           "settings": {"coverage": coverage, "dtype": rows}}

    def run(name: str, **changes: Any) -> dict[str, Any]:
        command = [sys.executable, HERE / "trace_run.py", json.dumps(job | changes), threads, work / name]
        return measured(command, work / name, threads, resume)

    model_alone = run("model", transcoders=None)
    drop_from_cache(folder)
    cold, warm = run("cold"), run("warm")
    report: dict[str, Any] = {
        "benchmark": "a CLT of Google's size", **provenance(), "threads": threads, "tokens": n_tokens,
        "coverage": coverage, "rows": rows, "features_per_layer": settings["features"],
        "bytes_on_disk": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "check": {name: warm[name] for name in ("conservation", "active_per_position", "unexplored")}}
    if failure := check(cold) or check(warm):
        return report | {"failure": failure}
    return report | {"figures": {
        "open_seconds": {"cold": cold["open_seconds"], "warm": warm["open_seconds"]},
        "trace_seconds": {"cold": cold["seconds"], "warm": warm["seconds"]},
        "peak_bytes": warm["peak_bytes"], "model_peak_bytes": model_alone["peak_bytes"],
        "beyond_model_bytes": warm["peak_bytes"] - model_alone["peak_bytes"],
        "active_features": warm["active_features"], "rows_computed": warm["rows_computed"], "edges": warm["edges"]}}


def check(run: dict[str, Any]) -> str:
    """What is wrong with a run; empty when nothing is. ("not <=": a NaN must not pass.)"""
    least, most = ACTIVE_RANGE
    if not run["conservation"] <= CONSERVATION_LIMIT:
        return f"conservation residual {run['conservation']:.1e}, allowed is {CONSERVATION_LIMIT:.0e}"
    if not least <= run["active_per_position"] <= most:
        return f"{run['active_per_position']:.1f} features are active per position, expected {least} to {most}"
    return ""


def drop_from_cache(folder: Path) -> None:
    """Ask the system to forget the files' pages; where it cannot be asked, "cold" means as found."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # only pages that are on the disk can be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def lines(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    if "failure" in report:
        return [f"FAILED, so no figures are shown: {report['failure']}"]
    found, checked = report["figures"], report["check"]
    opened, traced = found["open_seconds"], found["trace_seconds"]
    return [f"{report['bytes_on_disk'] / 2**30:.1f} GiB, {report['tokens']} tokens, "
            f"{checked['active_per_position']:.1f} features per position, conservation {checked['conservation']:.1e}, "
            f"unexplored {checked['unexplored']:.3f}",
            f"open: {opened['cold']:.2f} s cold, {opened['warm']:.2f} s warm",
            f"trace: {traced['cold']:.1f} s cold, {traced['warm']:.1f} s warm ({found['rows_computed']} of "
            f"{found['active_features']} rows)",
            f"memory: {found['peak_bytes'] / 2**30:.2f} GiB, {found['beyond_model_bytes'] / 2**30:.2f} GiB beyond the "
            "model"]


if __name__ == "__main__":
    main()
