"""Replacement and completeness scores (METHOD 5).

Sources: Ameisen et al. 2025, "Circuit Tracing" (evaluating graphs); circuit-tracer 0.5.0 for the second completeness.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import Rows, flow, rows_by_level, target_weights


def scores(graph: AttributionGraph) -> dict[str, float]:
    """The three scores of a graph, each in [0, 1]; 1.0 where nothing flows, so nothing is unexplained.

    - ``replacement``: influence of tokens over influence of tokens and errors.
    - ``completeness``: 1 - (share of a node's input that comes from errors), averaged over nodes with inputs with
      weights influence + target weight. Anthropic's wording.
    - ``completeness_all_nodes``: the same over all nodes, those without inputs counting as fully explained, as
      circuit-tracer sums it; larger for that reason.

    Raises:
        InputError: an edge does not go up in layer.
    """
    return _measure(graph)[1]


def annotate(graph: AttributionGraph) -> AttributionGraph:
    """The graph with ``nodes.influence`` and ``header.scores`` computed from its own edges, in one pass.

    Where rows were shortened, both speak of the edges that are present: see :mod:`graphs.influence`.

    Raises:
        InputError: an edge does not go up in layer.
    """
    arrived, values = _measure(graph)
    return replace(graph, nodes=replace(graph.nodes, influence=arrived.astype(np.float32)),
                   header=replace(graph.header, scores=values))


def _measure(graph: AttributionGraph) -> tuple[np.ndarray, dict[str, float]]:
    """(N,) influence, and the scores."""
    fed = np.zeros(len(graph), dtype=bool)

    def watched() -> Iterator[Rows]:
        for rows in rows_by_level(graph):
            fed[rows.nodes] = rows.scale > 0
            yield rows

    start = target_weights(graph)
    arrived = flow(watched(), start)
    mass = arrived + start
    errors = float(arrived[graph.nodes.kind == "error"].sum())
    tokens = float(arrived[graph.nodes.kind == "embedding"].sum())
    # The error part of the mean is the sum over t of mass_t * (share of t from errors). That is what flows into
    # errors, which is their influence: the scores need no second pass over the edges.
    return arrived, {
        "replacement": _one_minus(errors, tokens + errors),
        "completeness": _one_minus(errors, float(mass[fed].sum())),
        "completeness_all_nodes": _one_minus(errors, float(mass.sum())),
    }


def _one_minus(part: float, whole: float) -> float:
    return 1.0 - part / whole if whole > 0 else 1.0
