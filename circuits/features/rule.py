"""The rule that makes a feature's label from its data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from circuits.features.feature import Feature

RULE = """
"on" names up to three tokens that stand at the peaks of most top contexts, "after" a token that stands before most of
these peaks; spelling in capitals and spaces around do not count as a difference. Where the peaks have neither in
common, "on" names two of them and ends in "…". After "->", or alone as "says" where the peaks vary, come tokens the
feature promotes: only from the second third of the layers on, where the direct path to the logits means something, and
only where its three largest logit effects are on average beyond sqrt(2 ln n) of their standard deviations over the n
candidates, about the largest to expect of n normal numbers. Where these layers' features promote nothing in particular,
"before" names the token that follows most peaks. At most 60 characters, with as many tokens as fit.
""".replace("\n", " ").strip()

LONGEST = 60
SHARE_ON, SHARE_BESIDE = 0.5, 0.6
"""Share of top contexts that must agree."""
_LONGEST_TOKEN = 20


def label(feature: Feature, n_layers: int) -> str:
    """A feature's label by RULE; ``n_layers`` of the model."""
    top = [context for context in feature.contexts if context.quantile == 1]
    peaks, before, behind = (
        [feature.texts[int(c.tokens[c.peak + step])] if 0 <= c.peak + step < len(c.tokens) else "" for c in top]
        for step in (0, -1, 1))
    late = 3 * feature.layer >= n_layers
    says = _says(feature) if late else []
    on, share_on = _common(peaks, 3)
    if share_on < SHARE_ON:
        on = []
    after = _beside(before)
    follows = _beside(behind) if late and not says else []
    if on or after or says or follows:
        return compose(on, after, says, follows)
    return compose(_distinct(peaks)[:2], varied=True)


def compose(on: Sequence[str] = (), after: Sequence[str] = (), says: Sequence[str] = (), follows: Sequence[str] = (),
            *, varied: bool = False) -> str:
    """``on "a", "b" after "c" -> "d"`` with as many tokens as fit into LONGEST characters.

    Args:
        on, after, says, follows: token texts; each may be empty.
        varied: ``on`` are examples of many.
    """
    for n_on, n_says in ((3, 3), (3, 2), (2, 2), (2, 1), (1, 1)):
        parts = [f"on {_quoted(on[:n_on])}{', …' if varied else ''}" if on else "",
                 f"after {_quoted(after[:1])}" if after else "",
                 f"before {_quoted(follows[:1])}" if follows else "",
                 f"{'->' if on or after else 'says'} {_quoted(says[:n_says])}" if says else ""]
        text = " ".join(filter(None, parts))
        if len(text) <= LONGEST:
            break
    return text if len(text) <= LONGEST else text[:LONGEST - 1] + "…"


def visible_token(text: str) -> str:
    """A token on one line: line breaks as ↵, tabs as ⇥, other characters that do not show as their code."""
    marks = {"\n": "↵", "\t": "⇥"}
    return "".join(marks.get(c) or (c if c.isprintable() else f"⟨U+{ord(c):04X}⟩") for c in text)


def _says(feature: Feature) -> list[str]:
    effects, least = feature.promoted, math.sqrt(2 * math.log(max(2, feature.candidates))) * feature.effect_spread
    if not len(effects) or effects.scores[:3].mean() <= least:
        return []
    return _distinct([feature.texts[int(token)] for token in effects.tokens])


def _beside(texts: Sequence[str]) -> list[str]:
    """The token that most of the places beside the peaks hold, if there is one and enough to tell."""
    common, share = _common(texts, 1)
    return common if share >= SHARE_BESIDE and len(texts) > 2 and common[0].strip() else []


def _same(text: str) -> str:
    return text.strip().lower() or text


def _common(texts: Sequence[str], most: int) -> tuple[list[str], float]:
    """The ``most`` commonest texts, and the share of all that they are."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(_same(text), []).append(text)
    ranked = sorted(groups.values(), key=len, reverse=True)[:most]
    # once each among many others says nothing in common
    ranked = [group for group in ranked if len(group) > 1 or len(texts) <= most]
    return [group[0] for group in ranked], sum(map(len, ranked)) / max(1, len(texts))


def _distinct(texts: Iterable[str]) -> list[str]:
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(_same(text), text)
    return list(first.values())


def _quoted(texts: Sequence[str]) -> str:
    marks = {text: "'" if '"' in text else '"' for text in texts}
    return ", ".join(f"{marks[text]}{_short(visible_token(text))}{marks[text]}" for text in texts)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TOKEN else text[:_LONGEST_TOKEN - 1] + "…"
