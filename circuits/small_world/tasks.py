"""Questions about the small world whose causes are known, as text that a model can be trained on and traced with.

A prompt is a sentence without its last word, which is the answer. ``causes`` are the words that decide it: those that,
exchanged for another word of their kind, change what the answer has to be. All others are the sentence's frame, or
(the second noun of "agreement", the pairs of "induction" that were not asked for) there to mislead.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from circuits.small_world.facts import (
    DEEDS,
    NOUNS,
    NUMBERS,
    PERSON_ATTRIBUTES,
    STATE_ATTRIBUTES,
    STATES_OF_MIND,
    THINGS,
    world,
)


@dataclass(frozen=True)
class Question:
    """A prompt with its answer and what causes it."""

    task: str
    words: tuple[str, ...]
    """Each is one token; a full stop belongs to the word before it in :attr:`prompt` but is one of its own here."""
    answer: str
    causes: tuple[int, ...]
    """Places in ``words``, ascending."""
    intermediate: str = ""
    """What has to be known on the way to the answer but is not said: "two_step"'s state, "agreement"'s number,
    "counting"'s count, "induction"'s asker, "lookup"'s owner."""
    held_out: bool = False
    """Whether training never asks this."""
    rest: tuple[str, ...] = (".",)
    """What follows the answer in training text."""

    @property
    def prompt(self) -> str:
        return text_of(self.words)

    @property
    def sentence(self) -> str:
        return text_of((*self.words, self.answer, *self.rest))

    @property
    def cause_positions(self) -> list[int]:
        """Token positions of the causes: ``<bos>`` stands before the first word."""
        return [place + 1 for place in self.causes]

    def record(self) -> dict[str, Any]:
        """A line of the file that ``circuits batch`` reads."""
        return {"prompt": self.prompt, "answer": " " + self.answer, "family": self.task,
                "causes": self.cause_positions, "intermediate": self.intermediate, "held_out": self.held_out}


def text_of(words: tuple[str, ...]) -> str:
    """Words and full stops as a sentence is written."""
    return " ".join(words).replace(" .", ".")


def lookup(rng: random.Random) -> Question:
    """What a person or a state has, or which state a city is in: facts that are said as they are asked."""
    known = world()
    kind = rng.choice(("person", "person", "state", "city"))
    if kind == "person":
        person, attribute = rng.choice(known.persons), rng.choice(PERSON_ATTRIBUTES)
        return _owned("lookup", attribute, person, known.of_person[person][attribute], rng)
    if kind == "state":
        state, attribute = rng.choice(known.states), rng.choice(STATE_ATTRIBUTES)
        return _owned("lookup", attribute, state, known.of_state[state][attribute], rng)
    city = rng.choice(known.cities)
    if rng.random() < 0.5:
        return Question("lookup", ("The", "state", "around", city, "is"), known.state_of[city], (3,), city)
    return Question("lookup", (city, "lies", "in", "the", "state"), known.state_of[city], (0,), city)


def _owned(task: str, attribute: str, owner: str, value: str, rng: random.Random) -> Question:
    if rng.random() < 0.5:
        return Question(task, ("The", attribute, "of", owner, "is"), value, (1, 3), owner)
    return Question(task, ("Of", owner, "the", attribute, "is"), value, (1, 3), owner)


def two_step(rng: random.Random, held_out: bool | None = False) -> Question:
    """An attribute of the state that a city lies in, where the state is not named.

    Args:
        held_out: whether the city and the attribute are never asked for together in training; None: either.
    """
    known = world()
    while True:
        city, attribute = rng.choice(known.cities), rng.choice(STATE_ATTRIBUTES)
        unseen = (city, attribute) in known.held_out
        if held_out is None or unseen == held_out:
            break
    return two_step_question(city, attribute, of_first=rng.random() < 0.5)


def two_step_question(city: str, attribute: str, of_first: bool = False) -> Question:
    """The question for an attribute of a city's state, in one of its two frames."""
    known = world()
    state = known.state_of[city]
    words = (("Of", "the", "state", "around", city, "the", attribute, "is") if of_first else
             ("The", attribute, "of", "the", "state", "around", city, "is"))
    return Question("two_step", words, known.of_state[state][attribute],
                    tuple(sorted((words.index(attribute), words.index(city)))), state,
                    (city, attribute) in known.held_out)


