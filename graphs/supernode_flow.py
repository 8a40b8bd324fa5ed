"""How much of what flows between the supernodes of one graph flows between the same ones of another.

Shapes: N nodes, G supernodes, K = G + 1 + P ends of flow: supernodes, the outputs together, each token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.group import suggest
from circuits.graphs.influence import influence, target_weights
from circuits.graphs.measure import Measure, against, without_null
from circuits.graphs.paths import whole_rows

MAJORITY = 0.5


@dataclass(frozen=True, eq=False)
class Supernodes:
    """Groups of features of one pruned graph, and what flows between them."""

    names: list[str]
    """(G,) foreign strings."""
    members: list[np.ndarray]
    """(G,) nodes of each; no node is in two."""
    given: bool
    """The graph brought them; else they are suggestions (:mod:`graphs.group`)."""
    flow: np.ndarray
    """(K, K) share of the flow that has a supernode at an end, into the row's end from the column's: supernodes, then
    the outputs, then the token of every position."""


@dataclass(frozen=True, eq=False)
class SharedFlow:
    """Supernodes of two graphs, matched by what their members match."""

    pairs: list[tuple[int, int]]
    """Supernodes matched: each by more than half of the members of the smaller one."""
    overlap: Measure
    """Sum over pairs of matched ends of the smaller share of flow. Null: shuffled features."""

    def numbers(self, first: Supernodes, second: Supernodes) -> dict[str, Any]:
        """Ready for JSON."""
        return {"pairs": [[first.names[a], second.names[b]] for a, b in self.pairs],
                "supernodes": [first.names, second.names], "given": [first.given, second.given],
                "overlap": self.overlap.numbers()}


def supernodes_of(graph: AttributionGraph) -> Supernodes:
    """The supernodes that the graph brings, or else suggestions, with the flow between them.

    Raises:
        InputError: an edge does not go up in layer.
    """
    if graph.header.supernodes:
        index = {node_id: i for i, node_id in enumerate(graph.node_ids)}
        groups = [(label, [index[i] for i in ids if i in index]) for label, *ids in graph.header.supernodes]
    else:
        groups = [(made.name, list(made.nodes)) for made in suggest(graph, graph.feature_cards())]
    taken: set[int] = set()
    names, members = [], []
    for name, nodes in groups:
        own = [node for node in nodes if node not in taken and graph.nodes.kind[node] == "feature"]
        taken |= set(own)
        if own:
            names.append(name)
            members.append(np.array(own, np.int64))
    return Supernodes(names, members, bool(graph.header.supernodes), _flow(graph, members))


def shared_flow(one: Supernodes, two: Supernodes, matches: tuple[np.ndarray, np.ndarray],
                null: Sequence[tuple[np.ndarray, np.ndarray]]) -> SharedFlow:
    """Args:
        matches: nodes of both graphs that are matched.
        null: the same of every round of a null.
    """
    pairs = _matched(one, two, *matches)
    value = _overlap(one, two, pairs)
    chance = [_overlap(one, two, _matched(one, two, *made)) for made in null]
    counted = not math.isnan(value) and len(chance) > 0
    return SharedFlow(pairs, against(value, chance, len(two.members), counted=False) if counted else
                      without_null(value, len(two.members)))


def _flow(graph: AttributionGraph, members: list[np.ndarray]) -> np.ndarray:
    nodes, n_groups, n_pos = graph.nodes, len(members), max(len(graph.header.tokens), 1)
    end = np.full(len(graph), -1)
    for group, own in enumerate(members):
        end[own] = group
    end[nodes.kind == "logit"] = n_groups
    tokens = (nodes.kind == "embedding") & (nodes.position >= 0)
    end[tokens] = n_groups + 1 + nodes.position[tokens]
    used = np.flatnonzero(end >= 0)
    mask = csr_array((np.ones(len(used)), (end[used], used)), shape=(n_groups + 1 + n_pos, len(graph)))
    sums = whole_rows(graph)
    per_row = np.divide(influence(graph) + target_weights(graph), sums, out=np.zeros(len(graph)), where=sums > 0)
    weights = np.abs(graph.weights.astype(np.float64)) * np.repeat(per_row, np.diff(graph.indptr))
    edges = csr_array((weights, graph.indices, graph.indptr), shape=(len(graph), len(graph)))
    flow = (mask @ edges @ mask.T).toarray()
    flow[n_groups:, n_groups:] = 0.0  # between outputs and tokens there is nothing to match
    np.fill_diagonal(flow, 0.0)
    return flow / (flow.sum() or 1.0)


def _matched(one: Supernodes, two: Supernodes, first: np.ndarray, second: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of supernodes, one to one, that share more than half of the members of the smaller."""
    partner = dict(zip(first.tolist(), second.tolist(), strict=True))
    shared = np.array([[len({partner.get(node, -1) for node in a.tolist()} & set(b.tolist())) for b in two.members]
                       for a in one.members], dtype=np.float64).reshape(len(one.members), len(two.members))
    smaller = np.minimum.outer([len(a) for a in one.members], [len(b) for b in two.members])
    return [(int(a), int(b)) for a, b in zip(*linear_sum_assignment(shared, maximize=True), strict=True)
            if shared[a, b] > MAJORITY * smaller[a, b]]


def _overlap(one: Supernodes, two: Supernodes, pairs: list[tuple[int, int]]) -> float:
    """NaN where one of the graphs has no flow through supernodes."""
    if not (one.flow.any() and two.flow.any()):
        return math.nan
    rest = min(len(made.flow) - len(made.members) for made in (one, two))
    a = [pair[0] for pair in pairs] + [len(one.members) + i for i in range(rest)]
    b = [pair[1] for pair in pairs] + [len(two.members) + i for i in range(rest)]
    return float(np.minimum(one.flow[np.ix_(a, a)], two.flow[np.ix_(b, b)]).sum())
