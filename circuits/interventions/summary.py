"""What steering a prompt does, in numbers: the nodes changed, the next token, the features that react, the text.

Shapes: B interventions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from circuits.errors import CircuitsError, InputError
from circuits.features.known import Labels, feature_name
from circuits.gemma3 import Gemma3
from circuits.interventions.compiled import compile_edits
from circuits.interventions.edits import (
    OPERATIONS,
    DirectionEdit,
    Edit,
    ErrorEdit,
    FeatureEdit,
    Intervention,
    TokenEdit,
    positions_of,
)
from circuits.interventions.generate import NOTHING, Continuation, check_generates, generate, on_prompt, only_generated
from circuits.interventions.intervene import FeatureEffects, Outcome, intervene
from circuits.interventions.modes import REPLACED, read_mode
from circuits.interventions.sampling import Sampler
from circuits.prompt import prompt_text, token_text
from circuits.replacement import LocalReplacement, build_replacement
from circuits.transcoder import Transcoders

_SIGNS = {"scale": "× {:g}", "set": "set to {:g}", "add": "plus {:g}"}
_KINDS: dict[type, tuple[str, str]] = {ErrorEdit: ("error", "scale"), TokenEdit: ("token", "scale"),
                                       DirectionEdit: ("direction", "add")}


@dataclass(frozen=True)
class NodeChange:
    """A node before and after an intervention."""

    name: str
    """A feature's number and label; ``error``, ``token`` or ``direction``."""
    layer: int
    """-1: the embeddings."""
    position: int | None
    """None: every generated token."""
    feature: int | None
    before: float | None
    """Activation; None where there is none: of other nodes, and while generating."""
    after: float | None
    edit: str
    """What was asked for; empty for a feature that reacts."""


@dataclass(frozen=True)
class TokenChange:
    """A candidate for the next token."""

    token: int
    text: str
    probability_before: float
    probability: float
    logit_change: float
    """Of the logit less its mean over the vocabulary, as targets of graphs have it."""
    predicted: float
    """The same in the local replacement model: what the graph says."""


@dataclass(frozen=True)
class Steered:
    """What one intervention does."""

    name: str
    edits: list[NodeChange]
    kl: float
    """KL(before || after) of the next token's distribution, nats."""
    tokens: list[TokenChange]
    """Likeliest before or after, by the larger probability."""
    reacting: list[NodeChange]
    """Features that changed most by activation, those edited left out."""
    continuation: Continuation | None = None


@dataclass(frozen=True)
class Steering:
    """What a batch of interventions does to one prompt."""

    prompt: str
    token_texts: list[str]
    model: str
    transcoders: str
    mode: str
    steered: list[Steered]
    unchanged: Continuation | None
    """Where text was generated."""
    warnings: list[str]


def steer(model: Gemma3, transcoders: Transcoders, tokens: Sequence[int], interventions: Sequence[Intervention], *,
          mode: str = "free", top: int = 10, max_new_tokens: int | None = None,
          progress: Callable[[str, int, int], None] = lambda stage, done, total: None, **sampling: Any) -> Steering:
    """Measure interventions in a mode, beside what the graph's model of the prompt predicts.

    Args:
        mode: as :func:`circuits.interventions.modes.read_mode` has it.
        top: how many tokens and features to report.
        max_new_tokens: also continue the prompt; ``sampling`` goes to :func:`circuits.interventions.generate.generate`.

    Raises:
        InputError: edits that are impossible on this prompt; edits at generated tokens where none is generated; or as
            generate.
    """
    check_steering(mode, top, max_new_tokens, **sampling)
    chosen = read_mode(mode)
    edits = [edit for intervention in interventions for edit in intervention.edits]
    if max_new_tokens is None and any(getattr(edit, "generated", False) for edit in edits):
        raise InputError("an edit is to be made while generating, but nothing is generated: say how many tokens")
    local = build_replacement(model, transcoders, list(tokens), progress)
    here = [on_prompt(intervention) for intervention in interventions]
    progress("intervening", 0, 2)
    measured = intervene(model, transcoders, local, here, chosen, features=True)
    progress("intervening", 1, 2)
    predicted = measured if chosen == REPLACED else intervene(model, transcoders, local, here, REPLACED)
    made = None if max_new_tokens is None else generate(
        model, transcoders, local, interventions, max_new_tokens=max_new_tokens, mode=chosen, progress=progress,
        **sampling)
    names, kl = _Names(model, transcoders), measured.kl.tolist()
    edited = _edited_features(transcoders, measured, names)
    steered = []
    for item, intervention in enumerate(interventions):
        reacting = [] if here[item].edits == (NOTHING,) else _reacting(local, measured, item, edited[item], top, names)
        steered.append(Steered(
            intervention.name, edited[item] + _other_edits(local, intervention, names), kl[item],
            _tokens(model, measured, predicted, item, top), reacting, None if made is None else made.steered[item]))
    return Steering(prompt_text(model, tokens), [token_text(model, token) for token in tokens], model.name,
                    transcoders.name, mode, steered, None if made is None else made.unchanged, names.warnings)


def check_steering(mode: str, top: int, max_new_tokens: int | None, **sampling: Any) -> None:
    """What can be told without a model.

    Raises:
        InputError: a setting of :func:`steer` that is out of its range.
    """
    chosen = read_mode(mode)
    Sampler(**sampling)
    if top < 1:
        raise InputError(f"top is {top}: expected at least 1")
    if max_new_tokens is not None:
        check_generates(chosen, max_new_tokens)


