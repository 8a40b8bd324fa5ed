"""The minimal common circuit: recurring features and edges that lead from tokens to the targets in most prompts.

Tokens count as one: a feature that some token feeds in most prompts, whatever its text, is fed in all of them.

What it holds of a prompt is exact: of all influence that starts at the targets and reaches tokens (before pruning), the
part whose whole path runs along the circuit's edges. Direct edges from tokens to the targets are kept apart: they need
no feature.

Shapes: I items, C edges between items, n prompts, V nodes and E edges of all prompts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from circuits.graphs.aggregate_edges import Edges, EdgeTable, Items

CORE = 0.9
"""Share of what the circuit's features hold that the core must hold."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """Features and edges between tokens and targets that recur, and what they hold of every prompt."""

    features: np.ndarray
    """Ascending items of its features."""
    edges: EdgeTable
    """Its edges between items, those from tokens and into the targets included. Between features, or from a feature
    into the targets, they recur; from tokens of one role they need not."""
    held: np.ndarray
    """(n,) share of the influence reaching tokens that runs along the circuit, through features."""
    direct: np.ndarray
    """(n,) the same along the circuit's direct edges from tokens to the targets."""
    core: np.ndarray
    """Items of the fewest features, as far as greedy removal finds them, that still hold CORE of ``held``'s mean."""
    core_held: np.ndarray
    """(n,) what those hold."""


def common_circuit(table: EdgeTable, edges: Sequence[Edges], token_influence: np.ndarray, items: Items, least: int
                   ) -> Circuit:
    """The circuit of a family.

    Args:
        table: of its prompts alone, with the features that recur and all edges between them.
        edges: of its prompts, in the same order; they may have more features.
        token_influence: (n,) share of the targets' influence that reaches tokens.
        least: prompts that an edge must be in.
    """
    table = table.columns(_count(table, items) >= least)
    table = table.columns(np.isin(table.codes, _on_paths(table.codes, items)))
    codes = table.codes
    ends = np.array([codes // len(items), codes % len(items)])
    stack = Stack(edges, codes, items, token_influence)
    features = np.unique(ends[ends < len(items.keys)])
    held = stack.held(features)
    core = _core(stack, features, float(held.mean()))
    return Circuit(features, table, held, stack.direct, core, stack.held(core))


def _count(table: EdgeTable, items: Items) -> np.ndarray:
    """(C,) prompts that have the edge; of an edge from tokens, prompts in which any tokens feed its target."""
    count, target = table.count, table.codes // len(items)
    token = np.flatnonzero(items.is_role(table.codes % len(items)))
    fed, column = np.unique(target[token], return_inverse=True)
    into = csr_array((np.ones(len(token)), (np.arange(len(token)), column)), shape=(len(token), len(fed)))
    count[token] = np.asarray(((table.flow[:, token] @ into) > 0).sum(0)).ravel()[column]
    return count


def _on_paths(codes: np.ndarray, items: Items) -> np.ndarray:
    """Those of the edges (C,) that lie on a path from a role of tokens to the targets."""
    target, source = codes // len(items), codes % len(items)
    up = csr_array((np.ones(len(codes)), (source, target)), shape=(len(items), len(items)))
    leads = np.zeros(len(items), dtype=bool)
    leads[breadth_first_order(up.T.tocsr(), items.target, return_predecessors=False)] = True
    fed = np.zeros(len(items), dtype=bool)
    for role in range(len(items.keys), items.target):
        fed[breadth_first_order(up, role, return_predecessors=False)] = True
    return codes[fed[source] & leads[target]]


def _core(stack: Stack, features: np.ndarray, whole: float) -> np.ndarray:
    """Removes the features through which least runs, as many at once as can be told not to cost too much together."""
    core, slack = features, (1 - CORE) * whole
    while len(core):
        through = stack.through(core)
        order = np.argsort(through, kind="stable")
        # a path runs through several: together they cost at most the sum, so half of what may go is safe
        going = max(1, int(np.searchsorted(np.cumsum(through[order]), slack / 2, side="right")))
        left = np.delete(core, order[:going])
        now = float(stack.held(left).mean())
        if now < CORE * whole - 1e-12:
            return core
        core, slack = left, now - CORE * whole
    return core


class Stack:
    """All prompts' nodes and edges of a circuit in one graph, for sweeps over all prompts at once."""

    def __init__(self, edges: Sequence[Edges], codes: np.ndarray, items: Items, token_influence: np.ndarray):
        inside = [np.isin(one.code, codes) for one in edges]
        first = np.append(0, np.cumsum([len(one.item) for one in edges]))
        self.n, self.items, self.tokens = len(edges), items, token_influence
        self.prompt = np.repeat(np.arange(len(edges)), np.diff(first))
        self.item = np.concatenate([one.item for one in edges])
        self.start = np.concatenate([one.start for one in edges])
        target, source, share = (np.concatenate(parts) for parts in zip(*(
            (one.target[kept] + at, one.source[kept] + at, np.abs(one.share[kept]))
            for one, kept, at in zip(edges, inside, first, strict=False)), strict=True))
        level = np.concatenate([one.level for one in edges])
        order = np.argsort(level[target], kind="stable")
        self.by_level = [(target[part], source[part], share[part]) for part in np.split(
            order, np.flatnonzero(np.diff(level[target[order]])) + 1)] if len(order) else []
        self.token = items.is_role(self.item)
        direct = (self.item[target] == items.target) & self.token[source]
        self.direct = self._per_prompt(np.bincount(
            target[direct], self.start[target[direct]] * share[direct], len(self.item)))

    def held(self, features: np.ndarray) -> np.ndarray:
        """(n,) share of what reaches tokens that runs through the features ``features`` alone."""
        return self._per_prompt(self._down(features) * self.token) - self.direct

    def through(self, features: np.ndarray) -> np.ndarray:
        """What runs through each of ``features`` on paths through no others than them, mean over prompts."""
        passing = self._down(features) * self._up(features) / self._divisor[self.prompt]
        return np.bincount(self.item, passing, len(self.items))[features] / self.n

    @property
    def _divisor(self) -> np.ndarray:
        return np.where(self.tokens > 0, self.tokens, 1.0)

    def _per_prompt(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.prompt, values, self.n) / self._divisor

    def _open(self, features: np.ndarray) -> np.ndarray:
        """(V,) 1 where paths may run: the features given, tokens and targets."""
        return (np.isin(self.item, features) | (self.item >= len(self.items.keys))).astype(np.float64)

    def _down(self, features: np.ndarray) -> np.ndarray:
        """(V,) influence that arrives at each node along the circuit."""
        arrived, open_ = self.start.copy(), self._open(features)
        for target, source, share in reversed(self.by_level):
            arrived += np.bincount(source, arrived[target] * share * open_[source], len(arrived))
        return arrived

    def _up(self, features: np.ndarray) -> np.ndarray:
        """(V,) share of what is at each node that reaches tokens along the circuit."""
        reaches, open_ = self.token.astype(np.float64), self._open(features)
        for target, source, share in self.by_level:
            reaches += np.bincount(target, reaches[source] * share * open_[target], len(reaches))
        return reaches
