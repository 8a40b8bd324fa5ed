"""What is to be measured: a prompt with spans and a target, as text with marks, as ranges of tokens, or from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs.spans import Span, check_spans
from circuits.prompt import check_tokens, token_text, tokenize
from circuits.reasoning.marked import ANSWER, has_marks, read_marks, token_spans

_RANGE = re.compile(r"\s*([^=]*?)\s*=\s*(\d{1,7}):(\d{1,7})\s*", re.ASCII)


class Case(BaseModel):
    """One prompt of a file, or of the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str | None = None
    """With marks, where ``spans`` is not given; None: that of a graph."""
    spans: dict[str, tuple[int, int]] | None = None
    """First token and the one after the last, ``<bos>`` being token 0."""
    answer: str | None = None
    """Text that follows the prompt: its first token is the target."""
    target: str | int | None = None
    """Instead of ``answer``, one token; ``versus`` what it is compared with."""
    versus: str | int | None = None
    corrupt_with: str | None = None
    """Text in place of the span's, of as many tokens; below, in place of the origin's."""
    corrupt_from_with: str | None = None


@dataclass(frozen=True)
class SpannedPrompt:
    """A prompt of one model."""

    tokens: list[int]
    spans: tuple[Span, ...]
    target: str | int | None
    versus: str | int | None
    notes: tuple[str, ...] = ()
    """What the reader should know of how spans and target were read."""


def parse_spans(texts: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Ranges such as ``reasoning=9:20``, which does not hold token 20.

    Raises:
        InputError: a text of another form, or a name twice.
    """
    spans: dict[str, tuple[int, int]] = {}
    for text in texts:
        match = _RANGE.fullmatch(text)
        if not match or not match[1]:
            raise InputError(f"--span is {text!r}: expected NAME=FROM:TO such as reasoning=9:20, the tokens 9 to 19")
        if match[1] in spans:
            raise InputError(f"--span names {match[1]!r} twice: give each span its own name")
        spans[match[1]] = int(match[2]), int(match[3])
    return spans


def read_cases(path: Path) -> list[Case]:
    """The prompts of a JSON file (an object, or a list of them) or of a JSONL file (an object on each line).

    Raises:
        InputError: a file that cannot be read, or an object that is no :class:`Case`; it says where.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give a JSON or JSONL file of prompts") from None
    if path.suffix.lower() == ".json":
        whole = _json(text, f"{path}")
        found = [(f"{path}, object {i + 1}", one) for i, one in enumerate(whole)] if isinstance(whole, list) else [
            (f"{path}", whole)]
    else:
        found = [(f"{path}, line {i}", _json(line, f"{path}, line {i}"))
                 for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not found:
        raise InputError(f"{path} holds no prompt: expected objects with \"prompt\" and \"spans\"")
    return [_case(one, where) for where, one in found]


def asked_cases(prompt: str | None, file: Path | None, spans: Sequence[str], graph: bool, **settings: str | None
                ) -> list[Case]:
    """What the command line asks for.

    Args:
        spans: texts of :func:`parse_spans`.
        graph: whether a graph is given, whose prompt is taken where there is none.
        settings: fields of :class:`Case`.

    Raises:
        InputError: neither a prompt nor a file, or both; a file beside what belongs into it; or as for
            :func:`parse_spans` and :func:`read_cases`.
    """
    if file is not None:
        if prompt is not None or graph or spans or any(value is not None for value in settings.values()):
            raise InputError("a file of prompts holds everything of each: give no prompt, graph, span, target or other "
                             "text beside it")
        return read_cases(file)
    if prompt is None and not graph:
        raise InputError("give a text with marked spans, a file of prompts with -f, or a graph and --span")
    if prompt is None and not spans:
        raise InputError("the graph's prompt has no marks: give ranges of tokens, such as --span reasoning=9:20")
    return [Case.model_validate({"prompt": prompt, "spans": parse_spans(spans) or None, **settings})]


def read_spanned(model: Gemma3, case: Case, tokens: Sequence[int] | None = None) -> SpannedPrompt:
    """The tokens of a case, its spans by token, and its target.

    Args:
        tokens: of the prompt, where the case does not say it.

    Raises:
        InputError: marks or ranges that cannot be used, both of them, or none; no prompt; an answer that does not begin
            with a token of its own; a target beside an answer.
    """
    if case.prompt is None:
        return _of_tokens(model, case, tokens)
    if case.spans is None:
        marked = read_marks(case.prompt)
        tokens, spans, notes = token_spans(model, marked)
        text, answer = marked.text, marked.answer
    else:
        if has_marks(case.prompt):
            raise InputError("the prompt marks spans, and ranges of tokens are given, too: use one of the two")
        tokens, notes, text, answer = tokenize(model, case.prompt), [], case.prompt, ""
        spans = _spans(case.spans)
    answer = case.answer if case.answer is not None else answer
    target = case.target
    if answer and target is not None:
        raise InputError(f"the answer {answer[:40]!r} and the target {target!r} are both given: the answer's first "
                         "token is the target, so leave one of them out")
    if answer:
        target, more = _first_token(model, text, tokens, answer)
        notes += more
    return SpannedPrompt(tokens, check_spans(spans, len(tokens)), target, case.versus, tuple(notes))


def _of_tokens(model: Gemma3, case: Case, tokens: Sequence[int] | None) -> SpannedPrompt:
    if tokens is None or case.spans is None or case.answer is not None:
        raise InputError("there is no prompt: give one, or a graph with ranges of its tokens and no answer")
    ids = check_tokens(model, tokens)
    return SpannedPrompt(ids, check_spans(_spans(case.spans), len(ids)), case.target, case.versus)


def _spans(ranges: Mapping[str, tuple[int, int]]) -> list[Span]:
    return [Span(name, start, stop) for name, (start, stop) in ranges.items()]


def _first_token(model: Gemma3, text: str, tokens: list[int], answer: str) -> tuple[int, list[str]]:
    """The token that the answer begins with where it follows the prompt, and notes."""
    whole = tokenize(model, text + answer)
    if whole[:len(tokens)] != tokens or len(whole) == len(tokens):
        raise InputError(f"the answer {answer[:40]!r} does not begin with a token of its own after the prompt: put the "
                         f"space between them on the other side of [[{ANSWER}]]")
    first, *rest = whole[len(tokens):]
    shown, notes = token_text(model, first), []
    if rest:
        notes.append(f"the answer has {1 + len(rest)} tokens: its first, {shown!r}, is the target")
    if not shown.strip():
        notes.append(f"the target {shown!r} is white space: to explain what follows it, put it before [[{ANSWER}]]")
    return first, notes


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error}): expected an object with \"prompt\" and \"spans\"") from None


def _case(value: Any, where: str) -> Case:
    if isinstance(value, dict) and "prompt" not in value:
        raise InputError(f"{where} has no \"prompt\": expected a text with marks, or one beside \"spans\"")
    try:
        return Case.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the object"
        raise InputError(f"{where}: {field}: {first['msg']}. Expected an object with some of "
                         f"{', '.join(Case.model_fields)}") from None
