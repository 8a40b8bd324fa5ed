"""How much of an answer's influence passes through the stated reasoning, and what interventions there do (METHOD 5, 7).

A graph-level test of whether a stated chain of thought is what the model computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from circuits.attribution import trace
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.spans import Span, check_spans, named_span, span_flow
from circuits.graphs.spans_null import comparable_positions, shifted_spans, span_null
from circuits.prompt import prompt_text
from circuits.reasoning.ablation import span_effects
from circuits.reasoning.corruption import shuffled_tokens, tokens_in_place, with_tokens
from circuits.reasoning.share import ReasoningShare
from circuits.reasoning.spanned import Case, SpannedPrompt, read_spanned
from circuits.reasoning.variants import text_variants
from circuits.replacement import build_replacement
from circuits.transcoder import Transcoders
from circuits.validation.rerun import Report, Rerun

REASONING, QUESTION = "reasoning", "question"
"""Names that are looked for by themselves."""
CONTROLS = 5
NODE_THRESHOLD, EDGE_THRESHOLD = 0.8, 0.98
"""What a graph that is not pruned is pruned at for its circuit."""


def trace_reasoning(model: Gemma3, transcoders: Transcoders, case: Case, *, graph: AttributionGraph | None = None,
                    through: str = REASONING, origin: str | None = None, coverage: float = 0.95,
                    max_features: int | None = None, ablations: bool = True, controls: int = CONTROLS, seed: int = 0,
                    progress: Report = lambda stage, done, total: None) -> ReasoningShare:
    """Read a prompt with spans, trace it, and measure what passes through its reasoning.

    Args:
        graph: the prompt's graph, where it was traced already.
        coverage, max_features: as for :func:`circuits.trace`.
        ablations: whether to intervene, too.
        through, origin, controls, seed: as for :func:`reasoning_share`.

    Raises:
        InputError: spans, target or texts that cannot be used; a graph of another prompt, or a target beside a graph.
    """
    _check_controls(controls)
    asked = read_spanned(model, case, None if graph is None else graph.header.tokens)
    start = origin_of(asked.spans, through, origin)
    replacements = _replacements(model, case, asked, through, start)
    if graph is None:
        graph = trace(model, transcoders, tokens=asked.tokens, coverage=coverage, max_features=max_features,
                      target=asked.target, versus=asked.versus, progress=progress)
    elif graph.header.tokens != asked.tokens:
        raise InputError("the graph is of another prompt: give the graph of this one, or trace it by leaving it out")
    elif asked.target is not None or asked.versus is not None:
        raise InputError("the graph has its targets already: leave out answer, target and versus")
    found = reasoning_share(graph, asked.spans, through, start, model=model if ablations else None,
                            transcoders=transcoders, replacements=replacements, controls=controls, seed=seed,
                            progress=progress)
    return replace(found, notes=[*asked.notes, *found.notes])


def reasoning_share(graph: AttributionGraph, spans: Sequence[Span], through: str = REASONING,
                    origin: str | None = None, *, model: Gemma3 | None = None, transcoders: Transcoders | None = None,
                    replacements: Mapping[str, Sequence[int]] | None = None, controls: int = CONTROLS, seed: int = 0,
                    progress: Report = lambda stage, done, total: None) -> ReasoningShare:
    """How much of the targets' influence passes through a span, and with a model, what interventions on it do.

    Args:
        spans: ranges of the prompt's positions.
        through: name of the span.
        origin: of the one whose influence it may pass on; by default "question", if there is one.
        model, transcoders: those of the graph; without them nothing is measured.
        replacements: tokens by span's name that corrupt it, as many as it has; by default its own, shuffled.
        controls: how many control spans, and random sets of features.
        seed: of shuffles, controls and random features.

    Raises:
        InputError: unusable spans; a graph that was not made with this model and these transcoders.
    """
    _check_controls(controls)
    spans = check_spans(spans, len(graph.header.tokens))
    flow = span_flow(graph, spans, through, origin_of(spans, through, origin))
    found = ReasoningShare(graph, flow, span_null(graph, flow.span, seed=seed), [], [], [], {}, [], seed)
    if model is None or transcoders is None:
        return found
    return _measured(found, Rerun.of(graph, model, transcoders, None, progress), replacements or {}, controls, progress)


def origin_of(spans: Sequence[Span], through: str, origin: str | None) -> str | None:
    """The origin's name: the one given, or "question" where there is such a span.

    Raises:
        InputError: no span of a name that was given.
    """
    for name in (through, origin):
        if name is not None:
            named_span(spans, name)
    there = any(span.name == QUESTION for span in spans)
    return QUESTION if origin is None and there and through != QUESTION else origin


def _check_controls(controls: int) -> None:
    if controls < 0:
        raise InputError(f"controls is {controls}: expected 0 or more")


def _replacements(model: Gemma3, case: Case, asked: SpannedPrompt, through: str, origin: str | None
                  ) -> dict[str, list[int]]:
    found = {}
    if case.corrupt_with is not None:
        found[through] = tokens_in_place(model, case.corrupt_with, asked.tokens, named_span(asked.spans, through))
    if case.corrupt_from_with is not None:
        if origin is None:
            raise InputError("a text is to take the origin's place, but no span is the origin: name one with --from")
        found[origin] = tokens_in_place(model, case.corrupt_from_with, asked.tokens, named_span(asked.spans, origin))
    return found


def _measured(found: ReasoningShare, rerun: Rerun, replacements: Mapping[str, Sequence[int]], count: int,
              progress: Report) -> ReasoningShare:
    """With effects and variants."""
    flow, graph, seed = found.flow, found.graph, found.seed
    eligible = comparable_positions(graph, flow.span)
    controls, apart = _controls(flow.span, flow.origin, eligible, count, seed)
    progress("corrupting", 0, 3)
    new, notes = _new_tokens(rerun, [flow.span] + ([flow.origin] if flow.origin else []), replacements, seed)
    texts = {flow.span: new.get(flow.span.name), **_shuffled(rerun, controls, seed)}
    corrupted = {span.start: build_replacement(rerun.model, rerun.transcoders,
                                               with_tokens(rerun.local.frozen.tokens, span, list(tokens)))
                 for span, tokens in texts.items() if tokens is not None}
    progress("intervening", 1, 3)
    circuit = graph if found.pruned else graph.prune(NODE_THRESHOLD, EDGE_THRESHOLD)
    effects = span_effects(rerun, circuit, flow.span, controls, corrupted, eligible, count, seed)
    progress("other texts", 2, 3)
    taken = {position for span in (flow.span, flow.origin) if span for position in span.positions}
    variants = text_variants(
        rerun, flow.span, flow.origin, new.get(flow.span.name), new.get(flow.origin.name) if flow.origin else None,
        controls if apart else [], [p for p in eligible if p not in taken], count, seed)
    if not controls and count:
        notes.append(f"no span of {len(flow.span)} tokens fits beside {flow.span.name!r}: there are no control spans")
    elif controls and not apart:
        notes.append("the control spans overlap the origin: nothing else is long enough")
    return replace(found, controls=controls, effects=effects, variants=variants,
                   replaced={name: prompt_text(rerun.model, tokens) for name, tokens in new.items()},
                   notes=[*found.notes, *notes])


def _controls(span: Span, origin: Span | None, eligible: Sequence[int], count: int, seed: int
              ) -> tuple[list[Span], bool]:
    """Shifts of the span, drawn from those that do not overlap the origin where there are any; whether so."""
    shifts = shifted_spans(span, eligible)
    beside = [shift for shift in shifts if origin is None or not shift.overlaps(origin)]
    pool = beside or shifts
    drawn = np.random.default_rng(seed).permutation(len(pool))[:count]
    return [pool[i] for i in sorted(drawn.tolist())], bool(beside)


def _new_tokens(rerun: Rerun, spans: list[Span], replacements: Mapping[str, Sequence[int]], seed: int
                ) -> tuple[dict[str, list[int]], list[str]]:
    """The tokens that corrupt each span, by its name; and notes on those that cannot be."""
    new = {span.name: list(replacements[span.name]) for span in spans if span.name in replacements}
    for span, tokens in _shuffled(rerun, [span for span in spans if span.name not in new], seed).items():
        if tokens is not None:
            new[span.name] = tokens
    notes = [f"{span.name!r} is not corrupted: all its tokens are alike, so give a text to take its place"
             for span in spans if span.name not in new]
    return new, notes


def _shuffled(rerun: Rerun, spans: Sequence[Span], seed: int) -> dict[Span, list[int] | None]:
    return {span: shuffled_tokens(rerun.local.frozen.tokens, span, np.random.default_rng((seed, span.start)))
            for span in spans}
