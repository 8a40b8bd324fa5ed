"""What the gallery says of a graph file. Of native files only header and targets are read, whatever their size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from circuits.errors import CircuitsError, FormatError, InputError
from circuits.graphs.graph import AttributionGraph, Header
from circuits.graphs.page import MAX_NODES
from circuits.graphs.store import file_header
from circuits.serve.cache import FileCache
from circuits.serve.folder import GraphFolder, naming_only, too_large
from circuits.serve.refusal import sentence
from circuits.serve.schemas import GraphDetails, GraphSummary
from circuits.serve.thumbnail import MAX_THUMBNAIL

MAX_LISTED = 1000
"""Files in a list: more would take long to read and nobody looks at them."""
MAX_LABEL_BYTES = 16 * 2**20


class Gallery:
    """Summaries of a folder's graphs, remembered until a file changes."""

    def __init__(self, folder: GraphFolder):
        self.folder = folder
        self._details: FileCache[GraphDetails] = FileCache(2 * MAX_LISTED)

    def list(self) -> tuple[list[GraphSummary], int]:
        """Summaries, last changed first, and how many older files are left out."""
        names = self.folder.names()
        found = (self._listed(name) for name in names[:MAX_LISTED])
        return [summary for summary in found if summary is not None], max(0, len(names) - MAX_LISTED)

    def details(self, name: str) -> GraphDetails:
        """A graph's summary and header; of a damaged one its error.

        Raises:
            Refusal: there is no such graph.
        """
        version = self.folder.version(name)
        return self._details.get(name, version, lambda: self._read(name, version))

    def _listed(self, name: str) -> GraphSummary | None:
        try:
            return GraphSummary.model_validate(self.details(name).model_dump(exclude={"header"}))
        except CircuitsError as error:  # a name or link that is not served: the owner is told why it is missing
            try:
                found = (self.folder.root / name).lstat()
            except OSError:
                return None
            return GraphSummary(name=printable(name), bytes=found.st_size, modified=_time(found.st_mtime), etag="",
                                error=sentence(error))

    def _read(self, name: str, version: str) -> GraphDetails:
        path = self.folder.path(name)
        found = path.stat()
        base: dict[str, Any] = dict(name=name, bytes=found.st_size, modified=_time(found.st_mtime), etag=version,
                                    too_large=too_large(path))
        try:
            with naming_only(path):
                read = self._json(name, base["too_large"]) if path.suffix == ".json" else _native(path)
        except CircuitsError as error:
            return GraphDetails(**base, error=sentence(error), header={})
        return GraphDetails(**base | read | _showable(base, read))

    def _json(self, name: str, reason: str | None) -> dict[str, Any]:
        """JSON has no header that could be read alone."""
        if reason is not None:
            raise FormatError(reason)
        graph, _ = self.folder.load(name)
        return _described(graph)


def printable(text: str) -> str:
    """``text`` in valid UTF-8: a file's name may hold any bytes."""
    return text.encode("utf-8", "replace").decode()


def _showable(base: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    """Whether there can be a page and a thumbnail, and why not."""
    reason = base["too_large"]
    if reason is None and read["nodes"] > MAX_NODES:
        reason = (f"{base['name']} has {read['nodes']:,} nodes, a page shows at most {MAX_NODES:,}: prune it (circuits "
                  "trace without --no-prune, or graph.prune in Python)")
    small = base["bytes"] <= MAX_THUMBNAIL
    if reason is None and not small:
        reason_small = f"no thumbnail: the file has more than {MAX_THUMBNAIL / 2**20:,.0f} MiB"
        return {"page": True, "thumbnail": False, "too_large": reason_small}
    return {"page": reason is None, "thumbnail": reason is None, "too_large": reason}


def _native(path: Path) -> dict[str, Any]:
    """The same as :func:`_described`, from the header, the shapes and the targets alone.

    Raises:
        InputError, FormatError: as :func:`graphs.store.load`, of these parts.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file_header(path, file.metadata() or {})
            shapes = {name: file.get_slice(name).get_shape() for name in ("weights", "nodes.label", "nodes.kind")}
            nodes, weights = file.get_tensor("target_nodes"), file.get_tensor("target_weights")
            few = shapes["nodes.label"][0] <= MAX_LABEL_BYTES
            labels = json.loads(file.get_tensor("nodes.label").tobytes()) if few else []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, IndexError, RecursionError) as error:
        raise FormatError(f"{path} is not a whole graph file ({sentence(error)}): it was cut short or is another kind "
                          "of file") from error
    if nodes.ndim != 1 or nodes.shape != weights.shape or not isinstance(labels, list):
        raise FormatError(f"{path} contradicts itself: expected as many target weights as targets, and labels in a "
                          "list; save the graph again")
    return _row(header, int(shapes["nodes.kind"][0]), int(shapes["weights"][0]), nodes, weights, labels)


def _described(graph: AttributionGraph) -> dict[str, Any]:
    """The fields of :class:`GraphDetails` that come from the graph."""
    return _row(graph.header, len(graph), graph.n_edges, graph.target_nodes, graph.target_weights,
                list(graph.nodes.label))


def _row(header: Header, nodes: int, edges: int, target_nodes: np.ndarray, target_weights: np.ndarray,
         labels: list[Any]) -> dict[str, Any]:
    top = int(np.nan_to_num(target_weights).argmax()) if len(target_nodes) else -1
    node = int(target_nodes[top]) if top >= 0 else -1
    label = labels[node] if 0 <= node < len(labels) else ""
    return {
        "prompt": header.prompt, "model": header.model, "transcoders": header.transcoders, "created": header.created,
        "target": str(label), "target_weight": _finite(float(target_weights[top])) if top >= 0 else None,
        "targets": len(target_nodes), "scores": {key: _finite(value) for key, value in header.scores.items()},
        "unexplored": _finite(header.unexplored), "nodes": nodes, "edges": edges, "pinned": len(header.pinned),
        "supernodes": len(header.supernodes), "header": _plain(asdict(header))}


def _plain(value: Any) -> Any:
    """A header's JSON value; numbers that are not finite, which JSON lacks, become None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
