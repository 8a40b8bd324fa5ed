"""Our side of vs_circuit_tracer.py, in the environment that circuits is installed in.

    python circuits_run.py prepare WORK MODEL TRANSCODERS...   writes WORK/setup.json and, once, the transcoders
    python circuits_run.py trace SETUP.json TRANSCODERS TOKENS TASK ROWS COVERAGE THREADS FOLDER
        one run: FOLDER/run.json,
        the nodes that pruning keeps and, of the task ``full``, the edges

TASK is ``full``: every active feature's row, to the sparse matrix of all edges; or ``pruned``: rows until at most
1 - COVERAGE of influence is unexplored, then pruning. ROWS is the rows' arithmetic.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import edge_matrix
import kept_nodes
import numpy as np
import random_transcoders
import torch
from measured_run import measure, write_json

import circuits
from circuits.checkpoints.export import export
from circuits.gemma3 import Gemma3
from circuits.graphs import AttributionGraph
from circuits.memory import return_freed_memory
from circuits.prompt import masked_prefix, tokenize

PROMPT = (
    "The ferry left the harbour shortly after six, carrying forty passengers, a few bicycles and the morning post for "
    "the islands. Fog lay over the water until noon, and the captain, who had made the crossing for thirty years, "
    "steered by the sound of the bell buoys. When the sun came out, children ran to the railing and counted the "
    "seals on the rocks, while their parents unpacked bread, cheese and hard-boiled eggs on the wooden benches. A "
    "retired teacher explained to anyone who would listen why the old lighthouse had been painted red, and nobody "
    "believed him. By the time the first houses appeared above the cliffs, the wind had turned to the west, and the "
    "captain rang the bell twice for the pier")
COUNTED = 70
"""Leading tokens at which the random features' mean number was chosen."""
N_TOKENS = 140
NODE_THRESHOLD, EDGE_THRESHOLD = 0.8, 0.98
PACKAGES = ("torch", "transformers", "gemma-circuits")


def prepare(work: str, model_name: str, *kinds: str) -> None:
    """Tokens, folders and settings that both sides share."""
    from circuits.weights import find_weights

    model = circuits.load_model(model_name, device="cpu")
    tokens = tokenize(model, PROMPT)[:N_TOKENS]
    if len(tokens) != N_TOKENS or masked_prefix(tokens) != 1:
        raise ValueError(f"the prompt is {len(tokens)} tokens of {model_name}, expected at least {N_TOKENS}")
    write_json(Path(work, "setup.json"), {
        "model": str(find_weights(model_name)), "model_name": model_name, "n_layers": model.n_layers,
        "d_model": model.d_model, "prompt": PROMPT, "tokens": tokens, "max_logits": 10, "logit_prob": 0.95,
        "node_threshold": NODE_THRESHOLD, "edge_threshold": EDGE_THRESHOLD,
        "transcoders": {kind: _transcoders(kind, Path(work), model, tokens) for kind in kinds}})


def _transcoders(kind: str, work: Path, model: Gemma3, tokens: list[int]) -> dict[str, Any]:
    """Where each side finds the set ``kind``, and what it is."""
    if kind == "random-plt":
        folder = str(random_transcoders.write(work, model, tokens, COUNTED))
        return {"kind": "plt", "ours": folder, "theirs": folder, "features_per_layer": random_transcoders.WIDTH,
                "seed": random_transcoders.SEED}
    if kind != "bundled-clt":
        raise ValueError(f"transcoders are {kind!r}: expected random-plt or bundled-clt")
    bundled = circuits.open_transcoders("bundled")
    # circuit-tracer's own CLT files have no place for the affine skip; it reads Gemma Scope 2's, where it has one
    theirs = export(bundled, work / "bundled-clt", "gemma-scope-2")
    return {"kind": "clt", "ours": "bundled", "theirs": str(theirs), "features_per_layer": bundled.d_transcoder[0]}


def trace(setup_file: str, kind: str, n_tokens: str, task: str, rows: str, coverage: str, threads: str,
          folder: str) -> None:
    """One run of ``task``; model and transcoders are opened before the span."""
    setup = json.loads(Path(setup_file).read_text(encoding="utf-8"))
    torch.set_num_threads(int(threads))
    return_freed_memory()  # as the command line does
    tokens = setup["tokens"][:int(n_tokens)]
    model = circuits.load_model(setup["model"], device="cpu")
    transcoders = circuits.open_transcoders(setup["transcoders"][kind]["ours"])
    full = task == "full"
    # the full matrix means every edge, also where the engine would by itself store fewer
    extent: dict[str, float] = {"coverage": 1.0, "row_mass": 1.0} if full else {"coverage": float(coverage)}

    def span() -> AttributionGraph:
        graph = circuits.trace(model, transcoders, tokens=tokens, max_logits=setup["max_logits"],
                               logit_prob=setup["logit_prob"], dtype=rows, **extent)
        if full:
            graph.adjacency()
        return graph

    graph, figures = measure(span)
    pruned, pruning = measure(lambda: graph.prune(setup["node_threshold"], setup["edge_threshold"]))
    settings = graph.header.settings
    write_json(Path(folder, "run.json"), {
        **figures, "conservation": graph.conservation, "unexplored": graph.unexplored,
        "active_features": settings["active_features"], "rows_computed": settings["expanded_features"],
        "pruning": {"seconds": pruning["seconds"], "cpu_seconds": pruning["cpu_seconds"],
                    "peak_bytes": pruning["peak_bytes"], "nodes": len(graph), "kept_nodes": len(pruned)},
        "versions": {name: version(name) for name in PACKAGES}})
    write_kept(Path(folder), pruned)
    if full:
        write_graph(Path(folder), graph)


def write_kept(folder: Path, graph: AttributionGraph) -> None:
    """The nodes of a pruned graph, constants left out."""
    nodes, parts = graph.nodes, []
    for kind in kept_nodes.KINDS:
        here = np.flatnonzero(nodes.kind == kind)
        feature = {"feature": nodes.feature, "logit": nodes.token}.get(kind)
        parts.append(kept_nodes.rows(kind, nodes.layer[here], nodes.position[here],
                                     -1 if feature is None else feature[here]))
    kept_nodes.write(folder, "kept", parts)


def write_graph(folder: Path, graph: AttributionGraph) -> None:
    """Rows of features and logits; columns of features, errors and tokens (constants are ours alone)."""
    nodes = graph.nodes
    feature, logit = (np.flatnonzero(nodes.kind == kind) for kind in ("feature", "logit"))
    columns = np.concatenate([np.flatnonzero(nodes.kind == kind) for kind in ("feature", "error", "embedding")])
    rows = np.concatenate([feature, logit])
    small = {"features": np.stack([nodes.layer, nodes.position, nodes.feature], 1)[feature].astype(np.int64),
             "values": nodes.value[feature], "logits": nodes.token[logit].astype(np.int64),
             "probabilities": graph.target_weights, "tokens": np.array(graph.header.tokens)}
    adjacency = graph.adjacency()

    def blocks() -> Iterator[np.ndarray]:
        for first in range(0, len(rows), 512):
            yield adjacency[rows[first:first + 512]].toarray()[:, columns]

    edge_matrix.write(folder, small, (len(rows), len(columns)), blocks())


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(*sys.argv[2:])
    else:
        trace(*sys.argv[2:])
