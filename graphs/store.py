"""The native graph file: one safetensors file, arrays as tensors, the header as JSON in the metadata.

Metadata: ``format`` = FORMAT_NAME, ``format_version``, ``header`` (the fields of :class:`Header`). Tensors: one per
node column under ``nodes.``, with ``nodes.kind`` as an index into KINDS (uint8) and ``nodes.label`` as a JSON list of
strings in UTF-8 bytes (uint8); ``indptr``, ``indices``, ``weights``, ``target_nodes``, ``target_weights``. Optional:
``nodes.threshold`` and the tables of :mod:`graphs.store_optional`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from circuits.errors import FormatError, InputError
from circuits.graphs.graph import FORMAT_VERSION, KINDS, AttributionGraph, Header
from circuits.graphs.nodes import COLUMN_DTYPES, NodeTable
from circuits.graphs.store_optional import optional_dtypes, optional_tables, optional_tensors

FORMAT_NAME = "circuits.attribution_graph"

_COLUMNS = COLUMN_DTYPES | {"kind": np.uint8, "label": np.uint8}
_LATER = {"nodes.threshold"}
"""Not in older files."""
_ARRAYS: dict[str, Any] = {
    "indptr": np.int64, "indices": np.int32, "weights": np.float32, "target_nodes": np.int32,
    "target_weights": np.float32}


def save(graph: AttributionGraph, path: str | Path) -> None:
    """Write ``graph``; :func:`load` gives back exactly the same arrays and header, and the cards of its features.

    Raises:
        InputError: ``path`` cannot be written, the arrays do not describe a graph (:func:`check`), or the header
            holds what JSON cannot.
    """
    check(graph)
    unknown = set(np.unique(graph.nodes.kind)) - set(KINDS)
    if unknown:
        raise InputError(f"node kind {str(min(unknown))!r} is unknown: expected one of {', '.join(KINDS)}")
    tensors = {f"nodes.{name}": np.ascontiguousarray(graph.nodes[name], dtype)
               for name, dtype in _COLUMNS.items() if name not in ("kind", "label")}
    tensors["nodes.kind"] = np.array([KINDS.index(kind) for kind in graph.nodes.kind], np.uint8)
    tensors["nodes.label"] = _string_bytes([str(label) for label in graph.nodes.label])
    tensors |= {name: np.ascontiguousarray(getattr(graph, name), dtype) for name, dtype in _ARRAYS.items()}
    tensors |= optional_tensors(graph.activations, graph.feature_cards(), graph.heads, _string_bytes)
    metadata = {"format": FORMAT_NAME, "format_version": str(FORMAT_VERSION), "header": to_json(asdict(graph.header))}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise InputError(f"cannot write {path}: {error}; free some space or name another folder") from error


def load(path: str | Path) -> AttributionGraph:
    """Read a graph that :func:`save` wrote.

    Raises:
        InputError: there is no such file, or it may not be read.
        FormatError: broken bytes, another kind of file, a newer version, or arrays that contradict each other.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file_header(path, file.metadata() or {})
            names = set(file.keys())
            wanted = _ARRAYS | {f"nodes.{name}": dtype for name, dtype in _COLUMNS.items()} | optional_dtypes(names)
            missing = sorted(set(wanted) - names - _LATER)
            if missing:
                raise FormatError(f"{path} lacks the tensor {missing[0]}: the file is damaged, save the graph again")
            tensors = {name: _tensor(path, file, name, dtype) for name, dtype in wanted.items() if name in names}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise FormatError(f"{path} is not a whole safetensors file ({error}): it was cut short or is another kind of "
                          "file") from error
    columns = {name: tensors[f"nodes.{name}"] for name in _COLUMNS if f"nodes.{name}" in tensors}
    columns["kind"], columns["label"] = _kinds(path, columns["kind"]), _labels(path, columns["label"])
    columns.setdefault("threshold", np.full(len(columns["kind"]), np.nan, np.float32))
    parts: dict[str, Any] = {name: tensors[name] for name in _ARRAYS}
    try:
        parts |= optional_tables(tensors, lambda name, raw: _strings(path, name, raw))
        graph = AttributionGraph(NodeTable(**columns), header=header, **parts)
        check(graph)
    except InputError as error:
        raise FormatError(f"{path} contradicts itself: {error}") from error
    return graph


