"""The figures of a validation, by section."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np

from circuits.plots import HELD_OUT, OTHER, TRAINING, Figure, Section, figure, line, log_axis
from circuits.validation.layers import LayerAgreement
from circuits.validation.steering import Steering
from circuits.validation.validate import Validation

BARS = {"spearman_influence": "influence", "spearman_edge": "direct edge", "spearman_activation": "activation",
        "spearman_shuffled": "influence, shuffled", "spearman_linear": "edges with signs",
        "spearman_replaced": "replacement model"}
COLORS = (TRAINING, HELD_OUT, OTHER)


def sections(report: Validation) -> list[Section]:
    """Every section that was measured."""
    found = report.ablations
    ablated = [plot for plot in (_influence(report), _signed(report), _bars(report)) if plot is not None]
    drawn = [Section("Features ablated one by one", ablated),
             Section("Residual stream, layer by layer", list(_layers(found.layers)) if found.layers else []),
             Section("Supernodes scaled", [_steering(i, one) for i, one in enumerate(report.steering)])]
    return [section for section in drawn if section.figures]


def _influence(report: Validation) -> Figure | None:
    found = report.ablations
    effect = found.size(found.measured)
    shown = (effect > 0) & (found.influence > 0)
    if not shown.any():
        return None
    x, y = found.influence[shown].tolist(), effect[shown].tolist()
    return figure("influence", "Influence beside effect", "Log-log correlation "
                  f"{_said(report, 'log_pearson_influence')}. {int((~shown).sum())} features of no influence or no "
                  "effect are not drawn.",
                  [_points(report, x, y, shown)], xaxis=log_axis("Influence", x, "~g"),
                  yaxis=log_axis("Effect of ablation: |change of targets|", y, "~g"))


def _signed(report: Validation) -> Figure:
    found = report.ablations
    x, y = found.signed(found.predicted).tolist(), found.signed(found.measured).tolist()
    ends = [min(*x, *y), max(*x, *y)]
    return figure("signed", "Replacement model beside model", "Change of the targets when a feature is ablated: with "
                  "attention and norms frozen and features that respond, and in the model. On the line they agree. "
                  f"Correlation {_said(report, 'pearson_predicted')}.",
                  [_points(report, x, y, np.ones(len(x), bool)), line(ends, ends, "equal", OTHER, "dash")],
                  xaxis={"title": {"text": "Predicted change"}}, yaxis={"title": {"text": "Measured change"}})


def _bars(report: Validation) -> Figure | None:
    values = report.correlations
    shown = {label: values[key] for key, label in BARS.items() if values[key] is not None}
    if not shown:
        return None
    bars = {"type": "bar", "x": list(shown), "y": list(shown.values()), "marker": {"color": TRAINING},
            "hovertemplate": "%{x}: %{y:.3f}<extra></extra>"}
    return figure("baselines", "What ranks features by their effect",
                  "Spearman correlation with the effect of ablation.", [bars],
                  yaxis={"title": {"text": "Spearman correlation"}})


def _points(report: Validation, x: list[float], y: list[float], shown: np.ndarray) -> dict[str, Any]:
    graph, nodes = report.graph, report.ablations.nodes[shown]
    names = [f"{escape(str(graph.nodes.label[n]), quote=False)}<br>at "
             f"{escape(repr(_token(report, int(n))), quote=False)}" for n in nodes]
    return {"type": "scatter", "mode": "markers", "name": "features", "x": x, "y": y, "text": names,
            "marker": {"color": TRAINING, "size": 6, "opacity": 0.7},
            "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>"}


def _token(report: Validation, node: int) -> str:
    return report.graph.header.token_texts[int(report.graph.nodes.position[node])]


def _layers(layers: dict[str, LayerAgreement]) -> Iterator[Figure]:
    told = {"cosine": "1 is perfect. Lines are medians over features, thin ones quartiles.",
            "error": "Squared norm of the difference over that of the measured change: 0 is perfect, 1 no better than "
                     "predicting no change."}
    for measure, caption in told.items():
        for place, summary in (("distance", LayerAgreement.by_distance), ("layer", LayerAgreement.by_layer)):
            data = []
            for (name, found), color in zip(layers.items(), COLORS, strict=False):
                values = summary(found)
                low, middle, high = (list(column) for column in zip(*values[measure], strict=True))
                thin = {"width": 1, "dash": "dot", "color": color}
                data.append(line(values[place], middle, name.replace("_", " "), color))
                data += [line(values[place], side, "quartile", color) | {"line": thin, "showlegend": False}
                         for side in (low, high)]
            axis = "Layers above the feature" if place == "distance" else "Layer"
            yield figure(f"{measure}_{place}", f"{measure.capitalize()} by {place}", caption, data,
                         xaxis={"title": {"text": axis}}, yaxis={"title": {"text": measure.capitalize()}})


def _steering(number: int, one: Steering) -> Figure:
    at = np.argsort(one.multipliers)
    x = [one.multipliers[i] for i in at]
    data = [line(x, one.effect[at].tolist(), "supernode")]
    if len(one.control_effects):
        controls = one.control_effects[:, at]
        data.append(line(x, controls.mean(0).tolist(), "controls, mean", HELD_OUT))
        data += [line(x, side.tolist(), "controls, range", HELD_OUT, "dot") | {"showlegend": not i}
                 for i, side in enumerate((controls.min(0), controls.max(0)))]
    ratio = f"Ablated, {one.ratio:.1f} times the effect of controls. " if np.isfinite(one.ratio) else ""
    source = "proposed" if one.suggested else "the graph's own"
    return figure(f"steering_{number}", one.label, f"{len(one.members)} features, {source}. {ratio}Controls are "
                  "other active features of the same layers, places and strengths.", data,
                  xaxis={"title": {"text": "Multiplier of the features' values"}},
                  yaxis={"title": {"text": "Change of the targets"}})


def _said(report: Validation, key: str) -> str:
    value = report.correlations[key]
    return "not defined" if value is None else f"{value:.3f}"
