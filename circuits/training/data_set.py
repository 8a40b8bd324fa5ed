"""Training text from a Hugging Face data set, read as a stream: nothing is downloaded in advance, or kept.

Needs the ``datasets`` library (extra ``gemma-circuits[datasets]``).
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from circuits.errors import InputError
from circuits.hub import first_line
from circuits.training.text import OpenText, Shard, ShardPlan, document_tokens, with_prefix


@dataclass(frozen=True)
class DataSetText:
    """A data set's documents in its own order, joined and cut into sequences."""

    name: str
    """On the hub, or a folder."""
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    """Branch, tag or commit; only a commit is sure to hold the same text tomorrow."""
    subset: str | None = None
    """The data set's configuration, where it has several."""
    seed: int = 0
    """Order of the sequences inside a shard."""

    def describe(self) -> dict[str, Any]:
        name = Path(self.name).name if Path(self.name).exists() else self.name
        return {"kind": "data set", **asdict(self), "name": name}

    def open(self, plan: ShardPlan) -> OpenText:
        return _OpenDataSet(self, plan)


class _OpenDataSet:
    """Shards of a stream. A note beside them says at which document, and where in it, each shard starts, so that a
    shard can be made without tokenising what comes before it."""

    shards = None

    def __init__(self, text: DataSetText, plan: ShardPlan):
        self.text, self.plan = text, plan
        self.documents = _Documents(text, plan)
        depends_on = [text.describe(), plan.sequences, plan.length, plan.model.name]
        key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:12]
        self.note = plan.folder / f"documents_{key}.json"

    def read(self, index: int, device: torch.device) -> Shard:
        plan = self.plan
        with FileLock(self.note.with_suffix(".lock")):  # others would tokenise the same documents meanwhile
            starts = self._read_note()
            known = min(index, len(starts) - 1)
            for shard in range(known, index + 1):
                tokens, end = self._take(starts[shard], shard)
                if len(starts) == shard + 1:
                    self._write_note([*starts, end])
                    starts.append(end)
        rows = torch.tensor(tokens, dtype=torch.int32).view(plan.sequences, plan.room)
        generator = torch.Generator().manual_seed(self.text.seed * 1_000_003 + index)
        return Shard(with_prefix(plan.model, rows[torch.randperm(len(rows), generator=generator)]))

    def _take(self, start: tuple[int, int], shard: int) -> tuple[array[int], tuple[int, int]]:
        """The tokens of a shard that starts at ``start`` (document, token of it), and where the next one starts."""
        (document, offset), wanted = start, self.plan.sequences * self.plan.room
        taken = array("i")
        while len(taken) < wanted:
            self.plan.progress("reading text", len(taken), wanted)
            tokens = self.documents.tokens(document)
            if tokens is None:
                raise InputError(f"{self.text.name} ({self.text.split}) fills {shard} shards of {self.plan.sequences} "
                                 f"sequences of {self.plan.length} tokens: ask for fewer, or give more text")
            piece = tokens[offset:offset + wanted - len(taken)]
            taken.extend(piece)
            offset += len(piece)
            if offset == len(tokens):
                document, offset = document + 1, 0
        return taken, (document, offset)

    def _read_note(self) -> list[tuple[int, int]]:
        try:
            return [(int(document), int(token)) for document, token in json.loads(self.note.read_text())["starts"]]
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: it can be made again
            return [(0, 0)]

    def _write_note(self, starts: list[tuple[int, int]]) -> None:
        scratch = self.note.with_suffix(".writing")
        try:
            scratch.write_text(json.dumps({"text": self.text.describe(), "sequences": self.plan.sequences,
                                           "length": self.plan.length, "starts": starts}))
            scratch.replace(self.note)
        except OSError as error:
            raise InputError(f"cannot write {self.note}: {error.strerror or error}") from None


class _Documents:
    """The tokens of document 0, 1, and so on; going forward costs reading, going back starts again."""

    def __init__(self, text: DataSetText, plan: ShardPlan):
        self.text, self.plan = text, plan
        self.rows: Iterator[dict[str, Any]] = iter(())
        self.next = 0
        """Number of the document that ``rows`` gives next."""
        self.last: tuple[int, list[int] | None] = (-1, None)
        """The document asked for last."""

    def tokens(self, number: int) -> list[int] | None:
        """None where the data set has ended."""
        if self.last[0] != number:
            self.last = (number, self._tokenised(number))
        return self.last[1]

    def _tokenised(self, number: int) -> list[int] | None:
        try:
            if number < self.next or self.next == 0:
                self.rows, self.next = iter(_stream(self.text).skip(number)), number
            while self.next < number:
                self.next += 1
                if next(self.rows, None) is None:
                    return None
            self.next += 1
            row = next(self.rows, None)
        except InputError:
            raise
        except Exception as error:  # whatever the data set's storage, network and format raise
            raise InputError(f"{self.text.name} cannot be read: {first_line(error)}") from error
        return None if row is None else document_tokens(self.plan.model, self._text(row, number))

    def _text(self, row: dict[str, Any], number: int) -> str:
        column = self.text.column
        if column not in row:
            raise InputError(f"{self.text.name} has no column {column!r}: expected one of {', '.join(row)}")
        if not isinstance(row[column] or "", str):
            raise InputError(f"{self.text.name}, row {number}: {column!r} holds {type(row[column]).__name__}, expected "
                             "text")
        return row[column] or ""


def _stream(text: DataSetText) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError("reading a Hugging Face data set needs the datasets library: "
                         "pip install 'gemma-circuits[datasets]'") from None
    return datasets.load_dataset(text.name, text.subset, split=text.split, revision=text.revision, streaming=True)
