"""A safetensors file with a checked header, memory-mapped tensors and exact row reads; JSON settings beside it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuits.errors import FormatError, InputError
from circuits.graphs.store import replacing

FLOATING = ("F64", "F32", "F16", "BF16")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8}


class WeightFile:
    """A safetensors file of which only the header is read; tensors are mapped on request and unmapped after use.

    Raises:
        FormatError: missing, truncated or foreign file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        if not path.is_file():
            raise FormatError(f"{path} is missing: the transcoder is incomplete, download or copy it again")
        self._starts: dict[str, int] = {}
        """Byte of the file at which each tensor starts."""
        try:
            with safe_open(path, "pt"), path.open("rb") as file:  # safe_open checks the header against the size
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path} is truncated or not a safetensors file ({error}): download or copy it again"
                              ) from error
        header.pop("__metadata__", None)
        for name, entry in header.items():
            self.shapes[name], self.dtypes[name] = tuple(entry["shape"]), entry["dtype"]
            self._starts[name] = 8 + length + entry["data_offsets"][0]

    def tensor(self, name: str) -> Tensor:
        """The stored tensor, memory-mapped: pages are read when touched."""
        try:
            with safe_open(self.path, "pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{self.path} cannot be read any more ({error}): was it moved or replaced?") from error

    def rows(self, name: str, index: Tensor, first: int = 0) -> Tensor:
        """``tensor(name)[index]`` (n, ...), or ``[index, first:]``, in the stored dtype, reading only those bytes.

        A memory map would have the kernel read ahead around every row, on some disks by megabytes: scattered rows
        would then cost the whole file. Neighbouring rows are read at once.
        """
        dtype = _DTYPES[self.dtypes[name]]
        _, *inner = self.shapes[name]
        stride = torch.Size(inner).numel() * dtype.itemsize
        skipped = first * torch.Size(inner[1:]).numel() * dtype.itemsize
        wanted, back = torch.unique(index, return_inverse=True)
        rows = torch.empty(len(wanted), stride - skipped, dtype=torch.uint8)
        target = rows.numpy()
        try:
            with self.path.open("rb", buffering=0) as file:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                for begin, end in _runs(wanted, whole_rows=not skipped):
                    file.seek(self._starts[name] + int(wanted[begin]) * stride + skipped)
                    _fill(file, target[begin:end].reshape(-1).data)
        except OSError as error:
            raise FormatError(f"{self.path} cannot be read any more ({error}): was it moved or replaced?") from error
        shaped = rows.view(dtype).view(len(wanted), inner[0] - first, *inner[1:])
        return shaped if torch.equal(wanted, index) else shaped[back]

    def expect(self, name: str, shape: tuple[int | None, ...], dtypes: tuple[str, ...] = FLOATING) -> tuple[int, ...]:
        """Check presence, dtype and shape of a tensor; None in ``shape`` stands for any size.

        Raises:
            FormatError: naming the file, the tensor, what was expected and what it holds.
        """
        if name not in self.shapes:
            raise FormatError(f"{self.path} has no tensor {name}: it holds {', '.join(sorted(self.shapes)) or 'none'}. "
                              "It is renamed, or of another format")
        got = self.shapes[name]
        if len(got) != len(shape) or any(want not in (None, size) for want, size in zip(shape, got, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise FormatError(f"{name} in {self.path} has shape {list(got)}, expected [{wanted}]: the file belongs to "
                              "another dictionary or model, or is transposed")
        if self.dtypes[name] not in dtypes:
            raise FormatError(f"{name} in {self.path} has dtype {self.dtypes[name]}, expected one of "
                              f"{', '.join(dtypes)}: convert the file")
        return got

    def refuse_unknown(self, known: set[str]) -> None:
        """Refuse matrices this reader would silently leave out of the model, such as a skip of another name."""
        for name, shape in self.shapes.items():
            if name not in known and len(shape) >= 2:
                raise FormatError(f"{self.path} has a tensor {name} of shape {list(shape)} that this format does not "
                                  f"define (it knows {', '.join(sorted(known))}): ignoring it would give wrong results")

    def finite_vector(self, name: str) -> Tensor:
        """A small tensor as float32, read and checked.

        Raises:
            FormatError: NaN or infinity in it.
        """
        values = self.tensor(name).float()
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise FormatError(f"{name} in {self.path} has {bad} NaN or infinite values of {values.numel()}: the file "
                              "is damaged, download or copy it again")
        return values


def _runs(rows: Tensor, *, whole_rows: bool) -> list[tuple[int, int]]:
    """Slices of the ascending ``rows`` that lie one after the other in the file, which parts of rows never do."""
    if not whole_rows:
        return [(i, i + 1) for i in range(len(rows))]
    breaks = [*((rows.diff() != 1).nonzero()[:, 0] + 1).tolist(), len(rows)]
    return list(zip([0, *breaks[:-1]], breaks, strict=True)) if len(rows) else []


def _fill(file: io.RawIOBase, target: memoryview) -> None:
    """Read until ``target`` is full: one call reads 2 GiB at most."""
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])
        if not count:
            raise OSError("it ends early")
        done += count


def save(path: Path, tensors: dict[str, Tensor], check: Callable[[Path], Any] = lambda path: None) -> None:
    """Write a safetensors file beside ``path`` and, when ``check`` accepts it, rename it to ``path``.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    with replacing(path) as scratch:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch)
        except SafetensorError as error:  # how it reports a full disk
            raise InputError(f"{path} cannot be written ({error}): free some space, or choose another place") from error
        check(scratch)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FormatError: unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read as JSON ({error}): download or copy it again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__}, expected a JSON object of settings")
    return value
