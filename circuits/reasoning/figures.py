"""The figures of a span's share: the text, the flows, the layers, the interventions."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import cycle
from typing import Any

import numpy as np

from circuits.graphs.lengths import ENDS
from circuits.graphs.spans import AROUND, ELSEWHERE, THROUGH
from circuits.plots import HELD_OUT, OTHER, TRAINING, Figure, Section, figure, layer_axis, line
from circuits.reasoning.ablation import MODES, Effect
from circuits.reasoning.share import ReasoningShare
from circuits.reasoning.words import variant_label
from circuits.report import visible

GREY = "#8a8f96"
MORE = (OTHER, "#CC79A7", "#E69F00", "#56B4E9")
"""More of Okabe and Ito's palette, for spans that are neither the origin nor what influence goes through."""
FAINT = 0.45
"""Opacity of what goes around."""


def sections(found: ReasoningShare, number: int = 0) -> list[Section]:
    """Everything that is known, with names that differ by ``number``."""
    title = f"{found.flow.span.name} → {found.target}"
    drawn = [_text(found, number), _flows(found, number), _layers(found, number)]
    measured = [*_ablations(found, number), *_texts(found, number)]
    return [Section(f"Influence: {title}", drawn)] + ([Section("Interventions", measured)] if measured else [])


def _colors(found: ReasoningShare) -> dict[str, str]:
    flow, more = found.flow, cycle(MORE)
    fixed = {flow.span.name: HELD_OUT, ELSEWHERE: GREY} | ({flow.origin.name: TRAINING} if flow.origin else {})
    return {place: fixed.get(place) or next(more) for place in flow.places}


def _text(found: ReasoningShare, number: int) -> Figure:
    """Every token with its influence, in its span's colour."""
    flow, data = found.flow, []
    tokens = flow.ends["tokens"]
    for place, color in _colors(found).items():
        inside = np.flatnonzero(flow.at(place))
        for way, told, opacity in ((THROUGH, "through", 1.0), (AROUND, "around", FAINT)):
            shares = tokens[way, inside]
            if shares.any():
                own = place == flow.span.name  # nothing goes around its own tokens
                data.append({"type": "bar", "x": inside.tolist(), "y": shares.tolist(), "marker": {"color": color},
                             "opacity": opacity, "name": _escaped(place if own else f"{place}, {told}"),
                             "hovertemplate": "token %{x}: %{y:.2%}<extra></extra>"})
    ticks = list(range(len(found.graph.header.token_texts)))
    texts = [_escaped(visible(text).replace(" ", "·")) for text in found.graph.header.token_texts]
    return figure(f"text_{number}", "The text: influence of each token",
                  f"Share of all influence that ends at the token. Full colour: it went through {flow.span.name!r}; "
                  "faint: around it.", data, barmode="stack", height=420,
                  xaxis={"tickmode": "array", "tickvals": ticks, "ticktext": texts, "tickangle": -60},
                  yaxis={"title": {"text": "Share of influence"}, "tickformat": ".0%"})


def _flows(found: ReasoningShare, number: int) -> Figure:
    """From where influence ends, through the span or around it, to the target."""
    flow, colors = found.flow, _colors(found)
    ends = [(end, place) for end in ENDS for place in flow.places if flow.share(end, place) > 0]
    labels = [f"{end}, {place}" for end, place in ends]
    labels += [f"through {flow.span.name}", f"around {flow.span.name}", found.target]
    shown = [colors[place] if end == "tokens" else GREY for end, place in ends] + [HELD_OUT, GREY, OTHER]
    links = [(i, len(ends) + (way == AROUND), flow.share(end, place, way))
             for i, (end, place) in enumerate(ends) for way in (THROUGH, AROUND)]
    links += [(len(ends), len(ends) + 2, flow.through), (len(ends) + 1, len(ends) + 2, flow.around)]
    source, target, value = zip(*[link for link in links if link[2] > 0], strict=True)
    data = {"type": "sankey", "arrangement": "snap", "valueformat": ".1%",
            "node": {"label": [_escaped(label) for label in labels], "color": shown, "pad": 14, "thickness": 16},
            "link": {"source": source, "target": target, "value": value,
                     "color": [_faint(shown[i]) for i in source]}}
    return figure(f"flows_{number}", "Where the answer's influence comes from",
                  "Influence walks back from the answer; walks that visit no feature, error or token at the span's "
                  "positions go around it. Grey: what ends at errors or unexplored features.", [data], height=480)


