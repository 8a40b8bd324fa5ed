"""Compared graphs as one HTML file that opens without a network: side by side, with their flows, figures and measures.

What is shown is autoescaped text, or JSON inside two escaped elements; the Content-Security-Policy lets the page's own
scripts and style run, by hash, and nothing be loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from circuits.comparing.figures import sections
from circuits.comparing.page_content import page_content
from circuits.graphs.compare import Comparison, Pair
from circuits.graphs.compare_measures import MEASURES
from circuits.graphs.compare_words import pair_sentences
from circuits.graphs.lengths import ENDS
from circuits.graphs.page.bundle import digest, script
from circuits.graphs.page.packed import to_script_json
from circuits.graphs.store import replacing
from circuits.graphs.words import shown

SHARED_SCRIPTS = ("svg.js", "shapes.js")
"""Modules of the graph's page that this page uses, with what they import; no module may come twice."""
SCRIPTS = ("page_shared.js", "page_layout.js", "page_sides.js", "page_card.js", "page_flows.js", "page_matches.js",
           "page.js")
"""The page's own, joined into one module in this order."""
_ABOUT_SCORES = {
    "replacement": ("replacement", "influence of tokens over influence of tokens and errors; 1 is perfect"),
    "completeness": ("completeness", "1 minus the share of inputs from errors, weighted by influence; 1 is perfect"),
    "unexplored": ("unexplored", "share of influence at features whose rows were not computed"),
    "conservation": ("conservation", "largest relative difference between a target and the sum of its edges"),
    "active_features": ("features", "of the whole graph; of a graph that was pruned before, those it kept")}
"""Name and meaning of scores whose key does not tell."""


def write_page(found: Comparison, path: Path) -> None:
    """Write the page.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as beside:
        beside.write_bytes(render(found).encode("utf-8", "replace"))


def render(found: Comparison) -> str:
    """The page's HTML text."""
    from plotly.offline import get_plotlyjs  # a second, and 5 MB, that only pages need

    drawn = [sections(found, number) for number in range(len(found.pairs))]
    plots = {plot.name: {"data": plot.data, "layout": plot.layout}
             for pair in drawn for section in pair for plot in section.figures}
    style, own = _source("page.css"), "".join([*map(script, SHARED_SCRIPTS), *map(_source, SCRIPTS)])
    plotly, draw = get_plotlyjs(), files("circuits").joinpath("plot_page.js").read_text(encoding="utf-8")
    allowed = " ".join(f"'{digest(text)}'" for text in (plotly, draw, own))
    policy = (f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
              "base-uri 'none'; form-action 'none'")  # plotly styles its elements
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(figure=_figure, p=_p, shown=lambda text: shown(text, 200))
    return environment.from_string(_source("page.html")).render(
        policy=policy, style=Markup(style), script=Markup(own), plotly=Markup(plotly), draw=Markup(draw), found=found,
        names=[graph.name for graph in found.graphs], facts=_facts(found), scores=list(_scores(found)),
        pairs=[{"name": found.graphs[pair.second].name, "words": pair_sentences(found, pair), "sections": drawn[number],
                "measures": list(_measures(pair))} for number, pair in enumerate(found.pairs)],
        plots=Markup(to_script_json(plots)), content=Markup(to_script_json(page_content(found))))


def _facts(found: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of every graph (name, [(what, text)])."""
    facts = []
    for graph in found.graphs:
        header = graph.side.graph.header
        told = [("model", header.model), ("layers", str(header.n_layers)), ("transcoders", header.transcoders),
                ("kind", header.transcoder_kind.upper()), ("explains", ", ".join(
                    str(graph.side.graph.nodes.label[node]) for node in graph.side.graph.target_nodes[:4].tolist()))]
        if found.two_prompts:
            told.insert(0, ("prompt", header.prompt))
        facts.append((graph.name, [(what, shown(text, 120)) for what, text in told if text]))
    return facts


def _measures(pair: Pair) -> Iterator[dict[str, Any]]:
    for name, label in MEASURES.items():
        measure, unrelated = pair.measures[name], [x for x in pair.unrelated[name] if not math.isnan(x)]
        yield {"name": name, "label": label, "value": measure.value, "chance": measure.chance, "limit": measure.limit,
               "p": None if math.isnan(measure.chance) else measure.p,
               "verdict": "–" if math.isnan(measure.chance) else "yes" if measure.agrees else "no",
               "unrelated": unrelated, "rank": pair.beyond_unrelated(name)}


def _scores(found: Comparison) -> Iterator[tuple[str, str, str, list[Any]]]:
    """(key, label, meaning, value of every graph)"""
    sides = [graph.side for graph in found.graphs]
    layers = [side.graph.header.n_layers for side in sides]
    yield "layers", "layers", "", layers
    for name in sides[0].scores:
        label, meaning = _ABOUT_SCORES.get(name, (name.replace("_", " "), ""))
        yield name, label, meaning, [side.scores[name] for side in sides]
    for end in ENDS:
        yield f"ends.{end}", f"influence that ends at {end}", "", [side.lengths.share(end) for side in sides]
    for end in ENDS[:2]:
        yield f"steps.{end}", f"steps from {end}, mean", "", [side.lengths.mean(end) for side in sides]
    yield ("steps", "steps from tokens, mean, errors left out", "path lengths of graphs with unequal errors compare "
           "only without them", [side.without_errors.mean() for side in sides])
    yield ("steps.relative", "the same over layers", "", [side.without_errors.mean() / max(count, 1)
                                                          for side, count in zip(sides, layers, strict=True)])
    yield ("decided.half", "relative depth: half of the direct effects on the answer", "from there on their sum stays "
           "at half of its end or above", [graph.decided.half for graph in found.graphs])
    yield ("decided.most", "relative depth: 90% of the direct effects on the answer", "",
           [graph.decided.most for graph in found.graphs])
    readings = [graph.reading for graph in found.graphs]
    if any(reading is not None for reading in readings):
        for name, label in (("first", "the answer is the most probable token"),
                            ("half", "the answer has half of its final probability")):
            yield (f"reading.{name}", f"relative depth: {label}", "read from the residual stream (logit lens)",
                   [math.nan if reading is None else getattr(reading, name) for reading in readings])


def _figure(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
