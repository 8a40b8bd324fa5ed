"""What this process holds of the machine's memory."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_BYTES = 1 << 20


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


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size
