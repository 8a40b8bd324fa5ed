"""Dense rows to sparse rows, with the exact mass of what is left out.

Column b of ``edges`` is the row of target b over all sources. A source that is no constant is kept where

    edge != 0 and key(edge) >= cut(b),   key(edge) = the exponent and first 7 mantissa bits of |edge|,

and cut(b) is the largest key at which sum(|edge| kept) >= keep * sum(|edge|). Two magnitudes of one key differ by
less than 2^-7 = 0.8% (below 1e-38, where float32 has fewer bits, by more), so the cut is that much coarser than the
exact one; equal magnitudes always share their fate. Constants are kept where they are not zero, and so is everything
in a row whose mass is not finite: NaN and infinity are never lost.

Bytes moved: the reference copies the block once (row by row it is fast only in rows); the kernels read it once for
the sums, 5 times for the search of the cut (not at keep 1), once for counts and once to write. Both write 8 bytes per
kept entry. Dtypes: float32 in, sums in float64.

Shapes: N sources, B targets, S blocks of sources of the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.kernels.choice import jit, tl, triton, use_triton

KEY_SHIFT = 16
"""Bits of a float32 below its key."""
N_KEYS = 1 << (31 - KEY_SHIFT)
MAGNITUDE_BITS = 0x7FFFFFFF
"""All bits of a float32 but its sign; as integers they are ordered like the magnitudes, NaN above infinity."""
CUTS_PER_PASS = 7
"""Cuts that one pass of the kernels' search tries: three bits of the key."""
TILE = 8192
"""Entries of one program of the kernels."""


@dataclass(frozen=True)
class CompactRows:
    """Sparse rows of B targets over N sources, and sums over the dense ones; a source is dropped or stored, never both.

    All are on the device of the edges; on the CPU where that device has no float64 (MPS).
    """

    indptr: Tensor
    """(B + 1,) int64 row b is indices[indptr[b]:indptr[b + 1]]."""
    indices: Tensor
    """(nnz,) int32 sources, ascending within a row."""
    weights: Tensor
    """(nnz,) float32 edges, none of them zero."""
    total: Tensor
    """(B,) float64 sum of the dense row, all sources."""
    magnitude: Tensor
    """(B,) float64 sum of |row|, constants left out."""
    magnitude_all: Tensor
    """(B,) float64 sum of |row|, constants included."""
    dropped: Tensor
    """(B,) float64 sum of |row| over what is not stored."""


def compact_reference(edges: Tensor, keep: float, first_constant: int) -> CompactRows:
    """:func:`compact` row by row in NumPy, whose passes over one row stay in the cache; on the CPU."""
    dense = edges.detach().cpu().T.contiguous().numpy()
    n_targets, n_sources = dense.shape
    sums = np.zeros((4, n_targets))
    kept = np.empty(dense.shape, bool)
    size, bits = np.empty(n_sources), np.empty(n_sources, np.int32)
    with np.errstate(invalid="ignore"):  # the sum of a row with NaN or infinity is the caller's to judge
        for b, row in enumerate(dense):
            np.copyto(size, row)
            total = size.sum()
            np.abs(size, out=size)
            magnitude, constants = size[:first_constant].sum(), size[first_constant:].sum()
            np.bitwise_and(row.view(np.int32), MAGNITUDE_BITS, out=bits)
            smallest, dropped = 1, 0.0
            if keep < 1 and 0 < magnitude < np.inf:
                smallest, dropped = _smallest_kept(bits[:first_constant], size[:first_constant], keep * magnitude)
            np.greater_equal(bits[:first_constant], smallest, out=kept[b, :first_constant])
            np.greater(bits[first_constant:], 0, out=kept[b, first_constant:])
            sums[:, b] = total, magnitude, magnitude + constants, dropped
    indptr = np.zeros(n_targets + 1, np.int64)
    np.cumsum([np.count_nonzero(row) for row in kept], out=indptr[1:])
    indices, weights = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
    for b, (start, end) in enumerate(pairwise(indptr)):
        source = np.flatnonzero(kept[b])
        indices[start:end] = source
        np.take(dense[b], source, out=weights[start:end], mode="clip")  # the default mode would buffer the output
    device = "cpu" if edges.device.type == "mps" else edges.device
    return CompactRows(*(torch.from_numpy(array).to(device) for array in (indptr, indices, weights, *sums)))


