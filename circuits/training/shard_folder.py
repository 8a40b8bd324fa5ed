"""Numbered shard files in one folder, shared by processes: locks, whole files or none, and a disk quota."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from circuits.errors import InputError
from circuits.hub import first_line, is_disk_full

LOCKS = 64
"""Lock files in a folder: shards share them, so that there are never more however many shards come and go."""


class ShardFolder:
    """Files ``shard_00000.safetensors`` and so on.

    A shard is written as ``shard_00000.writing``, then renamed. What a killed process leaves is one such file, which
    the next write of any shard removes.
    """

    def __init__(self, folder: Path, shard_bytes: int, limit: int | None):
        """
        Args:
            folder: made when absent.
            shard_bytes: about what a file takes, for messages.
            limit: files there may be at a time, at least 1; None: any number.

        Raises:
            InputError: the folder cannot be written.
        """
        self.folder, self.shard_bytes, self.limit = folder, shard_bytes, limit
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror or error}") from None

    def path(self, index: int) -> Path:
        """Where shard ``index`` is, or would be."""
        if index < 0:
            raise InputError(f"shard {index} was asked for: expected 0 or more")
        return self.folder / f"shard_{index:05d}.safetensors"

    @contextmanager
    def lock(self, index: int) -> Iterator[None]:
        """While open, no other process writes, drops or locks shard ``index``. Waits for those that do."""
        with self._locked(_slot(self.path(index))):
            yield

    def write(self, index: int, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        """Write shard ``index``, whose lock is held; the shards made longest ago make room for it.

        Raises:
            InputError: no disk space, or no permission.
        """
        path = self.path(index)
        scratch = path.with_suffix(".writing")
        try:
            self._make_room(scratch)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, metadata)
            scratch.rename(path)
        except (OSError, SafetensorError) as error:
            scratch.unlink(missing_ok=True)
            if not is_disk_full(error):
                raise InputError(f"cannot write {path}: {first_line(error)}") from error
            raise InputError(f"no disk space left for {path}, which takes {self.shard_bytes / 1e9:.2g} GB: free some, "
                             "give a smaller quota (0 caches nothing), or another folder") from error

    def drop(self, index: int) -> None:
        """Remove shard ``index`` if it is there."""
        with self.lock(index):
            self.path(index).unlink(missing_ok=True)

    def _make_room(self, scratch: Path) -> None:
        """Remove leftovers, and old shards until one more fits; reserve its place by making ``scratch``."""
        while True:
            with self._locked("room"):
                writing = [path for path in self._found(".writing")
                           if path != scratch and not self._removed(path, scratch)]
                kept = sorted(self._found(".safetensors"), key=lambda path: path.stat().st_mtime)
                surplus = 0 if self.limit is None else len(writing) + len(kept) + 1 - self.limit
                for path in kept:
                    if surplus > 0 and self._removed(path, scratch):
                        surplus -= 1
                if surplus <= 0:
                    scratch.touch()
                    return
            time.sleep(0.2)  # others are writing as many as there may be

    def _found(self, suffix: str) -> list[Path]:
        return [path for path in self.folder.glob(f"shard_*{suffix}") if path.stem.removeprefix("shard_").isdigit()]

    def _removed(self, path: Path, own: Path) -> bool:
        """Remove a file unless another process holds its shard's lock; that of ``own`` is held here."""
        if _slot(path) == _slot(own):
            path.unlink(missing_ok=True)
            return True
        try:
            with self._locked(_slot(path), wait=False):
                path.unlink(missing_ok=True)
            return True
        except Timeout:
            return False

    @contextmanager
    def _locked(self, name: str, wait: bool = True) -> Iterator[None]:
        locks = self.folder / "locks"
        try:
            locks.mkdir(exist_ok=True)
            lock = FileLock(locks / name)
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise
        except OSError as error:
            raise InputError(f"cannot write {locks}: {error.strerror or error}") from None
        try:
            yield
        finally:
            lock.release()


def _slot(path: Path) -> str:
    return f"{int(path.stem.removeprefix('shard_')) % LOCKS:02d}"
