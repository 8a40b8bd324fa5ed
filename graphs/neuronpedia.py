"""Attribution-graph JSON in Neuronpedia's schema (apps/webapp/app/api/graph/graph-schema.json): ids and writing.

What the schema has no place for (signed influence, sums of inputs, constants' positions, places where features fired
whose nodes were pruned, the whole header) goes under ``metadata.gemma_circuits``, nodes by id, so that :func:`read`
gives back the graph that was written, less its feature cards. Other readers ignore it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from circuits.errors import InputError
from circuits.graphs.activations import ACTIVATION_DTYPES
from circuits.graphs.graph import AttributionGraph, Header
from circuits.graphs.neuronpedia_read import EXTRA, FEATURE_TYPES, read
from circuits.graphs.store import check, replacing, to_json

__all__ = ["node_ids", "read", "write"]

EXTRA_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_PROBABILITY = re.compile(r"\(p=[0-9.]+(e-?[0-9]+)?\)")


def node_ids(graph: AttributionGraph) -> list[str]:
    """One unique id per node, made of the node's own columns, so it survives saving, pruning and export.

    feature ``{layer}_{feature}_{position}``; error ``E_ERR_{layer}_{position}`` (circuit-tracer's ``0_{layer}_{pos}``
    is also the id of a feature of layer 0); token ``E_{token}_{position}``; logit ``{layer + 1}_{token}_{position}``,
    a contrast or direction ``{layer + 1}_D_{position}``; constant ``BIAS_{layer}`` or ``BIAS_{layer}_{position}``.
    Were two nodes to share one (two directions do), the second and later ones get ``-2``, ``-3`` appended.
    """
    nodes = graph.nodes
    columns = (nodes.kind.tolist(), nodes.layer.tolist(), nodes.feature.tolist(), nodes.token.tolist(),
               nodes.position.tolist())
    seen: Counter[str] = Counter()
    ids = []
    for row in zip(*columns, strict=True):
        plain = _plain_id(*row)
        seen[plain] += 1
        ids.append(plain if seen[plain] == 1 else f"{plain}-{seen[plain]}")
    return ids


def write(graph: AttributionGraph, path: str | Path, slug: str = "graph") -> None:
    """Write attribution-graph JSON that Neuronpedia and circuit-tracer's page accept.

    ``influence`` of a node is cumulative, as there: the share of the unpruned graph's influence held by the nodes
    present that have at least as much (low = important); null for logits.

    Raises:
        InputError: ``slug`` has other characters than letters, digits and ``_.-``; ``path`` cannot be written; the
            arrays do not describe a graph (:func:`graphs.store.check`); the header holds what JSON cannot.
    """
    check(graph)
    if not _NAME.fullmatch(slug):
        raise InputError(f"slug is {slug!r}: expected letters, digits and the characters _ . - only")
    ids = graph.node_ids
    head = {"metadata": _metadata(graph, ids, slug),
            "qParams": {"pinnedIds": graph.header.pinned, "supernodes": graph.header.supernodes, "linkType": "both",
                        "clickedId": "", "sg_pos": ""},
            "nodes": _nodes(graph, ids)}
    text = to_json(head, allow_nan=False)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text[:-1] + ',"links":[')
        _write_links(graph, ids, file)
        file.write("]}")


def scan_name(model: str) -> str:
    """A model's name in the characters that Neuronpedia allows: ``google/gemma-3-270m`` -> ``gemma-3-270m``."""
    last = model.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-") or "model"


def clerp(kind: str, label: str, weight: float) -> str:
    """A node's label as the schema wants it: a logit's must contain ``(p=...)``, which pages parse."""
    if kind != "logit":
        return label
    found = _PROBABILITY.search(label)
    if found and label.index("(p=") == found.start():
        return label
    return f"{label.replace('(p=', '(p =')} (p={weight:.3f})".lstrip()


def _plain_id(kind: str, layer: int, feature: int, token: int, position: int) -> str:
    if kind == "feature":
        return f"{layer}_{feature}_{position}"
    if kind == "error":
        return f"E_ERR_{layer}_{position}"
    if kind == "embedding":
        return f"E_{token}_{position}"
    if kind == "logit":
        return f"{layer + 1}_{token if token >= 0 else 'D'}_{position}"
    return f"BIAS_{layer}" if position < 0 else f"BIAS_{layer}_{position}"


def _metadata(graph: AttributionGraph, ids: list[str], slug: str) -> dict[str, Any]:
    header = graph.header
    thresholds = {key: float(header.settings.get(key, 1.0)) for key in ("node_threshold", "edge_threshold")}
    generation = {"max_n_logits": header.settings.get("max_logits"),
                  "desired_logit_prob": header.settings.get("logit_prob"),
                  "max_feature_nodes": header.settings.get("max_features")}
    return {
        "slug": slug, "scan": scan_name(header.model), "schema_version": 1, "prompt": header.prompt,
        "prompt_tokens": header.token_texts, "node_threshold": thresholds["node_threshold"], "info": _info(header),
        "generation_settings": {key: value for key, value in generation.items() if value is not None},
        "pruning_settings": thresholds,
        EXTRA: {"version": EXTRA_VERSION, "header": _finite(asdict(header)), "nodes": _extra(graph, ids),
                "targets": [[ids[node], _number(weight)]
                            for node, weight in zip(graph.target_nodes, graph.target_weights, strict=True)]}
        | _activations(graph)}


