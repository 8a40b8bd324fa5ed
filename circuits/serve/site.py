"""What the routes share: the folder, the gallery, the queue. One per application."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from circuits.serve.cache import FileCache
from circuits.serve.folder import GraphFolder
from circuits.serve.jobs import Jobs
from circuits.serve.refusal import Refusal
from circuits.serve.reruns import Reruns
from circuits.serve.summary import Gallery
from circuits.serve.tracer import Source, Tracer


@dataclass
class Site:
    """``source`` is None where the server has no model."""

    folder: GraphFolder
    source: Source | None = None
    gallery: Gallery = field(init=False)
    tracer: Tracer | None = field(init=False)
    jobs: Jobs | None = field(init=False)
    reruns: Reruns | None = field(init=False)
    thumbnails: FileCache[str] = field(init=False)
    closing: bool = False
    """The server is to end: streams stop. A plain flag, for it is set inside a signal handler."""

    def __post_init__(self) -> None:
        self.gallery = Gallery(self.folder)
        self.tracer = None if self.source is None else Tracer(self.folder, self.source)
        self.jobs = None if self.tracer is None else Jobs(self.tracer)
        self.reruns = None if self.tracer is None else Reruns(self.folder, self.tracer)
        self.thumbnails = FileCache(500)

    def queue(self) -> Jobs:
        """Raises:
            Refusal: 403; the server has no model.
        """
        if self.jobs is None:
            raise Refusal(403, "this server shows saved graphs only: start it without --no-model to trace and steer")
        return self.jobs


def _site(request: Request) -> Site:
    return request.app.state.site


ThisSite = Annotated[Site, Depends(_site)]
