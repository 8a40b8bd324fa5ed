"""How well transcoders stand in for the MLPs: variance unexplained, sparsity, and the model with all MLPs replaced.

Shapes: B sequences, P positions, L layers, D d_model, F features of a layer, V vocabulary, N measured positions of a
batch (those that are not masked, of all its sequences).
Measures: Ameisen et al. 2025, "Circuit Tracing" (evaluating transcoders); Gemma Scope 2 technical report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.training.comparison import Batch, Comparison, in_batches
from circuits.training.reconstruction import MeanAblation, Reconstruction, Replacement, unmasked
from circuits.transcoder import Transcoders

Report = Callable[[str, int, int], None]

DENSE = 0.1
"""A feature that fires on a larger share of positions than this is dense."""


@dataclass(frozen=True)
class Quality:
    """What :func:`evaluate_on_sequences` measures. Masked positions (``<bos>``, a chat template's start) count nowhere;
    what cannot be told from the text, such as a loss of one-token sequences, is NaN."""

    positions: int
    """Positions measured. Whether a feature is dead shows only on many: one that fires once in 100,000 positions did
    not fire on most texts of 4,000."""
    fvu_by_layer: list[float]
    """(L,) squared error over variance of the MLP output, on the model's own activations."""
    density: list[np.ndarray]
    """Per layer (F,): share of positions each feature fired on, on the model's own activations."""
    kl: float
    """Every MLP replaced at once, without error terms: KL divergence of its next-token distribution from the
    original's, nats per position."""
    top1_agreement: float
    """Share of positions where that model's likeliest token is the original's."""
    kl_mean_ablated: float
    """KL with every MLP output replaced by its mean over this text."""
    loss: float
    """Cross entropy of the text's next tokens under the original model, nats per token."""
    loss_replaced: float
    loss_mean_ablated: float
    kl_with_errors: float
    """Every MLP replaced, and what the transcoders missed on the model's own pass added back. With errors frozen from
    that pass this is the original model again, so the KL is 0 up to rounding and the agreement 1: they check the
    reconstruction's plumbing and say nothing of quality. Measured on the first batch of sequences only."""
    top1_with_errors: float

    @property
    def fvu_mean(self) -> float:
        """Mean over layers."""
        return float(np.mean(self.fvu_by_layer))

    @property
    def active_by_layer(self) -> list[float]:
        """(L,) features that fire at a position, on average."""
        return [float(d.sum()) for d in self.density]

    @property
    def dead_by_layer(self) -> list[float]:
        """(L,) share of features that fired nowhere on this text; see ``positions``."""
        return [float((d == 0).mean()) for d in self.density]

    @property
    def dense_by_layer(self) -> list[float]:
        """(L,) share of features that fired on more than DENSE of the positions."""
        return [float((d > DENSE).mean()) for d in self.density]

    @property
    def loss_recovered(self) -> float:
        """Share of the loss that mean ablation adds which the transcoders take back; 1 is the original model."""
        gap = self.loss_mean_ablated - self.loss
        return (self.loss_mean_ablated - self.loss_replaced) / gap if gap else math.nan

    def numbers(self) -> dict[str, Any]:
        """All measures but the densities, ready for JSON: NaN and infinity become None."""
        every = np.concatenate(self.density)
        values: dict[str, Any] = {
            "fvu_mean": self.fvu_mean, "fvu_by_layer": self.fvu_by_layer,
            "active_per_position": sum(self.active_by_layer), "active_by_layer": self.active_by_layer,
            "dead_fraction": float((every == 0).mean()), "dead_by_layer": self.dead_by_layer,
            "dense_fraction": float((every > DENSE).mean()), "dense_by_layer": self.dense_by_layer,
            "kl": self.kl, "kl_mean_ablated": self.kl_mean_ablated, "top1_agreement": self.top1_agreement,
            "loss": self.loss, "loss_replaced": self.loss_replaced, "loss_mean_ablated": self.loss_mean_ablated,
            "loss_recovered": self.loss_recovered, "kl_with_errors": self.kl_with_errors,
            "top1_with_errors": self.top1_with_errors, "positions": self.positions}
        return {name: [_plain(v) for v in value] if isinstance(value, list) else _plain(value)
                for name, value in values.items()}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def evaluate_on_sequences(model: Gemma3, transcoders: Transcoders, sequences: Sequence[Sequence[int]], *,
                          progress: Report = lambda stage, done, total: None) -> Quality:
    """Quality of ``transcoders`` on token sequences; masked positions keep the model's own MLP outputs.

    Raises:
        InputError: no sequence with a position to measure.
        ModelError: the transcoders are of another model.
    """
    return evaluate_sets(model, [transcoders], sequences, progress=progress)[0]


@torch.no_grad()
def evaluate_sets(model: Gemma3, sets: Sequence[Transcoders], sequences: Sequence[Sequence[int]], *,
                  progress: Report = lambda stage, done, total: None) -> list[Quality]:
    """:func:`evaluate_on_sequences` of several transcoder sets on the same text.

    The model itself runs over the text twice and once with its MLPs ablated, however many sets there are; each set
    costs one more run. Memory is bounded by a batch's logits, not by the text.
    """
    for transcoders in sets:
        transcoders.check_model(model.n_layers, model.d_model, model.name)
    batches = list(in_batches(sequences, model.vocab_size))
    if not batches:
        raise InputError("there is nothing to measure: every sequence is only the tokens where features are not read; "
                         "give longer text")
    outputs, measures = _Outputs(model), [_Measures(transcoders) for transcoders in sets]
    for i, batch in enumerate(batches):
        progress("replacing the MLPs", i, len(batches))
        with model.record_mlps() as own:
            logits = model.logits_with_mlps(batch.tokens)
        outputs.add(batch, own["out"])
        for measure in measures:
            measure.add(model, batch, own, logits, first=i == 0)
    mean, ablated = outputs.mean().to(model.device), Comparison()
    for i, batch in enumerate(batches):
        progress("mean-ablated MLPs", i, len(batches))
        logits = model.logits_with_mlps(batch.tokens)
        ablated.add(batch, logits, model.logits_with_mlps(batch.tokens, MeanAblation(mean, batch.masked)))
    return [measure.quality(outputs, ablated) for measure in measures]


class _Outputs:
    """Mean and variance of the model's own MLP outputs; sums in float64."""

    def __init__(self, model: Gemma3):
        self.positions = 0
        self.total = torch.zeros(model.n_layers, model.d_model, dtype=torch.float64)
        self.squares = torch.zeros(model.n_layers, dtype=torch.float64)

    def add(self, batch: Batch, mlp_out: list[Tensor]) -> None:
        for layer, out in enumerate(mlp_out):
            y = _double(unmasked(out, batch.masked))
            self.total[layer] += y.sum(0).cpu()
            self.squares[layer] += float(y.square().sum())
        self.positions += len(y)

    def mean(self) -> Tensor:
        """(L, D)"""
        return (self.total / self.positions).float()

    def variance(self) -> Tensor:
        """(L,) summed over positions and dimensions; NaN where it is nothing but rounding, as of one position."""
        variance = self.squares - self.total.square().sum(1) / self.positions
        return torch.where(variance > 1e-12 * self.squares, variance, math.nan)


class _Measures:
    """Sums over the text for one transcoder set."""

    def __init__(self, transcoders: Transcoders):
        self.transcoders = transcoders
        self.errors = torch.zeros(transcoders.n_layers, dtype=torch.float64)
        self.counts = [torch.zeros(f, dtype=torch.long) for f in transcoders.d_transcoder]
        self.replaced, self.with_errors = Comparison(), Comparison()

    def add(self, model: Gemma3, batch: Batch, own: dict[str, list[Tensor]], logits: Tensor, first: bool) -> None:
        """Args:
            own: the model's MLP inputs and outputs on this batch (B, P, D); logits: (B, P, V) its own.
            first: check the error terms too.
        """
        reconstruction, errors = Reconstruction(self.transcoders), []
        for layer, (mlp_in, mlp_out) in enumerate(zip(own["in"], own["out"], strict=True)):
            y_hat = reconstruction.layer(layer, unmasked(mlp_in, batch.masked))
            error = unmasked(mlp_out, batch.masked) - y_hat
            self.errors[layer] += float(_double(error).square().sum())
            self.counts[layer] += torch.bincount(reconstruction.fired, minlength=len(self.counts[layer])).cpu()
            if first:
                errors.append(error)
        for comparison, added in ((self.replaced, None), (self.with_errors, errors)):
            if added is None or first:
                mlps = Replacement(self.transcoders, batch.masked, added)
                comparison.add(batch, logits, model.logits_with_mlps(batch.tokens, mlps))

    def quality(self, outputs: _Outputs, ablated: Comparison) -> Quality:
        return Quality(
            positions=outputs.positions, fvu_by_layer=(self.errors / outputs.variance()).tolist(),
            density=[count.double().numpy() / outputs.positions for count in self.counts], kl=self.replaced.kl,
            top1_agreement=self.replaced.agreement, kl_mean_ablated=ablated.kl, loss=ablated.loss_original,
            loss_replaced=self.replaced.loss, loss_mean_ablated=ablated.loss, kl_with_errors=self.with_errors.kl,
            top1_with_errors=self.with_errors.agreement)


def _double(x: Tensor) -> Tensor:
    """float64, on the CPU where the device has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()
