"""Intervene: what changes when features, errors, tokens or directions of one prompt are changed.

Shapes: B interventions, P positions, D d_model, V vocabulary, n changed features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from circuits.gemma3 import Gemma3
from circuits.interventions.compiled import compile_edits
from circuits.interventions.edits import Intervention
from circuits.interventions.modes import FREE, Mode
from circuits.interventions.passes import Observer, Pass
from circuits.interventions.reading import changed_activations
from circuits.interventions.rows import Rows
from circuits.prompt import check_tokens, tokenize
from circuits.replacement import LocalReplacement, build_replacement
from circuits.transcoder import Transcoders

NUMBERS = 1 << 25
"""In the changes of one pass at most, interventions times positions times d_model; more take several passes."""


@dataclass(frozen=True)
class FeatureEffects:
    """Features whose activation an intervention changed; by layer, intervention, position and feature. All (n,)."""

    item: Tensor
    """int64 number of the intervention."""
    layer: Tensor
    position: Tensor
    feature: Tensor
    change: Tensor
    """float32 activation afterwards minus before."""


@dataclass(frozen=True)
class Outcome:
    """What B interventions did."""

    interventions: tuple[Intervention, ...]
    mode: Mode
    local: LocalReplacement
    final_before: Tensor
    """(D,) output of the final norm at the last position."""
    final_changes: Tensor
    """(B, D)"""
    unembed: Callable[[Tensor], Tensor]
    """(..., V) logits of outputs of the final norm (..., D)."""
    features: FeatureEffects | None = None
    """Where they were asked for."""

    @property
    def logits_before(self) -> Tensor:
        """(V,) at the last position."""
        return self.local.frozen.logits

    @cached_property
    def logit_changes(self) -> Tensor:
        """(B, V)"""
        return self.unembed(self.final_changes)

    @property
    def logits(self) -> Tensor:
        """(B, V) afterwards."""
        return self.logits_before + self.logit_changes

    @property
    def probabilities_before(self) -> Tensor:
        """(V,)"""
        return self.logits_before.softmax(-1)

    @property
    def probabilities(self) -> Tensor:
        """(B, V)"""
        return self.logits.softmax(-1)

    @property
    def kl(self) -> Tensor:
        """(B,) Kullback-Leibler divergence KL(before || after) of the next token's distribution, in nats."""
        before = self.logits_before.double().log_softmax(-1)
        return torch.stack([(before.exp() * (before - after.double().log_softmax(-1))).sum() for after in self.logits]
                           ).clamp_min(0).float()


def intervene(model: Gemma3, transcoders: Transcoders, prompt: str | Sequence[int] | LocalReplacement,
              interventions: Intervention | Sequence[Intervention], mode: Mode = FREE, *, chat: bool = False,
              features: bool = False, observer: Observer | None = None) -> Outcome:
    """Run a prompt with interventions, all in one pass: each costs only the layers and positions it can change.

    What a feature writes is added to what the MLPs give: the difference to the value it has at that moment, through
    each of its decoder vectors once (METHOD 7; Ameisen et al. 2025, "Circuit Tracing"). Arithmetic is float32.

    Args:
        prompt: text; token ids with ``<bos>`` first; or the prompt's local replacement model, where that is there
            already. ``chat`` wraps a text in the chat template.
        mode: what reacts; see :class:`circuits.interventions.modes.Mode`.
        features: also find every feature whose activation changed, which reads all encoders at all changed positions.
        observer: sees every layer.

    Raises:
        InputError: edits that are impossible on this prompt; see :func:`circuits.interventions.compiled.compile_edits`.
    """
    chosen = (interventions,) if isinstance(interventions, Intervention) else tuple(interventions)
    local = prompt if isinstance(prompt, LocalReplacement) else local_replacement(model, transcoders, prompt, chat)
    found = _Features(transcoders, local.masked) if features else None
    watching = [o for o in (found, observer) if o is not None]
    at_once = max(1, NUMBERS // (local.n_positions * model.d_model))
    final, changes = local.frozen.final_normed, []
    for first in range(0, max(len(chosen), 1), at_once):
        edits = compile_edits(transcoders, local, chosen[first:first + at_once], mode)
        for watcher in watching:
            watcher.first = first
        final, change = Pass(model, transcoders, local, edits, mode, watching).run()
        changes.append(change)
    return Outcome(chosen, mode, local, final, torch.cat(changes), model.unembed,
                   None if found is None else found.effects())


def local_replacement(model: Gemma3, transcoders: Transcoders, prompt: str | Sequence[int], chat: bool = False
                      ) -> LocalReplacement:
    """The local replacement model of a text or of token ids.

    Raises:
        InputError: a prompt that cannot be read, or transcoders of another model.
    """
    ids = tokenize(model, prompt, chat) if isinstance(prompt, str) else check_tokens(model, prompt)
    return build_replacement(model, transcoders, ids)


class _Features(Observer):
    """Collects the features whose activation changed."""

    def __init__(self, transcoders: Transcoders, masked: int):
        self._transcoders, self._masked = transcoders, masked
        self._found: list[tuple[Tensor, ...]] = []

    def mlp_input(self, layer: int, rows: Rows, before: Tensor, change: Tensor) -> None:
        at = rows.position[:len(change)].to(change.device)
        read = torch.nonzero(at >= self._masked)[:, 0]
        row, feature, difference = changed_activations(self._transcoders, layer, before, change[read], at[read])
        row = read[row].cpu()
        self._found.append((rows.item[row] + self.first, torch.full_like(row, layer), rows.position[row], feature.cpu(),
                            difference.cpu()))

    def effects(self) -> FeatureEffects:
        item, layer, position, feature, change = (torch.cat(part) for part in zip(*self._found, strict=True))
        return FeatureEffects(item, layer, position, feature, change)
