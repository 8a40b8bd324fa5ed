"""Effects of gathered decoder vectors (kernels/edges.py) against float64 arithmetic, by both implementations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.kernels import edges
from circuits.kernels.edges import add_effects

TOLERANCE = 2e-6
"""Relative to the largest effect: float32 sums of up to 100 terms. 16-bit inputs are exact in float32, so they are held
to the same."""


def problem(counts: list[int], n_targets: int, d_model: int, n_decoders: int, device: str = "cpu",
            dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32)) -> dict[str, Tensor]:
    """Arguments with ``counts[p]`` writes at position p; out has some rows that nothing writes to."""
    generator = torch.Generator().manual_seed(len(counts) + n_targets)
    n_writes = sum(counts)
    arguments = {
        "out": torch.randn(n_writes + 3, n_targets, generator=generator),
        "node": torch.randperm(n_writes + 3, generator=generator)[:n_writes],
        "state": torch.randn(len(counts), n_targets, d_model, generator=generator).to(dtypes[0]),
        "decoders": torch.randn(n_decoders, d_model, generator=generator).to(dtypes[1]),
        "position": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long)),
        "row": torch.randint(max(1, n_decoders), (n_writes,), generator=generator),
        "value": torch.rand(n_writes, generator=generator) + 0.5}
    return {name: tensor.to(device) for name, tensor in arguments.items()}


def expected(out: Tensor, node: Tensor, state: Tensor, decoders: Tensor, position: Tensor, row: Tensor,
             value: Tensor) -> Tensor:
    """The definition, write by write, in float64."""
    result = out.double()
    for i in range(len(node)):
        result[node[i]] += value[i].double() * (state[position[i]].double() @ decoders[row[i]].double())
    return result


def amid_nan(tensor: Tensor) -> Tensor:
    """The same numbers as a view into a larger tensor of NaN, so that a read past any edge shows."""
    view = tensor.new_full([size + 2 for size in tensor.shape], math.nan)[tuple(slice(1, -1) for _ in tensor.shape)]
    return view.copy_(tensor)


def assert_adds(arguments: dict[str, Tensor]) -> None:
    wanted = expected(**arguments)
    add_effects(**arguments)
    scale = max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)
    torch.testing.assert_close(arguments["out"].double(), wanted, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize(("counts", "n_targets", "d_model", "n_decoders"), [
    ([3, 0, 5, 1], 7, 20, 4),
    ([0, 0, 2], 17, 33, 5),
    ([1], 1, 1, 1),
    ([70, 0, 0, 37], 5, 48, 9),
    ([0, 16, 17, 0], 65, 12, 1),
    ([1] * 9, 3, 100, 30),
])
def test_equals_the_definition(implementation: str, kernel_device: str, counts: list[int], n_targets: int, d_model: int,
                               n_decoders: int) -> None:
    assert_adds(problem(counts, n_targets, d_model, n_decoders, kernel_device))


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decoders", [torch.float32, torch.bfloat16, torch.float16])
def test_types(implementation: str, kernel_device: str, state: torch.dtype, decoders: torch.dtype) -> None:
    assert_adds(problem([3, 0, 5, 1], 7, 20, 4, kernel_device, (state, decoders)))


def test_reads_and_writes_only_what_it_should(implementation: str, kernel_device: str) -> None:
    arguments = problem([3, 0, 18, 1], 19, 20, 4, kernel_device)
    arguments |= {name: amid_nan(arguments[name]) for name in ("out", "state", "decoders", "value")}
    arguments["state"][1] = math.nan  # no writes there
    around = arguments["out"]._base
    assert around is not None
    assert_adds(arguments)
    assert arguments["out"].isfinite().all()
    assert around.isnan().sum() == around.numel() - arguments["out"].numel()


def test_views_of_larger_weights(implementation: str, kernel_device: str) -> None:
    """One layer's decoders of an (F, S, D) tensor, and states and outputs of some targets of a batch."""
    arguments = problem([4, 2, 0, 6], 6, 24, 5, kernel_device)
    weights = torch.full((5, 3, 24), math.nan, device=kernel_device)
    weights[:, 1] = arguments["decoders"]
    state = torch.full((24, 4, 9), math.nan, device=kernel_device)
    state[:, :, 2:8] = arguments["state"].permute(2, 0, 1)
    arguments |= {"decoders": weights[:, 1], "state": state[:, :, 2:8].permute(1, 2, 0),
                  "out": arguments["out"].T.contiguous().T}
    assert_adds(arguments)


@pytest.mark.parametrize("name", ["writes", "positions", "targets"])
def test_empty(implementation: str, kernel_device: str, name: str) -> None:
    counts = {"writes": [0, 0], "positions": [], "targets": [2, 3]}[name]
    arguments = problem(counts, 0 if name == "targets" else 4, 12, 0 if name == "writes" else 3, kernel_device)
    before = arguments["out"].clone()
    add_effects(**arguments)
    assert torch.equal(arguments["out"], before)


@pytest.mark.parametrize("gathered", [1, 60, 100])
def test_pieces_of_the_reference(monkeypatch: pytest.MonkeyPatch, gathered: int) -> None:
    """Pieces that end inside positions, between them, and after every write."""
    monkeypatch.setenv("CIRCUITS_KERNELS", "reference")
    monkeypatch.setattr(edges, "GATHERED", gathered)
    assert_adds(problem([3, 0, 5, 1, 12, 0], 7, 20, 4))


def test_addresses_beyond_31_bits(implementation: str, kernel_device: str) -> None:
    """Decoder vectors more than 2^30 numbers apart: the third lies past 2^31 of them; most of that memory is never
    touched."""
    apart = 2**30 + 8
    arguments = problem([2, 3], 3, 20, 3, kernel_device, (torch.float32, torch.bfloat16))
    arguments["row"] = torch.tensor([2, 0, 1, 2, 2], device=kernel_device)
    memory = torch.empty(2 * apart + 20, dtype=torch.bfloat16, device=kernel_device)
    far = memory.as_strided((3, 20), (apart, 1))
    for vector, there in zip(arguments["decoders"], far, strict=True):
        there.copy_(vector)
    arguments["decoders"] = far
    assert_adds(arguments)


@pytest.mark.parametrize(("name", "change", "message"), [
    ("state", lambda t: t[0], "state: .* of shape .* expected .*targets"),
    ("decoders", lambda t: t.double(), "decoders: torch.float64"),
    ("decoders", lambda t: t[:, 1:], "decoders are 11 wide, state is 12"),
    ("out", lambda t: t[:, 1:], "out: .* 4 targets"),
    ("out", lambda t: t.half(), "out: torch.float16"),
    ("value", lambda t: t[1:], "value: .* 5 writes"),
    ("row", lambda t: t.int(), "row: torch.int32"),
    ("row", lambda t: t + 3, "row has values from .* expected 0 to 2"),
    ("node", lambda t: t - 9, "node has values from -"),
    ("position", lambda t: t + 1, "position has values from 1 to 2: expected 0 to 1"),
    ("position", lambda t: t.flip(0), "sort the writes by position"),
])
def test_refuses(name: str, change: Any, message: str) -> None:
    arguments = problem([2, 3], 4, 12, 3)
    arguments[name] = change(arguments[name])
    with pytest.raises(InputError, match=message):
        add_effects(**arguments)
