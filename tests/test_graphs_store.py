"""The native file: exact round trips, and one clear error for every way to be broken."""

import os
from dataclasses import asdict, replace

import numpy as np
import pytest
from circuit_tracer_peer import read_peer
from random_graphs import assert_same, random_cards, random_graph
from safetensors.numpy import load_file, save_file

import circuits.graphs
from circuits.errors import FormatError, InputError
from circuits.graphs import Header
from circuits.graphs.store import load, replacing, save

HOSTILE = ["</script><script>alert(1)</script>", "\x00\x01\x1b", "\"'&<>\\", "\u2028\u2029", "🙂\ufffe", "\r\n\t", "",
           " "]


def hostile_graph():
    graph = random_graph(1, unexpanded=0.3)
    labels = graph.nodes.label.copy()
    labels[:len(HOSTILE)] = HOSTILE
    header = replace(graph.header, prompt="".join(HOSTILE), token_texts=HOSTILE[:3], pinned=[graph.node_ids[0]],
                     supernodes=[[HOSTILE[0], *graph.node_ids[1:3]]], reconstruction=[0.1, float("inf"), -0.5],
                     settings={"target": None, "tokens": [1, 2], "nested": {"é": 0.1}, "x": True})
    return replace(graph, nodes=replace(graph.nodes, label=labels), header=header)


@pytest.mark.parametrize("graph", [hostile_graph(), random_graph(2, shuffle=True), random_graph(3, density=0.0),
                                   read_peer("clt").graph], ids=["hostile", "shuffled", "no edges", "peer"])
def test_round_trip_is_exact(graph, tmp_path):
    path = tmp_path / "g.safetensors"
    graph.save(path)
    assert_same(circuits.graphs.load(path), graph)
    assert os.listdir(tmp_path) == ["g.safetensors"]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    (tmp_path / "plain").touch()
    save(random_graph(0), tmp_path / "graph.safetensors")
    assert (tmp_path / "graph.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_pruned_graph_round_trips_and_keeps_its_ids(tmp_path):
    graph = random_graph(4)
    small = graph.prune(0.7, 0.9)
    save(small, tmp_path / "g.safetensors")
    again = load(str(tmp_path / "g.safetensors"))
    assert_same(again, small)
    assert set(again.node_ids) <= set(graph.node_ids)


def graph_with_tables():
    """A pruned graph that knows where pruned nodes' features fired, with cards."""
    graph = random_graph(4, n_pos=5)
    where = np.flatnonzero((graph.nodes.kind == "feature") & (graph.nodes.layer == 1))
    feature, position = graph.nodes.feature.copy(), graph.nodes.position.copy()
    feature[where], position[where] = 2, np.arange(len(where))
    nodes = replace(graph.nodes, feature=feature, position=position)
    graph = replace(graph, nodes=nodes, cards=random_cards(replace(graph, nodes=nodes)))
    keep = np.ones(len(graph), dtype=bool)
    keep[where[1:]] = False
    return graph.subgraph(keep)


def test_activations_and_cards_round_trip(tmp_path):
    graph = graph_with_tables()
    save(graph, tmp_path / "g.safetensors")
    again = load(tmp_path / "g.safetensors")
    assert_same(again, graph)
    assert len(again.activations.of(1, 2)[0]) == 4
    assert 0 < len(again.cards) < len(graph.cards)
    for count in (0, 3):  # the file depends on what the graph holds, not on how it came to it
        save(replace(again, cards=again.cards.limited(count)), tmp_path / "h.safetensors")
        few = load(tmp_path / "h.safetensors")
        assert max(np.diff(few.cards.contexts.start)) == count
        assert few.cards.texts == again.cards.limited(count).texts


def test_files_from_before_thresholds_activations_and_cards(saved):
    arrays = load_file(saved)
    assert not [name for name in arrays if name.startswith(("activations", "cards"))]
    rewrite(saved, {"nodes.threshold": None})
    old = load(saved)
    assert np.isnan(old.nodes.threshold).all()
    assert (old.activations, old.cards, old.feature_cards()) == (None, None, None)
    assert_same(old, replace(GRAPH, nodes=replace(GRAPH.nodes, threshold=old.nodes.threshold)))


@pytest.mark.parametrize(("tensors", "message"), [
    ({"activations.value": None}, r"lacks the tensor activations\.value"),
    ({"cards.promoted.start": None}, r"lacks the tensor cards\.promoted\.start"),
    ({"cards.texts.text": None}, r"lacks the tensor cards\.texts\.text"),
    ({"cards.texts.text": np.frombuffer(b"[1]", np.uint8)}, r"cards\.texts\.text must be a list of strings"),
    ({"cards.texts.text": np.frombuffer(b'["a"]', np.uint8)}, "1 texts for"),
    ({"cards.contexts.peak": np.zeros(3, np.int32)}, r"cards\.contexts\.peak is int32"),
    ({"cards.contexts.peak": np.zeros(3, np.uint8)}, "contradicts itself: contexts' start"),
    ({"cards.density": np.zeros(1, np.float32)}, "contradicts itself: cards of"),
    ({"activations.position": np.full(15, 77, np.int32)}, "contradicts itself: "),
    ({"nodes.threshold": np.zeros(3, np.float32)}, "node columns must have one length"),
])
def test_damaged_tables(tmp_path, tensors, message):
    save(graph_with_tables(), tmp_path / "g.safetensors")
    rewrite(tmp_path / "g.safetensors", tensors)
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "g.safetensors")


