"""What every graph of a batch depends on besides its prompt; stored with the graphs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from circuits.errors import InputError
from circuits.graphs.prune import check_thresholds


@dataclass(frozen=True)
class BatchSettings:
    """Settings of a batch; those that are not explained are the arguments of :func:`circuits.trace`.

    Raises:
        InputError: a value that no trace takes.
    """

    model: str = "gemma-3-270m"
    """Alias, hub id or folder."""
    transcoders: str = "bundled"
    coverage: float = 0.95
    max_features: int | None = None
    max_logits: int = 10
    logit_prob: float = 0.95
    prune: bool = True
    """Keep the part of each graph that the thresholds leave."""
    node_threshold: float = 0.8
    edge_threshold: float = 0.98
    heads: bool = False
    """Look which attention heads carry the edges."""
    dtype: str = "float32"
    model_dtype: str = "float32"
    device: str = "auto"
    threads: int | None = None
    """Of every process. Another number gives other last bits. None: what the folder was begun with, at first the
    processor's cores divided by the number of processes."""

    def __post_init__(self) -> None:
        for name in ("coverage", "logit_prob"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}: expected a share above 0 and at most 1")
        for name in ("max_features", "max_logits", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}: expected at least 1")
        check_thresholds(self.node_threshold, self.edge_threshold)
        from circuits.gemma3 import check_dtype

        check_dtype(self.model_dtype)
        if self.dtype != "mixed":
            check_dtype(self.dtype)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
