"""Activations of chosen features on a text, to be correlated between models that read the same tokens (METHOD 9).

Shapes: n features, B sequences, P positions, D d_model, T positions of the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from circuits.features.collect import text_activations
from circuits.gemma3 import Gemma3
from circuits.graphs.signatures import View, correlated_rows
from circuits.kernels.encode import encode
from circuits.prompt import masked_prefix
from circuits.transcoder import Transcoders

AT_ONCE = 4
"""Sequences whose activations of all layers are held at once."""

Report = Callable[[str, int, int], None]


@torch.no_grad()
def corpus_view(model: Gemma3, transcoders: Transcoders, sequences: Sequence[Sequence[int]], layer: np.ndarray,
                feature: np.ndarray, progress: Report = lambda stage, done, total: None) -> View:
    """Activations of features, ascending by layer and feature, at every position that is not masked.

    Args:
        sequences: token ids, the same for every model; each starts with ``<bos>``.

    Raises:
        InputError: no such layer or feature.
        FormatError: damaged weights.
    """
    names = list(zip(layer.tolist(), feature.tolist(), strict=True))
    chosen = [(at, torch.tensor([number for _, number in group]))
              for at, group in groupby(names, key=lambda name: name[0])]
    rows, columns, values = [], [], []
    seen, total = 0, sum(len(ids) - masked_prefix(ids) for ids in sequences)
    for _, mlp_in in text_activations(model, [list(ids) for ids in sequences], batch=AT_ONCE):
        first = 0
        for at, features in chosen:
            position, number, value = _activations(transcoders, at, features, mlp_in[:, :, at].flatten(0, 1))
            rows.append(number.cpu().numpy() + first)
            columns.append(position.cpu().numpy() + seen)
            values.append(value.cpu().numpy())
            first += len(features)
        seen += mlp_in.shape[0] * mlp_in.shape[1]
        progress("reading the corpus", seen, total)
    joined = [np.concatenate([np.zeros(0), *parts]) for parts in (values, rows, columns)]
    return correlated_rows(csr_array((joined[0], (joined[1].astype(np.int64), joined[2].astype(np.int64))),
                                     shape=(len(names), max(seen, 1))))


def _activations(transcoders: Transcoders, layer: int, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Position, number among ``features`` (n,) ascending, and value of those that fire on ``x`` (B * P, D)."""
    if transcoders.top_k(layer) is not None:  # which are the k largest depends on all features
        position, feature, value = transcoders.encode(layer, x)
        wanted = features.to(feature.device)
        number = torch.searchsorted(wanted, feature).clamp_max(len(wanted) - 1)
        among = wanted[number] == feature
        return position[among], number[among], value[among]
    w_enc, b_enc = transcoders.encoder_rows(layer, features), transcoders.encoder_bias(layer, features)
    threshold = transcoders.threshold(layer)
    return encode(x.to(w_enc.device, torch.float32), w_enc, b_enc,
                  None if threshold is None else threshold[features.to(threshold.device)])
