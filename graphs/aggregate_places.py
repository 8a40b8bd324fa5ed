"""How the influence of a feature depends on where it fires: at the last token, on a token's text, anywhere.

A place is told in three ways: from the end of the prompt, from its start, and by the token's text. Prompts in which
the feature is weigh the same. Null: in every prompt, the feature's positions rotated by a random number of steps among
those at which any feature of the graph fired.

Shapes: P positions of a prompt, m nodes of a feature in all prompts, S rotations, B bins of an alignment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from circuits.graphs.aggregate_groups import Merged
from circuits.graphs.aggregate_prompts import Prompt
from circuits.graphs.resampling import LEVEL, benjamini_hochberg
from circuits.graphs.words import quoted

ALIGNMENTS = ("end", "start", "text")
ROTATIONS = 499
FEW = 3
"""Fewer prompts do not tell whether a place matters."""
TIED = 0.02
"""Difference of shares up to which two ways of telling a place are equally good."""
MOSTLY = 0.5
"""Share of influence at one place from which a feature is said to stand there."""


@dataclass(frozen=True)
class Place:
    """Where a feature's influence is, by the alignment that gathers most of it at one place."""

    alignment: str
    """One of ALIGNMENTS."""
    where: str | int
    """Tokens before the last one, position from the start (the first token is 0), or the token's text, foreign."""
    share: float
    """Of the feature's influence at that place."""
    spread: float
    """Entropy of its influence over the places of that alignment, relative to that of all places of its prompts: 0
    where it stands at one, 1 where it is everywhere alike."""
    shares: dict[str, tuple[str | int, float]]
    """The best place and its share by each alignment."""
    chance: float
    """Mean of the largest share of any alignment over the null."""
    usual: float
    """Share of the influence of all features of its layer that is at that place; NaN for supernodes."""
    p: float
    """Chance that rotated positions gather as much at one place. NaN with fewer than FEW prompts."""
    q: float
    """The same, corrected for the number of features that were tested."""

    @property
    def depends(self) -> bool:
        """Whether the place matters, beyond chance."""
        return self.q <= LEVEL

    @property
    def same(self) -> list[str]:
        """Alignments that tell the place as well as the chosen one: these prompts do not tell them apart."""
        best = max(share for _, share in self.shares.values())
        return [name for name, (_, share) in self.shares.items() if share >= best - TIED and name != self.alignment]

    @property
    def words(self) -> str:
        """``at the last token``, ``on " the"``, ``anywhere``; foreign token text in it."""
        if math.isnan(self.p):
            return "too few prompts to tell"
        where = place_words(self.alignment, self.where)
        if self.share >= MOSTLY:
            return where if self.depends else f"{where}, perhaps by chance"
        return f"anywhere, most often {where}" if self.depends else "anywhere"


def place_words(alignment: str, where: str | int) -> str:
    """A place in words."""
    if alignment == "text":
        return f"on {quoted(str(where))}"
    if alignment == "start":
        return f"at position {where}"
    return "at the last token" if where == 0 else f"{where} before the last token"


@dataclass(frozen=True, eq=False)
class _Stands:
    """Nodes of one feature, or of one supernode, in one prompt."""

    prompt: int
    rank: np.ndarray
    """Places of its positions among the prompt's ``places``."""
    weight: np.ndarray
    """Share of its influence in this prompt at each."""


