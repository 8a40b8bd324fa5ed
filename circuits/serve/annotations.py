"""Pins, supernodes and labels that a reader gives a graph: checked against it, then put into it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.neuronpedia_read import EXTRA
from circuits.serve.refusal import Refusal
from circuits.serve.schemas import Annotations


def annotated(graph: AttributionGraph, given: Annotations) -> AttributionGraph:
    """A copy of ``graph`` with these pins and supernodes, and these labels instead of its own.

    Raises:
        Refusal: 422; an id that no node has.
    """
    index = {node_id: i for i, node_id in enumerate(graph.node_ids)}
    named = [("pinned", given.pinned), ("labels", list(given.labels))]
    named += [(f"supernodes.{i}", ids) for i, (_, *ids) in enumerate(given.supernodes)]
    for where, ids in named:
        for node_id in ids:
            if node_id not in index:
                raise Refusal(422, f"{where}: the graph has no node {node_id[:100]!r}; load it again, it may have "
                              "changed")
    labels = graph.nodes.label.copy()
    for node_id, text in given.labels.items():
        labels[index[node_id]] = text
    header = replace(graph.header, pinned=list(dict.fromkeys(given.pinned)),
                     supernodes=[list(group) for group in given.supernodes])
    return replace(graph, nodes=replace(graph.nodes, label=labels), header=header)


def check_ours(path: Path) -> None:
    """That a graph's file can be rewritten without losing what another program keeps in it. The file is a whole graph.

    Raises:
        Refusal: 409; the file was not written by this program.
    """
    if path.suffix != ".json":
        return
    document = json.loads(path.read_bytes())
    metadata = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(metadata, dict) or not metadata.get(EXTRA):
        raise Refusal(409, f"{path.name} was written by another program, whose fields would be lost: import it in the "
                      "gallery and change the copy")
