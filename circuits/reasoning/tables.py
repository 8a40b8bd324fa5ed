"""What ``circuits reasoning`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from rich.table import Table
from rich.text import Text

from circuits.graphs.lengths import ENDS
from circuits.graphs.spans import AROUND, THROUGH
from circuits.reasoning.share import ReasoningShare
from circuits.reasoning.words import variant_label
from circuits.report import visible

TOP = 10


def reasoning_tables(found: ReasoningShare) -> Iterator[Table | Text]:
    """The text, the ways of influence, the span's features, interventions, other texts, and what they say."""
    yield _text(found)
    yield _ways(found)
    yield _features(found)
    if found.effects:
        yield _effects(found)
    if found.variants:
        yield _variants(found)
    for sentence in (*found.notes, *found.sentences()):
        yield Text(f"• {visible(sentence)}")


def _text(found: ReasoningShare) -> Table:
    table = _table("Spans", "span", "tokens", "text", *(["replaced by"] if found.replaced else []))
    for span in found.flow.spans:
        text = "".join(found.graph.header.token_texts[span.start:span.stop])
        table.add_row(Text(visible(span.name)), f"{span.start}:{span.stop}", Text(visible(text)),
                      *([Text(visible(found.replaced.get(span.name, "")))] if found.replaced else []))
    return table


def _ways(found: ReasoningShare) -> Table:
    flow = found.flow
    name = visible(flow.span.name)
    table = _table("Where influence ends", "ends at", "of", f"through {name}", f"around {name}")
    for end in ENDS:
        for place in flow.places:
            ways = [flow.share(end, place, way) for way in (THROUGH, AROUND)]
            if max(ways) > 0:
                table.add_row(end, Text(visible(place)), *(f"{share:.1%}" for share in ways))
    table.add_row("all", "", f"{flow.through:.1%}", f"{flow.around:.1%}")
    return table


def _features(found: ReasoningShare) -> Table:
    flow, nodes = found.flow, found.graph.nodes
    origin = [f"from {visible(flow.origin.name)}"] if flow.origin else []
    table = _table(f"Features of {visible(flow.span.name)} that most passes", "feature", "at", "influence", *origin)
    for one in flow.features[:TOP]:
        position = int(nodes.position[one.node])
        place = f"{position} {visible(found.graph.header.token_texts[position])}"
        table.add_row(Text(visible(nodes.label[one.node])), Text(place), f"{one.influence:.1%}",
                      *([f"{one.from_origin:.1%}"] if origin else []))
    return table


def _effects(found: ReasoningShare) -> Table:
    table = _table(f"Interventions on {visible(found.flow.span.name)}: change of the target (of {found.value:.2f})",
                   "features", "number", "mode", "change", "by edges", "controls", "random")
    for one in found.effects:
        table.add_row(one.what, str(one.n_features), one.mode, _change(one.change), _change(one.predicted),
                      _mean(one.controls), _mean(one.random))
    table.caption = "controls: the same at spans of its length; random: features elsewhere, as many; means"
    return table


def _variants(found: ReasoningShare) -> Table:
    table = _table("Other texts, in the model", "text", "features held", "target", "probability", "kept")
    for one in found.variants:
        table.add_row(Text(visible(variant_label(found, one.name))), str(one.n_features or "–"), f"{one.value:.2f}",
                      _probability(one.probability), "–" if math.isnan(one.kept) else f"{one.kept:.0%}")
    return table


def _mean(changes: list[float]) -> str:
    return _change(float(np.mean(changes))) if changes else "–"


def _change(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _probability(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table
