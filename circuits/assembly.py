"""From computed rows to the attribution graph: node table, labels, and one CSR matrix.

Shapes: N active features, S source nodes (features, errors, embeddings, constants), K targets.
"""

from __future__ import annotations

import numpy as np

from circuits.errors import CircuitsError
from circuits.features.cards import TranscoderCards
from circuits.features.known import Labels, feature_name
from circuits.gemma3 import Gemma3
from circuits.graphs.graph import AttributionGraph, Header, NodeTable
from circuits.graphs.scores import annotate
from circuits.prompt import token_text
from circuits.replacement import LocalReplacement
from circuits.row_store import RowStore
from circuits.targets import Targets
from circuits.transcoder import Transcoders


def assemble(model: Gemma3, transcoders: Transcoders, local: LocalReplacement, targets: Targets,
             rows: RowStore, expanded: np.ndarray, residuals: np.ndarray, header: Header) -> AttributionGraph:
    """The graph of all sources and targets, influence and scores included.

    Args:
        rows: computed rows; emptied, so that the rows of a long prompt need their memory once.
        expanded: (N,) features whose rows were computed.
        residuals: (S + K,) conservation residual of every computed row.
    """
    n_nodes = local.n_sources + len(targets.values)
    labels = Labels.open_or_warn(transcoders, lambda token: token_text(model, token), header.warnings)
    nodes = _node_table(labels, local, targets, header, n_nodes)
    nodes.expanded[:len(local.active)] = expanded
    nodes.expanded[local.n_sources:] = True
    nodes.residual[:] = residuals
    node, length, total, magnitude, *_ = rows.columns()
    nodes.input_sum[node], nodes.input_abs[node] = total, magnitude
    lengths = np.zeros(n_nodes, np.int64)
    lengths[node] = length
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices, weights = rows.in_node_order()
    graph = AttributionGraph(
        nodes=nodes, indptr=indptr, indices=indices, weights=weights,
        target_nodes=(local.n_sources + np.arange(len(targets.values))).astype(np.int32),
        target_weights=targets.weights.float().cpu().numpy(), header=header,
        cards=TranscoderCards(model, transcoders, labels.data))
    return annotate(graph)


def _node_table(labels: Labels, local: LocalReplacement, targets: Targets, header: Header, n_nodes: int) -> NodeTable:
    active, masked, texts = local.active, local.masked, header.token_texts
    positions, layers = np.arange(local.n_positions), np.arange(local.n_layers)
    table = NodeTable.build(n_nodes, kind="feature")
    part = slice(0, len(active))
    for name in ("layer", "position", "feature", "value"):
        table[name][part] = getattr(active, name).cpu().numpy()
    table.label[part] = _feature_labels(labels, local, header.warnings)
    table.threshold[part] = _thresholds(labels.transcoders, local)
    part = slice(part.stop, local.first_embedding)
    unmasked = positions[masked:]
    table.kind[part] = "error"
    table.layer[part], table.position[part] = np.repeat(layers, len(unmasked)), np.tile(unmasked, len(layers))
    table.label[part] = [f'Error of layer {layer} at "{texts[p]}"' for layer in layers for p in unmasked]
    part = slice(part.stop, local.first_constant)
    table.kind[part], table.position[part], table.token[part] = "embedding", positions, local.frozen.tokens
    table.label[part] = [f'Token "{text}"' for text in texts]
    part = slice(part.stop, local.n_sources)
    table.kind[part] = "constant"
    table.layer[part] = np.concatenate([layers, np.repeat(layers, masked)])
    table.position[part] = np.concatenate([np.full(len(layers), -1), np.tile(positions[:masked], len(layers))])
    table.label[part] = [f"Decoder bias of layer {layer}" for layer in layers] + [
        f'MLP output of layer {layer} at "{texts[p]}"' for layer in layers for p in positions[:masked]]
    part = slice(part.stop, n_nodes)
    table.kind[part], table.layer[part], table.position[part] = "logit", local.n_layers, local.n_positions - 1
    table.token[part], table.value[part] = targets.tokens, targets.values.cpu().numpy()
    table.label[part] = targets.labels
    return table


def _feature_labels(labels: Labels, local: LocalReplacement, warnings: list[str]) -> list[str]:
    """(N,) number and label of each active feature. A layer whose labels cannot be read costs a warning, too."""
    named: list[str] = []
    for layer in range(local.n_layers):
        features = local.active.feature[local.active.layer == layer].tolist()
        distinct = sorted(set(features))
        try:
            found = labels.of(layer, distinct)
        except CircuitsError as error:
            warnings.append(f"features of layer {layer} have no labels: {error}")
            found = [""] * len(distinct)
        known = dict(zip(distinct, found, strict=True))
        named += [feature_name(layer, feature, known[feature]) for feature in features]
    return named


def _thresholds(transcoders: Transcoders, local: LocalReplacement) -> np.ndarray:
    """(N,) pre-activation at or below which each active feature is silent: 0 for ReLU, NaN for TopK."""
    found = []
    for layer in range(local.n_layers):
        features = local.active.feature[local.active.layer == layer].cpu()
        threshold, depends = transcoders.threshold(layer), transcoders.top_k(layer) is not None
        found.append(threshold.cpu()[features].numpy() if threshold is not None and not depends
                     else np.full(len(features), np.nan if depends else 0.0, np.float32))
    return np.concatenate(found)
