"""Interventions as the command line writes them.

``NODE=2`` makes a node twice what it is (``=0`` ablates it, ``=-1`` turns it round), ``NODE:=5`` makes a feature 5,
``NODE+=5`` adds 5 to it. A node is

- ``LAYER/FEATURE/PLACES``, a feature; ``error/LAYER/PLACES``, what the transcoder misses; ``token/PLACES``, a token's
  embedding. Places, joined by ``+``, are positions (``8``; ``-1`` is the last), ranges with both ends (``3-7``),
  ``all``, and for features ``gen``, every generated token;
- or a graph's node id, such as ``12_345_8`` (:func:`graphs.neuronpedia.node_ids`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs.graph import AttributionGraph
from circuits.interventions.edits import Edit, ErrorEdit, FeatureEdit, Intervention, TokenEdit, positions_of
from circuits.prompt import check_tokens, masked_prefix, tokenize

_OPERATIONS = {"=": "scale", ":=": "set", "+=": "add"}
_CHANGE = re.compile(r"(.+?)(:=|\+=|=)([^=]*)")
_PLACE = re.compile(r"(-?\d{1,7})(?:-(-?\d{1,7}))?", re.ASCII)
_FEATURE = re.compile(r"(\d{1,4})/(\d{1,8})/(.+)", re.ASCII)
_ERROR = re.compile(r"error/(\d{1,4})/(.+)", re.ASCII)
_TOKEN = re.compile(r"token/(.+)")
_FEATURE_ID = re.compile(r"(\d{1,4})_(\d{1,8})_(\d{1,7})", re.ASCII)
_ERROR_ID = re.compile(r"E_ERR_(\d{1,4})_(\d{1,7})", re.ASCII)
_TOKEN_ID = re.compile(r"E_(\d{1,8})_(\d{1,7})", re.ASCII)


@dataclass(frozen=True)
class _Places:
    """Where on the prompt (None: everywhere), and whether at generated tokens, too."""

    positions: list[int] | None
    generated: bool


@dataclass(frozen=True)
class _Change:
    """What a text asks for."""

    text: str
    node: str
    operation: str
    amount: float


def read_prompt(model: Gemma3, prompt: str | None, graph: AttributionGraph | None, chat: bool = False) -> list[int]:
    """Tokens of a prompt, or without one of the prompt that a graph was traced from.

    Raises:
        InputError: neither is given, a graph of another prompt, or a prompt that cannot be read.
    """
    if prompt is not None:
        tokens = tokenize(model, prompt, chat)
        if graph is not None and graph.header.tokens != tokens:
            raise InputError("the graph is of another prompt: leave the prompt out to use the graph's, or give the "
                             "graph of this prompt")
        return tokens
    if graph is None:
        raise InputError("give a prompt, or a graph with --graph to use the graph's prompt")
    if not graph.header.tokens or min(graph.header.tokens) < 0:
        raise InputError("the graph does not hold all token ids of its prompt: give the prompt")
    return check_tokens(model, graph.header.tokens)


def read_interventions(nodes: Sequence[str], tokens: Sequence[int], supernodes: Sequence[str] = (),
                       graph: AttributionGraph | None = None, *, each: bool = False) -> list[Intervention]:
    """All edits as one intervention, or ``each`` text as its own.

    Args:
        nodes: texts such as ``12/345/8=0``.
        tokens: of the prompt.
        supernodes: texts ``NAME=2``, of supernodes in ``graph``.

    Raises:
        InputError: a text that cannot be read, or names what is not there; no text at all.
    """
    read = [(text, read_node(text, tokens)) for text in nodes]
    read += [(text, read_supernode(text, tokens, graph)) for text in supernodes]
    if not read:
        raise InputError("nothing is to be changed: give --node, such as --node 12/345/8=0, or --graph and --supernode")
    if each:
        return [Intervention(edits, text) for text, edits in read]
    return [Intervention(tuple(edit for _, edits in read for edit in edits), ", ".join(text for text, _ in read))]


def read_node(text: str, tokens: Sequence[int]) -> tuple[Edit, ...]:
    """The edits of one text such as ``12/345/8=0``.

    Raises:
        InputError: a text of another form, a position that is not on the prompt, or an amount that is not finite.
    """
    change = _read_change(text)
    node, n = change.node, len(tokens)
    if match := _FEATURE.fullmatch(node):
        places = _read_places(match[3], n, text)
        return (FeatureEdit(int(match[1]), int(match[2]), places.positions, change.operation, change.amount,
                            places.generated),)
    if match := _FEATURE_ID.fullmatch(node):
        return (FeatureEdit(int(match[1]), int(match[2]), [_on_prompt(match[3], n)], change.operation, change.amount),)
    if match := _ERROR.fullmatch(node):
        return tuple(_error(change, int(match[1]), p) for p in _prompt_places(match[2], masked_prefix(tokens), n, text))
    if match := _ERROR_ID.fullmatch(node):
        return (_error(change, int(match[1]), _on_prompt(match[2], n)),)
    if match := _TOKEN.fullmatch(node):
        return tuple(_token(change, p) for p in _prompt_places(match[1], 0, n, text))
    if match := _TOKEN_ID.fullmatch(node):
        position = _on_prompt(match[2], n)
        if tokens[position] != int(match[1]):
            raise InputError(f"{text!r} names token {match[1]} at position {position}, where the prompt has "
                             f"{tokens[position]}")
        return (_token(change, position),)
    raise InputError(f"{text!r} names no node that can be changed: expected LAYER/FEATURE/POSITION, "
                     "error/LAYER/POSITION, token/POSITION, or the id of a graph's feature, error or token")


def read_supernode(text: str, tokens: Sequence[int], graph: AttributionGraph | None) -> tuple[Edit, ...]:
    """The edits of ``NAME=2``: every node of a graph's supernode.

    Raises:
        InputError: no graph, no such supernode, a node in it that cannot be changed; or as :func:`read_node`.
    """
    if graph is None:
        raise InputError(f"--supernode {text!r} needs --graph, the file that holds the supernode")
    name, sign, amount = _split(text)
    ids = [node for label, *members in graph.header.supernodes if label.strip() == name for node in members]
    if not ids:
        there = ", ".join(repr(label) for label, *_ in graph.header.supernodes) or "none"
        raise InputError(f"the graph has no supernode {name!r}: it has {there}")
    kinds = dict(zip(graph.node_ids, graph.nodes.kind, strict=True))
    for node in ids:
        if kinds.get(node) not in ("feature", "error", "embedding"):
            raise InputError(f"supernode {name!r} holds {node}, a {kinds.get(node, 'node that is not in the graph')}: "
                             "only features, errors and tokens can be changed")
    return tuple(edit for node in dict.fromkeys(ids) for edit in read_node(f"{node}{sign}{amount}", tokens))


def _split(text: str) -> tuple[str, str, str]:
    """Node, sign and amount."""
    match = _CHANGE.fullmatch(text.strip())
    if not match:
        raise InputError(f"{text!r} says no change: expected NODE=MULTIPLIER such as 12/345/8=0, NODE:=VALUE or "
                         "NODE+=AMOUNT")
    return match[1].strip(), match[2], match[3].strip()


def _read_change(text: str) -> _Change:
    node, sign, amount = _split(text)
    try:
        return _Change(text, node, _OPERATIONS[sign], float(amount))
    except ValueError:
        raise InputError(f"{text!r} ends in {amount!r}: expected a number") from None


def _read_places(text: str, n_positions: int, whole: str) -> _Places:
    everywhere, generated, positions = False, False, set()
    for part in text.split("+"):
        if part in ("all", "gen"):
            everywhere, generated = everywhere or part == "all", generated or part == "gen"
        elif match := _PLACE.fullmatch(part):
            first = _on_prompt(match[1], n_positions)
            last = first if match[2] is None else _on_prompt(match[2], n_positions)
            if last < first:
                raise InputError(f"{whole!r} has the range {part}, which ends before it begins")
            positions |= set(range(first, last + 1))
        else:
            raise InputError(f"{whole!r} has the position {part!r}: expected a number such as 8 or -1, a range such as "
                             "3-7, all, gen, or several joined by +")
    return _Places(None if everywhere else sorted(positions), generated)


def _prompt_places(text: str, first: int, n_positions: int, whole: str) -> list[int]:
    """Positions; ``all`` is every one from ``first`` on."""
    places = _read_places(text, n_positions, whole)
    if places.generated:
        raise InputError(f"{whole!r} asks for generated tokens: only features can be changed there")
    return list(range(first, n_positions)) if places.positions is None else places.positions


def _on_prompt(text: str, n_positions: int) -> int:
    [position] = positions_of(int(text), n_positions) or []
    return position


def _error(change: _Change, layer: int, position: int) -> ErrorEdit:
    return ErrorEdit(layer, position, _multiplier(change))


def _token(change: _Change, position: int) -> TokenEdit:
    return TokenEdit(position, _multiplier(change))


def _multiplier(change: _Change) -> float:
    if change.operation != "scale":
        raise InputError(f"{change.text!r} sets or adds a value: errors and tokens can only be multiplied, as in "
                         f"{change.node}=0")
    return change.amount
