"""What commands share: consoles, options, and checks and writing of output files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from circuits.errors import InputError

if TYPE_CHECKING:
    from circuits.gemma3 import Gemma3
    from circuits.graphs import AttributionGraph
    from circuits.transcoder import Transcoders

out, err = Console(), Console(stderr=True)

Model = Annotated[str, typer.Option(help="Alias (gemma-3-270m, small-world-s), hub id or folder.")]
TranscodersOption = Annotated[str, typer.Option("--transcoders",
                                                help="'bundled' (the model's own), hub path or folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
DeviceMap = Annotated[str | None, typer.Option(
    "--device-map", help="auto: layers over GPUs, memory and disk as they fit; disk: all layers on disk.")]
Memory = Annotated[str | None, typer.Option(help="Memory to stay within, such as 6GiB; by default what is free.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the reported numbers to this file.")]


def check_outputs(paths: Sequence[Path | None], graphs: Sequence[Path] = ()) -> None:
    """Fail before the work, not after it: a place that cannot be written, or a suffix that is no graph's.

    Args:
        paths: every file the command is to write; None for an option that was not given.
        graphs: those of them that take a graph.

    Raises:
        InputError: the first that cannot be written.
    """
    if graphs:
        from circuits.graphs.export import check_suffix

        for path in graphs:
            check_suffix(path)
    for path in (path for path in paths if path is not None):
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; give a file name")
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no folder {path.parent}; make it first")
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place") from None


def open_for(graph: AttributionGraph, model: str | None, transcoders: str | None, device: str,
             report: Callable[[str, int, int], None]) -> tuple[Gemma3, Transcoders]:
    """The model and the transcoders that ``graph`` was made with, where no others are named.

    Raises:
        InputError: the graph does not say, or nothing is there.
    """
    import circuits

    names = {"model": model or graph.header.model, "transcoders": transcoders or graph.header.transcoders}
    if unknown := [option for option, name in names.items() if not name]:
        raise InputError(f"the graph does not say which {unknown[0]} it was made with: give --{unknown[0]}")
    report("loading the model", 0, 1)
    opened = circuits.load_model(names["model"], device=device, progress=report)
    return opened, circuits.open_transcoders(names["transcoders"], device=opened.device, model=opened.name)


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    """Write ``values`` as JSON at once or not at all; numpy numbers and NaN are fine. Nothing without a path."""
    if path is None:
        return
    from circuits.graphs.store import replacing, to_json

    with replacing(path) as scratch:
        scratch.write_text(json.dumps(json.loads(to_json(values)), indent=1) + "\n")


@contextmanager
def progress() -> Iterator[Any]:
    """A progress bar on stderr; yields what library code calls with (stage, done, total)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  console=err, transient=True) as bar:
        task = bar.add_task("", total=None)
        stage = ""

        def report(name: str, done: int, total: int) -> None:
            nonlocal stage
            if name != stage:
                bar.reset(task, description=name, total=total)
                stage = name
            bar.update(task, completed=done, total=total)

        yield report
