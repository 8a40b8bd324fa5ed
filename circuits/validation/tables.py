"""What the command line prints of a validation."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from circuits.report import visible
from circuits.validation.layers import LayerAgreement
from circuits.validation.steering import Steering
from circuits.validation.validate import Validation

MEASURES = {
    "spearman_influence": "rank correlation with the effect of ablation: influence",
    "spearman_edge": "baseline: direct effect on the targets",
    "spearman_activation": "baseline: activation",
    "spearman_shuffled": "baseline: influence, shuffled",
    "spearman_linear": "effect by the graph's edges, with their signs",
    "spearman_replaced": "effect in the local replacement model",
    "spearman_influence_kl": "influence with the KL of ablation",
    "spearman_influence_top": "influence with the effect on the first target",
    "log_pearson_influence": "log-log correlation of influence and effect",
    "pearson_predicted": "correlation of signed effects, replacement model and model",
}
"""Of :attr:`Validation.correlations`: what each row says."""
MOST_DISTANCES = 12
"""Rows of the table of layers."""


def tables(report: Validation) -> list[Table]:
    """Summary, layers, supernodes; the last two where they were measured."""
    made = [_summary(report)]
    if report.ablations.layers:
        made.append(_layers(report.ablations.layers))
    if report.steering:
        made.append(_steering(report.steering))
    return made


def _summary(report: Validation) -> Table:
    table = _table("Predicted beside measured", "measure", "value")
    frozen, worst = report.frozen, report.frozen.worst[:1]
    table.add_row(f"frozen: largest relative error of {frozen.n_edges} edges, {frozen.n_nodes} nodes doubled",
                  f"{frozen.max_relative_error:.1e}")
    for edge in worst:
        table.add_row(Text(f"  at {edge.source} → {edge.target}: {edge.edge:.6g}, measured {edge.measured:.6g}"), "")
    found = report.correlations
    note = ", of the graph pruned for this" if report.pruned else ""
    table.add_row(f"features ablated{note}", str(len(report.ablations.nodes)))
    for key, label in MEASURES.items():
        table.add_row(label, _figure(found[key]))
        if key == "spearman_influence":
            table.add_row("  95% interval, features resampled",
                          " to ".join(_figure(found[f"{key}_{end}"]) for end in ("low", "high")))
    return table


def _layers(layers: dict[str, LayerAgreement]) -> Table:
    table = _table("Residual stream, predicted beside measured: medians by layers above the feature", "distance",
                   *(f"{measure}, {name.replace('_', ' ')}" for name in layers for measure in ("cosine", "error")))
    summaries = [found.by_distance() for found in layers.values()]
    for row, distance in enumerate(summaries[0]["distance"][:MOST_DISTANCES]):
        table.add_row(str(distance), *(f"{found[measure][row][1]:.3f}" for found in summaries
                                       for measure in ("cosine", "error")))
    return table


def _steering(steered: list[Steering]) -> Table:
    """The ends of the range and ablation; the page and the JSON have every multiplier."""
    shown = [m for m in steered[0].multipliers if m in (min(steered[0].multipliers), 0.0, max(steered[0].multipliers))]
    table = _table("Supernodes: change of the targets (of random features of equal strength: mean)", "supernode",
                   *(f"{m:g}x" for m in shown), "0x: times random")
    table.columns[0].min_width = 18
    for one in steered:
        cells = []
        for at in map(one.multipliers.index, shown):
            control = f"{one.control_effects[:, at].mean():.2f}" if len(one.control_effects) else "–"
            cells.append(f"{one.effect[at]:.2f} ({control})")
        table.add_row(Text(f"{visible(one.label)} ({len(one.members)})"), *cells, f"{one.ratio:.1f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
