"""Compaction against float64 sums over the dense rows. Sums of N float32 numbers in float64 are within N * 2^-53 of
each other in any order, relative to the sum of magnitudes: 1e-12 is far above that for every N here."""

import numpy as np
import pytest
import torch

from circuits.errors import InputError
from circuits.kernels.compact import CompactRows, compact

ORDER = 1e-12
COARSER = 1 + 2**-7  # two magnitudes of one key, 7 bits of mantissa
KEEPS = [1.0, 0.9, 1e-6]


def random_edges(n_sources: int, n_targets: int, seed: int = 0) -> torch.Tensor:
    """Heavy-tailed edges, half of them zero, as a view whose surroundings are NaN."""
    generator = torch.Generator().manual_seed(seed + n_sources)
    edges = torch.randn(n_sources, n_targets, generator=generator) * torch.randn(
        n_sources, n_targets, generator=generator).mul(2).exp()
    edges[torch.rand(n_sources, n_targets, generator=generator) < 0.5] = 0
    padded = torch.full((n_sources + 2, n_targets + 5), float("nan"))
    padded[1:-1, 2:-3] = edges
    return padded[1:-1, 2:-3]


def on(device: str, edges: torch.Tensor) -> torch.Tensor:
    """A view of the same strides there, its surroundings still NaN."""
    base = torch.full((len(edges) + 2, edges.stride(0)), float("nan"), device=device)
    view = base[1:-1, 2:2 + edges.shape[1]]
    return view.copy_(edges)


def dense_rows(rows: CompactRows, n_sources: int) -> np.ndarray:
    """(B, N) float64 what was stored, NaN where nothing was."""
    indptr = rows.indptr.cpu().numpy()
    dense = np.full((len(indptr) - 1, n_sources), np.nan)
    for row, start, end in zip(dense, indptr, indptr[1:], strict=False):
        row[rows.indices[start:end].cpu().numpy()] = rows.weights[start:end].cpu().numpy()
    return dense


def check(rows: CompactRows, edges: torch.Tensor, keep: float, first_constant: int) -> None:
    """Everything that holds for finite edges."""
    n_sources, n_targets = edges.shape
    expected = edges.T.double().numpy()
    size = np.abs(expected)
    fields = (rows.indptr, rows.indices, rows.weights, rows.total, rows.magnitude, rows.magnitude_all, rows.dropped)
    assert [t.dtype for t in fields] == [torch.int64, torch.int32, torch.float32] + [torch.float64] * 4
    indptr, indices = rows.indptr.tolist(), rows.indices.cpu().numpy()
    assert len(indptr) == n_targets + 1
    assert indptr[0] == 0
    assert indptr[-1] == len(indices) == len(rows.weights)
    stored = dense_rows(rows, n_sources)
    assert bool((rows.weights != 0).all())
    sums = {"total": expected, "magnitude": size[:, :first_constant], "magnitude_all": size,
            "dropped": np.where(np.isnan(stored), size, 0)}
    for name, terms in sums.items():
        np.testing.assert_allclose(getattr(rows, name).cpu(), terms.sum(1), rtol=ORDER,
                                   atol=ORDER * size.sum(1).max(initial=0), err_msg=name)
    for b in range(n_targets):
        assert bool((np.diff(indices[indptr[b]:indptr[b + 1]]) > 0).all())
        kept = ~np.isnan(stored[b])
        assert np.array_equal(stored[b][kept], expected[b][kept])
        assert np.array_equal(kept[first_constant:], expected[b, first_constant:] != 0)
        row, kept = size[b, :first_constant], kept[:first_constant]
        if keep == 1:
            assert np.array_equal(kept, row != 0)
            continue
        assert row[kept].sum() >= keep * row.sum() * (1 - ORDER)
        if kept.any():
            smallest = row[kept].min()
            assert row[~kept].max(initial=0) < smallest  # ties share their fate
            # without what lies within the coarseness of the smallest kept entry, too little would be kept
            assert row[row >= smallest * COARSER].sum() < keep * row.sum() * (1 + ORDER)
        assert kept.any() == row.any()


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(("n_sources", "n_targets", "n_constants"), [
    (1, 1, 0), (1, 1, 1), (5, 3, 5), (37, 2, 4), (141, 70, 18), (1100, 5, 18), (9001, 1, 0)])
