"""The transposed attention of kernels/attention.py against float64 arithmetic, by both implementations."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.kernels import attention
from circuits.kernels.attention import transposed_attention
from circuits.kernels.choice import jit, tl

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
"""Relative to the largest entry. float32: scores up to about 10 are known to 1e-6 before the exponential. 16 bit: the
pattern's tile and the result are rounded to 8 and 11 bits, half a unit each (4e-3 and 5e-4 together at most)."""


@jit
def _count(out, n):
    counted = 0
    for _ in range(n):
        counted += 1
    tl.store(out, counted)


@functools.cache
def loops_run(device: str) -> bool:
    """Whether loops with bounds known at run time run: in Triton 3.6's interpreter they do not from NumPy 2.4 on."""
    out = torch.zeros(1, dtype=torch.int32, device=device)
    try:
        _count[(1,)](out, 5)
    except Exception as error:
        if "0-dimensional" not in str(error):
            raise
        return False
    return int(out) == 5


@pytest.fixture(autouse=True)
def _needs_loops(request: pytest.FixtureRequest) -> None:
    if "implementation" in request.fixturenames and request.getfixturevalue("implementation") == "triton" and (
            not loops_run(request.getfixturevalue("kernel_device"))):
        pytest.skip("this Triton's interpreter does not run loops with this NumPy: install a newer Triton")


