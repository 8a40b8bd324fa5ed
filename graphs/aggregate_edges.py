"""Edges that recur over prompts: between features, from tokens by the part they play, and into the targets.

Graphs of different prompts have different nodes. Their common parts are *items*: a feature, whatever its position; a
role of tokens; the targets as one. An edge between items is all edges between their nodes in one prompt.

Shapes: F features, R roles, n nodes and E edges of one prompt that have an item, C edges between items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csc_array

from circuits.graphs.activations import feature_keys
from circuits.graphs.aggregate_prompts import Prompt, mass
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import levels
from circuits.graphs.paths import whole_rows
from circuits.graphs.words import quoted

LAST, OTHER = "the last token", "another token"
"""Roles: the last one whatever its text, and those whose texts differ from prompt to prompt."""


@dataclass(frozen=True, eq=False)
class Items:
    """What nodes of different prompts have in common, numbered: features, then roles of tokens, then the targets."""

    keys: np.ndarray
    """(F,) int64 ascending, as :func:`graphs.activations.feature_keys` numbers features."""
    texts: list[str]
    """Texts of tokens that play a role of their own; foreign."""

    def __len__(self) -> int:
        return self.target + 1

    @property
    def roles(self) -> list[str]:
        """(R,) in words; foreign token text in them."""
        return [quoted(text) for text in self.texts] + [LAST, OTHER]

    @property
    def target(self) -> int:
        return len(self.keys) + len(self.texts) + 2

    def is_role(self, item: np.ndarray) -> np.ndarray:
        """Which of the items stand for tokens."""
        return (item >= len(self.keys)) & (item < self.target)

    def of_features(self, keys: np.ndarray) -> np.ndarray:
        """Items of features ``keys`` (m,), -1 for those that have none."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def of_tokens(self, token_texts: Sequence[str]) -> np.ndarray:
        """(P,) items of a prompt's tokens."""
        number = {text: i for i, text in enumerate(self.texts)}
        roles = [number.get(text, len(self.texts) + 1) for text in token_texts[:-1]] + [len(self.texts)]
        return len(self.keys) + np.array(roles, dtype=np.int64)


def common_texts(families: Iterable[Sequence[Prompt]], share: float) -> list[str]:
    """Token texts that at least ``share`` of the prompts of one family have before their last token, and two at least:
    the frame of the prompts, in the order of their first appearance."""
    found: dict[str, None] = {}
    for prompts in families:
        count = Counter(text for prompt in prompts for text in set(prompt.token_texts[:-1]))
        for prompt in prompts:
            found |= dict.fromkeys(text for text in prompt.token_texts[:-1]
                                   if count[text] >= max(2, share * len(prompts) - 1e-9))
    return list(found)


@dataclass(frozen=True, eq=False)
class Edges:
    """The part of one prompt's graph that has items."""

    size: int
    """How many items there are."""
    item: np.ndarray
    """(n,) of each node"""
    level: np.ndarray
    """(n,) as :func:`graphs.influence.levels` has it."""
    start: np.ndarray
    """(n,) float64 weight of a target among the targets, 0 for other nodes."""
    mass: np.ndarray
    """(n,) float64 share of the targets' influence that passes through the node; the weight of a target."""
    target: np.ndarray
    """(E,) node"""
    source: np.ndarray
    """(E,) node"""
    share: np.ndarray
    """(E,) float64 the edge over all of its target's input before pruning, constants left out of it; signed."""

    @property
    def code(self) -> np.ndarray:
        """(E,) number of the edge between items."""
        return self.item[self.target].astype(np.int64) * self.size + self.item[self.source]

    @cached_property
    def between_items(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(C,) codes, ascending; (C,) share of the targets' influence that passes along; (C,) the sum of the edges over
        the target item's whole input: its nodes weighted by their influence, signed."""
        codes, edge = np.unique(self.code, return_inverse=True)
        passed = self.mass[self.target] * self.share
        of_item = np.bincount(self.item, self.mass, self.size)
        flow, signed = (np.bincount(edge, values, len(codes)) for values in (np.abs(passed), passed))
        there = flow > 0
        return codes[there], flow[there], signed[there] / of_item[codes[there] // self.size]


def edges_of(graph: AttributionGraph, items: Items) -> Edges:
    """The nodes of a graph that are of an item, and the edges between them."""
    nodes, number = graph.nodes, np.full(len(graph), -1)
    features, tokens = nodes.kind == "feature", nodes.kind == "embedding"
    number[features] = items.of_features(feature_keys(nodes.layer[features], nodes.feature[features]))
    number[tokens] = items.of_tokens(graph.header.token_texts)[nodes.position[tokens]]
    number[graph.target_nodes] = items.target
    kept = np.flatnonzero(number >= 0)
    place = np.cumsum(number >= 0) - 1
    edges = graph.edges_between(number >= 0)
    targets = np.searchsorted(graph.indptr, edges, side="right") - 1
    sums = whole_rows(graph)[targets]
    share = np.divide(graph.weights[edges], sums, out=np.zeros(len(edges)), where=sums > 0)
    through, start = mass(graph), np.zeros(len(graph))
    start[graph.target_nodes] = through[graph.target_nodes]
    return Edges(len(items), number[kept], levels(graph)[kept], start[kept], through[kept], place[targets],
                 place[graph.indices[edges]], share)


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """Edges between items in several prompts (n); sparse matrices of a row for each prompt."""

    codes: np.ndarray
    """(C,) ascending"""
    flow: csc_array
    """(n, C) share of the targets' influence that passes along; above 0 where the edge is."""
    weight: csc_array
    """(n, C) share of the target item's input, signed."""

    def rows(self, prompts: np.ndarray) -> EdgeTable:
        """Of the prompts (m,) alone."""
        return EdgeTable(self.codes, self.flow[prompts], self.weight[prompts])

    def columns(self, chosen: np.ndarray) -> EdgeTable:
        """The edges in the mask (C,)."""
        at = np.flatnonzero(chosen)
        return EdgeTable(self.codes[at], self.flow[:, at], self.weight[:, at])

    @property
    def count(self) -> np.ndarray:
        """(C,) prompts that have the edge."""
        return np.asarray((self.flow > 0).sum(0)).ravel()


def edge_table(found: Sequence[Edges]) -> EdgeTable:
    """Of all prompts' edges."""
    parts = [edges.between_items for edges in found]
    codes, column = np.unique(np.concatenate([codes for codes, _, _ in parts]), return_inverse=True)
    row = np.repeat(np.arange(len(parts)), [len(codes) for codes, _, _ in parts])
    flow, weight = (csc_array((np.concatenate([part[i] for part in parts]), (row, column)),
                              shape=(len(parts), len(codes))) for i in (1, 2))
    return EdgeTable(codes, flow, weight)
