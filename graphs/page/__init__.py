"""The graph as one self-contained HTML page that opens from file:// with the network off.

What comes from the graph is inside one packed element (:mod:`.packed`), and in the title. The Content-Security-Policy
lets exactly the page's own scripts and style run, by hash, and nothing else load; a page that a server shows may also
talk to that server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from circuits.errors import InputError
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.page.bundle import digest, script, source, style, vendored
from circuits.graphs.page.content import page_content
from circuits.graphs.page.packed import pack
from circuits.graphs.prune import prune_masks
from circuits.graphs.store import replacing

MAX_NODES = 100_000
WIDE = ((0.95, 1.0), (0.9, 1.0), (0.85, 1.0), (0.95, 0.995), (0.9, 0.99), (0.85, 0.985))
"""Thresholds tried for what a page holds beyond what it shows at first, so that its sliders can go up too. With every
edge between its nodes it prunes exactly as :mod:`graphs.prune` would."""
WIDE_NODES, WIDE_EDGES = 2_000, 40_000
"""Most that a page holds beyond what it shows at first."""


def write(graph: AttributionGraph, path: str | Path, thresholds: tuple[float, float] | None = None) -> None:
    """Write ``graph`` as one HTML page.

    Args:
        thresholds: node and edge threshold to open with, where ``graph`` is larger than what is to be shown: the page
            shows what ``graph.prune`` would keep, and holds more of the graph as far as WIDE_NODES and WIDE_EDGES go.

    Raises:
        InputError: the page would hold more than ``MAX_NODES`` nodes, a threshold is outside [0, 1], or ``path``
            cannot be written.
    """
    text = render(graph, thresholds)
    with replacing(path) as beside:
        beside.write_bytes(text.encode("utf-8", "replace"))


def render(graph: AttributionGraph, thresholds: tuple[float, float] | None = None,
           live: Mapping[str, Any] | None = None) -> str:
    """The page's HTML text.

    Args:
        thresholds: see :func:`write`.
        live: plain JSON values for a page behind a server (:mod:`circuits.serve`), which it may then talk to.

    Raises:
        InputError: as :func:`write`.
    """
    shown = None
    if thresholds is not None:
        graph, shown = widened(graph, *thresholds)
    if len(graph) > MAX_NODES:
        raise InputError(f"graph has {len(graph)} nodes, a page shows at most {MAX_NODES}: prune the graph first")
    values, columns = page_content(graph, shown)
    scripts = [script(), vendored()]
    policy = (f"default-src 'none'; script-src {' '.join(repr(digest(text)) for text in scripts)}; "
              f"style-src '{digest(style())}'; img-src data: blob:; base-uri 'none'; form-action 'none'")
    if live is not None:
        values, policy = {**values, "live": dict(live)}, f"{policy}; connect-src 'self'"
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(source("template.html")).render(
        title=_title(graph.header.prompt), policy=policy, style=Markup(style()), script=Markup(scripts[0]),
        vendored=Markup(scripts[1]), data=pack(values, columns))


def widened(graph: AttributionGraph, node_threshold: float, edge_threshold: float
            ) -> tuple[AttributionGraph, tuple[Any, Any]]:
    """The part of ``graph`` that a page holds, and of that part the masks (N,), (E,) of what it shows at first: what
    ``graph.prune`` keeps. The part is what the first of WIDE that fits keeps, and all that is shown.

    Raises:
        InputError: a threshold outside [0, 1].
    """
    nodes, edges = prune_masks(graph, node_threshold, edge_threshold)
    limits = (node_threshold, edge_threshold)
    keep, keep_edges = nodes, edges
    for wide in WIDE:
        if wide[0] <= node_threshold or wide[1] <= edge_threshold:
            continue
        more, more_edges = prune_masks(graph, *wide)
        if int(more.sum()) <= WIDE_NODES and int(more_edges.sum()) <= WIDE_EDGES:
            keep, keep_edges, limits = more | nodes, more_edges | edges, wide
            break
    part = graph.subgraph(keep, keep_edges)
    before = {"nodes": len(graph), "edges": graph.n_edges, "influence": float(graph.nodes.influence.sum(dtype=float))}
    settings = {"unpruned": before} | part.header.settings | {
        "node_threshold": float(node_threshold), "edge_threshold": float(edge_threshold),
        "page": {"node_threshold": limits[0], "edge_threshold": limits[1]}}
    return replace(part, header=replace(part.header, settings=settings)), (nodes[keep], edges[keep_edges])


def _title(prompt: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in prompt[:80]).strip()
    return f"{shown} · attribution graph" if shown else "Attribution graph"
