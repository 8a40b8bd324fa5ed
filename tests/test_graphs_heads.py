"""Tables of heads: exact in the native file, carried by subgraphs, refused where columns do not fit; and checks in the
header."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from page_samples import HOSTILE, sample_graph, sample_heads, sample_validation
from safetensors.numpy import load_file, save_file

from circuits.errors import FormatError, InputError
from circuits.graphs.graph import AttributionGraph
from circuits.graphs.heads import HeadTable
from circuits.graphs.neuronpedia_read import read
from circuits.graphs.page.content import PATTERN_STEPS, page_content
from circuits.graphs.store import load, save


@pytest.fixture(scope="module")
def graph() -> AttributionGraph:
    graph = sample_graph(80)
    heads = sample_heads(graph)
    names = [HOSTILE[i % len(HOSTILE)].replace("\ud800", "?") for i in range(len(heads.pair_query_name))]
    return replace(graph, heads=replace(heads, pair_query_name=names),
                   header=replace(graph.header, validation=sample_validation(graph)))


def heads_of(graph: AttributionGraph) -> HeadTable:
    assert graph.heads is not None
    return graph.heads


def assert_same(one: HeadTable, two: HeadTable) -> None:
    for name in (field.name for field in fields(HeadTable)):
        mine, other = getattr(one, name), getattr(two, name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other)
        else:
            assert mine == other


def test_round_trip_is_exact(graph, tmp_path):
    save(graph, tmp_path / "g.safetensors")
    again = load(tmp_path / "g.safetensors")
    assert_same(heads_of(again), heads_of(graph))
    assert again.header.validation == graph.header.validation
    assert len(heads_of(again)) > 50


def test_a_table_of_nothing_round_trips(graph, tmp_path):
    heads = heads_of(graph)
    empty = HeadTable(4, *(column[:0] for column in (
        heads.target, heads.source, heads.layer, heads.head, heads.loading, heads.view_layer, heads.view_head,
        heads.view_weight, heads.pattern, heads.pair_view, heads.pair_query, heads.pair_key, heads.pair_query_node,
        heads.pair_key_node)), [], [], heads.pair_value[:0], heads.pair_score[:0])
    save(replace(graph, heads=empty), tmp_path / "g.safetensors")
    assert_same(heads_of(load(tmp_path / "g.safetensors")), empty)


def without(path: Path, dropped: str, old_header: bool = False) -> None:
    """Take the tensors whose name begins with ``dropped`` out of a file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    if old_header:
        import json

        header = json.loads(metadata["header"])
        del header["validation"]
        metadata["header"] = json.dumps(header)
    save_file({name: value for name, value in load_file(path).items() if not name.startswith(dropped)}, path, metadata)


def test_older_files_have_no_heads_and_no_checks(graph, tmp_path):
    path = tmp_path / "g.safetensors"
    save(graph, path)
    without(path, "heads.", old_header=True)
    old = load(path)
    assert old.heads is None
    assert old.header.validation == {}
    assert old.header.scores == graph.header.scores


def test_part_of_a_table_is_a_damaged_file(graph, tmp_path):
    path = tmp_path / "g.safetensors"
    save(graph, path)
    without(path, "heads.pair_key_name")
    with pytest.raises(FormatError, match=r"lacks the tensor heads\.pair_key_name"):
        load(path)


def test_a_subgraph_keeps_edges_between_its_nodes_and_names_of_all_components(graph):
    heads = heads_of(graph)
    keep = np.random.default_rng(0).random(len(graph)) < 0.7
    keep[heads.target[0]] = keep[heads.source[0]] = True
    left = heads_of(graph.subgraph(keep))
    old = np.flatnonzero(keep)
    parts = lambda table, name: list(zip(  # noqa: E731
        name(table.target).tolist(), name(table.source).tolist(), table.layer.tolist(), table.head.tolist(),
        table.loading.tolist(), strict=True))
    expected = [part for part in parts(heads, lambda nodes: nodes) if keep[part[0]] and keep[part[1]]]
    assert parts(left, lambda nodes: old[nodes]) == expected
    assert 0 < len(expected) < len(heads)
    for name in ("pair_query_node", "pair_key_node"):
        was, now = getattr(heads, name), getattr(left, name)
        here = (was >= 0) & keep[was]
        np.testing.assert_array_equal(old[now[here]], was[here])
        assert (now[~here] == -1).all()
        assert 0 < here.sum() < (was >= 0).sum()
    assert left.pair_query_name == heads.pair_query_name
    assert left.pattern is heads.pattern


def test_heads_go_through_pruning_and_pages_but_not_into_json(graph, tmp_path):
    small = graph.prune(0.5, 0.9)
    assert 0 < len(heads_of(small)) < len(heads_of(graph))
    small.to_neuronpedia(tmp_path / "g.json")
    back = read(tmp_path / "g.json")
    assert back.heads is None
    assert back.header.validation == graph.header.validation


