"""From text to tokens: tokenising, chat template, target tokens, and the prefix where features are not read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from circuits.errors import InputError

if TYPE_CHECKING:
    from circuits.gemma3 import Gemma3

CHAT_PREFIX = (2, 105, 2364, 107)
"""``<bos><start_of_turn>user\\n``: Gemma Scope 2 does not train -it transcoders on these (its technical report)."""


def tokenize(model: Gemma3, prompt: str, chat: bool = False) -> list[int]:
    """Token ids of a prompt, ``<bos>`` first and once.

    Special tokens written out in the prompt, such as ``<start_of_turn>``, become those tokens.

    Args:
        chat: wrap the prompt as a user's turn with the tokenizer's chat template.

    Raises:
        InputError: empty prompt, no tokenizer or chat template, or longer than the model's context.
    """
    if not prompt.strip():
        raise InputError("the prompt is empty: give at least one word")
    tokenizer = _tokenizer(model)
    if chat:
        if not tokenizer.chat_template:
            raise InputError(f"{model.name} has no chat template: use an -it model, or leave --chat out")
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                               add_generation_prompt=True)
    # not left to the tokenizer's file: some copies add no <bos>, and templates write it out, which would double it
    tokens = _encode(model, prompt)
    bos = tokenizer.bos_token_id
    return check_tokens(model, tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens])


def check_tokens(model: Gemma3, tokens: Sequence[int]) -> list[int]:
    """``tokens`` as a list, if the model can read them.

    Raises:
        InputError: fewer than two tokens, ids outside the vocabulary, or longer than the model's context.
    """
    ids = [int(t) for t in tokens]
    if len(ids) < 2:
        raise InputError(f"the prompt has {len(ids)} token(s): a trace needs <bos> and at least one more")
    if bad := [t for t in ids if not 0 <= t < model.vocab_size]:
        raise InputError(f"token id {bad[0]} is outside the vocabulary (0 to {model.vocab_size - 1})")
    if len(ids) > model.max_positions:
        raise InputError(f"the prompt has {len(ids)} tokens, {model.name} reads at most {model.max_positions}: "
                         "shorten it")
    return ids


def masked_prefix(tokens: Sequence[int]) -> int:
    """How many leading positions are constants of the model: ``<bos>``, or the chat template's first four tokens.

    Position 0 is always masked: whatever stands there is the attention sink, on which no transcoder was trained.
    """
    return len(CHAT_PREFIX) if tuple(tokens[:len(CHAT_PREFIX)]) == CHAT_PREFIX else 1


def prefix_tokens(model_name: str) -> list[int]:
    """What every training sequence starts with: ``<bos>``, or the chat template's first four tokens for -it models."""
    return list(CHAT_PREFIX) if model_name.endswith("-it") else [CHAT_PREFIX[0]]


def token_text(model: Gemma3, token: int) -> str:
    """The text of one token alone; bytes of a longer character as ``<0xF0>``, and the token's number in brackets where
    there is no tokenizer or no such token in it."""
    if model.tokenizer is None:
        return f"[{token}]"
    text = model.tokenizer.decode([int(token)])
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return model.tokenizer.convert_ids_to_tokens(int(token)) or f"[{token}]"
    return text


def prompt_text(model: Gemma3, tokens: Sequence[int]) -> str:
    """The text of tokens that follow one another; characters that several tokens share come out whole."""
    if model.tokenizer is None:
        return "".join(token_text(model, token) for token in tokens)
    return str(model.tokenizer.decode([int(token) for token in tokens]))


def single_token(model: Gemma3, text: str) -> int:
    """The one token that ``text`` is; a leading space counts.

    Raises:
        InputError: empty, not in the vocabulary, or several tokens (the message names them).
    """
    if not text:
        raise InputError("the target token is empty: give one token such as ' Paris'")
    ids = _encode(model, text)
    if not ids or (_tokenizer(model).unk_token_id in ids and text != _tokenizer(model).unk_token):
        raise InputError(f"target {text!r} is not in the vocabulary of {model.name}{_other_spacing(model, text)}")
    if len(ids) > 1:
        pieces = ", ".join(f"{token_text(model, i)!r} ({i})" for i in ids)
        raise InputError(f"target {text!r} is {len(ids)} tokens: {pieces}. A target must be one token"
                         f"{_other_spacing(model, text)}")
    return ids[0]


def _other_spacing(model: Gemma3, text: str) -> str:
    """A hint, where the same word with or without a leading space is one token."""
    other, how = (text[1:], "without the") if text.startswith(" ") else (" " + text, "with a")
    ids = _encode(model, other)
    known = len(ids) == 1 and ids[0] != _tokenizer(model).unk_token_id
    return f"; {other!r}, {how} leading space, is one" if known else ""


def _encode(model: Gemma3, text: str) -> list[int]:
    return [int(i) for i in _tokenizer(model)(text, add_special_tokens=False)["input_ids"]] if text else []


def _tokenizer(model: Gemma3) -> Any:
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer files: give token ids (tokens=..., --tokens) instead of text")
    return model.tokenizer
