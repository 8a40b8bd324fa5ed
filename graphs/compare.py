"""Two or more attribution graphs compared: of one prompt by models of several sizes, by a base and a tuned model, with
two transcoder sets, or of two prompts of one model (METHOD 9).

The first graph is the reference: every later one is aligned with it, node by node (:mod:`graphs.alignment`), and
measured against it. Every measure stands beside its null.

Shapes: P positions, G steps of the common depth grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from circuits.errors import InputError
from circuits.graphs.alignment import WINDOW, Alignment, align
from circuits.graphs.comparable import check_comparable, check_unrelated, limits_of, short_names
from circuits.graphs.compare_measures import MEASURES, on_grid, place_measures, step_measures, token_measures
from circuits.graphs.decided import Decided, Reading, decided
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.measure import Measure
from circuits.graphs.side import Side, side_of
from circuits.graphs.signatures import Signatures, card_signatures
from circuits.graphs.supernode_flow import SharedFlow, Supernodes, shared_flow, supernodes_of


@dataclass(frozen=True, eq=False)
class Compared:
    """One of the graphs, and what it measures by itself."""

    name: str
    """Short, and no other graph's. A foreign string."""
    side: Side
    """``side.pruned`` is what node numbers of alignments mean."""
    depths: np.ndarray
    """(G, P) share of features' influence on the depth grid that all graphs share; row 0 the lowest layers."""
    decided: Decided
    reading: Reading | None
    """What the model itself reads at each depth; None where it was not opened."""
    supernodes: Supernodes

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        header = self.side.graph.header
        return {"name": self.name, "model": header.model, "layers": header.n_layers, "prompt": header.prompt,
                "targets": [{"label": str(self.side.graph.nodes.label[node]), "weight": float(weight)} for node, weight
                            in zip(self.side.graph.target_nodes, self.side.graph.target_weights, strict=True)],
                **self.side.numbers(), "depth_grid": self.depths.tolist(), "decided": self.decided.numbers(),
                "reading": None if self.reading is None else self.reading.numbers()}


