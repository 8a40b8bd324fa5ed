"""Supernodes scaled as one, beside random features of the same strength at the same places (METHOD 7).

Shapes: M multipliers, C controls, B interventions, n features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuits.errors import InputError
from circuits.graphs.group import suggest
from circuits.interventions.edits import FeatureEdit, Intervention
from circuits.interventions.intervene import intervene
from circuits.validation.rerun import AT_ONCE, Report, Rerun

MULTIPLIERS = (-5.0, -2.0, -1.0, 0.0, 0.5, 2.0, 5.0)
CONTROLS = 5
SUGGESTED = 4
"""Supernodes that are tried where the graph has none of its own."""
ALIKE = 3
"""Features of nearest strength among which a control is drawn."""


@dataclass(frozen=True, eq=False)
class Steering:
    """A supernode's features multiplied together, and random sets in their place."""

    label: str
    suggested: bool
    """The graph has no supernodes of its own, so this one was proposed."""
    members: list[str]
    """Node ids of its features."""
    multipliers: list[float]
    """(M,)"""
    effect: np.ndarray
    """(M,) weighted sum of the changes of the targets' values."""
    probability: np.ndarray | None
    """(M,) of the first target token afterwards; None where the target is no token."""
    probability_before: float | None
    controls: list[list[str]]
    """(C,) the features (layer/feature at position) of each control."""
    control_effects: np.ndarray
    """(C, M)"""
    control_probabilities: np.ndarray | None
    """(C, M)"""

    @property
    def ratio(self) -> float:
        """Size of the effect of ablating the supernode over the mean size of ablating a control; NaN without either."""
        if 0.0 not in self.multipliers or not len(self.controls):
            return math.nan
        at = self.multipliers.index(0.0)
        mean = float(np.abs(self.control_effects[:, at]).mean())
        return abs(float(self.effect[at])) / mean if mean > 0 else math.nan

    def numbers(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()
                } | {"ratio": self.ratio}


def steer_supernodes(rerun: Rerun, multipliers: Sequence[float], controls: int, seed: int, progress: Report
                     ) -> list[Steering]:
    """Scale the features of every supernode of the graph, or of the SUGGESTED strongest proposals.

    A control has, for each feature of the supernode, another active feature of the same layer that is not in the
    graph: at the nearest position that has one, drawn from the ALIKE of nearest activation times decoder norm.
    """
    groups, suggested = _groups(rerun)
    found = []
    for done, (label, nodes) in enumerate(groups):
        progress("supernodes", done, len(groups))
        edits = [[rerun.edit(int(node), 1.0) for node in nodes]]
        drawn = [_control(rerun, nodes, np.random.default_rng((seed, done, i))) for i in range(controls)]
        edits += [control for control in drawn if control]
        effects, probabilities, before = _scaled(rerun, edits, multipliers)
        found.append(Steering(
            label, suggested, [rerun.graph.node_ids[node] for node in nodes], list(multipliers), effects[0],
            None if probabilities is None else probabilities[0], before,
            [[f"{e.layer}/{e.feature} at {e.positions}" for e in control] for control in edits[1:]], effects[1:],
            None if probabilities is None else probabilities[1:]))
    return found


def check_steering(multipliers: Sequence[float], controls: int) -> None:
    """Raises:
        InputError: no multiplier, one that is not finite, or fewer than no controls.
    """
    if not len(multipliers) or not all(math.isfinite(m) for m in multipliers):
        raise InputError(f"multipliers are {list(multipliers)}: expected finite numbers, such as -2 0 2")
    if controls < 0:
        raise InputError(f"controls is {controls}: expected 0 or more")


def _groups(rerun: Rerun) -> tuple[list[tuple[str, np.ndarray]], bool]:
    """(label, features) of each supernode, and whether they were proposed."""
    graph = rerun.graph
    if not graph.header.supernodes:
        return [(one.name, np.array(one.nodes)) for one in suggest(graph, count=SUGGESTED)], True
    number = {node_id: i for i, node_id in enumerate(graph.node_ids) if graph.nodes.kind[i] == "feature"}
    groups = [(label, np.array([number[i] for i in ids if i in number], np.int64))
              for label, *ids in graph.header.supernodes]
    return [(label, nodes) for label, nodes in groups if len(nodes)], False


def _control(rerun: Rerun, nodes: np.ndarray, rng: np.random.Generator) -> list[FeatureEdit]:
    """Matched features; a member without any match has none."""
    active, graph = rerun.local.active, rerun.graph
    layer, position = active.layer.cpu().numpy(), active.position.cpu().numpy()
    free = np.ones(len(active), bool)
    free[rerun.numbers[graph.nodes.kind == "feature"]] = False
    chosen = []
    for node in nodes:
        own = rerun.numbers[node]
        candidates = np.flatnonzero(free & (layer == layer[own]))
        if not len(candidates):
            continue
        away = np.abs(position[candidates] - position[own])
        candidates = candidates[away == away.min()]
        strength, *others = np.log(np.maximum(rerun.strength(np.array([own, *candidates])), 1e-30))
        match = int(rng.choice(candidates[np.argsort(np.abs(others - strength), kind="stable")[:ALIKE]]))
        free[match] = False
        chosen.append(FeatureEdit(int(layer[match]), int(active.feature[match]), int(position[match]), "scale", 1.0))
    return chosen


def _scaled(rerun: Rerun, sets: list[list[FeatureEdit]], multipliers: Sequence[float]
            ) -> tuple[np.ndarray, np.ndarray | None, float | None]:
    """(sets, M) effects, (sets, M) probabilities of the first target token, and that of the unchanged prompt."""
    interventions = [Intervention(tuple(FeatureEdit(e.layer, e.feature, e.positions, "scale", m) for e in edits))
                     for edits in sets for m in multipliers]
    token = rerun.targets.tokens[0]
    effects, probabilities, before = [], [], None
    for start in range(0, len(interventions), AT_ONCE):
        outcome = intervene(rerun.model, rerun.transcoders, rerun.local, interventions[start:start + AT_ONCE])
        effects.append(rerun.on_targets(outcome.final_changes) @ rerun.weights)
        if token >= 0:
            probabilities.append(outcome.probabilities[:, token].cpu().numpy())
            before = float(outcome.probabilities_before[token])
    shape = len(sets), len(multipliers)
    return (np.concatenate(effects).reshape(shape),
            np.concatenate(probabilities).reshape(shape) if probabilities else None, before)
