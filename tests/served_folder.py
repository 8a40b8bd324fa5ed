"""A server of graphs on a real socket for tests, and requests sent to it exactly as written."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from test_prompt import write_tokenizer
from tiny_models import text_folder
from transcoder_folders import dictionary, gemma_scope_clt

from circuits.serve.server import Server, listen
from circuits.serve.site import Site
from circuits.serve.tracer import Source


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        """The one sentence of an error."""
        return self.json()["detail"]


class Client:
    """Sends requests to a port of this machine; nothing in a path or header is tidied up."""

    def __init__(self, port: int):
        self.port = port
        self.origin = f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, body: bytes | str | None = None, **headers: str) -> Answer:
        """Header names are given with _ for -. A Host that is given replaces the true one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body.encode() if isinstance(body, str) else body,
                               {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def send(self, method: str, path: str, value: Any, **headers: str) -> Answer:
        return self.ask(method, path, json.dumps(value), Content_Type="application/json", **headers)

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """The data of a stream's events, until the server ends it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.getheader("content-type", "").startswith("text/event-stream")
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        finally:
            connection.close()


def tiny_source(root: Path) -> Source:
    """A tiny random model with a tokenizer that knows "paris", "x" and "mo", and transcoders for it."""
    model = text_folder(root / "model")
    write_tokenizer(model)
    made = dictionary(span=4, n_layers=4, features=20, d_model=32)
    for tensor in [*made.w_dec, *made.b_dec]:
        tensor *= 0.1
    return Source(str(model), gemma_scope_clt(root, made), "cpu")


@contextmanager
def served(site: Site, host: str = "127.0.0.1") -> Iterator[Client]:
    """The site on a free port; at the end it is closed as by Ctrl-C, and must be gone within ten seconds."""
    opened = listen("127.0.0.1", 0)
    server = Server(site, host)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        assert thread.is_alive(), "the server ended while it started"
        time.sleep(0.01)
    try:
        yield Client(opened.getsockname()[1])
    finally:
        server.handle_exit(signal.SIGINT, None)
        thread.join(10)
        assert not thread.is_alive(), "the server did not end"
