"""Foreign strings (labels, tokens) inside sentences: on one line, short, every character seen."""

from __future__ import annotations

import re
from collections.abc import Sequence

from circuits.graphs.graph import AttributionGraph

_MARKS = {"\n": "↵", "\t": "⇥"}
_CHANCE = r" \(p=[^()]*\)"
_OUTPUT = re.compile(rf"Output (.+?){_CHANCE}( minus .+?)?(?:{_CHANCE})?", re.DOTALL)
"""How a tracer labels logits and contrasts of two; in a sentence the quoted tokens are enough."""


def shown(text: str, longest: int = 60) -> str:
    """``text`` on one line: line breaks as ↵, tabs as ⇥, other characters that do not show as their code; cut with an
    ellipsis to ``longest`` characters."""
    cut = text[:longest + 1]  # a label may be long: no more than needed is looked at
    made = "".join(_MARKS.get(c) or (c if c.isprintable() else f"⟨U+{ord(c):04X}⟩") for c in cut)
    return made if len(made) <= longest else made[:longest - 1] + "…"


def quoted(text: str, longest: int = 20) -> str:
    """A token in quotation marks, so that its spaces show."""
    mark = "'" if '"' in text else '"'
    return f"{mark}{shown(text, longest)}{mark}"


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def percent(share: float) -> str:
    """A share in percent with one digit; one that would round to zero but is not, as such."""
    return "<0.1%" if 0 < share < 5e-4 else f"{share:.1%}"


def node_name(graph: AttributionGraph, node: int) -> str:
    """A node in a sentence: its label, of a logit the token alone; what it is where it has no label."""
    kind, layer, feature, label = (graph.nodes[name][node] for name in ("kind", "layer", "feature", "label"))
    output = _OUTPUT.fullmatch(label) if kind == "logit" else None
    label = "".join(part for part in output.groups() if part) if output else label
    return shown(label) or (f"feature {layer}/{feature}" if kind == "feature" else f"{kind} of layer {layer}")
