"""What changing a graph's nodes does: what the graph predicts, what the model does, and how its text goes on.

Shapes: K targets, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from circuits.graph_nodes import node_index
from circuits.interventions.edits import Edit, ErrorEdit, FeatureEdit, Intervention, TokenEdit
from circuits.interventions.generate import Continuation, generate
from circuits.interventions.intervene import Outcome, intervene
from circuits.interventions.modes import REPLACED
from circuits.prompt import token_text
from circuits.serve.model_schemas import (
    ReactingFeature,
    Steered,
    SteerRequest,
    TargetChange,
    Text,
    Texts,
    TokenChange,
)
from circuits.serve.question import Report
from circuits.serve.refusal import Refusal
from circuits.serve.reruns import Subject
from circuits.serve.summary import printable

if TYPE_CHECKING:
    from circuits.validation.rerun import Rerun

REACTING = 20
"""Features that are listed."""
ROUNDING = 1e-5
"""Of the largest activation of its layer on the prompt: a smaller change may be float32's."""


def steer(subject: Subject, asked: SteerRequest, report: Report) -> Steered:
    """Change nodes of a graph together, in its local replacement model and in the model itself.

    Raises:
        Refusal: 422; a node twice, or one that cannot be changed.
        InputError: no such node, or more text than the model reads.
    """
    rerun = subject.rerun
    intervention = Intervention(_edits(rerun, asked))
    prompt = rerun.model, rerun.transcoders, rerun.local
    report("predicting", 0, 2)
    predicted = intervene(*prompt, intervention, REPLACED)
    report("measuring", 1, 2)
    measured = intervene(*prompt, intervention, features=True)
    texts = None
    if asked.generate:
        written = generate(*prompt, intervention, max_new_tokens=asked.generate, temperature=asked.temperature,
                           top_k=asked.top_k, top_p=asked.top_p, seed=asked.seed, progress=report)
        texts = Texts(unchanged=_text(written.unchanged), steered=_text(written.steered[0]))
    reacting, n_reacting = _reacting(subject, measured, intervention)
    return Steered(targets=_targets(rerun, predicted, measured), tokens=_tokens(rerun, predicted, measured, asked.top),
                   kl_predicted=float(predicted.kl[0]), kl_measured=float(measured.kl[0]), reacting=reacting,
                   n_reacting=n_reacting, texts=texts)


def _edits(rerun: Rerun, asked: SteerRequest) -> tuple[Edit, ...]:
    ids = [node.id for node in asked.nodes]
    if len(set(ids)) < len(ids):
        twice = next(node_id for i, node_id in enumerate(ids) if node_id in ids[:i])
        raise Refusal(422, f"node {twice} is given twice: give it one multiplier")
    return tuple(_edit(rerun, node_index(rerun.graph, node.id), node.multiplier) for node in asked.nodes)


def _edit(rerun: Rerun, node: int, multiplier: float) -> Edit:
    nodes = rerun.graph.nodes
    layer, position, kind = int(nodes.layer[node]), int(nodes.position[node]), nodes.kind[node]
    if kind == "feature":
        return FeatureEdit(layer, int(nodes.feature[node]), position, "scale", multiplier)
    if kind == "error":
        return ErrorEdit(layer, position, multiplier)
    if kind == "embedding":
        return TokenEdit(position, multiplier)
    raise Refusal(422, f"node {rerun.graph.node_ids[node]} is a {kind}: only features, errors and tokens can be "
                  "steered")


def _targets(rerun: Rerun, predicted: Outcome, measured: Outcome) -> list[TargetChange]:
    """The graph's logit nodes, in order."""
    graph, targets = rerun.graph, rerun.targets
    changes = [rerun.on_targets(outcome.final_changes)[0].tolist() for outcome in (predicted, measured)]
    probabilities = [_of_tokens(row, targets.tokens) for row in _probabilities(predicted, measured)]
    nodes = (graph.nodes.kind == "logit").nonzero()[0]
    return [TargetChange(
        id=printable(graph.node_ids[node]), label=printable(str(graph.nodes.label[node])), logit=logit,
        predicted=by_graph, measured=in_model, probability=p, probability_predicted=p_graph,
        probability_measured=p_model) for node, logit, by_graph, in_model, p, p_graph, p_model in zip(
            nodes, targets.values.tolist(), *changes, *probabilities, strict=True)]


def _tokens(rerun: Rerun, predicted: Outcome, measured: Outcome, top: int) -> list[TokenChange]:
    """The likeliest next tokens."""
    before, _, after = probabilities = _probabilities(predicted, measured)
    chosen = torch.maximum(before, after).topk(min(top, len(before))).indices
    rows = measured.logits_before, predicted.logit_changes[0], measured.logit_changes[0]
    columns = [(row - row.mean())[chosen].tolist() for row in rows] + [row[chosen].tolist() for row in probabilities]
    return [TokenChange(token=token, text=printable(token_text(rerun.model, token)), logit=logit, predicted=by_graph,
                        measured=in_model, probability=p, probability_predicted=p_graph, probability_measured=p_model)
            for token, logit, by_graph, in_model, p, p_graph, p_model in zip(chosen.tolist(), *columns, strict=True)]


def _probabilities(predicted: Outcome, measured: Outcome) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(V,) before, predicted and measured."""
    return measured.probabilities_before, predicted.probabilities[0], measured.probabilities[0]


def _of_tokens(probabilities: torch.Tensor, tokens: list[int]) -> list[float | None]:
    """(K,) None for targets that are no tokens."""
    return [None if token < 0 else float(probabilities[token]) for token in tokens]


def _reacting(subject: Subject, measured: Outcome, intervention: Intervention) -> tuple[list[ReactingFeature], int]:
    """The features that change most, and how many change; those that are steered left out."""
    effects = measured.features
    assert effects is not None
    steered = {(edit.layer, edit.positions, edit.feature) for edit in intervention.edits
               if isinstance(edit, FeatureEdit)}
    size, active = effects.change.abs(), subject.rerun.local.active
    largest = np.zeros(subject.rerun.local.n_layers, np.float32)
    np.maximum.at(largest, active.layer.cpu().numpy(), active.value.cpu().numpy())
    order = size.argsort(descending=True)
    order = order[size[order] > ROUNDING * torch.from_numpy(largest)[effects.layer[order]]]
    columns = (effects.layer, effects.position, effects.feature, effects.change)
    found = [row for row in zip(*(column[order].tolist() for column in columns), strict=True)
             if row[:3] not in steered]
    return [_reacting_feature(subject, *row) for row in found[:REACTING]], len(found)


def _reacting_feature(subject: Subject, layer: int, position: int, feature: int, change: float) -> ReactingFeature:
    from circuits.attention.components import Component

    active = subject.rerun.local.active
    here = torch.nonzero((active.layer == layer) & (active.position == position) & (active.feature == feature))[:, 0]
    source = int(here[0]) if len(here) else -1
    return ReactingFeature(
        id=subject.node_id(source) if source >= 0 else None,
        name=subject.name(Component(source, "feature", layer, position, feature)), layer=layer, position=position,
        feature=feature, before=float(active.value[source]) if source >= 0 else 0.0, change=change)


def _text(continuation: Continuation) -> Text:
    return Text(text=printable(continuation.text), tokens=len(continuation.tokens), ended=continuation.ended)
