"""Active features of a layer: encoder product, JumpReLU and compaction in one, without a dense (P, F) tensor.

    pre = x @ w_enc.T + b_enc                          accumulated in float32
    active: pre > threshold and pre != 0 (JumpReLU), pre > 0 (ReLU), or pre is not finite

Non-finite pre-activations come out as they are: a caller that finds one among the values has damaged weights or
inputs. Where all of them are damaged, every (position, feature) is active.

Bytes moved: the encoder once per block of positions (F * D elements), x once per block of features, and per active
entry 12 bytes, plus a sort of the active entries. Work: 2 * P * F * D.
Dtypes: x float32, bfloat16 or float16; w_enc of x's dtype or float32; b_enc and threshold float32.

Shapes: P positions, F features, D d_model, n active entries, C capacity of the kernel's output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.kernels.choice import jit, tl, triton, use_triton

MAX_TILE = 1 << 24
"""Elements of the reference's largest converted input or encoder tile (64 MiB of float32)."""
CACHED_TILE = 1 << 21
"""Elements of the reference's pre-activation tiles: they are read several times and should not leave the cache."""
ACTIVE_PER_POSITION = 256
"""Active features per position that the kernel's output has room for at first; more of them cost a second launch."""
BLOCK_F = 64
"""Features of one program of the kernel; with 64 positions and 8 warps its registers do not spill on an H100."""

_Active = tuple[Tensor, Tensor, Tensor]


