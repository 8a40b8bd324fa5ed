"""The figures of a training report, by section.

Shapes: L layers, F features of a layer, S output layers of a feature, T lines of the metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from circuits.plots import (
    HELD_OUT,
    OTHER,
    TRAINING,
    Figure,
    Section,
    dash_mark,
    edges_between,
    figure,
    finite,
    heatmap,
    layer_axis,
    line,
    log_axis,
    number,
    per_layer,
    tick,
)
from circuits.training.evaluate import DENSE
from circuits.transcoder import MAX_TILE, Transcoders

BINS_PER_DECADE = 4
"""Wide enough that the rarest features (on one position, two, three ...) do not make a comb; an edge is at DENSE."""
MAX_POINTS = 300
"""Lines of the metrics that one figure draws."""
MAX_FEATURES = 4096
"""Features of a layer whose decoder norms are averaged."""


def sections(metrics: list[dict[str, Any]], transcoders: Transcoders, quality: dict[str, Any],
             density: Sequence[np.ndarray] | None) -> list[Section]:
    """Every section that there are numbers for; arguments as of :func:`circuits.training.report.write_report`."""
    curves, held_out = Curves(metrics, transcoders.n_layers), _HeldOut(quality, density, transcoders.n_layers)
    drawn: dict[str, list[Figure | None]] = {
        "Learning curves": [
            curves.loss(), curves.fvu(number(quality.get("fvu_mean"))),
            curves.by_layer("fvu", "FVU by layer during training", "FVU", "Moving average over training batches.")],
        "Reconstruction": [_layer_bars(
            "fvu_by_layer", "FVU by layer", "Fraction of variance unexplained", curves.last("fvu"),
            held_out.measure("fvu_by_layer"), "Squared error over the variance of the MLP output: 0 is perfect, 1 no "
            "better than the mean. The training bars are the last moving average.")],
        "Active features": [
            _layer_bars("active_by_layer", "Active features by layer (L0)", "Features per position",
                        curves.last("active"), held_out.measure("active_by_layer"),
                        "Features that fire at a position, on average."),
            curves.total("active", "Active features during training", "Features per position, all layers"),
            curves.by_layer("threshold", "Thresholds during training", "threshold",
                            "Mean pre-activation above which a layer's features fire, in scaled units.")],
        "Dead features": [
            _layer_bars("dead_by_layer", "Dead features by layer", "Share of the layer's features",
                        curves.last("dead"), held_out.silent(), "Training: have not fired for long. Held-out: never "
                        "fired on the held-out text; where that is short, rare features count too.", ".1%"),
            curves.by_layer("dead", "Dead features during training", "share of features",
                            "Share of a layer's features that have not fired for long.", ".1%")],
        "Decoders": [*_decoder_figures(transcoders)],
        "Firing density": [
            *_density_figures(density or []),
            _layer_bars("dense_by_layer", "Dense features by layer", "Share of the layer's features", None,
                        held_out.measure("dense_by_layer"), f"Features that fire on more than {DENSE:.0%} of "
                        "positions.", ".1%")],
        "Speed": [curves.speed()],
    }
    present = {title: [plot for plot in plots if plot is not None] for title, plots in drawn.items()}
    return [Section(title, plots) for title, plots in present.items() if plots]


class Curves:
    """What the metrics say over the run, against tokens seen, or against steps where a line lacks its tokens."""

    def __init__(self, metrics: list[dict[str, Any]], n_layers: int):
        self.n_layers = n_layers
        self.key = "tokens" if all(number(entry.get("tokens")) is not None for entry in metrics) else "step"
        # a logarithmic axis has no zero
        self.metrics = sorted((m for m in metrics if (number(m.get(self.key)) or 0) > 0), key=lambda m: m[self.key])
        self.axis = log_axis("Tokens seen" if self.key == "tokens" else "Step",
                             [entry[self.key] for entry in self.metrics] or [1.0])

    def loss(self) -> Figure | None:
        x, y = self._series(lambda entry: loss if (loss := number(entry.get("loss"))) and loss > 0 else None)
        return None if not x else figure(
            "loss", "Loss", "Of training batches, in scaled units: every layer's MLP output has mean square 1.",
            [line(x, y)], xaxis=self.axis, yaxis=log_axis("Loss (scaled units)", y, "~g"))

    def fvu(self, held_out: float | None) -> Figure | None:
        """Mean and worst layer, and the finished transcoder's mean on held-out text."""
        x, layers = self._series(lambda entry: finite(self._list(entry, "fvu")) or None)
        if not x:
            return None
        data = [line(x, [sum(values) / len(values) for values in layers], "training, mean over layers"),
                line(x, [max(values) for values in layers], "training, worst layer", OTHER, "dot")]
        if held_out is not None:
            data.append(line([x[0], x[-1]], [held_out] * 2, "held-out, mean", HELD_OUT, "dash"))
        return figure("fvu", "Fraction of variance unexplained (FVU)", "Training lines are moving averages; the "
                      "held-out line is the finished transcoder's.", data, xaxis=self.axis,
                      yaxis={"title": {"text": "FVU"}, "rangemode": "tozero"})

    def total(self, key: str, title: str, unit: str) -> Figure | None:
        """Sum over layers."""
        x, layers = self._series(lambda entry: finite(self._list(entry, key)) or None)
        return None if not x else figure(
            f"{key}_total", title, "", [line(x, [sum(values) for values in layers])], xaxis=self.axis,
            yaxis={"title": {"text": unit}, "rangemode": "tozero"})

    def by_layer(self, key: str, title: str, unit: str, caption: str, tickformat: str = "") -> Figure | None:
        """Heat map: a column per line of the metrics, a row per layer."""
        x, columns = self._series(lambda entry: self._list(entry, key))
        if not x:
            return None
        rows = [[column[layer] for column in columns] for layer in range(self.n_layers)]
        heat = heatmap(edges_between(x), list(range(self.n_layers)), rows, unit,
                       f"layer %{{y}}, {self.key} %{{x:,.0f}}<br>{unit} %{{z:{tickformat or '.3f'}}}", tickformat)
        return figure(f"{key}_over_time", title, caption, [heat], xaxis=self.axis, yaxis=layer_axis(self.n_layers))

    def speed(self) -> Figure | None:
        x, y = self._series(lambda entry: number(entry.get("tokens_per_second")))
        return None if not x else figure(
            "speed", "Training speed", "", [line(x, y)], xaxis=self.axis,
            yaxis={"title": {"text": "Tokens per second"}, "rangemode": "tozero"})

    def last(self, key: str) -> list[float | None] | None:
        """(L,) values of the last line that has them."""
        return next((found for entry in reversed(self.metrics) if (found := self._list(entry, key))), None)

    def _list(self, entry: dict[str, Any], key: str) -> list[float | None] | None:
        return per_layer(entry.get(key), self.n_layers)

    def _series(self, value: Callable[[dict[str, Any]], Any]) -> tuple[list[float], list[Any]]:
        """x and value of the lines that have one: at most MAX_POINTS of them, even on the logarithmic axis."""
        found = [(entry[self.key], y) for entry in self.metrics if (y := value(entry)) is not None]
        if len(found) > MAX_POINTS:
            at = np.array([x for x, _ in found], dtype=float)
            found = [found[i] for i in np.unique(np.searchsorted(at, np.geomspace(at[0], at[-1], MAX_POINTS)))]
        return [x for x, _ in found], [y for _, y in found]


