"""A graph's prompt run again, ready for interventions.

Shapes: N nodes, K targets, B interventions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.gemma3 import Gemma3
from circuits.graph_nodes import replacement_of, source_numbers, targets_of
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import target_weights
from circuits.interventions.edits import FeatureEdit
from circuits.replacement import LocalReplacement
from circuits.targets import Targets
from circuits.transcoder import Transcoders

Report = Callable[[str, int, int], None]
"""Progress: called with a stage, what is done, and the most there can be."""

AT_ONCE = 64
"""Interventions whose logits are computed together: (64, 262,144) float32 are 64 MiB."""


@dataclass(frozen=True, eq=False)
class Rerun:
    """What interventions on a graph's nodes need."""

    graph: AttributionGraph
    model: Gemma3
    transcoders: Transcoders
    local: LocalReplacement
    numbers: np.ndarray
    """(N,) sources in ``local`` of the graph's nodes; -1 for logits."""
    targets: Targets
    """Of the graph's logit nodes."""

    @classmethod
    def of(cls, graph: AttributionGraph, model: Gemma3, transcoders: Transcoders, direction: Tensor | None,
           progress: Report) -> Rerun:
        """Run the graph's prompt.

        Args:
            direction: (D,) that the graph explains, where it explains one.

        Raises:
            InputError: the graph's values are not those of this model and these transcoders, or a target cannot be
                made again.
        """
        local = replacement_of(graph, model, transcoders, progress)
        return cls(graph, model, transcoders, local, source_numbers(graph, local),
                   targets_of(graph, model, local, direction))

    @property
    def weights(self) -> np.ndarray:
        """(K,) float64 weights of the targets, as influence has them, divided by their sum."""
        weights = target_weights(self.graph)[self.graph.nodes.kind == "logit"]
        return weights / weights.sum()

    def on_targets(self, final_changes: Tensor) -> np.ndarray:
        """(B, K) changes of the targets' values, from changes (B, D) of the final norm's output."""
        return (final_changes @ self.targets.vectors.T).cpu().numpy()

    def edit(self, node: int, amount: float) -> FeatureEdit:
        """Make a feature node ``amount`` times what it is."""
        nodes = self.graph.nodes
        return FeatureEdit(int(nodes.layer[node]), int(nodes.feature[node]), int(nodes.position[node]), "scale", amount)

    def strength(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) activation times the norm of all decoder vectors of active features ``numbers`` (n,) of one layer."""
        active, chosen = self.local.active, torch.from_numpy(numbers)
        features = active.feature.cpu()[chosen]
        layer = int(active.layer[int(numbers[0])])
        norms = self.transcoders.decoder_rows(layer, features).flatten(1).norm(dim=1)
        return (active.value.cpu()[chosen] * norms.cpu()).numpy()
