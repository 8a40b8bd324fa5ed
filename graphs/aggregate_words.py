"""What an aggregation found, in sentences."""

from __future__ import annotations

import numpy as np

from circuits.graphs.aggregate import Aggregation, Family
from circuits.graphs.aggregate_circuit import CORE
from circuits.graphs.aggregate_difference import FEW, MEASURES, Difference, Tests
from circuits.graphs.aggregate_places import MOSTLY
from circuits.graphs.resampling import LEVEL
from circuits.graphs.words import listed, percent, shown

NARROW = 10
"""Fewer prompts than this give bootstrap intervals that are too narrow."""
DENSE = 0.5
"""Share of all text from which a feature that fires there recurs whatever the prompts say."""
NAMED = 3
"""Features that a sentence names."""


def family_sentences(family: Family) -> list[str]:
    """One sentence or two on what recurs, where it stands, the circuit and the supernodes."""
    said = [_features(family), _places(family), _dense(family), _circuit(family), _supernodes(family), _few(family)]
    return [sentence for sentence in said if sentence]


def difference_sentences(found: Aggregation, made: Difference) -> list[str]:
    """What differs beyond chance, and what cannot be told."""
    if not made.tested:
        return [f"{made.first} has {made.sizes[0]} prompts and {made.second} {made.sizes[1]}: with fewer than {FEW} on "
                "a side nothing can be concluded. The differences listed are what was seen, not what is so."]
    features = [found.feature_name(int(key)) for key in made.keys]
    size = len(found.items)
    edges = [f"{found.item_name(int(code) % size)} → {found.item_name(int(code) // size)}" for code in made.codes]
    roles = [found.item_name(item) for item in made.roles]
    measures = [MEASURES[name] for name in made.measures]
    said = [_differing(made, "features", "in mean influence", made.influence, features),
            _differing(made, "features", "in how often they are there", made.presence, features),
            _differing(made, "edges", "in influence", made.edges, edges),
            _differing(made, "kinds of tokens", "in their share of influence", made.tokens, roles),
            _differing(made, "scores", "on average", made.measured, measures), _power(made), _caution(made)]
    return [sentence for sentence in said if sentence]


def _features(family: Family) -> str:
    n = len(family.prompts)
    told = f"The {n} pruned graphs have {family.distinct} different features"
    if not family.features:
        return f"{told}; none is in {family.least} of them or more."
    return (f"{told}; {len(family.features)} are in at least {family.least} graphs and hold "
            f"{percent(float(family.feature_share.mean()))} of the influence of features "
            f"(least {percent(float(family.feature_share.min()))}).")


def _places(family: Family) -> str:
    if not family.features:
        return ""
    places = [one.place for one in family.features]
    tested = [place for place in places if not np.isnan(place.p)]
    mostly = [place for place in tested if place.share >= MOSTLY]
    fixed = [place for place in mostly if place.depends]
    last = sum(place.alignment == "end" and place.where == 0 for place in fixed)
    text = sum(place.alignment == "text" for place in fixed)
    counts = [(last, "at the last token"), (text, "on one token text"), (len(fixed) - last - text, "at another place"),
              (len(mostly) - len(fixed), "at one place, perhaps by chance"), (len(tested) - len(mostly), "anywhere"),
              (len(places) - len(tested), "in too few prompts to tell where")]
    told = listed([f"{count} {'stands' if count == 1 else 'stand'} {where}" for count, where in counts if count])
    told = f"Of those, {told}."
    if len({len(prompt.token_texts) for prompt in family.prompts}) == 1:
        told += " All prompts have equally many tokens: places from the start and from the end are the same."
    return told


def _dense(family: Family) -> str:
    dense = [one for one in family.features if (one.density or 0) > DENSE]
    if not dense:
        return ""
    several = len(dense) > 1
    return (f"{len(dense)} of them fire{'' if several else 's'} on more than half of any text "
            f"({_some([shown(one.name) for one in dense])}): "
            f"{'they recur' if several else 'it recurs'} whatever the prompts say.")


def _circuit(family: Family) -> str:
    circuit = family.circuit
    direct = f"{percent(float(circuit.direct.mean()))} runs from tokens to the target directly, through no feature"
    if not circuit.held.any():
        return (f"No path from a token to the target through features is in {family.least} graphs; of the influence "
                f"that reaches tokens, {direct}.")
    return (f"The common circuit has {len(circuit.features)} features and {len(circuit.edges.codes)} edges. Of the "
            f"influence that reaches tokens, {percent(float(circuit.held.mean()))} runs along it through features "
            f"(least {percent(float(circuit.held.min()))}), and {direct}. {len(circuit.core)} of its features alone "
            f"hold {CORE:.0%} of what it holds.")


def _supernodes(family: Family) -> str:
    often = [one for one in family.supernodes if one.count >= family.least]
    if not often:
        return ""
    top = [f"{shown(one.name)} ({one.count} prompts)" for one in often]
    verb = "recurs" if len(often) == 1 else "recur"
    return f"{len(often)} supernode{'s' * (len(often) != 1)} {verb}; of the largest influence: {_some(top)}."


def _few(family: Family) -> str:
    if len(family.prompts) >= NARROW:
        return ""
    return f"With fewer than {NARROW} prompts the intervals of mean influence are narrower than they should be."


def _differing(made: Difference, what: str, how: str, tests: Tests, names: list[str]) -> str:
    if not len(tests):
        return ""
    differ = [i for i in tests.order.tolist() if tests.found[i]]
    if not differ:
        return f"None of {len(tests)} {what} differs {how} beyond chance."
    told = f"{len(differ)} of {len(tests)} {what} differ{'s' * (len(differ) == 1)} {how} beyond chance."
    for family, sign in ((made.first, 1), (made.second, -1)):
        more = [shown(names[i]) for i in differ if sign * tests.difference[i] > 0]
        if more:
            told += f" More in {shown(family)}: {_some(more)}."
    return told


def _some(names: list[str]) -> str:
    """The first NAMED of them; names have commas of their own."""
    return " · ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _power(made: Difference) -> str:
    p = made.smallest_p
    if p > LEVEL:
        return (f"With {made.sizes[0]} and {made.sizes[1]} prompts no p is below {p:.2g}: no difference can be found, "
                "however large.")
    if p * len(made.keys) > LEVEL:
        return (f"With {made.sizes[0]} and {made.sizes[1]} prompts no p is below {p:.2g}: one feature alone could not "
                f"stand out among {len(made.keys)}.")
    return ""


def _caution(made: Difference) -> str:
    found = made.influence.found.any() or made.presence.found.any() or made.edges.found.any()
    if not found:
        return ""
    wording = (" Their prompts are worded differently, which by itself makes features differ."
               if made.tokens.found.any() else "")
    return ("A difference goes along with the family; whether it makes the family what it is, only an intervention "
            f"shows.{wording}")
