"""Which graphs can be compared, what they are called side by side, and what limits a comparison, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from circuits.errors import InputError
from circuits.graphs.alignment import Alignment
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.words import listed, quoted, shown

COARSE = 100
"""Pairs of a null of which fewer give a coarse limit."""
_CAN = ("Comparable are graphs of one prompt, token for token, by models that share a tokenizer (sizes of Gemma 3, "
        "base and -it, per-layer and cross-layer transcoders), or of two prompts of one model with equal numbers of "
        "tokens")


def check_comparable(graphs: Sequence[AttributionGraph], two_prompts: bool) -> None:
    """That the graphs can be compared with the first.

    Raises:
        InputError: fewer than two; graphs without targets or of other numbers of layers than they say; other prompts,
            tokenizers or vocabularies; with ``two_prompts`` other models or numbers of tokens.
    """
    if len(graphs) < 2:
        raise InputError(f"there is {len(graphs)} graph to compare: give two or more")
    first = graphs[0]
    for number, graph in enumerate(graphs, 1):
        if not len(graph.target_nodes) or not graph.target_weights.sum() > 0:
            raise InputError(f"graph {number} has no targets with weight, so nothing has influence: trace it again")
        _check_pair(first, graph, number, two_prompts)


def check_unrelated(graphs: Sequence[AttributionGraph], unrelated: Sequence[AttributionGraph]) -> None:
    """That graphs of unrelated prompts are a null of one of the later graphs.

    Raises:
        InputError: one of another length, of the prompt itself, or by a model and transcoders of none of them.
    """
    for number, null in enumerate(unrelated, 1):
        if len(null.header.tokens) != len(graphs[0].header.tokens):
            raise InputError(f"null graph {number} has {len(null.header.tokens)} tokens, the graphs compared have "
                             f"{len(graphs[0].header.tokens)}: positions must match, so trace an unrelated prompt of "
                             "as many tokens")
        if any(null.header.tokens == graph.header.tokens for graph in graphs):
            raise InputError(f"null graph {number} is of a prompt that is compared: what is chance, only graphs of "
                             "unrelated prompts say")
        if not any((null.header.model, null.header.transcoders) == (graph.header.model, graph.header.transcoders)
                   for graph in graphs[1:]):
            raise InputError(f"null graph {number} was made with {_maker(null)}: trace it with the model and the "
                             f"transcoders of a graph after the first, such as {_maker(graphs[1])}")


def short_names(graphs: Sequence[AttributionGraph]) -> list[str]:
    """One for each, all different: the model, what else tells them apart, and else a number. Foreign strings."""
    headers = [graph.header for graph in graphs]
    columns = [[shown(_last(header.model), 40) or "a model" for header in headers],
               [header.transcoder_kind.upper() for header in headers],
               [shown(_last(header.transcoders), 40) for header in headers],
               _differences(graphs)]
    names = columns[0]
    for column in columns[1:]:
        if len(set(names)) == len(names):
            break
        if len(set(column)) > 1:
            names = [f"{name} {part}".strip() for name, part in zip(names, column, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names


def _differences(graphs: Sequence[AttributionGraph]) -> list[str]:
    """Of prompts of one length, the tokens in which they differ, each in quotation marks."""
    texts = [graph.header.token_texts for graph in graphs]
    places = [i for i, column in enumerate(zip(*texts, strict=False)) if len(set(column)) > 1]
    return [quoted("".join(own[i] for i in places), 40) if places else "" for own in texts]


def limits_of(graphs: Sequence[AttributionGraph], alignments: Sequence[Alignment], two_prompts: bool,
              pruned_alike: bool) -> list[str]:
    """What to know before the numbers, in sentences. Foreign strings inside.

    Args:
        pruned_alike: graphs that were whole are measured as their pruned parts, since others were pruned.
    """
    said = []
    targets = [_targets(graph) for graph in graphs]
    if len(set(targets)) > 1 and not two_prompts:
        told = [f"graph {number} explains {listed([shown(label) for _, label in target])}"
                for number, target in enumerate(targets, 1)]
        said.append(f"The graphs explain different targets: {'; '.join(told)}. What differs may differ for that.")
    thresholds = {tuple(graph.header.settings.get(name) for name in ("node_threshold", "edge_threshold"))
                  for graph in graphs}
    if len(thresholds) > 1:
        said.append("Not all graphs were pruned alike, and graphs that keep less look shorter and more alike."
                    + (" Whole ones were pruned before they were measured." if pruned_alike else ""))
    elif any(graph.header.settings.get("node_threshold") is not None for graph in graphs):
        said.append("The graphs were pruned before, so path lengths, ends and effects are those of the pruned graphs.")
    if two_prompts:
        said.append("Two prompts of one model share features that fire nearly anywhere. Only pairs that are not as "
                    "good at other positions are matches; graphs of unrelated prompts (--null) say which overlaps are "
                    "chance.")
    for number, alignment in enumerate(alignments, 2):
        said += _limits_of_alignment(alignment, f"graph {number}" if len(alignments) > 1 else "the second graph")
    made = {(graph.header.model, graph.header.transcoders, tuple(graph.header.tokens)) for graph in graphs}
    if len(made) < len(graphs):
        said.append("Some graphs were made with the same model and transcoders of the same prompt: that they agree "
                    "says nothing.")
    return said


def _limits_of_alignment(alignment: Alignment, name: str) -> list[str]:
    if not min(alignment.compared):
        return [f"Features of {name} cannot be matched: nothing is known of them that both graphs have. Open the "
                "models, or trace graphs that carry feature cards."]
    if not alignment.limits:
        return [f"Features of {name} cannot be matched: all fire at the same positions, so nothing shows what is "
                "chance. Give graphs of unrelated prompts (--null)."]
    coarse = [f"{null} ({count} pairs)" for null, count in alignment.null_pairs.items() if count < COARSE]
    return [f"What is chance for {name} is only known coarsely: {listed(coarse)}."] if coarse else []


def _check_pair(first: AttributionGraph, graph: AttributionGraph, number: int, two_prompts: bool) -> None:
    one, two = first.header, graph.header
    if two_prompts and (one.model, one.n_layers) != (two.model, two.n_layers):
        raise InputError(f"graph {number} is by {shown(two.model)}, the first by {shown(one.model)}: two prompts can "
                         f"only be compared in one model. {_CAN}")
    if len(one.tokens) != len(two.tokens):
        raise InputError(f"graph {number} has {len(two.tokens)} tokens, the first {len(one.tokens)}: nodes are matched "
                         f"position by position. {_CAN}")
    meaning = dict(zip(one.tokens, one.token_texts, strict=True))
    other = next((token for token, text in zip(two.tokens, two.token_texts, strict=True)
                  if meaning.get(token, text) != text), None)
    if other is not None:
        texts = dict(zip(two.tokens, two.token_texts, strict=True))
        raise InputError(f"token {other} is {quoted(meaning[other])} in the first graph and {quoted(texts[other])} in "
                         f"graph {number}: the models have different tokenizers, and features have no vocabulary in "
                         f"common to be compared in. {_CAN}")
    if one.tokens != two.tokens and not two_prompts:
        why = (f"the same prompt became other tokens, so {shown(one.model)} and {shown(two.model)} have different "
               "tokenizers" if one.prompt and one.prompt == two.prompt else
               f"graph {number} is of another prompt than the first (tokens differ from position "
               f"{_first_difference(one.tokens, two.tokens)} on)")
        hint = "; two prompts of one model are compared with --two-prompts" if one.model == two.model else ""
        raise InputError(f"{why}{hint}. {_CAN}")


def _targets(graph: AttributionGraph) -> tuple[tuple[int, str], ...]:
    """Tokens and labels without their probabilities."""
    labels = [str(graph.nodes.label[node]).split(" (p=")[0] for node in graph.target_nodes]
    return tuple(zip(graph.nodes.token[graph.target_nodes].tolist(), labels, strict=True))


def _first_difference(one: list[int], two: list[int]) -> int:
    return next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)


def _maker(graph: AttributionGraph) -> str:
    return f"{shown(graph.header.model)} and {shown(graph.header.transcoders)}"


def _last(name: str) -> str:
    return PurePosixPath(name).name
