"""What passes through other positions: the null of a share of influence through a span.

Later positions see more of the prompt, and nearly all influence passes the last one, so that a share by itself says
little.

Shapes: M sets of positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.spans import Span, check_spans, n_positions, shares_through

FEW = 20
"""Shifts below which a 95th percentile of them says nothing, so that positions are drawn at random instead."""
SHUFFLES = 200


@dataclass(frozen=True, eq=False)
class SpanNull:
    """The share that passes through other positions, as many of them."""

    shifts: dict[int, float]
    """By first position: every span of the same length without a position in common with it. Features are read at all
    its positions; and the last position, which nearly all influence passes, is in it only where the span has it."""
    shuffled: np.ndarray | None
    """(n,) other sets of such positions, drawn at random; None where there are FEW shifts or more."""
    limit: float
    """95th percentile of the shifts, or of what was shuffled; NaN where neither can be made."""
    p: float
    """Share of the same, the span itself counted in, that reaches the span's share."""

    @property
    def mean(self) -> float:
        """Over the shifts; NaN without any."""
        return float(np.mean(list(self.shifts.values()))) if self.shifts else math.nan


def span_null(graph: AttributionGraph, span: Span, *, seed: int = 0) -> SpanNull:
    """How much passes through other sets of positions: what a share through ``span`` must be held against.

    Later positions see more of the prompt, so that a null of few shifts says little; then sets of positions from
    anywhere are drawn, all of them where they are SHUFFLES or less.

    Raises:
        InputError: as for :func:`span_flow`.
    """
    span, = check_spans([span], n_positions(graph))
    eligible = comparable_positions(graph, span)
    shifts = shifted_spans(span, eligible)
    own, *shares = shares_through(graph, [span.positions, *(shift.positions for shift in shifts)]).tolist()
    by_start = {shift.start: share for shift, share in zip(shifts, shares, strict=True)}
    shuffled = None if len(shifts) >= FEW else shares_through(graph, _sets(eligible, span, seed))
    null = np.array(shares) if shuffled is None else shuffled
    limit = float(np.quantile(null, 0.95)) if len(null) else math.nan
    reaching = np.count_nonzero(null >= own - 1e-12)  # rounding must not tell equal shares apart
    return SpanNull(by_start, shuffled, limit, (1 + reaching) / (1 + len(null)))


def comparable_positions(graph: AttributionGraph, span: Span) -> list[int]:
    """Positions that a null may use in place of ``span``'s; see :attr:`SpanNull.shifts`."""
    nodes, n_pos = graph.nodes, n_positions(graph)
    read = nodes.position[np.isin(nodes.kind, ("feature", "error"))]
    first = int(read.min()) if len(read) else n_pos
    return list(range(first, n_pos if span.stop == n_pos else n_pos - 1))


def shifted_spans(span: Span, eligible: Sequence[int]) -> list[Span]:
    """Every span of the same length at ``eligible`` positions (a run of neighbours) that does not overlap it."""
    if len(eligible) < len(span):
        return []
    moved = (Span(span.name, start, start + len(span)) for start in range(eligible[0], eligible[-1] + 2 - len(span)))
    return [shift for shift in moved if not shift.overlaps(span)]


def _sets(positions: Sequence[int], span: Span, seed: int) -> list[list[int]]:
    """Sets of as many of the positions as the span has, other than its own: all, or SHUFFLES at random."""
    if math.comb(len(positions), len(span)) <= SHUFFLES:
        drawn = [list(some) for some in combinations(positions, len(span))]
    else:
        rng = np.random.default_rng(seed)
        drawn = [sorted(rng.choice(positions, len(span), replace=False).tolist()) for _ in range(SHUFFLES)]
    return [some for some in drawn if some != list(span.positions)]
