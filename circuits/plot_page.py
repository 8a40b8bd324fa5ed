"""Measures and figures as one HTML file with its own copy of plotly.js, which opens without a network.

What is shown is autoescaped text, or JSON inside one escaped element; the Content-Security-Policy lets the page's own
scripts run, by hash, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from circuits.graphs.page.packed import to_script_json
from circuits.graphs.store import replacing
from circuits.plots import Section


def write_plot_page(path: Path, *, title: str, facts: Iterable[tuple[str, str]], measured: str,
                    measures: Sequence[tuple[str, str, str]], sections: Sequence[Section],
                    settings: Sequence[tuple[str, str]] = ()) -> None:
    """Write the page; empty parts are left out.

    Args:
        facts: (name, value), beneath the title.
        measured: heading of ``measures``: (measure, value, meaning).
        settings: (name, value), at the end.

    Raises:
        InputError: the file cannot be written.
    """
    from plotly.offline import get_plotlyjs  # a second, and 5 MB, that only pages need

    plots = {plot.name: {"data": plot.data, "layout": plot.layout} for section in sections for plot in section.figures}
    plotly, script = get_plotlyjs(), _source("plot_page.js")
    policy = (f"default-src 'none'; script-src '{_digest(plotly)}' '{_digest(script)}'; style-src 'unsafe-inline'; "
              "img-src data: blob:; base-uri 'none'; form-action 'none'")
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    page = environment.from_string(_source("plot_page.html")).render(
        title=title, policy=policy, plotly=Markup(plotly), script=Markup(script), facts=facts, measured=measured,
        measures=measures, sections=sections, settings=settings, plots=Markup(to_script_json(plots)))
    with replacing(path) as beside:
        beside.write_bytes(page.encode("utf-8", "replace"))


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
