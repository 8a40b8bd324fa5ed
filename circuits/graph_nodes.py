"""A graph's nodes found again in the local replacement model of its prompt (METHOD 3).

Shapes: N nodes of the graph, S source nodes of the replacement model, K logit nodes, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from circuits.errors import InputError
from circuits.frontier import feature_starts, target_starts
from circuits.gemma3 import Gemma3
from circuits.graphs.graph import AttributionGraph
from circuits.prompt import check_tokens
from circuits.replacement import LocalReplacement, build_replacement
from circuits.sweep import Starts
from circuits.targets import Targets, choose_targets
from circuits.transcoder import Transcoders

TOLERANCE = 1e-3
"""Largest difference of a value from the graph's, relative to it: another device or order of sums stays far below,
another model or other weights far above."""


def replacement_of(graph: AttributionGraph, model: Gemma3, transcoders: Transcoders,
                   progress: Callable[[str, int, int], None] = lambda stage, done, total: None) -> LocalReplacement:
    """The local replacement model that a graph was traced from, built anew from its tokens.

    Raises:
        InputError: the graph does not hold its prompt's tokens, or model or transcoders do not fit.
    """
    tokens = graph.header.tokens
    if not tokens or min(tokens) < 0:
        raise InputError("the graph does not hold all token ids of its prompt, so the model cannot be run on it again: "
                         "trace the prompt anew with circuits trace")
    return build_replacement(model, transcoders, check_tokens(model, tokens), progress)


def node_index(graph: AttributionGraph, node: int | str) -> int:
    """The number of a node that is given by its number or id.

    Raises:
        InputError: there is no such node.
    """
    if isinstance(node, str):
        if node not in graph.node_ids:
            raise InputError(f"the graph has no node {node!r}: give the id or the number of one of its nodes")
        return graph.node_ids.index(node)
    if not 0 <= node < len(graph):
        raise InputError(f"the graph has no node {node}: its nodes are 0 to {len(graph) - 1}")
    return int(node)


def source_numbers(graph: AttributionGraph, local: LocalReplacement) -> np.ndarray:
    """(N,) int64 source number of every node in ``local``; -1 for logits.

    Raises:
        InputError: a node that ``local`` does not have, or a feature with another value: the graph was made from
            another prompt, or with another model or other transcoders.
    """
    nodes, n_active = graph.nodes, len(local.active)
    if graph.header.tokens != local.frozen.tokens:
        raise InputError("the graph is of another prompt: its tokens differ from those the model was run on")
    layer, position = nodes.layer.astype(np.int64), nodes.position.astype(np.int64)
    unmasked = local.n_positions - local.masked
    at_layer = (layer >= 0) & (layer < local.n_layers)
    at_position = (position >= 0) & (position < local.n_positions)
    read = position >= local.masked
    constant, bias = nodes.kind == "constant", position == -1
    numbers = np.full(len(graph), -1, np.int64)
    known = nodes.kind == "logit"
    for here, exists, number in (
            (nodes.kind == "error", at_layer & at_position & read,
             n_active + layer * unmasked + position - local.masked),
            (nodes.kind == "embedding", at_position, local.first_embedding + position),
            (constant & bias, at_layer, local.first_constant + layer),
            (constant & ~bias, at_layer & at_position & ~read,
             local.first_constant + local.n_layers + layer * local.masked + position)):
        numbers[here & exists] = number[here & exists]
        known |= here & exists
    features = np.flatnonzero(nodes.kind == "feature")
    numbers[features] = _active_features(graph, features, local)
    known[features] = True
    if not known.all():
        node = int(np.flatnonzero(~known)[0])
        raise InputError(f"node {graph.node_ids[node]} ({nodes.kind[node]}) is not a part of the model on this prompt: "
                         f"it has {local.n_layers} layers and {local.n_positions} tokens, of which the first "
                         f"{local.masked} have no errors. {_made_with(graph)}")
    return numbers


def targets_of(graph: AttributionGraph, model: Gemma3, local: LocalReplacement,
               direction: Tensor | None = None) -> Targets:
    """The targets of a graph's logit nodes, in node order.

    Args:
        direction: (D,) the direction the graph explains, where it explains one: the graph does not hold it.

    Raises:
        InputError: a target that cannot be made again, or one with another value.
    """
    logits = np.flatnonzero(graph.nodes.kind == "logit")
    if len(logits) == 0:
        raise InputError("the graph has no logit nodes: give a graph with the targets it was traced from")
    found = [_target(graph, int(token), model, local, direction) for token in graph.nodes.token[logits]]
    made = Targets(vectors=torch.cat([t.vectors for t in found]), values=torch.cat([t.values for t in found]),
                   weights=torch.cat([t.weights.cpu() for t in found]), tokens=[t.tokens[0] for t in found],
                   labels=[t.labels[0] for t in found])
    value, expected = made.values.cpu().numpy(), graph.nodes.value[logits]
    # logits are known to about 1e-5, however small the difference of two of them is
    wrong = (expected != 0) & (np.abs(value - expected) > TOLERANCE * np.maximum(np.abs(expected), 1.0))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise InputError(f"target {graph.node_ids[logits[first]]} is {value[first]:.6g} here, {expected[first]:.6g} in "
                         f"the graph. {_made_with(graph)}")
    return made


def starts_of(local: LocalReplacement, targets: Targets, graph: AttributionGraph, nodes: np.ndarray) -> Starts:
    """Where the gradients of features and logits ``nodes`` (n,) of a graph enter, in this order.

    Args:
        targets: of the graph's logit nodes: :func:`targets_of`.

    Raises:
        InputError: nodes of other kinds, which have no inputs; or as for :func:`source_numbers`.
    """
    numbers = source_numbers(graph, local)[nodes]
    kind = graph.nodes.kind[nodes]
    if (without := ~np.isin(kind, ("feature", "logit"))).any():
        node = int(nodes[without][0])
        raise InputError(f"node {graph.node_ids[node]} ({graph.nodes.kind[node]}) has no inputs: expected features and "
                         "logits as the targets of edges")
    logits = np.flatnonzero(graph.nodes.kind == "logit")
    if len(logits) != len(targets.values):
        raise InputError(f"{len(targets.values)} targets for the {len(logits)} logit nodes of the graph: give those "
                         "of targets_of")
    is_logit = kind == "logit"
    order = np.argsort(np.concatenate([np.flatnonzero(~is_logit), np.flatnonzero(is_logit)]))
    features, ends = feature_starts(local, numbers[~is_logit]), target_starts(local, targets)
    chosen = torch.from_numpy(np.searchsorted(logits, nodes[is_logit])).to(ends.layer.device)

    def joined(name: str) -> Tensor:
        part = getattr(features, name)
        return torch.cat([part, getattr(ends, name)[chosen].to(part.device)])[torch.from_numpy(order).to(part.device)]

    return Starts(joined("layer"), joined("position"), joined("vector"))


def _active_features(graph: AttributionGraph, rows: np.ndarray, local: LocalReplacement) -> np.ndarray:
    """Numbers of the graph's feature nodes ``rows`` among the active features."""
    names = ("layer", "position", "feature")
    there = [getattr(local.active, name).cpu().numpy() for name in names]
    wanted = [graph.nodes[name][rows].astype(np.int64) for name in names]
    number = _find(there, wanted)
    if (lost := number < 0).any():
        raise InputError(f"{_feature(wanted, lost)} is not active on this prompt. {_made_with(graph)}")
    here, value = local.active.value.cpu().numpy()[number], graph.nodes.value[rows]
    # 0 means that a foreign file did not say; a value far below the others is a small difference of large numbers
    scale = np.maximum(np.abs(value), np.median(np.abs(value)) if len(value) else 0.0)
    if (wrong := (value != 0) & (np.abs(here - value) > TOLERANCE * scale)).any():
        raise InputError(f"{_feature(wanted, wrong)} has the value {here[wrong][0]:.6g} here, {value[wrong][0]:.6g} in "
                         f"the graph. {_made_with(graph)}")
    return number