class _HeldOut:
    """Measures by layer on text that training did not see."""

    def __init__(self, quality: dict[str, Any], density: Sequence[np.ndarray] | None, n_layers: int):
        self.quality, self.density, self.n_layers = quality, density or [], n_layers

    def measure(self, key: str) -> list[float | None] | None:
        return per_layer(self.quality.get(key), self.n_layers)

    def silent(self) -> list[float | None] | None:
        """Share of each layer's features that never fired."""
        counted = [float((shares == 0).mean()) if len(shares) else None for shares in self.density]
        return self.measure("dead_by_layer") or per_layer(counted, self.n_layers)


def _layer_bars(name: str, title: str, unit: str, training: list[float | None] | None,
                held_out: list[float | None] | None, caption: str, tickformat: str = "") -> Figure | None:
    hover = f"layer %{{x}}: %{{y:{tickformat or '.3f'}}}"
    data = [{"type": "bar", "name": label, "x": list(range(len(values))), "y": values, "marker": {"color": color},
             "hovertemplate": hover}
            for label, values, color in (("training", training, TRAINING), ("held-out", held_out, HELD_OUT)) if values]
    return None if not data else figure(
        name, title, caption, data, barmode="group", xaxis=layer_axis(len(training or held_out or [])),
        yaxis={"title": {"text": unit}, "rangemode": "tozero", "tickformat": tickformat})


