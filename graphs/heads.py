"""Which attention heads carry a graph's edges, and what the strongest of these heads look at (METHOD 6).

Shapes: M parts of edges, W heads whose pattern is kept, P positions, Q pairs of components.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuits.errors import InputError

HEAD_DTYPES: dict[str, Any] = {
    "target": np.int32, "source": np.int32, "layer": np.int16, "head": np.int16, "loading": np.float32,
    "view_layer": np.int16, "view_head": np.int16, "view_weight": np.float32, "pair_view": np.int16,
    "pair_query": np.int16, "pair_key": np.int16, "pair_query_node": np.int32, "pair_key_node": np.int32,
    "pair_value": np.float32, "pair_score": np.float32}
"""Of the columns of one dimension; ``pattern`` and the names are beside them."""
_ROUNDING = 1e-3
"""Most by which an attention weight may leave [0, 1]: softmax in bfloat16."""


@dataclass(frozen=True, eq=False)
class HeadTable:
    """Parts of edges by head, patterns of the heads that carry most, and pairs of components that make their scores.

    For an edge and an attention layer between its ends, the parts of all heads and what passes by without attention add
    up to the edge. The table may hold some of the parts only.

    Raises:
        InputError: columns that do not fit together.
    """

    n_heads: int
    """Query heads of a layer."""
    target: np.ndarray
    """(M,) int32 node that the edge goes into."""
    source: np.ndarray
    """(M,) int32 node that the edge comes from."""
    layer: np.ndarray
    """(M,) int16 attention layer."""
    head: np.ndarray
    """(M,) int16 query head of that layer."""
    loading: np.ndarray
    """(M,) float32 part of the edge that passes through this head at this layer. Rows are sorted by target and source,
    then the largest |loading| first."""
    view_layer: np.ndarray
    """(W,) int16 layer of each head whose pattern is kept."""
    view_head: np.ndarray
    """(W,) int16; each head once."""
    view_weight: np.ndarray
    """(W,) float32 sum over edges of |loading| share, by which the heads were chosen."""
    pattern: np.ndarray
    """(W, P, P) float32 attention after softmax; rows are queries."""
    pair_view: np.ndarray
    """(Q,) int16 which of the W heads."""
    pair_query: np.ndarray
    """(Q,) int16 query position."""
    pair_key: np.ndarray
    """(Q,) int16 key position."""
    pair_query_node: np.ndarray
    """(Q,) int32 node that is the component on the query's side; -1 for one that this graph has no node of."""
    pair_key_node: np.ndarray
    """(Q,) int32, the same on the key's side."""
    pair_query_name: list[str]
    """Q names of the components, in words. Foreign strings."""
    pair_key_name: list[str]
    pair_value: np.ndarray
    """(Q,) float32 what the pair adds to the attention score, before softmax."""
    pair_score: np.ndarray
    """(Q,) float32 the whole score of that head, query and key."""

    def __post_init__(self) -> None:
        self._check_columns()
        _require(1 <= self.n_heads < 1 << 15, f"n_heads is {self.n_heads}, expected a number of 1 or more")
        _check_range(self, ("target", "source", "layer", "view_layer"), 0, None)
        _check_range(self, ("head", "view_head"), 0, self.n_heads - 1)
        _check_range(self, ("pair_view",), 0, len(self.view_layer) - 1)
        _check_range(self, ("pair_query", "pair_key"), 0, self.n_pos - 1)
        _check_range(self, ("pair_query_node", "pair_key_node"), -1, None)
        for name in ("loading", "view_weight", "pair_value", "pair_score"):
            _require(bool(np.isfinite(getattr(self, name)).all()), f"heads.{name} must be finite numbers")
        _require(bool((self.view_weight >= 0).all()), "heads.view_weight must be numbers of 0 or more")
        _require(not self.pattern.size or -_ROUNDING <= float(self.pattern.min()) <= float(self.pattern.max())
                 <= 1 + _ROUNDING, "heads.pattern must lie between 0 and 1")
        views = self.view_layer.astype(np.int64) * self.n_heads + self.view_head
        _require(len(np.unique(views)) == len(views), "heads.view_layer and view_head must name each head once")
        self._check_order()

    def _check_columns(self) -> None:
        lengths = {"": len(self.loading), "view": len(self.view_layer), "pair": len(self.pair_value)}
        for name, dtype in HEAD_DTYPES.items():
            column, length = getattr(self, name), lengths[name.partition("_")[0] if "_" in name else ""]
            _require(column.dtype == dtype and column.shape == (length,),
                     f"heads.{name} is {column.dtype} of shape {column.shape}, expected {np.dtype(dtype)} of shape "
                     f"({length},)")
        n_views = lengths["view"]
        _require(self.pattern.dtype == np.float32 and self.pattern.ndim == 3 and len(self.pattern) == n_views
                 and self.pattern.shape[1] == self.pattern.shape[2],
                 f"heads.pattern is {self.pattern.dtype} of shape {self.pattern.shape}, expected float32 of shape "
                 f"({n_views}, n_pos, n_pos)")
        for name in ("pair_query_name", "pair_key_name"):
            _require(len(getattr(self, name)) == lengths["pair"],
                     f"heads.{name} has {len(getattr(self, name))} names for {lengths['pair']} pairs")

    def _check_order(self) -> None:
        edge = (self.target.astype(np.int64) << 32) + self.source
        step = np.diff(edge)
        falls = np.diff(np.abs(self.loading)) <= 0
        _require(bool(((step > 0) | ((step == 0) & falls)).all()),
                 "heads must be sorted by target and source, then the largest |loading| first")
        parts = np.stack([edge, self.layer.astype(np.int64) * self.n_heads + self.head])
        _require(np.unique(parts, axis=1).shape[1] == len(edge), "heads must hold each head of an edge once")

    def __len__(self) -> int:
        return len(self.loading)

    @property
    def n_pos(self) -> int:
        return int(self.pattern.shape[1])

    def check_fits(self, n_nodes: int, n_pos: int) -> None:
        """That the table is one of a graph with ``n_nodes`` nodes and ``n_pos`` tokens.

        Raises:
            InputError: it is not.
        """
        _check_range(self, ("target", "source", "pair_query_node", "pair_key_node"), -1, n_nodes - 1)
        _require(self.n_pos == n_pos or not len(self.view_layer),
                 f"heads.pattern has {self.n_pos} positions, the prompt {n_pos} tokens")

    def of(self, target: int, source: int) -> np.ndarray:
        """Rows (n,) of the edge from ``source`` to ``target``, the largest |loading| first."""
        return np.flatnonzero((self.target == target) & (self.source == source))

    def left(self, new: np.ndarray) -> HeadTable:
        """The table of a graph that has some of the nodes.

        Args:
            new: (N,) the number there of every node, rising; -1 for nodes that are gone. Edges of these are gone too;
                pairs keep their components' names.
        """
        kept = (new[self.target] >= 0) & (new[self.source] >= 0)
        columns = {name: getattr(self, name)[kept] for name in ("target", "source", "layer", "head", "loading")}
        for name in ("target", "source"):
            columns[name] = new[columns[name]].astype(np.int32)
        for name in ("pair_query_node", "pair_key_node"):
            node = getattr(self, name)
            columns[name] = np.append(new, -1)[node].astype(np.int32)  # -1 looks at what is appended
        return replace(self, **columns)

    def tensors(self) -> dict[str, np.ndarray]:
        """All but the names as arrays of one dimension, for a file; ``shape`` is n_heads and n_pos."""
        return {"shape": np.array([self.n_heads, self.n_pos], np.int32), "pattern": self.pattern.reshape(-1),
                **{name: getattr(self, name) for name in HEAD_DTYPES}}

    @classmethod
    def of_tensors(cls, tensors: dict[str, np.ndarray], query_names: list[str], key_names: list[str]) -> HeadTable:
        """What :meth:`tensors` took apart.

        Raises:
            InputError: arrays that do not fit together.
        """
        _require(len(tensors["shape"]) == 2, f"heads.shape has {len(tensors['shape'])} numbers, expected 2")
        n_heads, n_pos = tensors["shape"].tolist()
        n_views, flat = len(tensors["view_layer"]), tensors["pattern"]
        _require(n_pos >= 0 and len(flat) == n_views * n_pos * n_pos,
                 f"heads.pattern has {len(flat)} numbers, expected {n_views} times {n_pos} times {n_pos}")
        columns = {name: tensors[name] for name in HEAD_DTYPES}
        return cls(n_heads=n_heads, pattern=flat.reshape(n_views, n_pos, n_pos), pair_query_name=query_names,
                   pair_key_name=key_names, **columns)


def _check_range(table: HeadTable, names: tuple[str, ...], low: int, high: int | None) -> None:
    for name in names:
        column = getattr(table, name)
        if len(column):
            _require(int(column.min()) >= low and (high is None or int(column.max()) <= high),
                     f"heads.{name} holds {int(column.min())} to {int(column.max())}, expected "
                     + (f"{low} or more" if high is None else f"{low} to {high}"))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InputError(otherwise)