def test_compact_keeps_enough_and_no_more(implementation, kernel_device, n_sources, n_targets, n_constants, keep):
    edges = random_edges(n_sources, n_targets)
    first_constant = n_sources - n_constants
    check(compact(on(kernel_device, edges), keep, first_constant), edges, keep, first_constant)


@pytest.mark.parametrize("keep", [1.0, 0.7])
def test_any_strides(implementation, kernel_device, keep):
    edges = random_edges(130, 19)
    transposed = edges.T.contiguous().to(kernel_device).T
    check(compact(transposed, keep, 125), edges, keep, 125)
    check(compact(on(kernel_device, edges)[::3, 1::2], keep, 40), edges[::3, 1::2], keep, 40)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0, 0)])
def test_no_sources_or_no_targets(implementation, kernel_device, shape, keep):
    rows = compact(torch.ones(shape, device=kernel_device), keep, shape[0])
    assert rows.indptr.tolist() == [0] * (shape[1] + 1)
    assert rows.indices.shape == rows.weights.shape == (0,)
    assert rows.total.tolist() == rows.magnitude_all.tolist() == rows.dropped.tolist() == [0.0] * shape[1]


@pytest.mark.parametrize("keep", KEEPS)
def test_zeros_of_either_sign_are_not_stored(implementation, kernel_device, keep):
    edges = torch.zeros(40, 3)
    edges[::2] = -0.0
    edges[7, 1] = -2.5  # the only entry of its row
    edges[39, 2] = 4.0  # only a constant
    rows = compact(edges.to(kernel_device), keep, 38)
    check(rows, edges, keep, 38)
    assert rows.indptr.tolist() == [0, 0, 1, 2]
    assert rows.indices.tolist() == [7, 39]
    assert rows.weights.tolist() == [-2.5, 4.0]
    assert rows.magnitude.tolist() == [0.0, 2.5, 0.0]
    assert rows.magnitude_all.tolist() == [0.0, 2.5, 4.0]
    assert rows.total.tolist() == [0.0, -2.5, 4.0]


def test_equal_magnitudes_stay_together_and_a_tiny_share_keeps_the_largest(implementation, kernel_device):
    edges = torch.full((50, 3), 1.0)
    edges[::2, 0] = -1.0  # all equal but for the sign
    edges[:, 1] = torch.arange(1, 51)
    edges[10:13, 2] = torch.tensor([8.0, -8.0, 8.0])
    kept = compact(edges.to(kernel_device), 1e-6, 50)
    check(kept, edges, 1e-6, 50)
    assert kept.indptr.tolist() == [0, 50, 51, 54]
    assert kept.indices[50:].tolist() == [49, 10, 11, 12]
    assert kept.dropped.tolist() == [0.0, 49 * 50 / 2, 47.0]


def test_the_cut_is_exact_where_keys_differ(implementation, kernel_device):
    edges = torch.tensor([[8.0], [-4.0], [2.0], [1.0], [1.0], [100.0]], device=kernel_device)
    for keep, sources in ((0.5, [0]), (0.51, [0, 1]), (0.875, [0, 1, 2]), (0.9, [0, 1, 2, 3, 4])):
        rows = compact(edges, keep, 5)
        assert rows.indices.tolist() == [*sources, 5], keep
        assert rows.dropped.tolist() == [16.0 - edges[sources, 0].abs().sum().item()]


