"""The application: routes, errors as one sentence, the worker's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import circuits
from circuits.errors import CircuitsError
from circuits.serve import api_graphs, api_steer, api_traces, pages
from circuits.serve.guard import Guard
from circuits.serve.refusal import Refusal, sentence
from circuits.serve.site import Site

DESCRIPTION = """Attribution graphs of one folder, traces of new prompts, and what changing a graph's nodes does.

Requests of other sites' pages are refused; bodies are JSON. Every error is {"detail": one sentence}."""


def create_app(site: Site, host: str = "127.0.0.1") -> Guard:
    """The application behind its guard.

    Args:
        host: the address it is served at; see :class:`Guard`.
    """
    app = FastAPI(title="gemma-circuits", version=circuits.__version__, description=DESCRIPTION, lifespan=_life,
                  openapi_url="/api/openapi.json", docs_url=None, redoc_url=None,
                  redirect_slashes=False)
    app.state.site = site
    for router in (api_graphs.router, api_steer.router, api_traces.router, pages.router):
        app.include_router(router)
    app.add_exception_handler(CircuitsError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)
    return Guard(app, host)


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    site: Site = app.state.site
    if site.jobs is not None:
        site.jobs.start()
    yield
    site.closing = True
    if site.jobs is not None:
        await asyncio.to_thread(site.jobs.close)


async def _refused(request: Request, error: Exception) -> Response:
    return _answer(request, error.status if isinstance(error, Refusal) else 422, sentence(error))


async def _invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong, by the name of its field; what came is not repeated, it may be anything."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    where = ".".join(str(part)[:100] for part in first["loc"] if part not in ("body", "query", "header", "path"))
    said = str(first["msg"])
    return _answer(request, 422, f"{where or 'the body'}: {said[:1].lower()}{said[1:]}")


async def _http(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: no such page, or another method."""
    assert isinstance(error, HTTPException)
    said = "there is nothing at this address" if error.status_code == 404 else str(error.detail)
    return _answer(request, error.status_code, said, dict(error.headers or {}))


async def _broken(request: Request, error: Exception) -> Response:
    """What went wrong stands in the server's terminal, not here: it may name this machine's folders."""
    return _answer(request, 500, f"internal error ({type(error).__name__}): this is a bug; report it with what the "
                   "server's terminal says")


def _answer(request: Request, status: int, said: str, headers: dict[str, str] | None = None) -> Response:
    """An error as JSON for programs, as a page for people."""
    said = said.encode("utf-8", "replace").decode()
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": said}, status, headers)
    return pages.page("error.html", status, said=said)