class _Names:
    """Names of features; labels that cannot be read cost a warning."""

    def __init__(self, model: Gemma3, transcoders: Transcoders):
        self.warnings: list[str] = []
        self._known: dict[tuple[int, int], str] = {}
        self._labels = Labels.open_or_warn(transcoders, lambda token: token_text(model, token), self.warnings)

    def of(self, layer: int, feature: int) -> str:
        if (layer, feature) not in self._known:
            self._known[layer, feature] = feature_name(layer, feature, self._label(layer, feature))
        return self._known[layer, feature]

    def _label(self, layer: int, feature: int) -> str:
        try:
            [label] = self._labels.of(layer, [feature])
        except CircuitsError as error:
            self.warnings.append(f"feature {layer}/{feature} has no label: {error}")
            return ""
        return label


def _edited_features(transcoders: Transcoders, measured: Outcome, names: _Names) -> list[list[NodeChange]]:
    """Of each intervention: the features it changes on the prompt, by layer and position."""
    local = measured.local
    compiled = compile_edits(transcoders, local, measured.interventions, measured.mode)
    found: list[list[NodeChange]] = [[] for _ in measured.interventions]
    for layer, edits in sorted(compiled.features.items()):
        before = edits.reader.read(local.frozen.mlp_in[layer].to(edits.item.device)[edits.position], edits.which)
        feature = edits.reader.features[edits.which.cpu()]
        held = measured.mode.mlp(layer) == "clamped"
        now = before if held else before + _reactions(measured.features, layer, edits.item, edits.position, feature)
        rows = zip(edits.item.tolist(), edits.position.tolist(), feature.tolist(), before.tolist(),
                   edits.wanted(before, now).tolist(), edits.operation.tolist(), edits.amount.tolist(), strict=True)
        for item, position, i, old, new, operation, amount in sorted(rows):
            found[item].append(NodeChange(names.of(layer, i), layer, position, i, old, new,
                                          _SIGNS[OPERATIONS[operation]].format(amount)))
    return found


def _reactions(effects: FeatureEffects | None, layer: int, item: Tensor, position: Tensor, feature: Tensor) -> Tensor:
    """(n,) changes of the features of a layer that come from elsewhere."""
    assert effects is not None
    here = effects.layer == layer
    columns = (effects.item[here].tolist(), effects.position[here].tolist(), effects.feature[here].tolist())
    change = dict(zip(zip(*columns, strict=True), effects.change[here].tolist(), strict=True))
    wanted = zip(item.tolist(), position.tolist(), feature.tolist(), strict=True)
    return torch.tensor([change.get(key, 0.0) for key in wanted], device=item.device)


def _other_edits(local: LocalReplacement, intervention: Intervention, names: _Names) -> list[NodeChange]:
    """Edits of other nodes, and those of generated tokens."""
    rows = []
    for edit in intervention.edits:
        layer = -1 if isinstance(edit, TokenEdit) else edit.layer
        if isinstance(edit, FeatureEdit):
            name, feature, operation = names.of(layer, edit.feature), edit.feature, edit.operation
        else:
            (name, operation), feature = _KINDS[type(edit)], None
        rows += [NodeChange(name, layer, place, feature, None, None, _SIGNS[operation].format(edit.amount))
                 for place in _places(local, edit)]
    return rows


def _places(local: LocalReplacement, edit: Edit) -> list[int | None]:
    """Positions of the prompt, of features none; and None for generated tokens."""
    if isinstance(edit, ErrorEdit | TokenEdit):
        return [*(positions_of(edit.position, local.n_positions) or [])]
    later = [None] if edit.generated else []
    if isinstance(edit, FeatureEdit) or only_generated(edit):
        return [*later]
    positions = positions_of(edit.positions, local.n_positions)
    return [*(range(local.masked, local.n_positions) if positions is None else positions), *later]


def _tokens(model: Gemma3, measured: Outcome, predicted: Outcome, item: int, top: int) -> list[TokenChange]:
    before, after = measured.probabilities_before, (measured.logits_before + measured.logit_changes[item]).softmax(-1)
    changes = [outcome.logit_changes[item] - outcome.logit_changes[item].mean() for outcome in (measured, predicted)]
    chosen = torch.maximum(before, after).topk(min(top, len(before))).indices.tolist()
    return [TokenChange(token, token_text(model, token), float(before[token]), float(after[token]),
                        *(float(change[token]) for change in changes)) for token in chosen]


def _reacting(local: LocalReplacement, measured: Outcome, item: int, edited: list[NodeChange], top: int,
              names: _Names) -> list[NodeChange]:
    """Features that change most, those edited left out."""
    effects = measured.features
    assert effects is not None
    here = torch.nonzero(effects.item == item)[:, 0]
    here = here[effects.change[here].abs().argsort(descending=True)]
    known = {(change.layer, change.position, change.feature) for change in edited}
    where = zip(effects.layer[here].tolist(), effects.position[here].tolist(), effects.feature[here].tolist(),
                effects.change[here].tolist(), strict=True)
    changes = []
    for layer, position, feature, change in islice((row for row in where if row[:3] not in known), top):
        before = _activation(local, layer, position, feature)
        changes.append(NodeChange(names.of(layer, feature), layer, position, feature, before, before + change, ""))
    return changes


def _activation(local: LocalReplacement, layer: int, position: int, feature: int) -> float:
    """A feature's value on the unchanged prompt."""
    active = local.active
    here = (active.layer == layer) & (active.position == position) & (active.feature == feature)
    return float(active.value[here].sum())
