"""Reading attribution-graph JSON: our own files, Neuronpedia's and circuit-tracer's.

Other programs' files say less: influence is recomputed on the edges present, scores are left out (they belong to the
unpruned graph), and every node with inputs counts as expanded.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat, ValidationError

from circuits.errors import FormatError, InputError
from circuits.graphs.activations import ACTIVATION_DTYPES, Activations
from circuits.graphs.graph import AttributionGraph, Header, NodeTable
from circuits.graphs.influence import influence
from circuits.graphs.neuronpedia_links import csr_edges
from circuits.graphs.store import check, parse_header

EXTRA = "gemma_circuits"
FEATURE_TYPES = {"feature": "cross layer transcoder", "error": "mlp reconstruction error", "embedding": "embedding",
                 "logit": "logit", "constant": "bias"}
_EXTRA_COLUMNS = ("layer", "position", "value", "influence", "expanded", "input_sum", "input_abs", "residual", "label",
                  "threshold")
"""Older files end before some of the last ones."""
_ID = re.compile(r"(E|\d+)_(\d+)_(\d+)")


def _id_list(value: Any) -> Any:
    """circuit-tracer's server stores pins as one string, ids separated by commas, or null."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value or []


def _groups(value: Any) -> Any:
    """Supernodes as a list, as JSON text of one, or null."""
    return (json.loads(value) if value.strip() else []) if isinstance(value, str) else value or []


class _Metadata(BaseModel):
    slug: str
    scan: str
    prompt: str
    prompt_tokens: list[str]
    pruning_settings: dict[str, Any] | None = None
    info: dict[str, Any] | None = None
    gemma_circuits: dict[str, Any] | None = None


class _QParams(BaseModel):
    pinnedIds: Annotated[list[str], BeforeValidator(_id_list)] = []
    supernodes: Annotated[list[list[str]], BeforeValidator(_groups)] = []


class _Node(BaseModel):
    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: int
    feature_type: str
    clerp: str | None = ""
    activation: float | None = None
    token_prob: FiniteFloat | None = None


class _Link(BaseModel):
    source: str
    target: str
    weight: FiniteFloat


class _Document(BaseModel):
    metadata: _Metadata
    qParams: _QParams
    nodes: list[_Node] = Field(min_length=1)
    links: list[_Link]


@dataclass
class _Row:
    """What the schema says of one node."""

    kind: str
    layer: int
    position: int
    feature: int = -1
    token: int = -1
    value: float = 0.0


