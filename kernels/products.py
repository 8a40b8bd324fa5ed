"""Matrix products into memory that exists already, by the faster of the libraries at hand.

On CPUs torch multiplies float32 with Intel's MKL, which on AMD processors can take up to three times as long as
OpenBLAS does, most of all for the short and wide products that mix positions. scipy brings OpenBLAS along; which of the
two is faster on this machine is measured once. CPUs without 16-bit instructions multiply 16-bit numbers hundreds of
times slower than float32: there the product is made in float32 and rounded. Everything else is left to torch.
"""

from __future__ import annotations

import functools
import time

import numpy as np
import torch
from scipy.linalg import blas
from threadpoolctl import ThreadpoolController
from torch import Tensor

from circuits.errors import InputError


def add_product(out: Tensor, a: Tensor, b: Tensor, beta: float = 0.0) -> Tensor:
    """``out = a @ b + beta * out``, in place; with ``beta`` 0 what ``out`` held does not matter, NaN included.

    Args:
        out: (M, N), contiguous.
        a, b: (M, K) and (K, N) of the same dtype and device; fastest when contiguous, or transposed so.

    Raises:
        InputError: shapes that do not multiply.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or tuple(out.shape) != (a.shape[0], b.shape[1]):
        raise InputError(f"products of shape {list(a.shape)} x {list(b.shape)} do not fit into {list(out.shape)}")
    if _by_openblas(out, a, b):
        _openblas(out.numpy(), a.numpy(), b.numpy(), beta)
        return out
    if out.device.type == "cpu" and out.dtype in (torch.bfloat16, torch.float16) and not fast_16_bit(out.dtype):
        product = add_product(torch.empty(out.shape), a.float(), b.float())
        return out.copy_(product if beta == 0 else product.add_(out, alpha=beta))
    return torch.mm(a, b, out=out) if beta == 0 else out.addmm_(a, b, beta=beta)


@functools.cache
def fast_16_bit(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies ``dtype``, bfloat16 or float16, faster than float32; measured once."""
    seconds = {}
    for kind in (torch.float32, dtype):
        a = torch.ones(128, 128, dtype=kind)
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - start)
        seconds[kind] = best
    return seconds[dtype] < seconds[torch.float32]


def _by_openblas(out: Tensor, a: Tensor, b: Tensor) -> bool:
    plain = out.device.type == "cpu" and out.dtype == a.dtype == b.dtype == torch.float32
    return (plain and min(*out.shape, a.shape[1]) > 0 and out.is_contiguous() and _whole(a) and _whole(b)
            and _openblas_is_faster(torch.get_num_threads()))


def _whole(matrix: Tensor) -> bool:
    """Contiguous in rows or in columns: anything else would be copied on the way in."""
    return matrix.is_contiguous() or matrix.T.is_contiguous()


def _openblas(out: np.ndarray, a: np.ndarray, b: np.ndarray, beta: float) -> None:
    # Fortran's view of row-major matrices is their transposes: out.T = b.T @ a.T
    first, first_turned = (b.T, 0) if b.flags.c_contiguous else (b, 1)
    second, second_turned = (a.T, 0) if a.flags.c_contiguous else (a, 1)
    blas.sgemm(1.0, first, second, beta=beta, c=out.T, trans_a=first_turned, trans_b=second_turned, overwrite_c=1)


@functools.cache
def _openblas_is_faster(threads: int) -> bool:
    """The best of several turns at one product of each kind the sweep makes: other programs disturb some of them.
    OpenBLAS is first given as many threads as torch."""
    for library in ThreadpoolController().select(user_api="blas", internal_api="openblas").lib_controllers:
        library.set_num_threads(threads)
    total = {"torch": 0.0, "openblas": 0.0}
    for m, k, n in ((512, 640, 256), (64, 256, 2048)):
        a, b, out = torch.ones(m, k), torch.ones(k, n), torch.empty(m, n)
        best = dict.fromkeys(total, float("inf"))
        for _ in range(8):
            for name in best:
                start = time.perf_counter()
                if name == "torch":
                    torch.mm(a, b, out=out)
                else:
                    _openblas(out.numpy(), a.numpy(), b.numpy(), 0.0)
                best[name] = min(best[name], time.perf_counter() - start)
        for name in total:
            total[name] += best[name]
    return total["openblas"] < total["torch"]
