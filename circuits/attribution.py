"""Trace a prompt: targets, rows where influence goes, one graph with its certificate and its conservation check.

Shapes: N active features, S source nodes (features, errors, embeddings, constants), K targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import torch
from torch import Tensor

import circuits
from circuits.assembly import assemble
from circuits.errors import ConservationError, InputError
from circuits.frontier import Expansion, Report, expand
from circuits.gemma3 import DTYPES, Gemma3, check_dtype
from circuits.graphs.graph import AttributionGraph, Header
from circuits.graphs.influence import unexplored
from circuits.kernels.products import fast_16_bit
from circuits.planning import LONG, Plan, Size, plan
from circuits.prompt import check_tokens, prompt_text, token_text, tokenize
from circuits.replacement import LocalReplacement, build_replacement
from circuits.sweep import Sweep
from circuits.targets import Targets, choose_targets
from circuits.transcoder import Transcoders

LONG_PROMPT_ROWS = 7500
"""Features' rows of a long prompt, circuit-tracer's default: a row costs much there, and all would take days."""
CONSERVATION_LIMIT = 1e-3
"""Largest relative residual of a float32 trace; correct ones stay near 1e-6 (METHOD 3)."""


def trace(model: Gemma3, transcoders: Transcoders, prompt: str | None = None, *, tokens: Sequence[int] | None = None,
          chat: bool = False, coverage: float = 0.95, max_features: int | None = None, max_logits: int = 10,
          logit_prob: float = 0.95, target: str | int | None = None, versus: str | int | None = None,
          direction: Tensor | None = None, dtype: str = "float32", batch: int | None = None,
          memory: int | None = None, row_mass: float | None = None,
          progress: Report = lambda stage, done, total: None) -> AttributionGraph:
    """The attribution graph of a prompt (METHOD 1-4; Ameisen et al. 2025, "Circuit Tracing").

    Args:
        prompt: text; or ``tokens``: ids with ``<bos>`` first. ``chat`` wraps the text in the chat template.
        coverage: rows are computed best first until at most ``1 - coverage`` of influence is unexplored; 1.0
            computes every active feature's row.
        max_features: stop after this many features' rows; the graph says which coverage was reached. By default
            LONG_PROMPT_ROWS beyond planning.LONG tokens, where ``coverage`` is below 1; else no limit.
        max_logits, logit_prob: trace the fewest top logits that hold ``logit_prob``, at most ``max_logits``.
        target, versus: instead one token, or the difference of two tokens' logits.
        direction: (D,) instead any direction in the space of the unembedding.
        dtype: of the rows' arithmetic: ``float32``; ``bfloat16`` or ``float16`` (about 0.4% relative error); or
            ``mixed``: float32 until only ``frontier.TAIL`` of influence is unexplored, then bfloat16 where the device
            multiplies it faster.
        batch: most targets computed at once; by default chosen from the prompt's length and the memory.
        memory: bytes this process may hold on the model's device; by default what is free (:mod:`circuits.planning`).
        row_mass: share of every row's sum of |edge| that is stored, largest edges first, the rest as its sum; by
            default 1, and planning.ROW_MASS where all edges would be too many.
        progress: called as work proceeds.

    Raises:
        InputError: unusable arguments, or transcoders of another model.
        ConservationError: the edges into some target do not sum to its value.
    """
    _check(coverage, max_features, dtype, batch, memory, row_mass)
    if (prompt is None) == (tokens is None):
        raise InputError("give either a prompt or tokens")
    ids = check_tokens(model, tokens) if tokens is not None else tokenize(model, prompt or "", chat)
    local = build_replacement(model, transcoders, ids, progress)
    if max_features is None and coverage < 1 and local.n_positions > LONG:
        max_features = LONG_PROMPT_ROWS
    targets = choose_targets(model, local.frozen, max_logits=max_logits, logit_prob=logit_prob, target=target,
                             versus=versus, direction=direction)
    chosen = _plan(local, targets, dtype, batch, max_features, memory, row_mass)
    first, rest = _arithmetic(dtype, model.device)
    sweep = Sweep(local, chosen, first)
    expansion = expand(local, targets, sweep, coverage, max_features, progress,
                       tail=None if rest == first else Sweep(local, chosen, rest))
    exact = first == rest == torch.float32 and model.dtype == torch.float32
    residuals, warnings = _check_conservation(local, targets, expansion, exact)
    header = Header(
        prompt=prompt if prompt is not None else prompt_text(model, ids[local.masked:]),
        tokens=ids, token_texts=[token_text(model, t) for t in ids], model=model.name, n_layers=model.n_layers,
        transcoders=transcoders.name, transcoder_kind=transcoders.kind,
        settings={"coverage": coverage, "max_features": max_features, "max_logits": max_logits,
                  "logit_prob": logit_prob, "target": target, "versus": versus,
                  "direction": direction is not None, "dtype": dtype, "tail_dtype": str(rest).removeprefix("torch."),
                  "row_mass": chosen.row_mass, "chat": chat,
                  "active_features": len(local.active),
                  "expanded_features": int(expansion.expanded.sum())},
        unexplored=expansion.unexplored, conservation=float(np.nanmax(residuals)),
        reconstruction=local.reconstruction, generator=f"gemma-circuits {circuits.__version__}",
        created=datetime.now(UTC).isoformat(timespec="seconds"), warnings=_warnings(local) + warnings)
    graph = assemble(model, transcoders, local, targets, expansion.rows, expansion.expanded, residuals, header)
    if chosen.row_mass < 1 and expansion.expanded.all():  # what was dropped is then all that is unexplored
        return replace(graph, header=replace(graph.header, unexplored=unexplored(graph, graph.nodes.input_abs)))
    return graph


def _plan(local: LocalReplacement, targets: Targets, dtype: str, batch: int | None, max_features: int | None,
          memory: int | None, row_mass: float | None) -> Plan:
    n_rows = len(targets.values) + min(len(local.active), max_features or len(local.active))
    layer = local.frozen.layers[0]
    n_heads, _, head_dim = layer.queries.shape
    size = Size(local.n_positions, local.n_sources, n_rows, local.n_layers, local.biases.shape[1], n_heads,
                len(layer.keys), head_dim, any(skip is not None for skip in local.skips))
    return plan(size, local.biases.device, DTYPES.get(dtype, torch.float32).itemsize, memory, batch, row_mass,
                gathered=local.frozen.gathered)


def _arithmetic(dtype: str, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """Of the rows that matter most, and of the rest."""
    if dtype != "mixed":
        return DTYPES[dtype], DTYPES[dtype]
    fast = fast_16_bit(torch.bfloat16) if device.type == "cpu" else True
    return torch.float32, torch.bfloat16 if fast else torch.float32


def _check(coverage: float, max_features: int | None, dtype: str, batch: int | None, memory: int | None,
           row_mass: float | None) -> None:
    if not 0 < coverage <= 1:
        raise InputError(f"coverage is {coverage}: expected a share above 0 and at most 1")
    for name, count in (("max_features", max_features), ("batch", batch)):
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}: expected at least 1")
    if dtype != "mixed":
        check_dtype(dtype)
    if row_mass is not None and not 0 < row_mass <= 1:
        raise InputError(f"row_mass is {row_mass}: expected a share above 0 and at most 1")
    if memory is not None and memory < 1:
        raise InputError(f"memory is {memory} bytes: expected a size, such as 6 * 2**30")


def _check_conservation(local: LocalReplacement, targets: Targets, expansion: Expansion,
                        exact: bool) -> tuple[np.ndarray, list[str]]:
    """(S + K,) relative residual of every computed row, NaN elsewhere; and a warning for inexact arithmetic.

    The residual is relative to the value, or to a tenth of the row's sum of |edge| where the value is smaller than
    that: a value that large terms cancel to cannot be known better in floating point.

    Raises:
        ConservationError: float32 rows with a residual above CONSERVATION_LIMIT.
    """
    expected = np.full(local.n_sources + len(targets.values), np.nan)
    expected[:len(local.active)] = local.encoder_values.cpu().numpy()
    expected[local.n_sources:] = targets.values.cpu().numpy()
    residual = np.full(len(expected), np.nan)
    node, _, total, _, magnitude_all, _ = expansion.rows.columns()
    scale = np.maximum(np.abs(expected[node]), 0.1 * magnitude_all)
    residual[node] = np.abs(total - expected[node]) / np.maximum(scale, 1e-30)
    worst = int(np.nanargmax(np.where(np.isnan(residual), -1, residual)))
    if not np.isfinite(residual[worst]) or (exact and residual[worst] > CONSERVATION_LIMIT):
        where = "a logit target" if worst >= local.n_sources else (
            f"feature {int(local.active.feature[worst])} of layer {int(local.active.layer[worst])} "
            f"at position {int(local.active.position[worst])}")
        raise ConservationError(
            f"the edges into {where} sum to {residual[worst]:.1e} (relative) off its value, allowed is "
            f"{CONSERVATION_LIMIT:.0e}: the graph would be wrong, so none is written. Likely causes: transcoder files "
            "of another layer order or with a transposed skip, or a model whose block is not Gemma 3's")
    warnings = [] if exact else [f"rows or model in reduced precision: the edges into a target sum to its value "
                                 f"only within {residual[worst]:.1e} (relative)"]
    return residual, warnings


def _warnings(local: LocalReplacement) -> list[str]:
    bad = [(layer, error) for layer, error in enumerate(local.reconstruction) if not error < 1]
    if not bad:
        return []
    named = ", ".join(f"layer {layer} ({error:.2f})" for layer, error in bad)
    return [f"the transcoder reconstructs the MLP output worse than predicting zero at {named} (squared error over "
            "squared norm, should be far below 1). Likely causes: a transcoder of another model or of another size "
            "of it, layer files in the wrong order or one repeated, a transposed or dropped affine skip, "
            "cross-layer decoders indexed from the wrong layer"]
