"""Feature cards that a traced graph carries, made when a page or a file asks for them.

Shapes: n features, D d_model, F features of a layer, V' candidate tokens, k tokens of a list.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from circuits.errors import FormatError
from circuits.features.activity import TOKENS
from circuits.features.feature import Feature, TokenScores
from circuits.features.file import FeatureData
from circuits.features.tokens import extremes
from circuits.gemma3 import Gemma3
from circuits.graphs.cards import Contexts, FeatureCards, TokenLists
from circuits.prompt import token_text
from circuits.transcoder import Transcoders

MERGES = range(105, 1 << 16)
"""Candidates without a text to say which tokens occur: Gemma 3's vocabulary lists merges in the order in which they
were made, so the frequent ones are among the first. Numbers below are special and unused tokens."""
CHARACTERS = range(236_743, 236_743 + 1024)
"""Candidates too: single characters stand behind the merges, the frequent first."""
MEAN_OF = 1024
"""Features of a layer, evenly spaced, whose mean effect is taken off: all of a large cross-layer set are gigabytes."""

_Name = tuple[int, int]
"""Layer and feature."""
_Lists = tuple[TokenScores, TokenScores]
"""Promoted and suppressed."""


@dataclass(frozen=True)
class TranscoderCards:
    """The :class:`circuits.graphs.cards.CardSource` of a transcoder set. It keeps the model and the set open."""

    model: Gemma3
    transcoders: Transcoders
    data: FeatureData | None = None

    def of(self, layer: np.ndarray, feature: np.ndarray) -> FeatureCards:
        """Cards of the features (n,): from feature data where it knows them; else only tokens promoted and suppressed,
        from the weights. Density is 0 for features that never fired on the text, NaN where no data can be read.

        Raises:
            InputError: no such layer or feature.
            FormatError: damaged weights.
        """
        names = sorted(set(zip(np.asarray(layer).tolist(), np.asarray(feature).tolist(), strict=True)))
        known, silent = self._read(names)
        lists = {name: (found.promoted, found.suppressed) for name, found in known.items()}
        lists |= weight_lists(self.model, self.transcoders, [name for name in names if name not in known])
        density = [known[name].density if name in known else 0.0 if name in silent else np.nan for name in names]
        largest = [known[name].max_activation if name in known else np.nan for name in names]
        return FeatureCards(
            layer=np.array([layer for layer, _ in names], np.int32),
            feature=np.array([feature for _, feature in names], np.int32),
            density=np.array(density, np.float32), max_activation=np.array(largest, np.float32),
            promoted=_token_lists([lists[name][0] for name in names]),
            suppressed=_token_lists([lists[name][1] for name in names]),
            contexts=_contexts([known.get(name) for name in names]), texts=self._texts(lists, known))

    def _read(self, names: list[_Name]) -> tuple[dict[_Name, Feature], set[_Name]]:
        """What feature data knows, and the features that never fired on its text."""
        known: dict[_Name, Feature] = {}
        silent: set[_Name] = set()
        if self.data is None:
            return known, silent
        for name in names:
            try:
                found = self.data.read(*name)
            except FormatError:  # one damaged block: its tokens can still be had
                continue
            if found is None:
                silent.add(name)
            else:
                known[name] = found
        return known, silent

    def _texts(self, lists: dict[_Name, _Lists], known: dict[_Name, Feature]) -> dict[int, str]:
        texts: dict[int, str] = {}
        for name, pair in lists.items():
            feature = known.get(name)
            columns = [scores.tokens for scores in pair]
            columns += [context.tokens for context in feature.contexts] if feature is not None else []
            for token in set(np.concatenate(columns).tolist()):
                if token not in texts:
                    texts[token] = token_text(self.model, token) if feature is None else feature.texts[token]
        return texts


@torch.no_grad()
def weight_lists(model: Gemma3, transcoders: Transcoders, names: list[_Name]) -> dict[_Name, _Lists]:
    """Tokens that features (layer, feature), ascending, promote and suppress: the map of :func:`tokens.logit_effects`,
    with the mean over MEAN_OF features of the layer taken off and one pass over the candidates for all layers.

    Candidates are MERGES and CHARACTERS, or all tokens of a vocabulary that is no larger than these.
    """
    if not names:
        return {}
    directions = torch.cat([_directions(transcoders, layer, [feature for _, feature in group])
                            for layer, group in groupby(names, key=lambda name: name[0])])
    effects = extremes(directions.to(model.device) * model.final_norm_gain.to(model.device),
                        lambda part: model.unembedding[part].float(), _candidates(model).to(model.device), TOKENS)
    top_tokens, top, bottom_tokens, bottom = (
        column.cpu().numpy() for column in (effects.top_tokens, effects.top, effects.bottom_tokens, effects.bottom))
    return {name: (TokenScores(top_tokens[i], top[i]), TokenScores(bottom_tokens[i], bottom[i]))
            for i, name in enumerate(names)}


def _directions(transcoders: Transcoders, layer: int, features: list[int]) -> Tensor:
    """(n, D) sum of each feature's decoder vectors over all layers it writes to, less the mean of many features'."""
    width = transcoders.d_transcoder[layer]
    among = torch.arange(width) if width <= MEAN_OF else torch.arange(MEAN_OF) * width // MEAN_OF
    mean = transcoders.decoder_rows(layer, among).sum(1).mean(0)
    return transcoders.decoder_rows(layer, torch.tensor(features)).sum(1) - mean


def _candidates(model: Gemma3) -> Tensor:
    if model.vocab_size <= CHARACTERS.stop:
        return torch.arange(model.vocab_size)
    return torch.tensor([*MERGES, *CHARACTERS])


def _token_lists(lists: list[TokenScores]) -> TokenLists:
    return TokenLists(_starts(map(len, lists)), _joined([scores.tokens for scores in lists], np.int32),
                      _joined([scores.scores for scores in lists], np.float32))


def _contexts(features: list[Feature | None]) -> Contexts:
    """Of each feature; none where it is not known. Activations are of 255, as the file keeps them."""
    per_feature = [() if feature is None else feature.contexts for feature in features]
    found = [context for contexts in per_feature for context in contexts]
    lengths = [len(context.tokens) for context in found]
    largest = [feature.max_activation for feature in features if feature is not None for _ in feature.contexts]
    activation = _joined([context.activations for context in found], np.float32)
    scaled = np.rint(255 * activation / np.maximum(np.repeat(np.array(largest), lengths), 1e-30))
    # an activation too small for the scale still differs from silence
    return Contexts(_starts(map(len, per_feature)), np.array([context.peak for context in found], np.uint8),
                    np.array([context.quantile for context in found], np.float32), _starts(lengths),
                    _joined([context.tokens for context in found], np.int32),
                    np.clip(scaled, activation > 0, 255).astype(np.uint8))


def _starts(lengths: Iterable[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int32)


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)
