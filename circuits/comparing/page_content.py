"""What the page of a comparison is given: plain JSON values.

Node numbers are those of the pruned graphs, which alignments mean. Shapes: N nodes, G supernodes, K ends of flow.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from circuits.graphs.alignment import FALL
from circuits.graphs.cards import FeatureCards
from circuits.graphs.compare import Compared, Comparison, Pair
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import influence, target_weights
from circuits.graphs.pairing import faded
from circuits.graphs.paths import whole_rows
from circuits.graphs.placed import Features, relative_depth
from circuits.graphs.signatures import PROMOTED, VIEWS, card_signatures
from circuits.graphs.supernode_flow import Supernodes
from circuits.graphs.words import node_name

MAX_EDGES = 20_000
"""Edges of a graph that a page holds, those that carry most."""
TOKENS = 10
"""Promoted tokens of a feature."""
LEAST_FLOW = 0.002
"""Share of flow below which no ribbon is drawn."""

Flow = list[tuple[int, int, float, float]]
"""(into, from, share, part of it that flows between the same ends of the other graph)"""


def page_content(found: Comparison) -> dict[str, Any]:
    """Everything that the page's scripts draw. Foreign strings inside."""
    header = found.graphs[0].side.graph.header
    return {"positions": max(len(header.tokens), len(header.token_texts), 1), "views": VIEWS,
            "graphs": [_graph(graph) for graph in found.graphs],
            "pairs": [_pair(found, pair) for pair in found.pairs]}


def _graph(made: Compared) -> dict[str, Any]:
    graph, header = made.side.pruned, made.side.pruned.header
    return {"name": made.name, "tokens": header.token_texts, "layers": header.n_layers, "nodes": _nodes(graph),
            "edges": _edges(graph), "supernodes": _supernodes(graph, made.supernodes)}


def _nodes(graph: AttributionGraph) -> list[dict[str, Any]]:
    """One object per node, in order. ``share``: of the influence of all nodes of its kind; of a logit, its weight."""
    nodes, cards = graph.nodes, graph.feature_cards()
    amount = np.maximum(np.nan_to_num(nodes.influence.astype(np.float64)), 0.0)
    share = np.zeros(len(graph))
    for kind in np.unique(nodes.kind):
        own = nodes.kind == kind
        share[own] = amount[own] / (amount[own].sum() or 1.0)
    targets = target_weights(graph)
    share[nodes.kind == "logit"] = targets[nodes.kind == "logit"]
    depth = relative_depth(graph)
    return [{"id": graph.node_ids[i], "kind": str(nodes.kind[i]), "layer": int(nodes.layer[i]),
             "position": int(nodes.position[i]), "depth": round(float(depth[i]), 5), "name": node_name(graph, i),
             "share": _short(share[i]), "value": _short(nodes.value[i]), "promotes": _promoted(cards, nodes, i)}
            for i in range(len(graph))]


def _promoted(cards: FeatureCards | None, nodes: Any, node: int) -> list[str]:
    card = -1 if cards is None or nodes.kind[node] != "feature" else cards.find(
        int(nodes.layer[node]), int(nodes.feature[node]))
    if cards is None or card < 0:
        return []
    lists = cards.promoted
    return [cards.texts[int(lists.token[i])] for i in range(lists.start[card], lists.start[card + 1])][:TOKENS]


def _edges(graph: AttributionGraph) -> dict[str, Any]:
    """Columns, the edges that carry most influence first, and how many are ``left`` out; those from constants, which
    carry none, do not count. ``share``: of the target's input before pruning."""
    target = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    sums = whole_rows(graph)[target]
    share = np.divide(np.abs(graph.weights), sums, out=np.zeros(graph.n_edges), where=sums > 0)
    carried = share * (influence(graph) + target_weights(graph))[target]
    kept = np.flatnonzero(graph.nodes.kind[graph.indices] != "constant")
    left = max(0, len(kept) - MAX_EDGES)
    kept = kept[np.argsort(-carried[kept], kind="stable")[:MAX_EDGES]]
    return {"left": left, "source": graph.indices[kept].tolist(), "target": target[kept].tolist(),
            "weight": [_short(value) for value in graph.weights[kept]], "share": [_short(x) for x in share[kept]]}


