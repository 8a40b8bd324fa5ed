"""The API of what a graph's model does: steering, heads of an edge, attention scores. The worker that traces answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request

from circuits.serve.api_graphs import MISSING, Answers, Name
from circuits.serve.model_schemas import MAX_TOP, Attention, EdgeParts, Steered, SteerRequest
from circuits.serve.question import Question, Report
from circuits.serve.refusal import Refusal
from circuits.serve.reruns import Subject
from circuits.serve.schemas import NodeId, Problem
from circuits.serve.site import Site, ThisSite

T = TypeVar("T")
router = APIRouter(prefix="/api/graphs/{name}", tags=["model"])
LOOK = 0.1
"""Seconds between looks whether the caller is still there."""
PATIENCE = 60.0
"""Seconds that a question waits for the trace that runs."""
WITH_MODEL: Answers = MISSING | {
    403: {"model": Problem, "description": "The server was started with --no-model."},
    429: {"model": Problem, "description": "A trace runs for longer than a minute, or eight questions wait already."}}
Position = Annotated[int, Query(ge=0, lt=2**31)]


@router.post("/steer", response_description="Predicted beside measured.", responses=WITH_MODEL)
async def steer(name: Name, asked: SteerRequest, request: Request, site: ThisSite) -> Steered:
    """Change nodes of a graph together: what the graph predicts, what the model does, and how its text goes on. The
    graph must be of the server's model and transcoders. A caller that goes away ends it."""
    def work(subject: Subject, report: Report) -> Steered:
        from circuits.serve import steering

        return steering.steer(subject, asked, report)

    return await _answer(site, name, request, work)


@router.get("/heads", response_description="Every head's part.", responses=WITH_MODEL)
async def read_heads(name: Name, request: Request, site: ThisSite,
                     source: Annotated[NodeId, Query(description="Id of the edge's source.")],
                     target: Annotated[NodeId, Query(description="Id of its target.")]) -> EdgeParts:
    """The attention heads that carry an edge of a graph."""
    def work(subject: Subject, report: Report) -> EdgeParts:
        from circuits.serve import attending

        return attending.edge_parts(subject, source, target)

    return await _answer(site, name, request, work)


@router.get("/attention", response_description="The score and its parts.", responses=WITH_MODEL)
async def read_attention(name: Name, request: Request, site: ThisSite,
                         layer: Annotated[Position, Query(description="Of the head.")],
                         head: Annotated[Position, Query(description="Number of the query head in its layer.")],
                         query: Annotated[Position, Query(description="Position that looks.")],
                         key: Annotated[Position, Query(description="Position that is looked at.")],
                         versus: Annotated[Position | None, Query(description="Another key: why the one and not this."
                                                                  )] = None,
                         top: Annotated[int, Query(ge=1, le=MAX_TOP, description="How many pairs to list.")] = 20
                         ) -> Attention:
    """Why a head looks at a token: its attention score as pairs of components, and what it gives to every key."""
    def work(subject: Subject, report: Report) -> Attention:
        from circuits.serve import attending

        return attending.attention(subject, layer, head, query, key, versus, top)

    return await _answer(site, name, request, work)


async def _answer(site: Site, name: str, request: Request, work: Callable[[Subject, Report], T]) -> T:
    """What ``work`` makes of a graph in the worker's thread.

    Raises:
        Refusal: no model (403), no such graph (404), too long a queue (429), the server is closing (503), or the
            caller is gone.
        CircuitsError: as ``work`` does.
    """
    jobs, reruns = site.queue(), site.reruns
    assert reruns is not None
    site.folder.version(name)  # what is not there need not wait
    question = Question(lambda report: work(reruns.of(name, report), report))
    jobs.ask(question)
    answer = asyncio.wrap_future(question.answer)
    waited = 0.0
    try:
        while not (await asyncio.wait([answer], timeout=LOOK))[0]:
            waited += LOOK
            if site.closing:
                raise Refusal(503, "the server is closing: start it again")
            if await request.is_disconnected():
                raise Refusal(408, "the caller is gone")
            if waited > PATIENCE and not question.answer.running():
                raise Refusal(429, "a trace is running, and has been for long: try again when it is done, or cancel it")
        return answer.result()
    except MemoryError:
        raise Refusal(503, "the memory is full: ask for less, or close other programs") from None
    finally:
        jobs.drop(question)
        answer.cancel()
