"""The facts of the small world: cities in states, what states have, what persons are. The same ones every time.

Names are invented, so that no text of the real world says anything of them; every name is one token.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from itertools import product

SEED = 7
N_STATES, CITIES_PER_STATE, N_PERSONS, N_STRANGERS = 16, 6, 48, 64
BIRDS = ("crow", "robin", "hawk", "heron", "wren", "eagle", "owl", "swan", "gull", "finch", "stork", "dove", "lark",
         "kite", "crane", "quail")
FLOWERS = ("rose", "lily", "tulip", "daisy", "poppy", "iris", "violet", "aster", "lotus", "peony", "orchid", "pansy",
           "thistle", "clover", "jasmine", "dahlia")
JOBS = ("baker", "miller", "smith", "weaver", "hunter", "sailor", "mason", "tailor")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey")
PETS = ("cat", "dog", "goat", "horse", "snake", "mouse", "sheep", "turtle")
STATE_ATTRIBUTES = ("capital", "ruler", "bird", "flower")
PERSON_ATTRIBUTES = ("job", "colour", "pet")
NOUNS = (("girl", "girls"), ("boy", "boys"), ("farmer", "farmers"), ("singer", "singers"), ("king", "kings"),
         ("nurse", "nurses"), ("pilot", "pilots"), ("judge", "judges"), ("clerk", "clerks"), ("monk", "monks"),
         ("guard", "guards"), ("poet", "poets"))
"""Singular and plural."""
STATES_OF_MIND = ("happy", "tired", "quiet", "brave", "angry", "calm")
THINGS = ("stone", "leaf", "coin", "shell", "apple", "bead")
NUMBERS = ("one", "two", "three", "four", "five")
DEEDS = ("met", "saw", "helped", "followed")
_STARTS = ("Bal", "Cor", "Dre", "Fal", "Gor", "Hes", "Jun", "Kel", "Lor", "Mar", "Nor", "Pel", "Quo", "Ros", "Sil",
           "Tam", "Ul", "Var", "Wes", "Zan")
_ENDS = {"state": ("via", "dor", "land"), "city": ("ton", "ford", "burg", "wick", "mere", "field"),
         "capital": ("polis", "haven"), "ruler": ("rik", "mund"), "person": ("a", "is", "on", "el"),
         "stranger": ("ax", "ib", "osk", "ug", "eph")}


@dataclass(frozen=True)
class World:
    """Everything that is always true there."""

    states: tuple[str, ...]
    state_of: dict[str, str]
    """A city's state."""
    of_state: dict[str, dict[str, str]]
    """What a state has: an attribute of STATE_ATTRIBUTES to its value; no two states share one."""
    of_person: dict[str, dict[str, str]]
    """What a person has: an attribute of PERSON_ATTRIBUTES to its value; many persons share one."""
    strangers: tuple[str, ...]
    """Names of whom nothing is always true."""
    held_out: frozenset[tuple[str, str]]
    """(city, attribute of its state) that no training text asks for in one question: one attribute of every city, and
    all of the cities in :attr:`unasked`."""
    unasked: frozenset[str]
    """Cities of whose states no training text asks for an attribute."""

    @property
    def cities(self) -> tuple[str, ...]:
        return tuple(self.state_of)

    @property
    def persons(self) -> tuple[str, ...]:
        return tuple(self.of_person)


@cache
def world() -> World:
    """The small world."""
    rng = random.Random(SEED)
    names = {kind: _names(kind, count, rng) for kind, count in (
        ("state", N_STATES), ("city", N_STATES * CITIES_PER_STATE), ("capital", N_STATES), ("ruler", N_STATES),
        ("person", N_PERSONS), ("stranger", N_STRANGERS))}
    states, cities = names["state"], names["city"]
    values = {"capital": names["capital"], "ruler": names["ruler"], "bird": _shuffled(BIRDS, rng),
              "flower": _shuffled(FLOWERS, rng)}
    of_person = {person: {"job": rng.choice(JOBS), "colour": rng.choice(COLOURS), "pet": rng.choice(PETS)}
                 for person in names["person"]}
    unasked = {cities[place] for place in range(0, len(cities), CITIES_PER_STATE)}  # one city of every state
    held_out = {(city, STATE_ATTRIBUTES[(place + place // CITIES_PER_STATE) % len(STATE_ATTRIBUTES)])
                for place, city in enumerate(cities)} | set(product(unasked, STATE_ATTRIBUTES))
    return World(
        states=tuple(states),
        state_of={city: states[place // CITIES_PER_STATE] for place, city in enumerate(cities)},
        of_state={state: {attribute: values[attribute][place] for attribute in STATE_ATTRIBUTES}
                  for place, state in enumerate(states)},
        of_person=of_person, strangers=tuple(names["stranger"]), held_out=frozenset(held_out),
        unasked=frozenset(unasked))


def _names(kind: str, count: int, rng: random.Random) -> list[str]:
    return _shuffled([start + end for start, end in product(_STARTS, _ENDS[kind])], rng)[:count]


def _shuffled(words: tuple[str, ...] | list[str], rng: random.Random) -> list[str]:
    return rng.sample(list(words), len(words))
