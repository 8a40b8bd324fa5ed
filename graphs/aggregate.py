"""What graphs of many prompts have in common, and what differs between two families of prompts.

Graphs are read one at a time, twice: first the features of every graph, then the edges between those that recur. A
feature is the same where its layer and its number are: only graphs of one model and one transcoder set are aggregated.
A feature is *in* a prompt where the pruned graph has it at any position, and *recurs* in a family where it is in at
least a given share of its prompts, and in two.

Shapes: n prompts of a family, F features, C edges between items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np

from circuits.errors import InputError
from circuits.graphs.aggregate_circuit import Circuit, common_circuit
from circuits.graphs.aggregate_difference import Difference, compare_families, influence_of, tested_features
from circuits.graphs.aggregate_edges import Edges, EdgeTable, Items, common_texts, edge_table, edges_of
from circuits.graphs.aggregate_groups import merge
from circuits.graphs.aggregate_places import Place, Positions
from circuits.graphs.aggregate_prompts import GraphList, Prompt
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.resampling import bootstrap_mean, wilson

Graphs: TypeAlias = Sequence[AttributionGraph | str | Path]
Progress: TypeAlias = Callable[[str, int, int], None]
FEWEST = 2
"""Prompts of a family: with one, nothing recurs."""


@dataclass(frozen=True, eq=False)
class Recurring:
    """A feature or a supernode that recurs in a family."""

    name: str
    """Label; foreign."""
    count: int
    """Prompts that have it."""
    present: tuple[float, float, float]
    """Share of prompts that have it, and the ends of its 95% interval (Wilson)."""
    influence: tuple[float, float, float]
    """Mean over all prompts, 0 where it is absent, of the share of the targets' influence that passes through it, and
    the ends of a 95% bootstrap interval. Of a supernode, the sum over its features: what passes through two counts
    twice."""
    place: Place
    key: int = -1
    """Of a feature, its number among all layers': see :func:`graphs.activations.feature_keys`."""
    density: float | None = None
    """Share of a text on which a feature fires, where a card tells it: one that fires nearly everywhere recurs
    whatever the prompts say."""
    members: Mapping[int, int] = field(default_factory=dict)
    """In how many prompts each feature is a member of a supernode, by key."""


@dataclass(frozen=True, eq=False)
class Family:
    """What the prompts of one family have in common."""

    name: str
    prompts: list[Prompt]
    least: int
    """Prompts that something must be in to recur."""
    distinct: int
    """Features that are in any of the prompts."""
    features: list[Recurring]
    """Those that recur, of the largest mean influence first."""
    feature_share: np.ndarray
    """(n,) share of the influence of the graph's features that those hold."""
    supernodes: list[Recurring]
    """Those that are in two prompts or more, of the largest mean influence first."""
    edges: EdgeTable
    """Those that recur, between features that recur, tokens and targets."""
    circuit: Circuit
    positions: Positions
    """Tells where features stand in these prompts."""


@dataclass(frozen=True, eq=False)
class Aggregation:
    """What :func:`aggregate` found."""

    model: str
    transcoders: str
    share: float
    seed: int
    families: list[Family]
    items: Items
    """What the edges of all families are between."""
    labels: dict[int, str]
    """Of the features, by key; foreign."""
    difference: Difference | None
    """None where two families were not compared."""
    warnings: list[str]

    def item_name(self, item: int) -> str:
        """Of a feature its label, of tokens their role; holds foreign strings."""
        if item == self.items.target:
            return "target"
        if item >= len(self.items.keys):
            return self.items.roles[item - len(self.items.keys)]
        return self.feature_name(int(self.items.keys[item]))

    def feature_name(self, key: int) -> str:
        """The label of a feature, or its layer and number; foreign."""
        return self.labels.get(key) or f"{key >> 32}/{key & 0xFFFFFFFF}"


def aggregate(families: Mapping[str, Graphs], *, versus: tuple[str, str] | None = None, share: float = 0.5,
              seed: int = 0, progress: Progress | None = None) -> Aggregation:
    """Find what recurs in each family, and what differs between two.

    Args:
        families: their graphs, or the native files of them, by name. Graphs that nobody pruned are pruned.
        versus: names of two families to compare; by default those of ``families`` where there are two.
        share: of a family's prompts that something must be in to recur.
        seed: of intervals and tests.
        progress: called with (stage, done, total).

    Raises:
        InputError: no family has two prompts; graphs of different models or transcoder sets; an unknown family;
            ``share`` outside (0, 1]; or a graph that cannot be read.
    """
    report = progress or (lambda stage, done, total: None)
    names, skipped = _usable(families, versus, share)
    compared = versus or ((names[0], names[1]) if len(names) == 2 else None)
    graphs = GraphList([item for name in names for item in families[name]])
    members = _ranges([len(families[name]) for name in names])
    prompts = []
    for prompt in graphs.prompts():
        prompts.append(prompt)
        report("reading features", len(prompts), len(graphs))
    by_family = {name: [prompts[i] for i in part] for name, part in zip(names, members, strict=True)}
    kept = [_recurring(by_family[name], least_of(len(by_family[name]), share)) for name in names]
    if compared:
        kept.append(tested_features(by_family[compared[0]], by_family[compared[1]], share))
    items = Items(np.unique(np.concatenate(kept)), common_texts(by_family.values(), share))
    edges = []
    for i in range(len(graphs)):
        edges.append(edges_of(graphs.open(i), items))
        report("reading edges", i + 1, len(graphs))
    table = edge_table(edges)
    labels = {key: label for prompt in reversed(prompts) for key, label in prompt.labels.items()}
    made: list[Family] = []
    for name, part in zip(names, members, strict=True):
        report(f"aggregating {name}", len(made), len(names))
        made.append(_family(name, by_family[name], table.rows(part), [edges[i] for i in part], items, labels, share,
                            seed))
    difference = None
    if compared:
        report(f"comparing {compared[0]} with {compared[1]}", 0, 1)
        rows = np.concatenate([members[names.index(name)] for name in compared])
        difference = compare_families(compared, by_family[compared[0]], by_family[compared[1]], table.rows(rows),
                                      items, share, seed)
    return Aggregation(graphs.model, graphs.transcoders, share, seed, made, items, labels, difference,
                       [*skipped, *graphs.warnings])


