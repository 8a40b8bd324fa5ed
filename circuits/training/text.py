"""Where training text comes from: files, the model itself, a data set, or several of these mixed.

A text is settings only. Opened for a model and a shard size it gives shards: B sequences of ``length`` tokens, each
starting with the masked prefix and filled to the end. Shard i depends on the settings and i alone.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.prompt import prefix_tokens
from circuits.training.held_out import json_lines
from circuits.training.sampling import MIN_P, TEMPERATURE, common_vocabulary, sample_shard

Report = Callable[[str, int, int], None]

SEPARATOR = "\n\n"
"""Between two documents of a packed sequence. Not ``<bos>``: in the middle of a sequence it would be a second
attention sink, with activations no prompt has."""


class Shard(NamedTuple):
    """One shard of text, with activations where making the text computes them anyway."""

    tokens: Tensor
    """(B, length) int32, on the CPU."""
    mlp_in: Tensor | None = None
    """(B, length - prefix, L, D) bfloat16."""
    mlp_out: Tensor | None = None


@dataclass(frozen=True)
class ShardPlan:
    """What a text is opened for."""

    model: Gemma3
    sequences: int
    length: int
    """Tokens per sequence, the masked prefix included."""
    folder: Path
    """For notes on what was read, small files that make going on after a kill cheap."""
    progress: Report = lambda stage, done, total: None

    @property
    def room(self) -> int:
        """Tokens of text in one sequence."""
        return self.length - len(prefix_tokens(self.model.name))


class OpenText(Protocol):
    """A text opened for one model and shard size."""

    @property
    def shards(self) -> int | None:
        """How many shards there are; None where there is no end, or none known before it is reached."""

    def read(self, index: int, device: torch.device) -> Shard:
        """Shard ``index``; activations, if any, on ``device``.

        Raises:
            InputError: the text ends before it, or cannot be read.
        """


class Text(Protocol):
    """Where token sequences come from."""

    def describe(self) -> dict[str, Any]:
        """Everything the tokens depend on besides model and shard size, ready for JSON."""

    def open(self, plan: ShardPlan) -> OpenText: ...


def read_documents(path: Path) -> list[str]:
    """The documents of a file: plain text is one, JSONL has one under ``text`` in each line.

    Raises:
        InputError: the file cannot be read, or is not what it should be.
    """
    if path.suffix == ".jsonl":
        return json_lines(path, "text")
    try:
        return [_read(path).decode("utf-8")]
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None


def document_tokens(model: Gemma3, document: str) -> list[int]:
    """Tokens of one document and the separator after it; none for a blank document.

    Raises:
        InputError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer files: only text sampled from the model can be used")
    if not document.strip():
        return []
    whole = document.encode("utf-8", "replace").decode()  # JSON may hold half characters, tokenizers refuse them
    return list(model.tokenizer(whole.rstrip() + SEPARATOR, add_special_tokens=False)["input_ids"])


def with_prefix(model: Gemma3, rows: Tensor) -> Tensor:
    """(B, length) int32 from (B, length - prefix)."""
    prefix = torch.tensor(prefix_tokens(model.name), dtype=torch.int32)
    return torch.cat([prefix.expand(len(rows), -1), rows.int()], 1)


@dataclass(frozen=True)
class SampledText:
    """Text sampled from the model; its activations are by-products. It has no end."""

    seed: int = 0
    vocabulary: int = 32768
    """Only this many of the model's likeliest tokens are sampled (0: all); see :func:`sampling.common_vocabulary`."""
    temperature: float = TEMPERATURE
    min_p: float = MIN_P
    """Tokens less probable than this share of the likeliest are never sampled."""

    def __post_init__(self) -> None:
        if self.vocabulary < 0:
            raise InputError(f"vocabulary is {self.vocabulary}: expected a number of tokens, or 0 for all")
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}: expected a number above 0")
        if not 0 < self.min_p < 1:
            raise InputError(f"min_p is {self.min_p}: expected a number between 0 and 1")

    def describe(self) -> dict[str, Any]:
        return {"kind": "sampled", "seed": self.seed, "vocabulary": self.vocabulary, "temperature": self.temperature,
                "min_p": self.min_p}

    def open(self, plan: ShardPlan) -> OpenText:
        return _OpenSampled(self, plan)


