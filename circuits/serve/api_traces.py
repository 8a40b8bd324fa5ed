"""The API of traces: ask for one, follow it, cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from fastapi.responses import StreamingResponse

from circuits.serve.jobs import Job, Jobs
from circuits.serve.schemas import Problem, TraceList, TraceRequest, TraceState
from circuits.serve.site import Site, ThisSite

router = APIRouter(prefix="/api/traces", tags=["traces"])
LOOK = 0.1
"""Seconds between looks at a trace that is followed: progress comes at most this often."""
QUIET = 15.0
"""Seconds after which a stream without news says that it is still there."""
Id = Annotated[str, Path(description="Its id, from the answer to POST.")]
NO_MODEL: dict[int | str, dict[str, Any]] = {
    403: {"model": Problem, "description": "The server was started with --no-model."},
    422: {"model": Problem, "description": "A prompt or option that cannot be used."}}
MISSING = NO_MODEL | {404: {"model": Problem, "description": "There is no such trace."}}


@router.post("", status_code=202, response_description="It waits.", responses=NO_MODEL | {
    429: {"model": Problem, "description": "Eight traces wait already."}})
def start_trace(request: TraceRequest, response: Response, site: ThisSite) -> TraceState:
    """Trace a prompt when its turn comes; the graph is pruned and saved in the folder."""
    jobs = site.queue()
    if site.tracer is not None:
        site.tracer.check(request)
    job = jobs.submit(request)
    response.headers["Location"] = f"/api/traces/{job.id}"
    return jobs.look(job)[0]


@router.get("", response_description="The list.")
def list_traces(site: ThisSite) -> TraceList:
    """Traces of this server, newest first."""
    return TraceList(traces=site.jobs.all() if site.jobs is not None else [])


@router.get("/{trace_id}", response_description="The trace.", responses=MISSING)
def read_trace(trace_id: Id, site: ThisSite) -> TraceState:
    """Where a trace stands."""
    jobs = site.queue()
    return jobs.look(jobs.find(trace_id))[0]


@router.get("/{trace_id}/events", response_class=StreamingResponse, responses=MISSING | {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events named 'trace', "
          "whose data is a TraceState as JSON: one at once, one for each change, the last when the trace has ended."}})
def follow_trace(trace_id: Id, site: ThisSite) -> StreamingResponse:
    """Follow a trace by server-sent events, until it has ended."""
    jobs = site.queue()
    return StreamingResponse(_events(site, jobs, jobs.find(trace_id)), media_type="text/event-stream")


@router.delete("/{trace_id}", response_description="Where it stands now.", responses=MISSING)
def cancel_trace(trace_id: Id, site: ThisSite) -> TraceState:
    """Cancel a trace: at once where it waits; a running one ends at its next step. One that has ended
    stays as it is."""
    jobs = site.queue()
    job = jobs.find(trace_id)
    jobs.cancel(job)
    return jobs.look(job)[0]


async def _events(site: Site, jobs: Jobs, job: Job) -> AsyncIterator[str]:
    """Looked at, not pushed: the worker then never waits for a slow reader, and closing needs one flag."""
    seen, quiet = -1, 0.0
    while not site.closing:
        state, version = jobs.look(job)
        quiet += LOOK
        if version != seen:
            yield f"event: trace\ndata: {state.model_dump_json()}\n\n"
            seen, quiet = version, 0.0
        if state.finished is not None:
            return
        if quiet > QUIET:
            yield ": still here\n\n"
            quiet = 0.0
        await asyncio.sleep(LOOK)
