"""A small picture of a graph: layers by positions, the strongest edges, as SVG made of numbers only.

Shapes: N nodes, E edges.
"""

from __future__ import annotations

import numpy as np

from circuits.graphs.graph import AttributionGraph

MAX_THUMBNAIL = 32 * 2**20
"""Bytes of the largest file that is read for a thumbnail."""
MOST_NODES, MOST_EDGES = 500, 160
WIDTH, HEIGHT, MARGIN = 320, 168, 10
# Mid tones, to be seen on white and on black; signs and kinds differ in lightness and shape as well as in hue.
POSITIVE, NEGATIVE = "#2f8fd8", "#d9731f"
COLOURS = {"feature": "#7b8b9d", "error": "#b565a5", "embedding": "#1fa37c", "logit": "#8f63c9", "constant": "#a08f5e"}


def draw(graph: AttributionGraph) -> str:
    """The SVG text. No text of the graph is in it."""
    shown = _shown(graph)
    x, y = _places(graph)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
             f'height="{HEIGHT}">']
    parts += _edges(graph, shown, x, y)
    for node in np.flatnonzero(shown):
        parts.append(_mark(str(graph.nodes.kind[node]), x[node], y[node]))
    return "".join(parts) + "</svg>"


def _shown(graph: AttributionGraph) -> np.ndarray:
    """(N,) mask: tokens, targets, and the nodes with the most influence."""
    influence = np.nan_to_num(graph.nodes.influence.astype(np.float64))
    influence[np.isin(graph.nodes.kind, ["embedding", "logit"])] = np.inf
    shown = np.zeros(len(graph), dtype=bool)
    shown[np.argsort(-influence, kind="stable")[:MOST_NODES]] = True
    return shown & (graph.nodes.kind != "constant")


def _places(graph: AttributionGraph) -> tuple[np.ndarray, np.ndarray]:
    """(N,) x and y: nodes of one layer and position stand side by side within their column, larger columns wider."""
    nodes = graph.nodes
    position = np.maximum(nodes.position, 0)
    layer = np.clip(nodes.layer, -1, graph.header.n_layers)
    columns = int(position.max(initial=0)) + 1
    cell = (layer.astype(np.int64) + 1) * columns + position
    order = np.argsort(cell, kind="stable")
    _, first, inverse, count = np.unique(cell[order], return_index=True, return_inverse=True, return_counts=True)
    rank, size = np.empty(len(nodes)), np.empty(len(nodes))
    rank[order] = np.arange(len(nodes)) - first[inverse]
    size[order] = count[inverse]
    widest = np.ones(columns)
    np.maximum.at(widest, position, np.sqrt(size))
    right = np.cumsum(widest) / widest.sum()
    left = right - widest / widest.sum()
    x = left[position] + (right - left)[position] * (rank + 0.5) / size
    y = (layer + 1.0) / max(graph.header.n_layers + 1, 1)
    return MARGIN + x * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - y * (HEIGHT - 2 * MARGIN)


def _edges(graph: AttributionGraph, shown: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[str]:
    """Lines of the strongest edges, weakest first: by share of the target's input times the target's influence."""
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    inside = np.flatnonzero(shown[rows] & shown[graph.indices])
    rows, sources, weights = rows[inside], graph.indices[inside], graph.weights[inside].astype(np.float64)
    size = np.abs(weights)
    total = np.bincount(rows, size, minlength=len(graph))
    arrives = np.nan_to_num(graph.nodes.influence.astype(np.float64))
    arrives[graph.target_nodes] += graph.target_weights
    score = size / np.maximum(total, 1e-30)[rows] * arrives[rows]
    best = np.argsort(-score, kind="stable")[:MOST_EDGES][::-1]
    strongest = max(float(score[best].max(initial=0.0)), 1e-30)
    lines = []
    for edge in best:
        share = float(np.sqrt(score[edge] / strongest))
        s, t = sources[edge], rows[edge]
        lines.append(f'<line x1="{x[s]:.1f}" y1="{y[s]:.1f}" x2="{x[t]:.1f}" y2="{y[t]:.1f}" '
                     f'stroke="{POSITIVE if weights[edge] > 0 else NEGATIVE}" stroke-width="{0.4 + 1.6 * share:.2f}" '
                     f'stroke-opacity="{0.15 + 0.6 * share:.2f}"/>')
    return lines


def _mark(kind: str, x: float, y: float) -> str:
    """Each kind has its shape, as in the page."""
    fill = f'fill="{COLOURS.get(kind, COLOURS["constant"])}"'
    if kind == "embedding":
        return f'<rect x="{x - 2:.1f}" y="{y - 2:.1f}" width="4" height="4" {fill}/>'
    if kind in ("error", "logit"):
        corners = [(0, -2.2), (2, 0), (0, 2.2), (-2, 0)] if kind == "error" else [(0, -3.4), (3.2, 2.4), (-3.2, 2.4)]
        points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
        return f'<polygon points="{points}" {fill}/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.9" {fill}/>'
