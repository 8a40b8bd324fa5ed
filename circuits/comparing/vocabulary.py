"""Whether two models share the vocabulary in which features of both are compared."""

from __future__ import annotations

from dataclasses import dataclass

from circuits.errors import InputError
from circuits.gemma3 import Gemma3

OTHER = 0.01
"""Share of the tokens that may differ: members of a family name some special tokens anew."""


@dataclass(frozen=True)
class Vocabulary:
    """What the tokens of a model are."""

    model: str
    size: int
    pieces: dict[int, str] | None
    """By token; None without a tokenizer."""

    @classmethod
    def of(cls, model: Gemma3) -> Vocabulary:
        """Of an opened model."""
        pieces = None if model.tokenizer is None else {
            token: piece for piece, token in model.tokenizer.get_vocab().items() if token < model.vocab_size}
        return cls(model.name, model.vocab_size, pieces)

    def check_shared(self, other: Vocabulary) -> None:
        """That signatures over both vocabularies can be compared.

        Raises:
            InputError: the tokens of the two are others, or, where a tokenizer is missing, their numbers.
        """
        if self.pieces is None or other.pieces is None:
            differs = self.size != other.size
        else:
            both = self.pieces.keys() & other.pieces.keys()
            shared = sum(self.pieces[token] == other.pieces[token] for token in both)
            differs = shared < (1 - OTHER) * min(len(self.pieces), len(other.pieces))
        if differs:
            raise InputError(f"{self.model} ({self.size} tokens) and {other.model} ({other.size} tokens) have "
                             "different vocabularies, so their features have no space in common to be compared in: "
                             "compare models of one family with one tokenizer, such as the sizes of Gemma 3")
