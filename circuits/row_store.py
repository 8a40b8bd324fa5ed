"""Computed rows: sparse blocks as the sweep yields them, and all of a trace's rows in two growing arrays.

Shapes: T rows of a block, N source nodes, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuits.kernels.compact import CompactRows


@dataclass(frozen=True)
class RowBlock:
    """Rows of some targets, sparse."""

    targets: np.ndarray
    """(T,) which targets: indices into the starts that were asked for, or node numbers."""
    indptr: np.ndarray
    """(T + 1,) int64"""
    indices: np.ndarray
    """(E,) int32 sources, ascending within a row."""
    weights: np.ndarray
    """(E,) float32 direct effects."""
    total: np.ndarray
    """(T,) float64 sum of the row, dropped entries included; so are the others."""
    magnitude: np.ndarray
    """(T,) float64 sum of |row|, constants left out."""
    magnitude_all: np.ndarray
    """(T,) float64 sum of |row|, constants included."""
    dropped: np.ndarray
    """(T,) float64 sum of |row| over entries that are not stored."""

    @classmethod
    def of(cls, targets: np.ndarray, rows: CompactRows) -> RowBlock:
        return cls(targets, *(tensor.cpu().numpy() for tensor in (
            rows.indptr, rows.indices, rows.weights, rows.total, rows.magnitude, rows.magnitude_all, rows.dropped)))


class RowStore:
    """All rows computed so far, in two growing arrays: thousands of small ones would fragment the heap, and gathering
    them at the end would need their memory twice."""

    def __init__(self) -> None:
        self.indices, self.weights = np.empty(0, np.int32), np.empty(0, np.float32)
        self.n_edges = 0
        self._blocks: list[tuple[np.ndarray, ...]] = []

    def add(self, block: RowBlock) -> None:
        """Copy a block; its ``targets`` are node numbers."""
        end = self.n_edges + len(block.weights)
        if end > len(self.weights):
            for array in (self.indices, self.weights):
                array.resize(end + end // 8, refcheck=False)
        self.indices[self.n_edges:end], self.weights[self.n_edges:end] = block.indices, block.weights
        self.n_edges = end
        self._blocks.append((block.targets, np.diff(block.indptr), block.total, block.magnitude, block.magnitude_all,
                             block.dropped))

    def columns(self) -> tuple[np.ndarray, ...]:
        """Per row, in the order of computing: node, length, total, magnitude, magnitude with constants, dropped."""
        return tuple(np.concatenate(column) for column in zip(*self._blocks, strict=True))

    def in_node_order(self) -> tuple[np.ndarray, np.ndarray]:
        """(E,) sources and (E,) weights of all rows, by target node; the store is empty afterwards."""
        node, length, *_ = self.columns()
        indices, weights, n_edges = self.indices, self.weights, self.n_edges
        self.indices, self.weights, self.n_edges = np.empty(0, np.int32), np.empty(0, np.float32), 0
        for array in (indices, weights):
            array.resize(n_edges, refcheck=False)
        if np.all(np.diff(node) > 0):
            return indices, weights
        starts = np.cumsum(length) - length
        order = np.argsort(node)
        return _permuted(indices, starts, length, order), _permuted(weights, starts, length, order)


def _permuted(values: np.ndarray, starts: np.ndarray, length: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rows in another order, copied one by one: positions of all entries would take more memory than they do."""
    out = np.empty_like(values)
    end = 0
    for row in order:
        begin, end = end, end + length[row]
        out[begin:end] = values[starts[row]:starts[row] + length[row]]
    return out
