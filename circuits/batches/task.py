"""One prompt of a batch: traced, measured, written. The same for every engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.batches.folder import BatchFolder
from circuits.batches.prompts import Prompt
from circuits.batches.settings import BatchSettings
from circuits.errors import InputError
from circuits.graphs.store import replacing

if TYPE_CHECKING:
    from circuits.gemma3 import Gemma3
    from circuits.graphs import AttributionGraph

Report = Callable[[str, int, int], None]
"""Progress: called with a stage, what is done, and the most there can be."""
HEAD_SCORES = 8
"""Attention scores that are taken apart for a graph's page, a second or so each."""
SCORES = ("replacement", "completeness", "completeness_all_nodes")
MEASURED = ("n_tokens", "targets", "answer_probability", "answer_rank", "correct", *SCORES, "unexplored",
            "conservation", "active_features", "expanded_features", "nodes", "edges", "pruned_nodes", "pruned_edges",
            "device", "seconds", "peak_memory_bytes", "graph", "warnings")
"""What a row says of a graph; null in the row of a prompt that failed."""


@dataclass(frozen=True)
class Job:
    """What a process needs to know before its first prompt; plain values only."""

    folder: str
    settings: BatchSettings
    memory: int | None
    """Bytes the process may hold on the device; None: what is free at every trace."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Job:
        return cls(values["folder"], BatchSettings(**values["settings"]), values["memory"])


class PromptTracer:
    """Traces prompts into a folder with a model that is loaded once.

    Raises:
        CircuitsError: the model or the transcoders cannot be opened.
    """

    def __init__(self, job: Job, progress: Report = lambda stage, done, total: None):
        import torch

        import circuits

        settings = job.settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.folder, self.settings, self.memory = BatchFolder(Path(job.folder)), settings, job.memory
        self.model = circuits.load_model(settings.model, dtype=settings.model_dtype, device=settings.device,
                                         progress=progress)
        self.transcoders = circuits.open_transcoders(settings.transcoders, device=self.model.device,
                                                      model=self.model.name)
        self.transcoders.check_model(self.model.n_layers, self.model.d_model, self.model.name)

    def __call__(self, prompt: Prompt, attempt: int) -> None:
        """Trace ``prompt`` and write its graph, its thumbnail and its row; whatever goes wrong is noted in the row.

        Raises:
            InputError: the row cannot be written.
        """
        started = time.monotonic()
        try:
            measured = self._traced(prompt)
        except Exception as error:  # one prompt's trouble, a lack of memory too, must not end the others
            self.folder.write_row(failed_row(prompt, attempt, type(error).__name__, str(error)))
            return
        self.folder.write_row(_described(prompt) | measured | {
            "seconds": time.monotonic() - started, "error": None, "attempts": attempt})

    def _traced(self, prompt: Prompt) -> dict[str, Any]:
        """Write the graph; its measures."""
        import circuits
        from circuits.attention.table import head_table
        from circuits.memory import peak_memory
        from circuits.serve.thumbnail import draw

        settings = self.settings
        answered = {} if prompt.answer is None else _answered(self.model, prompt)
        graph = circuits.trace(
            self.model, self.transcoders, prompt.prompt, tokens=prompt.tokens, chat=prompt.chat,
            target=prompt.target, versus=prompt.versus, coverage=settings.coverage,
            max_features=settings.max_features, max_logits=settings.max_logits, logit_prob=settings.logit_prob,
            dtype=settings.dtype, memory=self.memory)
        kept = graph.prune(settings.node_threshold, settings.edge_threshold) if settings.prune else graph
        if settings.heads:
            kept = replace(kept, heads=head_table(kept, self.model, self.transcoders, scores=HEAD_SCORES))
        path = self.folder.graph(prompt.id)
        kept.save(path)
        with replacing(self.folder.thumbnail(prompt.id)) as beside:
            beside.write_text(draw(kept), encoding="utf-8")
        return _measures(self.model, graph, kept) | answered | {
            "device": str(self.model.device), "peak_memory_bytes": peak_memory(), "graph": f"graphs/{path.name}"}


def failed_row(prompt: Prompt, attempt: int, kind: str, message: str) -> dict[str, Any]:
    """The row of a prompt that has no graph."""
    return _described(prompt) | {"error": {"type": kind, "message": message or kind}, "attempts": attempt}


def _described(prompt: Prompt) -> dict[str, Any]:
    return {"id": prompt.id, **prompt.asked(), "family": prompt.family, "extra": prompt.extra,
            **dict.fromkeys(MEASURED)}


def _measures(model: Gemma3, graph: AttributionGraph, kept: AttributionGraph) -> dict[str, Any]:
    """Numbers of a whole graph, and the size of the part that is kept."""
    from circuits.prompt import token_text

    header = graph.header
    tokens = [int(graph.nodes.token[node]) for node in graph.target_nodes]
    targets = [{"text": graph.nodes.label[node] if token < 0 else token_text(model, token),
                "token": None if token < 0 else token, "probability": None if token < 0 else float(weight)}
               for node, token, weight in zip(graph.target_nodes, tokens, graph.target_weights, strict=True)]
    return {"n_tokens": len(header.tokens), "targets": targets, **{name: header.scores[name] for name in SCORES},
            "unexplored": header.unexplored, "conservation": header.conservation,
            "active_features": header.settings["active_features"],
            "expanded_features": header.settings["expanded_features"], "nodes": len(graph), "edges": graph.n_edges,
            "pruned_nodes": len(kept), "pruned_edges": kept.n_edges, "warnings": list(header.warnings)}


def _answered(model: Gemma3, prompt: Prompt) -> dict[str, Any]:
    """How likely the model finds the expected next token, and how many tokens it finds at least as likely.

    Raises:
        InputError: the answer is not one token of the vocabulary.
    """
    from circuits.prompt import check_tokens, single_token, tokenize

    answer = prompt.answer
    try:
        token = single_token(model, answer) if isinstance(answer, str) else int(answer or 0)
    except InputError as error:
        raise InputError(f"the answer cannot be measured: {error}") from None
    if not 0 <= token < model.vocab_size:
        raise InputError(f"the answer is token id {token}: expected 0 to {model.vocab_size - 1}")
    ids = tokenize(model, prompt.prompt, prompt.chat) if prompt.prompt is not None else check_tokens(
        model, prompt.tokens or [])
    logits = model.freeze(ids).logits
    rank = 1 + int((logits > logits[token]).sum())
    return {"answer_probability": float(logits.softmax(-1)[token]), "answer_rank": rank, "correct": rank == 1}
