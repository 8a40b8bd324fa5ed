"""The common circuit of a family, drawn by layer and by place in the prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from circuits.graphs.aggregate import Aggregation, Family
from circuits.graphs.aggregate_edges import Items
from circuits.graphs.aggregate_prompts import Prompt
from circuits.graphs.words import shown
from circuits.plots import HELD_OUT, OTHER, TRAINING, Figure, figure

MOST_FEATURES = 30
"""Beyond this the core is drawn instead, and of that the most influential."""
MOST_EDGES = 120
"""Edges that are drawn, those of largest influence."""
GAP = 0.14
"""Least distance of neighbours, in lengths of a prompt."""
TOKENS = -1.5
"""Height of tokens, in layers."""
WIDTHS = ((0.5, 0.0), (1.2, 0.05), (2.4, 0.2), (4.5, 0.5))
"""Of lines, and from which share of the strongest edge's influence on."""


def circuit_figure(found: Aggregation, family: Family, name: str) -> Figure | None:
    """Features by layer, at the mean place of their influence in the prompts; None where there is no circuit."""
    circuit, items = family.circuit, found.items
    if not len(circuit.features):
        return None
    small = len(circuit.features) <= MOST_FEATURES
    chosen = circuit.features if small else circuit.core
    influence = {one.key: one.influence[0] for one in family.features}
    chosen = np.array(sorted(chosen.tolist(), key=lambda i: -influence[int(items.keys[i])])[:MOST_FEATURES])
    flow = _flow(family, items, chosen)
    drawn = sorted({end for edge in flow for end in edge[:2]} | set(chosen.tolist()))
    at = _places(found, family, drawn)
    told = (f"All {len(chosen)} features" if small else f"The {len(chosen)} most influential features of the "
            f"{len(circuit.core)} that hold most of what all {len(circuit.features)} hold")
    return figure(name, "The common circuit", f"{told}, by layer (tokens below, the target above) and by the mean "
                  "place of their influence in the prompt; larger ones have more. Of the edges, the strongest "
                  f"{len(flow)}, without those from tokens to the target: wide ones carry more influence, blue ones "
                  "raise their target on average and vermillion ones lower it.",
                  [*_lines(flow, at), _nodes(found, family, drawn, at, influence)], height=620, showlegend=False,
                  xaxis={"title": {"text": "Place in the prompt, from its start to its end"}, "showgrid": False,
                         "zeroline": False, "showticklabels": False},
                  yaxis={"title": {"text": "Layer"}, "zeroline": False, "rangemode": "normal"})


def _flow(family: Family, items: Items, chosen: np.ndarray) -> list[tuple[int, int, float, bool]]:
    """Source, target, mean influence and whether it raises its target, of the strongest edges between the features
    chosen, tokens and the target; those without a feature left out."""
    table = family.circuit.edges
    flow = np.asarray(table.flow.mean(0)).ravel()
    weight = np.asarray(table.weight.sum(0)).ravel()
    ends = np.array([table.codes % len(items), table.codes // len(items)])
    drawn = np.isin(ends, chosen)
    inside = np.flatnonzero((drawn | (ends >= len(items.keys))).all(0) & drawn.any(0))
    top = inside[np.argsort(-flow[inside], kind="stable")[:MOST_EDGES]]
    return [(int(ends[0, i]), int(ends[1, i]), float(flow[i]), bool(weight[i] > 0)) for i in top]


def _places(found: Aggregation, family: Family, drawn: list[int]) -> dict[int, tuple[float, float]]:
    """Where each item is drawn."""
    items = found.items
    above = 1.5 + max(int(items.keys[i]) >> 32 for i in drawn if i < len(items.keys))
    rows: dict[float, list[tuple[float, int]]] = defaultdict(list)
    for i in drawn:
        if i == items.target:
            rows[above].append((1.0, i))
        elif i >= len(items.keys):
            rows[TOKENS].append((_mean(_role_place(prompt, found, i) for prompt in family.prompts), i))
        else:
            key = int(items.keys[i])
            rows[float(key >> 32)].append((_mean(_feature_place(prompt, key) for prompt in family.prompts), i))
    at = {i: (x, y) for y, row in rows.items() for x, i in _apart(sorted(row))}
    for n, (_, i) in enumerate(sorted(rows[TOKENS])):
        at[i] = at[i][0], TOKENS - n % 2  # their texts side by side would run into each other
    return at


def _mean(places: Iterable[float | None]) -> float:
    """Of those that there are."""
    return float(np.mean([place for place in places if place is not None]))


def _apart(row: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Neighbours at least GAP apart, their middle where it was."""
    x = np.array([place for place, _ in row])
    spread = np.maximum.accumulate(x - GAP * np.arange(len(x))) + GAP * np.arange(len(x))
    return [(float(place), i) for place, (_, i) in zip(spread - (spread - x).mean(), row, strict=True)]


def _role_place(prompt: Prompt, found: Aggregation, item: int) -> float | None:
    there = np.flatnonzero(found.items.of_tokens(prompt.token_texts) == item)
    return float(there.mean()) / max(1, len(prompt.token_texts) - 1) if len(there) else None


def _feature_place(prompt: Prompt, key: int) -> float | None:
    there = prompt.key == key
    weight = prompt.influence[there]
    if not weight.sum() > 0:
        return None
    return float(prompt.position[there] @ weight / weight.sum()) / max(1, len(prompt.token_texts) - 1)


def _lines(flow: list[tuple[int, int, float, bool]], at: dict[int, tuple[float, float]]) -> list[dict[str, Any]]:
    """Edges as few traces: one for each width and sign."""
    strongest = max((edge[2] for edge in flow), default=1.0)
    traces: dict[tuple[float, str], tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for source, target, amount, raises in flow:
        width = max(width for width, share in WIDTHS if amount >= share * strongest)
        x, y = traces[width, TRAINING if raises else HELD_OUT]
        x += [at[source][0], at[target][0], None]
        y += [at[source][1], at[target][1], None]
    return [{"type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip", "opacity": 0.45,
             "line": {"width": width, "color": color}} for (width, color), (x, y) in sorted(traces.items())]


def _nodes(found: Aggregation, family: Family, drawn: list[int], at: dict[int, tuple[float, float]],
           influence: dict[int, float]) -> dict[str, Any]:
    keys = found.items.keys
    amount = np.array([influence[int(keys[i])] if i < len(keys) else 0.0 for i in drawn])
    size = 9 + 17 * np.sqrt(amount / amount.max())
    names = [escape(shown(found.item_name(i)), quote=False) for i in drawn]
    short = [f"{int(keys[i]) >> 32}/{int(keys[i]) & 0xFFFFFFFF}" if i < len(keys) else
             escape(shown(found.item_name(i), 14), quote=False) for i in drawn]
    below = ["bottom center" if len(keys) <= i < found.items.target else "top center" for i in drawn]
    return {"type": "scatter", "mode": "markers+text", "x": [at[i][0] for i in drawn], "y": [at[i][1] for i in drawn],
            "text": short, "textposition": below, "textfont": {"size": 10}, "cliponaxis": False,
            "hovertext": [f"{name}<br>influence {share:.2%}" if share else name
                          for name, share in zip(names, amount, strict=True)],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "marker": {"size": size.tolist(), "opacity": 1,
                       "color": [OTHER if i < len(keys) else "#808080" for i in drawn]}}
