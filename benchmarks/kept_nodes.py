"""Which nodes a pruned graph holds, kept on disk so that two programs can be compared; numpy only.

A set is an (M, 4) int64 array of kind, layer, position, feature. Constants are left out: only our graphs have them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

KINDS = ("feature", "error", "embedding", "logit")
DECIDED = ("feature", "error")
"""The kinds that pruning decides on; tokens and logits always stay."""


def rows(kind: str, layer: np.ndarray, position: np.ndarray, feature: np.ndarray | int = -1) -> np.ndarray:
    """(M, 4) nodes of one kind; ``feature`` is the vocabulary id of a logit, -1 for errors and tokens."""
    return np.stack(np.broadcast_arrays(KINDS.index(kind), layer, position, feature), 1).astype(np.int64)


def write(folder: Path, name: str, parts: list[np.ndarray]) -> None:
    """Keep the set that ``parts`` make up as ``folder/name.npy``."""
    np.save(folder / f"{name}.npy", np.concatenate(parts))


def load(folder: Path, name: str) -> np.ndarray | None:
    """The set of that name; None where it was not written."""
    path = folder / f"{name}.npy"
    return np.load(path) if path.is_file() else None


def jaccard(one: np.ndarray, two: np.ndarray, kinds: tuple[str, ...] = KINDS) -> float:
    """Size of the intersection over size of the union, of the nodes of some kinds; 1 for two empty sets."""
    wanted = [KINDS.index(kind) for kind in kinds]
    left, right = ({tuple(node) for node in nodes[np.isin(nodes[:, 0], wanted)].tolist()} for nodes in (one, two))
    return len(left & right) / len(left | right) if left | right else 1.0
