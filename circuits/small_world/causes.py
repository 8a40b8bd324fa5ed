"""Whether a graph finds what truly causes an answer, and whether its features are what it says they are.

Two measures that only a world with known causes allows. The share of tokens' influence that a graph gives to the true
causes; and a swap of the intermediate: features that tell one value of what the answer depends on from the others (a
state, a number, a count) are set to what they are for another value, and the answer should become that value's.

Shapes: Q questions of one frame, L layers, P positions, F features of a layer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.gemma3 import Gemma3
from circuits.graphs.graph import AttributionGraph
from circuits.interventions.edits import FeatureEdit, Intervention
from circuits.interventions.intervene import intervene
from circuits.prompt import masked_prefix, single_token
from circuits.replacement import build_replacement
from circuits.small_world.answers import question_tokens
from circuits.small_world.facts import STATE_ATTRIBUTES, world
from circuits.small_world.tasks import Question, questions, two_step_question
from circuits.transcoder import Transcoders

TELLING = 0.5
"""Share of a feature's variance over a frame's questions that the intermediate explains, at least, where the feature is
called the intermediate's."""
SWAPPED_TASKS = ("two_step", "two_step_held_out", "agreement", "counting")
"""Tasks with an intermediate that more than one text stands for."""
ROW = 4
"""Things in the rows of counting frames."""


@dataclass(frozen=True)
class CauseShare:
    """Of one graph."""

    share: float
    """Of tokens' influence, ``<bos>``'s included, what the true causes have."""
    tokens: float
    """Share of the prompt's tokens that are causes: what influence spread evenly would give."""
    ranking: float
    """Share of pairs of a cause and another of the prompt's words in which the cause has more influence; chance gives a
    half. NaN where every word is a cause."""
    errors: float
    """Share of the errors in the influence that reaches tokens or errors: what the graph cannot explain."""


def cause_share(graph: AttributionGraph, question: Question) -> CauseShare:
    """How much of tokens' influence is on the question's true causes. Args: the unpruned graph of its prompt."""
    nodes = graph.nodes
    token, error = nodes.kind == "embedding", nodes.kind == "error"
    by_position = np.zeros(len(graph.header.tokens))
    np.add.at(by_position, nodes.position[token], nodes.influence[token].astype(np.float64))
    total, errors = float(by_position.sum()), float(nodes.influence[error].sum(dtype=np.float64))
    causes = by_position[question.cause_positions]
    others = np.delete(by_position, [0, *question.cause_positions])
    return CauseShare(float(causes.sum()) / total, len(question.causes) / len(by_position),
                      float((causes[:, None] > others).mean()) if len(others) else math.nan, errors / (total + errors))


@dataclass(frozen=True)
class Swap:
    """What became of one answer."""

    question: Question
    value: str
    """The intermediate's value that was put in place of the question's."""
    became: bool
    """Whether the answer is then that value's."""
    probability: float
    """Of that answer, afterwards."""
    probability_before: float
    same: bool
    """Whether the answer stayed when the features were set to what they are on average for its own value."""
    random: bool
    """Whether the answer became the other value's when as many other features were set to what they are for that
    value: features that do not tell the values apart."""
    n_features: int
    """Feature activations that were set."""


def swaps(model: Gemma3, transcoders: Transcoders, task: str, count: int, seed: int = 0) -> list[Swap]:
    """Swap the intermediate of up to ``count`` questions of a task that the model answers right.

    What a feature is worth for a value is its mean over the frame's other questions of that value.

    Args:
        task: one of :data:`SWAPPED_TASKS`.
    """
    rng = random.Random(seed)
    frames = [_Frame(model, transcoders, frame) for frame in frames_of(task.removesuffix("_held_out"), seed)]
    chosen = [(frame, place) for frame in frames for place in range(len(frame.questions)) if frame.right[place]
              and frame.questions[place].held_out == task.endswith("_held_out")]
    made = []
    for frame, place in rng.sample(chosen, min(count, len(chosen))):
        own = frame.questions[place].intermediate
        made.append(frame.swap(place, rng.choice([value for value in frame.values if value != own]), rng))
    return made


