"""Every edge against an intervention: doubling the source, all else frozen, must change the target by the edge.

Attribution goes backwards from targets, interventions go forwards from sources: they share the frozen quantities, not
the arithmetic, so a graph that passes has been computed twice.

Shapes: N nodes, E edges, K logit targets, B interventions, D d_model, T targets of one layer and position.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.graphs.graph import AttributionGraph
from circuits.interventions.edits import DirectionEdit, Edit, ErrorEdit, FeatureEdit, Intervention, TokenEdit
from circuits.interventions.intervene import intervene
from circuits.interventions.modes import FROZEN
from circuits.interventions.passes import Observer
from circuits.interventions.rows import Rows
from circuits.replacement import LocalReplacement
from circuits.validation.rerun import Report, Rerun

CANCELLED = 0.01
"""Share of the sizes of an edge's terms below which its error is relative to them: see :class:`FrozenCheck`. Measured
(9 tokens, bundled transcoders, 327,000 edges): the graph and the intervention are each up to 1.4e-6 and 0.9e-6 of the
terms away from the same intervention in float64, so together within 1e-4 of a hundredth of them."""
AT_ONCE = 1024
"""Nodes doubled in one call, between two reports of progress."""
WORST = 5
"""Edges that are named."""
LIMIT = 1e-4
"""Relative error that float32 stays below where graph and interventions agree."""


@dataclass(frozen=True)
class CheckedEdge:
    """One edge and what was measured of it."""

    source: str
    """Node id; below, of the target."""
    target: str
    edge: float
    measured: float
    relative_error: float


@dataclass(frozen=True, eq=False)
class FrozenCheck:
    """What doubling every node did to the targets of its edges.

    The relative error of an edge is ``|measured - edge| / max(|edge|, CANCELLED * size)``. An edge is the product of
    two vectors of D numbers, the change that arrives and what the target reads of it; ``size`` is the sum of the
    absolute values of its D terms. Terms of size 1 that cancel to 0.001 leave four digits in float32, whatever is
    computed. An edge that is wrong by 1% passes 1e-4 only where its terms cancel to a ten-thousandth (0.1% of those
    measured).
    """

    n_nodes: int
    """Nodes that were doubled."""
    n_edges: int
    max_relative_error: float
    median_relative_error: float
    n_cancelled: int
    """Edges whose error is relative to ``CANCELLED * size``."""
    worst: list[CheckedEdge]
    """Of largest relative error, that first."""
    direct: np.ndarray
    """(N, K) direct effects of every node on the targets, as measured; 0 for logits."""

    @property
    def passed(self) -> bool:
        """Whether every edge is within LIMIT."""
        return self.max_relative_error <= LIMIT


def check_frozen(rerun: Rerun, progress: Report) -> FrozenCheck:
    """Double every node that is no logit, and compare what changes with its edges."""
    graph, targets = rerun.graph, rerun.targets
    sources = np.flatnonzero(graph.nodes.kind != "logit")
    measured = _Measured(rerun, sources)
    direct, sizes = (np.zeros((len(graph), len(targets.values)), np.float32) for _ in range(2))
    for start in range(0, len(sources), AT_ONCE):
        progress("frozen", start, len(sources))
        nodes = sources[start:start + AT_ONCE]
        measured.start = start
        final = intervene(rerun.model, rerun.transcoders, rerun.local,
                          [Intervention((doubling(graph, rerun.local, int(n)),)) for n in nodes], FROZEN,
                          observer=measured).final_changes
        direct[nodes] = rerun.on_targets(final)
        sizes[nodes] = (final.abs() @ targets.vectors.abs().T).cpu().numpy()
    for column, node in enumerate(np.flatnonzero(graph.nodes.kind == "logit")):
        edges = slice(int(graph.indptr[node]), int(graph.indptr[node + 1]))
        measured.edges[edges] = direct[graph.indices[edges], column]
        measured.sizes[edges] = sizes[graph.indices[edges], column]
    return _check(graph, measured, direct, len(sources))


def doubling(graph: AttributionGraph, local: LocalReplacement, node: int) -> Edit:
    """The edit that adds to the model what a node that is no logit writes, once more."""
    nodes = graph.nodes
    kind, layer, position = str(nodes.kind[node]), int(nodes.layer[node]), int(nodes.position[node])
    if kind == "feature":
        return FeatureEdit(layer, int(nodes.feature[node]), position, "scale", 2.0)
    if kind == "error":
        return ErrorEdit(layer, position, 2.0)
    if kind == "embedding":
        return TokenEdit(position, 2.0)
    if position < 0:
        return DirectionEdit(layer, local.biases[layer])
    return DirectionEdit(layer, local.error(layer, position), position)


class _Measured(Observer):
    """Reads, at every layer, what the changes are to the features that are targets."""

    def __init__(self, rerun: Rerun, sources: np.ndarray):
        self.graph = graph = rerun.graph
        self.edges = np.zeros(graph.n_edges, np.float32)
        """What each edge was measured to be; below, the sum of the sizes of its terms."""
        self.sizes = np.zeros(graph.n_edges, np.float32)
        self.start = 0
        """Of the interventions of this call, in ``sources``."""
        self._item = np.full(len(graph), -1, np.int64)
        self._item[sources] = np.arange(len(sources))
        self._targets: dict[int, list[tuple[int, np.ndarray, Tensor]]] = defaultdict(list)
        nodes = graph.nodes
        read = np.flatnonzero((nodes.kind == "feature") & (np.diff(graph.indptr) > 0))
        place = np.stack([nodes.layer[read], nodes.position[read]])
        for layer, position in np.unique(place, axis=1).T.tolist():
            here = read[(place[0] == layer) & (place[1] == position)]
            chosen = torch.from_numpy(rerun.numbers[here]).to(rerun.local.active.layer.device)
            encoders = rerun.local.encoder_vectors(chosen)
            self._targets[layer].append((position, here, encoders))

    def mlp_input(self, layer: int, rows: Rows, before: Tensor, change: Tensor) -> None:
        for position, nodes, encoders in self._targets.get(layer, ()):
            at = torch.nonzero(rows.position[:len(change)] == position)[:, 0]
            moved, vectors = change[at.to(change.device)], encoders.to(change.device)
            self._note(nodes, rows.item[at].numpy(), (moved @ vectors.T).cpu().numpy(),
                       (moved.abs() @ vectors.abs().T).cpu().numpy(), len(rows.order))

    def _note(self, nodes: np.ndarray, items: np.ndarray, values: np.ndarray, sizes: np.ndarray, n_items: int) -> None:
        """Put values (n, T) of the pass's ``items`` (n,) and the target ``nodes`` (T,) at their edges."""
        graph, first = self.graph, self.start + self.first
        edges = graph.edges_into(nodes)
        column = np.repeat(np.arange(len(nodes)), graph.indptr[nodes + 1] - graph.indptr[nodes])
        item = self._item[graph.indices[edges]] - first
        row = np.full(n_items + 1, -1)  # one more, for sources of other passes
        row[items] = np.arange(len(items))
        row = row[np.where((item >= 0) & (item < n_items), item, n_items)]
        there = np.flatnonzero(row >= 0)
        where = edges.start + there if isinstance(edges, slice) else edges[there]
        self.edges[where] = values[row[there], column[there]]
        self.sizes[where] = sizes[row[there], column[there]]


def _check(graph: AttributionGraph, measured: _Measured, direct: np.ndarray, n_nodes: int) -> FrozenCheck:
    edge, found = graph.weights.astype(np.float64), measured.edges.astype(np.float64)
    floor = CANCELLED * measured.sizes.astype(np.float64)
    scale = np.maximum(np.abs(edge), floor)
    error = np.divide(np.abs(found - edge), scale, out=np.zeros_like(scale), where=scale > 0)
    order = np.argsort(-error, kind="stable")[:WORST]
    target = np.searchsorted(graph.indptr, order, side="right") - 1
    ids = graph.node_ids
    worst = [CheckedEdge(ids[graph.indices[e]], ids[t], float(edge[e]), float(found[e]), float(error[e]))
             for e, t in zip(order, target, strict=True)]
    return FrozenCheck(
        n_nodes, graph.n_edges, float(error.max(initial=0.0)), float(np.median(error)) if len(error) else 0.0,
        int((np.abs(edge) < floor).sum()), worst, direct)
