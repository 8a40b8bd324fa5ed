"""Influence against the measured effect of ablation, on the prompts of prompts.jsonl.

    python benchmarks/validation.py --work FOLDER --json result.json          half an hour; killed, it goes on
    python benchmarks/validation.py --work FOLDER --why --json result.json    twice that: what makes the two differ

Each prompt is traced and pruned, every feature left is ablated alone in the model, and influence is ranked against what
that did to the targets (sum of |change of a target| by the targets' weights). Pooled: over all features of all prompts,
influence and effect each divided by their sum over the prompt's features. A pruned graph has the most influential
features only, and a narrow range correlates less: a random sample of all active features is ablated as well. Figures
are given only where doubling every node with all else frozen gave every edge back (relative error at most 1e-4), at
every prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_run import conclude, write_json
from provenance import provenance

import circuits
from circuits.gemma3 import Gemma3
from circuits.interventions.edits import Intervention
from circuits.interventions.intervene import Outcome, intervene
from circuits.interventions.modes import FREE, Mode
from circuits.transcoder import Transcoders
from circuits.validation.correlation import spearman
from circuits.validation.frozen import LIMIT
from circuits.validation.linear import linear_effects
from circuits.validation.rerun import AT_ONCE, Rerun

PUBLISHED = 0.72
"""Spearman of influence and effect that Ameisen et al. 2025 report for their cross-layer transcoder."""
RESAMPLES = 1000
BASELINES = ("influence", "edge", "activation", "linear", "replaced")
WHY: dict[str, tuple[Mode, float]] = {
    "a tenth ablated": (FREE, 0.9),
    "patterns frozen": (Mode(patterns_frozen=True), 0.0),
    "patterns and norms frozen": (Mode(patterns_frozen=True, norms_frozen=True), 0.0),
    "MLPs replaced": (Mode(mlps="replaced"), 0.0),
    "MLPs clamped": (Mode(mlps="clamped"), 0.0)}
"""What reacts, and what features are multiplied by, in the further passes of ``--why``."""


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    prompts = [json.loads(line) for line in Path(options.prompts).read_text(encoding="utf-8").splitlines() if line]
    report = run(options, work, prompts)
    conclude(report, lines(report), "failure" in report, options.json)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Influence against the measured effect of ablation.")
    parser.add_argument("--work", required=True, help="folder for one file per prompt; those there are kept")
    parser.add_argument("--prompts", default=Path(__file__).parent / "prompts.jsonl")
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--transcoders", default="bundled")
    parser.add_argument("--coverage", type=float, default=0.95)
    parser.add_argument("--node-threshold", type=float, default=0.8)
    parser.add_argument("--sample", type=int, default=200, help="active features to ablate, whether kept or not")
    parser.add_argument("--why", action="store_true", help="also let only parts of the model react")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="write the figures to this file")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, work: Path, prompts: list[dict[str, str]]) -> dict[str, Any]:
    """The report; ``failure`` instead of figures where a frozen check failed."""
    asked = {"model": options.model, "transcoders": options.transcoders, "coverage": options.coverage,
             "node_threshold": options.node_threshold, "sample": options.sample, "why": options.why}
    opened: list[tuple[Gemma3, Transcoders]] = []
    found = []
    for prompt in prompts:
        path = work / f"{''.join(c if c.isalnum() else '-' for c in prompt['prompt'])}.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if kept.get("asked") != asked:
            if not opened:
                opened.append((circuits.load_model(options.model), circuits.open_transcoders(options.transcoders)))
            kept = {"asked": asked, **prompt, **measured(*opened[0], prompt["prompt"], options)}
            write_json(path, kept)
        found.append(kept)
    report: dict[str, Any] = {"benchmark": "validation", **provenance(), **asked, "published": PUBLISHED}
    bad = [f"{one['prompt']!r}: {one['frozen_max_relative_error']:.1e}" for one in found
           if not one["frozen_max_relative_error"] <= LIMIT]
    if bad:
        return report | {"failure": f"frozen interventions miss edges by more than {LIMIT:.0e} at {'; '.join(bad)}"}
    return report | figures(found)


def measured(model: Gemma3, transcoders: Transcoders, prompt: str, options: argparse.Namespace) -> dict[str, Any]:
    """One prompt: the correlations, and what they are made of."""
    whole = circuits.trace(model, transcoders, prompt, coverage=options.coverage)
    graph = whole.prune(options.node_threshold)
    report = circuits.validate(graph, model, transcoders, steering=False)
    found, nodes = report.ablations, graph.nodes
    features = {"layer": nodes.layer[found.nodes], "position": nodes.position[found.nodes],
                "feature": nodes.feature[found.nodes], "influence": found.influence,
                "activation": found.activation, "effect": found.size(found.measured), "kl": found.kl,
                "edge": found.size(found.direct), "linear": found.size(found.linear),
                "replaced": found.size(found.predicted), "signed_replaced": found.signed(found.predicted),
                "signed_effect": found.signed(found.measured)}
    rerun = Rerun.of(whole, model, transcoders, None, lambda stage, done, total: None)
    places = {node_id: i for i, node_id in enumerate(whole.node_ids)}
    kept = np.array([places[graph.node_ids[node]] for node in found.nodes])
    variants = _variants(rerun, kept) if options.why else {}
    return {"frozen_max_relative_error": report.frozen.max_relative_error, "correlations": report.correlations,
            "layers": {name: one.by_distance() for name, one in found.layers.items()},
            "features": {name: values.tolist() for name, values in features.items()},
            "sample": _sample(rerun, options.sample),
            "variants": {name: values.tolist() for name, values in variants.items()}}


def _sample(rerun: Rerun, size: int) -> dict[str, list[float]]:
    """Influence, effect, KL and direct effect of a random sample of all features that are active."""
    graph = rerun.graph
    features = np.flatnonzero(graph.nodes.kind == "feature")
    nodes = np.sort(np.random.default_rng(0).permutation(features)[:size])
    outcomes = list(_scaled(rerun, nodes, FREE, 0.0))
    direct = np.abs(graph.adjacency()[np.flatnonzero(graph.nodes.kind == "logit")][:, nodes].toarray())
    columns = {"influence": graph.nodes.influence[nodes], "activation": graph.nodes.value[nodes],
               "edge": rerun.weights @ direct, "effect": _sizes(rerun, outcomes),
               "kl": np.concatenate([outcome.kl.cpu().numpy() for outcome in outcomes])}
    return {name: values.tolist() for name, values in columns.items()}


def _variants(rerun: Rerun, nodes: np.ndarray) -> dict[str, np.ndarray]:
    """(n,) effect of every feature where only parts of the model react, and by the edges of the unpruned graph."""
    edges = np.abs(linear_effects(rerun.graph, nodes)) @ rerun.weights
    return {"edges of the unpruned graph, with signs": edges} | {
        name: _sizes(rerun, _scaled(rerun, nodes, mode, amount)) for name, (mode, amount) in WHY.items()}


def _scaled(rerun: Rerun, nodes: np.ndarray, mode: Mode, amount: float) -> Iterator[Outcome]:
    """Outcomes of making each feature ``amount`` times what it is, some features at a time."""
    for start in range(0, len(nodes), AT_ONCE):
        yield intervene(rerun.model, rerun.transcoders, rerun.local,
                        [Intervention((rerun.edit(int(node), amount),)) for node in nodes[start:start + AT_ONCE]], mode)


def _sizes(rerun: Rerun, outcomes: Iterable[Outcome]) -> np.ndarray:
    """(n,) effects on the targets."""
    return np.concatenate([np.abs(rerun.on_targets(o.final_changes)) @ rerun.weights for o in outcomes])


def figures(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Correlations per prompt, their mean, and pooled with bootstrap intervals."""
    def column(part: str, name: str) -> list[np.ndarray]:
        return [np.array(one[part][name]) for one in found]

    pooled = {name: _pooled(column("features", name), column("features", "effect")) for name in BASELINES}
    pooled["influence with KL"] = _pooled(column("features", "influence"), column("features", "kl"))
    sample = {name: _pooled(column("sample", name), column("sample", "effect")) for name in (
        "influence", "edge", "activation")}
    sample["influence with KL"] = _pooled(column("sample", "influence"), column("sample", "kl"))
    why = {name: {"influence with it": _pooled(column("features", "influence"), column("variants", name)),
                  "it with the effect": _pooled(column("variants", name), column("features", "effect"))}
           for name in found[0]["variants"]}
    keys = [key for key in found[0]["correlations"] if key.startswith(("spearman", "log_pearson_i", "pearson"))]
    return {"pooled": pooled, "sample": sample, "why": why,
            "mean": {key: float(np.nanmean(np.array([one["correlations"][key] for one in found], float)))
                     for key in keys},
            "prompts": [{"kind": one["kind"], "prompt": one["prompt"], "n_features": len(one["features"]["effect"]),
                         "frozen_max_relative_error": one["frozen_max_relative_error"], **one["correlations"],
                         "spearman_sample": spearman(*(np.array(one["sample"][name]) for name in (
                             "influence", "effect")))}
                        for one in found]}