class _OpenSampled:
    shards = None

    def __init__(self, text: SampledText, plan: ShardPlan):
        self.text, self.plan = text, plan

    @cached_property
    def vocabulary(self) -> Tensor | None:
        text, plan = self.text, self.plan
        if not text.vocabulary:
            return None
        return common_vocabulary(plan.model, prefix_tokens(plan.model.name), size=text.vocabulary, seed=text.seed,
                                 min_p=text.min_p, progress=plan.progress)[0]

    def read(self, index: int, device: torch.device) -> Shard:
        text, plan = self.text, self.plan
        return Shard(**sample_shard(
            plan.model, prefix_tokens(plan.model.name), sequences=plan.sequences, length=plan.length,
            seed=(text.seed + 1) * 1_000_003 + index, vocabulary=self.vocabulary, temperature=text.temperature,
            min_p=text.min_p, device=device, progress=plan.progress))


@dataclass(frozen=True)
class FileText:
    """Documents of files, joined in order, cut into sequences and shuffled. What fills no shard is left out."""

    paths: Sequence[Path]
    """Plain text, or JSONL with a ``text`` key (one document a line)."""
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", tuple(Path(path) for path in self.paths))
        if not self.paths:
            raise InputError("a text from files needs at least one file")

    def describe(self) -> dict[str, Any]:
        """Files by name, size and hash: where they lie says nothing, what they hold does."""
        return {"kind": "files", "seed": self.seed, "files": self._files}

    @cached_property
    def _files(self) -> list[dict[str, Any]]:
        found = [(path.name, _read(path)) for path in self.paths]
        return [{"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for name, content in found]

    def open(self, plan: ShardPlan) -> OpenText:
        return _OpenFiles(self, plan)


class _OpenFiles:
    def __init__(self, text: FileText, plan: ShardPlan):
        self.text, self.plan = text, plan
        self.names = ", ".join(path.name for path in text.paths)
        documents = [document for path in text.paths for document in read_documents(path)]
        self.rows = _packed(plan, documents)
        self.order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(text.seed))

    @property
    def shards(self) -> int:
        return len(self.rows) // self.plan.sequences

    def read(self, index: int, device: torch.device) -> Shard:
        plan = self.plan
        if index >= self.shards:
            raise InputError(f"{self.names} fill {self.shards} shards of {plan.sequences} sequences of {plan.length} "
                             f"tokens, and shard {index} was asked for: ask for fewer, or give more text")
        rows = self.rows[self.order[index * plan.sequences:(index + 1) * plan.sequences]]
        return Shard(with_prefix(plan.model, rows))


def _packed(plan: ShardPlan, documents: list[str]) -> Tensor:
    """(N, room) int32: the documents one after the other, cut into full rows."""
    tokens = array("i")
    for number, document in enumerate(documents):
        plan.progress("reading text", number, len(documents))
        tokens.extend(document_tokens(plan.model, document))
    rows = len(tokens) // plan.room
    return torch.tensor(tokens[:rows * plan.room], dtype=torch.int32).view(rows, plan.room)


@dataclass(frozen=True)
class MixedText:
    """Several texts by weight; every shard is of one of them."""

    texts: Sequence[Text]
    weights: Sequence[float]
    """Share of the shards that each text gives, in proportion."""

    def __post_init__(self) -> None:
        if not self.texts or len(self.texts) != len(self.weights):
            raise InputError(f"a mix of {len(self.texts)} texts has {len(self.weights)} weights: expected one for each")
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise InputError(f"weights of a mix are {list(self.weights)}: expected numbers above 0")

    def describe(self) -> dict[str, Any]:
        pairs = zip(self.texts, self.weights, strict=True)
        return {"kind": "mix", "texts": [{"weight": weight, **text.describe()} for text, weight in pairs]}

    def sources(self) -> Iterator[tuple[int, int]]:
        """For shard 0, 1, and so on: which text gives it, and which of that text's shards it is. Always the text
        furthest behind its share."""
        counts = [0] * len(self.weights)
        for made in count(1):
            behind = [weight / sum(self.weights) * made - given
                      for weight, given in zip(self.weights, counts, strict=True)]
            chosen = behind.index(max(behind))
            yield chosen, counts[chosen]
            counts[chosen] += 1

    def open(self, plan: ShardPlan) -> OpenText:
        return _OpenMix(self, [text.open(plan) for text in self.texts])


class _OpenMix:
    def __init__(self, text: MixedText, parts: list[OpenText]):
        self.text, self.parts = text, parts

    @cached_property
    def shards(self) -> int | None:
        """Until the first part that has an end is used up."""
        if all(part.shards is None for part in self.parts):
            return None
        ends = [part.shards for part in self.parts]
        return next(made for made, (part, place) in enumerate(self.text.sources())
                    if (end := ends[part]) is not None and place >= end)

    def read(self, index: int, device: torch.device) -> Shard:
        part, place = next(islice(self.text.sources(), index, None))
        return self.parts[part].read(place, device)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