def _info(header: Header) -> dict[str, Any]:
    name, _, number = (header.generator or f"gemma-circuits {_own_version()}").partition(" ")
    try:
        created = {"create_time_ms": int(datetime.fromisoformat(header.created).timestamp() * 1000)}
    except ValueError:
        created = {}
    return {"description": f"Attribution graph of {header.model} through {header.transcoders}", "creator_name": "",
            "creator_url": "", "source_urls": [],
            "generator": {"name": name, "version": number or "unknown", "url": ""}} | created


def _own_version() -> str:
    try:
        return version("gemma-circuits")
    except PackageNotFoundError:
        return "unknown"


def _nodes(graph: AttributionGraph, ids: list[str]) -> list[dict[str, Any]]:
    weights = np.zeros(len(graph))
    weights[graph.target_nodes] = graph.target_weights
    strongest = int(np.argmax(weights)) if len(graph.target_nodes) else -1
    cumulative = _cumulative(graph)
    entries = []
    for i, row in enumerate(graph.nodes.rows()):
        kind, layer, position = str(row["kind"]), int(row["layer"]), max(int(row["position"]), 0)
        feature, layer_text, js = _schema_ids(kind, layer, int(row["feature"]), int(row["token"]), position)
        entries.append({
            "node_id": ids[i], "feature": feature, "layer": layer_text, "ctx_idx": position,
            "feature_type": FEATURE_TYPES[kind], "jsNodeId": js, "clerp": clerp(kind, str(row["label"]), weights[i]),
            "influence": None if kind == "logit" else float(cumulative[i]),
            "activation": _number(row["value"]) if kind == "feature" else None,
            "token_prob": float(weights[i]), "is_target_logit": i == strongest})
    return entries


def _schema_ids(kind: str, layer: int, feature: int, token: int, position: int) -> tuple[int | None, str, str]:
    """The schema's ``feature``, ``layer`` and ``jsNodeId``."""
    if kind == "feature":  # Cantor's pairing of (layer, feature)
        return (layer + feature) * (layer + feature + 1) // 2 + feature, str(layer), f"{layer}_{feature}-0"
    if kind == "error":
        return -1, str(layer), f"{layer}_{position}-0"
    if kind == "embedding":
        return position, "E", f"E_{token}-{position}"
    if kind == "logit":
        return (token if token >= 0 else None), str(layer + 1), f"L_{token if token >= 0 else 'D'}-{position}"
    return None, str(max(layer, 0)), f"BIAS_{layer}-{position}"


def _cumulative(graph: AttributionGraph) -> np.ndarray:
    """(N,) share of all influence held by the nodes with at least as much, ties in node order."""
    amounts = graph.nodes.influence.astype(np.float64)
    before = graph.header.settings.get("unpruned") or {}
    total = max(float(before.get("influence", 0.0)), float(amounts.sum()))
    order = np.argsort(-amounts, kind="stable")
    shares = np.ones(len(graph))
    if total > 0:
        shares[order] = np.minimum(np.cumsum(amounts[order]) / total, 1.0)
    return shares


def _extra(graph: AttributionGraph, ids: list[str]) -> dict[str, list[Any]]:
    """Per node: layer, position, value, influence, expanded, input_sum, input_abs, residual, label, threshold."""
    return {node_id: [int(row["layer"]), int(row["position"]), _number(row["value"]), _number(row["influence"]),
                      bool(row["expanded"]), _number(row["input_sum"]), _number(row["input_abs"]),
                      _number(row["residual"]), str(row["label"]), _number(row["threshold"])]
            for node_id, row in zip(ids, graph.nodes.rows(), strict=True)}


def _activations(graph: AttributionGraph) -> dict[str, dict[str, list[Any]]]:
    """Columns, where the nodes do not say it all."""
    if graph.activations is None:
        return {}
    return {"activations": {name: [_number(value) for value in column] if name == "value" else column.tolist()
                            for name in ACTIVATION_DTYPES for column in [getattr(graph.activations, name)]}}


def _write_links(graph: AttributionGraph, ids: list[str], file: TextIO) -> None:
    """In chunks: as Python objects, the edges of an unpruned graph would fill the memory."""
    quoted = [to_json(node_id) for node_id in ids]
    targets = np.repeat(np.arange(len(graph), dtype=np.int32), np.diff(graph.indptr))
    links = (f'{{"source":{quoted[source]},"target":{quoted[target]},"weight":{_number(weight)}}}'
             for source, target, weight in zip(graph.indices, targets, graph.weights, strict=True))
    separator = ""
    while chunk := ",\n".join(islice(links, 10_000)):
        file.write(separator + chunk)
        separator = ",\n"


def _number(value: np.floating[Any]) -> float | None:
    """The shortest decimal that reads back as the same float32; None if it is not finite, which JSON lacks."""
    return float(str(np.float32(value))) if np.isfinite(value) else None


def _finite(value: Any) -> Any:
    """Numbers that are not finite as strings, which the header's reader takes for numbers again."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(float(value)) if isinstance(value, (float, np.floating)) and not math.isfinite(value) else value
