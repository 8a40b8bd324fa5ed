"""The one folder whose graphs are served: safe names, versions, and writing that never overwrites another graph."""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from threading import Lock

from circuits.errors import FormatError, InputError
from circuits.graphs import export
from circuits.graphs.graph import AttributionGraph
from circuits.serve.refusal import Refusal

SUFFIXES = (".safetensors", ".json")
NAME = re.compile(r"[^\W_][\w .,+=()@-]{0,150}\.(safetensors|json)")
"""Letters (of any script), digits and a few marks: nothing that a path, a URL or a shell reads as something else."""
MAX_OPEN = 256 * 2**20
"""Bytes of the largest native file that is read whole: to draw its page or to change its labels."""
MAX_JSON = 64 * 2**20
"""The same for JSON, which takes ten times its size in memory."""


class GraphFolder:
    """Graph files directly in ``root``; nothing else can be named.

    Raises:
        InputError: ``root`` is not a folder and cannot be made.
    """

    def __init__(self, root: Path):
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot use {root} as the folder of graphs: {error.strerror or error}; name a folder"
                             ) from error
        self.root = root.resolve()
        self._writing = Lock()
        self._reading = Lock()
        """One graph is read at a time: several large ones together could fill the memory."""

    def names(self) -> list[str]:
        """Names with a graph's suffix, last changed first; hidden files, which may be half written, are left out."""
        found = []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIXES) and not entry.name.startswith("."):
                    try:
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
                    except OSError:  # removed a moment ago
                        continue
        return [name for _, name in sorted(found, reverse=True)]

    def path(self, name: str) -> Path:
        """Where the graph ``name`` is, links followed.

        Raises:
            Refusal: 404; a name that cannot be a graph's, no such file, not a plain file, or a link out of the folder.
        """
        if not NAME.fullmatch(name):
            raise Refusal(404, f"{_shown(name)} cannot be served: names are letters, digits and . _ - , + = ( ) @ with "
                          ".safetensors or .json at the end; rename the file")
        try:
            target = (self.root / name).resolve(strict=True)
            plain = stat.S_ISREG(target.stat().st_mode)
        except (OSError, RuntimeError):  # RuntimeError: links that go round in circles, before Python 3.13
            raise Refusal(404, f"there is no graph {_shown(name)} in this folder") from None
        if target.parent != self.root:
            raise Refusal(404, f"{_shown(name)} is a link that leaves the folder: copy the file here instead")
        if not plain:
            raise Refusal(404, f"{_shown(name)} is not a plain file")
        return target

    def version(self, name: str) -> str:
        """An ETag: another one after every change. The inode is in it because writing replaces the file, so that two
        changes within one tick of the clock differ too."""
        found = self.path(name).stat()
        return f'"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"'

    def load(self, name: str) -> tuple[AttributionGraph, str]:
        """The graph and its version.

        Raises:
            Refusal: no such graph, too large to be read whole (413), or it changes all the time (409).
            FormatError: a damaged file.
        """
        for _ in range(3):
            path, before = self.path(name), self.version(name)
            if (reason := too_large(path)) is not None:
                raise Refusal(413, reason)
            with self._reading, naming_only(path):
                graph = export.read(path)
            if self.version(name) == before:
                return graph, before
        raise Refusal(409, f"{_shown(name)} changes while it is read: try again when it is written")

    def change(self, name: str, expected: str, edit: Callable[[AttributionGraph], AttributionGraph]) -> str:
        """Rewrite a graph as ``edit`` gives it back, at once or not at all; returns the new version.

        Args:
            expected: value of If-Match: versions that may be changed, or ``*``.

        Raises:
            Refusal: 412; the file is another version by now.
        """
        with self._writing:
            graph, version = self.load(name)
            self._match(name, expected, version)
            edited = edit(graph)
            path = self.path(name)
            with naming_only(path):
                export.write(edited, path)
            return self.version(name)

    def remove(self, name: str, expected: str | None = None) -> None:
        """Delete a graph; of a link, the link.

        Raises:
            Refusal: no such graph (404), it is another version by now (412), or the folder is read-only (403).
        """
        with self._writing:
            version = self.version(name)
            if expected is not None:
                self._match(name, expected, version)
            try:
                (self.root / name).unlink()
            except OSError as error:
                raise Refusal(403, f"cannot delete {_shown(name)}: {error.strerror or error}") from error

    def add(self, graph: AttributionGraph, title: str) -> str:
        """Save a new graph under a free name made of ``title``; returns the name.

        Raises:
            InputError: it cannot be written, or there are a thousand graphs of that name.
        """
        scratch = self.root / f".{token_hex(8)}.new"
        try:
            with naming_only(scratch):
                graph.save(scratch)
            return self._name_it(scratch, slug(title))
        finally:
            scratch.unlink(missing_ok=True)

    def _name_it(self, scratch: Path, stem: str) -> str:
        for number in range(1, 1000):
            name = f"{stem}.safetensors" if number == 1 else f"{stem}-{number}.safetensors"
            try:
                _move(scratch, self.root / name)
            except FileExistsError:
                continue
            except OSError as error:
                raise InputError(f"cannot write {name}: {error.strerror or error}") from error
            return name
        raise InputError(f"there are too many graphs named {stem}: give another name")

    def _match(self, name: str, expected: str, version: str) -> None:
        if expected.strip() != "*" and version not in [part.strip() for part in expected.split(",")]:
            raise Refusal(412, f"{_shown(name)} was changed by someone else: load it again, then make your change")


def too_large(path: Path) -> str | None:
    """Why a file is not read whole, or None."""
    size, most = path.stat().st_size, MAX_JSON if path.suffix == ".json" else MAX_OPEN
    if size <= most:
        return None
    return (f"{path.name} has {size / 2**20:,.0f} MiB, shown are files of at most {most / 2**20:,.0f} MiB: prune it "
            "(circuits trace without --no-prune, or graph.prune in Python)")


def slug(title: str) -> str:
    """At most 40 characters of ``title`` that a file's name may have: ``The capital of`` -> ``the-capital-of``."""
    plain = unicodedata.normalize("NFKC", title[:400]).casefold()
    words = [word for word in re.split(r"[\W_]+", plain) if word]
    made = ""
    for word in words:
        if made and len(made) + 1 + len(word) > 40:
            break
        made = f"{made}-{word}" if made else word[:40]
    return made or "graph"


@contextmanager
def naming_only(path: Path) -> Iterator[None]:
    """Errors inside the block name the file, but not where this machine keeps it."""
    try:
        yield
    except (InputError, FormatError) as error:
        raise type(error)(str(error).replace(str(path), path.name)) from error


def _move(scratch: Path, target: Path) -> None:
    """Rename without overwriting: a second name fails where one exists, a rename would replace it."""
    try:
        os.link(scratch, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        target.open("xb").close()  # a file system without links: the name is taken first, then filled
        os.replace(scratch, target)


def _shown(name: str) -> str:
    """A name in a message: what does not print as its escape, at most 80 characters."""
    return repr(name[:80])