def decoder_norms(transcoders: Transcoders) -> tuple[np.ndarray, np.ndarray]:
    """(L, S) mean norm of decoder vectors by layer and distance to the output layer, and the share that is not zero.

    Of at most MAX_FEATURES features a layer, evenly spread; NaN where there is no output layer.
    """
    spans = [len(transcoders.output_layers(layer)) for layer in range(transcoders.n_layers)]
    norms, stored = (np.full((len(spans), max(spans)), np.nan) for _ in range(2))
    for layer, span in enumerate(spans):
        features = torch.arange(transcoders.d_transcoder[layer])
        features = features[::math.ceil(len(features) / MAX_FEATURES)]
        total, kept = np.zeros(span), np.zeros(span)
        for part in features.split(max(1, MAX_TILE // (span * transcoders.d_model))):
            norm = transcoders.decoder_rows(layer, part).norm(dim=-1).cpu().numpy()
            total += norm.sum(0, dtype=np.float64)
            kept += (norm > 0).sum(0)
        norms[layer, :span], stored[layer, :span] = total / len(features), kept / len(features)
    return norms, stored


def _decoder_figures(transcoders: Transcoders) -> list[Figure]:
    norms, stored = decoder_norms(transcoders)
    n_layers, span = norms.shape
    own = np.full_like(norms, np.nan)
    for distance in range(span):
        own[:n_layers - distance, distance] = norms[distance:, 0]
    scaled = np.divide(norms, own, out=np.full_like(norms, np.nan), where=own > 0)
    sampled = f"At most {MAX_FEATURES:,} features a layer, evenly spread." if max(
        transcoders.d_transcoder) > MAX_FEATURES else ""
    axes = {"xaxis": {"title": {"text": "Distance (output layer minus layer)"}, "dtick": tick(span), "showgrid": False,
                      "zeroline": False}, "yaxis": layer_axis(n_layers, "Layer of the feature")}
    distances, layers, figures = list(range(span)), list(range(n_layers)), []
    if span > 1:
        figures.append(figure(
            "decoder_norms", "Decoder norm by distance", "Mean norm of the decoder vectors of a layer's features, over "
            "that of the output layer's own features: 1 at distance 0, below 1 where writes from afar are weaker. "
            + sampled, [heatmap(distances, layers, scaled.tolist(), "relative norm",
                                "layer %{y}, distance %{x}<br>relative norm %{z:.3f}")], **axes))
    if (stored < 1).any():
        figures.append(figure(
            "decoders_stored", "Decoder vectors that are not zero", "Share of a layer's features that write at this "
            "distance at all. " + sampled, [heatmap(distances, layers, stored.tolist(), "share of features",
                                                    "layer %{y}, distance %{x}<br>%{z:.1%} are not zero", ".0%",
                                                    (0.0, 1.0))], **axes))
    return figures


def _density_figures(density: Sequence[np.ndarray]) -> list[Figure]:
    """Histogram over log10 of the share of positions a feature fires on, all layers together and by layer."""
    fired = [np.log10(shares[shares > 0].astype(float)) for shares in density]
    if not sum(map(len, fired)):
        return []
    lowest = min(math.floor(logs.min() * BINS_PER_DECADE) for logs in fired if len(logs))
    edges = np.arange(min(lowest, -2 * BINS_PER_DECADE), 1) / BINS_PER_DECADE
    counts = np.stack([np.histogram(logs, edges)[0] for logs in fired])
    total, dead = sum(map(len, density)), sum(int((shares == 0).sum()) for shares in density)
    dense = sum(int((shares > DENSE).sum()) for shares in density)
    decades = list(range(math.ceil(edges[0]), 1))
    axis = {"title": {"text": "Share of positions the feature fires on"}, "tickvals": decades, "zeroline": False,
            "ticktext": [f"{10.0 ** decade:.{max(0, -decade - 2)}%}" for decade in decades],
            "range": [float(edges[0]), 0.01]}
    bars = {"type": "bar", "x": ((edges[1:] + edges[:-1]) / 2).tolist(), "y": counts.sum(0).tolist(),
            "marker": {"color": TRAINING}, "hovertemplate": "%{y:,} features<extra></extra>"}
    heat = heatmap(edges.tolist(), list(range(len(density))), np.where(counts > 0, counts, np.nan).tolist(),
                   "features", "layer %{y}: %{z:,} features")
    mark = dash_mark(math.log10(DENSE), f"{DENSE:.0%}")
    caption = (f"{total:,} features; {dead:,} ({dead / total:.1%}) never fired on the held-out text and are not drawn; "
               f"{dense:,} ({dense / total:.1%}) fire on more than {DENSE:.0%} of positions, right of the line.")
    return [figure("density", "Features by firing density", caption, [bars], xaxis=axis, bargap=0.04,
                   yaxis={"title": {"text": "Features"}}, **mark),
            figure("density_by_layer", "Features by firing density and layer", "Blank where there are none.", [heat],
                   xaxis=axis, yaxis=layer_axis(len(density)), **mark)]
