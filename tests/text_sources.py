"""A tokenizer and documents for tests of training text: one token a character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from circuits.gemma3 import Gemma3

DOCUMENTS = ["The first document, which is a little longer than the others are.", "Second.", "", "   ",
             "And a third one:\nwith two lines.", "x" * 150, "One more, the last of them all."]


class CharacterTokenizer:
    bos_token_id = 2

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [5 + ord(c) % 120 for c in text]}


def with_tokenizer(model: Gemma3, name: str = "tiny") -> Gemma3:
    return Gemma3(model.hf, CharacterTokenizer(), name)


def packed(documents: list[str]) -> list[int]:
    """All tokens of the documents, a blank line after each."""
    return [5 + ord(c) % 120 for document in documents if document.strip() for c in document + "\n\n"]


def jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


class FakeDataSets:
    """Stands in for the datasets module: the part of its interface that is used."""

    def __init__(self, rows: list[Any]):
        self.rows, self.opened, self.yielded = rows, [], 0

    def load_dataset(self, *place: Any, **options: Any) -> FakeStream:
        self.opened.append((place, options))
        return FakeStream(self, 0)


class FakeStream:
    def __init__(self, owner: FakeDataSets, first: int):
        self.owner, self.first = owner, first

    def skip(self, count: int) -> FakeStream:
        return FakeStream(self.owner, self.first + count)

    def __iter__(self) -> Any:
        for row in self.owner.rows[self.first:]:
            self.owner.yielded += 1
            if isinstance(row, Exception):
                raise row
            yield row
