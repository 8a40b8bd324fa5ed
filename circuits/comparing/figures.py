"""The figures of a comparison of two graphs: where influence lies, tokens, path lengths, when the answer is decided.

Shapes: L layers, P positions, G steps of the common depth grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from circuits.graphs.compare import Compared, Comparison, Pair
from circuits.graphs.words import shown
from circuits.plots import HELD_OUT, TRAINING, Figure, Section, figure, heatmap, line

FIRST, SECOND = TRAINING, HELD_OUT
DIFFERENCE = [[0.0, FIRST], [0.5, "rgba(128,128,128,0.1)"], [1.0, SECOND]]
"""More in the first graph, alike, more in the second: the middle lets a light or a dark page through."""
LONGEST = 14
"""Characters of a token on an axis."""
LEAST = 5e-4
"""Share of paths below which a number of steps is left out."""


def sections(found: Comparison, number: int) -> list[Section]:
    """Of pair ``number``; the names of its figures differ from those of other pairs."""
    pair = found.pairs[number]
    one, two = found.graphs[0], found.graphs[pair.second]
    return [Section("Where influence lies", _places(one, two, number)),
            Section("Tokens and paths", [_tokens(one, two, pair, number), _steps(one, two, number)]),
            Section("When the answer is decided", [_decided(one, two, number), *_readings(one, two, number)])]


def token_names(one: Sequence[str], two: Sequence[str], count: int) -> list[str]:
    """One for each position, spaces seen; of both prompts where they differ. Foreign strings."""
    def name(texts: Sequence[str], i: int) -> str:
        return shown(texts[i], LONGEST).replace(" ", "␣") if i < len(texts) else str(i)

    names = [(name(one, i), name(two, i)) for i in range(count)]
    return [a if a == b else f"{a} | {b}" for a, b in names]


def unmarked(text: str) -> str:
    """Foreign text for plotly, which reads tags in what it draws, and of entities only a few: not that of quotes."""
    return escape(text, quote=False)


def _axis(one: Compared, two: Compared) -> dict[str, Any]:
    """The axis of positions; plotly reads markup in its texts, so foreign ones are escaped."""
    count = one.depths.shape[1]
    names = token_names(one.side.graph.header.token_texts, two.side.graph.header.token_texts, count)
    return {"tickmode": "array", "tickvals": list(range(count)), "ticktext": [unmarked(name) for name in names],
            "tickangle": -45, "showgrid": False, "zeroline": False}


def _places(one: Compared, two: Compared, number: int) -> list[Figure]:
    """Both on the grid of the shallower model, and their difference."""
    grid = len(one.depths)
    depth = ((np.arange(grid) + 0.5) / grid).round(4).tolist()
    axes = {"xaxis": _axis(one, two), "yaxis": {"title": {"text": "Relative depth"}, "range": [0, 1],
                                                "showgrid": False, "zeroline": False}}
    names = axes["xaxis"]["ticktext"]
    most = float(max(one.depths.max(), two.depths.max(), 1e-9))
    apart = two.depths - one.depths
    limit = float(max(np.abs(apart).max(), 1e-9))

    def cells(values: np.ndarray, hover: str, limits: tuple[float, float]) -> dict[str, Any]:
        made = heatmap(list(range(values.shape[1])), depth, values.tolist(), "", hover, ".1%", limits)
        return {**made, "text": [names] * grid}

    hover = "%{text}, depth %{y:.2f}: %{z:.2%} of features' influence"
    shared = [figure(f"places_{which}_{number}", side.name, "Share of features' influence by position and relative "
                     "depth (0: the embeddings, 1: the last layer). Both have one colour scale.",
                     [cells(side.depths, hover, (0.0, most))], **axes)
              for which, side in (("first", one), ("second", two))]
    difference = {**cells(apart, "%{text}, depth %{y:.2f}: %{z:+.2%}", (-limit, limit)), "colorscale": DIFFERENCE}
    return [*shared, figure(f"places_difference_{number}", "Difference",
                            f"Share in {two.name} less share in {one.name}: vermillion has more in {two.name}, blue "
                            f"more in {one.name}.", [difference], **axes)]


def _tokens(one: Compared, two: Compared, pair: Pair, number: int) -> Figure:
    data = [_bars(list(range(len(side.side.token_influence))), side.side.token_influence, side.name, color,
                  "%{x}: %{y:.1%}") for side, color in ((one, FIRST), (two, SECOND))]
    return figure(f"tokens_{number}", "Influence of tokens", "Share of the influence that reaches tokens.", data,
                  barmode="group", xaxis=_axis(one, two), yaxis={"tickformat": ".0%"})


def _steps(one: Compared, two: Compared, number: int) -> Figure:
    """What the measure of steps compares: errors left out."""
    shares = [side.side.without_errors.distribution() for side in (one, two)]
    last = max(int(np.flatnonzero(share >= LEAST).max(initial=0)) for share in shares)
    data = [_bars(list(range(1, min(len(share), last + 1))), share[1:last + 1], side.name, color, "%{x}: %{y:.1%}")
            for side, share, color in zip((one, two), shares, (FIRST, SECOND), strict=True)]
    means = " and ".join(f"{side.side.without_errors.mean():.2f} in {side.name} ({side.side.graph.header.n_layers} "
                         "layers)" for side in (one, two))
    return figure(f"steps_{number}", "Steps of paths from tokens",
                  f"Share of paths, weighted by influence, errors left out. A step is an edge. On average {means}.",
                  data, barmode="group", xaxis={"title": {"text": "Steps"}, "dtick": 1 if last <= 20 else 5},
                  yaxis={"tickformat": ".0%"})


def _bars(x: list[int], y: np.ndarray, name: str, color: str, hover: str) -> dict[str, Any]:
    return {"type": "bar", "x": x, "y": y.tolist(), "name": unmarked(name), "marker": {"color": color},
            "hovertemplate": hover + "<extra></extra>"}


def _decided(one: Compared, two: Compared, number: int) -> Figure:
    data, told = [], []
    for side, color in ((one, FIRST), (two, SECOND)):
        sums = side.decided.cumulative
        end = float(sums[-1]) or 1.0
        data.append({**_curve(sums / end, side.name, color), "customdata": sums.tolist(),
                     "hovertemplate": "depth %{x:.2f}: %{y:.0%} (%{customdata:.3g})<extra></extra>"})
        told.append(f"{side.name}: {shown(side.decided.target)}, {sums[-1]:.2f} in the end")
    return figure(f"decided_{number}", "Direct effects on the answer, summed by depth",
                  f"Share of the target's sum over all sources that tokens (depth 0) and everything up to a depth add. "
                  f"{'; '.join(told)}. A cross-layer feature counts where it reads, though it writes later, too.", data,
                  xaxis=_depth_axis(), yaxis={"tickformat": ".0%", "title": {"text": "Share of the end"}})


def _readings(one: Compared, two: Compared, number: int) -> list[Figure]:
    """Of models that were opened."""
    data, told = [], []
    for side, color in ((one, FIRST), (two, SECOND)):
        if side.reading is not None:
            data.append({**_curve(side.reading.probability, side.name, color), "customdata": side.reading.rank.tolist(),
                         "hovertemplate": "depth %{x:.2f}: %{y:.2%}, rank %{customdata:,}<extra></extra>"})
            told.append(f"{side.name}: “{shown(side.reading.text)}”, rank {int(side.reading.rank[-1])} in the end")
    if not data:
        return []
    return [figure(f"reading_{number}", "What the model itself reads at each depth",
                   "Probability of the target's token when the residual stream at the last position is read after the "
                   f"embeddings and after every layer (logit lens). {'; '.join(told)}.", data, xaxis=_depth_axis(),
                   yaxis={"tickformat": ".1%", "rangemode": "tozero", "title": {"text": "Probability"}})]


def _curve(values: np.ndarray, name: str, color: str) -> dict[str, Any]:
    """(L + 1,) values over relative depth."""
    layers = max(len(values) - 1, 1)
    made = line([i / layers for i in range(len(values))], values.tolist(), unmarked(name), color)
    return {**made, "mode": "lines+markers", "marker": {"color": color, "size": 5}}


def _depth_axis() -> dict[str, Any]:
    return {"title": {"text": "Relative depth"}, "range": [-0.02, 1.02]}
