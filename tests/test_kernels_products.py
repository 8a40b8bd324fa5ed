"""Products into memory that exists, and the choice of kernels."""

import pytest
import torch

from circuits.errors import InputError
from circuits.kernels import choice, products
from circuits.kernels.products import add_product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1, 1), (4, 0, 3), (0, 3, 2)])
def test_products(dtype: torch.dtype, fast: bool, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "fast_16_bit", lambda _: fast)
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, generator=generator).to(dtype) for size in ((m, k), (n, k)))
    out = torch.full((m, n), torch.nan, dtype=dtype)
    expected = a.double() @ b.double().T
    bound = 1e-6 if dtype == torch.float32 else 0.03  # one rounding to 8 or 11 bits, of numbers up to about 8
    torch.testing.assert_close(add_product(out, a, b.T).double(), expected, rtol=0, atol=bound)
    torch.testing.assert_close(add_product(out, a, b.T, 1.0).double(), 2 * expected, rtol=0, atol=3 * bound)


def test_shapes_that_do_not_multiply() -> None:
    with pytest.raises(InputError, match=r"\[2, 3\] x \[4, 5\] do not fit into \[2, 5\]"):
        add_product(torch.empty(2, 5), torch.empty(2, 3), torch.empty(4, 5))


def test_the_choice_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(1)
    for value, expected in (("", False), ("reference", False)):
        monkeypatch.setenv(choice.VARIABLE, value)
        assert choice.use_triton(tensor) is expected
    monkeypatch.setenv(choice.VARIABLE, "fast")
    with pytest.raises(InputError, match="is 'fast': expected reference, triton, or nothing"):
        choice.use_triton(tensor)
    monkeypatch.setenv(choice.VARIABLE, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(choice, "triton", object())
    with pytest.raises(InputError, match="Triton needs a CUDA device"):
        choice.use_triton(tensor)
    monkeypatch.setattr(choice, "triton", None)
    with pytest.raises(InputError, match="Triton is not installed: pip install triton"):
        choice.use_triton(tensor)
