"""circuit-tracer's own Python environment, and the memory its runs need."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from processes import available_memory, child

REQUIREMENTS = ["torch==2.13.0", "circuit-tracer==0.5.0", "nnsight==0.6.1"]
"""circuit-tracer 0.5.0 breaks with a newer nnsight."""
BATCH_SIZES = {9: [64, 128, 256], 70: [32, 64, 128], 140: [16, 32]}
"""By prompt length, what circuit-tracer is tried at: up to the largest that a machine with 24 GB holds."""
NODES_PER_TOKEN = 220
"""Features and errors, about, of either set of transcoders."""


def environment(work: Path) -> Path:
    """The environment's Python, installed on first use.

    Raises:
        RunFailed: it cannot be installed.
    """
    folder = work / "circuit-tracer-env"
    done, python = folder / "requirements.json", folder / "bin" / "python"
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != REQUIREMENTS:
        print(f"installing {', '.join(REQUIREMENTS)} in {folder} (once)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        log = work / "install.log"
        child([sys.executable, "-m", "venv", folder], log, offline=False)
        child([python, "-m", "pip", "install", *REQUIREMENTS], log, offline=False)
        done.write_text(json.dumps(REQUIREMENTS), encoding="utf-8")
    return python


def require_memory(n_tokens: int, batch_size: int) -> None:
    """Leave with a message where circuit-tracer's run would not fit."""
    available, needed = available_memory(), memory_needed(n_tokens, batch_size)
    if available is not None and available < needed:
        sys.exit(f"circuit-tracer may need {needed / 1e9:.0f} GB of memory for {n_tokens} tokens at batch size "
                 f"{batch_size}, {available / 1e9:.1f} GB are available: end other programs, or give smaller "
                 "--batch-sizes")


def memory_needed(n_tokens: int, batch_size: int) -> float:
    """Bytes to have free for its attribution. Measured: 1.56 MB for each copy of each token, most of it for logits,
    on top of the weights; then its matrix, of which it holds two copies when it sorts the rows. (Pruning is left out
    by its run where the memory is short.)"""
    return 2.5e9 + 1.6e6 * n_tokens * batch_size + 2 * 4 * (NODES_PER_TOKEN * n_tokens) ** 2