def problem(n_heads: int, n_groups: int, n_pos: int, n_targets: int, head_dim: int, device: str = "cpu",
            dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of a layer: log_norm is the row's true log-sum-exp with some scale, so the pattern is a softmax."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    queries, keys = (2 * normal(n_heads, n_pos, head_dim) / math.sqrt(head_dim)).to(dtype), normal(
        n_groups, n_pos, head_dim).to(dtype)
    scores = queries.float() @ keys.float().repeat_interleave(n_heads // n_groups, 0).transpose(1, 2)
    scores = scores.masked_fill(torch.ones(n_pos, n_pos).triu(1).bool(), -math.inf)
    arguments = {"grad": normal(n_heads, n_pos, n_targets, head_dim).to(dtype), "queries": queries, "keys": keys,
                 "log_norm": scores.logsumexp(2) - 0.3 * normal(n_heads, n_pos), "key_bias": 0.3 * normal(n_pos)}
    return {name: tensor.to(device) for name, tensor in arguments.items()}


def expected(grad: Tensor, queries: Tensor, keys: Tensor, log_norm: Tensor, key_bias: Tensor,
             window: int | None = None) -> Tensor:
    """The definition, with the whole pattern, in float64."""
    n_groups, n_pos = keys.shape[:2]
    keys = keys.double().repeat_interleave(len(grad) // n_groups, 0)
    scores = queries.double() @ keys.transpose(1, 2) - log_norm.double()[:, :, None] + key_bias.double()
    distance = torch.arange(n_pos)[:, None] - torch.arange(n_pos)
    seen = (distance >= 0) & (distance < (window or n_pos))
    pattern = torch.where(seen.to(grad.device), scores.exp(), 0.0)
    return torch.einsum("hqp,hqbk->hpbk", pattern, grad.double()).unflatten(0, (n_groups, -1)).sum(1)


def amid_nan(tensor: Tensor) -> Tensor:
    """The same numbers as a view into a larger tensor of NaN, so that a read past any edge shows."""
    view = tensor.new_full([size + 2 for size in tensor.shape], math.nan)[tuple(slice(1, -1) for _ in tensor.shape)]
    return view.copy_(tensor)


def between_nan(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous, with NaN before and behind them."""
    flat = tensor.new_full((tensor.numel() + 8192,), math.nan)[4096:-4096]
    return flat.copy_(tensor.flatten()).view(tensor.shape)


def assert_close(given: Tensor, wanted: Tensor) -> None:
    tolerance = TOLERANCE[given.dtype] * float(wanted.abs().max())
    torch.testing.assert_close(given.double(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("n_heads", "n_groups", "n_pos", "n_targets", "head_dim", "window"), [
    (3, 1, 70, 2, 12, None),
    (4, 2, 45, 3, 12, 33),
    (3, 3, 33, 5, 16, 1),
    (2, 1, 65, 1, 1, 64),
    (1, 1, 1, 1, 20, None),
    (2, 1, 7, 21, 16, 100),
    (2, 1, 19, 1, 256, 5),
])
def test_equals_the_definition(implementation: str, kernel_device: str, n_heads: int, n_groups: int, n_pos: int,
                               n_targets: int, head_dim: int, window: int | None) -> None:
    arguments = problem(n_heads, n_groups, n_pos, n_targets, head_dim, kernel_device)
    given = transposed_attention(**arguments, window=window)
    assert given.dtype == torch.float32
    assert_close(given, expected(**arguments, window=window))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scores", [None, torch.float32])
def test_16_bit(implementation: str, kernel_device: str, dtype: torch.dtype, scores: torch.dtype | None) -> None:
    arguments = problem(4, 2, 45, 3, 12, kernel_device, dtype)
    for name in ("queries", "keys"):
        arguments[name] = arguments[name].to(scores or dtype)
    given = transposed_attention(**arguments, window=40)
    assert given.dtype == dtype
    assert_close(given, expected(**arguments, window=40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_and_writes_only_what_it_should(implementation: str, kernel_device: str, dtype: torch.dtype) -> None:
    arguments = problem(4, 2, 37, 3, 12, kernel_device, dtype)
    wanted = expected(**arguments, window=9)
    for place in (amid_nan, between_nan):
        out = between_nan(torch.full((2, 37, 3, 12), math.nan, dtype=dtype, device=kernel_device))
        around = out.as_strided((out.numel() + 8192,), (1,), out.storage_offset() - 4096)
        given = transposed_attention(**{name: place(tensor) for name, tensor in arguments.items()}, window=9, out=out)
        assert given is out
        assert_close(out, wanted)
        assert around[:4096].isnan().all()
        assert around[-4096:].isnan().all()


def test_unordered_strides(implementation: str, kernel_device: str) -> None:
    arguments = problem(4, 1, 40, 3, 12, kernel_device)
    wanted = expected(**arguments)
    turned = {name: tensor.permute(*range(tensor.ndim)[::-1]).contiguous().permute(*range(tensor.ndim)[::-1])
              for name, tensor in arguments.items()}
    assert not turned["grad"].is_contiguous()
    assert_close(transposed_attention(**turned), wanted)


def test_unseen_queries_do_not_overflow(implementation: str, kernel_device: str) -> None:
    """A later key may match an earlier query so well that the exponential of their score is infinite."""
    arguments = problem(2, 1, 40, 2, 16, kernel_device)
    arguments["keys"][:, 39] = 1000 * arguments["queries"][0, 3]
    arguments["log_norm"][:, 39] += 1e4
    distant = arguments["queries"][0, 3] @ arguments["keys"][0, 39] - arguments["log_norm"][0, 3]
    assert torch.isinf(distant.exp())
    given = transposed_attention(**arguments, window=20)
    assert given.isfinite().all()
    assert_close(given, expected(**arguments, window=20))


@pytest.mark.parametrize(("n_pos", "n_targets"), [(0, 3), (5, 0), (0, 0)])
def test_empty(implementation: str, kernel_device: str, n_pos: int, n_targets: int) -> None:
    arguments = problem(4, 2, max(n_pos, 1), n_targets, 12, kernel_device)
    if n_pos == 0:
        arguments = {name: tensor.narrow(0 if name == "key_bias" else 1, 0, 0) for name, tensor in arguments.items()}
    assert transposed_attention(**arguments).shape == (2, n_pos, n_targets, 12)


@pytest.mark.parametrize("window", [None, 40, 130])
@pytest.mark.parametrize("contiguous", [True, False])
def test_tiles_of_the_reference(monkeypatch: pytest.MonkeyPatch, window: int | None, contiguous: bool) -> None:
    """Several tiles of keys and several of queries within reach of one, whichever way heads are multiplied."""
    monkeypatch.setenv("CIRCUITS_KERNELS", "reference")
    arguments = problem(4, 2, 301, 2, 12)
    wanted = expected(**arguments, window=window)
    if not contiguous:
        arguments["grad"] = amid_nan(arguments["grad"])
    assert_close(transposed_attention(**arguments, window=window), wanted)
    monkeypatch.setattr(attention, "QUERY_TILE", 50)
    assert_close(transposed_attention(**arguments, window=window), wanted)


def test_addresses_beyond_31_bits(implementation: str, kernel_device: str) -> None:
    """Heads more than 2^30 numbers apart: the third lies past 2^31 of them; most of that memory is never touched."""
    apart = 2**30 + 8
    arguments = problem(3, 1, 5, 2, 12, kernel_device, torch.float16)
    memory = torch.empty(2 * apart + 120, dtype=torch.float16, device=kernel_device)
    far = memory.as_strided((3, 5, 2, 12), (apart, 24, 12, 1))
    for head, there in zip(arguments["grad"], far, strict=True):
        there.copy_(head)
    wanted = expected(**arguments)
    arguments["grad"] = far
    assert_close(transposed_attention(**arguments), wanted)


def cut(tensor: Tensor) -> Tensor:
    return tensor[:, :-1]


@pytest.mark.parametrize(("name", "change", "message"), [
    ("grad", lambda t: t[0], "grad is torch.float32"),
    ("grad", lambda t: t.double(), "grad is torch.float64"),
    ("keys", lambda t: t.expand(3, -1, -1), "divides grad's 4 heads"),
    ("queries", cut, r"queries: .* needs torch.float32 of shape \[4, 5, 12\]"),
    ("keys", lambda t: t.half(), "keys: torch.float16"),
    ("log_norm", cut, "log_norm: "),
    ("key_bias", lambda t: t.half(), "key_bias: torch.float16"),
    ("out", lambda t: t.expand(2, -1, -1, -1), r"out: .*\[2, 5, 3, 12\]"),
    ("out", lambda t: t.transpose(2, 3).contiguous().transpose(2, 3), "out is not contiguous"),
    ("window", lambda _: 0, "window is 0"),
])
def test_refuses(name: str, change: Any, message: str) -> None:
    arguments: dict[str, Any] = problem(4, 1, 5, 3, 12)
    arguments |= {"out": torch.empty(1, 5, 3, 12), "window": 3}
    arguments[name] = change(arguments[name])
    with pytest.raises(InputError, match=message):
        transposed_attention(**arguments)


@pytest.mark.parametrize("window", [None, 5, 130])
@pytest.mark.parametrize("groups", [1, 2])
def test_stored_patterns_mix_as_recomputed_ones(window: int | None, groups: int) -> None:
    """Over several tiles of keys, and for a part of the positions."""
    generator = torch.Generator().manual_seed(3)
    queries, keys = (0.3 * torch.randn(n, 300, 16, generator=generator) for n in (4, groups))
    log_norm, key_bias = torch.randn(4, 300, generator=generator), torch.randn(300, generator=generator)
    patterns = attention.transposed_patterns(queries, keys, log_norm, key_bias, window)
    for n_pos in (1, 127, 300):
        grad = torch.randn(4, n_pos, 3, 16, generator=generator)
        expected = attention.transposed_attention(grad, queries[:, :n_pos], keys[:, :n_pos], log_norm[:, :n_pos],
                                                  key_bias[:n_pos], window)
        out = torch.full_like(expected, torch.nan)
        # sums of hundreds of terms in another order, some of which cancel
        torch.testing.assert_close(attention.mix_stored(grad, patterns, out, window), expected, rtol=0,
                                   atol=3e-6 * float(expected.abs().max()))
