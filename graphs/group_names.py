"""What suggested supernodes are called, and the sentence that says why they are suggested.

Shapes: C candidate features, M members of a group.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from circuits.graphs.cards import FeatureCards
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.words import listed, node_name, quoted, shown

LONGEST = 60
"""Characters of a name."""
TOKENS = 3
"""Tokens in a name."""
_ROLES = {"says": 1.5, "after": 0.7, "before": 0.7}
"""How much more or less than the others the parts of a label tell: what features do, what stands beside them."""
_TOKEN = r"""(?:"[^"]*"|'[^']*')"""
_CLAUSE = re.compile(rf"(on|after|before|says|->) ({_TOKEN}(?:, {_TOKEN})*)")
"""A part of a label as the rule of circuits.features writes it."""

Pair = tuple[int, int]
"""Layer and feature."""


class Term(NamedTuple):
    """Something that is said of a feature."""

    role: str
    """on, after, before, says; "" for a label in free words."""
    text: str

    @property
    def key(self) -> Term:
        """The same for spellings that differ in spaces around and capitals."""
        return Term(self.role, folded(self.text))


class Namer:
    """Names groups of one graph by what sets them apart from its other features."""

    def __init__(self, graph: AttributionGraph, candidates: np.ndarray, cards: FeatureCards | None):
        """
        Args:
            candidates: (C,) nodes that groups are made of.
        """
        self.graph, self.cards = graph, cards
        self.labels = {pair: _label_terms(_label(graph, node)) for pair, node in _features(graph, candidates).items()}
        self.common = Counter(key for terms in self.labels.values() for key in {term.key for term in terms})

    def name(self, nodes: np.ndarray) -> str:
        """What half of the features or more promote; else the terms of their labels that say most of them and least
        of other features, with an ellipsis where not half of them share it; else where they stand. Never empty.

        Args:
            nodes: (M,) members.
        """
        features = _features(self.graph, nodes)
        if len(features) == 1:
            (layer, feature), node = next(iter(features.items()))
            number = f" ({layer}/{feature})"
            return shown(_label(self.graph, node) or "feature", LONGEST - len(number)) + number
        half = max(2, (len(features) + 1) // 2)
        promoted = _counted(promoted_by(self.graph, self.cards, features))
        if promoted and promoted[0][1] >= half:
            return _composed([term for term, count in promoted if count >= half], more=False)
        labels = {pair: self.labels[pair] for pair in features}
        counts = {term.key: count for term, count in _counted(labels)}
        terms = self._telling(labels)
        if not terms:
            return f"features {_place(self.graph, nodes)}"
        return _composed(terms, more=any(counts[term.key] < half for term in terms))

    def names(self, groups: Sequence[np.ndarray]) -> list[str]:
        """A name for each group (M,), with layers and then a number added to those that would be the same."""
        made = [self.name(nodes) for nodes in groups]
        made = [f"{name}, {_layers(self.graph, nodes)}" if made.count(name) > 1 else name
                for name, nodes in zip(made, groups, strict=True)]
        return [f"{name}, no. {made[:i + 1].count(name)}" if made.count(name) > 1 else name
                for i, name in enumerate(made)]

    def _telling(self, labels: Mapping[Pair, Sequence[Term]]) -> list[Term]:
        """At most TOKENS terms of one role, the best first. A term is worth its rareness in the graph for each feature
        that has it, half of it where it is the second of its role, and so on; a role is worth its best terms."""
        worth: dict[Term, float] = defaultdict(float)
        spelling: dict[Term, Term] = {}
        for terms in labels.values():
            rank: Counter[str] = Counter()
            for term in terms:
                rank[term.role] += 1
                worth[term.key] += math.log1p(len(self.labels) / self.common[term.key]) / rank[term.role]
                spelling.setdefault(term.key, term)
        roles: dict[str, list[Term]] = defaultdict(list)
        for key in sorted(worth, key=lambda key: (not _wordlike(key.text), -worth[key])):
            roles[key.role].append(key)
        if not roles:
            return []
        best = max(roles, key=lambda role: _ROLES.get(role, 1.0) * sum(worth[key] for key in roles[role][:TOKENS]))
        return [spelling[key] for key in roles[best][:TOKENS]]


def reason_of(graph: AttributionGraph, nodes: np.ndarray, cards: FeatureCards | None, outputs: float, inputs: float
              ) -> str:
    """``All at position 4 (" Jordan"), layer 3: 83% alike in outputs, 41% in inputs, all promote " Chicago".``

    Args:
        nodes: (M,) members.
        outputs: mean similarity of their outputs, over pairs; ``inputs`` likewise.
    """
    features = _features(graph, nodes)
    place = f"{'The same feature' if len(features) == 1 else 'All'} {_place(graph, nodes)}"
    clauses = [f"{outputs:.0%} alike in outputs", f"{inputs:.0%} in inputs"]
    promoted = _counted(promoted_by(graph, cards, features))
    most = promoted[0][1] if promoted and len(features) > 1 else 0
    if most >= max(2, len(features) / 2):
        tokens = [quoted(term.text) for term, count in promoted if count == most][:2]
        clauses.append(f"{_of_all(most, len(features))} promote {listed(tokens)}")
    return f"{place}: {', '.join([*clauses, *_direct(graph, nodes)])}."


def promoted_by(graph: AttributionGraph, cards: FeatureCards | None, features: Iterable[Pair]
                ) -> dict[Pair, list[Term]]:
    """The tokens that features promote, strongest first; none for the first third of the layers, where the direct path
    to the logits means little (see circuits.features.rule), and for features without a card."""
    if cards is None:
        return {pair: [] for pair in features}
    rows = {pair: cards.find(*pair) if 3 * pair[0] >= graph.header.n_layers else -1 for pair in features}
    start, token = cards.promoted.start, cards.promoted.token
    return {pair: [Term("says", cards.texts[i]) for i in token[start[row]:start[row + 1]].tolist()] if row >= 0 else []
            for pair, row in rows.items()}


def folded(text: str) -> str:
    """A token without the spaces around it and capitals."""
    return text.strip().casefold() or text


def _direct(graph: AttributionGraph, nodes: np.ndarray) -> list[str]:
    """What all members directly do to the target with the largest weight, if they do the same: one clause or none."""
    if not len(graph.target_nodes):
        return []
    target = int(graph.target_nodes[np.argmax(graph.target_weights)])
    row = slice(graph.indptr[target], graph.indptr[target + 1])
    raises = graph.weights[row][np.isin(graph.indices[row], nodes)] > 0
    if len(raises) < len(nodes) or raises.any() != raises.all():
        return []
    verb = "raise" if raises.all() else "lower"
    return [f"{_of_all(len(nodes), len(nodes))} directly {verb} {node_name(graph, target)}"]


def _of_all(count: int, of: int) -> str:
    return f"{count} of {of}" if count < of else "both" if of == 2 else "all"


def _features(graph: AttributionGraph, nodes: np.ndarray) -> dict[Pair, int]:
    """The features of some nodes (M,), and the most influential node of each, by its falling influence."""
    table, found = graph.nodes, dict[Pair, int]()
    for node in nodes[np.argsort(-table.influence[nodes], kind="stable")].tolist():
        found.setdefault((int(table.layer[node]), int(table.feature[node])), node)
    return found


def _label(graph: AttributionGraph, node: int) -> str:
    """A feature's label without the number that a tracer puts before it."""
    label, number = str(graph.nodes.label[node]).strip(), f"{graph.nodes.layer[node]}/{graph.nodes.feature[node]}"
    return label.removeprefix(number).strip() if f"{label} ".startswith(f"{number} ") else label


def _label_terms(label: str) -> list[Term]:
    label = label[:200]  # people's labels may be essays
    terms = [Term("says" if role == "->" else role, token[1:-1])
             for role, tokens in _CLAUSE.findall(label) for token in re.findall(_TOKEN, tokens)]
    return terms or ([Term("", label)] if label else [])


def _counted(said: Mapping[Pair, Sequence[Term]]) -> list[tuple[Term, int]]:
    """Each distinct term in the spelling that comes first, and of how many features it is said: those of most features
    first; of these, words before signs, then as they come."""
    spelling: dict[Term, Term] = {}
    counts = Counter(key for terms in said.values() for key in {spelling.setdefault(t.key, t).key: t for t in terms})
    order = sorted(spelling, key=lambda key: (-counts[key], not _wordlike(key.text)))
    return [(spelling[key], counts[key]) for key in order]


def _wordlike(text: str) -> bool:
    return any(map(str.isalnum, text))


def _composed(terms: Sequence[Term], *, more: bool) -> str:
    """``says "basketball", "hoops"``, as many of the first TOKENS as fit; ``more``: they are examples."""
    role, texts, dots = terms[0].role, [term.text for term in terms[:TOKENS]], ", …" if more else ""
    for n in range(len(texts), 0, -1):
        name = f"{role} {', '.join(quoted(t.strip() or t) for t in texts[:n])}" if role else "; ".join(texts[:n])
        if len(name) + len(dots) <= LONGEST:
            break
    return shown(name, LONGEST - len(dots)) + dots


def _place(graph: AttributionGraph, nodes: np.ndarray) -> str:
    """``at position 4 (" Jordan"), layers 3 to 5``"""
    positions, texts = sorted(set(graph.nodes.position[nodes].tolist())), graph.header.token_texts
    if len(positions) > 1:
        places = listed([str(p) for p in positions]) if len(positions) <= 4 else f"{positions[0]} to {positions[-1]}"
        where = f"at {len(positions)} positions ({places})"
    else:
        text = f" ({quoted(texts[positions[0]])})" if 0 <= positions[0] < len(texts) else ""
        where = f"at position {positions[0]}{text}"
    return f"{where}, {_layers(graph, nodes)}"


def _layers(graph: AttributionGraph, nodes: np.ndarray) -> str:
    low, high = int(graph.nodes.layer[nodes].min()), int(graph.nodes.layer[nodes].max())
    return f"layer {low}" if low == high else f"layers {low} to {high}"
