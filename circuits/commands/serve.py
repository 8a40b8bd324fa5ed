"""``circuits serve``: a folder of graphs in the browser. Heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import Device, Memory, Model, TranscodersOption, err, out
from circuits.errors import InputError


def serve(
    folder: Annotated[Path, typer.Argument(help="Folder of .safetensors and .json graphs; made if it is not there.")
                      ] = Path("graphs"),
    model: Model = "gemma-3-270m",
    transcoders: TranscodersOption = "bundled",
    device: Device = "auto",
    memory: Memory = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes any that is free.")] = 8010,
    max_tokens: Annotated[int, typer.Option(help="Longest prompt that is traced.")] = 1024,
    no_model: Annotated[bool, typer.Option("--no-model", help="Show saved graphs only.")] = False,
) -> None:
    """Show a folder's graphs in the browser, and trace new prompts there."""
    _require_extra()
    from circuits.serve import server
    from circuits.serve.folder import GraphFolder
    from circuits.serve.guard import LOOPBACK
    from circuits.serve.site import Site
    from circuits.serve.tracer import Source

    if max_tokens < 2:
        raise InputError(f"max_tokens is {max_tokens}: expected at least 2")
    opened = server.listen(host, port)
    site = Site(GraphFolder(folder), None if no_model else Source(
        model, transcoders, device, _bytes(memory), max_tokens))
    if host not in LOOPBACK and host != "::1":
        _warn(f"anyone who can reach {host or 'this machine'} can read, change and delete these graphs and trace "
              "prompts; there is no password")
    out.print(f"serving {folder} at {server.address(host, opened)} (Ctrl-C stops)", markup=False, highlight=False,
              soft_wrap=True)
    server.serve(site, host, opened)


def _warn(text: str) -> None:
    err.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _bytes(memory: str | None) -> int | None:
    if memory is None:
        return None
    from circuits.planning import parse_memory  # loads torch, which takes seconds: not for every start

    return parse_memory(memory)


def _require_extra() -> None:
    """Raises:
        InputError: FastAPI or uvicorn is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as missing:
        raise InputError(f"circuits serve needs the extra 'serve': pip install 'gemma-circuits[serve]' ({missing})"
                         ) from missing
