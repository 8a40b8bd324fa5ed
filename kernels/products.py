"""Matrix products into memory that exists already.

CPUs without 16-bit instructions multiply 16-bit numbers hundreds of times slower than float32: there the product is
made in float32 and rounded. Everything else is left to torch.
"""

from __future__ import annotations

import functools
import time

import torch
from torch import Tensor

from circuits.errors import InputError


def add_product(out: Tensor, a: Tensor, b: Tensor, beta: float = 0.0) -> Tensor:
    """``out = a @ b + beta * out``, in place; with ``beta`` 0 what ``out`` held does not matter, NaN included.

    Args:
        out: (M, N)
        a, b: (M, K) and (K, N) of out's dtype and device.

    Raises:
        InputError: shapes that do not multiply.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or tuple(out.shape) != (a.shape[0], b.shape[1]):
        raise InputError(f"products of shape {list(a.shape)} x {list(b.shape)} do not fit into {list(out.shape)}")
    if out.device.type == "cpu" and out.dtype in (torch.bfloat16, torch.float16) and not fast_16_bit(out.dtype):
        product = a.float() @ b.float()
        return out.copy_(product if beta == 0 else product.add_(out, alpha=beta))
    return torch.mm(a, b, out=out) if beta == 0 else out.addmm_(a, b, beta=beta)


@functools.cache
def fast_16_bit(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies ``dtype``, bfloat16 or float16, faster than float32; measured once, the best of
    three turns."""
    seconds = {}
    for kind in (torch.float32, dtype):
        a, best = torch.ones(128, 128, dtype=kind), float("inf")
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(a, a)
            best = min(best, time.perf_counter() - start)
        seconds[kind] = best
    return seconds[dtype] < seconds[torch.float32]
