"""Every benchmark, one JSON and one page: what ``make bench`` runs.

    python benchmarks/bench.py --work FOLDER --repeats 3         hours; killed, it goes on with --resume
    python benchmarks/bench.py --work FOLDER --quick             minutes, small random models, without circuit-tracer

Leaves FOLDER/bench.json and FOLDER/bench.html. Each part is a program of its own beside this one and reports figures
only where its checks passed in the same run; a part that failed is shown as failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_page
from measured_run import write_json
from processes import RunFailed, child
from provenance import commit, provenance

from circuits.weights import cache_folder

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """One program."""

    name: str
    script: str
    arguments: tuple[str, ...]
    reports: bool = True
    """It writes figures; else it prepares what a later part needs."""


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    work = Path(options.work).resolve()
    (work / "parts").mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"benchmark": "gemma-circuits", **provenance(), "quick": options.quick,
                              "repeats": options.repeats, "parts": {}, "not_run": {}}
    if not options.quick and not _has_gpu():
        report["not_run"]["gpu"] = ("no GPU here; on a machine with one: python benchmarks/kernels.py --device cuda "
                                    "--json kernels.json && python benchmarks/gpu.py WORK --json gpu.json")
    if options.quick:
        report["not_run"]["vs_circuit_tracer"] = "left out of --quick: it installs circuit-tracer"
    for part in quick_parts(work) if options.quick else full_parts(work, options):
        found = _run(part, work, options.resume)
        if part.reports or "failure" in found:
            report["parts"][part.name] = found
        write_json(work / "bench.json", report)
        bench_page.write(work / "bench.html", report)
    print(f"{work / 'bench.json'} and {work / 'bench.html'}")
    failed = [name for name, found in report["parts"].items() if bench_page.failures(found)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run every benchmark.")
    parser.add_argument("--work", default=cache_folder() / "bench", help="folder for everything (20 GB)")
    parser.add_argument("--quick", action="store_true", help="small random models")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", nargs="+", default=["9", "70", "140"], help="prompts against circuit-tracer")
    parser.add_argument("--rows", nargs="+", default=["float32", "mixed"], help="arithmetic of our rows")
    parser.add_argument("--resume", action="store_true", help="keep parts and runs that an earlier call finished")
    return parser.parse_args(arguments)


def full_parts(work: Path, options: argparse.Namespace) -> Iterator[Part]:
    """Real sizes. Parts whose children can be resumed always are: a part runs again only where it did not end well."""
    resume = ("--resume",) if options.resume else ()
    repeats = ("--repeats", str(options.repeats))
    clt = str(work / "clt" / "width_262k_l0_medium_affine")
    yield Part("pruning", "pruning.py", ())
    yield Part("kernels", "kernels.py", ())
    yield Part("ablations", "ablations.py", ("--repeats", str(options.repeats)))
    yield Part("page speed", "page_speed.py", ())
    yield Part("scaling", "scaling.py", ("--work", str(work / "scaling"), *repeats, *resume))
    yield Part("long prompt", "scaling.py", ("--lengths", "1024", "--rows-computed", "5000", "--work",
                                             str(work / "scaling"), *repeats, *resume))
    yield Part("write a CLT of Google's size", "google_size.py", ("write", clt), reports=False)
    yield Part("Google's size", "google_size.py", ("trace", clt, "--work", str(work / "google-size"), *resume))
    if _has_gpu():
        yield Part("gpu", "gpu.py", (str(work / "gpu"), *resume))
    # at 0.95 the bundled CLT's certified graphs miss the limit on kept nodes at some prompts (RESULTS.md)
    for kind, coverage in (("random-plt", "0.95"), ("bundled-clt", "0.97")):
        for tokens in options.tokens:
            yield Part(f"vs circuit-tracer, {kind}, {tokens} tokens", "vs_circuit_tracer.py", (
                "--tokens", tokens, "--transcoders", kind, "--coverage", coverage, "--rows", *options.rows,
                "--work", str(work / "vs-circuit-tracer"), *repeats, *resume))


def quick_parts(work: Path) -> Iterator[Part]:
    """The same programs at sizes that take seconds, on the random model that gpu.py writes."""
    model, clt = str(work / "gpu" / "quick-model"), str(work / "gpu" / "clt" / "quick")
    small = ("--model", model, "--threads", "1")
    yield Part("pruning", "pruning.py", ("--features", "300", "--positions", "8", "--layers", "6", "--repeats", "2"))
    yield Part("kernels", "kernels.py", ("--quick", "--device", "cpu"))
    yield Part("small traces", "gpu.py", (str(work / "gpu"), "--quick", "--device", "cpu", "--lengths", "9"))
    yield Part("scaling", "scaling.py", ("--transcoders", clt, "--lengths", "8", "16", "--rows-computed", "20",
                                         "--work", str(work / "scaling"), *small))
    yield Part("Google's size", "google_size.py", ("trace", clt, "--tokens", "8", "--work", str(work / "google-size"),
                                                   *small))


def _run(part: Part, work: Path, resume: bool) -> dict[str, Any]:
    """What the part wrote; with ``failure`` where it ended badly. One that ended well is kept with ``resume``."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in part.name)
    result, stamp = work / "parts" / f"{slug}.json", work / "parts" / f"{slug}.stamp.json"
    done = {"arguments": list(part.arguments), "script": part.script, "commit": commit()}
    if resume and stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == done:
        return json.loads(result.read_text(encoding="utf-8")) if part.reports else {}
    for path in (result, stamp):
        path.unlink(missing_ok=True)
    print(f"running {part.name}", file=sys.stderr, flush=True)
    command = [sys.executable, HERE / part.script, *part.arguments, *(("--json", result) if part.reports else ())]
    try:
        child(command, work / "parts" / f"{slug}.log", _threads(part), offline=False)
    except RunFailed as error:
        found = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
        # a report that names its failure keeps the figures that passed; of one that was cut off none is shown
        return found if bench_page.failures(found) else {"failure": str(error)}
    write_json(stamp, done)
    return json.loads(result.read_text(encoding="utf-8")) if part.reports else {}


def _threads(part: Part) -> int:
    return 1 if "--quick" in part.arguments else os.cpu_count() or 1


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
