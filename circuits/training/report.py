"""The report of a training run: what it measured and how it went, as one HTML file (:mod:`circuits.plot_page`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from circuits.errors import FormatError, InputError
from circuits.plot_page import write_plot_page
from circuits.plots import finite, number, per_layer
from circuits.transcoder import Transcoders

MEASURES = {
    "fvu_mean": ("FVU, mean over layers", ".3f", "Fraction of variance unexplained: squared error over the variance "
                 "of the MLP output. 0 is perfect, 1 no better than the mean."),
    "active_per_position": ("Active features per position", ".1f", "All layers together (L0). Fewer make smaller "
                            "graphs."),
    "kl": ("KL, every MLP replaced", ".3f", "Nats per position from the model's next-token distribution to that of "
           "the model with every MLP output replaced, without error terms. 0 is perfect."),
    "kl_mean_ablated": ("KL, every MLP mean-ablated", ".3f", "The same with every MLP output replaced by its mean: "
                        "what a transcoder that knows nothing would reach."),
    "top1_agreement": ("Top-1 agreement, every MLP replaced", ".1%", "Positions at which the model with every MLP "
                       "replaced finds the same token likeliest."),
    "loss_recovered": ("Loss recovered, every MLP replaced", ".1%", "100% is the model's own loss on the text, 0% "
                       "that with every MLP mean-ablated."),
    "loss": ("Loss of the model", ".3f", "Cross entropy of the text's next tokens, nats per token."),
    "loss_replaced": ("Loss, every MLP replaced", ".3f", "The same without the model's MLPs and without error terms."),
    "loss_mean_ablated": ("Loss, every MLP mean-ablated", ".3f", "The same with every MLP output replaced by its "
                          "mean."),
    "kl_with_errors": ("KL, error terms added back", ".1e", "0 by construction, up to rounding: it checks the "
                       "reconstruction, and says nothing of quality."),
    "top1_with_errors": ("Top-1 agreement, error terms added back", ".1%", "100% by construction."),
    "dead_fraction": ("Dead features", ".1%", "Never fired on the held-out text."),
    "dense_fraction": ("Dense features", ".1%", "Fire on more than 10% of positions; these are rarely readable."),
    "replacement_score": ("Graph replacement", ".3f", "Influence of tokens over influence of tokens and errors, in "
                          "unpruned graphs. 1 is perfect."),
    "completeness_score": ("Graph completeness", ".3f", "1 minus the share of nodes' inputs that come from errors, "
                           "weighted by influence. 1 is perfect."),
    "positions": ("Positions measured", ",", "Of held-out text."),
}
"""Name, format and meaning of the measures of :mod:`circuits.training.evaluate`, in the order of the table."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, by step.

    A kill may tear a line, which is left out. A resumed run goes back to its checkpoint: the lines from there on that
    the killed run had written are left out.

    Raises:
        InputError: the file cannot be read.
        FormatError: no line of it is a JSON object with a step.
    """
    try:
        content = Path(path).read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give the metrics.jsonl of a training run"
                         ) from error
    metrics: list[dict[str, Any]] = []
    for text in content.split("\n"):
        try:
            entry = json.loads(text)
        except ValueError:
            continue
        step = number(entry.get("step")) if isinstance(entry, dict) else None
        if step is None:
            continue
        while metrics and metrics[-1]["step"] >= step:
            metrics.pop()
        metrics.append(entry)
    if content.strip() and not metrics:
        raise FormatError(f"{path} has no line that is a JSON object with a step: give the metrics.jsonl of a training "
                          "run")
    return metrics


def write_report(path: Path, *, metrics: list[dict[str, Any]], transcoders: Transcoders, quality: dict[str, Any],
                 density: Sequence[np.ndarray] | None, settings: dict[str, Any], title: str) -> None:
    """Write the report of a training run; what is missing in its arguments is left out of the page.

    Args:
        metrics: of :func:`read_metrics`: ``step``, and any of ``time``, ``tokens``, ``loss``, ``tokens_per_second``,
            and, by layer, ``fvu``, ``active``, ``dead``, ``threshold``.
        transcoders: the finished ones, whose decoder norms are drawn.
        quality: measures on held-out text, of :mod:`circuits.training.evaluate`.
        density: per layer (F,), the share of held-out positions each feature fires on.
        settings: shown as they are, nested ones by dotted names.

    Raises:
        InputError: the file cannot be written, or ``density`` has another number of layers.
        FormatError: the transcoder files are damaged.
    """
    if density is not None and len(density) != transcoders.n_layers:
        raise InputError(f"density has {len(density)} layers, the transcoders have {transcoders.n_layers}: give one "
                         "array per layer")
    from circuits.training.report_figures import sections

    write_plot_page(path, title=title, facts=_facts(metrics, transcoders), measured="Quality on held-out text",
                    measures=list(_quality_rows(quality, transcoders.n_layers)),
                    sections=sections(metrics, transcoders, quality, density),
                    settings=[(name, _text(value)) for name, value in _flat(settings)])


def _facts(metrics: list[dict[str, Any]], transcoders: Transcoders) -> list[tuple[str, str]]:
    widths = sorted(set(transcoders.d_transcoder))
    span = max(len(transcoders.output_layers(layer)) for layer in range(transcoders.n_layers))
    facts = [("model", transcoders.model_name or "not said"), ("layers", str(transcoders.n_layers)),
             ("features per layer", " to ".join(f"{width:,}" for width in (widths[0], widths[-1])[:len(widths)])),
             ("features write to", "their own layer" if span == 1 else f"their own and the next {span - 1} layers")]
    last = metrics[-1] if metrics else {}
    for key, name in (("tokens", "tokens seen"), ("step", "steps")):
        if (count := number(last.get(key))) is not None:
            facts.append((name, f"{count:,.0f}"))
    times = finite([number(entry.get("time")) for entry in metrics])
    if times:
        facts.append(("ended", datetime.fromtimestamp(times[-1], UTC).strftime("%Y-%m-%d %H:%M UTC")))
        facts.append(("took", f"{(times[-1] - times[0]) / 3600:.1f} hours, pauses included"))
    return facts


def _quality_rows(quality: dict[str, Any], n_layers: int) -> Iterator[tuple[str, str, str]]:
    """(measure, value, meaning): the known ones first, then other single values; lists by layer are drawn instead."""
    for key, (name, form, meaning) in MEASURES.items():
        if (value := number(quality.get(key))) is not None:
            yield name, format(value, form), meaning
        if key == "fvu_mean" and (layers := per_layer(quality.get("fvu_by_layer"), n_layers)):
            worst = max(finite(layers))
            yield "FVU, worst layer", f"{worst:.3f}", f"Layer {layers.index(worst)}."
    for name, value in _flat({key: value for key, value in quality.items() if key not in MEASURES}):
        if value is not None and not isinstance(value, list):
            yield name.replace("_", " "), _text(value), ""


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value), nested ones unfolded."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
