"""The pages: gallery, one graph, two graphs side by side, the API's description, and the files they need."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FunctionLoader, StrictUndefined

import circuits
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.page import render
from circuits.serve.jobs import MAX_WAITING
from circuits.serve.openapi import described
from circuits.serve.refusal import Refusal
from circuits.serve.schemas import MAX_PROMPT
from circuits.serve.site import Site, ThisSite
from circuits.serve.thumbnail import MAX_THUMBNAIL, draw

router = APIRouter(include_in_schema=False)
OWN_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
              "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
GRAPH_POLICY = "base-uri 'none'; form-action 'none'; object-src 'none'; frame-ancestors 'self'"
"""Beside the page's own, stricter one, which lets its inline scripts run by hash: a browser obeys both."""
STATIC = {"serve.css": "text/css", "gallery.js": "text/javascript", "cards.js": "text/javascript",
          "traces.js": "text/javascript", "compare.js": "text/javascript", "icon.svg": "image/svg+xml"}


@router.get("/")
def gallery(site: ThisSite) -> HTMLResponse:
    """The graphs come by the API: the page draws them, and again when they change."""
    return page("gallery.html", folder=site.folder.root.name, source=site.source, most_waiting=MAX_WAITING,
                max_prompt=MAX_PROMPT)


@router.get("/graphs/{name}")
def graph(name: str, site: ThisSite) -> HTMLResponse:
    """The interactive page, which may talk to this server."""
    loaded, version = site.folder.load(name)
    return HTMLResponse(graph_page(site, loaded, name, version).encode("utf-8", "replace"),
                        headers={"Content-Security-Policy": GRAPH_POLICY, "ETag": version})


@router.get("/graphs/{name}/thumbnail.svg")
def thumbnail(name: str, request: Request, site: ThisSite) -> Response:
    """A small picture, drawn once per version of the file."""
    version = site.folder.version(name)
    headers = {"ETag": version, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == version:
        return Response(status_code=304, headers=headers)
    if site.folder.path(name).stat().st_size > MAX_THUMBNAIL:
        raise Refusal(413, "the file is too large for a thumbnail")
    drawn = site.thumbnails.get(name, version, lambda: draw(site.folder.load(name)[0]))
    return Response(drawn, media_type="image/svg+xml", headers=headers)


@router.get("/compare")
def compare(site: ThisSite, left: str = "", right: str = "") -> HTMLResponse:
    """Two graphs in two frames."""
    graphs = [summary for summary in site.gallery.list()[0] if summary.page]
    sides = [("left", "Left", left), ("right", "Right", right)]
    names = {summary.name for summary in graphs}
    missing = [name for _, _, name in sides if name and name not in names]
    if missing:
        raise Refusal(404, f"there is no graph {missing[0][:80]!r} in this folder that can be shown")
    return page("compare.html", graphs=graphs, sides=sides, address=lambda name: f"/graphs/{quote(name, safe='')}")


@router.get("/api")
def api(request: Request) -> HTMLResponse:
    """The endpoints, from the OpenAPI document."""
    return page("api.html", endpoints=described(request.app.openapi()))


@router.get("/static/{file}")
def static(file: str) -> Response:
    """Files of this package that are named above, and the page's text.js."""
    if file == "text.js":
        return Response(_source("circuits.graphs.page", file), media_type="text/javascript")
    if file not in STATIC:
        raise Refusal(404, "there is no such file")
    return Response(_source(f"{__package__}.page", file), media_type=STATIC[file])


@router.get("/favicon.ico")
def icon() -> Response:
    """Browsers ask for it whatever the page says."""
    return static("icon.svg")


def graph_page(site: Site, graph: AttributionGraph, name: str, version: str) -> str:
    """The interactive page with what it needs to talk to this server."""
    address = f"/api/graphs/{quote(name, safe='')}"
    live = {"name": name, "etag": version, "gallery": "/", "annotations": f"{address}/annotations",
            "trace": "/api/traces" if site.jobs is not None else None}
    if site.reruns is not None:
        live |= {what: f"{address}/{what}" for what in ("steer", "heads", "attention")}
    return render(graph, live=live)


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """One of this package's templates; every value in it is escaped."""
    text = _environment().get_template(template).render(version=circuits.__version__, **values)
    return HTMLResponse(text.encode("utf-8", "replace"), status, {"Content-Security-Policy": OWN_POLICY})


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                       loader=FunctionLoader(lambda name: _source(f"{__package__}.page", name)))


@cache
def _source(package: str, name: str) -> str:
    parent, _, folder = package.rpartition(".")
    return files(parent).joinpath(folder, name).read_text(encoding="utf-8")
