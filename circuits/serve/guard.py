"""What every request must pass and every answer carries.

A server on this machine can be reached by any page that this machine's browser shows. So the Host header must be one of
ours (a foreign name that resolves to 127.0.0.1 is DNS rebinding), requests that a page of another origin makes are
refused (https://www.w3.org/TR/fetch-metadata/), and what changes something must be JSON, which another origin cannot
send without asking first.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 2**20
MAX_IMPORT = 64 * 2**20
MAX_DISCARDED = 2**30
PATIENCE = 1.0
"""Seconds without a byte after which no more of a refused body is waited for."""
IMPORT_PATH = "/api/graphs"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
HEADERS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin", "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store"}
"""Of every answer that does not set its own."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


class Guard:
    """Wraps the application.

    Args:
        host: the address the server listens on: the one that browsers may call it by, beside localhost. Of a server
            that listens on every address, any number and this machine's own name.
    """

    def __init__(self, app: App, host: str = "127.0.0.1"):
        self.app = app
        self._everywhere = is_everywhere(host)
        own = {_bracketed(host).lower()} if not self._everywhere else {socket.gethostname().lower(),
                                                                       socket.getfqdn().lower()}
        self._names = LOOPBACK | own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan; websockets are not spoken
            await self.app(scope, receive, send)
            return
        send = _with_headers(send)
        problem = self._problem(scope) or _body_problem(scope)
        body = await _read(receive, _most(scope)) if problem is None else None
        if body is None:
            await _discard(scope, receive)
            await _refuse(send, *(problem or (413, _too_long(scope))))
            return
        await self.app(scope, _replay(body, receive), send)

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 421, "this server answers only to its own address: open it as printed where it was started"
        origins = _values(scope, b"origin")
        if any(origin.lower() != f"{scope['scheme']}://{hosts[0].lower()}" for origin in origins):
            return 403, "requests of other sites' pages are refused"
        site = _values(scope, b"sec-fetch-site")
        if any(value not in ("same-origin", "none") for value in site) and not _is_visit(scope):
            return 403, "requests of other sites' pages are refused"
        return None

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host.lower())
        if match is None:
            return False
        return match[1] in self._names or (self._everywhere and _is_address(match[1]))


def is_everywhere(host: str) -> bool:
    """Whether ``host`` means every address of this machine."""
    return host in ("", "0.0.0.0", "::")


def _is_visit(scope: Scope) -> bool:
    """Someone follows a link of another site to one of our pages: harmless, for that site learns nothing of it."""
    return (scope["method"] == "GET" and not scope["path"].startswith("/api/")
            and _values(scope, b"sec-fetch-mode") == ["navigate"] and _values(scope, b"sec-fetch-dest") == ["document"])


def _body_problem(scope: Scope) -> tuple[int, str] | None:
    if scope["method"] in ("GET", "HEAD", "DELETE"):
        return None
    kinds = [value.partition(";")[0].strip().lower() for value in _values(scope, b"content-type")]
    if kinds != ["application/json"]:
        return 415, "expected a body of Content-Type application/json"
    lengths = _values(scope, b"content-length")
    if any(not re.fullmatch("[0-9]{1,15}", length) or int(length) > _most(scope) for length in lengths):
        return 413, _too_long(scope)
    return None


def _most(scope: Scope) -> int:
    return MAX_IMPORT if scope["method"] == "POST" and scope["path"] == IMPORT_PATH else MAX_BODY


def _too_long(scope: Scope) -> str:
    return f"the body is too long: at most {_most(scope) // 2**20} MiB are taken here"


async def _read(receive: Receive, most: int) -> bytes | None:
    """The whole body; None if it is longer than ``most``, or the caller is gone."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


async def _discard(scope: Scope, receive: Receive) -> None:
    """Read what is left of a body that is refused: a caller that is still sending would see a broken connection, and
    not the reason. Not for ever, and not of callers that ask before they send."""
    left = MAX_DISCARDED
    while left > 0 and not _values(scope, b"expect"):
        try:
            message = await asyncio.wait_for(receive(), PATIENCE)
        except TimeoutError:
            return
        left -= len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then what else comes: that the caller is gone."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            present = {name.lower() for name, _ in headers}
            headers += [(name.encode(), value.encode()) for name, value in HEADERS.items()
                        if name.encode() not in present]
            message = {**message, "headers": headers}
        await send(message)

    return sending


async def _refuse(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    await send({"type": "http.response.start", "status": status,
                "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                            (b"connection", b"close")]})  # some of the body may not have been read
    await send({"type": "http.response.body", "body": body})


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
