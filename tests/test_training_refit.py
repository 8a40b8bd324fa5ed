"""Refitted decoders against dense least squares, and what is kept of them."""

from dataclasses import replace

import pytest
import torch

from circuits.errors import InputError
from circuits.training.clt import TrainableCLT
from circuits.training.ranks import Ranks
from circuits.training.refit import LINEAR_SHARE, _fire, calibrate, keep_strongest, most_written, refit, with_span
from circuits.training.settings import TrainSettings

L, F, D, T = 3, 10, 6, 900
SETTINGS = TrainSettings(features=F, span=2, active=2, seed=1)


class Memory:
    """Shards held in memory."""

    n_layers, d_model, tokens_per_shard, shards_in_quota = L, D, T, None

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(4)
        self.shards = []
        w = torch.randn(L, D, D, generator=generator)
        for _ in range(2):
            x = torch.randn(T, L, D, generator=generator) * 3
            self.shards.append((x, torch.einsum("tld,lde->tle", x.relu(), w) + 1.0))

    def read(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.shards[index]

    def drop(self, index: int) -> None:
        raise AssertionError("nothing to drop")


def trained(settings: TrainSettings, shards: Memory) -> TrainableCLT:
    clt = TrainableCLT(settings, n_layers=L, d_model=D)
    clt.start_linear(*shards.read(0))
    generator = torch.Generator().manual_seed(5)
    for layer, w_dec in enumerate(clt.w_dec):
        w_dec += 0.2 * torch.randn(w_dec.shape, generator=generator)
        clt.threshold[layer] = 0.8
    return clt


def design(clt: TrainableCLT, shards: Memory, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [features of every source layer, x, 1] and targets of one layer over both shards, scaled, dense."""
    x, y = (torch.cat([shard[i] for shard in shards.shards]) for i in (0, 1))
    columns = []
    for s in range(max(0, layer - clt.settings.span + 1), layer + 1):
        pre = x[:, s] / clt.x_scale[s] @ clt.w_enc[s].T + clt.b_enc[s]
        columns.append(torch.where(pre > clt.thresholds(s), pre, 0.0))
    linear = [x[:, layer] / clt.x_scale[layer]] if clt.skip else []
    return torch.cat([*columns, *linear, torch.ones(len(x), 1)], 1), y[:, layer] / clt.y_scale[layer]


def weights(clt: TrainableCLT, layer: int) -> torch.Tensor:
    sources = range(max(0, layer - clt.settings.span + 1), layer + 1)
    return torch.cat([*(clt.w_dec[s][layer - s] for s in sources), *([clt.skip[layer]] if clt.skip else []),
                      clt.b_dec[layer][None]])


@pytest.mark.parametrize("changes", [{}, {"skip": False}, {"span": 1}, {"sparsity": "jumprelu"}],
                         ids=["clt", "no skip", "plt", "jumprelu"])
def test_equals_ridge_regression_centred_on_the_trained_weights(changes: dict) -> None:
    shards, ridge = Memory(), 7.0
    clt = trained(replace(SETTINGS, **changes), shards)
    expected, errors = [], []
    for layer in range(L):
        a, y = design(clt, shards, layer)
        old = weights(clt, layer)
        penalty = torch.full((a.shape[1],), ridge)
        penalty[-1 - (D if clt.skip else 0):] *= LINEAR_SHARE
        system = torch.linalg.lstsq(torch.cat([a, penalty.sqrt().diag()]).double(),
                                    torch.cat([y - a @ old, torch.zeros_like(old)]).double())
        expected.append(old + system.solution.float())
        errors.append(((y - a @ old).square().mean(), (y - a @ expected[-1]).square().mean()))
    keep = refit(clt, shards, [0, 1], ridge=ridge)
    assert all(bool(k.all()) for k in keep)
    for layer in range(L):
        torch.testing.assert_close(weights(clt, layer), expected[layer], rtol=2e-3, atol=2e-3)
        assert errors[layer][1] < 0.9 * errors[layer][0]


def test_vectors_not_kept_are_zero_and_the_others_refitted_without_them() -> None:
    shards = Memory()
    clt = trained(SETTINGS, shards)
    keep = refit(clt, shards, [0], ridge=1.0, kept=0.5)
    assert sum(int(k.sum()) for k in keep) == round(0.5 * sum(k.numel() for k in keep))
    for layer in range(L):
        assert clt.w_dec[layer][~keep[layer]].abs().sum() == 0
        assert bool((clt.w_dec[layer][keep[layer]].abs().sum(-1) > 0).all())


def test_a_wider_span_writes_the_same_until_it_is_refitted() -> None:
    shards = Memory()
    clt = trained(SETTINGS, shards)
    wide = with_span(clt, 3)
    assert [len(w) for w in wide.w_dec] == [3, 2, 1]
    x = torch.stack([shards.read(0)[0][:, layer] / clt.x_scale[layer] for layer in range(L)])
    y = torch.stack([shards.read(0)[1][:, layer] / clt.y_scale[layer] for layer in range(L)])
    firing = [_fire(clt, layer, x[layer]) for layer in range(L)]
    before = clt.errors(firing, x, y)[-1]
    torch.testing.assert_close(wide.errors(firing, x, y)[-1], before)
    refit(wide, shards, [0], ridge=1.0)
    assert wide.errors(firing, x, y)[-1].square().mean() < before.square().mean()
    assert wide.w_dec[0][2].abs().max() > 0


def test_most_written_ranks_by_squared_activation_times_norm() -> None:
    clt = trained(SETTINGS, Memory())
    energy = torch.zeros(L, F)
    energy[1, 3] = 1.0
    energy[0, 2] = 1e-6
    vectors = sum(w.shape[0] * w.shape[1] for w in clt.w_dec)
    keep = most_written(clt, energy, 3 / vectors)
    assert keep[1][:, 3].all()
    assert sum(int(k.sum()) for k in keep) == 3


def test_the_strongest_features_are_kept_and_write_the_same() -> None:
    shards = Memory()
    clt = trained(SETTINGS, shards)
    for layer in range(L):
        clt.b_enc[layer][[1, 4, 5]] = -1e6  # never fire
        clt.w_dec[layer][:, [0, 9]] *= 1e-4  # write next to nothing
    kept = keep_strongest(clt, shards, [0, 1], 7)
    few = keep_strongest(clt, shards, [0, 1], 5)
    x = torch.stack([shards.read(0)[0][:, layer] / clt.x_scale[layer] for layer in range(L)])
    y = torch.zeros_like(x)
    for clt_kept, tolerance in ((kept, 1e-6), (few, 2e-2)):
        before, after = (c.errors([_fire(c, layer, x[layer]) for layer in range(L)], x, y)[-1] for c in (clt, clt_kept))
        assert float((before - after).abs().max()) < tolerance
    assert few.features == 5
    assert torch.equal(few.w_enc[2], clt.w_enc[2][[2, 3, 6, 7, 8]])


def test_calibration_gives_the_wanted_number_of_active_features() -> None:
    shards = Memory()
    clt = trained(SETTINGS, shards)
    calibrate(clt, shards, [0, 1], active=2.0)
    x = torch.cat([shard[0] for shard in shards.shards])
    for layer in range(L):
        pre = clt.pre_activations(layer, x[:, layer] / clt.x_scale[layer])
        assert float((pre > clt.thresholds(layer)).sum(1).float().mean()) == pytest.approx(2.0, abs=0.01)


def test_refuses_what_cannot_be_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Memory()
    clt = trained(SETTINGS, shards)
    monkeypatch.setattr("circuits.training.refit.MAX_GRAM_BYTES", 100)
    with pytest.raises(InputError, match=r"layer 0 has 17 columns.*set refit to 0"):
        refit(clt, shards, [0], ridge=1.0)
    clt.ranks = Ranks(0, 2)
    with pytest.raises(InputError, match="one process"):
        refit(clt, shards, [0], ridge=1.0)
