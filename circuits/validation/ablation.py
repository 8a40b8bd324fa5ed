"""Every feature of a graph ablated alone, in the model and in what the graph predicts (METHOD 7).

Shapes: n features, K targets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from circuits.graphs.influence import influence
from circuits.interventions.edits import Intervention
from circuits.interventions.intervene import NUMBERS, Outcome, intervene
from circuits.interventions.modes import FREE, REPLACED, Mode
from circuits.validation.layers import LayerAgreement, Residuals, agreement, joined
from circuits.validation.linear import linear_effects
from circuits.validation.rerun import AT_ONCE, Report, Rerun

NORMS_FREE = replace(REPLACED, norms_frozen=False)
"""The local replacement model, but with norms that follow."""
PREDICTIONS = {"norms_frozen": REPLACED, "norms_free": NORMS_FREE}
"""By the name their agreement with the model is reported under."""


@dataclass(frozen=True, eq=False)
class Ablations:
    """What was known of n features, and what ablating each one did."""

    nodes: np.ndarray
    """(n,) in the graph."""
    weights: np.ndarray
    """(K,) of the targets; they sum to 1."""
    influence: np.ndarray
    """(n,) of the graph before pruning."""
    activation: np.ndarray
    """(n,)"""
    direct: np.ndarray
    """(n, K) direct effect on each target: what its edge says, whether pruning kept it or not."""
    linear: np.ndarray
    """(n, K) change of each target's value by the graph's edges alone: :func:`linear_effects`."""
    predicted: np.ndarray
    """(n, K) change in the local replacement model: attention and norms frozen, features respond."""
    measured: np.ndarray
    """(n, K) change in the model."""
    kl: np.ndarray
    """(n,) nats between the model's next-token distributions."""
    layers: dict[str, LayerAgreement]
    """Of each of PREDICTIONS with the model; empty where it was not asked for."""

    def size(self, changes: np.ndarray) -> np.ndarray:
        """(n,) size of (n, K) changes, weighted as influence weights targets."""
        return np.abs(changes) @ self.weights

    def signed(self, changes: np.ndarray) -> np.ndarray:
        """(n,) weighted sum of (n, K) changes."""
        return changes @ self.weights


def ablate_features(rerun: Rerun, direct: np.ndarray, layers: bool, progress: Report) -> Ablations:
    """Ablate every feature of the graph, each alone.

    Args:
        direct: (N, K) direct effects of all nodes on the targets.
        layers: also compare the residual stream layer by layer, which costs a third pass.
    """
    graph, local = rerun.graph, rerun.local
    nodes = np.flatnonzero(graph.nodes.kind == "feature")
    modes = PREDICTIONS if layers else {"norms_frozen": REPLACED}
    at_once = AT_ONCE
    if layers:
        at_once = max(1, min(AT_ONCE, NUMBERS // (local.n_layers * local.biases.shape[1] * local.n_positions)))
    outcomes: dict[str, list[np.ndarray]] = {name: [] for name in ("free", "kl", *modes)}
    agreements: dict[str, list[LayerAgreement]] = {name: [] for name in modes if layers}
    for start in range(0, len(nodes), at_once):
        progress("ablations", start, len(nodes))
        chosen = nodes[start:start + at_once]
        free, measured = _run(rerun, chosen, FREE, layers)
        outcomes["free"].append(rerun.on_targets(free.final_changes))
        outcomes["kl"].append(free.kl.cpu().numpy())
        for name, mode in modes.items():
            outcome, predicted = _run(rerun, chosen, mode, layers)
            outcomes[name].append(rerun.on_targets(outcome.final_changes))
            if layers:
                agreements[name].append(agreement(predicted, measured, graph.nodes.layer[chosen].astype(np.int64),
                                                  local.n_layers))
    found = {name: np.concatenate(parts) for name, parts in outcomes.items()}
    known = graph.nodes.influence if graph.nodes.influence[nodes].any() else influence(graph)
    return Ablations(
        nodes, rerun.weights, known[nodes].astype(np.float64), graph.nodes.value[nodes].astype(np.float64),
        direct[nodes], linear_effects(graph, nodes), found["norms_frozen"], found["free"], found["kl"],
        {name: joined(parts) for name, parts in agreements.items()})


def _run(rerun: Rerun, nodes: np.ndarray, mode: Mode, layers: bool) -> tuple[Outcome, Residuals]:
    seen = Residuals()
    ablations = [Intervention((rerun.edit(int(node), 0.0),)) for node in nodes]
    outcome = intervene(rerun.model, rerun.transcoders, rerun.local, ablations, mode,
                        observer=seen if layers else None)
    return outcome, seen
