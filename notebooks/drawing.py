"""Tables and figures of the notebooks, as HTML and PNG: what a code host shows.

Tokens and labels are foreign text: escaped in HTML, and never read as mathematics by matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from circuits.graphs import AttributionGraph
from circuits.graphs.paths import whole_rows
from circuits.graphs.words import shown

RAISES, LOWERS, REST = "#4472b0", "#c0504d", "#b0b0b0"
COLOURS = {"feature": RAISES, "error": REST, "embedding": "#3f8f5f", "logit": LOWERS, "constant": "#d9c36a"}
DPI = 85
"""Of the graph's picture: its many lines are what makes a notebook large."""
WEAK = 0.01
"""Share of its target's input below which an edge is not drawn."""
LONGEST = 70
"""Characters of a table's cell."""


class Table:
    """Rows under a header: HTML in a notebook, text elsewhere."""

    def __init__(self, header: Sequence[str], rows: Iterable[Sequence[Any]]):
        self.header = [shown(name) for name in header]
        self.rows = [[_cell(value) for value in row] for row in rows]

    def _repr_html_(self) -> str:
        head, *rows = ["".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
                       for tag, row in (("th", self.header), *(("td", row) for row in self.rows))]
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                         for row in (self.header, *self.rows))


def strongest(graph: AttributionGraph, count: int, kind: str = "feature") -> list[int]:
    """The ``count`` nodes of a kind with the largest influence, that first."""
    nodes = np.flatnonzero(graph.nodes.kind == kind)
    return nodes[np.argsort(-graph.nodes.influence[nodes], kind="stable")[:count]].tolist()


def draw_graph(graph: AttributionGraph, numbered: Sequence[int] = ()) -> None:
    """Nodes by token (across) and layer (up), as large as their influence; edges as wide as their share of all input
    of their target, those below WEAK left out. ``numbered`` nodes bear 1, 2, ..."""
    nodes, texts, n_layers = graph.nodes, graph.header.token_texts, graph.header.n_layers
    place = _places(graph)
    target = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    share = np.abs(graph.weights) / np.maximum(whole_rows(graph)[target], 1e-30)
    drawn = np.flatnonzero(share >= WEAK)
    figure, axes = plt.subplots(figsize=(max(6.0, 0.85 * len(texts)), min(9.0, 3 + 0.5 * n_layers)), dpi=DPI)
    axes.add_collection(LineCollection(
        np.stack([place[graph.indices[drawn]], place[target[drawn]]], 1), linewidths=0.2 + 5 * share[drawn],
        colors=np.where(graph.weights[drawn] > 0, RAISES, LOWERS), alpha=np.clip(0.15 + 2 * share[drawn], 0, 0.9),
        zorder=1))
    size = 30 + 300 * nodes.influence / max(float(nodes.influence.max()), 1e-30)
    for kind in dict.fromkeys(nodes.kind.tolist()):
        here = nodes.kind == kind
        axes.scatter(*place[here].T, s=size[here], c=COLOURS[kind], edgecolors="white", zorder=2)
        axes.scatter([], [], s=50, c=COLOURS[kind], label=kind)
    for number, node in enumerate(numbered, 1):
        axes.annotate(str(number), place[node], xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8,
                      weight="bold", zorder=3)
    name_tokens(axes, texts)
    axes.set_yticks(range(n_layers + 2), ["token", *range(n_layers), "output"], fontsize=8)
    axes.set_ylabel("layer")
    axes.legend(fontsize=8, loc="upper left")
    axes.set_title("Blue edges raise, red ones lower; the wider, the larger a share of their target's input",
                   fontsize=9)
    figure.tight_layout()


def draw_bars(axes: Axes, texts: Sequence[str], values: np.ndarray, marked: Sequence[int] = ()) -> None:
    """A bar for each token, those ``marked`` in another colour."""
    colours = [COLOURS["logit"] if position in marked else COLOURS["feature"] for position in range(len(texts))]
    axes.bar(range(len(texts)), values, color=colours)
    name_tokens(axes, texts)


def draw_parts(axes: Axes, parts: Mapping[str, np.ndarray]) -> None:
    """Bars that are stacked, (n,) for each part, the first one grey: what is above 0 upwards, the rest downwards."""
    ends = np.zeros((2, len(next(iter(parts.values())))))
    for number, (name, values) in enumerate(parts.items()):
        there = np.flatnonzero(values)
        side = (values[there] < 0).astype(int)
        axes.bar(there, values[there], bottom=ends[side, there], label=name, color=f"C{number - 1}" if number else REST)
        ends[side, there] += values[there]
    axes.set_xticks(range(ends.shape[1]))


def draw_pattern(axes: Axes, pattern: np.ndarray, texts: Sequence[str]) -> None:
    """Attention (P, P): a row for each query, a column for each key."""
    axes.imshow(pattern, cmap="Blues", vmin=0, vmax=1)
    name_tokens(axes, texts)
    axes.set_yticks(range(len(texts)), [legible(text) for text in texts], fontsize=8, parse_math=False)
    axes.set_xlabel("looks at")


def name_tokens(axes: Axes, texts: Sequence[str]) -> None:
    """Tokens along the horizontal axis."""
    axes.set_xticks(range(len(texts)), [legible(text) for text in texts], rotation=45, ha="right", fontsize=8,
                    parse_math=False)


def legible(text: str, longest: int = 24) -> str:
    """Foreign text on one line, characters that matplotlib's font lacks as boxes."""
    return "".join(c if ord(c) in _glyphs() else "□" for c in shown(text, longest))


def _cell(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int | np.integer) else shown(str(value), LONGEST)


def _places(graph: AttributionGraph) -> np.ndarray:
    """(N, 2) where nodes are drawn: those of one layer and position side by side."""
    nodes = graph.nodes
    across = np.where(nodes.position < 0, 0, nodes.position).astype(np.float64)
    across[nodes.kind == "logit"] = len(graph.header.token_texts) - 1
    up = nodes.layer + 1.0
    for column, row in {(x, y) for x, y in zip(across.tolist(), up.tolist(), strict=True)}:
        here = np.flatnonzero((across == column) & (up == row))
        here = here[np.argsort(-nodes.influence[here], kind="stable")]
        across[here] += np.linspace(-0.4, 0.4, len(here) + 2)[1:-1]
    return np.stack([across, up], 1)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())
