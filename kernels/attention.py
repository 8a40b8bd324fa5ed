"""The transpose of one layer's frozen attention, mixing over positions only, recomputed in tiles (METHOD 4).

mixed[g, p, b] = sum over g's heads h and queries q >= p (q - p < window) of A[h, q, p] * grad[h, q, b], where
A[h, q, p] = exp(<queries[h, q], keys[g, p]> - log_norm[h, q] + key_bias[p]): the softmax's pattern with the frozen norm
scales around it folded in. No (P, P) pattern exists, only tiles of it.

Bytes moved: grad once per tile of keys within reach of a query (window or P, divided by the tile's size), queries as
often and once more per block of columns, mixed once. Products: 2 H P^2 B K, halved by causality, window / P of that in
windowed layers; recomputing scores adds a B-th (reference), or K / BLOCK_C (Triton). Types: float32, bfloat16, float16;
scores, exponentials and sums are float32.

Shapes: H query heads, G key/value heads, P positions, B targets, K head_dim, T keys of a tile, Q queries of a tile,
C columns: B * K, one per target and dimension of the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.kernels.choice import jit, tl, triton, use_triton
from circuits.kernels.products import add_product

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEY_TILE = 128
"""Keys of a tile of the reference: larger ones multiply faster, but waste more above the diagonal and past windows."""
QUERY_TILE = 1024
"""Most queries of a tile of the reference: the pattern's tile then takes half a MiB per head."""


def transposed_attention(grad: Tensor, queries: Tensor, keys: Tensor, log_norm: Tensor, key_bias: Tensor,
                         window: int | None = None, out: Tensor | None = None) -> Tensor:
    """Gradients at the heads' outputs, taken back to the values that the heads read.

    Args:
        grad: (H, P, B, K) gradient of B targets with respect to each query head's output, any strides.
        queries: (H, P, K) after q-norm, rotary and the score scale; in grad's type, or in float32.
        keys: (G, P, K) after k-norm and rotary, in the type of the queries; head h reads group h // (H // G).
        log_norm: (H, P) float32, log-sum-exp of the head's scores at the query, minus the log of the frozen scale of
            the output norm there.
        key_bias: (P,) float32, log of the frozen scale of the input norm at the key.
        window: queries see this many positions, their own included; all earlier ones when None.
        out: (G, P, B, K) contiguous, of grad's type, apart from grad in memory; overwritten. Allocated when None.

    Returns:
        (G, P, B, K): ``out``.

    Raises:
        InputError: shapes, types or devices that do not fit together, or a window below 1.
    """
    _check(grad, queries, keys, log_norm, key_bias, window, out)
    if out is None:
        out = grad.new_empty(len(keys), *grad.shape[1:])
    if out.numel() == 0:
        return out
    reach = grad.shape[1] if window is None else min(window, grad.shape[1])
    run = _launch if use_triton(grad) else transposed_attention_reference
    run(grad, queries, keys, log_norm, key_bias, reach, out)
    return out