def check(graph: AttributionGraph) -> None:
    """That the arrays describe a graph.

    Raises:
        InputError: names the first array that does not fit.
    """
    n, n_edges = len(graph), graph.n_edges
    pointers = graph.indptr
    _require(len(pointers) == n + 1, f"indptr has {len(pointers)} entries, expected {n + 1} for {n} nodes")
    _require(int(pointers[0]) == 0 and int(pointers[-1]) == n_edges and bool((np.diff(pointers) >= 0).all()),
             f"indptr must rise from 0 to the {n_edges} edges")
    _require(len(graph.indices) == n_edges, f"{len(graph.indices)} indices for {n_edges} weights")
    _require(_within(graph.indices, 0, n - 1), f"indices must lie in 0..{n - 1}")
    rises = np.diff(graph.indices) > 0
    first_in_row = pointers[1:-1][(pointers[1:-1] > 0) & (pointers[1:-1] < n_edges)]
    rises[first_in_row - 1] = True
    _require(bool(rises.all()), "indices must rise within each row")
    _require(bool(np.isfinite(graph.weights).all()), "weights must be finite numbers")
    _require(len(graph.target_nodes) == len(graph.target_weights),
             f"{len(graph.target_nodes)} target_nodes for {len(graph.target_weights)} target_weights")
    _require(_within(graph.target_nodes, 0, n - 1), f"target_nodes must lie in 0..{n - 1}")
    _require(bool((np.isfinite(graph.target_weights) & (graph.target_weights >= 0)).all()),
             "target_weights must be numbers of 0 or more")
    nodes, header = graph.nodes, graph.header
    _require(len(header.token_texts) == len(header.tokens),
             f"{len(header.token_texts)} token_texts for {len(header.tokens)} tokens")
    _require(_within(nodes.position, -1, len(header.tokens) - 1),
             f"node positions must lie in -1..{len(header.tokens) - 1}, the tokens of the prompt")
    _require(_within(nodes.layer, -1, header.n_layers), f"node layers must lie in -1..{header.n_layers}")
    _require(graph.activations is None or _within(graph.activations.position, 0, len(header.tokens) - 1),
             f"positions of activations must lie in 0..{len(header.tokens) - 1}")
    if graph.heads is not None:
        graph.heads.check_fits(n, len(header.tokens))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new empty file beside ``path`` that takes its place when the block ends well, and is gone otherwise.

    Raises:
        InputError: the folder is missing or may not be written, the disk is full, or ``path`` is a folder.
    """
    if "\0" in str(path):
        raise InputError(f"cannot write {path!r}: a path has no NUL character")
    target = Path(os.path.realpath(path))  # a link keeps pointing to what it named
    temporary = target.with_name(f".{target.name[:40]}.{token_hex(4)}.part")
    try:
        if target.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        temporary.open("xb").close()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors writes files only the owner can read, whatever the umask
        temporary.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; name a file in a folder that exists and "
                         "can be written") from error
    finally:
        with suppress(OSError):  # mostly that it is not there: renamed, or never made
            temporary.unlink()


def to_json(value: Any, *, allow_nan: bool = True) -> str:
    """Compact JSON that is valid UTF-8 whatever the strings hold (half a surrogate pair becomes "?").

    Raises:
        InputError: a value that JSON cannot hold.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=allow_nan, default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(f"the graph's header must hold plain JSON values: {error}") from error
    return text.encode("utf-8", "replace").decode()


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"got a {type(value).__name__}")


def file_header(path: str | Path, metadata: dict[str, str]) -> Header:
    """The header from the metadata of a native file.

    Raises:
        FormatError: another kind of file, a newer version, or a broken header.
    """
    if metadata.get("format") != FORMAT_NAME:
        raise FormatError(f"{path} is a safetensors file but not an attribution graph: expected one saved by "
                          "graph.save or circuits trace")
    version = metadata.get("format_version", "")
    if not version.isdecimal():
        raise FormatError(f"{path} has format version {version!r}: expected a number, the file is damaged")
    if int(version) > FORMAT_VERSION:
        raise FormatError(f"{path} has format version {version}, this program reads up to {FORMAT_VERSION}: "
                          "upgrade gemma-circuits")
    return parse_header(path, metadata.get("header", ""))


def parse_header(path: str | Path, text: str) -> Header:
    """The header from its JSON text.

    Raises:
        FormatError: not JSON, or a field of another type.
    """
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise FormatError(f"{path} has a broken header: expected a JSON object, got {type(values).__name__}")
        known = {field.name for field in fields(Header)}
        return TypeAdapter(Header).validate_python({key: value for key, value in values.items() if key in known})
    except ValidationError as error:
        first = error.errors()[0]
        raise FormatError(f"{path} has a broken header: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} has a broken header: {error}") from error


def _tensor(path: str | Path, file: Any, name: str, dtype: Any) -> np.ndarray:
    array = file.get_tensor(name)
    if array.ndim != 1 or array.dtype != dtype:
        raise FormatError(f"{path}: {name} is {array.dtype} of shape {array.shape}, expected one dimension of "
                          f"{np.dtype(dtype)}")
    return array


def _kinds(path: str | Path, codes: np.ndarray) -> np.ndarray:
    if not _within(codes, 0, len(KINDS) - 1):
        raise FormatError(f"{path}: nodes.kind holds {codes.max()}, expected 0 to {len(KINDS) - 1}")
    return np.array(KINDS)[codes]


def _labels(path: str | Path, raw: np.ndarray) -> np.ndarray:
    labels = _strings(path, "nodes.label", raw)
    column = np.empty(len(labels), object)
    column[:] = labels
    return column


def _string_bytes(strings: list[str]) -> np.ndarray:
    return np.frombuffer(to_json(strings).encode(), np.uint8)


def _strings(path: str | Path, name: str, raw: np.ndarray) -> list[str]:
    try:
        strings = json.loads(raw.tobytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: {name} is not JSON: {error}") from error
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise FormatError(f"{path}: {name} must be a list of strings")
    return strings


def _within(values: np.ndarray, low: int, high: int) -> bool:
    return not len(values) or (int(values.min()) >= low and int(values.max()) <= high)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InputError(otherwise)
