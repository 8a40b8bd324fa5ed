"""One prompt traced with two transcoder sets of one model, and what the two graphs agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from circuits.attribution import trace
from circuits.features.cards import TranscoderCards
from circuits.frontier import Report
from circuits.gemma3 import Gemma3
from circuits.graphs.agreement import Agreement, check_window, compare
from circuits.graphs.agreement_words import verdicts
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.prune import check_thresholds
from circuits.transcoder import Transcoders


@dataclass(frozen=True, eq=False)
class Crosscheck:
    """Two graphs of one prompt and their agreement."""

    first: AttributionGraph
    second: AttributionGraph
    agreement: Agreement
    same_set: bool
    """The two sets are one: agreement says nothing."""

    def sentences(self) -> list[str]:
        """What both graphs say and where they differ."""
        same = ["Both graphs were traced with the same transcoder set, so that they agree says nothing."]
        return (same if self.same_set else []) + verdicts(self.agreement)

    def numbers(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**self.agreement.numbers(), "same_set": self.same_set, "verdicts": self.sentences(),
                "settings": {side: graph.header.settings for side, graph in self._graphs()},
                "warnings": {side: graph.header.warnings for side, graph in self._graphs()}}

    def _graphs(self) -> list[tuple[str, AttributionGraph]]:
        return [("first", self.first), ("second", self.second)]


def crosscheck(model: Gemma3, first: Transcoders, second: Transcoders, prompt: str | None = None, *,
               tokens: Sequence[int] | None = None, node_threshold: float = 0.8, edge_threshold: float = 0.98,
               window: int | None = None, seed: int = 0, progress: Report = lambda stage, done, total: None,
               **settings: Any) -> Crosscheck:
    """Trace ``prompt`` with both transcoder sets and compare the graphs (:func:`circuits.graphs.agreement.compare`).

    Targets are chosen by the model's own forward pass, so both graphs explain the same ones. Promoted tokens of both
    sets are computed from their weights: where one has feature data and the other has none, their lists would be drawn
    from different tokens.

    Args:
        prompt, tokens: as for :func:`circuits.trace`; so are ``settings``, used for both.
        node_threshold, edge_threshold: what the graphs are pruned to before their features are matched.
        window: layers between two features that may match; by default a quarter of the model's.
        seed: of what is shuffled to tell agreement from chance.

    Raises:
        InputError: unusable arguments.
        ModelError: transcoders of another model.
        ConservationError: the edges into some target do not sum to its value.
    """
    check_thresholds(node_threshold, edge_threshold)
    check_window(window)
    for transcoders in (first, second):  # before the first trace, which takes long
        transcoders.check_model(model.n_layers, model.d_model, model.name)

    def traced(transcoders: Transcoders, number: int) -> AttributionGraph:
        return trace(model, transcoders, prompt, tokens=tokens, **settings,
                     progress=lambda stage, done, total: progress(f"graph {number}: {stage}", done, total))

    one, two = traced(first, 1), traced(second, 2)
    progress("comparing", 0, 1)
    agreement = compare(replace(one, cards=TranscoderCards(model, first)),
                        replace(two, cards=TranscoderCards(model, second)), node_threshold=node_threshold,
                        edge_threshold=edge_threshold, window=window, seed=seed)
    return Crosscheck(one, two, agreement, _same_set(first, second))


def _same_set(first: Transcoders, second: Transcoders) -> bool:
    if first.folder is None or second.folder is None:
        return first.name == second.name
    return first.folder.resolve() == second.folder.resolve()