def read(path: str | Path) -> AttributionGraph:
    """A graph from attribution-graph JSON; a file of :func:`neuronpedia.write` gives back the graph written.

    Pins and supernodes are those of ``qParams``, with ids turned into ours, less those of nodes that are not there.

    Raises:
        InputError: the file is missing or may not be read.
        FormatError: not JSON, not this schema, or nodes and links that contradict each other.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        document = _Document.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise FormatError(f"{path} is not an attribution graph in Neuronpedia's schema: {where}: {first['msg']}"
                          ) from error
    try:
        return _graph(path, document)
    except (InputError, OverflowError) as error:
        raise FormatError(f"{path} contradicts itself: {error}") from error


def _graph(path: str | Path, document: _Document) -> AttributionGraph:
    rows = [_row(node) for node in document.nodes]
    n_layers = max((row.layer + (row.kind != "logit") for row in rows), default=0)
    for row in rows:
        if row.kind == "logit":
            row.layer = n_layers
    nodes = NodeTable.build(len(rows), **{name: [getattr(row, name) for row in rows]
                                          for name in ("kind", "layer", "position", "feature", "token", "value")},
                            label=[node.clerp or "" for node in document.nodes])
    indptr, indices, weights, guessed = csr_edges(
        [node.node_id for node in document.nodes], [row.kind for row in rows], [row.layer for row in rows],
        [(link.source, link.target, link.weight) for link in document.links])
    warnings = [f"{guessed} links start at an id that a feature and an error share: taken as the feature's"
                ] if guessed else []
    logits = np.flatnonzero(nodes.kind == "logit")
    graph = AttributionGraph(
        nodes, indptr, indices, weights, target_nodes=logits.astype(np.int32),
        target_weights=np.array([document.nodes[i].token_prob or 0.0 for i in logits], np.float32),
        header=_foreign_header(document, rows, n_layers, warnings))
    if document.metadata.gemma_circuits is not None:
        graph = _own(path, graph, document, document.metadata.gemma_circuits)
    else:
        graph = replace(graph, nodes=replace(
            nodes, expanded=(np.diff(indptr) > 0) | (nodes.kind == "logit"),
            influence=influence(graph).astype(np.float32)))
    check(graph)
    return _with_pins(graph, document)


def _row(node: _Node) -> _Row:
    kind = next((ours for ours, theirs in FEATURE_TYPES.items() if theirs == node.feature_type.lower()), "")
    numbers = _ID.match(node.node_id)
    where = f"node {node.node_id!r}"
    if kind == "embedding":
        return _Row(kind, -1, node.ctx_idx, token=int(numbers[2]) if numbers else -1)
    if not kind or not re.fullmatch(r"\d{1,4}", str(node.layer)):
        raise InputError(f"{where} has feature_type {node.feature_type!r} in layer {node.layer!r}: expected one of "
                         f"{', '.join(FEATURE_TYPES.values())} and a layer number")
    layer = int(node.layer)
    if kind == "logit":
        return _Row(kind, layer - 1, node.ctx_idx, token=-1 if node.feature is None else node.feature)
    if kind == "feature":
        feature = int(numbers[2]) if numbers and numbers[1] == str(layer) else _uncantor(node.feature, layer)
        if feature is None:
            raise InputError(f"{where} names its feature neither in its id, as layer_feature_position, nor as the "
                             "Cantor pair of layer and feature")
        return _Row(kind, layer, node.ctx_idx, feature=feature, value=node.activation or 0.0)
    return _Row(kind, layer, node.ctx_idx)


def _uncantor(pair: int | None, layer: int) -> int | None:
    """The feature of a Cantor pair (layer, feature); None if it is not one of this layer."""
    if pair is None or pair < 0:
        return None
    total = (math.isqrt(8 * pair + 1) - 1) // 2
    feature = pair - total * (total + 1) // 2
    return feature if total - feature == layer else None


def _foreign_header(document: _Document, rows: list[_Row], n_layers: int, warnings: list[str]) -> Header:
    metadata = document.metadata
    tokens = [-1] * len(metadata.prompt_tokens)
    for row in rows:
        if row.kind == "embedding" and 0 <= row.position < len(tokens):
            tokens[row.position] = row.token
    generator = (metadata.info or {}).get("generator")
    named = [str(generator[key]) for key in ("name", "version") if generator.get(key)] if isinstance(
        generator, dict) else []
    settings = {key: value for key, value in (metadata.pruning_settings or {}).items() if value is not None}
    return Header(prompt=metadata.prompt, tokens=tokens, token_texts=metadata.prompt_tokens, model=metadata.scan,
                  n_layers=n_layers, settings=settings, generator=" ".join(named), warnings=warnings)


def _own(path: str | Path, graph: AttributionGraph, document: _Document, extra: dict[str, Any]) -> AttributionGraph:
    """``graph`` with what our own files add to the schema. Where someone edited a label, the edit counts."""
    from circuits.graphs.neuronpedia import EXTRA_VERSION, clerp

    try:
        if int(extra["version"]) > EXTRA_VERSION:
            raise FormatError(f"{path} has {EXTRA} version {extra['version']}, this program reads up to "
                              f"{EXTRA_VERSION}: upgrade gemma-circuits")
        header = parse_header(path, json.dumps(extra["header"]))
        index = {node.node_id: i for i, node in enumerate(document.nodes)}
        targets = [(index[node], weight) for node, weight in extra["targets"] if node in index]
        columns = {name: np.array(graph.nodes[name]) for name in _EXTRA_COLUMNS}
        for i, node in enumerate(document.nodes):
            values = dict(zip(_EXTRA_COLUMNS, extra["nodes"].get(node.node_id, ()), strict=False))
            label = values.pop("label", None)
            for name, value in values.items():
                columns[name][i] = np.nan if value is None else value
            if label is not None and node.clerp == clerp(graph.nodes.kind[i], label, node.token_prob or 0.0):
                columns["label"][i] = label
        nodes = replace(graph.nodes, **columns)
        return replace(graph, nodes=nodes, header=header,
                       target_nodes=np.array([node for node, _ in targets], np.int32),
                       target_weights=np.array([weight for _, weight in targets], np.float32),
                       activations=_activations(extra.get("activations"), nodes))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FormatError(f"{path}: metadata.{EXTRA} is damaged ({type(error).__name__}: {error}); remove it to read "
                          "the rest") from error


def _activations(found: dict[str, list[Any]] | None, nodes: NodeTable) -> Activations | None:
    """Of the features that still have a node: other programs may have taken some out."""
    if found is None:
        return None
    table = Activations(**{name: np.array(found[name], dtype) for name, dtype in ACTIVATION_DTYPES.items()})
    return table.left(nodes)


def _with_pins(graph: AttributionGraph, document: _Document) -> AttributionGraph:
    ours: dict[str, str] = {}
    for node, node_id in zip(document.nodes, graph.node_ids, strict=True):
        ours.setdefault(node.node_id, node_id)
    groups = [[label, *(ours[i] for i in ids if i in ours)]
              for label, *ids in (group for group in document.qParams.supernodes if group)]
    return replace(graph, header=replace(
        graph.header, pinned=[ours[i] for i in document.qParams.pinnedIds if i in ours],
        supernodes=[group for group in groups if len(group) > 1]))
