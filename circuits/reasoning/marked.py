"""Texts with marked spans, and which tokens a span has.

``[[question]]Tom has 2 apples and buys 3.[[/question]] [[reasoning]]2 plus 3 is 5.[[/reasoning]] Answer: [[answer]]5``

``[[NAME]]`` opens a span and ``[[/NAME]]`` closes it, NAME being a letter and then letters, digits, ``_`` and ``-``.
The marks are taken out and nothing else is changed, so that every space stays where it is. What follows ``[[answer]]``
is no part of the prompt: its first token is what the trace explains. A text that holds such brackets of its own is
given without marks, with spans as ranges of tokens.

Shapes: C characters.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs.spans import Span
from circuits.prompt import token_text, tokenize

ANSWER = "answer"
EXAMPLE = "[[question]]...[[/question]] [[reasoning]]...[[/reasoning]] Answer: [[answer]]"
_NAME = r"[A-Za-z][A-Za-z0-9_-]*"
_MARK = re.compile(rf"\[\[(/?)({_NAME})\]\]")
_SPAN = re.compile(rf"\[\[({_NAME})\]\](.*?)\[\[/\1\]\]", re.DOTALL)


@dataclass(frozen=True)
class MarkedText:
    """A text whose marks were taken out."""

    text: str
    spans: dict[str, tuple[int, int]]
    """First character, and the one after the last."""
    answer: str
    """What follows the answer's mark; empty without."""


def has_marks(text: str) -> bool:
    """Whether a mark is closed in it, which usual text does not do."""
    return any(mark[1] for mark in _MARK.finditer(text))


def read_marks(text: str) -> MarkedText:
    """Take the marks out of a text.

    Raises:
        InputError: no marks, or marks that are not closed, closed but not open, nested, empty, used twice, or after
            the answer's.
    """
    prompt, _, after = text.partition(f"[[{ANSWER}]]")
    answer, _, rest = after.partition(f"[[/{ANSWER}]]")
    if rest.strip() or _MARK.search(answer):
        raise InputError(f"there is more after the answer ({(rest.strip() or answer)[:40]!r}): the prompt ends at "
                         f"[[{ANSWER}]], so mark every other span before it")
    parts, length, last = [], 0, 0
    spans: dict[str, tuple[int, int]] = {}
    for span in _SPAN.finditer(prompt):
        name, outside, inside = span[1], prompt[last:span.start()], span[2]
        _check_span(name, outside, inside, spans)
        start = length + len(outside)
        spans[name] = start, start + len(inside)
        parts += [outside, inside]
        length, last = start + len(inside), span.end()
    _check_outside(prompt[last:])
    if not spans:
        raise InputError(f"the text marks no span: write it as {EXAMPLE}, or give ranges of tokens (--span)")
    return MarkedText("".join([*parts, prompt[last:]]), spans, answer)


def _check_span(name: str, outside: str, inside: str, known: Container[str]) -> None:
    _check_outside(outside)
    if mark := _MARK.search(inside):
        raise InputError(f"the mark {mark[0]} stands inside of the span {name!r}: spans do not overlap, so close that "
                         f"with [[/{name}]] first")
    if name in known:
        raise InputError(f"the text marks two spans {name!r}: give each its own name")
    if not inside:
        raise InputError(f"the span {name!r} is empty: put its text between [[{name}]] and [[/{name}]]")


def _check_outside(text: str) -> None:
    """A mark that is left over belongs to no span."""
    if mark := _MARK.search(text):
        raise InputError(f"the mark {mark[0]} closes a span that is not open: it begins with [[{mark[2]}]]" if mark[1]
                         else f"the span {mark[2]!r} is not closed: end it with [[/{mark[2]}]]")


def token_spans(model: Gemma3, marked: MarkedText) -> tuple[list[int], list[Span], list[str]]:
    """Tokens of the prompt, ``<bos>`` first, its spans by token, and a note for each token that two spans share.

    A token belongs to the span that holds most of its characters, the earlier one of two; white space counts only in
    tokens of nothing else.

    Raises:
        InputError: a prompt that cannot be read, a span that no token belongs to, or a tokenizer that does not say
            where its tokens stand.
    """
    tokens = tokenize(model, marked.text)
    names, place = list(marked.spans), np.full(len(marked.text), -1)
    for number, (start, stop) in enumerate(marked.spans.values()):
        place[start:stop] = number
    members: dict[int, list[int]] = {number: [] for number in range(len(names))}
    notes = []
    for position, (start, stop) in enumerate(_character_ranges(model, marked.text, tokens)):
        found = _places(marked.text, place, start, stop)
        if len(found) > 1:
            sides = " and ".join("no span" if number < 0 else repr(names[number]) for number in found)
            notes.append(f"token {position} {token_text(model, tokens[position])!r} lies in {sides}: it counts to the "
                         "first of them, which has most of it")
        if found and found[0] >= 0:
            members[found[0]].append(position)
    for number, positions in members.items():
        if not positions:
            raise InputError(f"the span {names[number]!r} has no token of its own: mark whole words")
    spans = [Span(names[number], positions[0], positions[-1] + 1) for number, positions in members.items()]
    return tokens, spans, notes


def _places(text: str, place: np.ndarray, start: int, stop: int) -> list[int]:
    """Spans that hold the characters of a token, the one with most of them first; -1: none."""
    held = [int(place[i]) for i in range(start, stop) if not text[i].isspace()] or place[start:stop].tolist()
    distinct = list(dict.fromkeys(held))
    return sorted(distinct, key=lambda number: -held.count(number))  # stable: the earlier of equals stays first


def _character_ranges(model: Gemma3, text: str, tokens: list[int]) -> Iterator[tuple[int, int]]:
    """First character of each token and the one after its last; an added ``<bos>`` has none."""
    tokenizer = model.tokenizer
    if tokenizer.is_fast:
        ranges = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        yield from [(0, 0)] * (len(tokens) - len(ranges))
        yield from ranges
        return
    written = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(written) != text:
        raise InputError(f"the tokenizer of {model.name} does not say where its tokens stand in this text: leave the "
                         "marks out and give ranges of tokens (--span)")
    yield from [(0, 0)] * (len(tokens) - len(written))
    ends = [0, *(len(tokenizer.decode(written[:count])) for count in range(1, len(written) + 1))]
    yield from pairwise(ends)
