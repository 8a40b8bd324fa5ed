"""What two graphs of one prompt both say and where they differ, in sentences."""

from __future__ import annotations

import numpy as np

from circuits.graphs.agreement import Agreement
from circuits.graphs.measure import Measure
from circuits.graphs.words import listed, percent, quoted, shown

FEW = 4
"""Fewer shuffled things have so few orders that nothing is beyond chance."""
SAME_STEPS = 0.05
"""Difference of mean steps below which it is not told."""
TOKENS = 3
"""Tokens that a sentence names."""


def verdicts(found: Agreement) -> list[str]:
    """One sentence or two on each measure."""
    first, second = names(found)
    said = [_kinds(found), _errors(found, first, second), _tokens(found, first, second),
            _placed("Features of the same positions matter", "Which positions' features matter", found.positions),
            _placed("Features of the same layers matter", "Which layers' features matter", found.layers),
            _placed("Features of the same layers and positions matter", "Which places' features matter", found.places),
            _steps(found, first, second), _features(found, first, second)]
    return [sentence for sentence in said if sentence]


def names(found: Agreement) -> tuple[str, str]:
    """Short names of the two sets, never the same: the last part of a path or hub id, and the kind."""
    made = [shown(side.name.rstrip("/").rsplit("/", 1)[-1], 40) + (f" ({side.kind.upper()})" if side.kind else "")
            for side in (found.first, found.second)]
    return (f"the first {made[0]}", f"the second {made[1]}") if made[0] == made[1] else (made[0], made[1])


def _kinds(found: Agreement) -> str:
    if {found.first.kind, found.second.kind} == {"clt"}:
        return ("Both sets are cross-layer, and steps that cross-layer transcoders skip may be missing in both graphs: "
                "compare with a per-layer set.")
    return ""


def _errors(found: Agreement, first: str, second: str) -> str:
    one, two = (side.lengths for side in (found.first, found.second))
    told = "; ".join(f"in {name} {percent(lengths.share('errors'))} of influence ends at errors, "
                     f"{percent(lengths.share('tokens'))} at tokens, {percent(lengths.share('unexplored'))} is "
                     "unexplored" for name, lengths in ((first, one), (second, two)))
    return f"{told[0].upper()}{told[1:]}."


def _tokens(found: Agreement, first: str, second: str) -> str:
    sentence = _placed("The same tokens matter", "Which tokens matter", found.tokens)
    tops = [_top_tokens(side.token_influence, side.graph.header.token_texts) for side in (found.first, found.second)]
    if tops[0] == tops[1]:
        return f"{sentence} Most in both: {listed(tops[0])}."
    return f"{sentence} Most in {first}: {listed(tops[0])}; in {second}: {listed(tops[1])}."


def _top_tokens(influence: np.ndarray, texts: list[str]) -> list[str]:
    top = np.argsort(-influence, kind="stable")[:TOKENS]
    return [f"{quoted(texts[i]) if i < len(texts) else 'position'} ({i})" for i in top.tolist() if influence[i] > 0]


def _placed(same: str, which: str, measure: Measure) -> str:
    if np.isnan(measure.value):
        return f"{which} cannot be compared: one of the graphs has no influence there."
    numbers = (f"{percent(measure.value)} of influence overlaps, {percent(measure.chance)} by chance "
               f"(p = {measure.p:.3f})")
    if measure.agrees:
        return f"{same} in both: {numbers}."
    if measure.shuffled < FEW:
        return f"{which} cannot be told from chance on so short a prompt: {numbers}."
    return f"{which} agrees no more than by chance: {numbers}."


def _steps(found: Agreement, first: str, second: str) -> str:
    sides = ((first, found.first), (second, found.second))
    if any(np.isnan(side.lengths.mean()) for _, side in sides):
        return "Path lengths cannot be compared: in one of the graphs no path starts at a token."
    steps = [f"{side.lengths.mean():.2f} steps in {name} ({side.without_errors.mean():.2f} with errors left out)"
             for name, side in sides]
    told = f"Paths from tokens have {steps[0]} and {steps[1]} on average"
    shorter, longer = (first, second) if found.shortening_without_errors > 0 else (second, first)
    by = abs(found.shortening_without_errors)
    if by < SAME_STEPS:
        return f"{told}: but for errors neither shortens them."
    return (f"{told}: {shorter} shortens them by {by:.2f} beyond what errors do, so look up in {longer} what lies "
            f"between the ends of a direct edge of {shorter}.")


def _features(found: Agreement, first: str, second: str) -> str:
    features = found.features
    if not min(features.compared):
        return "Features cannot be matched: of one of the graphs no feature's promoted tokens are known."
    if np.isnan(features.limit):
        return "Features cannot be matched: all of them fire at the same positions, so nothing shows what is chance."
    told = (f"{len(features.matches)} of {features.paired} pairs of features promote the same tokens beyond chance "
            f"(similarity above {features.limit:.2f}). They hold {percent(features.influence[0])} of the influence of "
            f"features in {first} ({percent(features.chance[0])} by chance) and {percent(features.influence[1])} in "
            f"{second} ({percent(features.chance[1])} by chance).")
    if len(features.matches) == 0:
        return f"{told} What the features of one graph say has no counterpart in the other."
    return told
