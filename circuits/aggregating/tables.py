"""What ``circuits aggregate`` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from circuits.graphs.aggregate import Aggregation, Family, Recurring
from circuits.graphs.aggregate_difference import MEASURES, Difference, Tests
from circuits.graphs.aggregate_edges import EdgeTable
from circuits.graphs.aggregate_numbers import edge_rows
from circuits.graphs.aggregate_words import difference_sentences, family_sentences
from circuits.graphs.words import percent
from circuits.report import visible


def aggregate_tables(found: Aggregation, top: int = 10) -> Iterator[Table | Text]:
    """For each family its ``top`` features, supernodes and edges and what they say; then what differs."""
    for family in found.families:
        yield from _family(found, family, top)
    if found.difference is not None:
        yield from _difference(found, found.difference, top)


def _family(found: Aggregation, family: Family, top: int) -> Iterator[Table | Text]:
    yield Text(f"\n{visible(family.name)}: {len(family.prompts)} prompts", style="bold")
    yield _recurring("Features that recur", "feature", family, family.features[:top],
                     lambda one: visible(found.feature_name(one.key)))
    often = [one for one in family.supernodes if one.count >= family.least]
    if often:
        yield _recurring("Supernodes that recur", "supernode", family, often[:top],
                         lambda one: f"{visible(one.name)} ({len(one.members)})")
    if len(family.circuit.edges.codes):
        yield _edges(found, family.circuit.edges, top)
    for sentence in family_sentences(family):
        yield Text(f"• {visible(sentence)}")


def _recurring(title: str, kind: str, family: Family, rows: Sequence[Recurring], name: Callable[[Recurring], str]
               ) -> Table:
    table = _table(title, kind, "prompts (95%)", "influence (95%)", "where", "there (its layer)")
    for one in rows:
        present, influence = ([100 * value for value in values] for values in (one.present, one.influence))
        usual = "" if np.isnan(one.place.usual) else f" ({one.place.usual:.0%})"
        table.add_row(Text(name(one)), f"{one.count}/{len(family.prompts)} ({present[1]:.0f}–{present[2]:.0f}%)",
                      f"{percent(one.influence[0])} ({influence[1]:.1f}–{influence[2]:.1f}%)",
                      Text(visible(one.place.words)), f"{one.place.share:.0%}{usual}")
    return table


def _edges(found: Aggregation, edges: EdgeTable, top: int) -> Table:
    table = _table("Edges of the common circuit", "from", "to", "prompts", "influence", "of the target's input",
                   "same sign")
    for row in edge_rows(found, edges)[:top]:
        table.add_row(Text(visible(row["source"])), Text(visible(row["target"])), f"{row['present']:.0%}",
                      percent(row["influence"]), f"{row['weight']:+.1%}", f"{row['same_sign']:.0%}")
    return table


def _difference(found: Aggregation, made: Difference, top: int) -> Iterator[Table | Text]:
    first, second = visible(made.first), visible(made.second)
    yield Text(f"\n{first} against {second}", style="bold")
    presence = made.presence
    table = _table("Features: share of influence, share of prompts", "feature", first, second, "p", "q",
                   f"in {first}", f"in {second}", "q")
    for i in made.influence.order[:top].tolist():
        table.add_row(Text(visible(found.feature_name(int(made.keys[i])))), *_columns(made.influence, i),
                      f"{presence.first[i]:.0%}", f"{presence.second[i]:.0%}", _p(presence.q[i]))
    yield table
    size = len(found.items)
    ends = [(found.item_name(int(code) % size), found.item_name(int(code) // size)) for code in made.codes]
    yield _tests("Edges: share of influence", made, made.edges, [f"{one} → {two}" for one, two in ends], top)
    yield _tests("Tokens: share of what reaches tokens", made, made.tokens,
                 [found.item_name(item) for item in made.roles], top)
    measured = _table("Scores", "score", first, second, "p", "q")
    for i in made.measured.order.tolist():
        measured.add_row(MEASURES[made.measures[i]], f"{made.measured.first[i]:.3g}", f"{made.measured.second[i]:.3g}",
                         _p(made.measured.p[i]), _p(made.measured.q[i]))
    yield measured
    for sentence in difference_sentences(found, made):
        yield Text(f"• {visible(sentence)}")


def _tests(title: str, made: Difference, tests: Tests, names: Sequence[str], top: int) -> Table:
    table = _table(title, "", visible(made.first), visible(made.second), "p", "q")
    for i in tests.order[:top].tolist():
        table.add_row(Text(visible(names[i])), *_columns(tests, i))
    return table


def _columns(tests: Tests, i: int) -> list[str]:
    return [percent(float(tests.first[i])), percent(float(tests.second[i])), _p(tests.p[i]), _p(tests.q[i])]


def _p(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2g}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table
