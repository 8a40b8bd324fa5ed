"""The hand-written gradients of the trainer against autograd, and BatchTopK against its definition."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from circuits.training import clt as clt_module
from circuits.training.clt import TrainableCLT
from circuits.training.settings import TrainSettings
from circuits.training.sparsity import batch_top_k

L, T, F, D = 4, 23, 12, 8
BASE = TrainSettings(features=F, span=3, active=3, seed=3)
VARIANTS = {
    "clt": BASE,
    "plt": replace(BASE, span=1),
    "no skip": replace(BASE, skip=False),
    "matryoshka": replace(BASE, matryoshka=(0.25, 0.5)),
    "plt, matryoshka, no skip": replace(BASE, span=1, skip=False, matryoshka=(0.5,)),
    "jumprelu": replace(BASE, sparsity="jumprelu", bandwidth=0.6, frequency_limit=0.2),
    "jumprelu, matryoshka": replace(BASE, sparsity="jumprelu", bandwidth=0.6, matryoshka=(0.5,)),
    "jumprelu, plt, no skip": replace(BASE, sparsity="jumprelu", bandwidth=0.6, span=1, skip=False, l0_penalty=3.0),
}


def perturbed(settings: TrainSettings, **options: Any) -> TrainableCLT:
    clt = TrainableCLT(settings, n_layers=L, d_model=D, **options)
    generator = torch.Generator().manual_seed(0)
    for tensor in clt.parameters().values():
        tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    return clt


@pytest.fixture
def clt() -> TrainableCLT:
    return perturbed(BASE)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(L, T, D, generator=generator), torch.randn(L, T, D, generator=generator)


class JumpReLU(torch.autograd.Function):
    """The straight-through estimator as its paper defines it (arXiv 2407.14435, eq. 11 and 12), densely."""

    @staticmethod
    def forward(ctx: Any, pre: torch.Tensor, theta: torch.Tensor, width: float) -> torch.Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        pre, theta = ctx.saved_tensors
        box = ((pre - theta).abs() < ctx.width / 2).float() / ctx.width
        return g * (pre > theta), (-theta * box * g).sum(0), None


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: torch.Tensor, theta: torch.Tensor, width: float) -> torch.Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.width = width
        return (pre > theta).float()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        pre, theta = ctx.saved_tensors
        return None, (-((pre - theta).abs() < ctx.width / 2).float() / ctx.width * g).sum(0), None


def dense_loss(clt: TrainableCLT, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same loss with dense products, for autograd."""
    settings = clt.settings
    penalty, values = torch.zeros(()), []
    for layer in range(L):
        pre = x[layer] @ clt.w_enc[layer].T + clt.b_enc[layer]
        if settings.sparsity == "batchtopk":
            kept = pre.relu().flatten().topk(settings.active * T).values.min()
            values.append(torch.where(pre >= kept, pre.relu(), 0.0))
            continue
        theta = clt.log_threshold[layer].exp()
        values.append(JumpReLU.apply(pre, theta, settings.bandwidth))
        frequency = Step.apply(pre, theta, settings.bandwidth).mean(0)
        over = frequency[frequency > settings.frequency_limit]
        penalty = penalty + settings.l0_penalty * (frequency.sum() / settings.active - 1).square()
        logs = torch.log10(over / settings.frequency_limit).sum()
        penalty = penalty + settings.frequency_penalty * logs / settings.active
    loss = D * penalty
    for prefix in settings.prefixes:
        y_hat = [clt.b_dec[i] + (x[i] @ clt.skip[i] if settings.skip else 0.0) + torch.zeros_like(x[i])
                 for i in range(L)]
        for layer in range(L):
            for j in range(clt.spans[layer]):
                y_hat[layer + j] = y_hat[layer + j] + values[layer][:, :prefix] @ clt.w_dec[layer][j, :prefix]
        loss = loss + (torch.stack(y_hat) - y).pow(2).sum() / T / len(settings.prefixes)
    return loss


