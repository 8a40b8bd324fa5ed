"""A feature's card in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from circuits.features.feature import Context, Feature, TokenScores
from circuits.features.rule import visible_token

_BARS = " ▁▂▃▄▅▆▇█"
_NAMES = {"fired_on": "fires on", "promoted": "promotes", "suppressed": "suppresses", "exciting": "excited by"}


def card(feature: Feature, label: str) -> Iterator[Text]:
    """Lines: label, how often and how strongly it fires, token lists, contexts with the activation marked by colour.

    Strings of the file are foreign: they come as plain text, with control characters shown.
    """
    head = Text(f"{feature.layer}/{feature.feature}", style="bold")
    yield head.append(f"  {visible_token(label)}" if label else "")
    yield Text(f"  density {feature.density:.3%} ({feature.count:,} of {feature.positions:,} positions)   "
               f"largest activation {feature.max_activation:.3g}")
    yield Text("  activations ").append(_histogram(feature), style="cyan").append(
        f"  {feature.bin_edges[0]:.2g} to {feature.bin_edges[-1]:.2g}, a doubling is 4 bars", style="dim")
    for name, shown in _NAMES.items():
        yield _tokens(feature, shown, getattr(feature, name))
    for context in feature.contexts:
        yield _context(feature, context)


def _histogram(feature: Feature) -> str:
    most = max(1, int(feature.histogram.max(initial=1)))
    # the square root keeps rare bins visible; what is not empty gets a bar
    heights = [round(8 * (int(count) / most) ** 0.5) for count in feature.histogram]
    return "".join(_BARS[max(height, 1) if count else 0]
                   for height, count in zip(heights, feature.histogram, strict=True))


def _tokens(feature: Feature, shown: str, found: TokenScores) -> Text:
    line = Text(f"  {shown:<11}")
    for token, score in zip(found.tokens.tolist(), found.scores.tolist(), strict=True):
        line.append(f' "{visible_token(feature.texts[token])}"').append(f" {score:.2g}", style="dim")
    return line


def _context(feature: Feature, context: Context) -> Text:
    share = context.activations[context.peak] / max(feature.max_activation, 1e-30)
    line = Text(f"  {share:>4.0%} " if context.quantile == 1 else f"  {share:>4.0%}~", style="dim")
    for i, token in enumerate(context.tokens.tolist()):
        text, height = visible_token(feature.texts[token]), context.activations[i] / max(feature.max_activation, 1e-30)
        if i == context.peak:
            line.append(f"«{text}»", style="bold reverse")
        else:
            line.append(text, style="bold yellow" if height > 0.5 else "yellow" if height > 0 else "default not dim")
    return line


def values(feature: Feature, label: str) -> dict[str, Any]:
    """The card as plain values for JSON; token texts as they are."""
    lists = {name: [{"token": text, "id": token, "score": score} for text, token, score in zip(
        texts(feature, found), found.tokens.tolist(), found.scores.tolist(), strict=True)]
        for name, found in ((name, getattr(feature, name)) for name in _NAMES)}
    contexts = [{"tokens": [feature.texts[token] for token in context.tokens.tolist()],
                 "activations": [float(f"{x:.4g}") for x in context.activations.tolist()], "peak": context.peak,
                 "quantile": round(context.quantile, 3)} for context in feature.contexts]
    return {"layer": feature.layer, "feature": feature.feature, "label": label, "density": feature.density,
            "count": feature.count, "max_activation": feature.max_activation, "histogram": feature.histogram.tolist(),
            "bin_edges": feature.bin_edges.tolist(), **lists, "contexts": contexts}


def texts(feature: Feature, found: TokenScores) -> list[str]:
    """The text of each token of a list."""
    return [feature.texts[token] for token in found.tokens.tolist()]


def examples(feature: Feature) -> dict[str, list[tuple[list[str], list[float], int]]]:
    """Contexts by name of their quantile, for :func:`circuits.graphs.neuronpedia_features.write_feature`."""
    found: dict[str, list[tuple[list[str], list[float], int]]] = {"Top Activations": []}
    for context in feature.contexts:
        name = "Top Activations" if context.quantile == 1 else f"Quantile {context.quantile:.2f}"
        found.setdefault(name, []).append((
            [feature.texts[token] for token in context.tokens.tolist()], context.activations.tolist(), context.peak))
    return found
