"""The operations of circuits.kernels as the benchmark sees them: inputs, a float64 oracle, bytes and products.

Shapes: P positions, F features, D d_model, H query heads, G groups, K head_dim, B targets, N writes, S sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.kernels.attention import transposed_attention
from circuits.kernels.compact import compact
from circuits.kernels.edges import add_effects
from circuits.kernels.encode import encode

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Relative Frobenius error: sums of up to a few thousand products in float32; results rounded to 8 or 11 bits."""
MARGIN = 6
"""Rows and columns of NaN on every side of a written buffer."""


@dataclass(frozen=True)
class Sizes:
    positions: int
    features: int
    d_model: int
    heads: int
    groups: int
    head_dim: int
    targets: int
    writes: int
    sources: int


@dataclass(frozen=True)
class Case:
    """One operation on one set of inputs."""

    name: str
    run: Callable[[], object]
    check: Callable[[], float]
    """Relative error against float64; NaN or infinity where something is wrong in kind."""
    limit: float
    bytes: float
    flops: float


def encode_case(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> Case:
    """A layer's encoder at a threshold that about 10 features per position pass, away from every pre-activation."""
    randn = _generator(seed, device)
    x, w_enc = randn(sizes.positions, sizes.d_model).to(dtype), randn(sizes.features, sizes.d_model).to(dtype)
    b_enc = randn(sizes.features)
    pre = x.double() @ w_enc.double().T + b_enc.double()
    cut = pre.flatten().topk(10 * sizes.positions).values[-1]
    threshold = torch.full_like(b_enc, float(cut))
    near = (pre - cut).abs() < 1e-4 * pre.abs().max()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        return encode(x, w_enc, b_enc, threshold)

    def check() -> float:
        position, feature, value = run()
        dense = torch.zeros_like(pre)
        dense[position, feature] = value.double()
        order = position * sizes.features + feature
        if not bool((order.diff() > 0).all()):
            return float("inf")
        # near the threshold rounding may decide either way
        expected = torch.where(near, dense, torch.where(pre > cut, pre, 0.0))
        return _error(dense, expected)

    active = 10 * sizes.positions
    return Case("encode", run, check, 1e-4, x.nbytes + w_enc.nbytes + 12 * active,
                2.0 * sizes.positions * sizes.features * sizes.d_model)


def effects_case(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> Case:
    """A layer's writes contracted with gradients; decoder vectors repeat."""
    randn = _generator(seed + 1, device)
    distinct = max(1, sizes.writes // 2)
    state = randn(sizes.positions, sizes.targets, sizes.d_model).to(dtype)
    decoders, value = randn(distinct, sizes.d_model).to(dtype), randn(sizes.writes).abs()
    position = _integers(sizes.positions, sizes.writes, seed, device).sort().values
    row = _integers(distinct, sizes.writes, seed + 1, device)
    node = torch.randperm(sizes.sources, generator=torch.Generator().manual_seed(seed))[:sizes.writes].to(device)

    def run_into(out: Tensor) -> None:
        add_effects(out, node, state, decoders, position, row, value)

    scratch = torch.zeros(sizes.sources, sizes.targets, device=device)

    def check() -> float:
        out, padded = _padded(sizes.sources, sizes.targets, device)
        out.zero_()
        run_into(out)
        expected = torch.zeros(sizes.sources, sizes.targets, dtype=torch.float64, device=device)
        for first in range(0, sizes.writes, 1024):
            part = slice(first, first + 1024)
            expected[node[part]] = value[part, None].double() * torch.einsum(
                "nbd,nd->nb", state[position[part]].double(), decoders[row[part]].double())
        return _error(out.double(), expected) if padded() else float("inf")

    moved = state.nbytes + sizes.writes * sizes.d_model * decoders.itemsize + 8.0 * sizes.writes * sizes.targets
    # inputs are rounded before both sides: only sums differ, whatever the dtype
    return Case("add_effects", lambda: run_into(scratch), check, 1e-4, moved,
                2.0 * sizes.writes * sizes.targets * sizes.d_model)


def attention_case(window: int | None) -> Callable[[Sizes, torch.dtype, torch.device, int], Case]:
    """Of a global layer, or of one with a window."""
    def case(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> Case:
        randn = _generator(seed + 2, device)
        heads, groups, n_pos, head_dim = sizes.heads, sizes.groups, sizes.positions, sizes.head_dim
        reach = n_pos if window is None else min(max(1, n_pos // 2), window)
        grad = randn(heads, n_pos, sizes.targets, head_dim).to(dtype)
        queries, keys = randn(heads, n_pos, head_dim) / head_dim ** 0.5, randn(groups, n_pos, head_dim)
        bias = 0.1 * randn(n_pos)
        distance = torch.arange(n_pos, device=device)[:, None] - torch.arange(n_pos, device=device)
        hidden = (distance < 0) | (distance >= reach)

        def scores(head: int) -> Tensor:
            return (queries[head].double() @ keys[head // (heads // groups)].double().T).masked_fill(hidden, -torch.inf)

        log_norm = torch.stack([scores(head).logsumexp(-1) for head in range(heads)]).float()

        def run() -> Tensor:
            return transposed_attention(grad, queries, keys, log_norm, bias, None if window is None else reach)

        def check() -> float:
            out = torch.full((groups, n_pos, sizes.targets, head_dim), torch.nan, dtype=dtype, device=device)
            transposed_attention(grad, queries, keys, log_norm, bias, None if window is None else reach, out=out)
            expected = torch.zeros(out.shape, dtype=torch.float64, device=device)
            for head in range(heads):
                pattern = (scores(head) - log_norm[head, :, None].double() + bias.double()).exp()
                mixed = pattern.T @ grad[head].double().flatten(1)
                expected[head // (heads // groups)] += mixed.view(n_pos, sizes.targets, head_dim)
            return _error(out.double(), expected)

        pairs = float((~hidden).sum())
        return Case("attention" if window is None else f"attention, window {reach}", run, check, LIMITS[dtype],
                    grad.nbytes * (1 + groups / heads) + queries.nbytes + keys.nbytes,
                    2.0 * heads * pairs * head_dim * (sizes.targets + 1))
    return case


def compact_case(keep: float) -> Callable[[Sizes, torch.dtype, torch.device, int], Case]:
    """Rows with heavy tails and a fifth of zeros; everything kept, or a share of each row's mass."""
    def case(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> Case:
        randn = _generator(seed + 3, device)
        dense = randn(sizes.sources, sizes.targets) ** 3
        dense[randn(sizes.sources, sizes.targets) < -0.84] = 0
        constants = sizes.sources - sizes.sources // 50

        def check() -> float:
            found = compact(dense, keep, constants)
            exact = dense.double().T.cpu()
            size = exact.abs()
            kept = torch.zeros_like(exact)
            lengths = found.indptr.cpu().diff()
            rows = torch.repeat_interleave(torch.arange(sizes.targets), lengths)
            kept[rows, found.indices.cpu().long()] = found.weights.cpu().double()
            if bool(((kept != 0) & (kept != exact)).any()) or not bool((found.weights != 0).all()):
                return float("inf")
            mass = size[:, :constants].sum(1)
            if bool((kept[:, :constants].abs().sum(1) < keep * mass * (1 - 1e-9)).any()):
                return float("inf")
            expected = torch.cat([exact.sum(1), mass, size.sum(1), (size - kept.abs()).sum(1)])
            sums = torch.cat([found.total, found.magnitude, found.magnitude_all, found.dropped]).cpu()
            return _error(sums.double(), expected)

        entries = float((dense != 0).sum()) * keep
        return Case(f"compact, keep {keep:g}", lambda: compact(dense, keep, constants), check, 1e-6,
                    dense.nbytes + 8 * entries, 0.0)
    return case


CASES = (encode_case, effects_case, attention_case(None), attention_case(512))
FLOAT32_CASES = (compact_case(1.0), compact_case(0.9))
"""Of operations that take nothing else."""


def _generator(seed: int, device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(*size, generator=generator).to(device)


def _integers(below: int, count: int, seed: int, device: torch.device) -> Tensor:
    return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed)).to(device)


def _padded(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Callable[[], bool]]:
    """A (rows, columns) view into a larger buffer of NaN, and whether what surrounds it is still NaN."""
    pad = MARGIN
    whole = torch.full((rows + 2 * pad, columns + 2 * pad), torch.nan, device=device)
    inside = whole[pad:pad + rows, pad:pad + columns]

    def untouched() -> bool:
        edge = torch.ones_like(whole, dtype=torch.bool)
        edge[pad:pad + rows, pad:pad + columns] = False
        return bool(whole[edge].isnan().all())

    return inside, untouched


def _error(found: Tensor, expected: Tensor) -> float:
    """Relative Frobenius norm of the difference."""
    return float((found - expected).norm() / expected.norm())
