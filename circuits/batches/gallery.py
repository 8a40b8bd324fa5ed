"""The gallery of a batch: one HTML file with a small picture and the measures of every prompt, and pages of graphs.

Text of prompts, tokens and errors is autoescaped; pictures are image files inside the page, in which nothing can run;
the Content-Security-Policy lets only the page's own script run, by hash, and nothing be loaded.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from importlib.resources import files
from statistics import fmean
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from circuits.batches.folder import BatchFolder
from circuits.batches.settings import BatchSettings
from circuits.graphs.page.bundle import digest
from circuits.graphs.store import replacing

if TYPE_CHECKING:
    from circuits.batches.task import Report

COLUMNS = (
    ("replacement", "replace\u00adment", "Replacement score: influence of tokens over influence of tokens and errors."),
    ("completeness", "complete\u00adness", "Completeness score: share of inputs that does not come from errors."),
    ("unexplored", "unex\u00adplored", "Share of influence at features whose rows were not computed."),
    ("conservation", "conser\u00advation", "Largest relative difference between a target and the sum of its edges."),
    ("n_tokens", "tokens", "Tokens of the prompt."),
    ("active_features", "active", "Features that fire on the prompt."),
    ("pruned_nodes", "nodes", "Nodes of the graph that is kept, and before pruning."),
    ("pruned_edges", "edges", "Edges of the graph that is kept, and before pruning."),
    ("seconds", "seconds", "Time for tracing and writing."))
"""Measures of a row, and how the table names them, with places to break the word, and explains them."""


def write_gallery(folder: BatchFolder, rows: Sequence[dict[str, Any]], settings: BatchSettings) -> None:
    """Write ``index.html`` for ``rows``.

    Raises:
        InputError: it cannot be written.
    """
    style, script = _source("gallery.css"), _source("gallery.js")
    policy = (f"default-src 'none'; script-src '{digest(script)}'; style-src '{digest(style)}'; img-src data:; "
              "base-uri 'none'; form-action 'none'")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    page = environment.from_string(_source("gallery.html")).render(
        policy=policy, style=Markup(style), script=Markup(script), columns=COLUMNS, facts=_facts(rows, settings),
        families=sorted({row["family"] for row in rows if row["family"] is not None}),
        answered=any(row["correct"] is not None for row in rows), settings=list(settings.as_dict().items()),
        rows=[row | _files(folder, row["id"]) for row in rows])
    with replacing(folder.root / "index.html") as beside:
        beside.write_bytes(page.encode("utf-8", "replace"))


def write_pages(folder: BatchFolder, rows: Sequence[dict[str, Any]], progress: Report) -> None:
    """Write the interactive page of every graph that has none, or an older one.

    Raises:
        InputError: a graph is too large for a page, or a file cannot be written.
        FormatError: a graph's file is damaged.
    """
    from circuits.graphs.export import read

    found = [row["id"] for row in rows if row["error"] is None]
    for done, prompt_id in enumerate(found):
        progress("pages", done, len(found))
        graph, page = folder.graph(prompt_id), folder.page(prompt_id)
        if not page.is_file() or page.stat().st_mtime_ns < graph.stat().st_mtime_ns:
            read(graph).to_html(page)


def mean(rows: Iterable[dict[str, Any]], name: str) -> float | None:
    """Of the rows that have this measure; None where none has."""
    values = [row[name] for row in rows if row[name] is not None]
    return fmean(values) if values else None


def _facts(rows: Sequence[dict[str, Any]], settings: BatchSettings) -> list[tuple[str, str]]:
    facts = [("model", settings.model), ("transcoders", settings.transcoders), ("prompts", str(len(rows)))]
    if failed := sum(row["error"] is not None for row in rows):
        facts.append(("failed", str(failed)))
    if (right := mean(rows, "correct")) is not None:
        facts.append(("answered right", f"{right:.0%}"))
    facts += [(f"mean {name}", f"{value:.3f}") for name in ("replacement", "completeness")
              if (value := mean(rows, name)) is not None]
    return [*facts, ("seconds", _number(sum(row["seconds"] or 0 for row in rows)))]


def _files(folder: BatchFolder, prompt_id: str) -> dict[str, str | None]:
    """A prompt's picture as a data address, and its page's place beside the gallery; None for what there is not."""
    picture, page = folder.thumbnail(prompt_id), folder.page(prompt_id)
    data = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else None
    return {"picture": None if data is None else f"data:image/svg+xml;base64,{data}",
            "page": f"pages/{page.name}" if page.is_file() else None}


def _number(value: float | None) -> str:
    """As it is read: a count with commas, a share with three decimals, what is tiny with its power of ten."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) > 1 else f"{value:.3f}"


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
