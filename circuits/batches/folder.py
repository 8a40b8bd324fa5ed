"""The folder of a batch: what made it, the graphs, and a row of measures for every prompt that was traced.

``batch.json`` says with which settings and versions all of it was made. A row is written after its graph, each at once
or not at all, so a row whose graph is there says that its prompt is done.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import circuits
from circuits.batches.prompts import ASKED, Prompt
from circuits.batches.settings import BatchSettings
from circuits.errors import FormatError, InputError
from circuits.graphs.store import replacing, to_json

FORMAT = "circuits.batch"
FORMAT_VERSION = 1
SUBFOLDERS = ("graphs", "rows", "thumbnails", "pages")


class BatchFolder:
    """
    Args:
        root: made when absent.

    Raises:
        InputError: it cannot be made or written.
    """

    def __init__(self, root: Path):
        self.root = root
        try:
            for name in SUBFOLDERS:
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {root}: {error.strerror or error}; name a folder that can be made or is "
                             "there") from None

    def graph(self, prompt_id: str) -> Path:
        return self.root / "graphs" / f"{prompt_id}.safetensors"

    def thumbnail(self, prompt_id: str) -> Path:
        return self.root / "thumbnails" / f"{prompt_id}.svg"

    def page(self, prompt_id: str) -> Path:
        return self.root / "pages" / f"{prompt_id}.html"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While open, no other batch works in this folder. What killed ones left half written is removed.

        Raises:
            InputError: another one does, or the folder cannot be written.
        """
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another batch works in {self.root}: wait for it, or name another folder") from None
        except OSError as error:
            raise InputError(f"cannot write {self.root}: {error.strerror or error}") from None
        try:
            for leftover in self.root.rglob(".*.part"):
                leftover.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def begin(self, settings: BatchSettings, threads: int) -> BatchSettings:
        """``settings`` with a number of threads: its own, else that of the folder, else ``threads``. Notes them in
        ``batch.json``, or where there are rows holds them against it.

        Raises:
            InputError: the folder was begun with other settings or versions; the message says which.
            FormatError: ``batch.json`` is not what its name says.
        """
        path = self.root / "batch.json"
        before = self._read(path)
        if before is None or not any((self.root / "rows").glob("*.json")):
            settings = replace(settings, threads=settings.threads or threads)
            _write(path, _description(settings), indent=1)
            return settings
        if before.get("format") != FORMAT or before.get("format_version") != FORMAT_VERSION or not isinstance(
                before.get("settings"), dict):
            raise FormatError(f"{path} is not of a batch that this program reads: name another folder")
        settings = replace(settings, threads=settings.threads or before["settings"].get("threads") or threads)
        if different := _differences(before, _description(settings)):
            raise InputError(f"{self.root} was begun with other settings: {'; '.join(different)}. Name another folder, "
                             "or give the same again")
        return settings

    def row(self, prompt_id: str) -> dict[str, Any] | None:
        """What is known of a prompt; None: it was never traced to an end.

        Raises:
            FormatError: the file is damaged.
        """
        path = self.root / "rows" / f"{prompt_id}.json"
        row = self._read(path)
        if row is not None and not {"id", "error", "attempts", *ASKED} <= set(row):
            raise FormatError(f"{path} is not a row of a batch: remove it, and the prompt is traced again")
        return row

    def write_row(self, row: dict[str, Any]) -> None:
        """Note what is known of the prompt ``row["id"]``; numbers that are not finite become null.

        Raises:
            InputError: the file cannot be written.
        """
        _write(self.root / "rows" / f"{row['id']}.json", _finite(row))

    def pending(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, int]]:
        """Prompts that have no graph yet, each with how many attempts have failed.

        Raises:
            InputError: a prompt is another one than that traced under its id.
            FormatError: a damaged row.
        """
        waiting = []
        for prompt in prompts:
            row = self.row(prompt.id)
            if row is None or row["error"] is not None or not self.graph(prompt.id).is_file():
                waiting.append((prompt, 0 if row is None or row["error"] is None else int(row["attempts"])))
                continue
            before = {name: row[name] for name in ASKED}
            if different := _listed(before, prompt.asked()):
                raise InputError(f"prompt {prompt.id!r} is not the one that was traced into {self.root}: "
                                 f"{'; '.join(different)}. Give it another id, or remove its file in rows")
        return waiting

    def summarise(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The rows of ``prompts`` in their order, with the families and extras that they have now; written as
        ``summary.jsonl``.

        Raises:
            InputError: the file cannot be written.
            FormatError: a damaged row.
        """
        found = ((prompt, self.row(prompt.id)) for prompt in prompts)
        rows = [row | {"family": prompt.family, "extra": prompt.extra} for prompt, row in found if row is not None]
        with replacing(self.root / "summary.jsonl") as beside:
            beside.write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
        return rows

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path} is damaged ({error}): remove it") from None
        if not isinstance(values, dict):
            raise FormatError(f"{path} is damaged (a {type(values).__name__}, not an object): remove it")
        return values


def _write(path: Path, values: dict[str, Any], indent: int | None = None) -> None:
    with replacing(path) as beside:
        text = to_json(values)
        beside.write_text((text if indent is None else json.dumps(json.loads(text), indent=indent)) + "\n",
                          encoding="utf-8")


def _description(settings: BatchSettings) -> dict[str, Any]:
    """What ``batch.json`` holds."""
    import torch

    return {"format": FORMAT, "format_version": FORMAT_VERSION,
            "versions": {"gemma-circuits": circuits.__version__, "torch": torch.__version__},
            "settings": settings.as_dict()}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    versions = before.get("versions")
    return (_listed(versions if isinstance(versions, dict) else {}, now["versions"])
            + _listed(before["settings"], now["settings"]))


def _listed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Every value that differs: its name, what it was and what it is."""
    return [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in {**before, **now}
            if before.get(name) != now.get(name)]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
