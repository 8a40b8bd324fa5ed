"""What features mean, collected from a text sample and the weights, and kept beside the transcoder.

Shapes: L layers, B sequences, P positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

import circuits
from circuits.errors import InputError
from circuits.features.activity import LayerActivity
from circuits.features.file import FILE_NAME, FeatureData, write
from circuits.features.known import fingerprint
from circuits.features.rule import RULE
from circuits.features.table import LayerTable, Sample, tokens_by_use
from circuits.gemma3 import Gemma3
from circuits.prompt import masked_prefix, token_text
from circuits.transcoder import Transcoders

Report = Callable[[str, int, int], None]

FEW_TOKENS = 4096
_POSITIONS = 4096
"""Positions encoded at once."""


@torch.no_grad()
def collect_features(model: Gemma3, transcoders: Transcoders, activations: Iterable[tuple[Tensor, Tensor]], *,
                     path: Path | None = None, text: str = "", candidates: Tensor | None = None, expected: int = 0,
                     progress: Report = lambda stage, done, total: None) -> FeatureData:
    """Collect feature data and write it to ``features.bin`` beside the transcoders.

    Args:
        activations: pairs of tokens (B, P + prefix) and outputs of pre_feedforward_layernorm (B, P, L, D), any float
            dtype; the prefix is left out of everything but the contexts' text. Every sequence comes once.
        path: the file to write instead.
        text: what the activations come from, for the header.
        candidates: (V',) token ids among which promoted, suppressed and exciting ones are looked for. By default those
            that occur in the text: most of Gemma's 262,144 tokens are next to never seen, their vectors are noise that
            would fill these lists, and the product is several times cheaper. All, where fewer than FEW_TOKENS occur.
        expected: positions that will come, for ``progress``.

    Raises:
        InputError: transcoders of another model, no or misshapen activations, or a file that cannot be written.
    """
    transcoders.check_model(model.n_layers, model.d_model, model.name)
    target = path or _beside(transcoders)
    layers = [LayerActivity(width, transcoders.device, seed=layer)
              for layer, width in enumerate(transcoders.d_transcoder)]
    sample, positions = Sample(), 0
    for tokens, mlp_in in activations:
        prefix = _check(tokens, mlp_in, model)
        for part in torch.arange(len(tokens)).split(max(1, _POSITIONS // mlp_in.shape[1])):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            seen = tokens[rows, prefix:].to(transcoders.device, torch.int64)
            for layer, activity in enumerate(layers):
                entries = transcoders.encode(layer, mlp_in[rows, :, layer].flatten(0, 1))
                activity.add(*entries, seen, len(sample))
            sample.add(tokens[rows], prefix)
            positions += seen.numel()
            progress("features", positions, expected or positions)
    if not positions:
        raise InputError("there are no activations to collect features from: give a longer text")
    if candidates is None:
        occurring = sample.vocabulary()
        candidates = occurring if len(occurring) >= FEW_TOKENS else torch.arange(model.vocab_size)
    tables = []
    for layer, activity in enumerate(layers):
        progress("tokens of features", layer, len(layers))
        tables.append(LayerTable(model, transcoders, layer, activity, sample, candidates))
    used = tokens_by_use(tables)
    write(
        target, d_transcoder=transcoders.d_transcoder, positions=positions, candidates=len(candidates),
        tokens=used,        texts=(token_text(model, token) for token in used.tolist()),
        features=(feature for table in tables for feature in table.features(positions, len(candidates))),
        about={"weights": fingerprint(transcoders), "transcoders": transcoders.name, "model": model.name, "text": text,
               "sequences": len(sample), "label_rule": RULE, "generator": f"gemma-circuits {circuits.__version__}",
               "created": datetime.now(UTC).isoformat(timespec="seconds")})
    return FeatureData.open(target)


def text_activations(model: Gemma3, sequences: Iterable[list[int]], batch: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    """Activations for :func:`collect_features` of token sequences that start with ``<bos>`` or the chat prefix.

    Neighbours of equal length run together; sequences that are all prefix are left out.
    """
    for (length, prefix), group in groupby(sequences, key=lambda ids: (len(ids), masked_prefix(ids))):
        if length <= prefix:
            continue
        for tokens in torch.tensor(list(group)).split(batch):
            yield tokens, model.mlp_boundaries(tokens)[0][:, prefix:]


def _beside(transcoders: Transcoders) -> Path:
    if transcoders.folder is None:
        raise InputError(f"{transcoders.name} lies in no folder: say which file the feature data goes to (--data FILE)")
    try:
        transcoders.folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {transcoders.folder}: {error.strerror or error}; name another file with "
                         "--data FILE") from None
    return transcoders.folder / FILE_NAME


def _check(tokens: Tensor, mlp_in: Tensor, model: Gemma3) -> int:
    """Length of the prefix.

    Raises:
        InputError: shapes that do not belong together or to the model.
    """
    fits = mlp_in.ndim == 4 and tokens.ndim == 2 and mlp_in.shape[0] == tokens.shape[0] and (
        mlp_in.shape[2:] == (model.n_layers, model.d_model))
    if not fits or not 0 < mlp_in.shape[1] <= tokens.shape[1]:
        raise InputError(f"activations have shapes {list(tokens.shape)} and {list(mlp_in.shape)}: expected tokens "
                         f"(sequences, prefix + positions) and MLP inputs (sequences, positions, {model.n_layers}, "
                         f"{model.d_model})")
    return tokens.shape[1] - mlp_in.shape[1]
