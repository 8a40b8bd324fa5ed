"""Direct effects of feature writes: gradients contracted with decoder vectors gathered by feature (METHOD 3).

out[node[i], b] += value[i] * <decoders[row[i]], state[position[i], b]>

Bytes moved: state once per block of writes of a position, one decoder vector per write, out twice at the nodes written.
Products: 2 N B D. Gathered decoder vectors exist only in pieces: 2 MiB of them (reference), or tiles (Triton). Types:
state and decoders are float32, bfloat16 or float16 each, everything summed is float32. Positions without writes are not
read.

Shapes: N writes, P positions, B targets, D d_model, U distinct decoder vectors, S source nodes (rows of out), W writes
of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.kernels.choice import jit, tl, triton, use_triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GATHERED = 2**20
"""Most numbers of decoder vectors that the reference holds at once, but for one position's: 4 MiB in float32."""


def add_effects(out: Tensor, node: Tensor, state: Tensor, decoders: Tensor, position: Tensor, row: Tensor,
                value: Tensor) -> None:
    """Add every write's effect on every target to the write's row of ``out``.

    Args:
        out: (S, B) float32, added to in place; any strides.
        node: (N,) int64 row of ``out`` that each write adds to; distinct, which is not checked.
        state: (P, B, D) gradient of B targets where the writes enter, any strides.
        decoders: (U, D), any strides: views into larger weights are not copied.
        position: (N,) int64, ascending.
        row: (N,) int64 into ``decoders``; repeats where one feature is active at several positions.
        value: (N,) float32 activations.

    Raises:
        InputError: shapes, types or devices that do not fit together; on CPU also positions that do not ascend, and
            indices out of range (on other devices the check would wait for the device).
    """
    _check(out, node, state, decoders, position, row, value)
    if len(node) == 0 or state.shape[1] == 0:
        return
    run = _launch if use_triton(state) else add_effects_reference
    run(out, node, state, decoders, position, row, value)


def _check(out: Tensor, node: Tensor, state: Tensor, decoders: Tensor, position: Tensor, row: Tensor,
           value: Tensor) -> None:
    for name, tensor, layout in (("state", state, "(positions, targets, d_model)"),
                                 ("decoders", decoders, "(features, d_model)")):
        if tensor.ndim != layout.count(",") + 1 or tensor.dtype not in DTYPES:
            raise InputError(f"{name}: {tensor.dtype} of shape {list(tensor.shape)}, expected {layout} in float32, "
                             "bfloat16 or float16")
    if decoders.shape[1] != state.shape[2]:
        raise InputError(f"decoders are {decoders.shape[1]} wide, state is {state.shape[2]}: expected the same d_model")
    if out.ndim != 2 or out.shape[1] != state.shape[1] or out.dtype != torch.float32:
        raise InputError(f"out: {out.dtype} of shape {list(out.shape)}, expected float32 with a column for each of the "
                         f"{state.shape[1]} targets of state")
    for name, tensor, dtype in (("node", node, torch.int64), ("position", position, torch.int64),
                                ("row", row, torch.int64), ("value", value, torch.float32)):
        if tensor.ndim != 1 or len(tensor) != len(node) or tensor.dtype != dtype:
            raise InputError(f"{name}: {tensor.dtype} of shape {list(tensor.shape)}, expected {dtype} with one entry "
                             f"for each of the {len(node)} writes of node")
    for name, tensor in (("out", out), ("node", node), ("decoders", decoders), ("position", position), ("row", row),
                         ("value", value)):
        if tensor.device != state.device:
            raise InputError(f"{name} is on {tensor.device}, state on {state.device}: move them to one device")
    if len(node) and state.device.type == "cpu":
        for name, index, size in (("node", node, len(out)), ("position", position, len(state)),
                                  ("row", row, len(decoders))):
            low, high = torch.aminmax(index)
            if low < 0 or high >= size:
                raise InputError(f"{name} has values from {int(low)} to {int(high)}: expected 0 to {size - 1}")
        if (position[1:] < position[:-1]).any():
            raise InputError("position does not ascend: sort the writes by position")


