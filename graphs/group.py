"""Suggested supernodes: features of a graph that act as one (Ameisen et al. 2025, "Circuit Tracing", group by hand).

Shapes: N nodes, C candidate features, M members of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform

from circuits.errors import InputError
from circuits.graphs.cards import FeatureCards
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.group_names import Namer, folded, promoted_by, reason_of
from circuits.graphs.influence import target_weights
from circuits.graphs.paths import whole_rows

CANDIDATES = 800
"""Features that are compared, those of largest influence: time and memory grow with the square."""
CUT = 0.45
"""Least mean similarity at which two groups are joined. On pruned graphs of four prompts (Gemma 3 270M, bundled
transcoder) 1% to 5% of the pairs of different features reach it, 0.1% to 0.4% once every row's sources are shuffled."""
STRONG = 0.3
"""Share of a feature's input from which its source counts as a step of a path before it, not as part of the same."""
ELSEWHERE = 0.7
"""Similarity that is left to other features at neighbouring positions; it halves with every HALF_POSITIONS more."""
HALF_POSITIONS = 8
OUTPUTS = 0.6
"""Weight of outputs, and one minus that of inputs: what a feature does says more than what it reads, which features of
one early token share whatever they do."""
MEANING = 0.5
"""How much of what profiles leave open equal meaning makes up for."""


@dataclass(frozen=True)
class Suggestion:
    """A group of features that could be one supernode."""

    nodes: tuple[int, ...]
    """Node indices, ascending; at least two."""
    name: str
    """Short, never empty; holds foreign strings."""
    reason: str
    """One sentence with the numbers behind it; holds foreign strings."""
    cohesion: float
    """Mean similarity of all pairs of its nodes, in [0, 1]; see :func:`similarity`."""
    separation: float
    """Mean similarity of its nodes to the candidates outside of it: well below ``cohesion`` for a group that stands
    apart."""
    influence: float
    """Share of the influence of all nodes of the graph that its nodes have."""


def suggest(graph: AttributionGraph, cards: FeatureCards | None = None, *, count: int = 12) -> list[Suggestion]:
    """At most ``count`` disjoint groups of features, those with the largest influence times cohesion first.

    Candidates are the CANDIDATES features of largest influence that are not in a supernode of the graph yet: meant
    for pruned graphs, larger ones are grouped by their most influential part. Groups are joined as long as their
    mean similarity is CUT or more (average linkage), but not when a node of one directly feeds a node of the other
    with more than STRONG of its input: that is a path. The same graph gives the same groups.

    Args:
        cards: what is known of the features; without it, only the same feature at several positions has equal meaning.

    Raises:
        InputError: ``count`` below 1, or an edge that does not go up in layer.
    """
    if count < 1:
        raise InputError(f"count is {count}: expected 1 or more suggestions")
    candidates = _candidates(graph)
    if len(candidates) < 2:
        return []
    alike = similarity(graph, candidates, cards)
    influence = _influence(graph)
    shares = influence[candidates] / (float(influence.sum()) or 1.0)
    groups = _clusters(alike.total, _feeds(graph, candidates))
    groups.sort(key=lambda group: (-shares[group].sum() * _pair_mean(alike.total, group), int(group[0])))
    groups = groups[:count]
    names = Namer(graph, candidates, cards).names([candidates[group] for group in groups])
    made = []
    for group, name in zip(groups, names, strict=True):
        nodes, outside = candidates[group], np.delete(alike.total[group], group, axis=1)
        reason = reason_of(graph, nodes, cards, _pair_mean(alike.outputs, group), _pair_mean(alike.inputs, group))
        made.append(Suggestion(
            tuple(nodes.tolist()), name, reason, cohesion=_pair_mean(alike.total, group),
            separation=float(outside.mean()) if outside.size else 0.0, influence=float(shares[group].sum())))
    return made


class Similarity(NamedTuple):
    """(C, C) float64 in [0, 1]; see :func:`similarity`."""

    total: np.ndarray
    outputs: np.ndarray
    inputs: np.ndarray


