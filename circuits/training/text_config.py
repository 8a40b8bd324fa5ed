"""Texts described in a settings file: ``[[text]]`` tables, one a source, mixed by their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from circuits.errors import InputError
from circuits.training.data_set import DataSetText
from circuits.training.sampling import MIN_P, TEMPERATURE
from circuits.training.text import FileText, MixedText, SampledText, Text


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid")
    weight: float = Field(1.0, gt=0)
    seed: int = 0


class _Sampled(_Source):
    kind: Literal["sampled"]
    vocabulary: int = 32768
    temperature: float = TEMPERATURE
    min_p: float = MIN_P

    def text(self) -> Text:
        return SampledText(self.seed, self.vocabulary, self.temperature, self.min_p)


class _Files(_Source):
    kind: Literal["files"]
    paths: list[Path]

    def text(self) -> Text:
        return FileText(self.paths, self.seed)


class _DataSet(_Source):
    kind: Literal["data set"]
    name: str
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    subset: str | None = None

    def text(self) -> Text:
        return DataSetText(self.name, self.split, self.column, self.revision, self.subset, self.seed)


_SOURCES = TypeAdapter(list[Annotated[_Sampled | _Files | _DataSet, Field(discriminator="kind")]])


def text_from(tables: Any) -> Text:
    """The text that ``[[text]]`` tables describe.

    Raises:
        InputError: a table is not one of the three kinds, or has other keys.
    """
    try:
        sources = _SOURCES.validate_python(tables)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"[[text]] {where}: {first['msg']}; expected kind = \"sampled\", \"files\" (with paths) or "
                         "\"data set\" (with name), and their own keys") from None
    if not sources:
        raise InputError("[[text]] is empty: give at least one source, or leave it out")
    texts = [source.text() for source in sources]
    return texts[0] if len(texts) == 1 else MixedText(texts, [source.weight for source in sources])
