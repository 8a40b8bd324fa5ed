"""What ``circuits crosscheck`` prints."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.table import Table
from rich.text import Text

from circuits.crosscheck import Crosscheck
from circuits.graphs.agreement import Agreement
from circuits.graphs.agreement_words import names
from circuits.graphs.lengths import ENDS
from circuits.graphs.words import shown
from circuits.report import visible

MEASURES = {"tokens": "influence of tokens: overlap", "token_order": "influence of tokens: Spearman",
            "positions": "features by position: overlap", "layers": "features by layer: overlap",
            "places": "features by layer and position: overlap"}


def crosscheck_tables(found: Crosscheck, top: int = 10) -> Iterator[Table | Text]:
    """Scores side by side, agreement against chance, path lengths, tokens, the ``top`` matches, and the verdict."""
    agreement = found.agreement
    first, second = names(agreement)
    yield _scores(agreement, first, second)
    yield _measures(agreement)
    yield _steps(agreement, first, second)
    yield _tokens(agreement, first, second)
    yield _matches(agreement, first, second, top)
    for sentence in found.sentences():
        yield Text(f"• {sentence}")


def _scores(found: Agreement, first: str, second: str) -> Table:
    table = _table("Two graphs of one prompt", "", first, second)
    one, two = found.first.scores, found.second.scores
    for name in one:
        table.add_row(name.replace("_", " "), *(_number(values[name]) for values in (one, two)))
    for end in ENDS:
        table.add_row(f"influence ending at {end}", *(f"{side.lengths.share(end):.3f}"
                                                      for side in (found.first, found.second)))
    for end in ENDS[:2]:
        table.add_row(f"steps from {end}, mean", *(_number(side.lengths.mean(end))
                                                   for side in (found.first, found.second)))
    table.add_row("steps from tokens, mean, errors left out", *(_number(side.without_errors.mean())
                                                                for side in (found.first, found.second)))
    return table


def _measures(found: Agreement) -> Table:
    table = _table("Agreement", "measure", "agreement", "by chance", "95% of chance below", "p", "beyond chance")
    for name, label in MEASURES.items():
        measure = getattr(found, name)
        table.add_row(label, *(_number(value) for value in (measure.value, measure.chance, measure.limit, measure.p)),
                      "yes" if measure.agrees else "no")
    table.add_row("numbers of steps from tokens: overlap", _number(found.steps), "–", "–", "–", "–")
    features = found.features
    for side, share, chance in zip(("first", "second"), features.influence, features.chance, strict=True):
        table.add_row(f"influence of matched features, {side} graph", _number(share), _number(chance), "–", "–", "–")
    return table


def _steps(found: Agreement, first: str, second: str) -> Table:
    table = _table("Paths from tokens, share of influence by number of steps", "steps", first, second)
    one, two = (side.lengths.distribution() for side in (found.first, found.second))
    for steps in range(1, max(len(one), len(two))):
        shares = [float(part[steps]) if steps < len(part) else 0.0 for part in (one, two)]
        if max(shares) >= 5e-4:
            table.add_row(str(steps), *(f"{share:.1%}" for share in shares))
    return table


def _tokens(found: Agreement, first: str, second: str) -> Table:
    table = _table("Influence of tokens", "", "token", first, second)
    one, two = found.first.token_influence, found.second.token_influence
    texts = found.first.graph.header.token_texts
    for i in np.sort(np.argsort(-(one + two), kind="stable")[:20]).tolist():
        table.add_row(str(i), Text(visible(texts[i]) if i < len(texts) else ""), f"{one[i]:.1%}", f"{two[i]:.1%}")
    return table


def _matches(found: Agreement, first: str, second: str, top: int) -> Table:
    features = found.features
    table = _table(f"Matched features: {len(features.matches)} of {features.paired} pairs", "similarity", "at", first,
                   second, "both promote")
    one, two = (side.pruned.nodes for side in (found.first, found.second))
    texts = found.first.graph.header.token_texts
    for match in features.matches[:top]:
        position = int(one.position[match.first])
        place = f"{position} {visible(texts[position])}" if position < len(texts) else str(position)
        table.add_row(f"{match.similarity:.2f}", Text(place), Text(visible(one.label[match.first])),
                      Text(visible(two.label[match.second])), Text(", ".join(shown(token) for token in match.shared)))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else "–" if np.isnan(value) else f"{value:.3g}"
