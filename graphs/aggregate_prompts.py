"""What aggregation keeps of one prompt's graph: small tables, so that hundreds of graphs are read one at a time.

Influence is told as a share of the targets': of all influence that starts at the targets, the part that passes through
a node (METHOD 5). Features of one layer do not feed each other, so the shares of one feature at several positions add
up to the share that passes through it at any of them.

Shapes: M feature nodes, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from circuits.errors import InputError
from circuits.graphs.activations import feature_keys
from circuits.graphs.aggregate_groups import Group, groups_of
from circuits.graphs.graph import AttributionGraph

NODE_THRESHOLD, EDGE_THRESHOLD = 0.8, 0.98
"""What graphs that nobody pruned are pruned to: to be in a graph means nothing where everything is kept."""
SCORES = ("replacement", "completeness")


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt's graph, in numbers."""

    index: int
    """Its number among all prompts that are aggregated."""
    name: str
    """Of the graph's file, without its suffix."""
    text: str
    token_texts: list[str]
    target: str
    """Label of the target with the largest weight."""
    key: np.ndarray
    """(M,) int64 feature of every feature node that has influence, as :func:`graphs.activations.feature_keys` numbers
    them."""
    position: np.ndarray
    """(M,) int32"""
    influence: np.ndarray
    """(M,) float64 share of the targets' influence that passes through the node."""
    places: np.ndarray
    """Ascending positions at which a feature of the graph fired."""
    token_influence: np.ndarray
    """(P,) float64 share of the targets' influence that ends at each token, in the graph before pruning."""
    measures: dict[str, float]
    """``replacement``, ``completeness``, ``unexplored`` and ``tokens``, the sum of ``token_influence``; ``features``,
    a count in the pruned graph. NaN where the graph does not say."""
    labels: dict[int, str]
    """Of every feature, by key; empty ones left out. Foreign strings."""
    density: dict[int, float]
    """Share of a text on which a feature fires, by key, where its card tells it."""
    groups: list[Group]
    """Supernodes: the graph's own, and suggested ones."""


class GraphList:
    """Graphs of one model and one transcoder set, opened one at a time, as often as they are asked for."""

    def __init__(self, items: Sequence[AttributionGraph | str | Path]):
        self.items = items
        self.model = self.transcoders = ""
        """Of the first graph, once it was read."""
        self.warnings: list[str] = []
        self._first: tuple[str, str, int] | None = None
        self._settings: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        item = self.items[index]
        return f"graph {index + 1}" if isinstance(item, AttributionGraph) else Path(item).stem

    def open(self, index: int) -> AttributionGraph:
        """A graph, pruned where nobody has pruned it.

        Raises:
            InputError: it cannot be read, is of another model or transcoder set than the first that was opened, or
                has no targets or no influence.
        """
        from circuits.graphs.store import load

        item = self.items[index]
        graph, name = item if isinstance(item, AttributionGraph) else load(item), self.name(index)
        self._check_same(graph, name)
        if not graph.target_weights.sum() > 0 or not np.nansum(graph.nodes.influence) > 0:
            raise InputError(f"{name} has no targets or no influence: trace it again")
        if "node_threshold" in graph.header.settings:
            return graph
        self._warn(f"Graphs that were not pruned are pruned to {NODE_THRESHOLD} of influence here.")
        return graph.prune(NODE_THRESHOLD, EDGE_THRESHOLD)

    def _check_same(self, graph: AttributionGraph, name: str) -> None:
        header = graph.header
        made = header.model, header.transcoders, header.n_layers
        if self._first is None:
            self._first, self._first_name = made, name
            self.model, self.transcoders = header.model, header.transcoders
        if made != self._first:
            what = "model" if made[0] != self._first[0] else "transcoder set" if made[1] != self._first[1] else "depth"
            one, two = (", ".join([model or "an unnamed model", transcoders or "unnamed transcoders", f"{n} layers"])
                        for model, transcoders, n in (self._first, made))
            raise InputError(f"the graphs are not of one {what}: {self._first_name} is of {one}, {name} of {two}. "
                             "Features are the same only within one model and one transcoder set: aggregate them "
                             "apart")
        asked = [header.settings.get(key, default) for key, default in (
            ("coverage", None), ("node_threshold", NODE_THRESHOLD), ("edge_threshold", EDGE_THRESHOLD))]
        self._settings.setdefault(repr(asked), name)
        if len(self._settings) > 1:
            one, two = list(self._settings.values())[:2]
            self._warn(f"The graphs were traced or pruned with different settings ({one} and {two}, for example): "
                       "whether a feature is in a graph depends on them.")

    def _warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def prompts(self) -> Iterator[Prompt]:
        """The tables of the graphs, one after the other."""
        for index in range(len(self)):
            yield _prompt(self.open(index), index, self.name(index))


def mass(graph: AttributionGraph) -> np.ndarray:
    """(N,) float64 share of the targets' influence that passes through, ends or starts at each node, before pruning."""
    shares = np.maximum(np.nan_to_num(graph.nodes.influence.astype(np.float64)), 0.0)
    np.add.at(shares, graph.target_nodes, graph.target_weights.astype(np.float64))
    return shares / float(graph.target_weights.sum(dtype=np.float64))


def _prompt(graph: AttributionGraph, index: int, name: str) -> Prompt:
    nodes, header = graph.nodes, graph.header
    shares = mass(graph)
    features = np.flatnonzero((nodes.kind == "feature") & (shares > 0))
    embeddings = nodes.kind == "embedding"
    tokens = np.zeros(len(header.tokens))
    np.add.at(tokens, nodes.position[embeddings], shares[embeddings])
    keys = feature_keys(nodes.layer[features], nodes.feature[features])
    cards = graph.feature_cards()
    known = {} if cards is None else {
        key: value for key, value in zip(feature_keys(cards.layer, cards.feature).tolist(), cards.density.tolist(),
                                         strict=True) if not math.isnan(value)}
    measures = {name: header.scores.get(name, math.nan) for name in SCORES}
    measures |= {"unexplored": header.unexplored, "tokens": float(tokens.sum()), "features": float(len(features))}
    fired = np.concatenate([graph.prompt_activations().position, nodes.position[features]])
    first = int(graph.target_nodes[np.argmax(graph.target_weights)])
    return Prompt(
        index, name, header.prompt, list(header.token_texts), str(nodes.label[first]), keys, nodes.position[features],
        shares[features], np.unique(fired), tokens, measures,
        {key: str(nodes.label[node]) for key, node in zip(keys.tolist(), features, strict=True) if nodes.label[node]},
        known, groups_of(graph, cards, shares, index))