def similarity(graph: AttributionGraph, candidates: np.ndarray, cards: FeatureCards | None = None) -> Similarity:
    """How alike features are, each matrix (C, C) float64 in [0, 1].

    - ``outputs``: cosine of their signed effects, as shares of the targets' whole inputs, each target weighted by the
      root of its influence; 0 where it is negative.
    - ``inputs``: cosine of their signed inputs, as shares of all that the sources send out, so that a token that feeds
      everything says little; 0 where negative.
    - ``meaning``: root of the cosine of their promoted tokens (the k-th of a list weighs 1 / k; spaces and capitals
      aside; from the second third of the layers on), since by chance nearly all pairs share none; 1 for the same
      feature.
    - ``total``: outputs and inputs, weighted by OUTPUTS, and MEANING times meaning of what that leaves to 1; less for
      other features at other positions (ELSEWHERE), and halved by half of the model's layers in between.

    Args:
        candidates: (C,) node indices of features.
    """
    nodes, adjacency = graph.nodes, graph.adjacency().astype(np.float64)
    sums = whole_rows(graph)
    mass = _influence(graph) + target_weights(graph)
    per_target = np.sqrt(mass) * np.divide(1.0, sums, out=np.zeros(len(graph)), where=sums > 0)
    sent = np.asarray(abs(adjacency).sum(0)).ravel()
    per_source = np.divide(1.0, sent, out=np.zeros(len(graph)), where=sent > 0)
    outputs = _cosines(adjacency[:, candidates].T.tocsr().multiply(per_target[None, :]))
    inputs = _cosines(adjacency[candidates].multiply(per_source[None, :]))
    layer, position, feature = (column[candidates].astype(np.int64) for column in (
        nodes.layer, nodes.position, nodes.feature))
    same = (layer[:, None] == layer) & (feature[:, None] == feature)
    pairs = list(zip(layer.tolist(), feature.tolist(), strict=True))
    meaning = np.where(same, 1.0, np.sqrt(_promoted(graph, pairs, cards)))
    profile = OUTPUTS * outputs + (1 - OUTPUTS) * inputs
    away = np.abs(position[:, None] - position)
    place = np.where(same | (away == 0), 1.0, ELSEWHERE * 0.5 ** ((away - 1) / HALF_POSITIONS))
    depth = max(graph.header.n_layers, int(layer.max()) + 1)
    place *= 0.5 ** (np.abs(layer[:, None] - layer) / (depth / 2))
    total = place * (profile + (1 - profile) * MEANING * meaning)
    np.fill_diagonal(total, 1.0)
    return Similarity(total, outputs, inputs)


def _candidates(graph: AttributionGraph) -> np.ndarray:
    """(C,) nodes, ascending."""
    nodes = graph.nodes
    free = nodes.kind == "feature"
    if graph.header.supernodes:
        taken = {node_id for _, *ids in graph.header.supernodes for node_id in ids}
        free &= np.array([node_id not in taken for node_id in graph.node_ids], dtype=bool)
    features = np.flatnonzero(free)
    return np.sort(features[np.argsort(-_influence(graph)[features], kind="stable")[:CANDIDATES]])


def _cosines(rows: csr_array) -> np.ndarray:
    """(C, C) cosine of every two rows (C, N), 0 for rows of zeros and where negative."""
    rows = csr_array(rows)
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
    scaled = rows.multiply(np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)[:, None]).tocsr()
    return np.clip((scaled @ scaled.T).toarray(), 0.0, 1.0)


def _promoted(graph: AttributionGraph, pairs: list[tuple[int, int]], cards: FeatureCards | None) -> np.ndarray:
    """(C, C) cosine of the promoted tokens, the k-th of a list weighing 1 / k; 0 where nothing is known."""
    columns: dict[str, int] = {}
    known = promoted_by(graph, cards, set(pairs))
    entries = [(row, columns.setdefault(folded(term.text), len(columns)), 1 / (rank + 1))
               for row, pair in enumerate(pairs) for rank, term in enumerate(known[pair])]
    rows, tokens, weights = np.array(entries, dtype=np.float64).reshape(-1, 3).T
    return _cosines(csr_array((weights, (rows.astype(np.int64), tokens.astype(np.int64))),
                              shape=(len(pairs), max(1, len(columns)))))


def _feeds(graph: AttributionGraph, candidates: np.ndarray) -> np.ndarray:
    """(C, C) bool, symmetric: one of the two feeds the other with more than STRONG of its input."""
    inside = abs(graph.adjacency()[candidates][:, candidates]).toarray().astype(np.float64)
    strong = inside > STRONG * whole_rows(graph)[candidates][:, None]
    return strong | strong.T


def _clusters(similar: np.ndarray, apart: np.ndarray) -> list[np.ndarray]:
    """Members (M,), ascending, of each group of two or more: the largest branches of the tree that are joined at CUT
    or above and hold no pair of ``apart`` (C, C)."""
    distance = np.where(apart, 1.0, 1.0 - (similar + similar.T) / 2)
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average")
    branches = {i: [i] for i in range(len(similar))}
    done = []
    for step, (one, two, height, _) in enumerate(tree.tolist()):
        left, right = branches.pop(int(one), []), branches.pop(int(two), [])
        if left and right and height <= 1 - CUT and not apart[np.ix_(left, right)].any():
            branches[len(similar) + step] = left + right
        else:
            done += [left, right]
    done += branches.values()
    return [np.sort(members) for members in done if len(members) > 1]


def _pair_mean(matrix: np.ndarray, group: np.ndarray) -> float:
    """Over the pairs of a group (M,)."""
    one, two = np.triu_indices(len(group), 1)
    return float(matrix[group[one], group[two]].mean())


def _influence(graph: AttributionGraph) -> np.ndarray:
    """(N,) float64, 0 where a file of another program has none."""
    return np.maximum(np.nan_to_num(graph.nodes.influence.astype(np.float64)), 0.0)