def test_an_activation_beyond_the_prompt_is_not_written(tmp_path):
    graph = graph_with_tables()
    beyond = replace(graph.activations, position=graph.activations.position + np.int32(3))
    with pytest.raises(InputError, match=r"positions of activations must lie in 0\.\.4"):
        save(replace(graph, activations=beyond), tmp_path / "g.safetensors")


def test_numpy_numbers_in_the_header_become_plain(tmp_path):
    graph = random_graph(0)
    graph = replace(graph, header=replace(graph.header, unexplored=np.float64(0.25), settings={"k": np.int64(3)}))
    save(graph, tmp_path / "g.safetensors")
    header = load(tmp_path / "g.safetensors").header
    assert (header.unexplored, header.settings) == (0.25, {"k": 3})


def test_nan_in_the_header(tmp_path):
    graph = random_graph(0)
    save(replace(graph, header=replace(graph.header, conservation=float("nan"))), tmp_path / "g.safetensors")
    assert np.isnan(load(tmp_path / "g.safetensors").header.conservation)


def test_half_a_surrogate_pair_does_not_make_an_unreadable_file(tmp_path):
    graph = random_graph(0)
    save(replace(graph, header=replace(graph.header, prompt="a\ud800b")), tmp_path / "g.safetensors")
    assert load(tmp_path / "g.safetensors").header.prompt == "a?b"


def test_a_header_json_cannot_hold(tmp_path):
    graph = random_graph(0)
    with pytest.raises(InputError, match="plain JSON values: got a object"):
        save(replace(graph, header=replace(graph.header, settings={"x": object()})), tmp_path / "g.safetensors")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("cut", [0, 4, 8, 50, -1, -200])
def test_truncated(cut, tmp_path):
    path = tmp_path / "g.safetensors"
    save(random_graph(0), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FormatError, match=r"g\.safetensors is not a whole safetensors file"):
        load(path)


def test_other_bytes(tmp_path):
    path = tmp_path / "g.safetensors"
    path.write_bytes(b"<html>not a graph</html>" * 50)
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        load(path)


