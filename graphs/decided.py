"""When a graph's answer becomes decided: from the direct effects on its target, and from what the model itself reads.

Shapes: L layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.measure import plain

HALF, MOST = 0.5, 0.9
"""Shares of the final value that count as reached."""


@dataclass(frozen=True, eq=False)
class Decided:
    """Direct effects on the first target, summed up by the depth at which they are written.

    An effect counts at the layer of its source. A cross-layer feature writes to later layers, too, so that such a graph
    seems to decide earlier than one with per-layer features; compare like with like.
    """

    target: str
    """Label of the target. A foreign string."""
    cumulative: np.ndarray
    """(L + 1,) sum of the effects of tokens, and of everything up to layer 0, 1, .., L - 1."""

    @property
    def half(self) -> float:
        """Relative depth (0: tokens alone, 1: the last layer) from which on the sum stays at half of its end or above;
        NaN where the end is not above 0."""
        return settled(self.cumulative, HALF)

    @property
    def most(self) -> float:
        """The same for 90%."""
        return settled(self.cumulative, MOST)

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"target": self.target, "cumulative": self.cumulative.tolist(), "half": plain(self.half),
                "most": plain(self.most)}


@dataclass(frozen=True, eq=False)
class Reading:
    """The model's residual stream at the last position, read through the final norm and the unembedding after the
    embeddings and after every layer ("logit lens", nostalgebraist 2020)."""

    token: int
    """The target's."""
    text: str
    """A foreign string."""
    rank: np.ndarray
    """(L + 1,) int64 rank of the token among all, 1 the first."""
    probability: np.ndarray
    """(L + 1,) of the token."""

    @property
    def first(self) -> float:
        """Relative depth from which on the token is and stays the first; NaN where it is not in the end."""
        return _from_here_on(self.rank == 1)

    @property
    def half(self) -> float:
        """Relative depth from which on its probability stays at half of its end or above."""
        return settled(self.probability, HALF)

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"token": self.token, "text": self.text, "rank": self.rank.tolist(),
                "probability": self.probability.tolist(), "first": plain(self.first), "half": plain(self.half)}


def decided(graph: AttributionGraph) -> Decided:
    """From the edges into the first target; those of a pruned graph are not all."""
    target, layers = int(graph.target_nodes[0]), graph.header.n_layers
    row = slice(int(graph.indptr[target]), int(graph.indptr[target + 1]))
    at = np.clip(graph.nodes.layer[graph.indices[row]] + 1, 0, layers)
    effects = np.bincount(at, graph.weights[row].astype(np.float64), minlength=layers + 1)
    return Decided(str(graph.nodes.label[target]), np.cumsum(effects))


def settled(values: np.ndarray, share: float) -> float:
    """Relative depth from which on the values (L + 1,) stay at ``share`` of the last or above; NaN where the last is
    not above 0."""
    return _from_here_on(values >= share * values[-1]) if values[-1] > 0 else math.nan


def _from_here_on(holds: np.ndarray) -> float:
    """Relative depth of the first of (L + 1,) from which on all hold; NaN where the last does not."""
    if not holds[-1]:
        return math.nan
    broken = np.flatnonzero(~holds)
    return float(broken[-1] + 1 if len(broken) else 0) / max(len(holds) - 1, 1)