def add_effects_reference(out: Tensor, node: Tensor, state: Tensor, decoders: Tensor, position: Tensor, row: Tensor,
                          value: Tensor) -> None:
    """In plain PyTorch: decoder vectors gathered in bounded blocks of positions, one batched product for each.

    A product for each position is as fast on one thread, but many small products on several threads wait for one
    another: a slow thread, on a machine that does other work too, then stops all. 16-bit numbers are multiplied in
    float32: CPUs do that far faster.
    """
    n_targets, d_model = state.shape[1:]
    here, counts = torch.unique_consecutive(position, return_counts=True)
    starts, widest = counts.cumsum(0) - counts, int(counts.max())
    at_once = max(1, min(len(here), GATHERED // (d_model * widest)))
    # one buffer for all blocks: mapping fresh memory would cost more than filling it
    gathered = decoders.new_empty(at_once * widest, d_model)
    effects = out.new_empty(at_once * widest, n_targets)
    for first in range(0, len(here), at_once):
        block = slice(first, first + at_once)
        slot = torch.arange(int(counts[block].max()), device=row.device)
        real = slot < counts[block, None]
        write = slice(int(starts[first]), int(starts[block][-1] + counts[block][-1]))
        rows = row.new_zeros(real.shape)
        rows[real] = row[write]
        vectors = torch.index_select(decoders, 0, rows.flatten(), out=gathered[:rows.numel()])
        products = effects[:rows.numel()]
        torch.bmm(vectors.float().view(*real.shape, d_model), _at(state, here[block]).float().transpose(1, 2),
                  out=products.view(*real.shape, n_targets))
        if rows.numel() > write.stop - write.start:
            products = products[real.flatten()]
        out.index_add_(0, node[write], products.mul_(value[write, None]))


def _at(state: Tensor, position: Tensor) -> Tensor:
    """(p, B, D) of ``state`` (P, B, D) at the ascending positions (p,): a view where they are neighbours."""
    first, last = int(position[0]), int(position[-1]) + 1
    return state[first:last] if last - first == len(position) else state[position]


@jit
def _effects_kernel(
        out,  # (S, B) float32, any strides
        node,  # (N,) int64
        state,  # (P, B, D), any strides
        decoders,  # (U, D), any strides
        row,  # (N,) int64
        value,  # (N,) float32
        write_start,  # (P + 1,) int64: first write of each position
        block_start,  # (P + 1,) int64: first block of each position
        block_position,  # (blocks,) int64: P in blocks past the last
        n_pos, n_targets, out_n, out_b, state_p, state_b, state_d, decoders_u, decoders_d,
        D_MODEL: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
        WIDEN: tl.constexpr):
    """One program per block of writes of one position, and block of targets."""
    block = tl.program_id(0)
    position = tl.load(block_position + block)
    if position < n_pos:
        write = (tl.load(write_start + position) + (block - tl.load(block_start + position)) * BLOCK_W
                 + tl.arange(0, BLOCK_W))
        real = write < tl.load(write_start + position + 1)
        target = tl.program_id(1).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
        real_target = target < n_targets
        at_decoder = decoders + tl.load(row + write, mask=real, other=0)[:, None] * decoders_u
        at_state = state + position * state_p + target[None, :] * state_b
        total = tl.zeros((BLOCK_W, BLOCK_B), tl.float32)
        for start in range(0, D_MODEL, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D).to(tl.int64)
            inside = d < D_MODEL
            vectors = tl.load(at_decoder + d[None, :] * decoders_d, mask=real[:, None] & inside[None, :], other=0.0)
            gradients = tl.load(at_state + d[:, None] * state_d, mask=inside[:, None] & real_target[None, :], other=0.0)
            if WIDEN:
                vectors, gradients = vectors.to(tl.float32), gradients.to(tl.float32)
            total += tl.dot(vectors, gradients, input_precision="ieee")
        total *= tl.load(value + write, mask=real, other=0.0)[:, None]
        # nodes are distinct, so no two programs add to one place
        at_out = out + tl.load(node + write, mask=real, other=0)[:, None] * out_n + target[None, :] * out_b
        added = real[:, None] & real_target[None, :]
        tl.store(at_out, tl.load(at_out, mask=added, other=0.0) + total, mask=added)


def _launch(out: Tensor, node: Tensor, state: Tensor, decoders: Tensor, position: Tensor, row: Tensor,
            value: Tensor) -> None:
    n_pos, n_targets, d_model = state.shape
    n_writes = len(node)
    block_w = min(64, max(16, triton.next_power_of_2(triton.cdiv(n_writes, n_pos))))
    block_b = min(64, max(16, triton.next_power_of_2(n_targets)))
    # Triton's interpreter takes the bits of bfloat16 for integers when it multiplies
    widen = state.dtype != decoders.dtype or (state.dtype == torch.bfloat16 and not state.is_cuda)
    # sizes are bounds known without asking the device: blocks past the last find no position
    n_blocks = n_writes // block_w + min(n_writes, n_pos)
    write_start = torch.searchsorted(position, torch.arange(n_pos + 1, device=position.device))
    block_start = torch.zeros_like(write_start)
    block_start[1:] = ((write_start.diff() + block_w - 1) // block_w).cumsum(0)
    block_position = torch.searchsorted(block_start[1:], torch.arange(n_blocks, device=position.device), right=True)
    _effects_kernel[n_blocks, triton.cdiv(n_targets, block_b)](
        out, node.contiguous(), state, decoders, row.contiguous(), value.contiguous(), write_start, block_start,
        block_position, n_pos, n_targets, *out.stride(), *state.stride(), *decoders.stride(),
        D_MODEL=d_model, BLOCK_W=block_w, BLOCK_B=block_b, BLOCK_D=32, WIDEN=widen, num_warps=4, num_stages=3)
