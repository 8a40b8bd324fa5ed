"""The features at a span's positions ablated or set to another text's values, beside control spans and random features.

Shapes: N nodes, K targets, S sets of features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.spans import Span
from circuits.interventions.edits import Intervention
from circuits.interventions.intervene import intervene
from circuits.interventions.modes import FREE, FROZEN, REPLACED, Mode
from circuits.reasoning.corruption import Activations, Key, ablating, activations_at, swapping
from circuits.reasoning.prediction import direct_effects, linear_effects_together
from circuits.replacement import LocalReplacement
from circuits.validation.rerun import AT_ONCE, Rerun

MODES = {"frozen": FROZEN, "replaced": REPLACED, "free": FREE}
ABLATED, CIRCUIT_ABLATED, CORRUPTED = "all ablated", "circuit's ablated", "as in another text"


@dataclass(frozen=True, eq=False)
class Effect:
    """What changing the features at the span does to the target."""

    what: str
    """ABLATED: all that are active; CIRCUIT_ABLATED: those that pruning keeps; CORRUPTED: set to their values where the
    span has other tokens."""
    mode: str
    """Of MODES."""
    n_features: int
    change: float
    """Weighted sum of the changes of the targets' values."""
    probability: float | None
    """Of the first target token afterwards; None where the target is no token."""
    kl: float
    """Of the next token's distribution, nats."""
    predicted: float | None
    """Change by the graph's edges: direct effects for ``frozen``, else through features that respond, too. None where
    the graph does not have the features, or they do not just fall to 0."""
    controls: list[float]
    """Changes when the same is done at each control span."""
    random: list[float]
    """Changes when as many random features of the same layers outside of the span are ablated."""

    def numbers(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class _Change:
    """Interventions that belong together; None changes nothing."""

    what: str
    keys: Activations
    main: Intervention | None
    controls: list[Intervention | None]
    random: list[Intervention | None]

    @property
    def all(self) -> list[Intervention | None]:
        return [self.main, *self.controls, *self.random]


def span_effects(rerun: Rerun, circuit: AttributionGraph, span: Span, controls: Sequence[Span],
                 corrupted: Mapping[int, LocalReplacement], eligible: Sequence[int], draws: int, seed: int
                 ) -> list[Effect]:
    """Ablate and corrupt the features at the span's positions, in every mode.

    Args:
        circuit: what pruning leaves of the graph.
        controls: spans of the same length.
        corrupted: by the first position of the span or of a control: the prompt with other tokens in it. What is
            missing is not corrupted.
        eligible: positions from which random features are drawn, the span's left out.
        draws: how many random sets.
    """
    changes = [*_ablations(rerun, circuit, span, controls, eligible, draws, seed),
               *_corruption(rerun.local, span, controls, corrupted)]
    predictions = [_predicted(rerun, change) for change in changes]
    effects = []
    for mode in MODES:
        flat = [one for change in changes for one in change.all]
        targets, probabilities, kls = _measure(rerun, flat, MODES[mode])
        at = 0
        for change, predicted in zip(changes, predictions, strict=True):
            n_controls = len(change.controls)
            values = targets[at:at + len(change.all)].tolist()
            effects.append(Effect(change.what, mode, len(change.keys), values[0], probabilities[at], float(kls[at]),
                                  predicted.get(mode), values[1:1 + n_controls], values[1 + n_controls:]))
            at += len(values)
    return effects


def _ablations(rerun: Rerun, circuit: AttributionGraph, span: Span, controls: Sequence[Span], eligible: Sequence[int],
               draws: int, seed: int) -> list[_Change]:
    nodes, local = circuit.nodes, rerun.local
    kept = set(zip(*(nodes[name][nodes.kind == "feature"].tolist() for name in ("layer", "position", "feature")),
                   strict=True))
    outside = activations_at(local, set(eligible) - set(span.positions))
    changes = []
    for number, (what, chosen) in enumerate(((ABLATED, None), (CIRCUIT_ABLATED, kept))):
        here, *there = ({key: value for key, value in activations_at(local, one.positions).items()
                         if chosen is None or key in chosen} for one in (span, *controls))
        random = [_drawn(here, outside, np.random.default_rng((seed, number, i))) for i in range(draws)]
        changes.append(_Change(what, here, _ablating(here), [_ablating(one) for one in there],
                               [_ablating(one) for one in random]))
    return changes


def _corruption(local: LocalReplacement, span: Span, controls: Sequence[Span],
                corrupted: Mapping[int, LocalReplacement]) -> list[_Change]:
    if span.start not in corrupted:
        return []

    def swapped(one: Span) -> tuple[Activations, Intervention | None]:
        old, new = (activations_at(run, one.positions) for run in (local, corrupted[one.start]))
        return old | new, swapping(old, new, CORRUPTED) if old or new else None

    keys, main = swapped(span)
    return [_Change(CORRUPTED, keys, main, [swapped(one)[1] for one in controls if one.start in corrupted], [])]


def _ablating(keys: Activations) -> Intervention | None:
    return ablating(keys, ABLATED) if keys else None


def _drawn(like: Activations, pool: Activations, rng: np.random.Generator) -> Activations:
    """As many features of ``pool`` as ``like`` has at each layer, or all that there are."""
    by_layer: dict[int, list[Key]] = {}
    for key in pool:
        by_layer.setdefault(key[0], []).append(key)
    found: Activations = {}
    for layer, count in zip(*np.unique([key[0] for key in like], return_counts=True), strict=True):
        there = by_layer.get(int(layer), [])
        found |= {there[i]: pool[there[i]] for i in rng.permutation(len(there))[:count].tolist()}
    return found


def _measure(rerun: Rerun, interventions: list[Intervention | None], mode: Mode
             ) -> tuple[np.ndarray, list[float | None], np.ndarray]:
    """Of S interventions: (S,) changes of the target, probabilities of its first token, (S,) KL."""
    change, kl = np.zeros(len(interventions)), np.zeros(len(interventions))
    token = rerun.targets.tokens[0]
    before = None if token < 0 else float(rerun.local.frozen.logits.softmax(-1)[token])
    probabilities = [before] * len(interventions)
    some = [(i, one) for i, one in enumerate(interventions) if one is not None]
    for start in range(0, len(some), AT_ONCE):
        where, chosen = zip(*some[start:start + AT_ONCE], strict=True)
        outcome = intervene(rerun.model, rerun.transcoders, rerun.local, chosen, mode)
        change[list(where)] = rerun.on_targets(outcome.final_changes) @ rerun.weights
        kl[list(where)] = outcome.kl.cpu().numpy()
        if token >= 0:
            for i, probability in zip(where, outcome.probabilities[:, token].tolist(), strict=True):
                probabilities[i] = probability
    return change, probabilities, kl


def _predicted(rerun: Rerun, change: _Change) -> dict[str, float]:
    """By mode, where the graph can say."""
    nodes = rerun.graph.nodes
    features = np.flatnonzero(nodes.kind == "feature")
    number = dict(zip(zip(*(nodes[name][features].tolist() for name in ("layer", "position", "feature")), strict=True),
                      features.tolist(), strict=True))
    if change.what == CORRUPTED or not change.keys.keys() <= number.keys():
        return {}
    ablated = np.zeros((len(nodes), 1), bool)
    ablated[[number[key] for key in change.keys]] = True
    direct = float((direct_effects(rerun.graph, ablated) @ rerun.weights)[0])
    linear = float((linear_effects_together(rerun.graph, ablated) @ rerun.weights)[0])
    return {"frozen": direct, "replaced": linear, "free": linear}