@dataclass(frozen=True, eq=False)
class Pair:
    """A later graph against the first."""

    second: int
    """Which of :attr:`Comparison.graphs`; the other is number 0."""
    alignment: Alignment
    flow: SharedFlow
    measures: dict[str, Measure]
    """By name of :data:`graphs.compare_measures.MEASURES`, in that order. ``p`` is 1 and ``chance`` NaN for those that
    have no null."""
    unrelated: dict[str, list[float]]
    """The same measures between the first graph and every graph of an unrelated prompt; empty lists without such. NaN
    where one has nothing to compare."""

    def beyond_unrelated(self, name: str) -> float:
        """Share of the graphs of unrelated prompts, this pair counted in, that are as like the first graph; NaN without
        such graphs."""
        as_like = self.unrelated_as_like(name)
        if not as_like or np.isnan(self.measures[name].value):
            return float("nan")
        return (sum(as_like) + 1) / (len(as_like) + 1)

    def unrelated_as_like(self, name: str) -> list[bool]:
        """Of each graph of an unrelated prompt that has the measure, whether it is as like the first graph as this
        pair's second."""
        value = self.measures[name].value
        return [other >= value - 1e-12 for other in self.unrelated[name] if not np.isnan(other)]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare` found."""

    graphs: list[Compared]
    """The first is the reference."""
    pairs: list[Pair]
    """Of every later graph, in order."""
    two_prompts: bool
    limits: list[str] = field(default_factory=list)
    """What limits the comparison, in sentences: read before any number. Foreign strings inside."""

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        first = self.graphs[0]
        pairs = []
        for pair in self.pairs:
            second = self.graphs[pair.second]
            measures = {name: {**pair.measures[name].numbers(), "label": label,
                               "unrelated": [None if np.isnan(value) else value for value in pair.unrelated[name]]}
                        for name, label in MEASURES.items()}
            pairs.append({"first": first.name, "second": second.name, "measures": measures,
                          "alignment": pair.alignment.numbers(first.side.pruned, second.side.pruned),
                          "supernode_flow": pair.flow.numbers(first.supernodes, second.supernodes)})
        return {"token_texts": first.side.graph.header.token_texts, "two_prompts": self.two_prompts,
                "limits": self.limits, "graphs": [graph.numbers() for graph in self.graphs], "pairs": pairs}


def compare(graphs: Sequence[AttributionGraph], signatures: Sequence[Signatures] | None = None, *,
            readings: Sequence[Reading | None] | None = None, unrelated: Sequence[AttributionGraph] = (),
            unrelated_signatures: Sequence[Signatures] | None = None, two_prompts: bool = False,
            node_threshold: float = 0.8, edge_threshold: float = 0.98, window: float = WINDOW, seed: int = 0
            ) -> Comparison:
    """Compare two or more graphs.

    Args:
        signatures: of the features of each graph; by default from their feature cards.
        readings: what each model reads at each depth, where it was opened.
        unrelated: graphs of unrelated prompts with as many tokens, by the models of later graphs: a null. Each is used
            for the later graphs that have its model and transcoders.
        unrelated_signatures: of their features, as ``signatures``.
        two_prompts: the graphs are of several prompts of one model, with equal numbers of tokens.
        node_threshold, edge_threshold: what graphs are pruned to before their nodes are matched; those that are pruned
            already are taken as they are.
        window: relative depth between two features that may match.
        seed: of every null.

    Raises:
        InputError: graphs that cannot be compared (:func:`graphs.comparable.check_comparable`), settings out of range,
            or an edge that does not go up in layer.
    """
    check_window(window)
    check_comparable(graphs, two_prompts)
    check_unrelated(graphs, unrelated)
    if signatures is None:
        columns: dict[str, int] = {}
        made = [card_signatures(graph.feature_cards(), columns) for graph in (*graphs, *unrelated)]
        made = [signature.widened(len(columns)) for signature in made]
        signatures, unrelated_signatures = made[:len(graphs)], made[len(graphs):]
    if len(signatures) != len(graphs) or len(unrelated_signatures or ()) != len(unrelated):
        raise InputError(f"there are {len(signatures)} signatures for {len(graphs)} graphs and "
                         f"{len(unrelated_signatures or ())} for {len(unrelated)} unrelated ones: give one for each")
    grid = min(max(graph.header.n_layers, 1) for graph in graphs)
    wholes, parts = prepared([*graphs, *unrelated], node_threshold, edge_threshold)
    names = [*short_names(graphs), *(f"unrelated prompt {i + 1}" for i in range(len(unrelated)))]
    sides = [_compared(name, whole, part, grid, reading) for name, whole, part, reading in zip(
        names, wholes, parts, [*(readings or [None] * len(graphs)), *[None] * len(unrelated)], strict=True)]
    own, others = sides[:len(graphs)], list(zip(sides[len(graphs):], unrelated_signatures or (), strict=True))
    pairs = [_pair(own, i, signatures, [other for other in others if _made_alike(other[0], own[i])], window,
                   two_prompts, seed) for i in range(1, len(own))]
    return Comparison(own, pairs, two_prompts, limits_of(
        graphs, [pair.alignment for pair in pairs], two_prompts, any(whole is not graph for whole, graph in zip(
            wholes, graphs, strict=False))))


def check_window(window: float) -> None:
    """That features can be paired within it.

    Raises:
        InputError: not above 0, or above 1.
    """
    if not 0 < window <= 1:
        raise InputError(f"window is {window}: expected a share of the layers above 0 and at most 1, such as {WINDOW}")


def prepared(graphs: Sequence[AttributionGraph], node_threshold: float, edge_threshold: float
             ) -> tuple[list[AttributionGraph], list[AttributionGraph]]:
    """What to measure of every graph, and what to align: the graphs and their pruned parts; where one of them was
    pruned before, the pruned parts in both, so that like is measured against like.

    Raises:
        InputError: a threshold outside [0, 1], or an edge that does not go up in layer.
    """
    before = ["node_threshold" in graph.header.settings for graph in graphs]
    parts = [graph if done else graph.prune(node_threshold, edge_threshold)
             for graph, done in zip(graphs, before, strict=True)]
    return (parts if any(before) else list(graphs)), parts


def _compared(name: str, whole: AttributionGraph, part: AttributionGraph, grid: int, reading: Reading | None
              ) -> Compared:
    side = side_of(whole, part)
    return Compared(name, side, on_grid(side.feature_influence, grid), decided(whole), reading, supernodes_of(part))


def _made_alike(one: Compared, two: Compared) -> bool:
    return _maker(one.side.graph) == _maker(two.side.graph)


def _maker(graph: AttributionGraph) -> tuple[str, str]:
    return graph.header.model, graph.header.transcoders


def _pair(graphs: list[Compared], second: int, signatures: Sequence[Signatures],
          others: list[tuple[Compared, Signatures]], window: float, two_prompts: bool, seed: int) -> Pair:
    one, two = graphs[0], graphs[second]
    alignment = align(one.side.pruned, two.side.pruned, (signatures[0], signatures[second]), window=window,
                      unrelated=[(other.side.pruned, made) for other, made in others], two_prompts=two_prompts,
                      seed=seed)
    flow = shared_flow(one.supernodes, two.supernodes, alignment.matched_nodes(), alignment.null_matches)
    measures = {"matched_influence": alignment.matched_influence, "supernode_flow": flow.overlap,
                **_place_measures(one, two, seed)}
    unrelated: dict[str, list[float]] = {name: [] for name in MEASURES}
    unrelated["matched_influence"] = list(alignment.matched_unrelated)
    for (other, _), matched in zip(others, alignment.unrelated_matches, strict=True):
        unrelated["supernode_flow"].append(shared_flow(one.supernodes, other.supernodes, matched, ()).overlap.value)
        for name, measured in _place_measures(one, other, None).items():  # it is a null, and has none
            unrelated[name].append(measured.value)
    return Pair(second, alignment, flow, {name: measures[name] for name in MEASURES}, unrelated)


def _place_measures(one: Compared, two: Compared, seed: int | None) -> dict[str, Measure]:
    a, b = one.side, two.side
    return {**token_measures(a.token_influence, b.token_influence, seed),
            **place_measures(one.depths, two.depths, seed),
            **step_measures((a.without_errors, max(a.graph.header.n_layers, 1)),
                            (b.without_errors, max(b.graph.header.n_layers, 1)))}
