"""Labels made elsewhere: Neuronpedia's explanation exports, CSV, and this project's own ``labels.json``."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.errors import FormatError, InputError
from circuits.graphs.store import replacing, to_json

LABELS_FILE = "labels.json"
FORMAT = "gemma-circuits-labels"
VERSION = 1
_MAX_LABEL = 500
_KEYS = {"feature": ("index", "feature"), "label": ("description", "label", "explanation")}


def read_labels(path: Path, d_transcoder: Sequence[int]) -> dict[tuple[int, int], str]:
    """Labels by (layer, feature).

    Args:
        path: ``.csv`` with columns layer, feature, label (a first line of names may be missing); ``.json`` or
            ``.jsonl`` of objects with ``layer`` (a number, or text that starts with it such as Neuronpedia's
            ``12-gemmascope-2-transcoder-16k``), ``index`` or ``feature``, and ``description`` or ``label``; or a file
            of :func:`write_labels`. Each may be gzipped (``.gz``). Of several labels of a feature the first is taken.
        d_transcoder: (L,) features of each layer.

    Raises:
        InputError: it cannot be read, or names a layer or feature that does not exist.
        FormatError: it is none of these.
    """
    text = _text(path)
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if suffix not in ("csv", "json", "jsonl"):
        raise InputError(f"{path}: labels are read from .csv, .json and .jsonl files, also gzipped")
    rows = {"csv": _csv, "jsonl": _jsonl, "json": _json}[suffix](path, text)
    labels: dict[tuple[int, int], str] = {}
    for where, values in rows:
        layer, feature = (_number(path, where, name, values[name]) for name in ("layer", "feature"))
        if layer >= len(d_transcoder) or feature >= d_transcoder[layer]:
            raise InputError(f"{path}, {where}: there is no feature {layer}/{feature} in these transcoders, which have "
                             f"{len(d_transcoder)} layers of {max(d_transcoder)} features: import labels made for them")
        if values["label"].strip():
            labels.setdefault((layer, feature), " ".join(values["label"].split())[:_MAX_LABEL])
    if not labels:
        raise InputError(f"{path} holds no labels: expected rows with a layer, a feature and a label")
    return labels


def write_labels(path: Path, labels: Mapping[tuple[int, int], str]) -> None:
    """Write ``labels.json``, at once or not at all.

    Raises:
        InputError: it cannot be written.
    """
    by_layer: dict[str, dict[str, str]] = {}
    for (layer, feature), text in sorted(labels.items()):
        by_layer.setdefault(str(layer), {})[str(feature)] = text
    with replacing(path) as scratch:
        scratch.write_text(to_json({"format": FORMAT, "version": VERSION, "labels": by_layer}), encoding="utf-8")


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw).decode("utf-8-sig")
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not {'gzipped ' if path.suffix == '.gz' else ''}UTF-8 text: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _csv(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise FormatError(f"{path} is not CSV: {error}") from None
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and not row[0].strip().isdecimal()):
            continue
        if len(row) < 3:
            raise FormatError(f"{path}, line {number}: expected layer,feature,label, got {len(row)} column(s)")
        yield f"line {number}", {"layer": row[0], "feature": row[1], "label": row[2]}


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield from _objects(path, f"line {number}", [_loads(path, f"line {number}", line)])


def _json(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    found = _loads(path, "the file", text)
    if isinstance(found, dict) and found.get("format") == FORMAT:
        if found.get("version") != VERSION or not isinstance(found.get("labels"), dict):
            raise FormatError(f"{path} has version {found.get('version')}, this program reads version {VERSION}: "
                              "upgrade gemma-circuits")
        for layer, labels in found["labels"].items():
            if not isinstance(labels, dict):
                raise FormatError(f"{path}: layer {layer} must hold an object of labels")
            yield from _objects(path, f"layer {layer}",
                                [{"layer": layer, "feature": i, "label": text} for i, text in labels.items()])
        return
    if isinstance(found, dict):
        found = found.get("explanations", [found])
    yield from _objects(path, "entry", found if isinstance(found, list) else [found])


def _objects(path: Path, where: str, found: Iterable[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, item in enumerate(found):
        place = f"{where} {i}" if where == "entry" else where
        if not isinstance(item, dict):
            raise FormatError(f"{path}, {place}: expected a JSON object, got {type(item).__name__}")
        values = {"layer": item.get("layer")} | {
            name: next((item[key] for key in keys if item.get(key) is not None), None) for name, keys in _KEYS.items()}
        if not isinstance(values["label"], str):
            raise FormatError(f"{path}, {place}: expected layer, index (or feature) and description (or label)")
        yield place, values


def _loads(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}, {where}, is not JSON: {error}") from None


def _number(path: Path, where: str, name: str, value: Any) -> int:
    found = re.match(r"\s*(\d{1,9})(?:\s*$|-)" if name == "layer" else r"\s*(\d{1,9})\s*$", str(value), re.ASCII)
    if not found:
        raise FormatError(f"{path}, {where}: {name} is {value!r}, expected a number")
    return int(found[1])
