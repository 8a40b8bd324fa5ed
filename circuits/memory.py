"""What this process holds of the machine's memory."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_BYTES = 1 << 20
_MADV_DONTNEED = 4
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) [0-9a-f]+ \S+ (\d+)")


def return_freed_memory() -> None:
    """Have glibc hand back every freed block of 1 MiB or more at once; elsewhere this does nothing.

    By default it raises that size as blocks are freed and keeps them in its heap, which the sweep's slowly growing
    buffers then fragment: a 70-token full matrix held 0.9 GB more at its peak. For programs, such as the command line;
    the library leaves the process's allocator alone.
    """
    _set_allocator(_M_MMAP_THRESHOLD, _BYTES)


def keep_freed_memory() -> None:
    """Have glibc reuse freed blocks of every size instead of mapping new ones; elsewhere this does nothing.

    A training step frees and makes tensors of the same sizes over and over; mapping them anew made it half as slow
    again. For programs whose peak is reached early.
    """
    _set_allocator(_M_MMAP_MAX, 0)
    _set_allocator(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _set_allocator(option: int, value: int) -> None:
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).mallopt(option, value)
        except (OSError, AttributeError):  # another C library
            return


class MappedFiles:
    """Files this process has mapped and not written to, as safetensors maps weights; empty where that cannot be told.

    Their pages can be given back at any time: what is touched again comes back from the file, which the system still
    holds if it has room. A model's weights are needed for one pass over the prompt, and would then lie beside
    everything that a trace holds.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        try:
            lines = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # not Linux
            return
        start = end = 0
        for line in lines:
            if match := _MAPPING.match(line):
                start, end = int(match[1], 16), int(match[2], 16)
                mapped = match[4] != "0" and match[3].endswith("p")
            elif line.startswith("Anonymous:") and mapped and line.split()[1] == "0":  # no page of it was written
                self._ranges.append((start, end))

    def give_back(self, tensors: Iterable[Tensor]) -> None:
        """Give back the pages that lie wholly inside ``tensors``, so far as they are mapped from a file."""
        if not self._ranges:
            return
        libc = ctypes.CDLL(None)
        for tensor in tensors:
            if tensor.device.type != "cpu" or not tensor.is_contiguous():
                continue
            start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if start < end and any(low <= start and end <= high for low, high in self._ranges):
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size
