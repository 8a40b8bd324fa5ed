"""Graphs compared with their models at hand: signatures over the vocabulary, correlations on a text, what models read.

The numbers are those of :mod:`circuits.graphs.compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from circuits.comparing.correlation import corpus_view
from circuits.comparing.lens import read_layers
from circuits.comparing.signatures import signatures_of, vocabulary_views, with_spares
from circuits.comparing.vocabulary import Vocabulary
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs import compare as numbers
from circuits.graphs.activations import feature_keys
from circuits.graphs.alignment import WINDOW
from circuits.graphs.comparable import check_comparable, check_unrelated
from circuits.graphs.decided import Reading
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.signatures import CORPUS, Signatures
from circuits.training.held_out import read_sequences
from circuits.transcoder import Transcoders, open_transcoders
from circuits.weights import load_model

CORPUS_TOKENS = 16384
"""Tokens of the corpus that are read."""
CORPUS_LENGTH = 128
"""Tokens that are read in one piece, fewer where the first model reads fewer."""

Report = Callable[[str, int, int], None]
Opened = tuple[Gemma3, Transcoders]
Source = tuple[str, str] | Opened
"""Names of a model and of a transcoder set, or both opened."""


def compare(graphs: Sequence[AttributionGraph], models: Sequence[Source] | None = None, *, corpus: Path | None = None,
            unrelated: Sequence[AttributionGraph] = (), with_models: bool = True, two_prompts: bool = False,
            node_threshold: float = 0.8, edge_threshold: float = 0.98, window: float = WINDOW, seed: int = 0,
            device: str = "auto", progress: Report = lambda stage, done, total: None) -> numbers.Comparison:
    """Compare two or more graphs; the first is the reference (METHOD 9).

    Args:
        models: what each graph was made with; by default what the graphs say. Names are opened one after the other, so
            that one model is in memory at a time.
        corpus: plain text or JSONL with a ``text`` key, of which at most CORPUS_TOKENS tokens are read: features are
            also compared by how their activations on it correlate.
        with_models: False opens nothing: features are compared by the promoted tokens of the graphs' cards alone.
        unrelated, two_prompts, node_threshold, edge_threshold, window, seed: see
            :func:`circuits.graphs.compare.compare`.

    Raises:
        InputError: graphs that cannot be compared, unusable settings, models of other vocabularies, or a corpus that
            cannot be read.
        ModelError: a model that cannot be opened, or transcoders of another one.
    """
    settings: dict[str, Any] = {"unrelated": unrelated, "two_prompts": two_prompts, "node_threshold": node_threshold,
                "edge_threshold": edge_threshold, "window": window, "seed": seed}
    numbers.check_window(window)  # before the models, which take long to open
    check_comparable(graphs, two_prompts)
    check_unrelated(graphs, unrelated)
    if models is not None and len(models) != len(graphs):
        raise InputError(f"{len(models)} models are named for {len(graphs)} graphs: name one for each, or none")
    if not with_models:
        if corpus is not None or models is not None:
            raise InputError("a corpus and models are of no use when no model is opened: leave them out, or open the "
                             "models")
        return numbers.compare(graphs, **settings)
    sources = [_source(graph, number) for number, graph in enumerate(graphs, 1)] if models is None else list(models)
    sources += [_source_of_unrelated(null, graphs, sources) for null in unrelated]
    everything = [*graphs, *unrelated]
    _, parts = numbers.prepared(everything, node_threshold, edge_threshold)
    look = _Look(corpus, device, seed, progress)
    made: dict[int, Signatures] = {}
    readings: dict[int, Reading | None] = {}
    for source in _distinct(sources):
        members = [i for i, other in enumerate(sources) if other is source or other == source]
        known, read = look.at(source, [everything[i] for i in members], [parts[i] for i in members])
        made |= dict.fromkeys(members, known)
        readings |= dict(zip(members, read, strict=True))
    widest = max(view.rows.shape[1] for known in made.values() for view in known.views.values())
    widened = [made[i].widened(widest) for i in range(len(everything))]
    progress("comparing", 0, 1)
    return numbers.compare(graphs, widened[:len(graphs)], readings=[readings[i] for i in range(len(graphs))],
                           unrelated_signatures=widened[len(graphs):], **settings)


class _Look:
    """Looks into one model after the other; what they must share is kept from the first."""

    def __init__(self, corpus: Path | None, device: str, seed: int, progress: Report):
        self.corpus, self.device, self.seed, self.progress = corpus, device, seed, progress
        self.vocabulary: Vocabulary | None = None
        self.text: list[list[int]] | None = None

    def at(self, source: Source, graphs: list[AttributionGraph], parts: list[AttributionGraph]
           ) -> tuple[Signatures, list[Reading | None]]:
        """Signatures of the features of the pruned ``parts``, and what the model reads on each graph's prompt. The
        model is let go on return."""
        model, transcoders = self._open(source)
        for graph in graphs:
            if graph.header.n_layers != model.n_layers:
                raise InputError(f"a graph has {graph.header.n_layers} layers, {model.name} has {model.n_layers}: name "
                                 "the model that it was traced with")
        transcoders.check_model(model.n_layers, model.d_model, model.name)
        vocabulary = Vocabulary.of(model)
        if self.vocabulary is None:
            self.vocabulary = vocabulary
        self.vocabulary.check_shared(vocabulary)
        if self.corpus is not None and self.text is None:
            length = min(CORPUS_LENGTH, model.max_positions)
            self.text = read_sequences(model, self.corpus, length=length, max_tokens=CORPUS_TOKENS)
        self.progress(f"what features of {model.name} write and read", 0, 1)
        layer, feature, spare = with_spares(*feature_names(parts), transcoders.d_transcoder, self.seed)
        views = vocabulary_views(model, transcoders, layer, feature)
        if self.text is not None:
            views[CORPUS] = corpus_view(model, transcoders, self.text, layer, feature, self.progress)
        return signatures_of(model, layer, feature, views, spare), [_reading(model, graph) for graph in graphs]

    def _open(self, source: Source) -> Opened:
        model, transcoders = source
        if isinstance(model, Gemma3) and isinstance(transcoders, Transcoders):
            return model, transcoders
        self.progress(f"loading {model}", 0, 1)
        opened = load_model(str(model), device=self.device, progress=self.progress)
        return opened, open_transcoders(str(transcoders), device=opened.device, model=opened.name)


def named_sources(graphs: Sequence[AttributionGraph], models: Sequence[str] | None,
                  transcoders: Sequence[str] | None) -> list[Source] | None:
    """What :func:`compare` takes as ``models`` where only some names are given; None where none is.

    Raises:
        InputError: other numbers of names than graphs, or a graph that does not say what no name is given for.
    """
    if not models and not transcoders:
        return None
    for what, names in (("models", models), ("transcoder sets", transcoders)):
        if names and len(names) != len(graphs):
            raise InputError(f"{len(names)} {what} are named for {len(graphs)} graphs: name one for each, or none")
    return [_source(replace(graph, header=replace(
        graph.header, model=models[i] if models else graph.header.model,
        transcoders=transcoders[i] if transcoders else graph.header.transcoders)), i + 1)
        for i, graph in enumerate(graphs)]


def _distinct(sources: list[Source]) -> list[Source]:
    kept: list[Source] = []
    for source in sources:
        if not any(other is source or other == source for other in kept):
            kept.append(source)
    return kept


def _source(graph: AttributionGraph, number: int) -> Source:
    names = {"model": graph.header.model, "transcoder set": graph.header.transcoders}
    if unknown := [what for what, name in names.items() if not name]:
        raise InputError(f"graph {number} does not say which {unknown[0]} it was made with: name models and sets for "
                         "all graphs, or compare without models")
    return graph.header.model, graph.header.transcoders


def _source_of_unrelated(null: AttributionGraph, graphs: Sequence[AttributionGraph], sources: list[Source]) -> Source:
    """That of the later graph with its model and transcoders; :func:`check_unrelated` has seen that there is one."""
    return next(source for graph, source in list(zip(graphs, sources, strict=False))[1:]
                if (graph.header.model, graph.header.transcoders) == (null.header.model, null.header.transcoders))


def feature_names(graphs: Sequence[AttributionGraph]) -> tuple[np.ndarray, np.ndarray]:
    """Layer and number of every feature of the graphs once, ascending."""
    masks = [graph.nodes.kind == "feature" for graph in graphs]
    keys = np.unique(np.concatenate([feature_keys(graph.nodes.layer[mask], graph.nodes.feature[mask])
                                     for graph, mask in zip(graphs, masks, strict=True)]))
    return (keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32)


def _reading(model: Gemma3, graph: AttributionGraph) -> Reading | None:
    """Of the first target; None for a contrast or a direction, which no token is."""
    token = int(graph.nodes.token[graph.target_nodes[0]])
    return read_layers(model, graph.header.tokens, token) if token >= 0 else None
