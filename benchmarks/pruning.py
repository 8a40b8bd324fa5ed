"""Seconds to prune a full graph of 13,757 nodes.

    python benchmarks/pruning.py --json result.json

The graph is synthetic, with the structure of a 70-token prompt's: an edge from every node below a feature's layer at
its position or earlier, weights with heavy tails. A figure is given only when what was kept holds the shares of
influence asked for, recomputed here in float64 without the engine's code. circuit-tracer's time for such a graph comes
from vs_circuit_tracer.py, which also compares what the two keep.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from measured_run import conclude
from provenance import provenance

from circuits.graphs import AttributionGraph, Header, NodeTable

FEATURES, LAYERS, POSITIONS, LOGITS = 12435, 18, 70, 10
"""With errors (18 x 69), tokens and logits 13,757 nodes."""
NODE_THRESHOLD, EDGE_THRESHOLD = 0.8, 0.98


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Seconds to prune a full graph.")
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--positions", type=int, default=POSITIONS)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args(arguments)
    graph = full_graph(options.features, options.layers, options.positions, options.seed)
    report = run(graph, options.repeats)
    conclude(report, [line(report)], "failure" in report, options.json)


def full_graph(n_features: int, n_layers: int, n_pos: int, seed: int) -> AttributionGraph:
    """Every edge that causality allows, from features, errors and tokens to features and logits; no constants."""
    rng = np.random.default_rng(seed)
    order = np.sort(rng.integers(n_layers * (n_pos - 1), size=n_features))
    kinds = np.repeat(["feature", "error", "embedding", "logit"],
                      [n_features, n_layers * (n_pos - 1), n_pos, LOGITS])
    layer = np.concatenate([order // (n_pos - 1), np.repeat(np.arange(n_layers), n_pos - 1), np.full(n_pos, -1),
                            np.full(LOGITS, n_layers)])
    position = np.concatenate([order % (n_pos - 1) + 1, np.tile(np.arange(1, n_pos), n_layers), np.arange(n_pos),
                               np.full(LOGITS, n_pos - 1)])
    is_target = np.isin(kinds, ["feature", "logit"])
    lengths, indices, weights = np.zeros(len(kinds), np.int64), [], []
    for node in np.flatnonzero(is_target):
        sources = np.flatnonzero((layer < layer[node]) & (position <= position[node]) & (kinds != "logit"))
        lengths[node] = len(sources)
        indices.append(sources.astype(np.int32))
        weights.append(rng.standard_normal(len(sources), np.float32) ** 3)
    nodes = NodeTable.build(len(kinds), kind=kinds, layer=layer, position=position,
                            feature=np.where(kinds == "feature", np.arange(len(kinds)), -1), expanded=is_target,
                            token=np.where(np.isin(kinds, ["embedding", "logit"]), np.arange(len(kinds)), -1))
    probabilities = np.geomspace(0.5, 0.01, LOGITS).astype(np.float32)
    return AttributionGraph(
        nodes, np.append(0, np.cumsum(lengths)), np.concatenate(indices), np.concatenate(weights),
        np.flatnonzero(kinds == "logit").astype(np.int32), probabilities,
        Header(tokens=list(range(n_pos)), token_texts=[""] * n_pos, n_layers=n_layers))


def run(graph: AttributionGraph, repeats: int) -> dict[str, Any]:
    """Prune ``repeats`` times; ``seconds`` are there only when what was kept is right, else ``failure`` is."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        pruned = graph.prune(NODE_THRESHOLD, EDGE_THRESHOLD)
        found.append(time.perf_counter() - started)
    report: dict[str, Any] = {"benchmark": "pruning", **provenance(), "nodes": len(graph), "edges": graph.n_edges,
                              "kept_nodes": len(pruned), "kept_edges": pruned.n_edges,
                              "node_threshold": NODE_THRESHOLD, "edge_threshold": EDGE_THRESHOLD}
    if failure := check(graph, pruned):
        return report | {"failure": failure}
    return report | {"seconds": {"median": statistics.median(found), "min": min(found), "max": max(found),
                                 "n": repeats}}


def check(graph: AttributionGraph, pruned: AttributionGraph) -> str:
    """What is wrong with the nodes kept; empty when nothing is.

    The nodes kept must be among those of most influence that hold the threshold's share, and lack at most those that
    the edge threshold left without edges: a hundredth of influence.
    """
    influence = _influence(graph)
    decided = np.isin(graph.nodes.kind, ["feature", "error"])
    ranked = np.sort(influence)[::-1]
    cut = ranked[int(np.searchsorted(np.cumsum(ranked), NODE_THRESHOLD * ranked.sum()))]
    wanted = {_key(graph, node) for node in np.flatnonzero(decided & (influence >= cut))}
    kept = {_key(pruned, node) for node in np.flatnonzero(np.isin(pruned.nodes.kind, ["feature", "error"]))}
    # two nodes of nearly one influence may change places at the cut in another order of summing
    allowed = {_key(graph, node) for node in np.flatnonzero(decided & (influence >= cut * (1 - 1e-9)))}
    if kept - allowed:
        return f"{len(kept - allowed)} nodes are kept that are below the cut of {NODE_THRESHOLD} of influence"
    lost = sum(influence[node] for node in np.flatnonzero(decided) if _key(graph, node) in wanted - kept)
    if not lost <= 0.01 * influence.sum():
        return f"nodes with {lost / influence.sum():.3f} of influence are missing, allowed is 0.01"
    return ""


def _influence(graph: AttributionGraph) -> np.ndarray:
    """(N,) influence on the targets, one row after the other from the logits down (METHOD 5)."""
    mass = np.zeros(len(graph))
    mass[graph.target_nodes] = graph.target_weights
    arrived = np.zeros(len(graph))
    for node in np.argsort(-graph.nodes.layer, kind="stable"):
        edges = slice(graph.indptr[node], graph.indptr[node + 1])
        if (through := mass[node] + arrived[node]) and edges.stop > edges.start:
            sizes = np.abs(graph.weights[edges].astype(np.float64))
            arrived[graph.indices[edges]] += through * sizes / sizes.sum()
    return arrived


def _key(graph: AttributionGraph, node: int) -> tuple[str, int, int, int]:
    nodes = graph.nodes
    return str(nodes.kind[node]), int(nodes.layer[node]), int(nodes.position[node]), int(nodes.feature[node])


def line(report: dict[str, Any]) -> str:
    """The report as text."""
    if "failure" in report:
        return f"FAILED, so no figures are shown: {report['failure']}"
    seconds = report["seconds"]
    return (f"{report['nodes']:,} nodes, {report['edges']:,} edges to {report['kept_nodes']:,} nodes, "
            f"{report['kept_edges']:,} edges: {seconds['median']:.2f} s ({seconds['min']:.2f} to {seconds['max']:.2f})")


if __name__ == "__main__":
    main()
