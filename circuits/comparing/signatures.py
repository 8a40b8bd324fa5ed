"""What features write and read in the vocabulary that models of one family share (METHOD 9).

Shapes: n features, D d_model, V' candidate tokens, K kept of each end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from circuits.features.cards import _candidates, _directions
from circuits.features.tokens import Extremes, embedding_scores, extremes
from circuits.gemma3 import Gemma3
from circuits.graphs.signatures import READS, WRITES, Signatures, View, unit_rows
from circuits.prompt import token_text
from circuits.transcoder import Transcoders

KEPT = 96
"""Tokens kept at each end of a row: those it raises most and those it lowers most."""
SPARES, RARE = 2, 0.1
"""Features of the dictionary that are drawn for nulls: for each feature of the graphs, and at most of a layer's others.
"""


@torch.no_grad()
def vocabulary_views(model: Gemma3, transcoders: Transcoders, layer: np.ndarray, feature: np.ndarray
                     ) -> dict[str, View]:
    """Signatures of features, ascending by layer and feature, as sparse rows over the vocabulary.

    - ``writes``: what an activation adds to logits on the direct path: the sum of the feature's decoder vectors over
      the layers it writes to, less the mean of many features of its layer, times the final norm's gain and the
      unembedding.
    - ``reads``: what a token's embedding alone would add to the pre-activation: the embedding scaled as a norm does it,
      times the gain of the layer's pre_feedforward_layernorm and the encoder.

    Both less their mean over the tokens; of each row the KEPT highest and lowest. Candidates are the tokens that the
    vocabulary lists as frequent (:mod:`circuits.features.cards`): vectors of tokens that no text holds are noise. No
    matrix of features and vocabulary is formed whole.

    Raises:
        InputError: no such layer or feature.
        FormatError: damaged weights.
    """
    names = list(zip(layer.tolist(), feature.tolist(), strict=True))
    tokens = _candidates(model)
    kept = min(KEPT, len(tokens) // 2)
    by_layer = [(at, [number for _, number in group]) for at, group in groupby(names, key=lambda name: name[0])]
    if not by_layer:
        nothing = csr_array((0, model.vocab_size), dtype=np.float64)
        return {WRITES: unit_rows(nothing), READS: unit_rows(nothing)}
    directions = torch.cat([_directions(transcoders, at, numbers) for at, numbers in by_layer]).to(model.device)
    writes = extremes(directions * model.final_norm_gain.to(model.device), lambda part: model.unembedding[part].float(),
                      tokens.to(model.device), kept)
    reads = [embedding_scores(model, transcoders, at, torch.tensor(numbers), tokens, kept) for at, numbers in by_layer]
    return {WRITES: unit_rows(_rows([writes], model.vocab_size)), READS: unit_rows(_rows(reads, model.vocab_size))}


def with_spares(layer: np.ndarray, feature: np.ndarray, d_transcoder: Sequence[int], seed: int
                ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Layer and number of features (n,) and of others of the same layers, ascending, and which are those others:
    SPARES for each, at most the share RARE of a layer's others, so that hardly any is the twin of a feature of the
    other graph."""
    rng = np.random.default_rng(seed)
    parts = []
    for at in np.unique(layer).tolist():
        own = feature[layer == at]
        others = np.setdiff1d(np.arange(d_transcoder[at]), own)
        drawn = rng.choice(others, min(SPARES * len(own), math.ceil(RARE * len(others))), replace=False)
        numbers, spare = np.concatenate([own, drawn]), np.repeat([False, True], [len(own), len(drawn)])
        order = np.argsort(numbers)
        parts.append((np.full(len(numbers), at), numbers[order], spare[order]))
    columns = [np.concatenate([np.zeros(0), *column]) for column in zip(*parts, strict=True)] or [np.zeros(0)] * 3
    return columns[0].astype(np.int32), columns[1].astype(np.int32), columns[2].astype(bool)


def signatures_of(model: Gemma3, layer: np.ndarray, feature: np.ndarray, views: dict[str, View],
                  spare: np.ndarray | None = None) -> Signatures:
    """The views with the texts of the tokens that features write.

    Args:
        spare: which of the features only serve nulls.
    """
    used = np.unique(views[WRITES].rows.indices).tolist()
    return Signatures(layer, feature, views, {token: token_text(model, token) for token in used}, spare)


def _rows(found: list[Extremes], vocabulary: int) -> csr_array:
    """(n, vocabulary) both ends of the rows, one group of features after the other."""
    def joined(high: str, low: str) -> np.ndarray:
        parts: list[Tensor] = [torch.cat([getattr(made, high), getattr(made, low)], 1) for made in found]
        return torch.cat(parts).cpu().numpy()

    tokens, values = joined("top_tokens", "bottom_tokens"), joined("top", "bottom").astype(np.float64)
    starts = np.arange(0, tokens.size + 1, tokens.shape[1])
    rows = csr_array((values.ravel(), tokens.ravel().astype(np.int64), starts), shape=(len(tokens), vocabulary))
    rows.sort_indices()
    return rows