class Positions:
    """Tells places of features of one family of prompts."""

    def __init__(self, prompts: Sequence[Prompt], seed: int):
        self.prompts, self.seed = prompts, seed
        self.texts = sorted({text for prompt in prompts for text in prompt.token_texts})
        number = {text: i for i, text in enumerate(self.texts)}
        self.bins = []
        for prompt in prompts:
            last = len(prompt.token_texts) - 1
            of_text = np.array([number[text] for text in prompt.token_texts])[prompt.places]
            self.bins.append({"end": last - prompt.places, "start": prompt.places, "text": of_text})
        self.size = {name: 1 + max((int(bins[name].max(initial=0)) for bins in self.bins), default=0)
                     for name in ALIGNMENTS}

    def of_features(self, keys: Sequence[int]) -> list[Place]:
        """Of the features ``keys``, each in at least one prompt; q values over all of them."""
        return _corrected([self._of(self._feature(key), key >> 32) for key in keys])

    def of_supernodes(self, made: Sequence[Merged]) -> list[Place]:
        """Of groups of features; q values over all of them."""
        index = {prompt.index: i for i, prompt in enumerate(self.prompts)}
        return _corrected([self._of([self._stands(index[prompt], *(np.concatenate(columns) for columns in zip(*(
            (group.position, group.influence) for group in one.groups if group.prompt == prompt), strict=True)))
            for prompt in sorted(one.prompts)], None) for one in made])

    def shares(self, key: int, alignment: str) -> np.ndarray:
        """(B,) share of the influence of a feature at each place of an alignment; prompts weigh the same. Token texts
        are places in the order of ``texts``."""
        stands = self._feature(key)
        weights = np.concatenate([one.weight for one in stands]) / len(stands)
        return np.bincount(self._where(alignment, stands), weights, self.size[alignment])

    def _feature(self, key: int) -> list[_Stands]:
        return [self._stands(i, prompt.position[prompt.key == key], prompt.influence[prompt.key == key])
                for i, prompt in enumerate(self.prompts) if (prompt.key == key).any()]

    def _stands(self, index: int, position: np.ndarray, influence: np.ndarray) -> _Stands:
        return _Stands(index, np.searchsorted(self.prompts[index].places, position), influence / influence.sum())

    def _of(self, stands: list[_Stands], layer: int | None) -> Place:
        weights = np.concatenate([one.weight for one in stands]) / len(stands)
        found = {name: np.bincount(self._where(name, stands), weights, self.size[name]) for name in ALIGNMENTS}
        shares = {name: (int(mass.argmax()), float(mass.max())) for name, mass in found.items()}
        best = max(share for _, share in shares.values())
        preferred = ("end", "text", "start") if shares["end"][0] == 0 else ("text", "end", "start")
        alignment = next(name for name in preferred if shares[name][1] >= best - TIED)
        bin_, share = shares[alignment]
        null = self._null(stands, weights)
        p = float((1 + (null >= best - 1e-9).sum()) / (1 + len(null))) if len(stands) >= FEW else math.nan
        return Place(
            alignment, self._named(alignment, bin_), share, self._spread(found[alignment], alignment, stands),
            {name: (self._named(name, at), value) for name, (at, value) in shares.items()}, float(null.mean()),
            math.nan if layer is None else self._usual(alignment, bin_, layer), p, p)

    def _where(self, alignment: str, stands: list[_Stands]) -> np.ndarray:
        """(m,) bins of its nodes."""
        return np.concatenate([self.bins[one.prompt][alignment][one.rank] for one in stands])

    def _null(self, stands: list[_Stands], weights: np.ndarray) -> np.ndarray:
        """(S,) largest share of any alignment once positions are rotated."""
        rng = np.random.default_rng(self.seed)
        turned = []
        for one in stands:
            n = len(self.prompts[one.prompt].places)
            turned.append((one.rank + rng.integers(n, size=(ROTATIONS, 1))) % n)
        largest = np.zeros(ROTATIONS)
        rows = np.arange(ROTATIONS)[:, None]
        for name in ALIGNMENTS:
            bins = np.concatenate([self.bins[one.prompt][name][ranks]
                                   for one, ranks in zip(stands, turned, strict=True)], axis=1)
            flat = (rows * self.size[name] + bins).ravel()
            mass = np.bincount(flat, np.tile(weights, ROTATIONS), ROTATIONS * self.size[name])
            largest = np.maximum(largest, mass.reshape(ROTATIONS, -1).max(1))
        return largest

    def _spread(self, mass: np.ndarray, alignment: str, stands: list[_Stands]) -> float:
        shares = mass[mass > 0] / mass.sum()
        possible = np.unique(np.concatenate([self.bins[one.prompt][alignment] for one in stands]))
        return float(-(shares * np.log(shares)).sum() / math.log(len(possible))) if len(possible) > 1 else 0.0

    def _usual(self, alignment: str, bin_: int, layer: int) -> float:
        at = list(self._layer_shares(alignment, bin_, layer))
        return float(np.mean(at)) if at else math.nan

    def _layer_shares(self, alignment: str, bin_: int, layer: int) -> Iterator[float]:
        for prompt, bins in zip(self.prompts, self.bins, strict=True):
            mine = (prompt.key >> 32) == layer
            if mine.any():
                here = bins[alignment][np.searchsorted(prompt.places, prompt.position[mine])] == bin_
                yield float(prompt.influence[mine][here].sum() / prompt.influence[mine].sum())

    def _named(self, alignment: str, bin_: int) -> str | int:
        return self.texts[bin_] if alignment == "text" else bin_


def _corrected(places: list[Place]) -> list[Place]:
    tested = np.flatnonzero([not math.isnan(place.p) for place in places])
    corrected = list(places)
    for i, q in zip(tested.tolist(), benjamini_hochberg(np.array([places[i].p for i in tested])), strict=True):
        corrected[i] = replace(places[i], q=float(q))
    return corrected
