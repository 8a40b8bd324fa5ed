"""One run of circuit-tracer for vs_circuit_tracer.py, in circuit-tracer's own environment.

    python circuit_tracer_run.py SETUP.json TRANSCODERS TOKENS BATCH_SIZE PRUNE THREADS FOLDER

PRUNE is 1 to have it prune its graph as well. Leaves FOLDER/run.json (times, memory, versions), the edges
(edge_matrix.py) and, after pruning, the nodes that stay (kept_nodes.py): ``kept`` as it prunes its own graph, and
``kept_scaled`` as it prunes it with token columns multiplied by sqrt(d_model), as the model does (METHOD 3).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import edge_matrix
import kept_nodes
import numpy as np
import torch
from circuit_tracer import attribute
from circuit_tracer.graph import Graph, prune_graph
from circuit_tracer.replacement_model.replacement_model_nnsight import NNSightReplacementModel
from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from measured_run import measure, write_json

PACKAGES = ("torch", "transformers", "nnsight", "circuit-tracer")
MASKED = 1
"""Leading positions without features or errors: <bos>."""
HOOKS = ("mlp.hook_in", "hook_mlp_out")
PRUNING_BYTES = 36
"""Per entry of the adjacency: the matrix, its masked copy, edge scores, and their sort with 8-byte indices."""


def main(setup_file: str, kind: str, n_tokens: str, batch_size: str, prune: str, threads: str, folder: str) -> None:
    setup = json.loads(Path(setup_file).read_text(encoding="utf-8"))
    torch.set_num_threads(int(threads))
    tokens = torch.tensor(setup["tokens"][:int(n_tokens)])
    model = open_model(setup, kind)
    graph, figures = measure(lambda: attribute(
        tokens, model, max_n_logits=setup["max_logits"], desired_logit_prob=setup["logit_prob"],
        batch_size=int(batch_size), max_feature_nodes=None, offload=None))
    report: dict[str, Any] = {**figures, "versions": {name: version(name) for name in PACKAGES}}
    write_json(Path(folder, "attribution.json"), report)  # should pruning be killed, this is known
    order = Order.of(graph, setup["n_layers"])
    # before the edges are written, whose mapped file would count as its memory
    if prune == "1":
        report["pruning"] = pruned(Path(folder), graph, order, setup)
    write_graph(Path(folder), graph, order)
    if prune == "1" and "skipped" not in report["pruning"]:
        report["pruning"]["kept_nodes_scaled"] = pruned_scaled(Path(folder), graph, order, setup)
    write_json(Path(folder, "run.json"), report)


def open_model(setup: dict[str, Any], kind: str) -> NNSightReplacementModel:
    """Per-layer weights are read lazily, as on our side: it is circuit-tracer's leanest setting and costs it no time.
    Its one path for a CLT with an affine skip, Gemma Scope 2's, reads everything; it leaves out the last file it is
    given, so the last layer's is given twice, as the published lists do."""
    folder, layers, device = Path(setup["transcoders"][kind]["theirs"]), setup["n_layers"], torch.device("cpu")
    common = {"device": device, "dtype": torch.float32}
    if setup["transcoders"][kind]["kind"] == "plt":
        paths = {i: str(folder / f"layer_{i}.safetensors") for i in range(layers)}
        transcoders = load_transcoder_set(paths, "random", *HOOKS, **common, lazy_encoder=True, lazy_decoder=True)
    else:
        paths = {i: str(folder / f"params_layer_{min(i, layers - 1)}.safetensors") for i in range(layers + 1)}
        transcoders = load_gemma_scope_2_clt(paths, *HOOKS, scan="bundled", **common)
    return NNSightReplacementModel.from_pretrained_and_transcoders(setup["model"], transcoders, device="cpu",
                                                                   dtype=torch.float32)