def _smallest_kept(bits: np.ndarray, size: np.ndarray, wanted: float) -> tuple[int, float]:
    """Smallest magnitude to keep, as bits, for a kept mass of at least ``wanted``, and the mass below it."""
    mass = np.bincount(bits >> KEY_SHIFT, weights=size, minlength=N_KEYS)
    falling = np.flatnonzero(mass > 0)[::-1]
    last = min(int(np.searchsorted(np.cumsum(mass[falling]), wanted)), len(falling) - 1)
    return max(int(falling[last]) << KEY_SHIFT, 1), float(mass[falling[last + 1:]].sum())


@jit
def _load_tile(edges, n_sources, n_targets, stride_n, stride_b, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):
    """One program's sources (BLOCK_N,) and targets (BLOCK_B,) int64, its edges, and their magnitude bits int32; edges
    out of bounds are zero."""
    source = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    target = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    inside = (source < n_sources)[:, None] & (target < n_targets)[None, :]
    tile = tl.load(edges + source[:, None] * stride_n + target[None, :] * stride_b, mask=inside, other=0.0)
    return source, target, tile, tile.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@jit
def _sums_kernel(
    edges,  # (N, B)
    partial,  # (3, S, B) float64 sums: signed, magnitudes without constants, magnitudes of constants
    n_sources,
    n_targets,
    first_constant,
    stride_n,
    stride_b,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    source, target, tile, _ = _load_tile(edges, n_sources, n_targets, stride_n, stride_b, BLOCK_N, BLOCK_B)
    signed = tile.to(tl.float64)
    size = tl.abs(signed)
    constant = (source >= first_constant)[:, None]
    place = partial + tl.program_id(0).to(tl.int64) * n_targets + target
    plane = tl.num_programs(0).to(tl.int64) * n_targets
    tl.store(place, tl.sum(signed, axis=0), mask=target < n_targets)
    tl.store(place + plane, tl.sum(tl.where(constant, 0.0, size), axis=0), mask=target < n_targets)
    tl.store(place + 2 * plane, tl.sum(tl.where(constant, size, 0.0), axis=0), mask=target < n_targets)


@jit
def _mass_kernel(
    edges,  # (N, B)
    cuts,  # (T, B) int32 magnitude bits
    partial,  # (T, S, B) float64 mass from each cut up, constants left out
    n_sources,
    n_targets,
    first_constant,
    stride_n,
    stride_b,
    N_CUTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    source, target, tile, bits = _load_tile(edges, n_sources, n_targets, stride_n, stride_b, BLOCK_N, BLOCK_B)
    size = tl.where((source >= first_constant)[:, None], 0.0, tl.abs(tile.to(tl.float64)))
    place = partial + tl.program_id(0).to(tl.int64) * n_targets + target
    plane = tl.num_programs(0).to(tl.int64) * n_targets
    for i in range(N_CUTS):
        cut = tl.load(cuts + i * n_targets + target, mask=target < n_targets, other=0)
        mass = tl.sum(tl.where(bits >= cut[None, :], size, 0.0), axis=0)
        tl.store(place + i * plane, mass, mask=target < n_targets)


@jit
def _count_kernel(
    edges,  # (N, B)
    smallest,  # (B,) int32 magnitude bits of the smallest entry kept, at least 1
    counts,  # (B, S) int64 kept entries
    dropped,  # (S, B) float64
    n_sources,
    n_targets,
    first_constant,
    stride_n,
    stride_b,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    source, target, tile, bits = _load_tile(edges, n_sources, n_targets, stride_n, stride_b, BLOCK_N, BLOCK_B)
    inside = target < n_targets
    limit = tl.load(smallest + target, mask=inside, other=1)
    kept = bits >= tl.where((source < first_constant)[:, None], limit[None, :], 1)
    block = tl.program_id(0).to(tl.int64)
    left_out = tl.sum(tl.where(kept, 0.0, tl.abs(tile.to(tl.float64))), axis=0)
    tl.store(dropped + block * n_targets + target, left_out, mask=inside)
    count = tl.sum(kept.to(tl.int32), axis=0).to(tl.int64)
    tl.store(counts + target * tl.num_programs(0) + block, count, mask=inside)


@jit
def _write_kernel(
    edges,  # (N, B)
    smallest,  # (B,) int32
    starts,  # (B, S) int64 where each block's entries of each row begin
    indices,  # (nnz,) int32
    weights,  # (nnz,) float32
    n_sources,
    n_targets,
    first_constant,
    stride_n,
    stride_b,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Compares integers as the count did, so it writes exactly what was counted."""
    source, target, tile, bits = _load_tile(edges, n_sources, n_targets, stride_n, stride_b, BLOCK_N, BLOCK_B)
    inside = target < n_targets
    limit = tl.load(smallest + target, mask=inside, other=1)
    kept = bits >= tl.where((source < first_constant)[:, None], limit[None, :], 1)
    start = tl.load(starts + target * tl.num_programs(0) + tl.program_id(0), mask=inside, other=0)
    place = start[None, :] + tl.cumsum(kept.to(tl.int32), axis=0) - 1
    tl.store(indices + place, (source[:, None] + tl.zeros_like(place)).to(tl.int32), mask=kept)
    tl.store(weights + place, tile, mask=kept)


def _compact_triton(edges: Tensor, keep: float, first_constant: int) -> CompactRows:
    """Launches the kernels; sums over blocks are PyTorch's, in a fixed order, so results do not vary between runs."""
    n_sources, n_targets = edges.shape
    if not n_sources or not n_targets:
        return compact_reference(edges, keep, first_constant)
    block_b = min(64, triton.next_power_of_2(n_targets))
    blocks = {"BLOCK_N": TILE // block_b, "BLOCK_B": block_b}
    n_blocks = triton.cdiv(n_sources, blocks["BLOCK_N"])
    grid = (n_blocks, triton.cdiv(n_targets, block_b))
    shape = (n_sources, n_targets, first_constant, *edges.stride())

    def empty(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(size, dtype=dtype, device=edges.device)

    partial = empty(3, n_blocks, n_targets)
    _sums_kernel[grid](edges, partial, *shape, **blocks, num_warps=8)
    total, magnitude, constants = partial.sum(1)
    cut = torch.zeros(n_targets, dtype=torch.int32, device=edges.device)
    partial = empty(CUTS_PER_PASS, n_blocks, n_targets)
    step = N_KEYS if keep < 1 else 1
    while step > 1:
        step //= CUTS_PER_PASS + 1
        tried = cut + step * torch.arange(1, CUTS_PER_PASS + 1, dtype=torch.int32, device=edges.device)[:, None]
        _mass_kernel[grid](edges, tried << KEY_SHIFT, partial, *shape, N_CUTS=CUTS_PER_PASS, **blocks, num_warps=8)
        cut += step * (partial.sum(1) >= keep * magnitude).sum(0, dtype=torch.int32)
    smallest = torch.where(torch.isfinite(magnitude), cut << KEY_SHIFT, 0).clamp_(min=1)

    counts, dropped = empty(n_targets, n_blocks, dtype=torch.int64), empty(n_blocks, n_targets)
    _count_kernel[grid](edges, smallest, counts, dropped, *shape, **blocks, num_warps=8)
    ends = counts.flatten().cumsum(0).view_as(counts)
    indptr = torch.cat([ends.new_zeros(1), ends[:, -1]])
    nnz = int(indptr[-1])
    indices, weights = empty(nnz, dtype=torch.int32), empty(nnz, dtype=torch.float32)
    _write_kernel[grid](edges, smallest, ends - counts, indices, weights, *shape, **blocks, num_warps=8)
    return CompactRows(indptr, indices, weights, total, magnitude, magnitude + constants, dropped.sum(0))


@torch.no_grad()
def compact(edges: Tensor, keep: float, first_constant: int) -> CompactRows:
    """Sparse rows of a block of targets (METHOD 4).

    Args:
        edges: (N, B) float32, column b the row of target b over all sources; fast where stride(1) is 1.
        keep: share in (0, 1] of each row's mass, constants left out, that is kept at least; its largest entries are.
            At 1 every entry that is not zero is kept.
        first_constant: sources from here on are constants: always kept, and left out of ``magnitude``.

    Raises:
        InputError: edges of another dtype or shape, or keep or first_constant out of range.
    """
    if edges.ndim != 2 or edges.dtype != torch.float32 or len(edges) >= 1 << 31:
        raise InputError(f"edges are {edges.dtype} of shape {list(edges.shape)}: expected (sources, targets) in "
                         "torch.float32, with fewer than 2^31 sources")
    if not 0 < keep <= 1:
        raise InputError(f"keep is {keep}, expected a share above 0 and up to 1: give 1 to keep every entry")
    if not 0 <= first_constant <= len(edges):
        raise InputError(f"first_constant is {first_constant}, expected 0 to {len(edges)}, the number of sources: give "
                         f"{len(edges)} where there are no constants")
    run = _compact_triton if use_triton(edges) else compact_reference
    return run(edges, keep, first_constant)
