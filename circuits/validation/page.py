"""A validation as one HTML file with its own copy of plotly.js, which opens without a network.

What comes from the graph is autoescaped text, or JSON inside one escaped element; the Content-Security-Policy lets the
page's own scripts run, by hash, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from circuits.graphs.page.packed import to_script_json
from circuits.graphs.store import replacing
from circuits.validation.figures import sections
from circuits.validation.tables import MEASURES
from circuits.validation.validate import Validation


def write_page(report: Validation, path: Path) -> None:
    """Write the page.

    Raises:
        InputError: the file cannot be written.
    """
    from plotly.offline import get_plotlyjs  # 5 MB that only the page needs

    drawn = sections(report)
    plots = {plot.name: {"data": plot.data, "layout": plot.layout} for section in drawn for plot in section.figures}
    plotly = get_plotlyjs()
    script = files("circuits.training").joinpath("report.js").read_text(encoding="utf-8")
    policy = (f"default-src 'none'; script-src '{_digest(plotly)}' '{_digest(script)}'; style-src 'unsafe-inline'; "
              "img-src data: blob:; base-uri 'none'; form-action 'none'")
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        title=f"Validation: {report.graph.header.prompt}", policy=policy, plotly=Markup(plotly), script=Markup(script),
        facts=_facts(report), measures=list(_measures(report)), sections=drawn, plots=Markup(to_script_json(plots)))
    with replacing(path) as beside:
        beside.write_bytes(page.encode("utf-8", "replace"))


def _facts(report: Validation) -> list[tuple[str, str]]:
    header = report.graph.header
    pruned = ", of the graph pruned for this" if report.pruned else ""
    return [("model", header.model), ("transcoders", header.transcoders),
            ("features ablated", f"{len(report.ablations.nodes):,}{pruned}"), ("seed", str(report.seed)),
            ("made", report.created)]


def _measures(report: Validation) -> Iterator[tuple[str, str, str]]:
    """(what, value, note)"""
    frozen, found = report.frozen, report.correlations
    yield ("All else frozen: largest relative error of an edge", f"{frozen.max_relative_error:.1e}",
           f"{frozen.n_nodes:,} nodes doubled, {frozen.n_edges:,} edges compared. This tests the tracer; it must be "
           "below 1e-4 in float32.")
    for key, meaning in MEASURES.items():
        if (value := found[key]) is not None:
            yield meaning[:1].upper() + meaning[1:], f"{value:.3f}", f"{key} in the JSON"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
