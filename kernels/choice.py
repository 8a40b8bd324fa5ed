"""Which implementation of a kernel runs: Triton's, or the PyTorch reference that stands beside it.

``CIRCUITS_KERNELS`` forces one: ``reference`` or ``triton``. Without it Triton runs on CUDA tensors where it is
installed, the reference everywhere else. Triton runs on CPU tensors only in its interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import Tensor

from circuits.errors import InputError

try:
    import triton
    import triton.language as tl

    jit: Callable[[Any], Any] = triton.jit
except ImportError:  # macOS, Windows, and torch's CPU builds
    triton = tl = None

    def jit(function: Any) -> Any:
        """Stands in for ``triton.jit``, so that kernels can be defined where Triton is not installed."""
        return function

VARIABLE = "CIRCUITS_KERNELS"

__all__ = ["VARIABLE", "jit", "tl", "triton", "use_triton"]


def use_triton(tensor: Tensor) -> bool:
    """Whether the kernel that was given ``tensor`` runs in Triton.

    Raises:
        InputError: ``CIRCUITS_KERNELS`` is unknown, or forces Triton where it cannot run.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "reference", "triton"):
        raise InputError(f"{VARIABLE} is {wanted!r}: expected reference, triton, or nothing")
    if wanted != "triton":
        return wanted == "" and triton is not None and tensor.is_cuda
    if triton is None:
        raise InputError(f"{VARIABLE} is triton, but Triton is not installed: pip install triton, or unset {VARIABLE}")
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(f"{VARIABLE} is triton, but the tensors are on {tensor.device.type}: Triton needs a CUDA "
                         f"device, or TRITON_INTERPRET=1 set before Python starts; or unset {VARIABLE}")
    return True