def test_rows_of_an_edge(graph):
    heads = heads_of(graph)
    target, source = int(heads.target[7]), int(heads.source[7])
    rows = heads.of(target, source)
    assert 7 in rows
    assert set(heads.target[rows]) == {target}
    assert set(heads.source[rows]) == {source}
    assert len(rows) == sum(1 for pair in zip(heads.target, heads.source, strict=True) if pair == (target, source))
    assert len(heads.of(source, target)) == 0


def changed(name: str, at: int, value: float):
    def change(heads: HeadTable) -> dict:
        column = getattr(heads, name).copy()
        column.reshape(-1)[at] = value
        return {name: column}

    return change


@pytest.mark.parametrize(("change", "told"), [
    (lambda h: {"loading": h.loading.astype(np.float64)}, "heads.loading is float64"),
    (lambda h: {"head": h.head[:-1]}, "heads.head is int16 of shape"),
    (lambda h: {"view_weight": h.view_weight[:-1]}, "heads.view_weight is float32"),
    (lambda h: {"pattern": h.pattern[:, :-1]}, "heads.pattern is float32 of shape"),
    (lambda h: {"pair_key_name": h.pair_key_name[1:]}, "heads.pair_key_name has"),
    (lambda h: {"n_heads": 0}, "n_heads is 0"),
    (lambda h: {"loading": h.loading[::-1].copy()}, "sorted by target and source"),
    (lambda h: {"target": h.target[::-1].copy()}, "sorted by target and source"),
    (lambda h: {"view_head": h.view_head * 0, "view_layer": h.view_layer * 0}, "name each head once"),
    (changed("head", 0, 4), "heads.head holds 0 to 4, expected 0 to 3"),
    (changed("source", 0, -1), "heads.source holds -1"),
    (changed("loading", 0, np.nan), "heads.loading must be finite"),
    (changed("pattern", 0, 1.5), "heads.pattern must lie between 0 and 1"),
    (changed("pattern", 0, np.nan), "heads.pattern must lie between 0 and 1"),
    (changed("pair_view", 0, 6), "heads.pair_view holds"),
    (changed("pair_key", 0, 10), "heads.pair_key holds"),
    (changed("pair_query_node", 0, -2), "heads.pair_query_node holds -2"),
])
def test_columns_that_do_not_fit_are_refused(graph, change, told):
    heads = heads_of(graph)
    with pytest.raises(InputError, match=told.replace(".", r"\.")):
        replace(heads, **change(heads))


def test_a_head_of_an_edge_is_there_once(graph):
    heads = heads_of(graph)
    row = int(np.flatnonzero((np.diff(heads.target) == 0) & (np.diff(heads.source) == 0))[0])
    layer, head = heads.layer.copy(), heads.head.copy()
    layer[row + 1], head[row + 1] = layer[row], head[row]
    with pytest.raises(InputError, match="each head of an edge once"):
        replace(heads, layer=layer, head=head)


def test_a_table_of_another_graph_is_not_saved(graph, tmp_path):
    heads = heads_of(graph)
    target = heads.target.copy()
    target[-1] = len(graph)
    with pytest.raises(InputError, match=rf"heads\.target holds \d+ to {len(graph)}"):
        save(replace(graph, heads=replace(heads, target=target)), tmp_path / "g.safetensors")
    header = replace(graph.header, tokens=[*graph.header.tokens, 5], token_texts=[*graph.header.token_texts, "x"])
    with pytest.raises(InputError, match="10 positions, the prompt 11 tokens"):
        save(replace(graph, header=header), tmp_path / "g.safetensors")


def test_a_page_has_patterns_to_1e_5_those_of_the_strongest_heads_first(graph, monkeypatch):
    order = np.argsort(heads_of(graph).view_weight)  # the strongest last, so that the page has to sort them
    heads = heads_of(graph)
    turned = replace(heads, view_layer=heads.view_layer[order], view_head=heads.view_head[order],
                     view_weight=heads.view_weight[order], pattern=heads.pattern[order],
                     pair_view=np.argsort(order)[heads.pair_view].astype(np.int16))
    monkeypatch.setattr("circuits.graphs.page.content.PATTERN_NUMBERS", 450)  # four patterns of 100, and a half
    values, columns = page_content(replace(graph, heads=turned))
    assert values["heads"]["omitted"] == 2
    best = order[::-1][:4]
    np.testing.assert_array_equal(columns["views.weight"], heads.view_weight[best])
    shown = columns["views.pattern"].reshape(4, 10, 10) / PATTERN_STEPS
    assert np.abs(shown - heads.pattern[best]).max() < 1e-5
    kept = np.isin(heads.pair_view, best)
    assert len(columns["pairs.value"]) == kept.sum() < len(heads.pair_value)
    names = values["heads"]["names"]
    assert [names[i] for i in columns["pairs.queryName"]] == [
        name for name, here in zip(heads.pair_query_name, kept, strict=True) if here]
    assert [int(heads.view_layer[best[v]]) for v in columns["pairs.view"]] == [
        int(heads.view_layer[v]) for v in heads.pair_view[kept]]
