"""What the link view computes before it draws: places, what is at a point, and which edges are the strongest."""

from __future__ import annotations

import numpy as np
import pytest
from page_modules import Modules

from circuits.graphs.page.bundle import script

SHOW = "Object.keys(Object.assign(globalThis.modules, (() => {{ {} return {{ ...module_layout, ...module_hit, " \
       "...module_pick }} }})()))"


@pytest.fixture(scope="module")
def drawing(modules: Modules) -> Modules:
    """The modules that place nodes and choose edges, besides those of ``modules``."""
    text = "".join(script(f"{name}.js").replace(f"const module_{name}", f"var module_{name}", 1)
                   for name in ("layout", "hit"))
    modules.names = ", ".join(modules.page.evaluate(SHOW.format(text + script("pick.js"))))
    return modules


def test_shown_nodes_have_places_of_their_own_and_keep_their_order(graph, drawing):
    rng = np.random.default_rng(5)
    some = (rng.random(len(graph)) < 0.25) | (graph.nodes.kind == "logit")
    drawing.open(graph)
    found = {}
    for name, mask in (("all", np.ones(len(graph), bool)), ("some", some)):
        shown = f"Uint8Array.from({mask.astype(int).tolist()})"
        found[name] = drawing.run(f"layOut(graph, {shown}, 860, 620)", "x", "y")
        found[name]["spacing"] = drawing.value(f"layOut(graph, {shown}, 860, 620).spacing")
        x, y = (np.array(found[name][axis], dtype=float) for axis in "xy")  # NaN comes back as None
        assert np.isfinite(x).tolist() == np.isfinite(y).tolist() == mask.tolist()
        points = np.stack([x, y], 1)[mask]
        apart = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(len(points))
        assert apart.min() >= found[name]["spacing"] - 1.5  # whole pixels
        assert points.min() > 0
        assert (points.max(0) <= [860, 620]).all()
    assert found["some"]["spacing"] >= found["all"]["spacing"]
    for axis, column in (("x", graph.nodes.position), ("y", -graph.nodes.layer)):
        first, second = (np.array(found[name][axis], dtype=float)[some] for name in ("all", "some"))
        later = np.subtract.outer(column[some], column[some]) > 0
        assert (np.subtract.outer(second, second)[later] >= 0).all()
        if axis == "x":
            same_cell = cells(graph)[some][:, None] == cells(graph)[some][None]
            same_line = np.subtract.outer(*[np.array(found["some"]["y"], dtype=float)[some]] * 2) == 0
            before = np.subtract.outer(first, first)[same_cell & same_line]
            same_line_before = np.subtract.outer(*[np.array(found["all"]["y"], dtype=float)[some]] * 2) == 0
            before = np.where(same_line_before[same_cell & same_line], before, 0)
            assert (before * np.subtract.outer(second, second)[same_cell & same_line] >= 0).all()


def cells(graph) -> np.ndarray:
    """(N,) a number per row and column of the link view."""
    row = np.where(graph.nodes.kind == "logit", 1000, np.where(graph.nodes.kind == "embedding", -1, graph.nodes.layer))
    column = np.where((graph.nodes.kind == "constant"), -1, graph.nodes.position)
    return row.astype(np.int64) * 10_000 + column


def test_the_node_at_a_point_is_the_nearest_of_all(graph, drawing):
    drawing.open(graph)
    place = "layOut(graph, graph.nodes.shown, 860, 620)"
    made = f"(() => {{ const l = {place}; return {{ x: l.x, y: l.y," \
           f" radius: radii(graph, graph.nodes.shown, graph.nodes.influence, l.spacing) }} }})()"
    found = drawing.run(made, "x", "y", "radius")
    points = (np.random.default_rng(0).random((400, 2)) * [860, 620]).round(2)
    hits = drawing.value(f"(() => {{ const p = {made}; const grid = new HitGrid(p, p.radius);"
                         f" return {points.tolist()}.map(([x, y]) => grid.at(x, y, 5)) }})()")
    away = np.hypot(found["x"] - points[:, :1], found["y"] - points[:, 1:]) - found["radius"]
    expected = [int(row.argmin()) if row.min() < 5 else None for row in away]
    assert hits == expected
    assert 50 < sum(hit is not None for hit in hits) < 390


def test_the_strongest_edges_are_python_s(graph, drawing):
    drawing.open(graph)
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    start = np.zeros(len(graph))
    start[graph.target_nodes] = graph.target_weights
    share = np.abs(graph.weights.astype(float)) / graph.nodes.input_abs[rows]
    share[graph.nodes.kind[graph.indices] == "constant"] = 0
    kept = np.random.default_rng(1).random(graph.n_edges) < 0.7
    strength = np.where(kept, share * (graph.nodes.influence + start)[rows], -1)
    mask = f"Uint8Array.from({kept.astype(int).tolist()})"
    app = f"{{ graph, kept: {{ edges: {mask} }}, influence: graph.nodes.influence, state: {{ target: null }} }}"
    for count in (0, 1, 300, 10_000):
        found = drawing.value(f"strongestEdges({app}, {count})")
        assert len(found) == min(count, kept.sum())
        np.testing.assert_allclose(strength[found], np.sort(strength)[::-1][:len(found)], rtol=1e-6)
    node = int(graph.indices[graph.indptr[graph.target_nodes[0]]])
    edges = drawing.value(f"edgesOfNode({app}, {node})")
    touching = kept & ((rows == node) | (graph.indices == node))
    assert sorted(edges) == np.flatnonzero(touching).tolist()
    assert (np.diff(share[edges]) <= 1e-9).all()
