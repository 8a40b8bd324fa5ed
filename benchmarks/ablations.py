"""Single-feature ablations in one pass, against one forward pass of the model for each.

    python benchmarks/ablations.py --json result.json

A hundred features of a prompt of about 20 tokens are ablated freely, everything after them recomputed. The ratio is
given only when, in the same run, the strongest of these ablations agree with the model run alone, where each feature's
writes are subtracted from the MLPs' outputs by hand. The forward passes that it is compared with compute the last
position's logits only, which is the least that anyone who ablates by separate runs must do.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from measured_run import conclude, measure
from provenance import provenance

import circuits
from circuits.gemma3 import Gemma3
from circuits.interventions.edits import ablate
from circuits.interventions.intervene import intervene, local_replacement
from circuits.replacement import LocalReplacement
from circuits.transcoder import Transcoders

PROMPT = "The quick brown fox jumps over the lazy dog because the dog was sleeping in the warm sun all day"
CHECKED = 5
TOLERANCE = 1e-3
"""Of a logit's change, relative to the largest: the other side is a difference of two runs whose logits, near 20, are
known to about 1e-5 in float32."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ablations in one pass against separate forward passes.")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--transcoders", default="bundled")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--tokens", help="ids with commas instead of the prompt")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args(arguments)
    model = circuits.load_model(options.model, device="cpu")
    transcoders = circuits.open_transcoders(options.transcoders)
    prompt = [int(token) for token in options.tokens.split(",")] if options.tokens else options.prompt
    report = run(model, transcoders, local_replacement(model, transcoders, prompt), options.count, options.repeats,
                 options.seed)
    conclude(report, [line(report)], "failure" in report, options.json)


def run(model: Gemma3, transcoders: Transcoders, local: LocalReplacement, count: int, repeats: int, seed: int
        ) -> dict[str, Any]:
    """Measure both; ``figures`` are there only when the ablations are right, else ``failure`` is."""
    chosen = torch.randperm(len(local.active), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    features = [tuple(int(column[i]) for column in (local.active.layer, local.active.feature, local.active.position))
                for i in chosen]
    interventions = [ablate(*feature) for feature in features]
    tokens = torch.tensor([local.frozen.tokens])
    report: dict[str, Any] = {"benchmark": "ablations", **provenance(), "tokens": local.n_positions,
                              "ablations": len(features), "threads": torch.get_num_threads()}
    together, alone, peak = [], [], 0.0
    _forward(model, tokens)
    for _ in range(repeats):
        outcome, figures = measure(lambda: intervene(model, transcoders, local, interventions))
        changes, unembedding = measure(lambda outcome=outcome: outcome.logit_changes)
        together.append(figures["seconds"] + unembedding["seconds"])
        peak = unembedding["peak_bytes"]
        _, figures = measure(lambda: [_forward(model, tokens) for _ in features])
        alone.append(figures["seconds"])
    strongest = changes.abs().amax(1).topk(min(CHECKED, len(features))).indices.tolist()
    worst = max(_difference(model, transcoders, local, features[i], changes[i]) for i in strongest)
    report["largest_difference"] = worst
    if not worst <= TOLERANCE:
        return report | {"failure": f"an ablation differs from a separate run by {worst:.1e} of the largest change"}
    ratios = [b / a for a, b in zip(together, alone, strict=True)]
    return report | {"figures": {
        "seconds": statistics.median(together), "separate_seconds": statistics.median(alone),
        "ratio": statistics.median(ratios), "least_ratio": min(ratios), "peak_bytes": peak}}


@torch.no_grad()
def _forward(model: Gemma3, tokens: torch.Tensor) -> torch.Tensor:
    hidden = model.hf.model(tokens, use_cache=False).last_hidden_state[:, -1]
    return torch.nn.functional.linear(hidden, model.unembedding)


def _difference(model: Gemma3, transcoders: Transcoders, local: LocalReplacement, feature: tuple[int, ...],
                change: torch.Tensor) -> float:
    """Largest difference of a logit's change (V,) to the model's own run, relative to the largest change."""
    layer, number, position = feature
    active = local.active
    here = (active.layer == layer) & (active.feature == number) & (active.position == position)
    written = -active.value[here] * transcoders.decoder_rows(layer, torch.tensor([number]))[0].T  # (D, S)
    tokens = torch.tensor([local.frozen.tokens])

    def mlp(at: int, _x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if 0 <= at - layer < written.shape[1]:
            y = y.clone()
            y[0, position] += written[:, at - layer]
        return y

    expected = model.logits_with_mlps(tokens, mlp)[0, -1] - model.logits_with_mlps(tokens)[0, -1]
    return float((change - expected).abs().max() / expected.abs().max())


def line(report: dict[str, Any]) -> str:
    """One sentence."""
    if "failure" in report:
        return report["failure"]
    figures = report["figures"]
    return (f"{report['ablations']} ablations of a prompt of {report['tokens']} tokens: {figures['seconds']:.2f} s in "
            f"one pass, {figures['separate_seconds']:.2f} s in as many forward passes, {figures['ratio']:.1f} times "
            f"faster; peak memory {figures['peak_bytes'] / 1e9:.2f} GB; largest difference "
            f"{report['largest_difference']:.1e}")


if __name__ == "__main__":
    main()
