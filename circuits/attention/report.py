"""Attention in the terminal: tables, and the same numbers as plain JSON values.

Each function gives the tables to print and the numbers to write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from circuits.attention.components import KINDS
from circuits.attention.edge_heads import TOLERANCE, HeadLoadings, graph_head_loadings, strongest_edges
from circuits.attention.names import ComponentNames
from circuits.attention.qk import qk_attribution
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs.graph import AttributionGraph
from circuits.replacement import LocalReplacement
from circuits.report import visible
from circuits.transcoder import Transcoders

Told = tuple[list[Table | Text], dict[str, Any]]


@dataclass(frozen=True)
class AttentionOf:
    """A graph, what it was made with, and the replacement model of its prompt."""

    graph: AttributionGraph
    model: Gemma3
    transcoders: Transcoders
    local: LocalReplacement

    def edge(self, source: str, target: str, top: int) -> Told:
        """The heads that carry one edge, given by node ids.

        Raises:
            InputError: there is no such edge.
        """
        found = self._loadings([(source, target)])
        parts = found[0]
        names = [self._node(int(node)) for node in (found.source[0], found.target[0])]
        table = Table("head", "loading", "share of the edge", title=f"{names[0]} → {names[1]}: {parts.edge:+.4f}",
                      title_justify="left")
        for layer, head, loading in found.strongest(0, top):
            table.add_row(f"{layer}/{head}", f"{loading:+.4f}", f"{loading / parts.edge:+.1%}")
        crossed = np.flatnonzero(parts.loadings.any(1))
        passes = Table("layer", "through its heads", "by without attention", title="At every layer between the two",
                       title_justify="left")
        for layer in crossed.tolist():
            passes.add_row(str(layer), f"{parts.loadings[layer].sum():+.4f}", f"{parts.bypass[layer]:+.4f}")
        numbers = {"source": source, "target": target, "weight": parts.edge, "loadings": parts.loadings.tolist(),
                   "bypass": parts.bypass.tolist(), **_check(found)}
        if not len(crossed):
            none = Text(f"{names[0]} → {names[1]}: {parts.edge:+.4f}. No attention carries any of it.")
            return [none, _checked(found)], {"edge": numbers}
        return [table, passes, _checked(found)], {"edge": numbers}

    def head(self, head: str, top: int) -> Told:
        """The edges that one head carries most."""
        layer, number = self._read_head(head)
        found = self._loadings(strongest_edges(self.graph))
        table = Table("from", "to", "edge", "through this head", title=f"Edges that head {layer}/{number} carries most",
                      title_justify="left")
        edges = []
        for at in found.edges_of(layer, number, top):
            source, target, loading = int(found.source[at]), int(found.target[at]), float(
                found.loadings[at, layer, number])
            table.add_row(Text(self._node(source)), Text(self._node(target)), f"{found.weights[at]:+.4f}",
                          f"{loading:+.4f}")
            edges.append({"source": self.graph.node_ids[source], "target": self.graph.node_ids[target],
                          "weight": float(found.weights[at]), "loading": loading})
        return [table, _checked(found)], {"head": {"layer": layer, "head": number, "edges": edges, **_check(found)}}

    def strongest(self, top: int) -> Told:
        """The heads that carry most of the graph."""
        found = self._loadings(strongest_edges(self.graph))
        shares = found.shares()
        table = Table("head", "carries", "most of", title="Heads that carry most of the graph's edges",
                      title_justify="left", caption_justify="left",
                      caption="carries: sum over edges of |loading| as share of the target's input")
        heads = []
        for flat in np.argsort(-shares, axis=None, kind="stable")[:top]:
            layer, head = (int(index) for index in np.unravel_index(flat, shares.shape))
            best = found.edges_of(layer, head, 1)
            edge = [self._node(int(node[best[0]])) for node in (found.source, found.target)] if len(best) else []
            table.add_row(f"{layer}/{head}", f"{shares[layer, head]:.2f}", Text(" → ".join(edge)))
            heads.append({"layer": layer, "head": head, "carries": float(shares[layer, head])})
        return [table, _checked(found)], {"heads": heads, **_check(found)}

    def score(self, head: str, query: int | None, key: int, versus: int | None, top: int) -> Told:
        """Why a head looks at a key, or there rather than at another.

        Raises:
            InputError: no such head or position, or a key that the query does not see.
        """
        layer, number = self._read_head(head)
        query = self.local.n_positions - 1 if query is None else query
        found = qk_attribution(self.model, self.local, layer, number, query, key, versus_key=versus)
        names = ComponentNames(self.graph, self.model, self.transcoders, self.local)
        texts = [self._token(p) for p in (query, key)]
        title = f"Head {layer}/{number}, query {texts[0]}, key {texts[1]}"
        title += "" if versus is None else f" rather than {self._token(versus)}"
        pairs = Table("contribution", "at the query", "at the key", title=f"{title}: score {found.score:+.3f}",
                      title_justify="left")
        listed = []
        for pair in found.merged().pairs(top):
            both = [names.of(found.components[source]) for source in (pair.query_source, pair.key_source)]
            pairs.add_row(f"{pair.contribution:+.3f}", Text(visible(both[0])), Text(visible(both[1])))
            listed.append({"query": both[0], "key": both[1], "contribution": pair.contribution})
        by_kind = found.by_kind()
        kinds = Table("at the query", *KINDS, title="Sums by kind; columns: at the key", title_justify="left")
        for kind, row in zip(KINDS, by_kind, strict=True):
            kinds.add_row(kind, *(f"{value:+.3f}" for value in row))
        sides = []
        marginals: dict[str, Any] = {}
        for side, parts, values in (("query", found.queries, found.by_query()), ("key", found.keys, found.by_key())):
            order = np.argsort(-np.abs(values), kind="stable")[:top]
            table = Table("contribution", f"component at the {side}", title=f"By component at the {side}",
                          title_justify="left")
            marginals[f"by_{side}"] = []
            for at in order:
                name = names.of(found.components[int(parts.source[at])])
                table.add_row(f"{values[at]:+.3f}", Text(visible(name)))
                marginals[f"by_{side}"].append({"component": name, "contribution": float(values[at])})
            sides.append(table)
        note = Text(f"All pairs sum to the score within {found.residual:.1e} (relative). The softmax also weighs every "
                    "other key, which no pair explains:")
        seen = Table("key", "score", "attention", title="What the query sees", title_justify="left")
        for position in np.argsort(-found.pattern, kind="stable")[:top]:
            seen.add_row(self._token(int(position)), f"{found.scores[position]:+.3f}",
                         f"{found.pattern[position]:.4f}")
        numbers = {"layer": layer, "head": number, "query": query, "key": key, "versus": versus, "score": found.score,
                   "residual": found.residual, "pairs": listed, "by_kind": {"kinds": KINDS, "sums": by_kind.tolist()},
                   **marginals, "scores": found.scores.tolist(), "pattern": found.pattern.tolist()}
        return [pairs, *sides, kinds, note, seen], {"score": numbers}

    def _loadings(self, edges: Sequence[tuple[str, str]] | np.ndarray) -> HeadLoadings:
        return graph_head_loadings(self.graph, self.model, self.transcoders, edges, local=self.local)

    def _read_head(self, text: str) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text, re.ASCII)
        layers, heads = self.model.n_layers, self.model.n_heads
        if not match or int(match[1]) >= layers or int(match[2]) >= heads:
            raise InputError(f"head is {text!r}: expected LAYER/HEAD, layers 0 to {layers - 1}, heads 0 to {heads - 1}")
        return int(match[1]), int(match[2])

    def _node(self, node: int) -> str:
        position = int(self.graph.nodes.position[node])
        where = f" @{position}" if self.graph.nodes.kind[node] == "feature" else ""
        return visible(f"{self.graph.nodes.label[node]}{where}")

    def _token(self, position: int) -> str:
        texts = self.graph.header.token_texts
        return f"{position} {visible(texts[position])!r}" if 0 <= position < len(texts) else str(position)


def _check(found: HeadLoadings) -> dict[str, float]:
    return {"edges_checked": len(found), "largest_difference": float(found.differences().max(initial=0.0))}


def _checked(found: HeadLoadings) -> Text:
    worst = float(found.differences().max(initial=0.0))
    return Text(f"{len(found)} edge(s): heads and what passes by sum to the edge within {worst:.1e} (relative) at "
                "every layer", style="" if worst <= TOLERANCE else "yellow")
