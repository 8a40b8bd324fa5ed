"""What a measured figure must say about where it comes from: machine, commit, versions."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "scipy", "numpy", "triton", "safetensors", "gemma-circuits")


def provenance() -> dict[str, Any]:
    """Machine, commit, versions and time, as plain JSON."""
    return {"machine": machine(), "commit": commit(), "versions": versions(PACKAGES),
            "time": datetime.now(UTC).isoformat(timespec="seconds")}


def machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count(), "memory_bytes": memory,
            "python": platform.python_version()}


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Installed versions; None for what is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


@cache
def commit() -> str:
    """The checkout's commit, with ``-dirty`` where tracked files differ from it; empty outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
