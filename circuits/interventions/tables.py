"""What ``circuits steer`` prints."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from circuits.interventions.generate import Continuation
from circuits.interventions.summary import NodeChange, Steered, Steering
from circuits.report import visible

SHOWN_EDITS = 20


def steering_tables(found: Steering) -> Iterator[Table | Text]:
    """Of each intervention: what it changes, the next token, the features that react, and the text."""
    yield Text(f"prompt  {visible(found.prompt)}")
    for steered in found.steered:
        yield Text(f"\n{visible(steered.name)}", style="bold")
        yield _edits(steered, found)
        if any(change.position is not None for change in steered.edits):
            yield _tokens(steered, found)
            yield Text(f"KL {steered.kl:.4f} nats")
            if steered.reacting:
                yield _nodes("Features that react most", steered.reacting, found, "before", "after")
        if steered.continuation is not None and found.unchanged is not None:
            yield _text("unchanged", found.unchanged)
            yield _text("steered", steered.continuation)


def _edits(steered: Steered, found: Steering) -> Table:
    table = _nodes("Changed", steered.edits[:SHOWN_EDITS], found, "edit", "before", "after")
    if len(steered.edits) > SHOWN_EDITS:
        table.caption = f"and {len(steered.edits) - SHOWN_EDITS} more"
    return table


def _nodes(title: str, changes: list[NodeChange], found: Steering, *columns: str) -> Table:
    table = Table("node", "layer", "at", *columns, title=title, title_justify="left")
    values = {"edit": lambda c: c.edit, "before": lambda c: _number(c.before), "after": lambda c: _number(c.after)}
    for change in changes:
        table.add_row(Text(visible(change.name)), "–" if change.layer < 0 else str(change.layer),
                      Text(_place(change.position, found)), *(values[column](change) for column in columns))
    return table


def _place(position: int | None, found: Steering) -> str:
    return "every generated token" if position is None else f"{position} {visible(found.token_texts[position])}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}"  # plus zero: no -0.000


def _tokens(steered: Steered, found: Steering) -> Table:
    # in the replaced mode the two would be one number
    predicted = found.mode != "replaced"
    table = Table("token", "before", "after", "logit change", *(["predicted by the graph"] if predicted else []),
                  title=f"Next token ({found.mode})", title_justify="left")
    for change in steered.tokens:
        row = [f"{change.probability_before:.4f}", f"{change.probability:.4f}", f"{change.logit_change:+.3f}",
               f"{change.predicted:+.3f}"]
        table.add_row(Text(visible(change.text)), *row[:4 if predicted else 3])
    return table


def _text(name: str, continuation: Continuation) -> Text:
    end = " ∎" if continuation.ended else " …"
    return Text.assemble((f"{name:9} ", "bold"), visible(continuation.text) + end)
