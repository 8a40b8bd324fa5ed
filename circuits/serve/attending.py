"""What attention does in a graph: the heads that carry an edge, and why a head looks where it looks.

Shapes: C components of one side of a score.
"""

from __future__ import annotations

import math

import numpy as np

from circuits.attention.edge_heads import graph_head_loadings
from circuits.attention.qk import QKAttribution, qk_attribution
from circuits.graph_nodes import node_index
from circuits.serve.model_schemas import Attention, EdgeParts, HeadPart, ScorePair, ScorePart
from circuits.serve.reruns import Subject


def edge_parts(subject: Subject, source: str, target: str) -> EdgeParts:
    """The heads that carry an edge between two nodes, given by their ids.

    Raises:
        InputError: no such node or edge.
    """
    rerun = subject.rerun
    edge = node_index(rerun.graph, source), node_index(rerun.graph, target)
    found = graph_head_loadings(rerun.graph, rerun.model, rerun.transcoders, [edge], local=rerun.local)
    weight = float(found.weights[0])
    return EdgeParts(weight=weight, bypass=found.bypass[0].tolist(), heads=[
        HeadPart(layer=layer, head=head, loading=loading, share=loading / weight if weight else None)
        for layer, head, loading in found.strongest(0, found.loadings[0].size)])


def attention(subject: Subject, layer: int, head: int, query: int, key: int, versus: int | None, count: int
              ) -> Attention:
    """The score that a query gives to a key, or its lead over that of another, as the ``count`` largest pairs.

    Raises:
        InputError: no such layer, head or position, or a key that the query does not see.
    """
    rerun = subject.rerun
    found = qk_attribution(rerun.model, rerun.local, layer, head, query, key, versus_key=versus,
                           reader=subject.reader).merged()
    return Attention(
        score=found.score, residual=found.residual, pattern=found.pattern.tolist(),
        scores=[score if math.isfinite(score) else None for score in found.scores.tolist()],
        pairs=[_pair(subject, found, pair.query_source, pair.key_source, pair.contribution)
               for pair in found.pairs(count)],
        queries=_largest(subject, found, found.queries.source, found.by_query(), count),
        keys=_largest(subject, found, found.keys.source, found.by_key(), count))


def _pair(subject: Subject, found: QKAttribution, query: int, key: int, value: float) -> ScorePair:
    query_name, key_name = (subject.name(found.components[source]) for source in (query, key))
    return ScorePair(query_id=subject.node_id(query), query_name=query_name, key_id=subject.node_id(key),
                     key_name=key_name, value=value)


def _largest(subject: Subject, found: QKAttribution, sources: np.ndarray, values: np.ndarray, count: int
             ) -> list[ScorePart]:
    """The ``count`` largest of the components ``sources`` (C,) with ``values`` (C,)."""
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    return [ScorePart(id=subject.node_id(int(sources[i])), name=subject.name(found.components[int(sources[i])]),
                      value=float(values[i])) for i in order]