def transposed_patterns(queries: Tensor, keys: Tensor, log_norm: Tensor, key_bias: Tensor,
                        window: int | None = None) -> Tensor:
    """All of what :func:`transposed_attention` computes in tiles, for prompts whose patterns fit into memory.

    Returns:
        (H, P, P) float32: A[h, q, p] at [h, p, q]; 0 where the query does not see the key.
    """
    n_heads, n_pos, _ = queries.shape
    per_group = n_heads // len(keys)
    patterns = queries.new_zeros(n_heads, n_pos, n_pos, dtype=torch.float32)
    for first in range(0, n_pos, KEY_TILE):
        tile = slice(first, min(first + KEY_TILE, n_pos))
        span = _reach(tile, n_pos, window)
        bias = _bias(key_bias[tile], 0, span.stop - span.start, window or n_pos)
        for head in range(n_heads):
            patterns[head, tile, span] = _pattern(queries[head:head + 1, span], keys[head // per_group, tile],
                                                  log_norm[head:head + 1, span], bias)
    return patterns


def mix_stored(grad: Tensor, patterns: Tensor, out: Tensor, window: int | None = None) -> Tensor:
    """:func:`transposed_attention` with the patterns of :func:`transposed_patterns`.

    Args:
        grad: (H, P, B, K), contiguous.
        patterns: (H, P', P') float32 with P' >= P; positions from P on are not read.
        out: (G, P, B, K) of grad's type, contiguous, apart from grad in memory; overwritten.

    Returns:
        ``out``.
    """
    n_heads, n_pos = grad.shape[:2]
    per_group = n_heads // len(out)
    for head in range(n_heads):
        for first in range(0, n_pos, KEY_TILE):
            tile = slice(first, min(first + KEY_TILE, n_pos))
            span = _reach(tile, n_pos, window)
            add_product(out[head // per_group, tile].flatten(1), patterns[head, tile, span].to(grad.dtype),
                        grad[head, span].flatten(1), float(head % per_group > 0))
    return out


def _reach(tile: slice, n_pos: int, window: int | None) -> slice:
    """Queries that see any key of the tile."""
    return slice(tile.start, n_pos if window is None else min(n_pos, tile.stop - 1 + window))


def _check(grad: Tensor, queries: Tensor, keys: Tensor, log_norm: Tensor, key_bias: Tensor, window: int | None,
           out: Tensor | None) -> None:
    if grad.ndim != 4 or grad.dtype not in DTYPES:
        raise InputError(f"grad is {grad.dtype} of shape {list(grad.shape)}: expected (heads, positions, targets, "
                         "head_dim) in float32, bfloat16 or float16")
    n_heads, n_pos, n_targets, head_dim = grad.shape
    if keys.ndim != 3 or len(keys) == 0 or n_heads % len(keys):
        raise InputError(f"keys are of shape {list(keys.shape)}: expected (groups, positions, head_dim) with a number "
                         f"of groups that divides grad's {n_heads} heads")
    scores = queries.dtype if queries.dtype in (grad.dtype, torch.float32) else grad.dtype
    expected = [("queries", queries, (n_heads, n_pos, head_dim), scores),
                ("keys", keys, (len(keys), n_pos, head_dim), scores),
                ("log_norm", log_norm, (n_heads, n_pos), torch.float32),
                ("key_bias", key_bias, (n_pos,), torch.float32)]
    if out is not None:
        expected.append(("out", out, (len(keys), n_pos, n_targets, head_dim), grad.dtype))
    for name, tensor, shape, dtype in expected:
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != grad.device:
            raise InputError(f"{name}: {tensor.dtype} of shape {list(tensor.shape)} on {tensor.device}, but grad of "
                             f"shape {list(grad.shape)} needs {dtype} of shape {list(shape)} on {grad.device}")
    if out is not None and not out.is_contiguous():
        raise InputError("out is not contiguous: give a whole tensor, or none to have one allocated")
    if window is not None and window < 1:
        raise InputError(f"window is {window}: expected at least 1, which is the query's own position, or None")


def transposed_attention_reference(grad: Tensor, queries: Tensor, keys: Tensor, log_norm: Tensor, key_bias: Tensor,
                                   window: int, out: Tensor) -> None:
    """In plain PyTorch; 16-bit gradients are multiplied in float32, which CPUs do far faster."""
    n_heads, n_pos = grad.shape[:2]
    per_group = n_heads // len(keys)
    for group in range(len(keys)):
        heads = slice(group * per_group, (group + 1) * per_group)
        for first in range(0, n_pos, KEY_TILE):
            tile = slice(first, min(first + KEY_TILE, n_pos))
            target = out[group, tile].flatten(1)
            mixed = target if out.dtype == torch.float32 else torch.empty_like(target, dtype=torch.float32)
            beta = 0.0
            for some, span, bias in _blocks(grad, heads, key_bias[tile], first, window):
                pattern = _pattern(queries[some, span], keys[group, tile], log_norm[some, span], bias)
                add_product(mixed, pattern, grad[some, span].float().flatten(2).flatten(0, 1), beta)
                beta = 1.0
            if mixed is not target:
                target.copy_(mixed)


def _blocks(grad: Tensor, heads: slice, key_bias: Tensor, first: int, window: int) -> Iterator[
        tuple[slice, slice, Tensor]]:
    """Heads and queries to multiply at once with the tile of keys that starts at ``first``, and the bias between them.

    All heads of the group at once where their gradients lie in one piece, since longer products are faster; else head
    by head. Queries within reach of the tile, in equal spans.
    """
    n_pos = grad.shape[1]
    last = min(n_pos, first + len(key_bias) - 1 + window)
    n_spans = -(-(last - first) // QUERY_TILE)
    whole = n_spans == 1 and last - first == n_pos and grad.dtype == torch.float32 and grad.is_contiguous()
    edges = [first + i * (last - first) // n_spans for i in range(n_spans + 1)]
    for start, stop in pairwise(edges):
        bias = _bias(key_bias, start - first, stop - start, window)
        for some in [heads] if whole else [slice(head, head + 1) for head in range(heads.start, heads.stop)]:
            yield some, slice(start, stop), bias


def _bias(key_bias: Tensor, ahead: int, n_queries: int, window: int) -> Tensor:
    """(T, Q): the bias of each key (T,), minus infinity where the query does not see it. The first of the queries
    stands ``ahead`` positions after the first key."""
    distance = torch.arange(ahead, ahead + n_queries, device=key_bias.device) - torch.arange(
        len(key_bias), device=key_bias.device)[:, None]
    return torch.where((distance >= 0) & (distance < window), key_bias[:, None], -torch.inf)


def _pattern(queries: Tensor, keys: Tensor, log_norm: Tensor, bias: Tensor) -> Tensor:
    """(T, h * Q) float32: a tile of the transposed pattern of h heads. queries (h, Q, K), keys (T, K), log_norm (h, Q),
    bias (T, Q)."""
    scores = torch.sub(bias[:, None], log_norm).flatten(1)
    return add_product(scores, keys.float(), queries.float().flatten(0, 1).T, 1.0).exp_()


@jit
def _transposed_attention_kernel(
        grad,  # (H, P, B, K), any strides
        queries,  # (H, P, K) contiguous
        keys,  # (G, P, K) contiguous
        log_norm,  # (H, P) float32, contiguous
        key_bias,  # (P,) float32, contiguous
        out,  # (G, P, B * K) contiguous
        n_pos, n_columns, head_dim, window, stride_h, stride_p, stride_b, stride_k,
        PER_GROUP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr,
        BLOCK_K: tl.constexpr, K_BLOCKS: tl.constexpr, WIDEN: tl.constexpr):
    """One program per tile of keys, group, and block of columns."""
    first = tl.program_id(0) * BLOCK_P
    group = tl.program_id(1).to(tl.int64)
    column = tl.program_id(2).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    key = first + tl.arange(0, BLOCK_P)
    real_key, real_column = key < n_pos, column < n_columns
    bias = tl.load(key_bias + key, mask=real_key, other=0.0)
    at_key = keys + (group * n_pos + key)[:, None] * head_dim
    at_column = grad + (column // head_dim) * stride_b + (column % head_dim) * stride_k
    last = tl.minimum(n_pos, first + BLOCK_P - 1 + window)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for member in range(PER_GROUP):
        head = group * PER_GROUP + member
        for start in range(first, last, BLOCK_Q):
            query = start + tl.arange(0, BLOCK_Q)
            real_query = query < n_pos
            at_query = queries + (head * n_pos + query)[None, :] * head_dim
            scores = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
            for block in tl.static_range(K_BLOCKS):
                k = block * BLOCK_K + tl.arange(0, BLOCK_K)
                some_keys = tl.load(at_key + k[None, :], mask=real_key[:, None] & (k < head_dim)[None, :], other=0.0)
                some_queries = tl.load(at_query + k[:, None], mask=(k < head_dim)[:, None] & real_query[None, :],
                                       other=0.0)
                if WIDEN:
                    some_keys, some_queries = some_keys.to(tl.float32), some_queries.to(tl.float32)
                scores += tl.dot(some_keys, some_queries, input_precision="ieee")
            norm = tl.load(log_norm + head * n_pos + query, mask=real_query, other=0.0)
            distance = query[None, :] - key[:, None]
            seen = (distance >= 0) & (distance < window) & real_query[None, :]
            # masked before the exponential: later queries' scores may overflow it
            pattern = tl.exp(tl.where(seen, scores - norm[None, :] + bias[:, None], float("-inf")))
            values = tl.load(at_column[None, :] + head * stride_h + query.to(tl.int64)[:, None] * stride_p,
                             mask=real_query[:, None] & real_column[None, :], other=0.0)
            if WIDEN:
                values = values.to(tl.float32)
            total += tl.dot(pattern.to(values.dtype), values, input_precision="ieee")
    at_out = out + (group * n_pos + key)[:, None] * n_columns + column[None, :]
    tl.store(at_out, total.to(out.dtype.element_ty), mask=real_key[:, None] & real_column[None, :])


def _launch(grad: Tensor, queries: Tensor, keys: Tensor, log_norm: Tensor, key_bias: Tensor, window: int,
            out: Tensor) -> None:
    n_heads, n_pos, n_targets, head_dim = grad.shape
    n_columns, wide, wide_scores = n_targets * head_dim, grad.dtype == torch.float32, queries.dtype == torch.float32
    # compiled for sm_86 and sm_90, these keep below 99 KiB of shared memory and (nearly) all in registers; float32
    # products run on ordinary cores and need smaller operands
    block_p, block_q, block_c = (32, 32, 128) if wide else (64, 32, 256)
    block_k = min(32 if wide_scores else 256, max(16, triton.next_power_of_2(head_dim)))
    # Triton's interpreter takes the bits of bfloat16 for integers when it multiplies
    widen = grad.dtype == torch.bfloat16 and not grad.is_cuda
    grid = (triton.cdiv(n_pos, block_p), len(keys), triton.cdiv(n_columns, block_c))
    _transposed_attention_kernel[grid](
        grad, queries.contiguous(), keys.contiguous(), log_norm.contiguous(), key_bias.contiguous(), out,
        n_pos, n_columns, head_dim, window, *grad.stride(), PER_GROUP=n_heads // len(keys), BLOCK_P=block_p,
        BLOCK_Q=block_q, BLOCK_C=block_c, BLOCK_K=block_k, K_BLOCKS=triton.cdiv(head_dim, block_k), WIDEN=widen,
        num_warps=8, num_stages=1 if wide_scores and not wide else 2)
