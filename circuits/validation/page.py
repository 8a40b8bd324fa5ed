"""A validation as one HTML file: its measures and figures (:mod:`circuits.plot_page`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from circuits.plot_page import write_plot_page
from circuits.validation.figures import sections
from circuits.validation.tables import MEASURES
from circuits.validation.validate import Validation


def write_page(report: Validation, path: Path) -> None:
    """Write the page.

    Raises:
        InputError: the file cannot be written.
    """
    write_plot_page(path, title=f"Validation: {report.graph.header.prompt}", facts=_facts(report),
                    measured="How well the graph predicts", measures=list(_measures(report)), sections=sections(report))


def _facts(report: Validation) -> list[tuple[str, str]]:
    header = report.graph.header
    pruned = ", of the graph pruned for this" if report.pruned else ""
    return [("model", header.model), ("transcoders", header.transcoders),
            ("features ablated", f"{len(report.ablations.nodes):,}{pruned}"), ("seed", str(report.seed)),
            ("made", report.created)]


def _measures(report: Validation) -> Iterator[tuple[str, str, str]]:
    """(what, value, note)"""
    frozen, found = report.frozen, report.correlations
    yield ("All else frozen: largest relative error of an edge", f"{frozen.max_relative_error:.1e}",
           f"{frozen.n_nodes:,} nodes doubled, {frozen.n_edges:,} edges compared. This tests the tracer; it must be "
           "below 1e-4 in float32.")
    for key, meaning in MEASURES.items():
        if (value := found[key]) is not None:
            yield meaning[:1].upper() + meaning[1:], f"{value:.3f}", f"{key} in the JSON"