def encode_reference(x: Tensor, w_enc: Tensor, b_enc: Tensor, threshold: Tensor | None) -> _Active:
    """:func:`encode` in tiles of plain PyTorch."""
    n_pos, d_model = x.shape
    n_features = len(w_enc)
    rows = max(1, min(n_pos, MAX_TILE // max(d_model, 1), 4096))
    columns = max(1, min(n_features, CACHED_TILE // rows, MAX_TILE // max(d_model, 1)))
    may_hold_zero = threshold is not None and bool((threshold < 0).any())
    found = []
    for row in range(0, n_pos, rows):
        inputs = x[row:row + rows].float()
        parts = []
        for column in range(0, n_features, columns):
            features = slice(column, column + columns)
            pre = torch.addmm(b_enc[features], inputs, w_enc[features].float().T)
            position, feature, value = _active(pre, None if threshold is None else threshold[features], may_hold_zero)
            parts.append((position + row, feature + column, value))
        found.append(_by_position(parts))
    return _joined(found)


def _active(pre: Tensor, threshold: Tensor | None, may_hold_zero: bool) -> _Active:
    """Active entries of one tile; ``may_hold_zero`` where a threshold below zero lets a zero through."""
    active = pre > (0 if threshold is None else threshold)
    if may_hold_zero:
        active &= pre != 0
    # one sum is cheaper than looking at every element, and is only finite where all are
    if not torch.isfinite(pre.sum()):
        active |= ~torch.isfinite(pre)
    position, feature = active.nonzero(as_tuple=True)
    return position, feature, pre[position, feature]


def _by_position(parts: list[_Active]) -> _Active:
    """Entries of one block of positions, from tiles in the order of their features."""
    position, feature, value = _joined(parts)
    if len(parts) == 1:
        return position, feature, value
    order = torch.argsort(position, stable=True)
    return position[order], feature[order], value[order]


def _joined(parts: list[_Active]) -> _Active:
    position, feature, value = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return position, feature, value


@jit
def _encode_kernel(
    x,  # (P, D)
    w_enc,  # (F, D)
    b_enc,  # (F,)
    threshold,  # (F,); b_enc again where there is none
    count,  # (1,) int64 active entries found so far
    keys,  # (C,) int64 position * F + feature, in the order in which programs finish
    values,  # (C,) float32
    n_pos,
    n_features,
    capacity,
    x_stride_p,
    x_stride_d,
    w_stride_f,
    w_stride_d,
    D_MODEL: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    WIDE: tl.constexpr,  # multiply in float32
    BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of pre-activations: reserves room for its active entries with one atomic addition, and writes what of
    them fits. Programs that share features run side by side, so that the encoder is read from memory once."""
    program = tl.program_id(0).to(tl.int64)
    blocks_p = tl.cdiv(n_pos, BLOCK_P)
    position = program % blocks_p * BLOCK_P + tl.arange(0, BLOCK_P)
    feature = program // blocks_p * BLOCK_F + tl.arange(0, BLOCK_F)
    inside_p, inside_f = position < n_pos, feature < n_features
    x_rows = x + position[:, None] * x_stride_p
    w_columns = w_enc + feature[None, :] * w_stride_f
    pre = tl.zeros((BLOCK_P, BLOCK_F), dtype=tl.float32)
    for start in range(0, D_MODEL, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)
        inside_d = d < D_MODEL
        x_tile = tl.load(x_rows + d[None, :] * x_stride_d, mask=inside_p[:, None] & inside_d[None, :], other=0.0)
        w_tile = tl.load(w_columns + d[:, None] * w_stride_d, mask=inside_d[:, None] & inside_f[None, :], other=0.0)
        if WIDE:
            x_tile, w_tile = x_tile.to(tl.float32), w_tile.to(tl.float32)
        pre += tl.dot(x_tile, w_tile, input_precision="ieee")
    pre += tl.load(b_enc + feature, mask=inside_f, other=0.0)[None, :]
    if HAS_THRESHOLD:
        active = (pre > tl.load(threshold + feature, mask=inside_f, other=0.0)[None, :]) & (pre != 0)
    else:
        active = pre > 0
    active = active | (pre != pre) | (tl.abs(pre) == float("inf"))
    active = active & inside_p[:, None] & inside_f[None, :]
    ones = active.to(tl.int32)
    per_row = tl.sum(ones, axis=1)
    first = tl.atomic_add(count, tl.sum(per_row, axis=0).to(tl.int64))
    in_tile = (tl.cumsum(per_row, axis=0) - per_row)[:, None] + tl.cumsum(ones, axis=1) - ones
    slot = first + in_tile.to(tl.int64)
    fits = active & (slot < capacity)
    tl.store(keys + slot, position[:, None] * n_features + feature[None, :], mask=fits)
    tl.store(values + slot, pre, mask=fits)


def _encode_triton(x: Tensor, w_enc: Tensor, b_enc: Tensor, threshold: Tensor | None) -> _Active:
    """Launches the kernel; again, with more room, where more was active than it had room for.

    Counting and writing are one pass, so that they cannot disagree, and entries beyond the room are never written.
    Which slot an entry gets depends on which program came first; sorting by key makes the order its own.
    """
    n_pos, n_features = len(x), len(w_enc)
    # Triton's interpreter multiplies the bit patterns of bfloat16 as if they were integers
    wide = w_enc.dtype == torch.float32 or (w_enc.dtype == torch.bfloat16 and not x.is_cuda)
    block_p = min(64, max(16, triton.next_power_of_2(n_pos)))
    n_programs = triton.cdiv(n_pos, block_p) * triton.cdiv(n_features, BLOCK_F)
    capacity, n_active = 0, min(n_pos * n_features, n_pos * ACTIVE_PER_POSITION, MAX_TILE)
    while n_active > capacity:
        capacity = n_active
        keys = torch.empty(capacity, dtype=torch.int64, device=x.device)
        values = torch.empty(capacity, dtype=torch.float32, device=x.device)
        count = torch.zeros(1, dtype=torch.int64, device=x.device)
        _encode_kernel[(n_programs,)](
            x, w_enc, b_enc, b_enc if threshold is None else threshold, count, keys, values,
            n_pos, n_features, capacity, *x.stride(), *w_enc.stride(), D_MODEL=x.shape[1],
            HAS_THRESHOLD=threshold is not None, WIDE=wide, BLOCK_P=block_p, BLOCK_F=BLOCK_F,
            BLOCK_D=32 if wide else 64, num_warps=8)
        n_active = int(count)
    key, order = torch.sort(keys[:n_active])
    return key // n_features, key % n_features, values[order]


@torch.no_grad()
def encode(x: Tensor, w_enc: Tensor, b_enc: Tensor, threshold: Tensor | None) -> _Active:
    """Active features of a layer (METHOD 2).

    Args:
        x: (P, D) float32, bfloat16 or float16 outputs of the layer's pre_feedforward_layernorm.
        w_enc: (F, D) encoder, of x's dtype or float32; any strides, so a transposed view of a (D, F) matrix will do.
        b_enc: (F,) float32.
        threshold: (F,) float32 JumpReLU thresholds; None for ReLU.

    Returns:
        position (n,) int64, feature (n,) int64, value (n,) float32: the pre-activations above the threshold (a zero
        never counts), sorted by position, then feature. Every non-finite pre-activation is among them, whatever its
        threshold, so that damaged weights are seen. No gradient flows through.

    Raises:
        InputError: shapes, dtypes or devices that do not fit together.
    """
    _check(x, w_enc, b_enc, threshold)
    if not len(x) or not len(w_enc):
        index = torch.empty(0, dtype=torch.int64, device=x.device)
        return index, index.clone(), torch.empty(0, device=x.device)
    run = _encode_triton if use_triton(x) else encode_reference
    return run(x, w_enc, b_enc.contiguous(), None if threshold is None else threshold.contiguous())


def _check(x: Tensor, w_enc: Tensor, b_enc: Tensor, threshold: Tensor | None) -> None:
    if x.ndim != 2 or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputError(f"x is {x.dtype} of shape {list(x.shape)}: expected (positions, d_model) in float32, bfloat16 "
                         "or float16")
    if w_enc.ndim != 2 or w_enc.shape[1] != x.shape[1]:
        raise InputError(f"w_enc has shape {list(w_enc.shape)}, expected (features, {x.shape[1]}): pass a matrix "
                         "stored as (d_model, features) transposed")
    if w_enc.dtype not in (x.dtype, torch.float32):
        raise InputError(f"w_enc is {w_enc.dtype}, expected {x.dtype}, the dtype of x, or torch.float32: convert one")
    vectors = {"b_enc": b_enc} if threshold is None else {"b_enc": b_enc, "threshold": threshold}
    for name, vector in vectors.items():
        if vector.shape != (len(w_enc),) or vector.dtype != torch.float32:
            raise InputError(f"{name} is {vector.dtype} of shape {list(vector.shape)}, expected torch.float32 of "
                             f"[{len(w_enc)}], one per feature of w_enc")
    for name, tensor in {"w_enc": w_enc, **vectors}.items():
        if tensor.device != x.device:
            raise InputError(f"{name} is on {tensor.device}, x on {x.device}: move one")