def _escaped(text: str) -> str:
    """Plotly draws tags, and knows no other entity than those of ``&``, ``<`` and ``>``."""
    return escape(text, quote=False)


def _faint(color: str) -> str:
    red, green, blue = (int(color[i:i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"


def _layers(found: ReasoningShare, number: int) -> Figure:
    flow = found.flow
    n_layers = len(flow.visits)
    bars = {"type": "bar", "x": list(range(-1, n_layers)), "y": flow.leaves.tolist(), "name": "leaves the span",
            "marker": {"color": HELD_OUT}, "hovertemplate": "layer %{x}: %{y:.2%}<extra></extra>"}
    visits = line(list(range(n_layers)), flow.visits.tolist(), "passes a feature of the layer", TRAINING)
    return figure(f"layers_{number}", "By layer",
                  f"Bars: where influence leaves {flow.span.name!r} for the answer; they add up to {flow.through:.0%}. "
                  "Layer −1: directly from its tokens. Line: all that passes features of the layer.", [bars, visits],
                  xaxis=layer_axis(n_layers), yaxis={"title": {"text": "Share of influence"}, "tickformat": ".1%"})


def _ablations(found: ReasoningShare, number: int) -> Iterator[Figure]:
    for i, what in enumerate(dict.fromkeys(effect.what for effect in found.effects)):
        effects = [effect for mode in MODES if (effect := found.effect(what, mode))]
        data = [_bars(effects, [effect.change for effect in effects], "measured", HELD_OUT)]
        if any(effect.predicted is not None for effect in effects):
            data.append(_bars(effects, [effect.predicted for effect in effects], "by the graph's edges", OTHER))
        for name, color, changes in (("control spans", TRAINING, [effect.controls for effect in effects]),
                                     ("random features", GREY, [effect.random for effect in effects])):
            if all(changes):
                data.append(_bars(effects, [float(np.mean(some)) for some in changes], name, color, changes))
        features = f"{effects[0].n_features:,} features. "
        yield figure(f"effect_{i}_{number}", f"Features of the span: {what}",
                     f"{features}Change of the target, {found.value:.2f} on the prompt as it is. Whiskers: range over "
                     "controls.", data, barmode="group", yaxis={"title": {"text": "Change of the target"}})


def _bars(effects: list[Effect], values: list[Any], name: str, color: str, spread: list[list[float]] | None = None
          ) -> dict[str, Any]:
    bars: dict[str, Any] = {"type": "bar", "x": [effect.mode for effect in effects], "y": values, "name": name,
                            "marker": {"color": color}, "hovertemplate": "%{x}: %{y:.3f}<extra></extra>"}
    if spread:
        up = [max(some) - value for some, value in zip(spread, values, strict=True)]
        down = [value - min(some) for some, value in zip(spread, values, strict=True)]
        bars["error_y"] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1}
    return bars


def _texts(found: ReasoningShare, number: int) -> Iterator[Figure]:
    """Changes from the original, which :attr:`ReasoningShare.variants` begin with."""
    if len(found.variants) < 2:
        return
    original, *others = found.variants
    bars = {"type": "bar", "orientation": "h", "y": [_escaped(variant_label(found, one.name)) for one in others][::-1],
            "x": [one.value - original.value for one in others][::-1], "marker": {"color": HELD_OUT},
            "hovertemplate": "%{y}: %{x:.3f}<extra></extra>"}
    yield figure(f"texts_{number}", "The target with other texts",
                 "Tokens replaced, in the model itself, and features held at their values on the prompt as it is. "
                 f"Change of the target, {original.value:.2f} on that.",
                 [bars], xaxis={"title": {"text": "Change of the target"}}, yaxis={"automargin": True})