def _supernodes(graph: AttributionGraph, made: Supernodes) -> dict[str, Any]:
    depth = relative_depth(graph)
    return {"names": made.names, "given": made.given, "sizes": [len(own) for own in made.members],
            "depth": [float(depth[own].mean()) for own in made.members]}


def _pair(found: Comparison, pair: Pair) -> dict[str, Any]:
    one, two = found.graphs[0], found.graphs[pair.second]
    aligned = pair.alignment
    first, second = flows(one.supernodes, two.supernodes, pair.flow.pairs)
    return {"second": pair.second, "partners": [list(pairs) for pairs in aligned.partners().items()],
            "matches": [{**vars(match), "similarities": {name: _short(x) for name, x in match.similarities.items()}}
                        for match in aligned.matches],
            "unmatched": [side.tolist() for side in aligned.unmatched], "limits": aligned.limits,
            "limit": _plain(aligned.limit), "views": aligned.views, "nullPairs": aligned.null_pairs,
            "features": aligned.features, "common": aligned.common, "supernodes": pair.flow.pairs,
            "flows": [first, second], "nearestIsScore": aligned.views == (PROMOTED,),
            "nearest": nearest(*by_cards(one.side.pruned, two.side.pruned), aligned.window)}


def nearest(one: Features, two: Features, window: float) -> list[dict[int, tuple[int, float]]]:
    """Of both graphs, by feature node: the feature at the same position of the other graph that is most alike, faded
    by depth as in alignments, and how much; without those to which nothing is alike."""
    best: list[dict[int, tuple[int, float]]] = [{}, {}]
    for position in np.intersect1d(one.places.position, two.places.position).tolist():
        a, b = (np.flatnonzero(side.places.position == position) for side in (one, two))
        away = np.abs(one.places.depth[a][:, None] - two.places.depth[b])
        scores = faded(one.scores(two, a)[:, b], away, window, FALL / window)
        for found, own, other, alike in ((best[0], one.nodes[a], two.nodes[b], scores),
                                         (best[1], two.nodes[b], one.nodes[a], scores.T)):
            for row, place in enumerate(alike.argmax(1).tolist()):
                if alike[row, place] > 0:
                    found[int(own[row])] = int(other[place]), _short(alike[row, place])
    return best


def by_cards(first: AttributionGraph, second: AttributionGraph) -> tuple[Features, Features]:
    """Features of both graphs by the promoted tokens of their cards, all that a finished comparison still knows."""
    columns: dict[str, int] = {}
    made = [card_signatures(graph.feature_cards(), columns) for graph in (first, second)]
    one, two = (Features.of(graph, own.widened(len(columns)))
                for graph, own in zip((first, second), made, strict=True))
    return one, two


def flows(one: Supernodes, two: Supernodes, pairs: list[tuple[int, int]]) -> tuple[Flow, Flow]:
    """What flows between supernodes, outputs (G) and tokens (G + 1 + position) of both graphs, in shares of each
    graph's whole flow, and how much of it flows between the same ends of the other."""
    partner = dict(pairs)
    partner |= {len(one.names) + i: len(two.names) + i for i in range(len(one.flow) - len(one.names))}
    back = {b: a for a, b in partner.items()}
    return _flow(one.flow, two.flow, partner), _flow(two.flow, one.flow, back)


def _flow(own: np.ndarray, other: np.ndarray, partner: dict[int, int]) -> Flow:
    made = []
    for into, source in np.argwhere(own >= LEAST_FLOW).tolist():
        at = partner.get(into), partner.get(source)
        same = other[at[0], at[1]] if at[0] is not None and at[1] is not None else 0.0
        made.append((into, source, _short(own[into, source]), _short(min(own[into, source], same))))
    return sorted(made, key=lambda flow: -flow[2])


def _short(value: float) -> float:
    return float(f"{float(value):.6g}") if math.isfinite(value) else 0.0


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
