"""What ``circuits compare`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from circuits.graphs.compare import Compared, Comparison, Pair
from circuits.graphs.compare_measures import MEASURES
from circuits.graphs.compare_words import sentences
from circuits.graphs.lengths import ENDS
from circuits.graphs.words import shown
from circuits.report import visible

LEFT = 5
"""Unmatched features of each side that are listed."""
_SCORES = {"active_features": "features"}
"""A pruned graph says nothing of the features that were active."""


def comparison_tables(found: Comparison, top: int = 10) -> Iterator[Table | Text]:
    """The graphs side by side, and for every later one the measures against the first beside their nulls, the ``top``
    matches and the most influential features without one; then all in words."""
    yield _graphs(found.graphs)
    for pair in found.pairs:
        one, two = found.graphs[0], found.graphs[pair.second]
        yield _measures(pair, one, two)
        yield _matches(pair, one, two, top)
        yield _unmatched(pair, one, two)
    for sentence in sentences(found):
        yield Text(f"• {visible(sentence)}")


def _graphs(graphs: list[Compared]) -> Table:
    table = _table("Graphs side by side", "", *(graph.name for graph in graphs))
    rows: dict[str, list[float]] = {}
    for graph in graphs:
        side, reading = graph.side, graph.reading
        values: dict[str, float] = {"layers": side.graph.header.n_layers}
        values |= {_SCORES.get(name, name.replace("_", " ")): value for name, value in side.scores.items()}
        values |= {f"influence ending at {end}": side.lengths.share(end) for end in ENDS}
        steps = side.without_errors.mean()
        values |= {"steps from tokens, mean, errors left out": steps,
                   "the same over layers": steps / max(side.graph.header.n_layers, 1),
                   "direct effects at half, depth": graph.decided.half,
                   "direct effects at 90%, depth": graph.decided.most,
                   "answer read first, depth": math.nan if reading is None else reading.first,
                   "answer at half its probability, depth": math.nan if reading is None else reading.half}
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    for name, row in rows.items():
        table.add_row(name, *(_number(value) for value in row))
    return table


def _measures(pair: Pair, one: Compared, two: Compared) -> Table:
    unrelated = any(pair.unrelated.values())
    columns = ("measure", "value", "by chance", "95% of chance below", "p", "beyond chance")
    table = _table(f"{one.name} and {two.name}", *columns, *(("unrelated prompts, mean", "p") if unrelated else ()))
    for name, label in MEASURES.items():
        measure = pair.measures[name]
        known = not math.isnan(measure.chance)
        told = [*(_number(value) for value in (measure.value, measure.chance, measure.limit)),
                _number(measure.p) if known else "–", ("yes" if measure.agrees else "no") if known else "–"]
        if unrelated:
            values = [value for value in pair.unrelated[name] if not math.isnan(value)]
            told += [_number(sum(values) / len(values)) if values else "–", _number(pair.beyond_unrelated(name))]
        table.add_row(label, *told)
    return table


def _matches(pair: Pair, one: Compared, two: Compared, top: int) -> Table:
    found = pair.alignment
    table = _table(f"Matched features: {len(found.matches)} of {found.paired} pairs", "score", "confidence", "margin",
                   "at", one.name, two.name, "both promote")
    for match in found.matches[:top]:
        table.add_row(f"{match.score:.2f}", f"{match.confidence:.3f}", f"{match.margin:.2f}",
                      Text(_place(one, match.first)), Text(visible(one.side.pruned.nodes.label[match.first])),
                      Text(visible(two.side.pruned.nodes.label[match.second])),
                      Text(", ".join(shown(token) for token in match.shared)))
    return table


def _unmatched(pair: Pair, one: Compared, two: Compared) -> Table:
    table = _table("Without a match, most influential first", "graph", "at", "feature", "influence")
    for side, nodes in zip((one, two), pair.alignment.unmatched, strict=True):
        for node in nodes[:LEFT].tolist():
            table.add_row(Text(visible(side.name)), Text(_place(side, node)),
                          Text(visible(side.side.pruned.nodes.label[node])),
                          _number(float(side.side.pruned.nodes.influence[node])))
    return table


def _place(side: Compared, node: int) -> str:
    position, texts = int(side.side.pruned.nodes.position[node]), side.side.graph.header.token_texts
    return f"{position} {visible(texts[position])}" if position < len(texts) else str(position)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(visible(title)), title_justify="left")
    for column in columns:
        table.add_column(Text(visible(column)), overflow="fold")
    return table


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else "–" if math.isnan(value) else f"{value:.3g}"