@dataclass(frozen=True)
class Order:
    """Where circuit-tracer's nodes stand: features, errors (layer-major), tokens, logits."""

    n: int
    n_layers: int
    n_pos: int
    n_logits: int

    @classmethod
    def of(cls, graph: Graph, n_layers: int) -> Order:
        return cls(len(graph.active_features), n_layers, len(graph.input_tokens), len(graph.logit_targets))

    @property
    def errors(self) -> np.ndarray:
        """(L, P)"""
        return self.n + np.arange(self.n_layers * self.n_pos).reshape(self.n_layers, self.n_pos)

    @property
    def tokens(self) -> slice:
        first = self.n + self.n_layers * self.n_pos
        return slice(first, first + self.n_pos)


def write_graph(folder: Path, graph: Graph, order: Order) -> None:
    """Its adjacency without the rows of sources and without the error columns of masked positions, all zero."""
    adjacency = graph.adjacency_matrix.numpy()
    if adjacency[:, order.errors[:, :MASKED].ravel()].any():
        raise ValueError("circuit-tracer gave the masked position an error: expected zeros")
    columns = np.r_[:order.n, order.errors[:, MASKED:].ravel(), order.tokens]
    rows = np.r_[:order.n, len(adjacency) - order.n_logits:len(adjacency)]
    small = {"features": graph.active_features.numpy(), "values": graph.activation_values.numpy(),
             "logits": np.array([target.vocab_idx for target in graph.logit_targets]),
             "probabilities": graph.logit_probabilities.numpy(), "tokens": graph.input_tokens.numpy()}
    blocks = (adjacency[rows[first:first + 512]][:, columns] for first in range(0, len(rows), 512))
    edge_matrix.write(folder, small, (len(rows), len(columns)), blocks)


def pruned(folder: Path, graph: Graph, order: Order, setup: dict[str, Any]) -> dict[str, Any]:
    """Time its pruning; ``skipped`` says why it was not run where the machine lacks the memory."""
    n_nodes = len(graph.adjacency_matrix)
    if (free := _free_bytes()) < (needed := PRUNING_BYTES * n_nodes ** 2):
        return {"skipped": f"prune_graph would need {needed / 1e9:.0f} GB for {n_nodes:,} nodes, "
                           f"{free / 1e9:.0f} GB are free"}
    result, figures = measure(lambda: prune_graph(graph, setup["node_threshold"], setup["edge_threshold"]))
    mask = result.node_mask.numpy()
    write_kept(folder, "kept", graph, order, mask)
    return {"seconds": figures["seconds"], "cpu_seconds": figures["cpu_seconds"], "peak_bytes": figures["peak_bytes"],
            "nodes": n_nodes, "kept_nodes": int(mask.sum())}


def pruned_scaled(folder: Path, graph: Graph, order: Order, setup: dict[str, Any]) -> int:
    """Prune again, untimed, with the tokens as the model scales them; how many nodes stay."""
    graph.adjacency_matrix[:, order.tokens] *= setup["d_model"] ** 0.5
    mask = prune_graph(graph, setup["node_threshold"], setup["edge_threshold"]).node_mask.numpy()
    write_kept(folder, "kept_scaled", graph, order, mask)
    return int(mask.sum())


def write_kept(folder: Path, name: str, graph: Graph, order: Order, mask: np.ndarray) -> None:
    layer, position, feature = graph.active_features.numpy()[mask[:order.n]].T
    error_layer, error_position = np.nonzero(mask[order.errors])
    logits = np.array([target.vocab_idx for target in graph.logit_targets])[mask[len(mask) - order.n_logits:]]
    kept_nodes.write(folder, name, [
        kept_nodes.rows("feature", layer, position, feature),
        kept_nodes.rows("error", error_layer, error_position),
        kept_nodes.rows("embedding", np.array(-1), np.flatnonzero(mask[order.tokens])),
        kept_nodes.rows("logit", np.array(order.n_layers), np.array(order.n_pos - 1), logits)])


def _free_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return sys.maxsize
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main(*sys.argv[1:])