def _find(there: list[np.ndarray], wanted: list[np.ndarray]) -> np.ndarray:
    """(n,) where each triple of ``wanted`` columns stands in the sorted columns ``there``; -1 where it does not."""
    sizes = [1 + max(int(column.max(initial=0)) for column in pair) for pair in zip(there, wanted, strict=True)]

    def key(columns: list[np.ndarray]) -> np.ndarray:
        return (columns[0] * sizes[1] + columns[1]) * sizes[2] + columns[2]

    if len(there[0]) == 0:
        return np.full(len(wanted[0]), -1, np.int64)
    at = np.searchsorted(key(there), key(wanted)).clip(max=len(there[0]) - 1)
    same = np.all([column[at] == value for column, value in zip(there, wanted, strict=True)], axis=0)
    return np.where(same, at, -1)


def _target(graph: AttributionGraph, token: int, model: Gemma3, local: LocalReplacement,
            direction: Tensor | None) -> Targets:
    settings = graph.header.settings
    if token >= 0:
        return choose_targets(model, local.frozen, target=token)
    if direction is not None:
        return choose_targets(model, local.frozen, direction=direction)
    if settings.get("direction"):
        raise InputError("the graph explains a direction, which its file does not hold: give it as direction")
    if settings.get("target") is None or settings.get("versus") is None:
        raise InputError("a target of the graph is no token, and the graph's settings name no contrast: trace the "
                         "prompt again, or give its direction")
    return choose_targets(model, local.frozen, target=settings["target"], versus=settings["versus"])


def _feature(columns: list[np.ndarray], which: np.ndarray) -> str:
    layer, position, feature = (int(column[which][0]) for column in columns)
    return f"feature {feature} of layer {layer} at position {position}"


def _made_with(graph: AttributionGraph) -> str:
    return (f"Give the model and the transcoders that the graph was made with: {graph.header.model or 'unknown'} and "
            f"{graph.header.transcoders or 'unknown'}")
