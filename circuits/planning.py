"""How much of a trace is held at once, so that it fits into the memory there is.

Shapes: P positions, D d_model, H query heads, G key/value heads, K head_dim, S source nodes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from circuits.errors import InputError

ROWS_AT_ONCE = {"cpu": 4096, "cuda": 65536, "mps": 16384}
"""Rows (positions times targets) of the matrix products; larger ones gain no speed and cost memory."""
LONG = 256
"""Positions from which on four times as many rows are taken: a batch's patterns are computed anew at every layer, and
must serve enough targets."""
TARGETS_AT_ONCE = 512
OVERHEAD = {"cpu": 200, "cuda": 8192, "mps": 1024}
"""Rows that could be multiplied in the time that a batch's calls take beside their products."""
KEPT_WHOLE = 2e8
"""Most possible edges of a long prompt of which all are kept; beyond it rows are cut to ROW_MASS. Up to LONG positions
all are kept while they take half of the memory at most: there a certificate is to be reached, and what cut rows drop
at every step could keep it from that."""
ROW_MASS = 0.98
PATTERNS = 1 << 29
"""Most bytes for attention patterns of a long prompt on a CPU; for short ones computing them is cheap, on a GPU too."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` chose."""

    rows_at_once: int
    """Positions times targets of one batch."""
    targets_at_once: int
    """Most targets of one batch."""
    overhead: int
    """What a batch costs beside its products, in rows."""
    row_mass: float
    """Share of a row's |edge| that is kept, the largest edges first; 1 keeps every edge."""
    resident: bool
    """Keep the sweep's weights of every layer; otherwise one layer's at a time."""
    patterns: bool
    """Keep attention patterns; otherwise they are computed anew for every batch, in tiles."""
    bytes: int
    """Estimated peak of what the sweep adds to the memory held before it."""


@dataclass(frozen=True)
class Size:
    """What of a prompt and a model decides the memory of a trace."""

    n_positions: int
    n_sources: int
    n_rows: int
    """Rows to expect at most."""
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    has_skip: bool


def plan(size: Size, device: torch.device, itemsize: int = 4, memory: int | None = None,
         targets: int | None = None, row_mass: float | None = None, gathered: bool = False) -> Plan:
    """Batch sizes and kept edges for the memory that is free, or that ``memory`` leaves.

    Args:
        itemsize: bytes of a number in the rows' arithmetic.
        memory: bytes this process may hold on ``device``, what it holds already included; None: what is free.
        targets: most targets of one batch; chosen when None.
        row_mass: chosen when None.
        gathered: the weights are fetched one layer at a time (spread over devices), so none are kept.

    Raises:
        InputError: ``memory`` leaves too little for one target.
    """
    room = free_memory(device) if memory is None else memory - used_memory(device)
    if row_mass is None:
        whole = size.n_rows * size.n_sources / 2 <= KEPT_WHOLE or (
            size.n_positions <= LONG and _store_bytes(size, 1.0) <= 0.5 * room)
        row_mass = 1.0 if whole else ROW_MASS
    weights = itemsize * size.n_layers * size.d_model * (
        size.head_dim * (size.n_heads + size.n_kv_heads) + (size.d_model if size.has_skip else 0))
    store = 0 if device.type != "cpu" else _store_bytes(size, row_mass)
    per_row = itemsize * (3 * size.d_model + size.head_dim * (size.n_heads + size.n_kv_heads))
    per_target = 4 * 4 * size.n_sources
    resident = not gathered and weights < 0.5 * (room - store)
    kept = store + (weights if resident else weights // size.n_layers)
    pattern_bytes = 4 * size.n_layers * size.n_heads * size.n_positions**2
    patterns = device.type == "cpu" and size.n_positions >= LONG and pattern_bytes <= min(PATTERNS, 0.3 * (room - kept))
    kept += pattern_bytes if patterns else 0
    room -= kept
    wanted = ROWS_AT_ONCE.get(device.type, 4096) * (4 if size.n_positions >= LONG and device.type == "cpu" else 1)
    most = targets or TARGETS_AT_ONCE
    least = size.n_positions * per_row + per_target
    if room < least:
        raise InputError(
            f"{_gib(max(0, room))} of memory are left for the rows of {size.n_positions} tokens, {_gib(least)} are "
            f"needed for one target (and {_gib(store)} for the edges): "
            + ("give more with --memory, or " if memory is not None else "")
            + "fewer rows with --max-features, a shorter prompt or a device with more memory")
    rows = min(wanted, int(room / (per_row + per_target / size.n_positions)))
    rows = max(rows, size.n_positions)
    most = max(1, min(most, int(room / 2 / per_target)))
    return Plan(rows, most, OVERHEAD.get(device.type, 64), row_mass, resident, patterns, int(
        kept + rows * per_row + min(most, max(1, rows // size.n_positions)) * per_target))


def _store_bytes(size: Size, row_mass: float) -> int:
    """Of the computed rows: half of a row lies outside its causal cone; a cut leaves about a fifth of the rest."""
    return int(8 * size.n_rows * size.n_sources / 2 * (1.0 if row_mass == 1 else 0.3))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on ``device``."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(0.9 * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)))
    if device.type == "mps":
        return int(0.9 * (torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()))
    return int(0.9 * min(psutil.virtual_memory().available, _container_limit() - used_memory(device)))


def used_memory(device: torch.device) -> int:
    """Bytes this process holds on ``device``."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return psutil.Process().memory_info().rss


def _container_limit() -> float:
    """Bytes a container allows, which the system's free memory does not tell."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            return int(text)
    return float("inf")


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a lack of memory, as torch, numpy and the BLAS report it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text
                                                or "can't allocate memory" in text)


def parse_memory(text: str) -> int:
    """Bytes of ``6GiB``, ``500 MB`` or ``6e9``.

    Raises:
        InputError: anything else.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size <= 0:
        raise InputError(f"memory is {text!r}: expected a size such as 6GiB, 500MB or 8e9")
    return size


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