def frames_of(task: str, seed: int) -> list[list[Question]]:
    """Lists of questions that are alike but for what stands for the intermediate (and what misleads)."""
    if task == "two_step":
        return [[two_step_question(city, attribute, of_first) for city in world().cities]
                for attribute in STATE_ATTRIBUTES for of_first in (False, True)]
    made = questions(4000, seed, task)
    if task == "agreement":
        return [[q for q in made if q.words[0] == when][:96] for when in ("Today", "Yesterday")]
    length = len(("Here", "lie", ".", "Number", "of", "thing", "is")) + ROW
    return [[q for q in made if len(q.words) == length][:128]]


class _Frame:
    """Questions of one frame, and which features tell the intermediate's values apart."""

    def __init__(self, model: Gemma3, transcoders: Transcoders, asked: Sequence[Question]):
        self.model, self.transcoders, self.questions = model, transcoders, list(asked)
        self.tokens = [question_tokens(model, question) for question in asked]
        with model.record_mlps() as own:
            logits = model.logits_with_mlps(torch.tensor(self.tokens, device=model.device))[:, -1]
        self.activations = torch.stack([self._read(layer, x) for layer, x in enumerate(own["in"])], 1)
        """(Q, L, P, F)"""
        self.values = sorted({question.intermediate for question in asked})
        self.answers = {question.intermediate: single_token(model, " " + question.answer) for question in asked}
        self.right = [likeliest == self.answers[question.intermediate]
                      for likeliest, question in zip(logits.argmax(-1).tolist(), asked, strict=True)]
        self._of = {value: torch.tensor([q.intermediate == value for q in asked]) for value in self.values}
        self.telling = self._telling()

    def _read(self, layer: int, x: Tensor) -> Tensor:
        """(Q, P, F) activations of a layer, zero at masked positions."""
        masked = masked_prefix(self.tokens[0])
        dense = torch.zeros(*x.shape[:2], max(self.transcoders.d_transcoder))
        rows = dense[:, masked:].flatten(0, 1)
        place, feature, value = self.transcoders.encode(layer, x[:, masked:].flatten(0, 1).float())
        rows[place.cpu(), feature.cpu()] = value.cpu()
        dense[:, masked:] = rows.unflatten(0, (len(x), -1))
        return dense

    def _telling(self) -> Tensor:
        """(L, P, F) bool: the intermediate explains at least TELLING of the variance."""
        total = self.activations.var(0, correction=0)
        between = torch.zeros_like(total)
        mean = self.activations.mean(0)
        for member in self._of.values():
            between += member.float().mean() * (self.activations[member].mean(0) - mean) ** 2
        return (between >= TELLING * total) & (total > 0)

    def swap(self, place: int, value: str, rng: random.Random) -> Swap:
        question = self.questions[place]
        local = build_replacement(self.model, self.transcoders, self.tokens[place])
        telling = torch.nonzero(self.telling)
        varying = torch.nonzero((self.activations.var(0) > 0) & ~self.telling)
        others = varying[rng.sample(range(len(varying)), min(len(telling), len(varying)))]
        other, own = self._mean(place, value), self._mean(place, question.intermediate)
        outcome = intervene(self.model, self.transcoders, local, [
            self._set(telling, other), self._set(telling, own), self._set(others, other)])
        expected, answers = self.answers[value], outcome.logits.argmax(-1).tolist()
        return Swap(question, value, answers[0] == expected, float(outcome.probabilities[0, expected]),
                    float(outcome.probabilities_before[expected]), answers[1] == self.answers[question.intermediate],
                    answers[2] == expected, len(telling))

    def _mean(self, place: int, value: str) -> Tensor:
        """(L, P, F) over the other questions of a value."""
        member = self._of[value].clone()
        member[place] = False
        return self.activations[member].mean(0)

    @staticmethod
    def _set(where: Tensor, values: Tensor) -> Intervention:
        return Intervention(tuple(
            FeatureEdit(layer, feature, position, "set", float(values[layer, position, feature]))
            for layer, position, feature in where.tolist()))
