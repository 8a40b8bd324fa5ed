"""Which graphs there are and what family each is of: folders that ``circuits batch`` wrote, others, or single files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from circuits.errors import FormatError, InputError

SUFFIX = ".safetensors"
SUMMARY = "summary.jsonl"
ALL = "all prompts"
"""The one family where nothing divides the prompts."""


class Row(BaseModel):
    """What aggregation reads of a line of the summary; other keys can be named as the one that tells families."""

    model_config = ConfigDict(extra="allow", strict=True)
    id: str
    error: Any = None
    extra: dict[str, Any] | None = None

    def value(self, key: str) -> Any:
        """Of any key, also of one that the prompts' file brought along; None where it is absent."""
        return {**(self.extra or {}), **(self.model_extra or {})}.get(key)


@dataclass(frozen=True)
class Found:
    """Files of graphs by family."""

    families: dict[str, list[Path]]
    warnings: list[str]


def find_families(paths: Sequence[Path], by: str | None = None, only: Sequence[str] = ()) -> Found:
    """The graphs at ``paths``, divided by a key of their summaries.

    Args:
        paths: folders with ``graphs/*.safetensors`` and ``summary.jsonl``, folders of graphs, or graphs.
        by: the key; by default ``family`` where a row has one, else all prompts are one family.
        only: names of families, in the order wanted; all by default.

    Raises:
        InputError: nothing there, only failed prompts, no prompt with the key or of a family, or a value that cannot
            name a family.
        FormatError: a summary that is damaged.
    """
    rows: list[tuple[Path, Row | None]] = []
    failed = 0
    for path in paths:
        there, broken = _graphs_of(path)
        rows += there
        failed += broken
    if not rows:
        where = ", ".join(map(str, paths))
        raise InputError(f"{where}: all {failed} prompts failed, so there is nothing to aggregate; {SUMMARY} has the "
                         "errors" if failed else
                         f"{where} has no graphs: expected a folder that circuits batch wrote, or {SUFFIX} files")
    warnings = [_left_out(failed, "that failed")] if failed else []
    families, left_out, key = _divided(rows, by)
    if left_out:
        warnings.append(_left_out(left_out, f"without {key!r}"))
    if unknown := [name for name in only if name not in families]:
        raise InputError(f"there is no family {unknown[0]!r}: expected one of {', '.join(map(repr, families))}")
    return Found({name: families[name] for name in only} if only else families, warnings)


def versus_of(families: Mapping[str, Sequence[Path]], versus: str | None) -> tuple[str, str] | None:
    """Which two families to compare, where one is named.

    Raises:
        InputError: the other one is not clear.
    """
    if versus is None:
        return None
    others = [name for name in families if name != versus]
    if versus not in families or len(others) != 1:
        raise InputError(f"--versus {versus!r} needs exactly one other family, of {', '.join(map(repr, families))}: "
                         "name it with --family")
    return others[0], versus


def _left_out(count: int, which: str) -> str:
    return f"{count} prompts {which} are left out." if count > 1 else f"1 prompt {which} is left out."


def _divided(rows: Sequence[tuple[Path, Row | None]], by: str | None) -> tuple[dict[str, list[Path]], int, str]:
    """Files by family, how many have none, and the key that tells."""
    key = by or "family"
    values = [(path, None if row is None else row.value(key)) for path, row in rows]
    known = [(path, _name(path, key, value)) for path, value in values if value is not None]
    if not known and by:
        raise InputError(f"no prompt has {by!r}: expected a key of {SUMMARY} by which the prompts can be divided, such "
                         "as family or correct")
    if not known:
        return {ALL: [path for path, _ in rows]}, 0, key
    families: dict[str, list[Path]] = {}
    for path, name in known:
        families.setdefault(name, []).append(path)
    return families, len(rows) - len(known), key


def _name(path: Path, key: str, value: Any) -> str:
    """A family's name from a value: text as it is, numbers and truth as JSON writes them."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise InputError(f"{key!r} of prompt {path.stem} is a {type(value).__name__}: expected text, a number or a truth "
                     "value, which can name a family")


def _graphs_of(path: Path) -> tuple[list[tuple[Path, Row | None]], int]:
    """Files, with their rows where there is a summary; and how many prompts failed."""
    if path.is_file() and path.suffix.lower() == SUFFIX:
        return [(path, None)], 0
    if not path.is_dir():
        raise InputError(f"{path} is no folder and no {SUFFIX} file: give a folder that circuits batch wrote, or "
                         "graphs")
    folder = path / "graphs" if (path / "graphs").is_dir() else path
    files = {file.stem: file for file in sorted(folder.glob(f"*{SUFFIX}"))}
    if not (path / SUMMARY).is_file():
        return [(file, None) for file in files.values()], 0
    rows = _rows(path / SUMMARY)
    good = [row for row in rows if row.error is None]
    if missing := [row.id for row in good if row.id not in files]:
        raise InputError(f"{path / SUMMARY} names prompt {missing[0]!r}, but {folder} has no graph of it: run circuits "
                         "batch again")
    return [(files[row.id], row) for row in good], len(rows) - len(good)


def _rows(path: Path) -> list[Row]:
    rows: dict[str, Row] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = Row.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FormatError(f"{path}, line {number}: {where + ': ' if where else ''}{first['msg']}; run circuits "
                              "batch again, which writes it anew") from error
        if row.id in rows:
            raise FormatError(f"{path}, line {number}: prompt {row.id!r} is there twice; run circuits batch again, "
                              "which writes it anew")
        rows[row.id] = row
    return list(rows.values())
