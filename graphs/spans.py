"""Influence through a span of positions, and around it: which way the answer's causes went (METHOD 5).

Influence is a walk from the target back to what it ends at, each step to an input with that input's share of the row.
A walk passes through a span if it visits a feature, error or token at one of the span's positions. How much does, is
exact: in a second sweep the span's nodes pass nothing on, and what still arrives anywhere went around the span.

Only nodes count. Attention may carry what a node at position 3 writes to position 9 in one edge, with nothing at the
positions between: that edge goes around a span of positions 4 to 8. And what comes before an error is not known: a walk
that ends at an error behind the span might have gone on through it, which :attr:`SpanFlow.at_most` allows for.

Shapes: N nodes, L layers, P positions, M sets of positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from circuits.errors import InputError
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.influence import rows_by_level, target_weights
from circuits.graphs.lengths import ENDS

AROUND, THROUGH = 0, 1
"""Rows of :attr:`SpanFlow.ends`."""
ELSEWHERE = "elsewhere"
"""Positions of no span."""
AT_ONCE = 32
"""Sets of positions that one sweep follows: (32, N) float64."""


@dataclass(frozen=True)
class Span:
    """Positions ``start`` to ``stop - 1``, named."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def positions(self) -> range:
        return range(self.start, self.stop)

    def overlaps(self, other: Span) -> bool:
        return self.start < other.stop and other.start < self.stop


class PassingFeature(NamedTuple):
    """A feature of the span."""

    node: int
    influence: float
    """Share of all influence that passes it."""
    from_origin: float
    """The part of it that ends at the origin's tokens; 0 without an origin."""


@dataclass(frozen=True, eq=False)
class SpanFlow:
    """Where influence ends, and whether it passed through the span. All shares are of the whole and add up to 1."""

    spans: tuple[Span, ...]
    span: Span
    """What influence goes through or around."""
    origin: Span | None
    """The span whose tokens' influence may be mediated by the other."""
    ends: dict[str, np.ndarray]
    """Of each of lengths.ENDS: (2, P) share that ends at each position, around the span and through it."""
    leaves: np.ndarray
    """(1 + L,) what passes through, by the place where it leaves the span for the answer: tokens, then the layers."""
    visits: np.ndarray
    """(L,) influence of the span's features by layer; a walk counts at every one it visits."""
    features: tuple[PassingFeature, ...]
    """All of the span's, by influence."""

    @property
    def through(self) -> float:
        """What passes through the span or ends in it."""
        return float(sum(rows[THROUGH].sum() for rows in self.ends.values()))

    @property
    def around(self) -> float:
        """What has no node in the span."""
        return float(sum(rows[AROUND].sum() for rows in self.ends.values()))

    @property
    def at_most(self) -> float:
        """What could have passed through: with all that went around and ended, at the span's first position or behind
        it, at an error or an unexplored feature. Their inputs are not known, and may lie in the span."""
        unknown = sum(self.ends[end][AROUND, self.span.start:].sum() for end in ("errors", "unexplored"))
        return self.through + float(unknown)

    def share(self, end: str, place: str | None = None, way: int | None = None) -> float:
        """What ends at one of lengths.ENDS.

        Args:
            place: only at a span's positions, or ELSEWHERE.
            way: only AROUND or THROUGH.
        """
        rows = self.ends[end] if way is None else self.ends[end][way]
        return float(rows.sum() if place is None else rows[..., self.at(place)].sum())

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the spans, and ELSEWHERE."""
        return *(span.name for span in self.spans), ELSEWHERE

    @property
    def mediated(self) -> float:
        """From the origin's tokens through the span; 0 without an origin, as for :attr:`bypass`."""
        return self.share("tokens", self.origin.name, THROUGH) if self.origin else 0.0

    @property
    def bypass(self) -> float:
        """From the origin's tokens with no node in the span."""
        return self.share("tokens", self.origin.name, AROUND) if self.origin else 0.0

    @property
    def mediated_share(self) -> float:
        """Of the influence of the origin's tokens, what goes through the span; NaN where they have none."""
        whole = self.mediated + self.bypass
        return self.mediated / whole if whole > 0 else math.nan

    @property
    def own(self) -> float:
        """From the span's own tokens: its content as it stands."""
        return self.share("tokens", self.span.name)

    def at(self, place: str) -> np.ndarray:
        """(P,) mask of a span's positions, or of ELSEWHERE."""
        positions = np.zeros(next(iter(self.ends.values())).shape[1], bool)
        for span in self.spans:
            if place in (span.name, ELSEWHERE):
                positions[span.start:span.stop] = True
        return ~positions if place == ELSEWHERE else positions


def check_spans(spans: Sequence[Span], n_positions: int) -> tuple[Span, ...]:
    """Spans by position.

    Raises:
        InputError: no span, one without a name or position or that leaves the prompt, two of one name, or two that
            overlap.
    """
    ordered = tuple(sorted(spans, key=lambda span: (span.start, span.stop)))
    if not ordered:
        raise InputError("no span is given: name ranges of positions, such as question=1:9 and reasoning=9:20")
    for span in ordered:
        if not span.name or span.name == ELSEWHERE:
            raise InputError(f"a span is named {span.name!r}: expected a name other than {ELSEWHERE!r}")
        if span.stop <= span.start:
            raise InputError(f"span {span.name!r} holds no token: its range {span.start}:{span.stop} is empty")
        if span.start < 0 or span.stop > n_positions:
            raise InputError(f"span {span.name!r} is {span.start}:{span.stop}: the prompt has {n_positions} tokens, so "
                             f"expected a range within 0:{n_positions}")
    names = [span.name for span in ordered]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two spans are named {twice[0]!r}: give each its own name")
    for one, two in pairwise(ordered):
        if one.overlaps(two):
            raise InputError(f"spans {one.name!r} ({one.start}:{one.stop}) and {two.name!r} ({two.start}:{two.stop}) "
                             "overlap: a position belongs to one span at most")
    return ordered


