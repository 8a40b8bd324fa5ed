"""The API of saved graphs: list, read, annotate, import, delete."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse

from circuits.graphs import neuronpedia
from circuits.graphs.graph import AttributionGraph
from circuits.serve.annotations import annotated, check_ours
from circuits.serve.folder import naming_only
from circuits.serve.refusal import Refusal
from circuits.serve.schemas import Annotations, GraphDetails, GraphList, Problem, Saved
from circuits.serve.site import Site, ThisSite

router = APIRouter(prefix="/api/graphs", tags=["graphs"])
IfMatch = Annotated[str | None, Header(description="The ETag of the version that is meant, or *.")]
Name = Annotated[str, PathParameter(description="Name of the file, with its suffix.")]
Answers = dict[int | str, dict[str, Any]]
UNREADABLE: Answers = {422: {"model": Problem, "description": "A damaged file, or a request that does not fit."}}
MISSING: Answers = UNREADABLE | {404: {"model": Problem, "description": "There is no such graph in the folder."}}
CHANGED: Answers = {412: {"model": Problem, "description": "The graph was changed since: load it again."}}


@router.get("", response_description="The list.")
def list_graphs(site: ThisSite) -> GraphList:
    """The graphs of the folder, last changed first. Damaged files are listed with their error."""
    graphs, left_out = site.gallery.list()
    return GraphList(graphs=graphs, left_out=left_out)


@router.post("", status_code=201, response_description="Saved.", responses=UNREADABLE, openapi_extra={"requestBody": {
    "required": True, "content": {"application/json": {"schema": {"type": "object"}}}}})
async def import_graph(request: Request, response: Response, site: ThisSite, name: Annotated[str, Query(
        max_length=80, description="Name of the new file, without suffix; by default made of the prompt.")] = ""
        ) -> Saved:
    """Save attribution-graph JSON in Neuronpedia's schema (ours, Neuronpedia's or circuit-tracer's), at most 64 MiB,
    as a new graph of the folder."""
    body = await request.body()
    made = await asyncio.to_thread(_import, site, body, name)
    response.headers["Location"], response.headers["ETag"] = f"/api/graphs/{quote(made.name)}", made.etag
    return made


@router.get("/{name}", response_description="The numbers; of a damaged file its error.", responses=MISSING)
def read_graph(name: Name, response: Response, site: ThisSite) -> GraphDetails:
    """A graph's numbers and header; not its nodes and edges, which are in its file."""
    details = site.gallery.details(name)
    response.headers["ETag"] = details.etag
    return details


@router.delete("/{name}", status_code=204, response_description="Deleted.", responses=MISSING | CHANGED)
def delete_graph(name: Name, site: ThisSite, if_match: IfMatch = None) -> None:
    """Delete the file. There is no way back."""
    site.folder.remove(name, if_match)


@router.get("/{name}/file", response_class=FileResponse, response_description="The bytes.", responses=MISSING)
def download_graph(name: Name, site: ThisSite) -> FileResponse:
    """The file itself."""
    path = site.folder.path(name)
    kind = "application/json" if path.suffix == ".json" else "application/octet-stream"
    return FileResponse(path, media_type=kind, filename=name, headers={"ETag": site.folder.version(name)})


@router.get("/{name}/annotations", response_description="What the file holds.", responses=MISSING)
def read_annotations(name: Name, response: Response, site: ThisSite) -> Annotations:
    """Pins and supernodes. ``labels`` is empty: the nodes' labels are in the graph."""
    details = site.gallery.details(name)
    if details.error is not None:
        raise Refusal(422, details.error)
    response.headers["ETag"] = details.etag
    header = details.header  # as it stands in the file, which may hold more than the limits of a request
    return Annotations.model_construct(pinned=header["pinned"], supernodes=header["supernodes"], labels={})


@router.put("/{name}/annotations", response_description="Saved; with the new ETag.", responses=MISSING | CHANGED | {
    409: {"model": Problem, "description": "A JSON file of another program, whose fields would be lost."},
    428: {"model": Problem, "description": "If-Match is missing."}})
def write_annotations(name: Name, given: Annotated[Annotations, Body()], response: Response, site: ThisSite,
                      if_match: IfMatch = None) -> Saved:
    """Replace the pins and supernodes and set labels, in the graph's file. If-Match must carry the ETag of the version
    that was read, so that two readers do not undo each other's work."""
    if if_match is None:
        raise Refusal(428, "expected the header If-Match with the ETag of the graph that was read, or *")
    path = site.folder.path(name)

    def edit(graph: AttributionGraph) -> AttributionGraph:
        check_ours(path)
        return annotated(graph, given)

    etag = site.folder.change(name, if_match, edit)
    response.headers["ETag"] = etag
    return Saved(name=name, etag=etag)


def _import(site: Site, body: bytes, name: str) -> Saved:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "the imported file"
        path.write_bytes(body)
        with naming_only(path):
            graph = neuronpedia.read(path)
    made = site.folder.add(graph, name or graph.header.prompt)
    return Saved(name=made, etag=site.folder.version(made))
