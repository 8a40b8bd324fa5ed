"""What graphs find of causes that are known: the small world's models, by task, size and kind of transcoder.

    python benchmarks/small_world.py --json result.json          some ten minutes

Of every task: how often the model answers right; over questions it answers right, the share of tokens' influence that
graphs give to the tokens that truly cause the answer, beside the share of tokens that are causes, and how often a cause
has more of it than another word, for the answer and for the answer against the next likely token; and how often the
answer becomes another state's, number's or count's when the features that tell them apart are set to what they are for
that one, beside what as many features that do not tell them apart do. Figures are given only where conservation holds
at every graph.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_run import conclude
from provenance import provenance

import circuits
from circuits.gemma3 import Gemma3
from circuits.graphs import AttributionGraph
from circuits.small_world.answers import SEED, accuracy, ask, question_tokens
from circuits.small_world.causes import SWAPPED_TASKS, cause_share, swaps
from circuits.small_world.tasks import TASKS, Question, held_out_questions, questions
from circuits.transcoder import Transcoders

CONSERVATION = 1e-4
"""Largest relative residual of a graph that figures are given of."""
RESAMPLES = 1000


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    report = run(options)
    conclude(report, lines(report), "failure" in report, options.json)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What graphs find of causes that are known.")
    parser.add_argument("--models", nargs="+", default=["small-world-s", "small-world-m"],
                        help="aliases, or folders beside which <folder>-clt and <folder>-plt lie")
    parser.add_argument("--kinds", nargs="+", default=["clt", "plt"])
    parser.add_argument("--graphs", type=int, default=20, help="of each task, questions that are answered right")
    parser.add_argument("--swaps", type=int, default=40, help="of each task that has an intermediate")
    parser.add_argument("--questions", type=int, default=200, help="of each task, for accuracy")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="write the figures to this file")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The report; ``failure`` instead of figures where edges did not sum to a target's value."""
    report: dict[str, Any] = {"benchmark": "small_world", **provenance(), "graphs": options.graphs,
                              "swaps": options.swaps, "models": {}}
    worst = 0.0
    for name in options.models:
        model = circuits.load_model(name)
        found: dict[str, Any] = {"accuracy": {task: answers.numbers() for task, answers in accuracy(
            model, options.questions).items()}}
        for kind in options.kinds:
            transcoders = circuits.open_transcoders(f"{name}-{kind}")
            found[kind], conservation = _tasks(model, transcoders, options)
            worst = max(worst, conservation)
        report["models"][Path(name).name] = found
    report["conservation"] = worst
    if not worst <= CONSERVATION:
        return {**report, "models": {}, "failure": f"edges into a target miss its value by {worst:.1e} (relative)"}
    return report


def _tasks(model: Gemma3, transcoders: Transcoders, options: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """Figures by task, and the worst conservation residual of the graphs."""
    tasks, worst = {}, 0.0
    for task in (*TASKS, "two_step_held_out"):
        asked = list(itertools.islice(_answered(model, task), options.graphs))
        graphs = [circuits.trace(model, transcoders, question.prompt, coverage=1.0) for question in asked]
        against = [_contrast(model, transcoders, question) for question in asked]
        worst = max([worst, *(graph.conservation for graph in (*graphs, *against))])
        shares, contrasts = ([cause_share(graph, question) for graph, question in zip(made, asked, strict=True)]
                             for made in (graphs, against))
        tasks[task] = {
            "graphs": len(graphs), "cause_share": _mean([one.share for one in shares]),
            "cause_share_contrast": _mean([one.share for one in contrasts]),
            "ranking": _mean([one.ranking for one in shares]),
            "ranking_contrast": _mean([one.ranking for one in contrasts]),
            "tokens_share": _mean([one.tokens for one in shares]), "error_share": _mean([one.errors for one in shares]),
            "replacement": _mean([graph.scores["replacement"] for graph in graphs]),
            "completeness": _mean([graph.scores["completeness"] for graph in graphs])}
        if task in SWAPPED_TASKS:
            made = swaps(model, transcoders, task, options.swaps)
            tasks[task]["swap"] = {
                "swaps": len(made), "became": _mean([float(one.became) for one in made]),
                "random": _mean([float(one.random) for one in made]), "same": _mean([float(one.same) for one in made]),
                "probability": _mean([one.probability for one in made]),
                "probability_before": _mean([one.probability_before for one in made]),
                "features": float(np.mean([one.n_features for one in made])) if made else math.nan}
    return tasks, worst


def _contrast(model: Gemma3, transcoders: Transcoders, question: Question) -> AttributionGraph:
    """Why the answer, and not the next likely token."""
    answer, other = model.freeze(question_tokens(model, question)).logits.topk(2).indices.tolist()
    return circuits.trace(model, transcoders, question.prompt, coverage=1.0, target=answer, versus=other)


def _answered(model: Gemma3, task: str) -> Iterator[Question]:
    """Questions that the model answers right."""
    asked = held_out_questions(400, SEED) if task == "two_step_held_out" else questions(400, SEED, task)
    for question in asked:
        if ask(model, [question])[0][0]:
            yield question


def _mean(values: list[float]) -> dict[str, float]:
    """Mean and its 95% interval over questions drawn with replacement; NaN of none."""
    if not values:
        return dict.fromkeys(("mean", "low", "high"), math.nan)
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as text."""
    if "failure" in report:
        yield f"FAILED, so no figures are shown: {report['failure']}"
        return
    for name, found in report["models"].items():
        yield f"{name} answers right: " + ", ".join(
            f"{task} {one['right']:.0%}" for task, one in found["accuracy"].items())
        for kind in (kind for kind in ("clt", "plt") if kind in found):
            yield (f"{name} {kind}:  influence on causes (their share of tokens), of the answer and of the answer "
                   "against the next likely token; causes above others; errors, replacement; swaps that "
                   "change the answer (random features; own value keeps it)")
            for task, one in found[kind].items():
                line = (f"  {task:>18}  {_range(one['cause_share'])} ({one['tokens_share']['mean']:.2f}), contrast "
                        f"{_range(one['cause_share_contrast'])}; ranking {one['ranking']['mean']:.2f}, contrast "
                        f"{one['ranking_contrast']['mean']:.2f}  {one['error_share']['mean']:.2f}  "
                        f"{one['replacement']['mean']:.2f}")
                if swap := one.get("swap"):
                    line += (f"  {_range(swap['became'])} ({swap['random']['mean']:.2f}; {swap['same']['mean']:.2f}), "
                             f"{swap['features']:.0f} features")
                yield line
    yield f"worst conservation residual {report['conservation']:.1e}"


def _range(one: dict[str, float]) -> str:
    return f"{one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


if __name__ == "__main__":
    main()