@contextmanager
def watched(clt: TrainableCLT) -> Iterator[None]:
    for tensor in clt.parameters().values():
        tensor.requires_grad_(True)
    yield
    for tensor in clt.parameters().values():
        tensor.requires_grad_(False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_autograd(variant: str) -> None:
    clt = perturbed(VARIANTS[variant])
    x, y = batch()
    with watched(clt):
        expected = dense_loss(clt, x, y)
        expected.backward()
    loss, _, gradients = clt.step(x, y)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    assert set(gradients) == set(clt.parameters())
    for name, tensor in clt.parameters().items():
        assert tensor.grad is not None, name
        assert tensor.grad.abs().max() > 0, name
        torch.testing.assert_close(gradients[name], tensor.grad, rtol=1e-4, atol=1e-5,
                                   msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("variant", ["clt", "jumprelu, matryoshka"])
def test_devices_without_sparse_products_give_the_same(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = batch()
    loss, _, gradients = perturbed(VARIANTS[variant]).step(x, y)
    monkeypatch.setattr(clt_module, "SPARSE_PRODUCTS", ())
    other_loss, _, other = perturbed(VARIANTS[variant]).step(x, y)
    torch.testing.assert_close(other_loss, loss)
    torch.testing.assert_close(other, gradients, rtol=1e-5, atol=1e-6)


def test_bfloat16_products_stay_close() -> None:
    x, y = batch()
    loss, _, gradients = perturbed(VARIANTS["jumprelu"]).step(x, y)
    half_loss, _, half = perturbed(replace(VARIANTS["jumprelu"], products="bfloat16")).step(x, y)
    assert half_loss != loss
    torch.testing.assert_close(half_loss, loss, rtol=0.02, atol=0)
    assert all(tensor.dtype == torch.float32 for tensor in half.values())
    torch.testing.assert_close(half["w_dec.1"], gradients["w_dec.1"], rtol=0.3, atol=0.3)


def test_batch_topk_keeps_the_largest_whatever_the_moving_threshold(clt: TrainableCLT) -> None:
    x, _ = batch()
    pre = [clt.pre_activations(layer, x[layer]) for layer in range(L)]
    expected = pre[1].relu().flatten().topk(BASE.active * T).indices.sort().values
    for threshold in (0.0, 0.1, 100.0):
        firing = batch_top_k(pre, BASE.active, torch.full((L,), threshold), clt.ranks)[1]
        assert torch.equal(firing.token * F + firing.feature, expected)
        assert torch.equal(firing.offsets, torch.searchsorted(firing.token, torch.arange(T + 1)))


def test_linear_start_recovers_a_linear_map() -> None:
    clt = TrainableCLT(replace(BASE, span=1, active=1), n_layers=1, d_model=D)
    x = torch.randn(400, 1, D) * 5 + 2
    w, b = torch.randn(D, D), torch.randn(D)
    clt.start_linear(x, x @ w + b, ridge=1e-9)
    layer = clt.folded(0)
    torch.testing.assert_close(x[:, 0] @ layer["skip"] + layer["b_dec"], x[:, 0] @ w + b, rtol=1e-2, atol=1e-2)


def test_jumprelu_starts_above_its_target() -> None:
    settings = replace(BASE, sparsity="jumprelu", features=40, active=2)
    clt = TrainableCLT(settings, n_layers=1, d_model=D)
    x = torch.randn(3000, 1, D)
    clt.start_linear(x, x)
    pre = clt.pre_activations(0, x[:, 0] / clt.x_scale[0])
    assert 4 < float((pre > clt.thresholds(0)).float().sum(1).mean()) < 12  # START_L0 times 2


def test_far_decoders_shrink_to_nothing_and_near_ones_stay(clt: TrainableCLT) -> None:
    before = [w.clone() for w in clt.w_dec]
    clt.w_dec[0][2, 4] *= 1e-3
    clt.shrink_far_decoders(0.01)
    assert torch.equal(clt.w_dec[0][0], before[0][0])
    total = before[0][:, 0].norm(dim=-1).square().sum().sqrt()
    for j in (1, 2):
        expected = before[0][j, 0].norm() - 0.01 * j * total
        torch.testing.assert_close(clt.w_dec[0][j, 0].norm(), expected)
    assert clt.w_dec[0][2, 4].abs().max() == 0
