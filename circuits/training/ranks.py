"""Several processes that train one transcoder together: each holds every ``size``-th feature of all layers.

Tokens, skips and decoder biases are the same on all; reconstructions are summed. Started by ``torchrun``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from circuits.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process's place; the default is a process on its own."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def count(self, total: int) -> int:
        """How many of the leading ``total`` features are here."""
        return len(range(self.rank, total, self.size))

    def own(self, tensor: Tensor, dim: int) -> Tensor:
        """This process's features of a whole tensor."""
        index = torch.arange(self.rank, tensor.shape[dim], self.size, device=tensor.device)
        return tensor.index_select(dim, index)

    def whole(self, tensor: Tensor, dim: int) -> Tensor:
        """The whole tensor from every process's features, on all processes."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        shape = list(tensor.shape)
        shape[dim] *= self.size
        return torch.stack(parts, dim + 1).reshape(shape)

    def sum_(self, tensor: Tensor) -> Tensor:
        """``tensor`` summed over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """(size, ...) every process's ``tensor``; all must have one shape."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def wait(self) -> None:
        """Return when every process is here."""
        if self.size > 1:
            dist.barrier()

    def check(self, features: int) -> None:
        """Raises InputError where ``features`` cannot be shared out evenly."""
        if features % self.size:
            raise InputError(f"{features} features per layer over {self.size} processes: expected a multiple of "
                             f"{self.size}")


def own_device(device: torch.device) -> str:
    """The device of this process: under ``torchrun`` every process takes a CUDA device of its own."""
    local = os.environ.get("LOCAL_RANK")
    return f"cuda:{local}" if local is not None and device.type == "cuda" and device.index is None else str(device)


def join(device: str) -> Ranks:
    """The processes that ``torchrun`` started (gloo on the CPU, nccl on CUDA), or this one alone."""
    if "LOCAL_RANK" not in os.environ:
        return Ranks()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())
