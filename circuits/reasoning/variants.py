"""The answer when the question or the reasoning is another one, and when the reasoning's features stay as they were.

With the question's tokens replaced, what remains of the answer is what the reasoning's text carries, and with the
features at the reasoning held, what its computation carries beyond its text. With the reasoning's tokens replaced, what
remains is what the question carries by itself. These run in the model itself, with nothing frozen: the texts differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.graphs.spans import Span
from circuits.interventions.edits import Intervention
from circuits.interventions.intervene import intervene
from circuits.reasoning.corruption import activations_at, swapping, with_tokens
from circuits.replacement import LocalReplacement, build_replacement
from circuits.validation.rerun import Rerun

LEAST = 0.5
"""Logits by which replacing both texts must lower the target: shares of less would be shares of nothing."""
ORIGINAL, ORIGIN, SPAN, BOTH = "original", "origin replaced", "span replaced", "both replaced"
HELD, CONTROL_HELD, RANDOM_HELD = (f"{ORIGIN}, {what} held" for what in
                                   ("span's features", "control spans' features", "random features"))


@dataclass(frozen=True, eq=False)
class Variant:
    """One text, or several controls of one kind: numbers are then lists, and :attr:`value` their mean."""

    name: str
    n_features: int
    """Held; 0 where none are. Of controls, the largest number."""
    values: list[float]
    """Weighted sum of the targets' values."""
    probabilities: list[float] | None
    """Of the first target token; None where the target is no token."""
    kls: list[float]
    """From the original's next-token distribution, nats."""
    kept: float = math.nan
    """Share of the target's value that remains, of what is lost with both texts replaced; NaN where that is less than
    LEAST. Below 0 or above 1 where the target moves further or the other way."""

    @property
    def value(self) -> float:
        return float(np.mean(self.values))

    @property
    def probability(self) -> float | None:
        return None if self.probabilities is None else float(np.mean(self.probabilities))

    def numbers(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self)) | {"value": self.value, "probability": self.probability}


def text_variants(rerun: Rerun, span: Span, origin: Span | None, new: Sequence[int] | None,
                  new_origin: Sequence[int] | None, controls: Sequence[Span], eligible: Sequence[int], draws: int,
                  seed: int) -> list[Variant]:
    """Run the prompt with other tokens in the span (``new``), the origin (``new_origin``), and both.

    Args:
        controls: spans that neither is in, whose features are held instead of the span's.
        eligible: positions from which random features to hold are drawn: those of neither.
        draws: how many random sets.
    """
    tokens = rerun.local.frozen.tokens
    found = [_variant(rerun, ORIGINAL, [rerun.local.frozen.final_normed])]
    replaced = None if new is None else with_tokens(tokens, span, list(new))
    if origin is not None and new_origin is not None:
        run = _run(rerun, with_tokens(tokens, origin, list(new_origin)))
        found.append(_variant(rerun, ORIGIN, [run.frozen.final_normed]))
        found += _held(rerun, run, span, controls, eligible, draws, seed)
    if replaced is not None:
        found.append(_variant(rerun, SPAN, [_run(rerun, replaced).frozen.final_normed]))
        if origin is not None and new_origin is not None:
            both = _run(rerun, with_tokens(replaced, origin, list(new_origin)))
            found.append(_variant(rerun, BOTH, [both.frozen.final_normed]))
    return with_kept(found)


def with_kept(variants: list[Variant]) -> list[Variant]:
    """The same with :attr:`Variant.kept`, where both texts were replaced."""
    values = {variant.name: variant.value for variant in variants}
    lost = values[ORIGINAL] - values.get(BOTH, math.nan)
    if not lost >= LEAST:
        return variants
    return [Variant(**vars(variant) | {"kept": 1 - (values[ORIGINAL] - variant.value) / lost}) for variant in variants]


def _held(rerun: Rerun, run: LocalReplacement, span: Span, controls: Sequence[Span], eligible: Sequence[int],
          draws: int, seed: int) -> list[Variant]:
    """The prompt with another question, run with features at their values on the original one."""
    def holding(positions: Sequence[int]) -> Intervention:
        return swapping(activations_at(run, positions), activations_at(rerun.local, positions), HELD)

    main, pool = holding(span.positions), holding(eligible).edits
    drawn = [np.random.default_rng((seed, i)).permutation(len(pool))[:len(main.edits)] for i in range(draws)]
    sets = {HELD: [main], CONTROL_HELD: [holding(one.positions) for one in controls],
            RANDOM_HELD: [Intervention(tuple(pool[i] for i in chosen), RANDOM_HELD) for chosen in drawn]}
    found = []
    for name, held in sets.items():
        if some := [one for one in held if one.edits]:
            outcome = intervene(rerun.model, rerun.transcoders, run, some)
            found.append(_variant(rerun, name, list(run.frozen.final_normed + outcome.final_changes),
                                  max(len(one.edits) for one in some)))
    return found


def _run(rerun: Rerun, tokens: list[int]) -> LocalReplacement:
    return build_replacement(rerun.model, rerun.transcoders, tokens)


def _variant(rerun: Rerun, name: str, finals: list[Tensor], n_features: int = 0) -> Variant:
    """Of outputs (D,) of the final norm at the last position."""
    final, token = torch.stack(finals), rerun.targets.tokens[0]
    before = rerun.local.frozen.logits.double().log_softmax(-1)
    after = rerun.model.unembed(final).double().log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1).clamp_min(0)
    return Variant(name, n_features, (rerun.on_targets(final) @ rerun.weights).tolist(),
                   None if token < 0 else after[:, token].exp().tolist(), kl.tolist())
