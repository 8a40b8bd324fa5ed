"""What was found of a span, in sentences, with what they do not say."""

from __future__ import annotations

import math
from collections.abc import Iterator

from circuits.graphs.spans import Span
from circuits.reasoning.ablation import ABLATED
from circuits.reasoning.share import ReasoningShare
from circuits.reasoning.variants import BOTH, CONTROL_HELD, HELD, LEAST, ORIGIN, ORIGINAL, RANDOM_HELD, SPAN

MARGIN = 0.2
"""Difference of what remains without the question and without the reasoning that is called one."""
LEVEL = 0.05


def paragraphs(found: ReasoningShare) -> dict[str, list[str]]:
    """Sentences by what they are of: the shares and their null, the interventions, other texts with what the answer
    follows, and caveats. What was not measured is not there."""
    told = {"Influence": _shares(found), "Features ablated": _ablation(found), "Other texts": _texts(found),
            "Not known": _caveats(found)}
    return {name: some for name, parts in told.items() if (some := list(parts))}


def variant_label(found: ReasoningShare, name: str) -> str:
    """What a variant is, with the names of the spans. A foreign string."""
    span, origin = found.flow.span.name, found.flow.origin.name if found.flow.origin else ""
    held = {HELD: f"features of {span}", CONTROL_HELD: "features of control spans", RANDOM_HELD: "random features"}
    told = {ORIGINAL: "the prompt as it is", ORIGIN: f"{origin} replaced", SPAN: f"{span} replaced"}
    return f"{origin} replaced, {held[name]} held" if name in held else told.get(name, name)


def _shares(found: ReasoningShare) -> Iterator[str]:
    flow, null, name = found.flow, found.null, found.flow.span.name
    yield (f"About {flow.through:.0%} of the influence on {found.target} passes through {name!r} ({_where(flow.span)}) "
           f"and {flow.around:.0%} goes around it; at most {flow.at_most:.0%} could pass through, if all that ends at "
           "errors or unexplored features from its first position on came from there.")
    if not math.isnan(null.limit):
        others = "spans of its length elsewhere" if null.shuffled is None else "sets of as many other positions"
        more = "more than chance" if null.p <= LEVEL else "no more than chance"
        yield (f"That is {more} (p = {null.p:.2g}): of {others}, 95% have less than {null.limit:.0%}"
               + (f"; spans of its length that do not overlap it ({len(null.shifts)} of them) have {null.mean:.0%} on "
                  "average." if null.shifts else "."))
    if flow.origin and not math.isnan(flow.mediated_share):
        yield (f"Tokens of {flow.origin.name!r} have {flow.mediated + flow.bypass:.0%} of the influence; "
               f"{flow.mediated_share:.0%} of that goes through {name!r}, {1 - flow.mediated_share:.0%} around it. "
               f"The tokens of {name!r} have {flow.own:.0%}.")


def _ablation(found: ReasoningShare) -> Iterator[str]:
    free, frozen = found.effect(ABLATED, "free"), found.effect(ABLATED, "frozen")
    if free is None or frozen is None:
        return
    beside = [f"{kind} {sum(changes) / len(changes):+.2f} on average"
              for kind, changes in (("control spans", free.controls), ("random features", free.random)) if changes]
    predicted = "" if free.predicted is None else f" The graph's edges say {free.predicted:+.2f}."
    yield (f"Ablating the {free.n_features:,} features at the positions of {found.flow.span.name!r} changes the target "
           f"by {free.change:+.2f} (of {found.value:.2f}) in the model" + (f" ({', '.join(beside)})" if beside else "")
           + f", by {frozen.change:+.2f} with all else frozen." + predicted)


def _texts(found: ReasoningShare) -> Iterator[str]:
    """What remains of the answer with other texts, and what it follows."""
    kept = {one.name: one.kept for one in found.variants if not math.isnan(one.kept)}
    original, both = found.variant(ORIGINAL), found.variant(BOTH)
    origin, span = found.flow.origin, found.flow.span
    if origin is None or original is None or both is None:
        return
    lost = original.value - both.value
    if not kept:
        yield (f"With both texts replaced the target changes by {-lost:+.2f}: it must fall by {LEAST:g} or more to "
               "tell which of them the answer follows.")
        return
    held = [f"{kept[name]:.0%} with {what}" for name, what in (
        (HELD, f"the features at {span.name!r} held at what they were"), (CONTROL_HELD, "those of control spans held"),
        (RANDOM_HELD, "as many random ones held")) if name in kept]
    yield (f"Of the {lost:.2f} that the target loses when both texts are replaced, {kept[ORIGIN]:.0%} remains with "
           f"only {origin.name!r} replaced ({'; '.join(held)}), and {kept[SPAN]:.0%} with only {span.name!r} replaced.")
    difference = kept[ORIGIN] - kept[SPAN]
    if abs(difference) < MARGIN:
        yield f"So the answer follows neither {span.name!r} nor {origin.name!r} clearly more than the other."
    else:
        one, other = (span, origin) if difference > 0 else (origin, span)
        yield f"So the answer follows {one.name!r} more than {other.name!r}."


def _caveats(found: ReasoningShare) -> Iterator[str]:
    flow = found.flow
    yield (f"{flow.share('errors'):.0%} of influence ends at errors, whose causes are not known, and "
           f"{flow.share('unexplored'):.0%} at features that were not expanded. An edge whose attention reaches over "
           f"{flow.span.name!r} goes around it.")
    if found.pruned:
        yield "The graph is pruned: all shares are of what pruning kept."
    if len(found.graph.target_nodes) > 1:
        yield ("The target is several tokens at once: to explain one answer, write it after [[answer]] or give "
               "--target.")


def _where(span: Span) -> str:
    return f"position {span.start}" if len(span) == 1 else f"positions {span.start} to {span.stop - 1}"