def _pooled(x: list[np.ndarray], y: list[np.ndarray]) -> dict[str, float]:
    """Spearman over all features of all prompts, and its 95% interval: prompts, and features within each, drawn with
    replacement."""
    x, y = ([np.abs(values) / np.abs(values).sum() for values in side] for side in (x, y))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        parts = [(p, rng.integers(len(x[p]), size=len(x[p]))) for p in rng.integers(len(x), size=len(x))]
        drawn.append(spearman(*(np.concatenate([side[p][i] for p, i in parts]) for side in (x, y))))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"spearman": spearman(np.concatenate(x), np.concatenate(y)), "low": float(low), "high": float(high),
            "mean_of_prompts": float(np.mean([spearman(*pair) for pair in zip(x, y, strict=True)]))}


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as text."""
    if "failure" in report:
        yield f"FAILED, so no figures are shown: {report['failure']}"
        return
    columns = {"influence": "influence", "influence_low": "from", "influence_high": "to", "edge": "edge",
               "activation": "activation", "linear": "linear", "replaced": "replaced", "influence_kl": "KL",
               "sample": "sample"}
    yield "  ".join(f"{name:>10}" for name in [*columns.values(), "features"]) + "  prompt"
    for one in report["prompts"]:
        figures = [one[f"spearman_{key}"] for key in columns]
        yield "  ".join(f"{'–' if value is None else format(value, '.2f'):>10}" for value in figures) + (
            f"  {one['n_features']:>10}  {one['kind']}: {one['prompt']}")
    for part in ("pooled", "sample"):
        for name, one in report[part].items():
            yield (f"{part}, {name}: {one['spearman']:.3f} ({one['low']:.3f} to {one['high']:.3f}); mean of prompts "
                   f"{one['mean_of_prompts']:.3f}")
    for name, parts in report["why"].items():
        yield f"{name}: " + ", ".join(f"{what} {one['spearman']:.3f}" for what, one in parts.items())
    yield f"published for a far larger CLT: {report['published']}"


if __name__ == "__main__":
    main()
