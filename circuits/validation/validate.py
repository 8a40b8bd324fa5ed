"""Predicted beside measured: one report on whether a graph says what the model does (METHOD 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs.graph import AttributionGraph
from circuits.transcoder import Transcoders
from circuits.validation.ablation import Ablations, ablate_features
from circuits.validation.correlation import bootstrap, log_pearson, pearson, shuffled_spearman, spearman
from circuits.validation.frozen import FrozenCheck, check_frozen
from circuits.validation.rerun import Report, Rerun
from circuits.validation.steering import CONTROLS, MULTIPLIERS, Steering, check_steering, steer_supernodes

if TYPE_CHECKING:
    from rich.table import Table

NODE_THRESHOLD, EDGE_THRESHOLD = 0.8, 0.98
"""What a graph that is not pruned is pruned at before its features are ablated."""
SHUFFLES, RESAMPLES = 200, 1000


@dataclass(frozen=True, eq=False)
class Validation:
    """What interventions measured of what a graph predicts."""

    graph: AttributionGraph
    """Whose features were ablated: the one given, or what pruning left of it."""
    pruned: bool
    """It was pruned for this."""
    frozen: FrozenCheck
    """Of every node and edge of the graph that was given."""
    ablations: Ablations
    steering: list[Steering]
    seed: int
    created: str
    """UTC time, ISO 8601."""

    @cached_property
    def correlations(self) -> dict[str, float | int | None]:
        """How well each quantity ranks the features by the effect of ablating them, sum of |change of a target's value|
        by the targets' weights; None where too few features, or all alike, leave it undefined.

        A pruned graph has only the most influential features, and a narrow range correlates less: on 20 prompts with
        the bundled transcoders influence ranks what pruning at 0.8 keeps with 0.57, all active features with 0.87
        (``benchmarks/validation.py``). Compare graphs that were pruned alike.

        ``influence``, ``edge`` (direct effect on the targets), ``activation``, ``shuffled`` influence (mean, and 95th
        percentile); what the edges say with their signs (``linear``) and what the replacement model says
        (``replaced``). ``influence_kl`` ranks by KL instead, ``influence_top`` by the first target alone.
        """
        found = self.ablations
        effect = found.size(found.measured)
        log, zeros = log_pearson(found.influence, effect)
        mean, high = shuffled_spearman(found.influence, effect, SHUFFLES, self.seed)
        low_end, high_end = bootstrap(lambda i: spearman(found.influence[i], effect[i]), len(effect), RESAMPLES,
                                      self.seed)
        top = int(np.argmax(found.weights))
        values: dict[str, float | int] = {
            "spearman_influence": spearman(found.influence, effect),
            "spearman_influence_low": low_end, "spearman_influence_high": high_end,
            "spearman_edge": spearman(found.size(found.direct), effect),
            "spearman_activation": spearman(found.activation, effect),
            "spearman_shuffled": mean, "spearman_shuffled_95": high,
            "spearman_linear": spearman(found.size(found.linear), effect),
            "spearman_replaced": spearman(found.size(found.predicted), effect),
            "spearman_influence_kl": spearman(found.influence, found.kl),
            "spearman_influence_top": spearman(found.influence, np.abs(found.measured[:, top])),
            "log_pearson_influence": log, "log_pearson_left_out": zeros,
            "pearson_predicted": pearson(found.signed(found.predicted), found.signed(found.measured))}
        return {name: value if np.isfinite(value) else None for name, value in values.items()}

    def effects(self) -> list[list[Any]]:
        """[node id, predicted, measured] of every feature: the weighted sum of the changes of the targets' values when
        it is ablated, in the local replacement model and in the model."""
        found, ids = self.ablations, self.graph.node_ids
        columns = (found.signed(found.predicted).tolist(), found.signed(found.measured).tolist())
        return [[ids[node], _short(predicted), _short(measured)]
                for node, predicted, measured in zip(found.nodes, *columns, strict=True)]

    def header(self) -> dict[str, Any]:
        """What a graph's header keeps: see :class:`circuits.graphs.graph.Header`."""
        return {"frozen_max_relative_error": self.frozen.max_relative_error, **self.correlations,
                "n_features": len(self.ablations.nodes), "created": self.created, "effects": self.effects()}

    def numbers(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        frozen, header = self.frozen, self.graph.header
        return {"prompt": header.prompt, "model": header.model, "transcoders": header.transcoders, **self.header(),
                "pruned": self.pruned, "seed": self.seed,
                "frozen": {name: getattr(frozen, name) for name in (
                    "n_nodes", "n_edges", "max_relative_error", "median_relative_error", "n_cancelled")}
                | {"worst": [vars(edge) for edge in frozen.worst]},
                "layers": {name: {"by_layer": found.by_layer(), "by_distance": found.by_distance()}
                           for name, found in self.ablations.layers.items()},
                "steering": [one.numbers() for one in self.steering]}

    def annotated(self, graph: AttributionGraph) -> AttributionGraph:
        """``graph`` with the numbers in its header.

        Raises:
            InputError: it is not the graph of this report, nor pruned from it or the reverse.
        """
        if graph.header.tokens != self.graph.header.tokens or not (
                set(graph.node_ids) & {node_id for node_id, *_ in self.effects()}):
            raise InputError("the report is of another graph: annotate the one that was validated")
        return replace(graph, header=replace(graph.header, validation=self.header()))

    def tables(self) -> list[Table]:
        """For a terminal; see :mod:`circuits.validation.tables`."""
        from circuits.validation.tables import tables

        return tables(self)

    def write_page(self, path: str | Path) -> None:
        """Write one HTML file with figures; see :mod:`circuits.validation.page`.

        Raises:
            InputError: the file cannot be written.
        """
        from circuits.validation.page import write_page

        write_page(self, Path(path))


def validate(graph: AttributionGraph, model: Gemma3, transcoders: Transcoders, *, direction: Tensor | None = None,
             layers: bool = True, steering: bool = True, multipliers: Sequence[float] = MULTIPLIERS,
             controls: int = CONTROLS, seed: int = 0, progress: Report = lambda stage, done, total: None) -> Validation:
    """Test a graph on the model it explains (Ameisen et al. 2025, "Circuit Tracing", evaluates graphs the same way).

    1. Attention, norms and features frozen, every node is doubled: each target must change by its edge.
    2. Everything free, every feature is ablated alone, and influence compared with what that does to the targets. A
       graph that is not pruned is pruned at NODE_THRESHOLD and EDGE_THRESHOLD before.
    3. Layer by layer, the residual stream predicted by the local replacement model is compared with the model's.
    4. Supernodes, the graph's own or else proposed ones, are scaled, and random features of the same strength.

    Args:
        direction: (D,) that the graph explains, where it explains one: its file does not hold it.
        layers: whether to do 3; ``steering``: whether to do 4.
        multipliers, controls: of 4: of the features' own values, and how many random sets.
        seed: of shuffles, resamples and controls.
        progress: called as work proceeds.

    Raises:
        InputError: the graph was not made with this model and these transcoders, has no features, or explains a
            direction that is not given.
    """
    check_steering(multipliers, controls)
    pruned = graph.header.settings.get("node_threshold") is None
    kept = graph.prune(NODE_THRESHOLD, EDGE_THRESHOLD) if pruned else graph
    if not (kept.nodes.kind == "feature").any():
        raise InputError("the graph has no features to ablate" + (" once it is pruned" if pruned else "")
                         + ": trace the prompt again, or prune less")
    whole = Rerun.of(graph, model, transcoders, direction, progress)
    frozen = check_frozen(whole, progress)
    places = {node_id: i for i, node_id in enumerate(graph.node_ids)}
    within = np.array([places[node_id] for node_id in kept.node_ids])
    rerun = replace(whole, graph=kept, numbers=whole.numbers[within])
    ablations = ablate_features(rerun, frozen.direct[within], layers, progress)
    steered = steer_supernodes(rerun, multipliers, controls, seed, progress) if steering else []
    return Validation(kept, pruned, frozen, ablations, steered, seed, datetime.now(UTC).isoformat(timespec="seconds"))


def _short(value: float) -> float:
    return float(f"{value:.6g}")