def named_span(spans: Sequence[Span], name: str) -> Span:
    """Raises:
        InputError: there is no span of this name.
    """
    found = [span for span in spans if span.name == name]
    if not found:
        raise InputError(f"there is no span {name!r}: there are {', '.join(repr(span.name) for span in spans)}")
    return found[0]


def span_flow(graph: AttributionGraph, spans: Sequence[Span], through: str, origin: str | None = None) -> SpanFlow:
    """How influence flows through the span named ``through``, or around it.

    Args:
        spans: ranges of positions that do not overlap.
        origin: the span whose tokens' influence may be mediated, such as the question.

    Raises:
        InputError: unusable spans or names, one span as both, no target with weight, or an edge that does not go up
            in layer.
    """
    n_pos = n_positions(graph)
    ordered = check_spans(spans, n_pos)
    span, start = named_span(ordered, through), None if origin is None else named_span(ordered, origin)
    if start == span:
        raise InputError(f"span {through!r} is both the origin and what influence goes through: name two spans")
    inside = _inside(graph, [span.positions])[0]
    (whole, first), passed = _arrivals(graph, np.stack([np.zeros_like(inside), inside]))
    ways = np.stack([np.where(inside, 0.0, first), np.where(inside, whole, np.maximum(whole - first, 0.0))])
    nodes = graph.nodes
    ends = {end: np.stack([np.bincount(nodes.position[at], way[at], n_pos) for way in ways])
            for end, at in _ends(graph, passed).items()}
    n_layers = max(graph.header.n_layers, int(nodes.layer.max()))
    features = np.flatnonzero(inside & (nodes.kind == "feature"))
    reach = _reaches(graph, nodes.kind == "embedding", start)
    found = sorted((PassingFeature(int(node), float(whole[node]), float(whole[node] * reach[node]))
                    for node in features), key=lambda feature: -feature.influence)
    return SpanFlow(ordered, span, start, ends, np.bincount(nodes.layer[inside] + 1, first[inside], 1 + n_layers),
                    np.bincount(nodes.layer[features], whole[features], n_layers), tuple(found))


def n_positions(graph: AttributionGraph) -> int:
    return max(len(graph.header.tokens), int(graph.nodes.position.max(initial=-1)) + 1)


def _inside(graph: AttributionGraph, sets: Sequence[Iterable[int]]) -> np.ndarray:
    """(M, N) nodes at each set of positions; a target is where walks start, not a part of the way."""
    chosen = np.zeros((len(sets), n_positions(graph) + 1), bool)  # one more: constants without a position are at -1
    for row, positions in zip(chosen, sets, strict=True):
        row[list(positions)] = True
    return chosen[:, graph.nodes.position] & (graph.nodes.kind != "logit")


def _arrivals(graph: AttributionGraph, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, N) mass that arrives at every node when the nodes ``inside`` (M, N) pass nothing on, the targets weighing 1
    together; and (N,) nodes that pass on what they get."""
    weights = target_weights(graph)
    if not weights.sum() > 0:
        raise InputError("the graph has no targets with weight: trace it again")
    arrived = np.tile(weights / weights.sum(), (len(inside), 1))
    passed = np.zeros(len(graph), bool)
    for rows in rows_by_level(graph):
        passed[rows.nodes] = rows.scale > 0
        arrived += np.where(inside[:, rows.nodes], 0.0, arrived[:, rows.nodes] * rows.scale) @ rows.sizes
    return arrived, passed


def _ends(graph: AttributionGraph, passed: np.ndarray) -> dict[str, np.ndarray]:
    """(N,) masks of the nodes where walks end, by lengths.ENDS."""
    kind = graph.nodes.kind
    stuck = np.isin(kind, ("feature", "logit")) & ~passed
    unexplored = stuck & (kind == "feature") & ~graph.nodes.expanded
    return dict(zip(ENDS, (kind == "embedding", kind == "error", unexplored, stuck & ~unexplored), strict=True))


def _reaches(graph: AttributionGraph, tokens: np.ndarray, origin: Span | None) -> np.ndarray:
    """(N,) share of the walks from each node that end at the tokens (a mask) of ``origin``."""
    reach = np.zeros(len(graph))
    if origin is None:
        return reach
    reach[tokens & _inside(graph, [origin.positions])[0]] = 1.0
    for rows in rows_by_level(graph, upwards=True):
        reach[rows.nodes] = (rows.sizes @ reach) * rows.scale
    return reach


def shares_through(graph: AttributionGraph, sets: Sequence[Iterable[int]]) -> np.ndarray:
    """(M,) share of influence that passes through each set of positions: what arrives there for the first time."""
    found = []
    for start in range(0, len(sets), AT_ONCE):
        inside = _inside(graph, sets[start:start + AT_ONCE])
        found.append(np.where(inside, _arrivals(graph, inside)[0], 0.0).sum(1))
    return np.concatenate([*found, np.empty(0)])
