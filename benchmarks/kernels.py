"""Every kernel checked against float64, then timed, with its share of what the device can move or multiply.

    python benchmarks/kernels.py --device cuda --json result.json
    python benchmarks/kernels.py --quick                              small sizes, for a look on any machine

The sizes are those of Gemma 3 270M: 640 wide, 14,560 features, 4 query heads on 1 key/value head of 256. Inputs are
random and fresh; where an operation writes into a buffer, the buffer lies in a larger one filled with NaN, and what
surrounds it must come back untouched. A figure is given only after the check of its implementation and dtype. On CUDA
both Triton and the reference are measured, elsewhere the reference. Copy bandwidth and matrix rate are measured in the
same run; the share is that of whichever binds, the larger of bytes / bandwidth and flops / rate over the time taken.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from kernel_cases import CASES, FLOAT32_CASES, Case, Sizes
from measured_run import conclude
from provenance import provenance

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FULL = Sizes(positions=1024, features=14560, d_model=640, heads=4, groups=1, head_dim=256, targets=64, writes=20000,
             sources=200_000)
QUICK = Sizes(positions=37, features=211, d_model=48, heads=4, groups=2, head_dim=16, targets=5, writes=130,
              sources=700)
MATRIX = 4096
COPY_BYTES = 1 << 28


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Check and time every kernel.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES))
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    # bfloat16 products are emulated on most CPUs: float32 is what is used there
    dtypes = options.dtypes or (list(DTYPES) if device.type == "cuda" else ["float32"])
    report = run(device, dtypes, QUICK if options.quick else FULL, 1 if options.quick else options.repeats,
                 options.seed, MATRIX // 16 if options.quick else MATRIX, COPY_BYTES >> (8 if options.quick else 0))
    conclude(report, lines(report), any("failure" in entry for entry in report["kernels"]), options.json)


def run(device: torch.device, dtypes: list[str], sizes: Sizes, repeats: int, seed: int, matrix: int,
        copy_bytes: int) -> dict[str, Any]:
    """All operations, dtypes and implementations."""
    bandwidth = copy_bandwidth(device, copy_bytes, repeats)
    rates = {name: matrix_rate(device, DTYPES[name], matrix, repeats) for name in dtypes}
    entries = [measure_case(make(sizes, DTYPES[dtype], device, seed), dtype, implementation, bandwidth, rates[dtype],
                            device, repeats)
               for dtype in dtypes for make in (*CASES, *(FLOAT32_CASES if dtype == "float32" else ()))
               for implementation in implementations(device)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"benchmark": "kernels", **provenance(), "device": name, "threads": torch.get_num_threads(),
            "sizes": vars(sizes), "copy_bytes_per_second": bandwidth, "flops_per_second": rates, "kernels": entries}


def implementations(device: torch.device) -> tuple[str, ...]:
    return ("triton", "reference") if device.type == "cuda" else ("reference",)


def measure_case(case: Case, dtype: str, implementation: str, bandwidth: float, rate: float, device: torch.device,
                 repeats: int) -> dict[str, Any]:
    """Check one operation, then time it; ``failure`` instead of figures where the check does not pass."""
    entry: dict[str, Any] = {"op": case.name, "dtype": dtype, "implementation": implementation}
    with forced(implementation):
        try:
            error = case.check()
        except Exception as failure:  # a kernel that cannot run is a result, the others go on
            return entry | {"failure": f"{type(failure).__name__}: {failure}"}
        entry |= {"error": error, "limit": case.limit}
        if not error <= case.limit:  # a NaN must not pass
            return entry | {"failure": f"off float64 by {error:.1e} (relative), allowed is {case.limit:.0e}"}
        seconds = timed(case.run, device, repeats)
    bound = max(case.bytes / bandwidth, case.flops / rate)
    return entry | {"seconds": seconds, "bytes": case.bytes, "flops": case.flops, "share": bound / seconds,
                    "bound_by": "bandwidth" if case.bytes / bandwidth >= case.flops / rate else "products"}


@contextmanager
def forced(implementation: str) -> Any:
    """``CIRCUITS_KERNELS`` set while open."""
    before = os.environ.get("CIRCUITS_KERNELS")
    os.environ["CIRCUITS_KERNELS"] = implementation
    try:
        yield
    finally:
        del os.environ["CIRCUITS_KERNELS"]
        if before is not None:
            os.environ["CIRCUITS_KERNELS"] = before


def timed(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after one that is not counted."""
    call()
    found = []
    for _ in range(repeats):
        _synchronise(device)
        started = time.perf_counter()
        call()
        _synchronise(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, size: int, repeats: int) -> float:
    """Bytes read plus written per second by a copy."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source), device, repeats)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int) -> float:
    """Floating-point operations per second of a square matrix product, float32 without TF32."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size ** 3 / timed(lambda: left @ right, device, max(1, repeats // 4))


def lines(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    found = [f"{report['device']}: copy {report['copy_bytes_per_second'] / 1e9:.0f} GB/s, " + ", ".join(
        f"{name} {rate / 1e12:.2f} TFLOP/s" for name, rate in report["flops_per_second"].items())]
    for entry in report["kernels"]:
        head = f"{entry['op']:22}{entry['dtype']:10}{entry['implementation']:11}"
        found.append(f"{head}FAILED: {entry['failure']}" if "failure" in entry else
                     f"{head}{1e3 * entry['seconds']:10.3f} ms  {entry['share']:5.0%} of {entry['bound_by']:9}"
                     f"  error {entry['error']:.1e} (limit {entry['limit']:.0e})")
    return found


if __name__ == "__main__":
    main()
