"""What the notebooks look at: questions of the small world, whose causes are known; for other models, a few sentences.

Questions are those that the models answer right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from circuits.bundled import MODELS
from circuits.gemma3 import Gemma3
from circuits.reasoning.spanned import Case
from circuits.small_world.answers import ask
from circuits.small_world.facts import world
from circuits.small_world.tasks import Question, questions

SEED = 2_000_000
"""Of questions: training uses smaller ones."""
COMPARED = (("two_step", 8, 8), ("counting", 8, 4), ("induction", 10, 4), ("counting", 10, 4))
"""Tasks, words of a prompt, and prompts that are compared: of every length there are two tasks, so that each prompt has
others of its length that ask for something else."""


@dataclass(frozen=True)
class Example:
    """One prompt."""

    prompt: str
    answer: str
    """The token that should follow."""
    causes: tuple[int, ...] = ()
    """Positions of the tokens that decide the answer, where that is known."""


@dataclass(frozen=True)
class PromptPair:
    """Two prompts of as many tokens, or the same one twice; and others, that have nothing to do with the first."""

    task: str
    first: str
    second: str
    unrelated: tuple[str, ...]


def example(model: Gemma3, task: str = "two_step") -> Example:
    """A question of a task; of models other than the small world's, always the same sentence."""
    if model.name not in MODELS:
        return Example("Fact: Michael Jordan plays the sport of", " basketball")
    question = next(answered([model], task, 10))
    return Example(question.prompt, " " + question.answer, tuple(question.cause_positions))


def answered(models: Sequence[Gemma3], task: str, most_words: int, least_words: int = 0) -> Iterator[Question]:
    """Questions of the small world that all models answer right."""
    for question in questions(200, SEED, task):
        if least_words <= len(question.words) <= most_words and all(ask(model, [question])[0][0] for model in models):
            yield question


def prompt_pairs(one: Gemma3, two: Gemma3) -> list[PromptPair]:
    """What two models of the small world are compared on; for another model two sentences."""
    if one.name not in MODELS:
        return [PromptPair("opposites", "The opposite of hot is", "The opposite of big is",
                           ("The capital of France is", "The name of Rome is"))]
    asked = [question for task, words, count in COMPARED
             for question in islice(answered([one, two], task, words, words), count)]
    others = {question: [other for other in asked if len(other.words) == len(question.words)
                         and other.task != question.task] for question in asked}
    return [PromptPair(question.task, question.prompt, question.prompt, tuple(
        other.prompt for other in (others[question] * 2)[number % 4:number % 4 + 2]))
        for number, question in enumerate(asked)]


def reasoning_cases(model: Gemma3) -> dict[str, Case]:
    """Texts that state something and then ask; one that the answer needs and one that it does not."""
    if model.name not in MODELS:
        return {"a sum": Case(
            prompt="[[question]]Question: Tom has 2 apples and buys 3.[[/question]] "
                   "[[reasoning]]Reasoning: 2 plus 3 is 5.[[/reasoning]] Answer: [[answer]]5",
            corrupt_with=" Reasoning: 2 plus 3 is 7.", corrupt_from_with="Question: Tom has 4 apples and buys 3."),
            "a copy": Case(
                prompt="[[question]]Fact: The Eiffel Tower is in Paris.[[/question]] "
                       "[[reasoning]]Reasoning: The Eiffel Tower is in Rome.[[/reasoning]] "
                       "Answer: The Eiffel Tower is in[[answer]] Rome",
                corrupt_with=" Reasoning: The Eiffel Tower is in London.",
                corrupt_from_with="Fact: The Eiffel Tower is in London.")}
    return {"a fact that it knows": _restated(model), "names that it cannot know": _told(model)}


def _restated(model: Gemma3) -> Case:
    """A city's state is said before something of that state is asked for: the model knows it without."""
    known = world()
    question = next(answered([model], "two_step", 8))
    city, state = next(word for word in question.words if word in known.cities), question.intermediate
    other = next(name for name, its in known.state_of.items() if its != state)
    return Case(prompt=f"[[reasoning]]{city} lies in the state {state}.[[/reasoning]] "
                       f"[[question]]{question.prompt}[[/question]][[answer]] {question.answer}",
                corrupt_with=f"{city} lies in the state {known.state_of[other]}.",
                corrupt_from_with=question.prompt.replace(city, other))


def _told(model: Gemma3) -> Case:
    """Who met whom is said once and asked for: nothing else can tell."""
    question = next(answered([model], "induction", 10, 10))
    pairs = [(question.words[at], question.words[at + 2]) for at in (0, 4)]
    deed, asker = question.words[1], question.intermediate
    place = [one for one, _ in pairs].index(asker)
    sentences = [f"{one} {deed} {other}." for one, other in pairs]
    wrong = next(name for name in world().strangers if name not in question.words)
    stated = [f"[[reasoning]]{sentence}[[/reasoning]]" if number == place else sentence
              for number, sentence in enumerate(sentences)]
    return Case(prompt=f"{' '.join(stated)} [[question]]{asker} {deed}[[/question]][[answer]] {question.answer}",
                corrupt_with=f"{asker} {deed} {wrong}.", corrupt_from_with=f"{pairs[1 - place][0]} {deed}")
