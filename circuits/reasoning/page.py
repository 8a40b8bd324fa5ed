"""Shares of reasoning as one HTML file (:mod:`circuits.plot_page`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from circuits.plot_page import write_plot_page
from circuits.plots import Section
from circuits.reasoning.figures import sections
from circuits.reasoning.share import ReasoningShare
from circuits.reasoning.words import paragraphs, variant_label
from circuits.report import visible


def write_page(reports: Sequence[ReasoningShare], path: Path) -> None:
    """Write one page for one prompt or several.

    Raises:
        InputError: the file cannot be written.
    """
    first = reports[0].graph.header
    title = f"Reasoning share: {visible(first.prompt)}" if len(reports) == 1 else (
        f"Reasoning share of {len(reports)} prompts")
    drawn = [Section(section.title if len(reports) == 1 else f"{number + 1}. {section.title}", section.figures)
             for number, report in enumerate(reports) for section in sections(report, number)]
    write_plot_page(
        path, title=title, facts=[("model", first.model), ("transcoders", first.transcoders)],
        measured="What was found", sections=drawn,
        measures=[row for number, report in enumerate(reports, 1) for row in
                  _measures(report, f"{number}. " if len(reports) > 1 else "")],
        settings=[("seed", str(reports[0].seed))])


def _measures(found: ReasoningShare, number: str) -> Iterator[tuple[str, str, str]]:
    """(what, value, meaning)"""
    flow, header = found.flow, found.graph.header
    values = {"Influence": f"{flow.through:.1%}", "Not known": f"{flow.at_most - flow.through:.1%}"}
    if number:
        yield f"{number}Prompt", "", visible(header.prompt)
    for name, told in paragraphs(found).items():
        yield f"{number}{name}", values.get(name, ""), " ".join(told)
    if found.notes:
        yield f"{number}Notes", "", " ".join(f"{note[:1].upper()}{note[1:]}." for note in map(visible, found.notes))
    for span, text in found.replaced.items():
        yield f"{number}In place of {span}", "", visible(text)
    for effect in found.effects:
        controls = [f"{kind} {sum(some) / len(some):+.3f}" for kind, some in (
            ("control spans", effect.controls), ("random features", effect.random)) if some]
        predicted = [] if effect.predicted is None else [f"by the graph's edges {effect.predicted:+.3f}"]
        yield (f"{number}{effect.what}, {effect.mode}", f"{effect.change:+.3f}",
               "; ".join([f"{effect.n_features:,} features", *predicted, *controls, f"KL {effect.kl:.3f} nats"]))
    for one in found.variants:
        yield (f"{number}{variant_label(found, one.name)}", f"{one.value:.3f}",
               _variant(one.kept, one.probability, one.n_features))


def _variant(kept: float, probability: float | None, n_features: int) -> str:
    parts = [] if probability is None else [f"probability {probability:.4f}"]
    parts += [] if math.isnan(kept) else [f"{kept:.0%} of what is lost with both texts replaced remains"]
    return "; ".join([*parts, *([f"{n_features:,} features held"] if n_features else [])])
