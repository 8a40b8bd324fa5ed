"""Other tokens in a span, and features at a span set to other values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs.spans import Span
from circuits.interventions.edits import FeatureEdit, Intervention
from circuits.prompt import token_text, tokenize
from circuits.replacement import LocalReplacement

Key = tuple[int, int, int]
"""Layer, position and feature."""
Activations = dict[Key, float]
"""Of features that are active."""


def activations_at(local: LocalReplacement, positions: Iterable[int]) -> Activations:
    """The features that fire at some positions of a prompt."""
    active = local.active
    here = torch.isin(active.position.cpu(), torch.tensor(list(positions), dtype=torch.int64))
    layer, position, feature, value = (getattr(active, name).cpu()[here].tolist()
                                       for name in ("layer", "position", "feature", "value"))
    return dict(zip(zip(layer, position, feature, strict=True), value, strict=True))


def setting(values: Mapping[Key, float], name: str) -> Intervention:
    """Features set to values, all at once."""
    return Intervention(tuple(FeatureEdit(layer, feature, position, "set", value)
                              for (layer, position, feature), value in values.items()), name)


def ablating(keys: Iterable[Key], name: str) -> Intervention:
    """Features silenced, all at once."""
    return setting(dict.fromkeys(keys, 0.0), name)


def swapping(old: Activations, new: Activations, name: str) -> Intervention:
    """Features of one run at the values of another; those that fire in neither are left to react."""
    return setting({**dict.fromkeys(old, 0.0), **new}, name)


def with_tokens(tokens: list[int], span: Span, new: list[int]) -> list[int]:
    """The prompt with other tokens in the span."""
    return [*tokens[:span.start], *new, *tokens[span.stop:]]


def shuffled_tokens(tokens: list[int], span: Span, rng: np.random.Generator) -> list[int] | None:
    """The span's tokens in another order; None where all of them are alike."""
    own = tokens[span.start:span.stop]
    if len(set(own)) < 2:
        return None
    while (new := [own[i] for i in rng.permutation(len(own))]) == own:
        pass
    return new


def tokens_in_place(model: Gemma3, text: str, tokens: list[int], span: Span) -> list[int]:
    """The tokens of a text that is to stand in place of a span.

    Raises:
        InputError: more or fewer tokens than the span has, or the span's own.
    """
    new = tokenize(model, text)
    new = new[1:] if new[0] == model.tokenizer.bos_token_id else new
    own = tokens[span.start:span.stop]
    if len(new) != len(own):
        raise InputError(f"the text in place of {span.name!r} has {len(new)} tokens ({_shown(model, new)}), the span "
                         f"{len(own)} ({_shown(model, own)}): both must have as many; a space at its beginning counts")
    if new == own:
        raise InputError(f"the text in place of {span.name!r} is the span's own: give another one")
    return new


def _shown(model: Gemma3, tokens: list[int]) -> str:
    return "|".join(token_text(model, token) for token in tokens)
