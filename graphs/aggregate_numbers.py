"""An aggregation as plain values, ready for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from circuits.graphs.aggregate import Aggregation, Family, Recurring
from circuits.graphs.aggregate_difference import Difference
from circuits.graphs.aggregate_edges import EdgeTable
from circuits.graphs.aggregate_places import Place
from circuits.graphs.aggregate_words import difference_sentences, family_sentences
from circuits.graphs.measure import plain

EDGES = 2000
"""Recurring edges of a family that are written, those of largest flow; the circuit's are written all."""


def numbers(found: Aggregation) -> dict[str, Any]:
    """All that was found; edges as :data:`EDGES` says."""
    difference = found.difference
    return {"model": found.model, "transcoders": found.transcoders, "share": found.share, "seed": found.seed,
            "warnings": found.warnings, "families": [_family(found, family) for family in found.families],
            "difference": None if difference is None else _difference(found, difference)}


def edge_rows(found: Aggregation, table: EdgeTable) -> list[dict[str, Any]]:
    """The edges of a family's table, those of largest mean flow first: ends, share of prompts, mean flow over all
    prompts, and over the prompts that have the edge its mean weight and the share with the more common sign."""
    flow, count = np.asarray(table.flow.mean(0)).ravel(), table.count
    weight = np.asarray(table.weight.sum(0)).ravel() / np.maximum(count, 1)
    positive = np.asarray((table.weight > 0).sum(0)).ravel() / np.maximum(count, 1)
    n_items = len(found.items)
    return [{"source": found.item_name(int(table.codes[i]) % n_items),
             "target": found.item_name(int(table.codes[i]) // n_items), "prompts": int(count[i]),
             "present": float(count[i] / table.flow.shape[0]), "influence": float(flow[i]),
             "weight": float(weight[i]), "same_sign": float(max(positive[i], 1 - positive[i]))}
            for i in np.argsort(-flow, kind="stable")]


def _family(found: Aggregation, family: Family) -> dict[str, Any]:
    circuit, keys = family.circuit, found.items.keys
    rows = edge_rows(found, family.edges)
    return {
        "name": family.name, "sentences": family_sentences(family),
        "prompts": [{"name": prompt.name, "prompt": prompt.text, "target": prompt.target,
                     **{name: plain(value) for name, value in prompt.measures.items()}} for prompt in family.prompts],
        "least": family.least, "distinct_features": family.distinct,
        "features": [_recurring(one) | _pair(one.key) | {"density": one.density} for one in family.features],
        "feature_share": family.feature_share.tolist(),
        "supernodes": [_recurring(one) | {"members": [_pair(key) | {"prompts": count}
                                                      for key, count in one.members.items()]}
                       for one in family.supernodes],
        "n_edges": len(rows), "edges": rows[:EDGES],
        "circuit": {"features": [_pair(int(keys[i])) for i in circuit.features],
                    "edges": edge_rows(found, circuit.edges),
                    "held": circuit.held.tolist(), "direct": circuit.direct.tolist(),
                    "core": [_pair(int(keys[i])) for i in circuit.core], "core_held": circuit.core_held.tolist()}}


def _recurring(one: Recurring) -> dict[str, Any]:
    return {"name": one.name, "prompts": one.count, "present": list(one.present), "influence": list(one.influence),
            "place": _place(one.place)}


def _place(place: Place) -> dict[str, Any]:
    return {"words": place.words, "alignment": place.alignment, "where": place.where, "share": place.share,
            "same": place.same, "spread": place.spread, "chance": place.chance, "usual": plain(place.usual),
            "p": plain(place.p), "q": plain(place.q),
            "shares": {name: {"where": where, "share": share} for name, (where, share) in place.shares.items()}}


def _difference(found: Aggregation, made: Difference) -> dict[str, Any]:
    size = len(found.items)
    return {
        "first": made.first, "second": made.second, "prompts": list(made.sizes), "tested": made.tested,
        "smallest_p": made.smallest_p, "sentences": difference_sentences(found, made),
        "features": [_pair(int(made.keys[i])) | {"name": found.feature_name(int(made.keys[i])),
                                                 "influence": made.influence.numbers(i),
                                                 "presence": made.presence.numbers(i)}
                     for i in made.influence.order],
        "n_edges": len(made.edges),
        "edges": [{"source": found.item_name(int(made.codes[i]) % size),
                   "target": found.item_name(int(made.codes[i]) // size), **made.edges.numbers(i)}
                  for i in made.edges.order[:EDGES]],
        "tokens": [{"role": found.item_name(made.roles[i]), **made.tokens.numbers(i)} for i in made.tokens.order],
        "measures": [{"measure": made.measures[i], **made.measured.numbers(i)} for i in made.measured.order]}


def _pair(key: int) -> dict[str, Any]:
    return {"layer": key >> 32, "feature": key & 0xFFFFFFFF}
