"""What an attribution graph is: a node table and CSR edges whose rows are targets. numpy only at import.

Shapes: N nodes, E edges, K logit targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.graphs.activations import Activations, activations_of_nodes
from circuits.graphs.cards import CardSource, FeatureCards, graph_cards
from circuits.graphs.heads import HeadTable
from circuits.graphs.nodes import NodeTable

if TYPE_CHECKING:
    import networkx
    import scipy.sparse

    from circuits.graphs.paths import TopPaths

KINDS = ("feature", "error", "embedding", "logit", "constant")
FORMAT_VERSION = 1
BLOCK_EDGES = 1 << 18
"""Edges that a pass over a graph works on at once: its temporary arrays stay in cache, and calls stay few."""


@dataclass(frozen=True)
class Header:
    """Where a graph comes from: enough to trace it again, and what the trace measured. Plain JSON values only."""

    prompt: str = ""
    tokens: list[int] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)
    """The text of each prompt token, as the tokenizer decodes it alone."""
    model: str = ""
    n_layers: int = 0
    transcoders: str = ""
    transcoder_kind: str = ""
    """``clt`` or ``plt``."""
    settings: dict[str, Any] = field(default_factory=dict)
    """coverage, max_features, max_logits, logit_prob, dtype, target, versus and, after pruning, the thresholds."""
    unexplored: float = 0.0
    """Influence mass that arrived at features whose rows were not computed (METHOD 4, certificate)."""
    conservation: float = 0.0
    """Largest relative conservation residual over computed rows."""
    reconstruction: list[float] = field(default_factory=list)
    """Per layer: squared error of the transcoder over the squared norm of the MLP output, on this prompt."""
    scores: dict[str, float] = field(default_factory=dict)
    """replacement, completeness, completeness_all_nodes: of the graph before pruning."""
    supernodes: list[list[str]] = field(default_factory=list)
    """[label, node id, node id, ...] as in Neuronpedia's qParams."""
    pinned: list[str] = field(default_factory=list)
    generator: str = ""
    """Name and version of the program that traced it."""
    created: str = ""
    """UTC time, ISO 8601."""
    warnings: list[str] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    """What interventions measured of what the graph predicts, empty where nobody did: ``frozen_max_relative_error``,
    ``spearman_influence``, ``spearman_edge``, ``spearman_activation``, ``spearman_shuffled``,
    ``log_pearson_influence``, ``n_features``, ``created``, and ``effects``: [node id, predicted, measured] for
    features, the effect of ablating the feature on the target."""


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """Direct effects between features, errors, tokens, constants and logits of one prompt (METHOD 3)."""

    nodes: NodeTable
    indptr: np.ndarray
    """(N + 1,) int64: row t's edges are indptr[t]:indptr[t+1]."""
    indices: np.ndarray
    """(E,) int32 source of each edge, ascending within a row."""
    weights: np.ndarray
    """(E,) float32 direct effect of the source on the target."""
    target_nodes: np.ndarray
    """(K,) int32 nodes whose causes the graph explains."""
    target_weights: np.ndarray
    """(K,) float32 share of each in influence: probabilities of logits; 1 for a contrast or a direction."""
    header: Header
    activations: Activations | None = None
    """Where on the prompt the graph's features fired, pruned nodes included; None: the feature nodes are all there is.
    :meth:`prompt_activations` gives the table in either case."""
    cards: FeatureCards | CardSource | None = None
    """What is known of the features, or what can make it when asked; None: nothing. :meth:`feature_cards` asks."""
    heads: HeadTable | None = None
    """Which attention heads carry the edges; None: nobody looked."""

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        return len(self.weights)

    @property
    def conservation(self) -> float:
        """Largest relative conservation residual over computed rows."""
        return self.header.conservation

    @property
    def unexplored(self) -> float:
        """Influence mass at features that were not expanded: no node's influence is wrong by more than this."""
        return self.header.unexplored

    @property
    def scores(self) -> dict[str, float]:
        """``replacement``, ``completeness`` (nodes with inputs), ``completeness_all_nodes``; before pruning."""
        return self.header.scores

    def adjacency(self) -> scipy.sparse.csr_array:
        """(N, N) float32; entry [t, s] is the direct effect of s on t."""
        from scipy.sparse import csr_array

        return csr_array((self.weights, self.indices, self.indptr), shape=(len(self), len(self)))

    @cached_property
    def node_ids(self) -> list[str]:
        """Unique ids, the same after saving, pruning and export: see :func:`graphs.neuronpedia.node_ids`."""
        from circuits.graphs.neuronpedia import node_ids

        return node_ids(self)

    def prompt_activations(self) -> Activations:
        """Every place on the prompt where a feature of this graph fired."""
        return activations_of_nodes(self.nodes) if self.activations is None else self.activations

    def feature_cards(self) -> FeatureCards | None:
        """What is known of this graph's features, at most cards.MAX_CARDS of them: those of largest influence. None
        where the graph carries no cards. A tracer's cards are made at the first call, which may take seconds."""
        return self._feature_cards

    @cached_property
    def _feature_cards(self) -> FeatureCards | None:
        return graph_cards(self)

    def row_blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """``rows`` (ascending integers) cut into runs of about ``BLOCK_EDGES`` edges, or of twice as many edges as
        there are nodes where that is more: then a vector over all nodes costs a block no more than its edges do."""
        ends = np.cumsum(self.indptr[rows + 1] - self.indptr[rows])
        return np.split(rows, np.flatnonzero(np.diff(ends // max(BLOCK_EDGES, 2 * len(self)))) + 1)

    def edges_into(self, rows: np.ndarray) -> np.ndarray | slice:
        """Where the edges into the nodes ``rows`` (ascending integers) stand in ``indices`` and ``weights``, in row
        order: a slice when no other edge stands between them, so that using it copies nothing."""
        starts = self.indptr[rows]
        lengths = self.indptr[rows + 1] - starts
        ends = np.cumsum(lengths)
        count = int(ends[-1]) if len(ends) else 0
        first = int(starts[0]) if count else 0
        if count == 0 or int(self.indptr[rows[-1] + 1]) - first == count:
            return slice(first, first + count)
        return np.repeat(starts - ends + lengths, lengths) + np.arange(count)

    def edges_between(self, keep: np.ndarray) -> np.ndarray:
        """(E',) int64 positions of the edges whose two ends are in the mask ``keep`` (N,)."""
        return np.concatenate([edges for _, edges in self._blocks_between(keep)])

    def _blocks_between(self, keep: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Blocks of the rows in ``keep`` (N,), and (E',) the positions of their edges from nodes in it."""
        for rows in self.row_blocks(np.flatnonzero(keep)):
            edges = self.edges_into(rows)
            inside = np.flatnonzero(keep.take(self.indices[edges]))
            yield rows, inside + edges.start if isinstance(edges, slice) else edges[inside]

    def subgraph(self, keep: np.ndarray, keep_edges: np.ndarray | None = None) -> AttributionGraph:
        """The graph of the nodes in the mask ``keep`` (N,) and, of the edges between them, those in the mask
        ``keep_edges`` (E,). Pins and supernodes lose the nodes that are gone; ``activations`` keep every place where a
        feature that is left fired, ``heads`` every edge whose two nodes are left."""
        keep = np.asarray(keep, dtype=bool)
        keep_edges = None if keep_edges is None else np.asarray(keep_edges, dtype=bool)
        new = np.cumsum(keep, dtype=np.int32) - np.int32(1)
        lengths, indices, weights = [], [], []
        for rows, edges in self._blocks_between(keep):
            if keep_edges is not None:
                edges = edges[keep_edges.take(edges)]
            lengths.append(np.searchsorted(edges, self.indptr[rows + 1]) - np.searchsorted(edges, self.indptr[rows]))
            indices.append(new.take(self.indices.take(edges)))
            weights.append(self.weights.take(edges))
        kept_targets = keep[self.target_nodes]
        header = self.header
        if header.pinned or header.supernodes:
            present = {node_id for node_id, kept in zip(self.node_ids, keep, strict=True) if kept}
            groups = [[label, *(i for i in ids if i in present)] for label, *ids in header.supernodes]
            header = replace(header, pinned=[i for i in header.pinned if i in present],
                             supernodes=[group for group in groups if len(group) > 1])
        nodes = self.nodes.take(keep)
        return replace(
            self, nodes=nodes, indptr=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
            indices=np.concatenate(indices), weights=np.concatenate(weights),
            target_nodes=new[self.target_nodes[kept_targets]],
            target_weights=self.target_weights[kept_targets], header=header,
            activations=self.prompt_activations().left(nodes),
            heads=None if self.heads is None else self.heads.left(np.where(keep, new, -1)))

    def prune(self, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> AttributionGraph:
        """The part that carries the given shares of influence; see :func:`graphs.prune.prune`."""
        from circuits.graphs.prune import prune

        return prune(self, node_threshold, edge_threshold)

    def top_paths(self, target: int | None = None, count: int = 10) -> TopPaths:
        """Strongest paths from tokens to a target; see :func:`graphs.paths.top_paths`."""
        from circuits.graphs.paths import top_paths

        return top_paths(self, target, count)

    def validate(self, model: Any, transcoders: Any, **settings: Any) -> Any:
        """Test the graph on the model it explains; see :func:`circuits.validate`."""
        # by name: who has a model has the engine, and graphs alone must load without it
        return import_module("circuits.validation.validate").validate(self, model, transcoders, **settings)

    def save(self, path: str | Path) -> None:
        """Write the native file; see :func:`graphs.store.save`."""
        from circuits.graphs.store import save

        save(self, path)

    def to_networkx(self) -> networkx.DiGraph:
        """Edges point from source to target; node attributes are the table's columns, edges carry ``weight``."""
        from circuits.graphs.export import to_networkx

        return to_networkx(self)

    def to_graphml(self, path: str | Path) -> None:
        """Write GraphML; see :func:`graphs.export.to_graphml`."""
        from circuits.graphs.export import to_graphml

        to_graphml(self, path)

    def to_neuronpedia(self, path: str | Path, slug: str = "graph") -> None:
        """Write attribution-graph JSON in Neuronpedia's schema; see :func:`graphs.neuronpedia.write`."""
        from circuits.graphs.neuronpedia import write

        write(self, path, slug)

    def to_html(self, path: str | Path, thresholds: tuple[float, float] | None = None) -> None:
        """Write one self-contained page; see :func:`graphs.page.write`."""
        from circuits.graphs.page import write

        write(self, path, thresholds)
