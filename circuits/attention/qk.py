"""Why a head looks at a token: its attention score as a sum over pairs of components (METHOD 6).

    score = <query, key> = sum over (s, t) of <what component s adds to the query, what component t adds to the key>

Both are sums over the source nodes of the local replacement model: see :mod:`circuits.attention.sides`.

Shapes: P positions, K head_dim, S source nodes, C components of one side (the sources that reach it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from circuits.attention.components import KINDS, Components
from circuits.attention.sides import Side, SideReader
from circuits.errors import InputError
from circuits.frozen import FrozenLayer, scores_of
from circuits.gemma3 import Gemma3
from circuits.replacement import LocalReplacement

PAIRS_AT_ONCE = 1 << 22
"""Most pairs whose contributions are held at once while the strongest are searched, but for one component's."""
SMALLEST_SCORE = 0.1
"""Of the product of the vectors' lengths: a smaller score is what large terms cancel to, and cannot be known better in
floating point than they are."""


@dataclass(frozen=True)
class Pair:
    """What one component at the query and one at a key add together to the score."""

    query_source: int
    key_source: int
    key_position: int
    """The key, or the one it is compared with (there, a positive contribution lowers that key's score); -1 for both."""
    contribution: float


@dataclass(frozen=True, eq=False)
class QKAttribution:
    """Made by :func:`qk_attribution`. Sources are numbered as in the :class:`LocalReplacement`."""

    layer: int
    head: int
    query: int
    key: int
    versus_key: int | None
    score: float
    """What is explained, as the forward pass recorded it: the score before the softmax, or its lead over that of
    ``versus_key``."""
    scores: np.ndarray
    """(query + 1,) float32 scores of every key, minus infinity outside the layer's window: the competition, which the
    pairs do not explain."""
    pattern: np.ndarray
    """(query + 1,) float32 attention after softmax."""
    residual: float
    """|sum of all pairs - score|, relative to the score (or to SMALLEST_SCORE of the vectors' lengths, where the
    score is smaller)."""
    components: Components
    """All sources: what a number stands for."""
    queries: Side
    keys: Side
    """Of a contrast: the components at ``key``, then those at ``versus_key``."""

    def by_query(self) -> np.ndarray:
        """(C,) float32 each query-side component's contribution, summed over the key side."""
        return (self.queries.vectors @ self.keys.total().float()).numpy()

    def by_key(self) -> np.ndarray:
        """(C,) float32 each key-side component's contribution, summed over the query side."""
        return (self.keys.vectors @ self.queries.total().float()).numpy()

    def by_kind(self) -> np.ndarray:
        """(4, 4) float64 sums over pairs of kinds: rows are the query side's, columns the key side's, in the order of
        ``components.KINDS``. Constants are the decoder biases and the MLP outputs at masked positions."""
        return self._between(self.components.kind, len(KINDS))

    def by_position(self) -> np.ndarray:
        """(P + 1, P + 1) float64 sums over pairs of positions where components were written, P = query + 1; the last
        row and column are the decoder biases, which are written at every position."""
        position = self.components.position
        return self._between(np.where(position < 0, self.query + 1, position), self.query + 2)

    def pairs(self, count: int) -> list[Pair]:
        """The ``count`` pairs of the largest |contribution|, largest first."""
        row, column, value = strongest(self.queries.vectors, self.keys.vectors, count)
        return [Pair(*found) for found in zip(
            self.queries.source[row].tolist(), self.keys.source[column].tolist(), self.keys.position[column].tolist(),
            value.tolist(), strict=True)]

    def merged(self) -> QKAttribution:
        """Of a contrast: each source's parts at the two keys as one component, so that what both keys share cancels
        and what tells them apart stands first. Pairs then have no key position (-1). Without ``versus_key``: itself."""
        return self if self.versus_key is None else replace(self, keys=self.keys.merged())

    def _between(self, group: np.ndarray, n_groups: int) -> np.ndarray:
        """(n_groups, n_groups) contributions between groups of sources ``group`` (S,)."""
        queries, keys = (side.grouped(group[side.source], n_groups) for side in (self.queries, self.keys))
        return (queries @ keys.T).numpy()


