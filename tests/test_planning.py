"""What a trace holds at once, for the memory there is."""

import psutil
import pytest
import torch

from circuits import planning
from circuits.errors import InputError
from circuits.planning import Size, out_of_memory, parse_memory, plan

CPU = torch.device("cpu")
GIB = 2**30


def size(n_positions: int = 70, n_sources: int = 14_000, n_rows: int = 12_500, has_skip: bool = False) -> Size:
    """Of Gemma 3 270M."""
    return Size(n_positions, n_sources, n_rows, n_layers=18, d_model=640, n_heads=4, n_kv_heads=1, head_dim=256,
                has_skip=has_skip)


@pytest.fixture(autouse=True)
def used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "used_memory", lambda device: GIB)


def test_enough_memory_takes_the_fastest_sizes() -> None:
    made = plan(size(), CPU, memory=20 * GIB)
    assert made.rows_at_once == planning.ROWS_AT_ONCE["cpu"]
    assert made.row_mass == 1
    assert made.resident
    assert made.bytes < 2 * GIB
    assert plan(size(n_positions=1024), CPU, memory=20 * GIB).rows_at_once == 4 * made.rows_at_once


def test_the_plan_stays_within_the_memory() -> None:
    last = 0
    for memory in (1.9, 2.0, 3.0, 20.0):
        made = plan(size(), CPU, memory=int(memory * GIB))
        assert made.bytes <= (memory - 1) * GIB
        assert made.rows_at_once >= max(70, last)
        last = made.rows_at_once


def test_weights_are_given_up_before_targets_are() -> None:
    wide = Size(20, 1000, 500, n_layers=62, d_model=5376, n_heads=32, n_kv_heads=16, head_dim=128, has_skip=True)
    assert plan(wide, CPU, memory=64 * GIB).resident
    small = plan(wide, CPU, memory=3 * GIB)
    assert not small.resident
    assert small.bytes <= 2 * GIB
    assert not plan(wide, CPU, memory=64 * GIB, gathered=True).resident


def test_many_edges_are_cut() -> None:
    long = size(n_positions=1024, n_sources=220_000, n_rows=5_000)
    assert plan(long, CPU, memory=20 * GIB).row_mass == planning.ROW_MASS
    assert plan(long, CPU, memory=20 * GIB, row_mass=1.0).row_mass == 1


def test_a_certificate_is_not_lost_to_cut_rows() -> None:
    """140 tokens: more possible edges than a long prompt keeps, but they fit."""
    middle = size(n_positions=140, n_sources=28_000, n_rows=25_000)
    assert plan(middle, CPU, memory=20 * GIB).row_mass == 1
    assert plan(middle, CPU, memory=4 * GIB).row_mass == planning.ROW_MASS


def test_targets_at_once_are_a_limit() -> None:
    assert plan(size(n_positions=9), CPU, memory=20 * GIB, targets=3).targets_at_once == 3


def test_too_little_memory_is_one_clear_error() -> None:
    with pytest.raises(InputError, match="give more with --memory, or fewer rows with --max-features"):
        plan(size(), CPU, memory=GIB + GIB // 4)
    with pytest.raises(InputError, match="are left for the rows of 70 tokens"):
        plan(size(), CPU, memory=GIB // 2)


def test_free_memory_respects_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_container_limit", lambda: 3 * GIB)
    assert planning.free_memory(CPU) == int(0.9 * min(2 * GIB, psutil.virtual_memory().available))


@pytest.mark.parametrize(("text", "expected"), [
    ("6GiB", 6 * GIB), ("500 MB", 500 * 10**6), ("8e9", 8 * 10**9), ("1.5g", 15 * 10**8), ("2 tib", 2 * 2**40),
    ("1000", 1000)])
def test_sizes(text: str, expected: int) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-3GB", "0", "6 apples", "nan"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError, match="expected a size such as 6GiB"):
        parse_memory(text)


def test_what_a_lack_of_memory_is() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"))
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(1 << 60)
    assert out_of_memory(caught.value)
