"""Tables of the native graph file that a graph may lack: where features fired, what is known of them, and which heads
carry its edges.

Tensors: one per column of :class:`Activations` under ``activations.``; one per column of :class:`FeatureCards` under
``cards.``, ``cards.promoted.``, ``cards.suppressed.`` and ``cards.contexts.``; the token ids that the cards use,
``cards.texts.token`` (int32), and their texts, ``cards.texts.text``, strings like ``nodes.label``; one per column of
:class:`HeadTable` under ``heads.``, its patterns one after another, its names strings likewise, and ``heads.shape``
(int32): n_heads and n_pos. A table is in the file whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from circuits.errors import InputError
from circuits.graphs.activations import ACTIVATION_DTYPES, Activations
from circuits.graphs.cards import CARD_DTYPES, CONTEXT_DTYPES, LIST_DTYPES, Contexts, FeatureCards, TokenLists
from circuits.graphs.heads import HEAD_DTYPES, HeadTable

_PARTS: dict[str, dict[str, Any]] = {
    "activations.": ACTIVATION_DTYPES, "cards.": CARD_DTYPES, "cards.promoted.": LIST_DTYPES,
    "cards.suppressed.": LIST_DTYPES, "cards.contexts.": CONTEXT_DTYPES,
    "cards.texts.": {"token": np.int32, "text": np.uint8},
    "heads.": HEAD_DTYPES | {"shape": np.int32, "pattern": np.float32, "pair_query_name": np.uint8,
                             "pair_key_name": np.uint8}}


def optional_dtypes(names: set[str]) -> dict[str, Any]:
    """The tensors that a file must have, as it has some of the same table, and their dtypes."""
    present = {name.partition(".")[0] for name in names}
    return {prefix + name: dtype for prefix, part in _PARTS.items() if prefix.partition(".")[0] in present
            for name, dtype in part.items()}


def optional_tensors(activations: Activations | None, cards: FeatureCards | None, heads: HeadTable | None,
                     pack: Callable[[list[str]], np.ndarray]) -> dict[str, np.ndarray]:
    """The tables as tensors; ``pack`` makes bytes (uint8) of strings."""
    tensors: dict[str, np.ndarray] = {}
    if activations is not None:
        tensors |= {f"activations.{name}": getattr(activations, name) for name in ACTIVATION_DTYPES}
    if cards is not None:
        tensors |= {f"cards.{name}": column for name, column in cards.columns().items()}
        tokens = sorted(cards.texts)
        tensors["cards.texts.token"] = np.array(tokens, np.int32)
        tensors["cards.texts.text"] = pack([cards.texts[token] for token in tokens])
    if heads is not None:
        tensors |= {f"heads.{name}": column for name, column in heads.tensors().items()}
        tensors["heads.pair_query_name"] = pack(heads.pair_query_name)
        tensors["heads.pair_key_name"] = pack(heads.pair_key_name)
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def optional_tables(tensors: dict[str, np.ndarray], unpack: Callable[[str, np.ndarray], list[str]]) -> dict[str, Any]:
    """What of ``activations``, ``cards`` and ``heads`` the tensors hold.

    Args:
        tensors: of a file, those of :func:`optional_dtypes` among them.
        unpack: strings from the name and bytes of a tensor.

    Raises:
        InputError: columns that do not fit together.
    """
    tables: dict[str, Any] = {}
    if "activations.layer" in tensors:
        tables["activations"] = Activations(**_columns(tensors, "activations."))
    if "cards.layer" in tensors:
        tokens, texts = tensors["cards.texts.token"].tolist(), unpack("cards.texts.text", tensors["cards.texts.text"])
        if len(tokens) != len(texts):
            raise InputError(f"the cards have {len(texts)} texts for {len(tokens)} tokens")
        tables["cards"] = FeatureCards(
            **_columns(tensors, "cards."), promoted=TokenLists(**_columns(tensors, "cards.promoted.")),
            suppressed=TokenLists(**_columns(tensors, "cards.suppressed.")),
            contexts=Contexts(**_columns(tensors, "cards.contexts.")), texts=dict(zip(tokens, texts, strict=True)))
    if "heads.shape" in tensors:
        columns = _columns(tensors, "heads.")
        tables["heads"] = HeadTable.of_tensors(
            columns, *(unpack(f"heads.{name}", columns[name]) for name in ("pair_query_name", "pair_key_name")))
    return tables


def _columns(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name: tensors[prefix + name] for name in _PARTS[prefix]}
