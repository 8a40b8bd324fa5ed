"""How often a model answers the small world's questions right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from circuits.errors import ModelError
from circuits.gemma3 import Gemma3
from circuits.prompt import single_token, tokenize
from circuits.small_world.facts import world
from circuits.small_world.tasks import TASKS, Question, held_out_questions, questions

ASKED = 200
"""Questions of each task."""
SEED = 1_000_000
"""Of questions for measuring; training uses smaller ones."""


@dataclass(frozen=True)
class Answers:
    """A model's answers to one kind of question."""

    asked: int
    right: float
    """Share of questions whose answer is the likeliest next token."""
    probability: float
    """Mean probability of the answer."""

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dict(vars(self))


@torch.no_grad()
def ask(model: Gemma3, asked: Sequence[Question]) -> tuple[list[bool], list[float]]:
    """Whether each question is answered right, and the probability of its answer.

    Raises:
        ModelError: a model of another vocabulary.
    """
    right, probability = [False] * len(asked), [0.0] * len(asked)
    tokens = [question_tokens(model, question) for question in asked]
    for length in sorted(set(map(len, tokens))):
        places = [place for place, ids in enumerate(tokens) if len(ids) == length]
        last = model.logits_with_mlps(torch.tensor([tokens[place] for place in places]))[:, -1].float()
        for place, logits in zip(places, last, strict=True):
            answer = single_token(model, " " + asked[place].answer)
            right[place] = int(logits.argmax()) == answer
            probability[place] = float(logits.softmax(-1)[answer])
    return right, probability


def question_tokens(model: Gemma3, question: Question) -> list[int]:
    """The prompt's tokens, ``<bos>`` first.

    Raises:
        ModelError: a model of another vocabulary.
    """
    tokens = tokenize(model, question.prompt)
    if len(tokens) != 1 + len(question.words) or model.tokenizer.unk_token_id in tokens:
        raise ModelError(f"{model.name} does not have the small world's vocabulary: open small-world-s or -m")
    return tokens


def accuracy(model: Gemma3, count: int = ASKED, seed: int = SEED) -> dict[str, Answers]:
    """Of each task, and of two-step questions that training never asked: ``held out`` of cities that other two-step
    questions were asked about, ``unasked city`` of the others."""
    sets = {task: questions(count, seed, task) for task in TASKS}
    held_out, unasked = held_out_questions(20 * count, seed), world().unasked
    sets["two_step held out"] = [q for q in held_out if not unasked & set(q.words)][:count]
    sets["two_step unasked city"] = [q for q in held_out if unasked & set(q.words)][:count]
    found = {}
    for task, asked in sets.items():
        right, probability = ask(model, asked)
        found[task] = Answers(len(asked), sum(right) / len(asked), sum(probability) / len(asked))
    return found
