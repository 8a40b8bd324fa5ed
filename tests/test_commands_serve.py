"""``circuits serve``: what it prints, the mistakes it explains, and that Ctrl-C ends it at once and cleanly."""

import builtins
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from random_graphs import random_graph
from test_cli import one_clear_line, run  # noqa: F401


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is to fail must not serve."""
    monkeypatch.setattr("circuits.serve.server.serve", lambda *arguments: pytest.fail("it serves"))


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(("arguments", "message"), [
    (["--port", 70000], "port is 70000: expected 0 to 65535"), (["--max-tokens", 1], "max_tokens is 1"),
    (["--host", "203.0.113.7", "--port", 0], "cannot listen at 203.0.113.7 port 0"),
    (["--host", "no such host", "--port", 0], "cannot listen at no such host"),
    (["--memory", "lots", "--port", 0], "memory is 'lots'"), (["file", "--port", 0], "cannot use file as the folder")])
def test_bad_input(run: Callable, tmp_path: Path, arguments: list[object], message: str) -> None:  # noqa: F811
    (tmp_path / "file").write_text("")
    one_clear_line(run("serve", *arguments), message)


@pytest.mark.usefixtures("never")
def test_a_port_that_is_taken(run: Callable) -> None:  # noqa: F811
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        one_clear_line(run("serve", "--port", port), f"cannot listen at 127.0.0.1 port {port}: Address already in use")


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_without_the_extra(run: Callable, monkeypatch: pytest.MonkeyPatch, package: str) -> None:  # noqa: F811
    real = builtins.__import__

    def missing(name: str, *rest: object) -> object:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    one_clear_line(run("serve"), "needs the extra 'serve': pip install 'gemma-circuits[serve]'")


def test_what_it_serves(run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    seen = []
    monkeypatch.setattr("circuits.serve.server.serve", lambda site, host, opened: (seen.append(site), opened.close()))
    done = run("serve", "--port", 0)
    assert done.status == 0, done.err
    assert "serving graphs at http://127.0.0.1:" in done.out
    assert "warning" not in done.err
    assert (tmp_path / "graphs").is_dir()
    assert (seen[0].source.model, seen[0].source.max_tokens, seen[0].source.memory) == ("gemma-3-270m", 1024, None)
    done = run("serve", "other", "--port", 0, "--host", "0.0.0.0", "--model", "m", "--transcoders", "t", "--device",
               "cpu", "--memory", "2GiB", "--max-tokens", 50)
    assert "warning: anyone who can reach 0.0.0.0 can read, change and delete these graphs" in done.err
    source = seen[1].source
    assert (source.model, source.transcoders, source.device, source.memory, source.max_tokens) == (
        "m", "t", "cpu", 2 * 2**30, 50)
    run("serve", "--port", 0, "--no-model")
    assert (seen[2].source, seen[2].jobs) == (None, None)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it(tmp_path: Path, which: signal.Signals) -> None:
    """With a connection kept open, as browsers do."""
    random_graph().save(tmp_path / "a.safetensors")
    process = subprocess.Popen([sys.executable, "-m", "circuits", "serve", str(tmp_path), "--port", "0"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "COLUMNS": "500", "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split(" at ")[1].split()[0]
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{url}api/graphs", timeout=10) as answer:
                    assert b"a.safetensors" in answer.read()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        kept = socket.create_connection(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2])))
        kept.sendall(b"GET /api/graphs HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept.recv(100).startswith(b"HTTP/1.1 200")
        process.send_signal(which)
        out, err = process.communicate(timeout=20)
        kept.close()
    finally:
        process.kill()
    assert process.returncode == (0 if which == signal.SIGINT else -signal.SIGTERM)
    assert (out, err) == ("", "")
