"""Graph scores of transcoders over a list of prompts: how much of each graph is features and how much is errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from circuits.attribution import trace
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.prompt import tokenize
from circuits.training.held_out import json_lines
from circuits.transcoder import Transcoders

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prompt:
    text: str
    tokens: list[int]


@dataclass(frozen=True)
class PromptScores:
    """Scores of one prompt's unpruned graph (:func:`circuits.graphs.scores.scores`)."""

    prompt: str
    replacement: float
    """Influence of tokens over influence of tokens and errors."""
    completeness: float
    """1 - share of a node's input that comes from errors, over nodes with inputs."""
    active_features: int
    unexplored: float
    """Share of influence at features whose rows were not computed; 0 at full coverage."""


@dataclass(frozen=True)
class GraphQuality:
    prompts: list[PromptScores]
    coverage: float

    @property
    def replacement_score(self) -> float:
        """Mean over prompts."""
        return float(np.mean([p.replacement for p in self.prompts]))

    @property
    def completeness_score(self) -> float:
        """Mean over prompts."""
        return float(np.mean([p.completeness for p in self.prompts]))

    def numbers(self) -> dict[str, Any]:
        """The scores, ready for JSON."""
        return {"replacement_score": self.replacement_score, "completeness_score": self.completeness_score,
                "coverage": self.coverage, "prompts": [
                    {"prompt": p.prompt, "replacement_score": p.replacement, "completeness_score": p.completeness,
                     "active_features": p.active_features, "unexplored": p.unexplored} for p in self.prompts]}


def read_prompts(model: Gemma3, path: Path, *, chat: bool = False) -> list[Prompt]:
    """The prompts of a file with one JSON object a line, its text under ``prompt``.

    Args:
        chat: wrap every prompt in the model's chat template.

    Raises:
        InputError: the file cannot be read or holds no prompt; a line is not such an object; a prompt is empty or too
            long for the model.
    """
    prompts = []
    for number, text in enumerate(json_lines(path, "prompt"), 1):
        try:
            prompts.append(Prompt(text, tokenize(model, text, chat)))
        except InputError as error:
            raise InputError(f"{path}, prompt {number}: {error}") from None
    if not prompts:
        raise InputError(f"{path} holds no prompts: expected one JSON object a line with a 'prompt' key")
    return prompts


def score_graphs(model: Gemma3, sets: Sequence[Transcoders], prompts: Sequence[Prompt], *, coverage: float = 1.0,
                 progress: Report = lambda stage, done, total: None) -> list[GraphQuality]:
    """Trace every prompt with every transcoder set, and score the unpruned graphs.

    Args:
        coverage: as for :func:`circuits.trace`; below 1.0 the scores count the influence at features without a row
            as going nowhere.

    Raises:
        InputError: ``coverage`` is not a share, or no prompts.
        ModelError: transcoders of another model.
    """
    if not prompts:
        raise InputError("there are no prompts to trace: give at least one")
    for transcoders in sets:
        transcoders.check_model(model.n_layers, model.d_model, model.name)
    qualities = []
    for i, transcoders in enumerate(sets):
        found = []
        for j, prompt in enumerate(prompts):
            progress("tracing prompts", i * len(prompts) + j, len(sets) * len(prompts))
            graph = trace(model, transcoders, tokens=prompt.tokens, coverage=coverage)
            scores = graph.header.scores
            found.append(PromptScores(prompt.text, scores["replacement"], scores["completeness"],
                                      graph.header.settings["active_features"], graph.header.unexplored))
        qualities.append(GraphQuality(found, coverage))
    return qualities
