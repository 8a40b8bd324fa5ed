"""An aggregation as one HTML file: what it says in words, and figures (:mod:`circuits.plot_page`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from circuits.aggregating.figures import sections
from circuits.graphs.aggregate import Aggregation
from circuits.graphs.aggregate_words import difference_sentences, family_sentences
from circuits.graphs.words import shown
from circuits.plot_page import write_plot_page


def write_page(found: Aggregation, path: Path) -> None:
    """Write the page.

    Raises:
        InputError: the file cannot be written.
    """
    said = [row for family in found.families
            for row in _rows(family.name, f"{len(family.prompts)} prompts", family_sentences(family))]
    if found.difference is not None:
        one = found.difference
        said += _rows(f"{one.first} against {one.second}", f"{one.sizes[0]} and {one.sizes[1]} prompts",
                      difference_sentences(found, one))
    facts = [("model", found.model), ("transcoders", found.transcoders),
             ("prompts", str(sum(len(family.prompts) for family in found.families)))]
    settings = [("share of prompts", f"{found.share:g}"), ("seed", str(found.seed))]
    write_plot_page(path, title="What the prompts' circuits have in common", facts=facts, measured="In words",
                    measures=said, sections=sections(found),
                    settings=settings + [("warning", warning) for warning in found.warnings])


def _rows(name: str, count: str, sentences: list[str]) -> Iterator[tuple[str, str, str]]:
    """A row for each sentence, the name at the first."""
    for i, sentence in enumerate(sentences):
        yield ("", "", sentence) if i else (shown(name, 80), count, sentence)
