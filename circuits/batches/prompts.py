"""The prompts of a batch: JSONL, one object a line, all of it checked before any work."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from circuits.errors import InputError

ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""Ids name files."""
ASKED = ("prompt", "tokens", "chat", "target", "versus", "answer")
"""What decides a prompt's graph and what is measured of it; the rest only describes the prompt."""


class Prompt(BaseModel):
    """One line of a batch; fields as the arguments of :func:`circuits.trace`. Further keys are its ``extra``."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    id: str
    prompt: str | None = None
    tokens: list[int] | None = None
    chat: bool = False
    target: str | int | None = None
    versus: str | int | None = None
    answer: str | int | None = None
    """The expected next token, as text or id."""
    family: str | None = None
    """A name that prompts of one kind share."""

    @model_validator(mode="after")
    def _consistent(self) -> Prompt:
        if not ID.fullmatch(self.id):
            raise ValueError(f"id is {self.id!r}: expected 1 to 100 of the characters A-Z a-z 0-9 _ . - and neither "
                             ". nor - first, since files are named by it")
        if (self.prompt is None) == (self.tokens is None):
            raise ValueError("expected either 'prompt' (text) or 'tokens' (ids)")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is empty: expected at least one word")
        if self.tokens is not None and (len(self.tokens) < 2 or min(self.tokens) < 0):
            raise ValueError("tokens: expected at least two ids, <bos> first, none below 0")
        if self.chat and self.prompt is None:
            raise ValueError("chat wraps text in the chat template: give 'prompt', not 'tokens'")
        if self.versus is not None and self.target is None:
            raise ValueError("versus needs a target: the trace explains logit(target) - logit(versus)")
        return self

    @property
    def extra(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def asked(self) -> dict[str, Any]:
        """The fields ASKED."""
        return {name: getattr(self, name) for name in ASKED}


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a JSONL file, or of standard input where ``path`` is ``-``; empty lines are skipped. A prompt
    without an ``id`` gets the number of its line, five digits.

    Raises:
        InputError: it cannot be read, holds no prompt, or a line is not one; the message names the line.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
        lines = raw.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    prompts = check_prompts(((f"{name}, line {number}", number, _object(f"{name}, line {number}", line))
                             for number, line in enumerate(lines, 1) if line.strip()))
    if not prompts:
        raise InputError(f"{name} holds no prompts: expected one JSON object a line with a 'prompt' or 'tokens' key")
    return prompts


def check_prompts(items: Iterable[tuple[str, int, Mapping[str, Any]]]) -> list[Prompt]:
    """Prompts from (where, for messages; number, for the id; fields).

    Raises:
        InputError: fields that are not a prompt's, or two prompts with one id; letters' case makes no other id, since
            on some file systems it makes no other file.
    """
    prompts, seen = [], dict[str, str]()
    for where, number, fields in items:
        try:
            prompt = Prompt.model_validate({"id": f"{number:05d}", **fields})
            json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
        except ValidationError as error:
            raise InputError(f"{where}: {_first(error)}") from None
        except UnicodeEncodeError:
            raise InputError(f"{where}: a text holds half of a surrogate pair, which is no character") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"{where}: expected plain JSON values: {error}") from None
        if (before := seen.setdefault(prompt.id.casefold(), where)) is not where:
            raise InputError(f"{where}: the id {prompt.id!r} is taken by {before}: files are named by it, give another")
        prompts.append(prompt)
    return prompts


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}): expected one object a line") from None
    if not isinstance(fields, dict):
        raise InputError(f"{where} is a {type(fields).__name__}: expected an object such as "
                         '{"prompt": "The capital of France is"}')
    return fields


def _first(error: ValidationError) -> str:
    """The first thing wrong, in one line. Of a field with several possible types pydantic names each type."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    return f"{name}: {first['msg']}" if name else str(first["msg"]).removeprefix("Value error, ")
