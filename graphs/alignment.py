"""Which feature of one graph is which of another: models of other width and depth, other dictionaries (METHOD 9).

Features stand at the same positions and at about the same share of the layers. Two of them score the mean of their
similarities (:mod:`graphs.signatures`: what they write, what they read, where they fire on a text, as far as known),
0 where that is negative, less FALL at the edge of the window of relative depth and proportionally before it. At each
position they are paired one to one so that the scores sum to the most. A pair is a match where it scores no less than
95% of the pairs of every null: features of the second graph with the signatures of others of about the same depth
that do not fire there, in the graph or spare (:meth:`graphs.pairing.Paired.calibrated_null`), and graphs of unrelated
prompts, where given. Two prompts of one model
share features that fire nearly anywhere; that they stand at one position of both says nothing, so there a pair that is
as good at more than 5% of the other positions is no match.

Shapes: m features of one position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.match_details import SAME, Details, details_of, shared_tokens
from circuits.graphs.measure import LEVEL, Measure, against, plain, without_null
from circuits.graphs.pairing import PERCENTILE, Pairs, pair_up
from circuits.graphs.placed import Features, jaccard, relative_depth
from circuits.graphs.signatures import Signatures

WINDOW = 0.25
"""Relative depth between two features that may be paired."""
FALL = 0.5
"""Share of a score that is left at the edge of the window is one minus this."""
SHUFFLED, UNRELATED = "shuffled features", "unrelated prompts"


@dataclass(frozen=True)
class Match:
    """A pair of features that are more alike than chance."""

    first: int
    """Node of the first pruned graph."""
    second: int
    score: float
    similarities: dict[str, float]
    """By view of :data:`graphs.signatures.VIEWS`, those that are known."""
    confidence: float
    """One minus the share of null pairs that score as much, of the null in which they are most."""
    margin: float
    """Score less that of the best other pair that one of the two could be in; below 0 where the other pairs of the
    position needed that one more. 0: an identical twin stands beside it."""
    elsewhere: float
    """Share of the other positions of both graphs at which one of the two has as good a partner."""
    shared: tuple[str, ...]
    """Tokens that both promote, those that make them alike most first. Foreign strings."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """What :func:`align` found; pairs of numbers are of the first and the second graph."""

    matches: list[Match]
    """Those with the largest influence, of both features together, first."""
    common: list[tuple[int, int]]
    """Nodes that are as alike as matches but as good at other positions; none for one prompt."""
    unmatched: tuple[np.ndarray, np.ndarray]
    """Feature nodes that are in no match and not common, the most influential first."""
    counterparts: list[tuple[int, int]]
    """Tokens at one position, errors at one position and nearest depth, and the same outputs. Not counted as
    features."""
    features: tuple[int, int]
    compared: tuple[int, int]
    """Features with a signature."""
    views: tuple[str, ...]
    """The similarities that scores are the mean of."""
    paired: int
    """Pairs that were made, matches or not."""
    limits: dict[str, float]
    """95th percentile of every null, and a match reaches all; empty where there is no null, and then no match."""
    null_pairs: dict[str, int]
    """Pairs of every null: of fewer than a hundred the limit is coarse."""
    influence: tuple[float, float]
    """Share of the influence of all features that matched ones have."""
    matched_influence: Measure
    """Influence of matched features weighted by agreement, a Jaccard index: sum over matches of the smaller share, over
    the sum of all shares less that. 1 for a graph against itself. Null: shuffled features."""
    matched_unrelated: tuple[float, ...]
    """The same against every graph of an unrelated prompt."""
    null_matches: list[tuple[np.ndarray, np.ndarray]]
    """Nodes of both graphs that every round of the shuffled null matches."""
    unrelated_matches: list[tuple[np.ndarray, np.ndarray]]
    """Nodes of the first graph and of every graph of an unrelated prompt that are as alike as matches."""
    window: float

    @property
    def limit(self) -> float:
        """Score that a match reaches; NaN without a null."""
        return max(self.limits.values(), default=math.nan)

    def partners(self) -> dict[int, int]:
        """Nodes of the second graph by node of the first: matched features and counterparts."""
        return dict(self.counterparts) | {match.first: match.second for match in self.matches}

    def matched_nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Of both graphs, in the order of the matches."""
        pairs = np.array([(match.first, match.second) for match in self.matches], np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def numbers(self, first: AttributionGraph, second: AttributionGraph) -> dict[str, Any]:
        """Ready for JSON. Args: the pruned graphs that were aligned."""
        ids, names = (first.node_ids, second.node_ids), (first.nodes.label, second.nodes.label)
        matches = [{**vars(match), "first": ids[0][match.first], "second": ids[1][match.second],
                    "labels": [str(names[0][match.first]), str(names[1][match.second])], "shared": list(match.shared)}
                   for match in self.matches]
        whole = {name: getattr(self, name) for name in ("features", "compared", "views", "paired", "limits",
                                                        "null_pairs", "influence", "window")}
        return {**whole, "limit": plain(self.limit), "matched": len(matches), "matches": matches,
                "common": [[ids[0][a], ids[1][b]] for a, b in self.common],
                "unmatched": [[ids[side][node] for node in self.unmatched[side].tolist()] for side in (0, 1)],
                "counterparts": [[ids[0][a], ids[1][b]] for a, b in self.counterparts],
                "matched_influence": self.matched_influence.numbers(),
                "matched_influence_unrelated": list(self.matched_unrelated)}


def align(first: AttributionGraph, second: AttributionGraph, signatures: tuple[Signatures, Signatures], *,
          unrelated: Sequence[tuple[AttributionGraph, Signatures]] = (), window: float = WINDOW,
          two_prompts: bool = False, seed: int = 0) -> Alignment:
    """Align the nodes of two graphs of as many positions.

    Args:
        signatures: of the features of each.
        unrelated: graphs of unrelated prompts by the second's model, and the signatures of their features: a null.
        window: most distance in relative depth of two features that may be paired.
        two_prompts: the graphs are of two prompts, so that a match must be particular to its position.
        seed: of the null.
    """
    one, two = Features.of(first, signatures[0]), Features.of(second, signatures[1])
    more = Features.of(second, signatures[1], spare=True)  # begins with those of the second
    fall = FALL / window
    paired = pair_up(one.places, more.places, lambda rows: one.scores(more, rows), window, fall,
                     np.random.default_rng(seed), distinct=True)
    pairs, rounds = paired.pairs, paired.calibrated_null()
    others = [Features.of(*other) for other in unrelated]
    apart = [pair_up(one.places, other.places, partial(one.scores, other), window, fall).pairs for other in others]
    nulls = {name: np.concatenate([made.similarity for made in null])
             for name, null in ((SHUFFLED, rounds), (UNRELATED, apart)) if null}
    limits = {name: float(np.percentile(scores, PERCENTILE)) for name, scores in nulls.items() if len(scores)}
    limit = max(limits.values(), default=math.inf)
    alike = _beyond(pairs, limit)
    details = details_of(one, two, alike, window, fall, elsewhere=two_prompts)
    particular = details.elsewhere <= LEVEL
    matched, common = alike.among(particular), alike.among(~particular)
    value = jaccard(one, two, matched)
    null_matches, in_others = ([_beyond(made, limit) for made in null] for null in (rounds, apart))
    if two_prompts:
        in_others = [made.among(details_of(one, other, made, window, fall, elsewhere=True).elsewhere <= LEVEL)
                     for other, made in zip(others, in_others, strict=True)]
    chance = [jaccard(one, two, made) for made in null_matches]
    return Alignment(
        _matches(one, two, alike, details, particular, nulls),
        common=list(zip(one.nodes[common.first].tolist(), two.nodes[common.second].tolist(), strict=True)),
        unmatched=(_left(first, one.nodes[alike.first]), _left(second, two.nodes[alike.second])),
        counterparts=counterparts(first, second, window), features=(_count(first), _count(second)),
        compared=(len(one.nodes), len(two.nodes)), views=tuple(name for name in one.views if name in two.views),
        paired=len(pairs.first), limits=limits,
        null_pairs={name: len(scores) for name, scores in nulls.items()},
        influence=(float(one.share[matched.first].sum()), float(two.share[matched.second].sum())),
        matched_influence=against(value, chance, _count(second), counted=False) if chance else without_null(value),
        matched_unrelated=tuple(jaccard(one, other, made) for other, made in zip(others, in_others, strict=True)),
        null_matches=[(one.nodes[made.first], two.nodes[made.second]) for made in null_matches],
        unrelated_matches=[(one.nodes[made.first], other.nodes[made.second])
                           for other, made in zip(others, in_others, strict=True)], window=window)


def counterparts(first: AttributionGraph, second: AttributionGraph, window: float) -> list[tuple[int, int]]:
    """Nodes that are matched by what they are: tokens at one position, errors at one position whose depths are
    nearest, outputs of one token, and the only targets of both graphs."""
    one, two = first.nodes, second.nodes
    depths = relative_depth(first), relative_depth(second)
    found: list[tuple[int, int]] = []
    for kind in ("embedding", "error"):
        for position in np.intersect1d(one.position[one.kind == kind], two.position[two.kind == kind]):
            a, b = (np.flatnonzero((nodes.kind == kind) & (nodes.position == position)) for nodes in (one, two))
            away = np.abs(depths[0][a][:, None] - depths[1][b])
            found += [(int(a[i]), int(b[j])) for i, j in zip(*linear_sum_assignment(away), strict=True)
                      if away[i, j] <= window]
    tokens = {int(two.token[node]): int(node) for node in np.flatnonzero(two.kind == "logit") if two.token[node] >= 0}
    logits = [int(node) for node in np.flatnonzero(one.kind == "logit")]
    found += [(node, tokens[int(one.token[node])]) for node in logits if int(one.token[node]) in tokens]
    if len(first.target_nodes) == len(second.target_nodes) == 1 and not any(node in tokens.values() for node in logits):
        pair = int(first.target_nodes[0]), int(second.target_nodes[0])
        found += [pair] if pair not in found else []
    return found


def _beyond(pairs: Pairs, limit: float) -> Pairs:
    """Those that score anything and reach the limit."""
    return pairs.among((pairs.similarity >= limit - SAME) & (pairs.similarity > SAME))


def _matches(one: Features, two: Features, pairs: Pairs, details: Details, chosen: np.ndarray,
             nulls: dict[str, np.ndarray]) -> list[Match]:
    """The ``chosen`` pairs, the largest influence first."""
    order = np.argsort(-(one.share[pairs.first] + two.share[pairs.second]), kind="stable")
    made = []
    for i in order[chosen[order]].tolist():
        a, b, score = int(pairs.first[i]), int(pairs.second[i]), float(pairs.similarity[i])
        by_chance = max(float((scores >= score - SAME).mean()) for scores in nulls.values())
        made.append(Match(int(one.nodes[a]), int(two.nodes[b]), score, details.similarities[i], 1.0 - by_chance,
                          float(details.margin[i]), float(details.elsewhere[i]), shared_tokens(one, two, a, b)))
    return made


def _left(graph: AttributionGraph, matched: np.ndarray) -> np.ndarray:
    """Feature nodes that are not ``matched``, the most influential first."""
    features = np.setdiff1d(np.flatnonzero(graph.nodes.kind == "feature"), matched)
    return features[np.argsort(-graph.nodes.influence[features], kind="stable")]


def _count(graph: AttributionGraph) -> int:
    return int((graph.nodes.kind == "feature").sum())
