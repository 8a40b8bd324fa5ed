"""A bounded memory of what was made from files, forgotten when the file changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class FileCache(Generic[T]):
    """The ``most`` results used last, each valid for one version of its file."""

    def __init__(self, most: int):
        self._most = most
        self._kept: OrderedDict[str, tuple[str, T]] = OrderedDict()
        self._lock = Lock()

    def get(self, name: str, version: str, make: Callable[[], T]) -> T:
        """What ``make`` gave for this version of the file, made now if it is not remembered."""
        with self._lock:
            version_kept, result = self._kept.get(name, (None, None))
            if version_kept == version:
                self._kept.move_to_end(name)
                return result  # type: ignore[return-value]  # a result of None has its version beside it too
        made = make()  # outside of the lock: it may take long, and twice does no harm
        with self._lock:
            self._kept[name] = (version, made)
            self._kept.move_to_end(name)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return made
