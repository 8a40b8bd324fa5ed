"""Supernodes that recur over prompts: groups of different prompts' graphs that hold the same features.

Shapes: G groups of all prompts, F features of all groups.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_array
from scipy.spatial.distance import squareform

from circuits.graphs.activations import feature_keys
from circuits.graphs.cards import FeatureCards
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.group import suggest

ALIKE = 0.5
"""Least mean likeness at which groups of different prompts are one supernode. Two groups of k features each that weigh
the same are alike by their common features' share: half of them must be the same."""
MOST_GROUPS = 6000
"""Groups that are compared, those of largest influence: memory grows with the square."""


@dataclass(frozen=True, eq=False)
class Group:
    """A supernode of one prompt's graph."""

    prompt: int
    """Number of the prompt among all that are aggregated."""
    name: str
    """Foreign string."""
    key: np.ndarray
    """(m,) int64 feature of every member node; those that have influence."""
    position: np.ndarray
    """(m,)"""
    influence: np.ndarray
    """(m,) share of the targets' influence that passes through each member node."""


@dataclass(frozen=True, eq=False)
class Merged:
    """Groups of several prompts that are one supernode."""

    name: str
    """What most of its groups are called, by influence. Foreign string."""
    groups: list[Group]
    members: dict[int, int]
    """In how many prompts each feature is a member, by key, those of most prompts first."""

    @property
    def prompts(self) -> set[int]:
        return {group.prompt for group in self.groups}


def groups_of(graph: AttributionGraph, cards: FeatureCards | None, shares: np.ndarray, prompt: int) -> list[Group]:
    """The supernodes that somebody has named, and those that :func:`graphs.group.suggest` makes of the rest.

    Args:
        shares: (N,) share of the targets' influence that passes through each node.
    """
    named = []
    if graph.header.supernodes:
        place = {node_id: node for node, node_id in enumerate(graph.node_ids)}
        named = [(label, np.array([place[i] for i in ids if i in place], np.int64))
                 for label, *ids in graph.header.supernodes]
    named += [(made.name, np.array(made.nodes, np.int64)) for made in suggest(graph, cards)]
    groups = []
    for label, nodes in named:
        nodes = nodes[(graph.nodes.kind[nodes] == "feature") & (shares[nodes] > 0)]
        if len(nodes):
            groups.append(Group(prompt, label, feature_keys(graph.nodes.layer[nodes], graph.nodes.feature[nodes]),
                                graph.nodes.position[nodes], shares[nodes]))
    return groups


def merge(groups: Sequence[Group]) -> list[Merged]:
    """Supernodes, those of largest influence first; single groups too.

    How alike two groups are: Bhattacharyya coefficient of their influence by feature, the sum over common features of
    the root of the product of their shares. Joined by average linkage down to ALIKE, so that no chain of groups, each
    a little like the next, becomes one.
    """
    groups = sorted(groups, key=lambda group: -float(group.influence.sum()))[:MOST_GROUPS]
    if len(groups) < 2:
        return [_merged([group]) for group in groups]
    roots = _root_shares(groups)
    distance = 1.0 - np.clip((roots @ roots.T).toarray(), 0.0, 1.0)
    np.fill_diagonal(distance, 0.0)
    labels = fcluster(linkage(squareform(distance, checks=False), "average"), 1 - ALIKE, "distance")
    found: dict[int, list[Group]] = defaultdict(list)
    for group, label in zip(groups, labels.tolist(), strict=True):
        found[label].append(group)
    return sorted(map(_merged, found.values()), key=lambda made: -sum(float(g.influence.sum()) for g in made.groups))


def _root_shares(groups: Sequence[Group]) -> csr_array:
    """(G, F) roots of the shares of influence that features have in their group."""
    features, column = np.unique(np.concatenate([group.key for group in groups]), return_inverse=True)
    row = np.repeat(np.arange(len(groups)), [len(group.key) for group in groups])
    shares = np.concatenate([group.influence / group.influence.sum() for group in groups])
    summed = csr_array((shares, (row, column)), shape=(len(groups), len(features)))
    summed.sum_duplicates()
    return summed.sqrt()


def _merged(groups: list[Group]) -> Merged:
    worth: dict[str, float] = defaultdict(float)
    members: Counter[int] = Counter()
    of_prompt: dict[int, set[int]] = defaultdict(set)
    for group in groups:
        worth[group.name] += float(group.influence.sum())
        of_prompt[group.prompt] |= set(group.key.tolist())
    for keys in of_prompt.values():
        members.update(keys)
    return Merged(max(worth, key=lambda name: worth[name]), groups, dict(members.most_common()))
