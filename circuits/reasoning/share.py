"""What was found of a span: influence through it, and what interventions on it did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.graphs.graph import AttributionGraph
from circuits.graphs.lengths import ENDS
from circuits.graphs.measure import plain
from circuits.graphs.spans import AROUND, THROUGH, Span, SpanFlow
from circuits.graphs.spans_null import SpanNull
from circuits.reasoning.ablation import Effect
from circuits.reasoning.variants import Variant

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

@dataclass(frozen=True, eq=False)
class ReasoningShare:
    """What the graph says of a span, and what interventions on it measured."""

    graph: AttributionGraph
    flow: SpanFlow
    null: SpanNull
    controls: list[Span]
    """Of the span's length, on which the same interventions were made."""
    effects: list[Effect]
    """Empty where nothing was measured, as :attr:`variants`."""
    variants: list[Variant]
    replaced: dict[str, str]
    """By span: the text that took its place. Foreign strings."""
    notes: list[str]
    seed: int

    @property
    def pruned(self) -> bool:
        """Shares are then of what pruning kept."""
        return self.graph.header.settings.get("node_threshold") is not None

    @property
    def target(self) -> str:
        """What is explained, in words. A foreign string."""
        labels = [str(self.graph.nodes.label[node]) for node in self.graph.target_nodes]
        return labels[0] if len(labels) == 1 else f"the {len(labels)} likeliest tokens"

    @property
    def value(self) -> float:
        """The targets' values by their weights: what changes are changes of."""
        weights = self.graph.target_weights.astype(np.float64)
        return float(self.graph.nodes.value[self.graph.target_nodes] @ weights / weights.sum())

    def effect(self, what: str, mode: str) -> Effect | None:
        """One of :attr:`effects`."""
        return next((one for one in self.effects if (one.what, one.mode) == (what, mode)), None)

    def variant(self, name: str) -> Variant | None:
        """One of :attr:`variants`."""
        return next((one for one in self.variants if one.name == name), None)

    def sentences(self) -> list[str]:
        """What was found, in words, with what it does not say."""
        from circuits.reasoning.words import paragraphs

        return [sentence for some in paragraphs(self).values() for sentence in some]

    def tables(self) -> list[Table | Text]:
        """For a terminal."""
        from circuits.reasoning.tables import reasoning_tables

        return list(reasoning_tables(self))

    def numbers(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        flow, null, header = self.flow, self.null, self.graph.header
        ids = self.graph.node_ids
        return {
            "prompt": header.prompt, "model": header.model, "transcoders": header.transcoders,
            "token_texts": header.token_texts, "target": self.target, "value": self.value,
            "spans": {span.name: [span.start, span.stop] for span in flow.spans}, "through_span": flow.span.name,
            "origin": flow.origin.name if flow.origin else None, "through": flow.through, "around": flow.around,
            "at_most": flow.at_most, "mediated": flow.mediated, "bypass": flow.bypass,
            "mediated_share": plain(flow.mediated_share), "own": flow.own,
            "ends": {end: {place: {"around": flow.share(end, place, AROUND), "through": flow.share(end, place, THROUGH)}
                           for place in flow.places} for end in ENDS},
            "by_position": {end: {"around": rows[AROUND].tolist(), "through": rows[THROUGH].tolist()}
                            for end, rows in flow.ends.items()},
            "leaves": flow.leaves.tolist(), "visits": flow.visits.tolist(),
            "features": [[ids[one.node], one.influence, one.from_origin] for one in flow.features],
            "null": {"shifts": {str(start): share for start, share in null.shifts.items()}, "mean": plain(null.mean),
                     "shuffled": None if null.shuffled is None else null.shuffled.tolist(), "limit": plain(null.limit),
                     "p": null.p},
            "controls": [[span.start, span.stop] for span in self.controls],
            "effects": [one.numbers() for one in self.effects],
            "variants": [one.numbers() | {"kept": plain(one.kept)} for one in self.variants],
            "replaced": self.replaced, "pruned": self.pruned, "unexplored": header.unexplored, "seed": self.seed,
            "notes": self.notes, "sentences": self.sentences()}

    def write_page(self, path: str | Path) -> None:
        """Write one HTML file; see :mod:`circuits.reasoning.page`.

        Raises:
            InputError: the file cannot be written.
        """
        from circuits.reasoning.page import write_page

        write_page([self], Path(path))
