"""Encoder kernels against a float64 product. Inputs are small integers, whose products and sums every dtype and every
order of summation gives exactly, so that results must be equal; where they are not integers a tolerance says why."""

import pytest
import torch

from circuits.errors import InputError
from circuits.kernels import encode as module
from circuits.kernels.encode import encode

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inside_nan(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor as a view into a larger one full of NaN, with gaps in every dimension."""
    padded = torch.full([2 * size + 3 for size in tensor.shape], float("nan"), dtype=tensor.dtype, device=device)
    view = padded[tuple(slice(1, 1 + 2 * size, 2) for size in tensor.shape)]
    view.copy_(tensor)
    return view


def integers(*shape: int, low: int = -3, high: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def oracle(x, w_enc, b_enc, threshold):
    pre = x.double().cpu() @ w_enc.double().cpu().T + b_enc.double().cpu()
    active = pre > 0 if threshold is None else (pre > threshold.double().cpu()) & (pre != 0)
    position, feature = (active | ~pre.isfinite()).nonzero(as_tuple=True)
    return position, feature, pre[position, feature].float()


def check_equal(found, expected):
    for name, got, wanted in zip(("position", "feature", "value"), found, expected, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_pos", "n_features", "d_model"), [(1, 1, 1), (3, 70, 35), (67, 67, 66)])
def test_encode_equals_a_float64_product(implementation, kernel_device, n_pos, n_features, d_model, dtype, jump):
    x = inside_nan(integers(n_pos, d_model).to(dtype), kernel_device)
    w_enc = inside_nan(integers(n_features, d_model, low=-2, high=2).to(dtype), kernel_device)
    b_enc = inside_nan(integers(n_features).float(), kernel_device)
    threshold = inside_nan(integers(n_features, low=-2, high=9).float(), kernel_device) if jump else None
    expected = oracle(x, w_enc, b_enc, threshold)
    check_equal(encode(x, w_enc, b_enc, threshold), expected)
    stored = inside_nan(w_enc.T.cpu(), kernel_device)  # as (D, F), Google's order
    check_equal(encode(x, stored.T, b_enc, threshold), expected)
    if dtype != torch.float32:
        check_equal(encode(x, w_enc.float(), b_enc, threshold), expected)


def test_real_numbers_agree_to_the_rounding_of_float32_sums(implementation, kernel_device):
    generator = torch.Generator().manual_seed(1)
    x, w_enc = torch.randn(19, 130, generator=generator), torch.randn(90, 130, generator=generator)
    b_enc, threshold = torch.randn(90, generator=generator), torch.rand(90, generator=generator) + 0.5
    pre = x.double() @ w_enc.double().T + b_enc.double()
    # 130 products of size about 1: float32 sums in any order are within 130 * 2^-24 * sum |x w|, about 1e-3
    bound = 130 * 2**-24 * (x.double().abs() @ w_enc.double().abs().T + b_enc.abs())
    assert bool(((pre - threshold).abs() > bound).all()), "choose a seed that leaves no pre-activation at its threshold"
    position, feature, value = encode(*(t.to(kernel_device) for t in (x, w_enc, b_enc, threshold)))
    assert torch.equal(torch.stack([position, feature], 1).cpu(), (pre > threshold).nonzero())
    index = position.cpu(), feature.cpu()
    assert bool(((value.cpu() - pre[index]).abs() <= bound[index]).all())


@pytest.mark.parametrize(("n_pos", "n_features"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_encode(implementation, kernel_device, n_pos, n_features):
    found = encode(torch.ones(n_pos, 4, device=kernel_device), torch.ones(n_features, 4, device=kernel_device),
                   torch.ones(n_features, device=kernel_device), None)
    assert [t.dtype for t in found] == [torch.int64, torch.int64, torch.float32]
    assert [t.shape for t in found] == [(0,)] * 3


def test_nothing_active_and_everything_active(implementation, kernel_device):
    x, w_enc = torch.ones(5, 3, device=kernel_device), torch.ones(200, 3, device=kernel_device)
    bias = torch.zeros(200, device=kernel_device)
    assert encode(x, w_enc, bias, bias + 3)[0].numel() == 0  # at its threshold a feature is not active
    position, feature, value = encode(x, w_enc, bias, bias + 2.5)
    assert position.tolist() == [p for p in range(5) for _ in range(200)]
    assert feature.tolist() == list(range(200)) * 5
    assert value.unique().tolist() == [3.0]


def test_a_zero_is_never_active(implementation, kernel_device):
    bias = torch.tensor([0.0, -0.0, -1.0, 1.0], device=kernel_device)
    threshold = torch.full((4,), -2.0, device=kernel_device)
    _, feature, value = encode(torch.ones(1, 2, device=kernel_device), torch.zeros(4, 2, device=kernel_device), bias,
                               threshold)
    assert feature.tolist() == [2, 3]
    assert value.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("jump", [True, False])
def test_what_is_not_finite_comes_out_as_it_is(implementation, kernel_device, jump):
    x, w_enc = integers(20, 40).float(), integers(70, 40).float()
    w_enc[3, 5], w_enc[66, 2] = float("nan"), float("inf")
    b_enc = torch.zeros(70)
    b_enc[11], b_enc[12] = float("-inf"), float("inf")
    threshold = torch.full((70,), 5.0) if jump else None
    if threshold is not None:
        threshold[12] = float("inf")
    expected = oracle(x, w_enc, b_enc, threshold)
    assert int((~expected[2].isfinite()).sum()) == 4 * 20
    check_equal(encode(*(None if t is None else t.to(kernel_device) for t in (x, w_enc, b_enc, threshold))), expected)


def test_damaged_inputs_are_seen_at_every_feature_of_their_position(implementation, kernel_device):
    x = torch.zeros(4, 8)
    x[2, 7] = float("nan")
    position, feature, value = encode(x.to(kernel_device), torch.ones(66, 8, device=kernel_device),
                                      torch.zeros(66, device=kernel_device), None)
    assert position.tolist() == [2] * 66
    assert feature.tolist() == list(range(66))
    assert bool(value.isnan().all())


def test_tiles_do_not_show(monkeypatch, kernel_device):
    """The reference in tiles smaller than either dimension: same entries, same order, no larger tile."""
    monkeypatch.setenv("CIRCUITS_KERNELS", "reference")
    monkeypatch.setattr(module, "MAX_TILE", 40)
    monkeypatch.setattr(module, "CACHED_TILE", 30)
    x, w_enc, b_enc = integers(37, 9).float(), integers(53, 9).bfloat16().float(), integers(53).float()
    tiles = []
    real = torch.addmm

    def recorded(*arguments):
        tiles.append(real(*arguments))
        return tiles[-1]

    monkeypatch.setattr(torch, "addmm", recorded)
    check_equal(encode(*(t.to(kernel_device) for t in (x, w_enc, b_enc)), None), oracle(x, w_enc, b_enc, None))
    assert max(tile.numel() for tile in tiles) <= 30
    assert sum(tile.numel() for tile in tiles) == 37 * 53


def test_more_active_than_the_kernel_had_room_for(monkeypatch, kernel_device):
    pytest.importorskip("triton")
    monkeypatch.setenv("CIRCUITS_KERNELS", "triton")
    monkeypatch.setattr(module, "ACTIVE_PER_POSITION", 1)
    launches = []
    real = module._encode_kernel

    class Recorded:
        def __getitem__(self, grid):
            launches.append(grid)
            return real[grid]

    monkeypatch.setattr(module, "_encode_kernel", Recorded())
    x, w_enc, b_enc = integers(18, 9).float(), integers(90, 9).float(), integers(90).float()
    check_equal(encode(*(t.to(kernel_device) for t in (x, w_enc, b_enc)), None), oracle(x, w_enc, b_enc, None))
    assert len(launches) == 2


def test_offsets_beyond_32_bits(implementation, kernel_device):
    """Strides that reach past 2^31 elements, over memory of which only a few pages are touched."""
    far = (1 << 30) + 3
    try:
        memory = torch.empty(2 * far + 200, dtype=torch.float16, device=kernel_device)  # 4 GiB, not resident on the CPU
    except RuntimeError:
        pytest.skip("4 GiB of address space are not to be had")
    w_stored = memory[:2 * far + 70].as_strided((3, 70), (far, 1))  # (D, F)
    x = memory.as_strided((3, 3), (far, 1), 100)
    values_x, values_w = integers(3, 3).half(), integers(3, 70).half()
    x.copy_(values_x)
    w_stored.copy_(values_w)
    bias = torch.zeros(70, device=kernel_device)
    check_equal(encode(x, w_stored.T, bias, None), oracle(values_x, values_w.T, bias, None))


def test_gradients_do_not_flow(implementation, kernel_device):
    weight = torch.ones(3, 2, device=kernel_device, requires_grad=True)
    _, _, value = encode(torch.ones(1, 2, device=kernel_device), weight, torch.zeros(3, device=kernel_device), None)
    assert not value.requires_grad


GOOD = {"x": torch.ones(2, 3), "w_enc": torch.ones(4, 3), "b_enc": torch.ones(4), "threshold": torch.ones(4)}


@pytest.mark.parametrize(("wrong", "message"), [
    ({"x": torch.ones(3)}, r"x is torch.float32 of shape \[3\]: expected \(positions, d_model\)"),
    ({"x": torch.ones(2, 3).double()}, "x is torch.float64"),
    ({"w_enc": torch.ones(3, 4)}, r"w_enc has shape \[3, 4\], expected \(features, 3\)"),
    ({"w_enc": torch.ones(4, 3).half()}, "w_enc is torch.float16, expected torch.float32, the dtype of x"),
    ({"b_enc": torch.ones(5)}, r"b_enc is torch.float32 of shape \[5\], expected torch.float32 of \[4\]"),
    ({"b_enc": torch.ones(4).half()}, "b_enc is torch.float16"),
    ({"threshold": torch.ones(4, 1)}, r"threshold is torch.float32 of shape \[4, 1\]"),
    ({"threshold": torch.ones(4, device="meta")}, "threshold is on meta, x on cpu"),
])
def test_arguments_that_do_not_fit(wrong, message):
    with pytest.raises(InputError, match=message):
        encode(**{**GOOD, **wrong})