def induction(rng: random.Random) -> Question:
    """Who was met by whom, told in the sentences before: names of whom nothing else is known."""
    names = rng.sample(world().strangers, 6)
    deed = rng.choice(DEEDS)
    pairs = list(zip(names[0::2], names[1::2], strict=True))[:rng.choice((2, 3))]
    asked = rng.randrange(len(pairs))
    words = [word for one, other in pairs for word in (one, deed, other, ".")]
    causes = (4 * asked, 4 * asked + 2, len(words))
    return Question("induction", (*words, pairs[asked][0], deed), pairs[asked][1], causes, pairs[asked][0])


def agreement(rng: random.Random) -> Question:
    """A verb that agrees with the first noun in number and with the first word in time."""
    (subject, other), plural, distractor = rng.sample(NOUNS, 2), rng.randrange(2), rng.randrange(2)
    when = rng.choice(("Today", "Yesterday"))
    verb = {"Today": ("is", "are"), "Yesterday": ("was", "were")}[when][plural]
    return Question("agreement", (when, "the", subject[plural], "near", "the", other[distractor]), verb, (0, 2),
                    ("singular", "plural")[plural], rest=(rng.choice(STATES_OF_MIND), "."))


def counting(rng: random.Random) -> Question:
    """How many of one thing there are in a row of two kinds of things."""
    counted, other = rng.sample(THINGS, 2)
    count, others = rng.randint(1, len(NUMBERS)), rng.randint(0, 3)
    row = rng.sample([counted] * count + [other] * others, count + others)
    words = ("Here", "lie", *row, ".", "Number", "of", counted, "is")
    causes = (*range(2, 2 + len(row)), len(words) - 2)
    return Question("counting", words, NUMBERS[count - 1], causes, NUMBERS[count - 1])


TASKS: dict[str, Callable[[random.Random], Question]] = {
    "lookup": lookup, "two_step": two_step, "induction": induction, "agreement": agreement, "counting": counting}
WEIGHTS = {"lookup": 0.2, "two_step": 0.25, "induction": 0.3, "agreement": 0.1, "counting": 0.15}
"""Share of the training text's sentences."""


def questions(count: int, seed: int, task: str | None = None) -> list[Question]:
    """Questions as the training text asks them, all different.

    Args:
        count: how many; fewer where there are not so many (of ``lookup`` and ``two_step`` there is an end).
        task: one of :data:`TASKS`; None: all of them, by their weights.
    """
    rng = random.Random(seed)
    found: dict[str, Question] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        chosen = task or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        question = TASKS[chosen](rng)
        found.setdefault(question.prompt, question)
    return list(found.values())


def held_out_questions(count: int, seed: int) -> list[Question]:
    """Two-step questions that training never asks, all different."""
    rng = random.Random(seed)
    found = {question.prompt: question for question in (two_step(rng, held_out=True) for _ in range(20 * count))}
    return [replace(question, task="two_step_held_out") for question in list(found.values())[:count]]


def documents(count: int, n_tokens: int, seed: int) -> list[str]:
    """Training text: documents of sentences, the last one cut off, each ``n_tokens`` tokens long."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        words: list[str] = []
        while len(words) < n_tokens:
            question = TASKS[rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]](rng)
            words += [*question.words, question.answer, *question.rest]
        made.append(text_of(tuple(words[:n_tokens])))
    return made


def vocabulary() -> list[str]:
    """Every word of the small world, the full stop not among them, in a fixed order."""
    known = world()
    frames = ("The", "Of", "of", "the", "is", "are", "was", "were", "state", "around", "lies", "in", "Today",
              "Yesterday", "near", "Here", "lie", "Number")
    words = [*frames, *STATE_ATTRIBUTES, *PERSON_ATTRIBUTES, *known.states, *known.cities,
             *(value for state in known.of_state.values() for value in state.values()), *known.persons,
             *(value for person in known.of_person.values() for value in person.values()), *known.strangers, *DEEDS,
             *(noun for pair in NOUNS for noun in pair), *STATES_OF_MIND, *THINGS, *NUMBERS]
    return list(dict.fromkeys(words))