def qk_attribution(model: Gemma3, local: LocalReplacement, layer: int, head: int, query: int, key: int, *,
                   versus_key: int | None = None, reader: SideReader | None = None) -> QKAttribution:
    """Why a head's query gives a key its score; with ``versus_key``, why more (or less) than it gives another.

    The pairs explain the score before the softmax, exactly. They do not explain the competition: attention also
    depends on the scores of all other keys, which the result lists. A contrast explains a ratio of two attention
    weights, ``exp(score difference)``, in which the softmax cancels out. Its pairs have key-side components at both
    keys: those at ``versus_key`` are counted with the other sign, so that positive always means: for ``key``.

    Args:
        layer, head: of the query head; its keys are those of the key/value head that it shares.
        query, key, versus_key: positions in the prompt.
        reader: of the same model and prompt, for several attributions: they then share what they read.

    Raises:
        InputError: no such layer, head or position, a key that the query does not see, or a reader of another prompt.
    """
    _check(local, layer, head, query, key, versus_key)
    reader = SideReader(model, local) if reader is None else reader
    if reader.local is not local:
        raise InputError("reader reads another prompt: make one with SideReader(model, local)")
    frozen = local.frozen.layers[layer]
    group = head // (len(frozen.queries) // len(frozen.keys))
    queries, keys = reader.query(layer, head, query), reader.key(layer, group, key)
    recorded = frozen.keys[group, [key]]
    if versus_key is not None:
        keys = keys.minus(reader.key(layer, group, versus_key))
        recorded = frozen.keys[group, [key, versus_key]]
    q, k = frozen.queries[head, query].cpu().double(), recorded.cpu().double()
    score = float(q @ (k[0] - k[1:].sum(0)))
    size = max(abs(score), SMALLEST_SCORE * float(q.norm() * k.norm(dim=1).sum()))
    scores, pattern = _competition(frozen, head, query)
    return QKAttribution(
        layer=layer, head=head, query=query, key=key, versus_key=versus_key, score=score, scores=scores,
        pattern=pattern, residual=abs(float(queries.total() @ keys.total()) - score) / size,
        components=reader.components, queries=queries, keys=keys)


def strongest(queries: Tensor, keys: Tensor, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) rows, columns and values of the ``count`` entries of ``queries @ keys.T`` of largest magnitude, the largest
    first. At most PAIRS_AT_ONCE entries exist at once, and vectors are taken by falling length: none is multiplied
    that is too short to give a product among the largest."""
    q_length, q_order = queries.norm(dim=1).sort(descending=True)
    k_length, k_order = keys.norm(dim=1).sort(descending=True)
    row, column, value = q_order[:0], k_order[:0], queries.new_empty(0)
    first = 0
    while first < len(q_order) and count > 0:
        needed = float(value.abs().min()) * (1 - 1e-6) if len(value) == count else 0.0
        n_keys = int((q_length[first] * k_length >= needed).sum())
        if not n_keys:
            break
        some, n_rows = k_order[:n_keys], max(1, PAIRS_AT_ONCE // n_keys)
        products = (queries[q_order[first:first + n_rows]] @ keys[some].T).flatten()
        best = products.abs().topk(min(count, len(products))).indices
        row, column = torch.cat([row, q_order[first + best // n_keys]]), torch.cat([column, some[best % n_keys]])
        value = torch.cat([value, products[best]])
        held = value.abs().argsort(descending=True)[:count]
        row, column, value = row[held], column[held], value[held]
        first += n_rows
    return row.numpy(), column.numpy(), value.numpy()


def _competition(frozen: FrozenLayer, head: int, query: int) -> tuple[np.ndarray, np.ndarray]:
    """(query + 1,) the query's scores of all keys, and its attention to them."""
    positions = torch.tensor([query], device=frozen.queries.device)
    scores = scores_of(frozen.queries[:, positions], frozen.keys[:, :query + 1], positions, 0, frozen.window)[head, 0]
    return scores.cpu().numpy(), (scores - frozen.log_sums[head, query]).exp().cpu().numpy()


def _check(local: LocalReplacement, layer: int, head: int, query: int, key: int, versus_key: int | None) -> None:
    if not 0 <= layer < local.n_layers:
        raise InputError(f"layer is {layer}: the model has layers 0 to {local.n_layers - 1}")
    frozen = local.frozen.layers[layer]
    if not 0 <= head < len(frozen.queries):
        raise InputError(f"head is {head}: layer {layer} has heads 0 to {len(frozen.queries) - 1}")
    if not 0 <= query < local.n_positions:
        raise InputError(f"query is {query}: the prompt has positions 0 to {local.n_positions - 1}")
    if versus_key == key:
        raise InputError(f"versus_key is {key}, the key itself: give another key to compare it with")
    first = 0 if frozen.window is None else max(0, query - frozen.window + 1)
    for name, position in (("key", key), ("versus_key", versus_key)):
        if position is None or first <= position <= query:
            continue
        if 0 <= position < first:
            raise InputError(f"{name} is {position}, outside the window of layer {layer}, a local one: query {query} "
                             f"sees keys {first} to {query} there; take one of these or a global layer")
        after = ", after the query" if query < position < local.n_positions else ""
        raise InputError(f"{name} is {position}{after}: query {query} of layer {layer} sees keys {first} to {query}")
