"""What compared graphs share and where they differ, in sentences; the page and the terminal say the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from circuits.graphs.compare import Compared, Comparison, Pair
from circuits.graphs.measure import Measure
from circuits.graphs.words import listed, node_name, percent, quoted

NAMED = 3
"""Features, tokens or supernodes that a sentence names."""
FEW = 4
"""Fewer shuffled positions, tokens or depths have so few orders that nothing is beyond chance."""
SAME_DEPTH, SAME_STEPS, SAME_SHARE = 0.05, 0.1, 0.05
"""Differences of relative depth, of steps and of shares below which two graphs are said to be alike."""


def sentences(found: Comparison) -> list[str]:
    """What limits the comparison, and then every later graph against the first. Foreign strings inside."""
    said = list(found.limits)
    for pair in found.pairs:
        said += pair_sentences(found, pair)
    return said


def pair_sentences(found: Comparison, pair: Pair) -> list[str]:
    """One or two sentences on each measure of one pair."""
    one, two = found.graphs[0], found.graphs[pair.second]
    made = [_features(pair, one, two), _unrelated(pair, two), _left_over(pair, one, two),
            _supernodes(pair, one, two), _tokens(pair, one, two),
            _placed("Features at the same positions matter", "Which positions' features matter",
                    pair.measures["positions"]),
            _placed("Features at the same relative depths matter", "At which depths features matter",
                    pair.measures["depths"]),
            _placed("Features at the same places, position and depth, matter", "Which places' features matter",
                    pair.measures["places"]),
            _decided(one, two), _read(one, two), _steps(one, two), _errors(one, two)]
    return [sentence for sentence in made if sentence]


def _features(pair: Pair, one: Compared, two: Compared) -> str:
    found = pair.alignment
    if not min(found.compared) or not found.limits:
        return ""  # the limits say why
    measure = found.matched_influence
    told = (f"{len(found.matches)} of {found.features[0]} features of {one.name} and {found.features[1]} of {two.name} "
            f"are matched beyond chance. They hold {percent(found.influence[0])} and {percent(found.influence[1])} of "
            f"features' influence; matched influence is {_of_chance(measure)}")
    verdict = "that is no more than by chance"
    if measure.agrees:
        verdict = "the circuits share features"
        if not _more_than_unrelated(pair):
            verdict = "the dictionaries share features, but this prompt's circuits no more than those of other prompts"
    common = f" {len(found.common)} more pairs are as alike, but fire elsewhere, too." if found.common else ""
    return f"{told}: {verdict}.{common}"


def _more_than_unrelated(pair: Pair) -> bool:
    """Whether no graph of an unrelated prompt has as much matched influence; where there is none, too."""
    return not any(pair.unrelated_as_like("matched_influence"))


def _unrelated(pair: Pair, two: Compared) -> str:
    if math.isnan(pair.beyond_unrelated("matched_influence")):
        return ""
    values = [value for value in pair.unrelated["matched_influence"] if not math.isnan(value)]
    more = "more than any" if _more_than_unrelated(pair) else "no more than some"
    return (f"Against {len(values)} graph{'s' if len(values) > 1 else ''} of unrelated prompts matched influence is "
            f"{np.mean(values):.2f} on average and {max(values):.2f} at most: with {two.name} on this prompt it is "
            f"{more} of them.")


def _left_over(pair: Pair, one: Compared, two: Compared) -> str:
    if not pair.alignment.limits:
        return ""
    parts = []
    for side, nodes in ((one, pair.alignment.unmatched[0]), (two, pair.alignment.unmatched[1])):
        texts = side.side.graph.header.token_texts
        pruned = side.side.pruned
        names = [f"{node_name(pruned, node)} at {_token(texts, int(pruned.nodes.position[node]))}"
                 for node in nodes[:NAMED].tolist()]
        parts += [f"in {side.name} {listed(names)}"] if names else []
    if not parts:
        return "Every feature has a counterpart."
    return f"The most influential features without a counterpart are {'; '.join(parts)}."


def _supernodes(pair: Pair, one: Compared, two: Compared) -> str:
    measure, flow = pair.measures["supernode_flow"], pair.flow
    if math.isnan(measure.value):
        return ""
    if not flow.pairs:
        return "No supernode of one graph has most of its features in a supernode of the other."
    names = [f"{quoted(one.supernodes.names[a], 40)} with {quoted(two.supernodes.names[b], 40)}"
             for a, b in flow.pairs[:NAMED]]
    return (f"{len(flow.pairs)} of {len(one.supernodes.names)} and {len(two.supernodes.names)} supernodes correspond, "
            f"such as {listed(names)}; {percent(measure.value)} of what flows between supernodes flows between the "
            f"same ones ({percent(measure.chance)} by chance).")


def _tokens(pair: Pair, one: Compared, two: Compared) -> str:
    sentence = _placed("The same tokens matter", "Which tokens matter", pair.measures["tokens"])
    tops = [_top_tokens(side) for side in (one, two)]
    if tops[0] == tops[1]:
        return f"{sentence} Most in both: {listed(tops[0])}."
    return f"{sentence} Most in {one.name}: {listed(tops[0])}; in {two.name}: {listed(tops[1])}."


def _top_tokens(side: Compared) -> list[str]:
    influence, texts = side.side.token_influence, side.side.graph.header.token_texts
    top = np.argsort(-influence, kind="stable")[:NAMED]
    return [_token(texts, i) for i in top.tolist() if influence[i] > 0]


def _token(texts: list[str], position: int) -> str:
    return f"{quoted(texts[position])} ({position})" if position < len(texts) else f"position {position}"


def _placed(same: str, which: str, measure: Measure) -> str:
    if math.isnan(measure.value):
        return f"{which} cannot be compared: one of the graphs has no influence there."
    numbers = (f"{percent(measure.value)} of influence overlaps, {percent(measure.chance)} by chance "
               f"(p = {measure.p:.3f})")
    if measure.agrees:
        return f"{same} in both: {numbers}."
    if measure.shuffled < FEW:
        return f"{which} cannot be told from chance with so little to shuffle: {numbers}."
    return f"{which} agrees no more than by chance: {numbers}."


def _decided(one: Compared, two: Compared) -> str:
    return _depths("Summed by depth, direct effects on the answer reach half of their end for good", one, two,
                   lambda side: side.decided.half, "In the graph both decide at about the same depth",
                   "In the graph {later} decides later")


def _read(one: Compared, two: Compared) -> str:
    if one.reading is None or two.reading is None:
        return ""
    if one.reading.token != two.reading.token:
        answers = f"{quoted(one.reading.text)} and {quoted(two.reading.text)}"
        return f"The graphs explain different answers, {answers}, so when each is there is not compared."
    answer = quoted(one.reading.text)
    if math.isnan(one.reading.first) or math.isnan(two.reading.first):
        sides = [side for side in (one, two) if side.reading is not None and math.isnan(side.reading.first)]
        return f"{answer} is not the most probable token in {listed([side.name for side in sides])}."
    return _depths(f"Read after every layer, {answer} is the most probable token", one, two,
                   lambda side: math.nan if side.reading is None else side.reading.first,
                   "Both models have their answer at about the same depth", "{later} has it later")


def _depths(what: str, one: Compared, two: Compared, depth: Callable[[Compared], float], same: str, later: str) -> str:
    values = depth(one), depth(two)
    if math.isnan(values[0]) or math.isnan(values[1]):
        return ""
    told = f"{what} from {values[0]:.0%} of the depth on in {one.name} and from {values[1]:.0%} in {two.name}."
    if abs(values[1] - values[0]) <= SAME_DEPTH:
        return f"{told} {same}."
    return f"{told} {later.format(later=one.name if values[0] > values[1] else two.name)}."


def _steps(one: Compared, two: Compared) -> str:
    means = [side.side.without_errors.mean() for side in (one, two)]
    if any(math.isnan(mean) for mean in means):
        return "Path lengths cannot be compared: in one of the graphs no path starts at a token."
    layers = [max(side.side.graph.header.n_layers, 1) for side in (one, two)]
    told = (f"Paths from tokens have {means[0]:.2f} steps in {one.name} and {means[1]:.2f} in {two.name} on average, "
            "errors left out")
    if layers[0] != layers[1]:
        told += f", {means[0] / layers[0]:.2f} and {means[1] / layers[1]:.2f} for each layer"
    if abs(means[0] - means[1]) <= SAME_STEPS:
        return f"{told}: about the same."
    return f"{told}: {one.name if means[0] > means[1] else two.name} takes more steps."


def _errors(one: Compared, two: Compared) -> str:
    shares = [side.side.lengths.share("errors") for side in (one, two)]
    told = (f"{percent(shares[0])} of influence ends at errors in {one.name} and {percent(shares[1])} in {two.name}")
    if abs(shares[0] - shares[1]) <= SAME_SHARE:
        return f"{told}."
    more = one.name if shares[0] > shares[1] else two.name
    return f"{told}: {more} explains less, and what it lacks may be there unseen."


def _of_chance(measure: Measure) -> str:
    return f"{measure.value:.2f} ({measure.chance:.2f} by chance, p = {measure.p:.3f})"
