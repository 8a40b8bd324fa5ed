"""Tokens are drawn from the cut softmax, whatever the tiles."""

import pytest
import torch

from circuits.training import sampling
from circuits.training.sampling import sample_next


@pytest.mark.parametrize("tile", [1, 3 * 40_000, 1 << 24])
def test_draws_follow_the_cut_softmax(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(sampling, "CPU_TILE", tile)
    logits = torch.tensor([0.5, 2.0, -3.0, 1.0, 2.2, -9.0, 0.0])
    draws, temperature, min_p = 40_000, 0.7, 0.05
    hidden = torch.tensor([[1.0, 0.0]]).expand(draws, 2)
    head = torch.stack([logits, torch.randn(7)], 1)
    drawn = sample_next(hidden, head, temperature=temperature, min_p=min_p, generator=torch.Generator().manual_seed(0))
    p = (logits / temperature).softmax(0)
    p = torch.where(p >= min_p * p.max(), p, 0.0)
    p /= p.sum()
    assert int((p == 0).sum()) == 3
    frequency = torch.bincount(drawn[:, 0], minlength=7) / draws
    assert (frequency[p == 0] == 0).all()
    deviation = (frequency - p).abs() / (p * (1 - p) / draws).sqrt().clamp_min(1e-9)
    assert float(deviation.max()) < 4.5  # standard errors


def test_rows_are_drawn_independently() -> None:
    hidden = torch.eye(3).repeat(5, 1) * 100.0
    drawn = sample_next(hidden, torch.eye(3), temperature=1.0, min_p=0.5, generator=torch.Generator().manual_seed(0))
    assert drawn[:, 0].tolist() == [0, 1, 2] * 5
