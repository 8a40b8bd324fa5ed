"""What quality is measured on: token sequences cut from a file or sampled from the model, and prompts of a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.prompt import prefix_tokens
from circuits.training.sampling import sample_shard

SAMPLED_AT_ONCE = 64
"""Sequences sampled side by side."""


def read_sequences(model: Gemma3, path: Path, *, length: int = 128, max_tokens: int = 16384) -> list[list[int]]:
    """Token sequences of at most ``length``, each starting with ``<bos>``, cut from a text.

    Args:
        path: plain text, or JSONL whose objects have a ``text`` key (one document each).
        max_tokens: of the text, ``<bos>`` not counted.

    Raises:
        InputError: the file cannot be read, is not what it should be, or holds no token.
    """
    documents = json_lines(path, "text") if path.suffix == ".jsonl" else [_content(path)]
    check_length(model, length)
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}: expected at least 1")
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer files: text cannot be read")
    bos = model.tokenizer.bos_token_id
    sequences: list[list[int]] = []
    room = max_tokens
    for document in documents:
        ids = model.tokenizer(document, add_special_tokens=False)["input_ids"][:room]
        sequences += [[bos, *ids[i:i + length - 1]] for i in range(0, len(ids), length - 1)]
        room -= len(ids)
        if room <= 0:
            break
    if not sequences:
        raise InputError(f"{path} holds no text: expected plain text, or JSONL with a 'text' key")
    return sequences


def sample_sequences(model: Gemma3, *, tokens: int, length: int = 128, seed: int = 99,
                     progress: Callable[[str, int, int], None] = lambda stage, done, total: None) -> list[list[int]]:
    """Sequences of ``length`` sampled from the model over its whole vocabulary, after ``<bos>``, or after the chat
    template's first tokens for an -it model.

    Args:
        tokens: at least this many are sampled: as many sequences as that takes.

    Raises:
        InputError: no tokens, or a length that does not fit.
    """
    prefix = prefix_tokens(model.name)
    if tokens < 1:
        raise InputError(f"{tokens} tokens to sample: expected at least 1")
    check_length(model, length, len(prefix))
    missing = -(-tokens // (length - len(prefix)))
    starts = range(0, missing, SAMPLED_AT_ONCE)
    sequences: list[list[int]] = []
    for block, start in enumerate(starts):
        def within(stage: str, done: int, total: int, block: int = block) -> None:
            progress(stage, block * total + done, len(starts) * total)

        # only the tokens are wanted: activations of the meta device take no memory
        drawn = sample_shard(model, prefix, sequences=min(SAMPLED_AT_ONCE, missing - start), length=length,
                             seed=seed * 1_000_003 + block, device="meta", progress=within)
        sequences += drawn["tokens"].tolist()
    return sequences


def check_length(model: Gemma3, length: int, prefix: int = 1) -> None:
    """Raises:
        InputError: sequences of ``length`` tokens are no longer than their ``prefix``, or too long for the model.
    """
    if not prefix < length <= model.max_positions:
        raise InputError(f"length is {length}: expected {prefix + 1} to {model.max_positions}, the positions that "
                         f"{model.name} reads")


def json_lines(path: Path, key: str) -> list[str]:
    """The strings under ``key`` in a file of one JSON object a line; empty lines are skipped.

    Raises:
        InputError: the file cannot be read, or a line is something else.
    """
    values = []
    for number, line in enumerate(_content(path).split("\n"), 1):  # splitlines would also split inside strings
        if not line.strip():
            continue
        try:
            value = json.loads(line)[key]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}: expected a JSON object with a {key!r} key") from None
        if not isinstance(value, str):
            raise InputError(f"{path}, line {number}: {key!r} must be a string")
        values.append(value)
    return values


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
