"""Dead features made anew from badly explained tokens."""

import pytest
import torch
from test_training_clt import BASE, VARIANTS, D, L, T, batch, perturbed

from circuits.training import resample
from circuits.training.resample import OWN_MEAN, OWN_VALUE, WRITE, plant, resample_dead
from circuits.training.trainer import _optimiser, _update


@pytest.mark.parametrize("variant", ["clt", "jumprelu"])
def test_dead_features_fire_again_where_the_error_is_and_others_stay(variant: str) -> None:
    clt = perturbed(VARIANTS[variant])
    x, y = batch()
    adam = _optimiser(clt)
    _update(clt, adam, clt.step(x, y)[2], 0.01)
    clt.threshold.fill_(0.5)
    clt.quiet_tokens.zero_()
    clt.quiet_tokens[1, [2, 7]] = resample.DEAD_TOKENS + 1
    before = {name: tensor.clone() for name, tensor in clt.parameters().items()}
    limit = clt.mean_threshold(1)
    assert resample_dead(clt, adam, x, y, step=3) == 2
    assert clt.quiet_tokens.sum() == 0
    for name, tensor in clt.parameters().items():
        kind, layer = name.split(".")
        changed = (tensor != before[name]).nonzero()
        if layer != "1" or kind in ("b_dec", "skip"):
            assert len(changed) == 0, name
        else:
            assert set(changed[:, 1 if kind == "w_dec" else 0].tolist()) == {2, 7}, name
    pre = clt.pre_activations(1, x[1])[:, [2, 7]]
    assert bool((pre.amax(0) >= OWN_VALUE * limit * 0.999).all())
    moments = adam.state[clt.w_dec[1]]["exp_avg"]
    assert moments[:, [2, 7]].abs().max() == 0
    assert moments.abs().max() > 0
    assert resample_dead(clt, adam, x, y, step=4) == 0


def test_a_new_feature_fires_at_its_token_and_takes_part_of_its_error() -> None:
    clt = perturbed(BASE)
    x, _ = batch()
    clt.threshold.fill_(0.5)
    error = torch.zeros(L, T, D)
    error[2, 11] = torch.arange(D).float()  # the only token with an error
    plant(clt, 1, torch.tensor([4]), x[1], error, torch.Generator().manual_seed(0))
    pre = clt.pre_activations(1, x[1])[:, 4]
    assert float(pre[11]) == pytest.approx(OWN_VALUE * 0.5, rel=1e-4)
    assert float(pre.mean()) == pytest.approx(OWN_MEAN * 0.5, rel=1e-3)
    torch.testing.assert_close(pre[11] * clt.w_dec[1][1, 4], -WRITE * error[2, 11])
    assert clt.w_dec[1][0, 4].abs().max() == 0


def test_two_processes_make_the_features_that_one_makes() -> None:
    from circuits.training.ranks import Ranks

    x, _ = batch()
    error = torch.randn(L, T, D, generator=torch.Generator().manual_seed(8))
    dead = torch.tensor([1, 4, 5, 10])
    whole = perturbed(BASE)
    plant(whole, 1, dead, x[1], error, torch.Generator().manual_seed(0))
    for rank in range(2):
        part = perturbed(BASE, ranks=Ranks(rank, 2))
        part.threshold.copy_(whole.threshold)
        own = plant(part, 1, dead, x[1], error, torch.Generator().manual_seed(0))
        assert (own * 2 + rank).tolist() == [f for f in dead.tolist() if f % 2 == rank]
        torch.testing.assert_close(part.w_enc[1][own], whole.w_enc[1][own * 2 + rank])
        torch.testing.assert_close(part.w_dec[1][:, own], whole.w_dec[1][:, own * 2 + rank])
