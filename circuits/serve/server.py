"""Listening, and ending cleanly: Ctrl-C stops streams, cancels the running trace and waits for the worker."""

from __future__ import annotations

import socket
from types import FrameType

import uvicorn

from circuits.errors import InputError
from circuits.serve.app import create_app
from circuits.serve.guard import is_everywhere
from circuits.serve.site import Site


class Server(uvicorn.Server):
    """uvicorn, which would wait for streams that never end by themselves: they are told when it is to end."""

    def __init__(self, site: Site, host: str):
        self.site = site
        super().__init__(uvicorn.Config(
            create_app(site, host), log_level="warning", access_log=False, ws="none", server_header=False,
            proxy_headers=False, lifespan="on", timeout_graceful_shutdown=5))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Inside a signal handler, so nothing here may wait for a lock."""
        self.site.closing = True
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at ``host``; port 0 takes any that is free.

    Raises:
        InputError: the address is not this machine's, or the port is taken or out of range.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"port is {port}: expected 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(128)
    except OSError as error:
        raise InputError(f"cannot listen at {host} port {port}: {error.strerror or error}; give another --host or "
                         "--port (0 takes any free port)") from error
    return opened


def address(host: str, opened: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    name = "127.0.0.1" if is_everywhere(host) else host
    return f"http://{f'[{name}]' if ':' in name else name}:{opened.getsockname()[1]}/"


def serve(site: Site, host: str, opened: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    try:
        Server(site, host).run(sockets=[opened])
    except KeyboardInterrupt:  # uvicorn raises it again once everything is closed
        pass
    finally:
        opened.close()
