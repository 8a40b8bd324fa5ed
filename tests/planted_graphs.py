"""Attribution graphs of families of prompts with planted features: what aggregation must find, and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from circuits.graphs import AttributionGraph, Header, NodeTable
from circuits.graphs.aggregate import Family, Recurring
from circuits.graphs.scores import annotate

LAYERS = 4
LAST, SOMEWHERE, ON_THE, PATH = (2, 10), (1, 20), (1, 30), (3, 40)
"""Planted features: in most prompts at the last token; in all, anywhere; in all, on " the"; after that, last token."""
WORDS = [" red", " dog", " runs", " blue", " tree", " sings", " old", " sea", " warm", " stone"]
Place = tuple[int, int, int]
"""Layer, feature and position of a node."""


def graph_of(texts: Sequence[str], features: Sequence[Place], edges: Mapping[tuple[object, object], float],
             header: Mapping[str, object] | None = None) -> AttributionGraph:
    """A graph with the given features, an error at every layer's last position, tokens, and one logit.

    Args:
        edges: weight by (source, target): a feature's Place, a token's position, "error LAYER", or "logit".
    """
    n_pos = len(texts)
    names: list[object] = [*features, *(f"error {layer}" for layer in range(LAYERS)), *range(n_pos), "logit"]
    kind = (["feature"] * len(features) + ["error"] * LAYERS + ["embedding"] * n_pos + ["logit"])
    layer = [place[0] for place in features] + list(range(LAYERS)) + [-1] * n_pos + [LAYERS]
    position = [place[2] for place in features] + [n_pos - 1] * LAYERS + list(range(n_pos)) + [n_pos - 1]
    feature = [place[1] for place in features] + [-1] * (LAYERS + n_pos + 1)
    number = {name: i for i, name in enumerate(names)}
    dense = np.zeros((len(names), len(names)), np.float32)
    for (source, target), weight in edges.items():
        dense[number[target], number[source]] = weight
    rows = csr_array(dense)
    expanded = np.isin(kind, ("feature", "logit"))
    nodes = NodeTable.build(
        len(names), kind=kind, layer=layer, position=position, feature=feature, expanded=expanded,
        label=[f"{p[0]}/{p[1]} planted" if isinstance(p, tuple) else str(p) for p in names],
        input_abs=np.where(expanded, np.abs(dense).sum(1), np.nan))
    made = Header(prompt="".join(texts), tokens=list(range(n_pos)), token_texts=list(texts), model="tiny",
                  n_layers=LAYERS, transcoders="planted", transcoder_kind="clt",
                  settings={"node_threshold": 0.8, "coverage": 1.0})
    graph = AttributionGraph(nodes, rows.indptr.astype(np.int64), rows.indices.astype(np.int32),
                             rows.data.astype(np.float32), np.array([len(names) - 1], np.int32),
                             np.array([0.5], np.float32), replace(made, **(header or {})))
    return annotate(graph)


def planted(rng: np.random.Generator, *, last: bool = True, extra: Sequence[tuple[int, int]] = (), noise: int = 6,
            supernodes: bool = False, strength: float = 1.0) -> AttributionGraph:
    """A prompt of 6 to 9 tokens with the planted features and ``noise`` features of no meaning.

    Args:
        last: have the feature LAST.
        extra: more features, at the last token.
        supernodes: name ON_THE and PATH a supernode.
        strength: of PATH's edge into the logit.
    """
    n_pos = int(rng.integers(6, 10))
    texts = ["<bos>", *rng.choice(WORDS, n_pos - 1)]
    the = int(rng.integers(1, n_pos - 1))
    texts[the] = " the"
    end = n_pos - 1
    on_the, path = (*ON_THE, the), (*PATH, end)
    places: list[Place] = [on_the, path, (*SOMEWHERE, int(rng.integers(1, n_pos)))]
    places += [(*LAST, end)] * last + [(*pair, end) for pair in extra]
    places += [(int(rng.integers(LAYERS)), int(rng.integers(1000, 100000)), int(rng.integers(1, n_pos)))
               for _ in range(noise)]
    edges: dict[tuple[object, object], float] = {(the, on_the): 1.0, (on_the, path): 2.0, (path, "logit"): strength,
                                                 (end, "logit"): 0.5, ("error 1", path): 0.5}
    for place in places[2:]:
        edges[place[2], place] = float(rng.uniform(0.5, 1))
        edges[place, "logit"] = float(rng.uniform(0.2, 0.4)) * (1 if rng.random() < 0.9 else -1)
    header: dict[str, object] = {}
    made = graph_of(texts, places, edges)
    if supernodes:
        header["supernodes"] = [["the path", *(made.node_ids[i] for i in (0, 1))]]
    return replace(made, header=replace(made.header, **header))  # type: ignore[arg-type]


def family(seed: int, n: int, *, share: float = 0.8, **settings: object) -> list[AttributionGraph]:
    """``n`` prompts; LAST is in ``share`` of them."""
    rng = np.random.default_rng(seed)
    return [planted(rng, last=i < round(share * n), **settings) for i in range(n)]  # type: ignore[arg-type]


def key(pair: tuple[int, int]) -> int:
    """Of a layer and a feature, as aggregation numbers them."""
    return (pair[0] << 32) + pair[1]


def feature(found: Family, pair: tuple[int, int]) -> Recurring:
    """One that recurs in a family."""
    return next(one for one in found.features if one.key == key(pair))
