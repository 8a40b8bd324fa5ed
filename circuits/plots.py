"""Building blocks of the figures of reports: plotly traces, axes and layouts as plain dicts.

Colours of the page (ink, grid, background) are left to the page, which is light or dark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

TRAINING, HELD_OUT, OTHER = "#0072B2", "#D55E00", "#009E73"
"""Blue, vermillion and green of Okabe and Ito's palette: apart for colour-blind readers, on light and on dark pages."""
SCALE = "Cividis"
"""Made to look alike with and without colour-blindness; it grows lighter steadily, so it also prints."""


@dataclass(frozen=True)
class Figure:
    """One plot; ``data`` and ``layout`` are plotly's, as JSON has them."""

    name: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Section:
    title: str
    figures: list[Figure]


def figure(name: str, title: str, caption: str, data: list[dict[str, Any]], **layout: Any) -> Figure:
    """Checked by plotly: an unknown property or a value of the wrong kind raises here, not as an empty plot."""
    named = len(data) > 1 or "name" in data[0]
    layout = {"height": 340, "margin": {"l": 68, "r": 26, "t": 40 if named else 26, "b": 56},
              "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "showlegend": named,
              "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}, **layout}
    checked = go.Figure({"data": data, "layout": {**layout, "template": None}}).to_plotly_json()
    checked["layout"].pop("template", None)
    return Figure(name, title, caption.strip(), _plain(checked["data"]), _plain(checked["layout"]))


def line(x: list[float], y: list[Any], name: str | None = None, color: str = TRAINING,
         dash: str = "solid") -> dict[str, Any]:
    """A curve, or a mark where it has one point; named in the legend."""
    return {"type": "scatter", "mode": "lines" if len(x) > 1 else "markers", "x": x, "y": y,
            "line": {"color": color, "dash": dash, "width": 2}, "marker": {"color": color},
            **({"name": name} if name else {})}


def heatmap(x: list[Any], y: list[int], z: list[list[Any]], unit: str, hover: str, tickformat: str = "",
            limits: tuple[float, float] | None = None) -> dict[str, Any]:
    """``z`` has a row per ``y``; ``x`` are the columns' middles, or their edges, one more than columns."""
    fixed = {"zmin": limits[0], "zmax": limits[1]} if limits else {}
    return {"type": "heatmap", "x": x, "y": y, "z": z, "colorscale": SCALE, "hoverongaps": False,
            "hovertemplate": hover + "<extra></extra>", **fixed,
            "colorbar": {"title": {"text": unit, "side": "right"}, "tickformat": tickformat, "thickness": 14,
                         "outlinewidth": 0}}


def layer_axis(n_layers: int, title: str = "Layer") -> dict[str, Any]:
    """An axis of layers, not all of them numbered when there are many."""
    return {"title": {"text": title}, "dtick": tick(n_layers), "showgrid": False, "zeroline": False}


def tick(n: int) -> int:
    """Step between the numbered ones of ``n`` ticks."""
    return math.ceil(n / 18)


def log_axis(title: str, values: list[float], tickformat: str = "~s") -> dict[str, Any]:
    """A logarithmic axis for positive values, with ticks at 1, 2 and 5, or at powers of ten where it is long."""
    ratio = max(values) / min(values)
    ticks = {"dtick": "D2" if ratio < 1000 else 1} if ratio > 4 else {}
    return {"title": {"text": title}, "type": "log", "tickformat": tickformat, **ticks}


def dash_mark(x: float, text: str) -> dict[str, Any]:
    """Layout of a dashed vertical line at ``x`` with a text above it."""
    shape = {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"color": HELD_OUT, "dash": "dash", "width": 2}}
    note = {"x": x, "y": 1.0, "yref": "paper", "text": text, "showarrow": False, "yanchor": "bottom",
            "font": {"color": HELD_OUT}}
    return {"shapes": [shape], "annotations": [note]}


def edges_between(x: list[float]) -> list[float]:
    """(T + 1,) cell edges around (T,) positive places on a logarithmic axis: halfway between neighbours."""
    at = np.log(np.asarray(x, dtype=float))
    half = np.diff(at) / 2 if len(at) > 1 else np.array([0.05])
    return np.exp(np.concatenate([[at[0] - half[0]], at[:-1] + np.diff(at) / 2, [at[-1] + half[-1]]])).tolist()


def number(value: Any) -> float | None:
    """A finite number, or None: metrics may lack a key, and hold NaN where training diverged."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def per_layer(values: Any, n_layers: int) -> list[float | None] | None:
    """(L,) numbers; None where ``values`` is no list of that length, or holds none."""
    if not isinstance(values, list) or len(values) != n_layers:
        return None
    numbers = [number(value) for value in values]
    return numbers if finite(numbers) else None


def finite(values: list[float | None] | None) -> list[float]:
    """The values that are there."""
    return [value for value in values or [] if value is not None]


def _plain(value: Any) -> Any:
    """As JSON has it: numbers of six digits, and None for what is not finite, which plotly draws as a gap."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
