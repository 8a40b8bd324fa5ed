"""``circuits attention`` and the heads that ``circuits trace`` writes into graphs: numbers and errors."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cli import one_clear_line, run, source  # noqa: F401

import circuits
from circuits.attention import table
from circuits.attention.qk import qk_attribution
from circuits.errors import FormatError
from circuits.features.known import Labels
from circuits.graph_nodes import replacement_of
from circuits.graphs import AttributionGraph, export
from circuits.graphs.heads import HeadTable


@pytest.fixture(scope="module")
def traced(source: list[str]) -> tuple[AttributionGraph, circuits.gemma3.Gemma3, circuits.transcoder.Transcoders]:  # noqa: F811
    model, transcoders = circuits.load_model(source[1], device="cpu"), circuits.open_transcoders(source[3])
    return circuits.trace(model, transcoders, "the cat sat on the"), model, transcoders


@pytest.fixture
def saved(traced: tuple, tmp_path: Path) -> AttributionGraph:
    graph = traced[0].prune()
    graph.save(tmp_path / "g.safetensors")
    return graph


def strongest_edge(graph: AttributionGraph) -> tuple[str, str, float]:
    """Of those into the first target from a feature or a token: ids and weight."""
    target = int(graph.target_nodes[0])
    row = slice(graph.indptr[target], graph.indptr[target + 1])
    free = np.isin(graph.nodes.kind[graph.indices[row]], ["feature", "embedding"])
    at = int(np.argmax(np.abs(graph.weights[row]) * free))
    return graph.node_ids[graph.indices[row][at]], graph.node_ids[target], float(graph.weights[row][at])


def test_the_heads_of_an_edge_sum_to_it(run: Callable, saved: AttributionGraph, source: list[str]) -> None:  # noqa: F811
    first, target, weight = strongest_edge(saved)
    done = run("attention", "g.safetensors", "--edge", first, target, "--json", "a.json", *source)
    assert done.status == 0, done.err
    assert "share of the edge" in done.out
    found = json.loads(Path("a.json").read_text())["edge"]
    assert found["weight"] == pytest.approx(weight)
    sums = np.sum(found["loadings"], 1) + found["bypass"]
    np.testing.assert_allclose(sums, weight, rtol=1e-4)
    assert np.abs(found["loadings"]).max() > 0
    assert found["largest_difference"] < 1e-4


def test_an_edge_without_attention(run: Callable, saved: AttributionGraph, source: list[str]) -> None:  # noqa: F811
    target = int(saved.target_nodes[0])
    row = slice(saved.indptr[target], saved.indptr[target + 1])
    last = next(int(node) for node in saved.indices[row] if saved.nodes.layer[node] == saved.header.n_layers - 1)
    done = run("attention", "g.safetensors", "--edge", saved.node_ids[last], saved.node_ids[target], *source)
    assert done.status == 0, done.err
    assert "No attention carries any of it." in " ".join(done.out.split())


def test_heads_edges_and_scores(run: Callable, saved: AttributionGraph, source: list[str], traced: tuple) -> None:  # noqa: F811
    done = run("attention", "g.safetensors", "--json", "a.json", *source)
    assert done.status == 0, done.err
    heads = json.loads(Path("a.json").read_text())["heads"]
    carries = [head["carries"] for head in heads]
    assert carries == sorted(carries, reverse=True)
    name = f"{heads[0]['layer']}/{heads[0]['head']}"
    run("attention", "g.safetensors", "--head", name, "--json", "a.json", *source)
    edges = json.loads(Path("a.json").read_text())["head"]["edges"]
    assert edges
    assert {edge["source"] for edge in edges} <= set(saved.node_ids)
    done = run("attention", "g.safetensors", "--head", "2/1", "--query", 4, "--key", 3, "--versus", 2, "--json",
               "a.json", *source)
    assert done.status == 0, done.err
    found = json.loads(Path("a.json").read_text())["score"]
    _, model, transcoders = traced
    expected = qk_attribution(model, replacement_of(saved, model, transcoders), 2, 1, 4, 3, versus_key=2)
    assert found["score"] == pytest.approx(expected.score)
    assert np.sum(found["by_kind"]["sums"]) == pytest.approx(expected.score, rel=1e-4)
    assert found["residual"] < 1e-5
    assert "every other key" in " ".join(done.out.split())


@pytest.mark.parametrize(("arguments", "message"), [
    (["--edge", "E_1_1", "none"], "the graph has no node"), (["--head", "4/0"], "head is '4/0': expected LAYER/HEAD"),
    (["--head", "x"], "head is 'x'"), (["--key", 2], "give --head and --key"),
    (["--head", "1/1", "--query", 2], "give --head and --key"), (["--top", 0], "top is 0"),
    (["--head", "1/1", "--query", 1, "--key", 3], "after the query"), (["-o", "g.txt"], "g.txt")])
def test_bad_input(run: Callable, saved: AttributionGraph, source: list[str], arguments: list, message: str) -> None:  # noqa: F811
    one_clear_line(run("attention", "g.safetensors", *arguments, *source), message)


def test_trace_writes_heads_and_attention_adds_more(run: Callable, source: list[str]) -> None:  # noqa: F811
    done = run("trace", "the cat sat on the", "-o", "g.safetensors", "-o", "g.html", *source)
    assert done.status == 0, done.err
    few = export.read("g.safetensors").heads
    assert few is not None
    assert 0 < len(few.pair_value) <= 8 * table.PAIRS
    assert run("attention", "g.safetensors", "-o", "more.safetensors", "--scores", 9, *source).status == 0
    more = export.read("more.safetensors").heads
    assert len(np.unique(np.stack([more.pair_view, more.pair_query, more.pair_key]), axis=1).T) == 9
    assert run("trace", "the cat sat on the", "--no-heads", "-o", "none.safetensors", *source).status == 0
    assert export.read("none.safetensors").heads is None
    one_clear_line(run("trace", "the cat", "--scores", -1, *source), "scores is -1")


def test_labels_that_cannot_be_read_do_not_cost_the_heads(traced: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, model, transcoders = traced
    named = table.head_table(graph.prune(), model, transcoders, scores=6)

    def damaged(*_: object, **__: object) -> None:
        raise FormatError("features.bin is damaged")

    monkeypatch.setattr(Labels, "open", damaged)
    plain = table.head_table(graph.prune(), model, transcoders, scores=6)
    np.testing.assert_array_equal(plain.pair_value, named.pair_value)
    monkeypatch.undo()
    monkeypatch.setattr(Labels, "of", damaged)
    assert len(table.head_table(graph.prune(), model, transcoders, scores=6)) == len(named)


def test_the_table_is_what_was_asked(traced: tuple) -> None:
    graph, model, transcoders = traced
    small = graph.prune()
    whole, part = table.with_heads(graph, small, model, transcoders, scores=20)
    assert isinstance(part.heads, HeadTable)
    local = replacement_of(graph, model, transcoders)
    for view, (layer, head) in enumerate(zip(part.heads.view_layer, part.heads.view_head, strict=True)):
        np.testing.assert_allclose(part.heads.pattern[view], local.frozen.layers[layer].pattern[head], atol=1e-6)
    assert (np.diff(part.heads.view_weight) <= 0).all()
    adjacency, seen = small.adjacency().toarray(), graph.adjacency().toarray()
    for heads, matrix, ids in ((part.heads, adjacency, part.node_ids), (whole.heads, seen, whole.node_ids)):
        assert np.abs(matrix[heads.target, heads.source]).min() > 0
        assert len(ids) == len(matrix)
    assert [whole.node_ids[node] for node in whole.heads.source] == [part.node_ids[node] for node in part.heads.source]
    pairs = part.heads
    assert (pairs.pair_key <= pairs.pair_query).all()
    for at in range(0, len(pairs.pair_value), 7):
        view = pairs.pair_view[at]
        layer, head = int(pairs.view_layer[view]), int(pairs.view_head[view])
        found = qk_attribution(model, local, layer, head, int(pairs.pair_query[at]), int(pairs.pair_key[at]))
        assert pairs.pair_score[at] == pytest.approx(found.score, rel=1e-4)
        assert pairs.pair_value[at] in np.array([pair.contribution for pair in found.pairs(table.PAIRS)], np.float32)
    named = pairs.pair_query_node >= 0
    assert named.any()
    for node, name in zip(pairs.pair_query_node[named], np.array(pairs.pair_query_name)[named], strict=True):
        assert str(name).startswith(str(part.nodes.label[node]))
