"""The figures of an aggregation, by section."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from circuits.aggregating.diagram import circuit_figure
from circuits.graphs.aggregate import Aggregation, Family, Recurring
from circuits.graphs.aggregate_difference import Difference
from circuits.graphs.words import shown
from circuits.plots import HELD_OUT, OTHER, TRAINING, Figure, Section, figure, heatmap

BARS = 25
"""Features that bars and maps show."""
PLACES = 12
"""Places before the last token that a map shows apart."""
ROW = 19
"""Pixels of a bar or of a row of a map."""


def sections(found: Aggregation) -> list[Section]:
    """One for each family, and what differs."""
    made = [Section(f"{shown(family.name)}: {len(family.prompts)} prompts", _family(found, family, i))
            for i, family in enumerate(found.families)]
    if found.difference is not None:
        one = found.difference
        made.append(Section(f"{shown(one.first)} against {shown(one.second)}", _difference(found, one)))
    return [section for section in made if section.figures]


def _family(found: Aggregation, family: Family, number: int) -> list[Figure]:
    made = []
    if family.features:
        made += [_bars(found, family, number), _map(found, family, number), _scatter(found, family, number)]
    diagram = circuit_figure(found, family, f"circuit_{number}")
    return made if diagram is None else [*made, diagram]


def _bars(found: Aggregation, family: Family, number: int) -> Figure:
    top = family.features[:BARS]
    mean, low, high = (np.array([one.influence[i] for one in top]) for i in range(3))
    bars = {"type": "bar", "orientation": "h", "x": mean.tolist(), "y": list(range(len(top))),
            "marker": {"color": TRAINING}, "text": [_hover(found, family, one) for one in top],
            "textposition": "none", "hovertemplate": "%{text}<extra></extra>",
            "error_x": {"type": "data", "symmetric": False, "array": (high - mean).tolist(),
                        "arrayminus": (mean - low).tolist(), "thickness": 1}}
    return figure(f"features_{number}", "Features that recur", "Share of the targets' influence that passes through "
                  "the feature, mean over all prompts, with 95% bootstrap intervals.", [bars], height=_height(top),
                  xaxis={"title": {"text": "Mean influence"}, "tickformat": "~%", "rangemode": "tozero"},
                  yaxis=_names(found, top))


def _map(found: Aggregation, family: Family, number: int) -> Figure:
    top = family.features[:BARS]
    longest = family.positions.size["end"]
    columns = min(longest, PLACES + 1)
    z = np.zeros((len(top), columns))
    for row, one in zip(z, top, strict=True):
        shares = family.positions.shares(one.key, "end")
        row[:] = shares[:columns]
        row[-1] += shares[columns:].sum()
    names = ["last", *(f"−{i}" for i in range(1, columns))]
    names[-1] += " and before" if longest > columns else ""
    data = heatmap(names[::-1], list(range(len(top))), z[:, ::-1].tolist(), "share", "%{x}: %{z:.1%}", ".0%", (0, 1))
    return figure(f"places_{number}", "Where they stand", "Share of the feature's influence by tokens before the last "
                  "one; prompts weigh the same.", [data], height=_height(top), yaxis=_names(found, top),
                  xaxis={"title": {"text": "Token, from the end"}, "type": "category"})


def _scatter(found: Aggregation, family: Family, number: int) -> Figure:
    shown_ = family.features
    points = {"type": "scatter", "mode": "markers", "x": [one.present[0] for one in shown_],
              "y": [one.influence[0] for one in shown_], "text": [_hover(found, family, one) for one in shown_],
              "marker": {"color": TRAINING, "size": 7, "opacity": 0.7}, "hovertemplate": "%{text}<extra></extra>"}
    return figure(f"recurrence_{number}", "Recurrence beside influence", f"The {len(shown_)} of {family.distinct} "
                  f"features that are in at least {family.least} of the pruned graphs.", [points],
                  xaxis={"title": {"text": "Share of prompts"}, "tickformat": ".0%"},
                  yaxis={"title": {"text": "Mean influence"}, "tickformat": "~%", "rangemode": "tozero"})


def _difference(found: Aggregation, made: Difference) -> list[Figure]:
    return [*([_volcano(found, made)] if made.tested and len(made.keys) else []),
            *([_tokens(found, made)] if made.roles else [])]


def _volcano(found: Aggregation, made: Difference) -> Figure:
    tests, data = made.influence, []
    for name, mask, color in (("beyond chance (q ≤ 0.05)", tests.found, HELD_OUT), ("not", ~tests.found, TRAINING)):
        at = np.flatnonzero(mask)
        data.append({
            "type": "scatter", "mode": "markers", "name": name, "x": tests.difference[at].tolist(),
            "y": (-np.log10(tests.p[at])).tolist(), "marker": {"color": color, "size": 7, "opacity": 0.7},
            "text": [f"{_text(found.feature_name(int(made.keys[i])))}<br>{tests.first[i]:.2%} and "
                     f"{tests.second[i]:.2%}<br>p {tests.p[i]:.2g}, q {tests.q[i]:.2g}" for i in at.tolist()],
            "hovertemplate": "%{text}<extra></extra>"})
    return figure("volcano", "Features that differ", "To the right: more influence in "
                  f"{shown(made.first)}; higher up: less likely by chance. Labels shuffled over "
                  f"{made.sizes[0]} and {made.sizes[1]} prompts.", data,
                  xaxis={"title": {"text": "Difference of mean influence"}, "tickformat": "~%"},
                  yaxis={"title": {"text": "−log₁₀ p"}, "rangemode": "tozero"})


def _tokens(found: Aggregation, made: Difference) -> Figure:
    names = [_text(found.item_name(item)) for item in made.roles]
    data = [{"type": "bar", "name": _text(name), "x": list(range(len(names))), "y": values.tolist(),
             "marker": {"color": color}, "hovertemplate": "%{y:.1%}"}
            for name, values, color in ((made.first, made.tokens.first, TRAINING),
                                        (made.second, made.tokens.second, OTHER))]
    return figure("tokens", "Which tokens influence reaches", "Share of the influence that reaches tokens, mean over "
                  "prompts. Tokens whose text most prompts have are named.", data, barmode="group",
                  xaxis={"tickvals": list(range(len(names))), "ticktext": names},
                  yaxis={"title": {"text": "Share"}, "tickformat": ".0%"})


def _names(found: Aggregation, top: Sequence[Recurring]) -> dict[str, Any]:
    """An axis with the strongest at the top."""
    return {"tickvals": list(range(len(top))), "ticktext": [_text(found.feature_name(one.key), 28) for one in top],
            "range": [len(top) - 0.5, -0.5], "showgrid": False, "zeroline": False}


def _hover(found: Aggregation, family: Family, one: Recurring) -> str:
    return (f"{_text(found.feature_name(one.key))}<br>{one.count} of {len(family.prompts)} prompts<br>influence "
            f"{one.influence[0]:.2%}<br>{_text(one.place.words)}: {one.place.share:.0%}")


def _height(rows: Sequence[object]) -> int:
    return max(340, 110 + ROW * len(rows))


def _text(text: str, longest: int = 60) -> str:
    """A foreign string as plotly shows it: it reads tags and some entities, but not that of quotation marks."""
    return escape(shown(text, longest), quote=False)
