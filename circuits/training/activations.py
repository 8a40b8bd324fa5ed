"""Shards of a model's MLP inputs and outputs on a text: cached under a disk quota, or computed when read.

Shapes: B sequences, P positions (the masked prefix left out), T = B * P tokens, L layers, D d_model.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from circuits.errors import FormatError, InputError
from circuits.gemma3 import Gemma3
from circuits.hub import first_line
from circuits.prompt import prefix_tokens
from circuits.training.shard_folder import ShardFolder
from circuits.training.text import OpenText, Report, ShardPlan, Text

BATCH_BYTES = 2**29
"""Activations recorded in one forward pass and stacked afterwards, both counted: below 1 GB with the pass itself."""
Activations = tuple[Tensor, Tensor, Tensor]
"""tokens (B, length) int32, mlp_in and mlp_out (B, P, L, D) bfloat16; a file's tensors, in this order."""
NAMES = ("tokens", "mlp_in", "mlp_out")


class ActivationStore:
    """MLP inputs and outputs of one model on one text, shard by shard.

    Shard i depends on the model, the text's settings, the shard's size and i alone. Several processes may make and
    read the same or different shards of one folder.
    """

    def __init__(self, model: Gemma3, folder: Path, text: Text, *, sequences: int = 256, length: int = 128,
                 quota: int | None = None, progress: Report = lambda stage, done, total: None):
        """
        Args:
            folder: made when absent. Shards of the same text and model already there are used.
            sequences: per shard.
            length: tokens per sequence, the masked prefix included.
            quota: bytes that shards may take in ``folder``; when it is used up, making one drops those made longest
                ago. None: no limit. 0: nothing is cached, a shard is computed when read, stays on the model's device,
                and is kept until another is read.

        Raises:
            InputError: impossible sizes, a quota below one shard, or a folder that cannot be written.
        """
        self.model, self.text = model, text
        self.sequences, self.length, self.quota, self.progress = sequences, length, quota, progress
        self.n_layers, self.d_model = model.n_layers, model.d_model
        self.prefix = len(prefix_tokens(model.name))
        if sequences < 1:
            raise InputError(f"sequences is {sequences}: expected at least 1")
        if not self.prefix < length <= model.max_positions:
            raise InputError(f"length is {length}: expected {self.prefix + 1} to {model.max_positions}, the positions "
                             f"{model.name} reads")
        if quota is not None and (quota < 0 or 0 < quota < self.shard_bytes):
            raise InputError(f"quota is {quota} bytes, one shard of {sequences} sequences of {length} tokens takes "
                             f"{self.shard_bytes}: raise the quota, lower sequences, or give 0 to cache nothing")
        self._files = ShardFolder(Path(folder), self.shard_bytes, self.shards_in_quota)
        self._computed: tuple[int, Activations] | None = None

    @property
    def tokens_per_shard(self) -> int:
        """T, the masked prefix not counted."""
        return self.sequences * (self.length - self.prefix)

    @property
    def shard_bytes(self) -> int:
        """Bytes of one file, up to its header of a few kB."""
        return 4 * self.tokens_per_shard * self.n_layers * self.d_model + 4 * self.sequences * self.length

    @property
    def shards_in_quota(self) -> int | None:
        """How many shards can be kept at a time, at least 1; None without a limit. With quota 0 it is the one in
        memory."""
        return None if self.quota is None else max(1, self.quota // self.shard_bytes)

    @property
    def shards(self) -> int | None:
        """How many the text can give; None where no end is known."""
        return self._open_text.shards

    def describe(self) -> dict[str, Any]:
        """What the activations are of, ready for JSON."""
        return {"model": self.model.name, "text": self.text.describe(), "sequences": self.sequences,
                "length": self.length, "masked_prefix": self.prefix, "tokens_per_shard": self.tokens_per_shard}

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """MLP inputs and outputs of a shard, each (T, L, D) bfloat16; made when absent.

        Memory-mapped from its file; with quota 0 on the model's device.

        Raises:
            InputError: the file is of another model, text or size; the text has no such shard; no disk space.
            FormatError: the file is damaged.
        """
        _, mlp_in, mlp_out = self._shard(index)
        return mlp_in.flatten(0, 1), mlp_out.flatten(0, 1)

    def tokens(self, index: int) -> Tensor:
        """(B, length) int32 tokens of a shard, the masked prefix included; made when absent. Raises as :meth:`read`."""
        return self._shard(index)[0]

    def make(self, index: int) -> None:
        """Make a shard's file unless it is there; nothing with quota 0. Raises as :meth:`read`."""
        if self.quota != 0:
            with self._files.lock(index):
                self._make(index)

    def drop(self, index: int) -> None:
        """Forget a shard, on disk or in memory."""
        if self._computed is not None and self._computed[0] == index:
            self._computed = None
        if self.quota != 0:
            self._files.drop(index)

    def _shard(self, index: int) -> Activations:
        if self.quota == 0:
            if self._computed is None or self._computed[0] != index:
                self._computed = None  # the next one needs its memory
                self._computed = index, self._compute(index, self.model.device)
            return self._computed[1]
        with self._files.lock(index):  # until it is mapped: another process could drop it to make room
            self._make(index)
            return self._open(self._files.path(index))

    def _make(self, index: int) -> None:
        if not self._files.path(index).exists():
            tensors = self._compute(index, torch.device("cpu"))
            self._files.write(index, dict(zip(NAMES, tensors, strict=True)),
                              {"text": _canonical(self.text.describe()), "model": self._fingerprint})

    def _compute(self, index: int, device: torch.device) -> Activations:
        shard = self._open_text.read(index, device)
        if shard.mlp_in is not None and shard.mlp_out is not None:
            return shard.tokens, shard.mlp_in, shard.mlp_out
        shape = (self.sequences, self.length - self.prefix, self.n_layers, self.d_model)
        mlp_in, mlp_out = (torch.empty(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
        one = 4 * self.length * self.n_layers * self.d_model * self.model.dtype.itemsize
        batch = max(1, BATCH_BYTES // one)
        for first in range(0, self.sequences, batch):
            self.progress("activations of the text", first, self.sequences)
            rows = slice(first, first + batch)
            for kept, met in zip((mlp_in, mlp_out), self.model.mlp_boundaries(shard.tokens[rows]), strict=True):
                kept[rows] = met[:, self.prefix:]
        return shard.tokens, mlp_in, mlp_out

    def _open(self, path: Path) -> Activations:
        try:
            with safe_open(path, "pt") as file:
                self._check_origin(path, file.metadata() or {})
                tokens, mlp_in, mlp_out = (file.get_tensor(name) for name in NAMES)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path} is not a whole shard of activations ({first_line(error)}): delete it, and it is "
                              "made again") from None
        if mlp_in.shape[2:] != (self.n_layers, self.d_model) or mlp_out.shape != mlp_in.shape:
            raise InputError(f"{path} holds {mlp_in.shape[2]} layers of width {mlp_in.shape[3]}, the model has "
                             f"{self.n_layers} of {self.d_model}: give an empty folder for the activation cache")
        masked = tokens.shape[1] - mlp_in.shape[1]
        if (*tokens.shape, masked) != (self.sequences, self.length, self.prefix):
            raise InputError(f"{path} holds {tokens.shape[0]} sequences of {tokens.shape[1]} tokens, {masked} of them "
                             f"masked; expected {self.sequences} of {self.length}, {self.prefix} masked: use the same "
                             "sizes, or give an empty folder for the activation cache")
        return tokens, mlp_in, mlp_out

    def _check_origin(self, path: Path, metadata: dict[str, str]) -> None:
        """Files that do not say what they are of are taken as they are."""
        wanted = _canonical(self.text.describe())
        if metadata.get("text", wanted) != wanted:
            raise InputError(f"{path} is of another text ({metadata['text'][:300]}): use that text, or give an empty "
                             "folder for the activation cache")
        if metadata.get("model", self._fingerprint) != self._fingerprint:
            raise InputError(f"{path} holds activations of another model than {self.model.name}: give an empty folder "
                             "for the activation cache")

    @cached_property
    def _open_text(self) -> OpenText:
        return self.text.open(ShardPlan(self.model, self.sequences, self.length, self._files.folder, self.progress))

    @cached_property
    def _fingerprint(self) -> str:
        """Tells models of one shape apart; the same for every dtype a model is opened in."""
        sample = self.model.embedding[:256].detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        return hashlib.sha256(sample.numpy().tobytes()).hexdigest()[:16]


def _canonical(description: dict[str, Any]) -> str:
    return json.dumps(description, sort_keys=True)