@pytest.mark.parametrize("keep", [1.0, 0.9, 1e-6])
@pytest.mark.parametrize("damage", [float("nan"), float("inf"), float("-inf")])
def test_damage_is_never_lost(implementation, kernel_device, keep, damage):
    """A damaged row is kept whole, and its sums show the damage; a damaged constant does not move the cut."""
    edges = random_edges(60, 3).clone()
    sound = edges.clone()
    edges[20, 0], edges[58, 1] = damage, damage
    rows = compact(edges.to(kernel_device), keep, 55)
    stored = dense_rows(rows, 60)
    indptr = rows.indptr.tolist()
    assert rows.indices[indptr[0]:indptr[1]].tolist() == edges[:, 0].nonzero().flatten().tolist()
    assert 58 in rows.indices[indptr[1]:indptr[2]].tolist()
    assert np.array_equal(stored[0, 20], damage, equal_nan=True)
    assert np.array_equal(stored[1, 58], damage, equal_nan=True)
    assert rows.total.isfinite().tolist() == rows.magnitude_all.isfinite().tolist() == [False, False, True]
    assert rows.magnitude.isfinite().tolist() == [False, True, True]
    assert rows.dropped[0].item() == 0
    untouched = dense_rows(compact(sound.to(kernel_device), keep, 55), 60)
    assert np.array_equal(stored[1:, :55], untouched[1:, :55], equal_nan=True)


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_extreme_magnitudes(implementation, kernel_device, keep):
    """Numbers too small for float32's full mantissa are numbers too, and the sum of large ones does not overflow."""
    edges = torch.tensor([[1e-45, 3e38, 1e-45], [-1e-45, -3e38, 2e38], [0.0, 3e38, 0.0], [1e-44, 3e38, 1e-30]])
    rows = compact(edges.to(kernel_device), keep, 4)
    expected = edges.double()
    assert torch.equal(rows.magnitude.cpu(), expected.abs().sum(0))
    assert torch.equal(rows.total.cpu(), expected.sum(0))
    stored = dense_rows(rows, 4).T
    assert np.array_equal(np.isnan(stored[:, 1]), [False] * 4)
    assert not np.isnan(stored[1, 2])
    assert not np.isnan(stored[3, 0])
    dropped = np.where(np.isnan(stored), expected.abs().numpy(), 0).sum(0)
    assert np.array_equal(rows.dropped.cpu().numpy(), dropped)
    if keep == 1:
        assert rows.indices.numel() == int((edges != 0).sum())


def test_two_runs_agree_to_the_bit(implementation, kernel_device):
    edges = on(kernel_device, random_edges(700, 20))
    first, second = compact(edges, 0.9, 690), compact(edges, 0.9, 690)
    for name in CompactRows.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_offsets_beyond_32_bits(implementation, kernel_device):
    """Rows of the block that lie 2^30 elements apart, over memory of which only a few pages are touched."""
    far = (1 << 30) + 5
    try:
        memory = torch.empty(2 * far + 8, device=kernel_device)  # 8 GiB, not resident on the CPU
    except RuntimeError:
        pytest.skip("8 GiB of address space are not to be had")
    edges = memory.as_strided((3, 4), (far, 1))
    values = torch.tensor([[1.0, 0, 3, 4], [0, 6, 7, 8], [9, -10, 0, 12]])
    edges.copy_(values)
    check(compact(edges, 1.0, 2), values, 1.0, 2)
    check(compact(edges, 0.6, 3), values, 0.6, 3)


@pytest.mark.parametrize(("edges", "keep", "first_constant", "message"), [
    (torch.ones(3), 1.0, 0, r"edges are torch.float32 of shape \[3\]: expected \(sources, targets\)"),
    (torch.ones(3, 2).double(), 1.0, 0, "edges are torch.float64"),
    (torch.ones(1).expand(1 << 31, 1), 1.0, 0, "fewer than 2\\^31 sources"),
    (torch.ones(3, 2), 0.0, 0, "keep is 0.0, expected a share above 0 and up to 1"),
    (torch.ones(3, 2), 1.1, 0, "keep is 1.1"),
    (torch.ones(3, 2), float("nan"), 0, "keep is nan"),
    (torch.ones(3, 2), 1.0, 4, "first_constant is 4, expected 0 to 3"),
    (torch.ones(3, 2), 1.0, -1, "first_constant is -1"),
])
def test_arguments_that_do_not_fit(edges, keep, first_constant, message):
    with pytest.raises(InputError, match=message):
        compact(edges, keep, first_constant)