def test_a_safetensors_file_that_is_no_graph(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(FormatError, match="not an attribution graph"):
        load(tmp_path / "w.safetensors")


def test_missing_and_folder(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "none.safetensors")
    with pytest.raises((InputError, FormatError)):
        load(tmp_path)


def rewrite(path, tensors=None, **metadata):
    """A saved graph with some tensors (None: left out) or metadata replaced."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        old = file.metadata()
    arrays = load_file(path) | (tensors or {})
    save_file({name: array for name, array in arrays.items() if array is not None}, path, old | metadata)


@pytest.fixture
def saved(tmp_path):
    save(random_graph(0), tmp_path / "g.safetensors")
    return tmp_path / "g.safetensors"


@pytest.mark.parametrize(("metadata", "message"), [
    ({"format_version": "2"}, "format version 2, this program reads up to 1: upgrade"),
    ({"format_version": "one"}, "format version 'one'"),
    ({"format": "other"}, "not an attribution graph"),
    ({"header": "{"}, "broken header"),
    ({"header": "[]"}, "expected a JSON object"),
    ({"header": '{"tokens": "abc"}'}, "broken header: tokens"),
    ({"header": '{"unexplored": "many"}'}, "broken header: unexplored"),
    ({"header": '{"n_layers": 2.5}'}, "broken header: n_layers"),
    ({"header": '{"supernodes": [1]}'}, "broken header: supernodes.0"),
])
def test_broken_metadata(saved, metadata, message):
    rewrite(saved, **metadata)
    with pytest.raises(FormatError, match=message):
        load(saved)


def test_unknown_header_fields_are_ignored(saved):
    import json

    header = asdict(random_graph(0).header) | {"from_the_future": 1}
    rewrite(saved, header=json.dumps(header))
    assert load(saved).header == Header(**asdict(random_graph(0).header))


GRAPH = random_graph(0)


def changed(name, change):
    array = np.array(getattr(GRAPH, name) if hasattr(GRAPH, name) else GRAPH.nodes[name.removeprefix("nodes.")])
    return {name: change(array)}


def put(index, value):
    def change(array):
        array[index] = value
        return array
    return change


@pytest.mark.parametrize(("tensors", "message"), [
    ({"weights": None}, "lacks the tensor weights"),
    ({"nodes.residual": None}, "lacks the tensor nodes.residual"),
    (changed("weights", lambda a: a.astype(np.float64)), "weights is float64"),
    (changed("weights", lambda a: a[:, None]), r"weights is float32 of shape \(\d+, 1\)"),
    (changed("weights", lambda a: a[:-1]), "indptr must rise from 0"),
    (changed("weights", put(0, np.nan)), "weights must be finite"),
    (changed("indices", lambda a: a[:-1]), "indices for"),
    (changed("indices", put(-1, len(GRAPH))), "indices must lie in"),
    (changed("indices", put(0, -1)), "indices must lie in"),
    (changed("indices", lambda a: np.concatenate([a[-1:], a[1:-1], a[:1]])), "indices must rise"),
    (changed("indptr", lambda a: a[:-1]), "indptr has"),
    (changed("indptr", put(1, 10**6)), "indptr must rise"),
    (changed("indptr", put(0, 1)), "indptr must rise"),
    (changed("indptr", put(5, -3)), "indptr must rise"),
    (changed("target_nodes", put(0, len(GRAPH))), "target_nodes must lie in"),
    (changed("target_nodes", lambda a: a[:1]), "1 target_nodes for 2 target_weights"),
    (changed("target_weights", put(0, -0.5)), "target_weights must be"),
    (changed("nodes.layer", lambda a: a[:-1]), "node columns must have one length"),
    (changed("nodes.layer", put(0, 99)), "node layers must lie in"),
    (changed("nodes.position", put(0, 3)), "node positions must lie in -1..2"),
    ({"nodes.kind": np.full(len(GRAPH), 9, np.uint8)}, "nodes.kind holds 9"),
    ({"nodes.label": np.frombuffer(b"[1]", np.uint8)}, "list of strings"),
    ({"nodes.label": np.frombuffer(b"\xff", np.uint8)}, "not JSON"),
])
def test_arrays_that_contradict_each_other(saved, tensors, message):
    rewrite(saved, tensors)
    with pytest.raises(FormatError, match=message):
        load(saved)


def test_a_graph_that_contradicts_itself_is_not_written(tmp_path):
    with pytest.raises(InputError, match="indices must lie"):
        save(replace(GRAPH, indices=GRAPH.indices + 1000), tmp_path / "g.safetensors")
    with pytest.raises(InputError, match="node kind 'neuron' is unknown"):
        save(replace(GRAPH, nodes=replace(GRAPH.nodes, kind=np.full(len(GRAPH), "neuron"))), tmp_path / "g.safetensors")
    assert os.listdir(tmp_path) == []


def test_unwritable_targets(tmp_path):
    for path in (tmp_path / "missing" / "g.safetensors", tmp_path):
        with pytest.raises(InputError, match="cannot write"):
            save(GRAPH, path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        save(GRAPH, tmp_path / "file" / "g.safetensors")
    assert os.listdir(tmp_path) == ["file"]


def interrupt(path):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "g.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupt(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["g.json"]