def least_of(prompts: int, share: float) -> int:
    """Prompts that something must be in to recur in a family of ``prompts``."""
    return max(FEWEST, int(np.ceil(share * prompts - 1e-9)))


def _usable(families: Mapping[str, Graphs], versus: tuple[str, str] | None, share: float
            ) -> tuple[list[str], list[str]]:
    """Names of families with enough prompts, and warnings about the others."""
    if not 0 < share <= 1:
        raise InputError(f"share is {share}: expected the share of prompts, above 0 and up to 1, that something must "
                         "be in to recur, such as 0.5")
    if versus and versus[0] == versus[1]:
        raise InputError(f"family {versus[0]!r} is to be compared with itself: name two families")
    if versus and (unknown := [name for name in versus if name not in families]):
        raise InputError(f"there is no family {unknown[0]!r}: expected one of {', '.join(map(repr, families))}")
    names = [name for name, graphs in families.items() if len(graphs) >= FEWEST]
    if not names:
        largest = max(map(len, families.values()), default=0)
        raise InputError(f"the largest family has {largest} graph{'s' * (largest != 1)}: nothing recurs in fewer than "
                         f"{FEWEST}; trace more prompts")
    if versus and (small := [name for name in versus if name not in names]):
        raise InputError(f"family {small[0]!r} has fewer than {FEWEST} graphs: nothing can be compared with it; trace "
                         "more prompts")
    return names, [f"Family {name!r} has fewer than {FEWEST} graphs and is left out."
                   for name in families if name not in names]


def _ranges(sizes: Sequence[int]) -> list[np.ndarray]:
    """Consecutive indices, of so many each."""
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def _recurring(prompts: Sequence[Prompt], least: int) -> np.ndarray:
    """Keys of the features that are in at least ``least`` prompts."""
    keys, count = np.unique(np.concatenate([np.unique(prompt.key) for prompt in prompts]), return_counts=True)
    return keys[count >= least]


def _family(name: str, prompts: list[Prompt], table: EdgeTable, edges: Sequence[Edges], items: Items,
            labels: Mapping[int, str], share: float, seed: int) -> Family:
    least = least_of(len(prompts), share)
    keys = _recurring(prompts, least)
    usable = np.append(np.isin(items.keys, keys), np.ones(len(items) - len(items.keys), dtype=bool))
    table = table.columns(usable[table.codes // len(items)] & usable[table.codes % len(items)])
    positions = Positions(prompts, seed)
    total = np.array([prompt.influence.sum() for prompt in prompts])
    held = influence_of(prompts, keys).sum(1)
    tokens = np.array([prompt.measures["tokens"] for prompt in prompts])
    return Family(
        name, prompts, least, len(np.unique(np.concatenate([prompt.key for prompt in prompts]))),
        _features(prompts, keys, labels, positions, seed), held / np.where(total > 0, total, 1.0),
        _supernodes(prompts, positions, seed), table.columns(table.count >= least),
        common_circuit(table, edges, tokens, items, least), positions)


def _features(prompts: Sequence[Prompt], keys: np.ndarray, labels: Mapping[int, str], positions: Positions, seed: int
              ) -> list[Recurring]:
    influence = influence_of(prompts, keys)
    density = dict(chain.from_iterable(prompt.density.items() for prompt in prompts))
    rows = _intervals(influence, influence > 0, seed)
    made = [Recurring(labels.get(key, ""), *row, place, key=key, density=density.get(key))
            for key, row, place in zip(keys.tolist(), rows, positions.of_features(keys.tolist()), strict=True)]
    return sorted(made, key=lambda one: (-one.influence[0], one.key))


def _supernodes(prompts: Sequence[Prompt], positions: Positions, seed: int) -> list[Recurring]:
    found = [made for made in merge([group for prompt in prompts for group in prompt.groups])
             if len(made.prompts) >= FEWEST]
    row_of = {prompt.index: i for i, prompt in enumerate(prompts)}
    influence = np.zeros((len(prompts), len(found)))
    for column, one in enumerate(found):
        for group in one.groups:
            influence[row_of[group.prompt], column] += group.influence.sum()
    rows = _intervals(influence, influence > 0, seed)
    made = [Recurring(one.name, *row, place, members=one.members)
            for one, row, place in zip(found, rows, positions.of_supernodes(found), strict=True)]
    return sorted(made, key=lambda one: -one.influence[0])


def _intervals(influence: np.ndarray, present: np.ndarray, seed: int
               ) -> list[tuple[int, tuple[float, float, float], tuple[float, float, float]]]:
    """For each column of (n, F): the count, the share of prompts and the mean influence, with their intervals."""
    count, n = present.sum(0), len(present)
    columns = [count / n, *wilson(count, n), influence.mean(0), *bootstrap_mean(influence, seed)]
    return [(int(c), (row[0], row[1], row[2]), (row[3], row[4], row[5]))
            for c, row in zip(count, np.stack(columns, axis=1).tolist(), strict=True)]
