"""Feature files (dashboards) in the JSON that Neuronpedia and circuit-tracer's page read: one file per feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.graphs.store import replacing, to_json

Example = tuple[Sequence[str], Sequence[float], int]
"""Token texts, the activation on each, and the place of the token that the example was chosen for."""


def pair_index(layer: int, feature: int) -> int:
    """The number that stands for a feature in a graph's JSON: Cantor's pairing of layer and feature."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def write_feature(folder: Path, layer: int, feature: int, *, examples: Mapping[str, Sequence[Example]],
                  top_logits: Sequence[str], bottom_logits: Sequence[str], **optional: Any) -> Path:
    """Write ``{pair_index}.json`` into a folder that exists.

    Args:
        examples: by name of the quantile, the highest first.
        top_logits, bottom_logits: texts of tokens promoted and suppressed, strongest first.
        optional: what else the file is to hold, such as ``act_min``, ``act_max``, ``activation_frequency``,
            ``histogram``, ``label``.

    Raises:
        InputError: it cannot be written.
    """
    index = pair_index(layer, feature)
    quantiles = [{"quantile_name": name, "examples": [
        {"tokens": list(tokens), "tokens_acts_list": [float(f"{x:.4g}") for x in activations], "train_token_ind": peak,
         "is_repeated_datapoint": False} for tokens, activations, peak in found]} for name, found in examples.items()]
    values = {"index": index, "layer": layer, "feature": feature, "examples_quantiles": quantiles,
              "top_logits": list(top_logits), "bottom_logits": list(bottom_logits), **optional}
    path = folder / f"{index}.json"
    with replacing(path) as scratch:
        scratch.write_text(to_json(values, allow_nan=False), encoding="utf-8")
    return path
