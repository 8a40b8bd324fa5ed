"""The nodes of an attribution graph, a table of columns.

Shapes: N nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from circuits.errors import InputError

COLUMN_DTYPES: dict[str, Any] = {
    "kind": "<U9", "layer": np.int32, "position": np.int32, "feature": np.int32, "token": np.int32,
    "value": np.float32, "influence": np.float32, "label": object, "expanded": np.bool_, "input_sum": np.float32,
    "input_abs": np.float32, "residual": np.float32, "threshold": np.float32}
"""Of the node table, in order."""


@dataclass(frozen=True, eq=False)
class NodeTable:
    """Columns of equal length N, one entry per node. ``table["value"]`` and ``table.value`` are the same."""

    kind: np.ndarray
    """str: feature, error, embedding, logit or constant."""
    layer: np.ndarray
    """int32: layer of a feature, error or constant; -1 for embeddings, n_layers for logits."""
    position: np.ndarray
    """int32: token position; -1 for a constant that is the same at every position (decoder biases)."""
    feature: np.ndarray
    """int32: index within the layer's dictionary; -1 for other kinds."""
    token: np.ndarray
    """int32: vocabulary id of an embedding or logit; -1 for other kinds and for directions."""
    value: np.ndarray
    """float32: activation of a feature, value of a logit target (logit minus the vocabulary's mean); 0 for others."""
    influence: np.ndarray
    """float32: influence on the targets (METHOD 5), of the graph before pruning."""
    label: np.ndarray
    """object (str): what the node is, in words."""
    expanded: np.ndarray
    """bool: the node's row of inputs was computed (always for logits, never for sources without inputs)."""
    input_sum: np.ndarray
    """float32: sum of all edges into the node, those from constants and later pruned ones included; what
    conservation equates with the pre-activation minus the encoder bias. NaN where the row was not computed."""
    input_abs: np.ndarray
    """float32: sum of |edge| over all inputs except constants, those dropped from a shortened row and later pruned ones
    included. NaN likewise."""
    residual: np.ndarray
    """float32: |sum of edges - the value it must equal|, relative to that value (or to a tenth of the row's sum of
    |edge|, where the value is smaller); NaN where not computed."""
    threshold: np.ndarray
    """float32: a feature is silent at or below this pre-activation; 0 for ReLU. NaN where that depends on other
    features (TopK) or is not known, and for other kinds."""

    def __post_init__(self) -> None:
        sizes = {name: len(self[name]) for name in self.columns}
        if len(set(sizes.values())) != 1:
            raise InputError(f"node columns must have one length, got {sizes}")

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f.name for f in fields(self))

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in self.__dataclass_fields__:
            raise KeyError(f"no column {column!r}; columns are {', '.join(self.columns)}")
        return getattr(self, column)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict per node."""
        for i in range(len(self)):
            yield {name: self[name][i] for name in self.columns}

    def take(self, index: np.ndarray) -> NodeTable:
        """The table of the nodes at ``index`` (integers or a mask)."""
        return NodeTable(**{name: self[name][index] for name in self.columns})

    @classmethod
    def build(cls, n: int, **columns: Any) -> NodeTable:
        """A table of ``n`` nodes from some columns; the others take the value that means "does not apply"."""
        blank: dict[str, Any] = {"value": 0.0, "influence": 0.0, "label": "", "expanded": False}
        made = {}
        for name, dtype in COLUMN_DTYPES.items():
            absent = blank.get(name, np.nan if dtype is np.float32 else -1)
            made[name] = np.array(np.broadcast_to(np.asarray(columns.pop(name, absent), dtype=dtype), n))
        if columns:
            raise InputError(f"no column {min(columns)!r}; columns are {', '.join(COLUMN_DTYPES)}")
        return cls(**made)
