"""Attribution-graph JSON: the schema's rules, exact round trips, and other programs' files."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from circuit_tracer_peer import NAMES, read_peer
from random_graphs import assert_same, random_graph

from circuits.errors import FormatError, InputError
from circuits.graphs import NodeTable
from circuits.graphs.influence import influence
from circuits.graphs.neuronpedia import read, write
from circuits.graphs.scores import annotate

PROBABILITY = re.compile(r"\(p=([0-9.]+)\)")


def written(graph, tmp_path, **options):
    write(graph, tmp_path / "g.json", **options)
    return json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))


def contrast_graph():
    """One target without a token, of weight 1, beside another direction at the same place."""
    graph = random_graph(3)
    token, label = graph.nodes.token.copy(), graph.nodes.label.copy()
    token[graph.target_nodes] = -1
    label[graph.target_nodes] = [" Paris - London", "(p=?) odd (p=1)"]
    return replace(graph, nodes=replace(graph.nodes, token=token, label=label),
                   target_weights=np.array([1, 1], np.float32))


GRAPHS = {"plain": annotate(random_graph(1, unexpanded=0.3)), "shuffled": annotate(random_graph(2, shuffle=True)),
          "pruned": annotate(random_graph(4)).prune(0.8, 0.9), "contrast": contrast_graph(),
          "no edges": random_graph(5, density=0.0), "peer": annotate(read_peer("plt").graph).prune()}


@pytest.mark.parametrize("name", GRAPHS)
def test_round_trip_is_exact(name, tmp_path):
    graph = GRAPHS[name]
    a, b, c = graph.node_ids[:3]
    graph = replace(graph, header=replace(graph.header, pinned=[a, c], supernodes=[["group", a, b]],
                                          reconstruction=[0.5, float("inf")]))
    graph.to_neuronpedia(tmp_path / "g.json", slug="a.b-c_1")
    assert_same(read(tmp_path / "g.json"), graph)
    assert os.listdir(tmp_path) == ["g.json"]


@pytest.mark.parametrize("name", GRAPHS)
def test_schema_rules(name, tmp_path):
    graph = GRAPHS[name]
    data = written(graph, tmp_path, slug="jordan")
    assert {"metadata", "qParams", "nodes", "links"} <= set(data)
    meta = data["metadata"]
    assert meta["slug"] == "jordan"
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", meta["scan"])
    assert meta["prompt_tokens"] == graph.header.token_texts
    assert meta["prompt"] == graph.header.prompt
    assert isinstance(meta["node_threshold"], float)
    assert set(meta["pruning_settings"]) == {"node_threshold", "edge_threshold"}
    assert meta["info"]["generator"]["name"] == graph.header.generator.split(" ")[0]
    ids = [node["node_id"] for node in data["nodes"]]
    assert len(set(ids)) == len(ids) == len(graph)
    assert all({"source", "target", "weight"} == set(link) for link in data["links"])
    assert {link[end] for link in data["links"] for end in ("source", "target")} <= set(ids)
    assert len(data["links"]) == graph.n_edges
    for node, kind in zip(data["nodes"], graph.nodes.kind, strict=True):
        assert isinstance(node["layer"], str)
        assert isinstance(node["ctx_idx"], int)
        assert node["ctx_idx"] >= 0
        assert node["feature"] is None or isinstance(node["feature"], int)
        assert isinstance(node["clerp"], str)
        if kind == "logit":
            assert node["influence"] is None
            assert float(PROBABILITY.search(node["clerp"])[1]) == pytest.approx(node["token_prob"], abs=5e-4)
            assert float(node["clerp"].split("(p=")[1].split(")")[0]) >= 0  # as circuit-tracer's page parses it
        else:
            assert 0 <= node["influence"] <= 1
    assert sum(node["is_target_logit"] for node in data["nodes"]) == 1


def test_settings_of_a_pruned_graph(tmp_path):
    meta = written(GRAPHS["pruned"], tmp_path)["metadata"]
    assert meta["pruning_settings"] == {"node_threshold": 0.8, "edge_threshold": 0.9}
    assert meta["node_threshold"] == 0.8
    assert meta["generation_settings"] == {"max_n_logits": 10, "desired_logit_prob": 0.95}
    assert meta["info"]["create_time_ms"] == 1767323045000
    assert meta["scan"] == "gemma-3-270m"


def test_an_unpruned_graph_has_a_number_for_its_threshold(tmp_path):
    assert written(random_graph(0), tmp_path)["metadata"]["node_threshold"] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_influence_is_circuit_tracers_cumulative_share(name, tmp_path):
    graph = annotate(read_peer(name).graph)
    nodes = written(graph, tmp_path)["nodes"]
    amounts = influence(graph)
    order = np.argsort(-amounts)
    expected = np.empty(len(graph))
    expected[order] = np.cumsum(amounts[order]) / amounts.sum()
    clear = graph.nodes.kind != "logit"
    np.testing.assert_allclose([node["influence"] for node, ok in zip(nodes, clear, strict=True) if ok],
                               expected[clear], rtol=1e-5)
    # Pruned: still shares of the whole graph's influence, at most too low by what the graph lost.
    small = graph.prune()
    later = {node["node_id"]: node["influence"] for node in written(small, tmp_path)["nodes"]}
    for node in nodes:
        if later.get(node["node_id"]) is not None and node["influence"] < 0.75:
            assert later[node["node_id"]] == pytest.approx(node["influence"], abs=0.05)
            assert later[node["node_id"]] <= node["influence"] + 1e-6


def test_ids_of_each_kind(tmp_path):
    nodes = NodeTable.build(
        8, kind=["feature", "feature", "error", "embedding", "logit", "constant", "constant", "logit"],
        layer=[0, 2, 5, -1, 6, 3, 3, 6], position=[3, 1, 3, 2, 3, -1, 0, 3], feature=[5, 9, -1, -1, -1, -1, -1, -1],
        token=[-1, -1, -1, 44, 77, -1, -1, -1])
    graph = replace(random_graph(0, density=0.0), nodes=nodes, indptr=np.zeros(9, np.int64),
                    target_nodes=np.array([4, 7], np.int32))
    graph = replace(graph, header=replace(graph.header, n_layers=6, tokens=[1] * 4, token_texts=["a"] * 4))
    assert graph.node_ids == ["0_5_3", "2_9_1", "E_ERR_5_3", "E_44_2", "7_77_3", "BIAS_3", "BIAS_3_0", "7_D_3"]
    data = written(graph, tmp_path)["nodes"]
    assert [node["feature"] for node in data] == [20, 75, -1, 2, 77, None, None, None]
    assert [node["layer"] for node in data] == ["0", "2", "5", "E", "7", "3", "3", "7"]
    assert [node["jsNodeId"] for node in data] == [
        "0_5-0", "2_9-0", "5_3-0", "E_44-2", "L_77-3", "BIAS_3-0", "BIAS_3-0", "L_D-3"]
    assert [node["feature_type"] for node in data] == [
        "cross layer transcoder", "cross layer transcoder", "mlp reconstruction error", "embedding", "logit", "bias",
        "bias", "logit"]


def test_two_directions_get_two_ids():
    ids = [contrast_graph().node_ids[i] for i in contrast_graph().target_nodes]
    assert ids == ["4_D_2", "4_D_2-2"]


@pytest.mark.parametrize("slug", ["", "a b", "a/b", "../x", "é", "a\n"])
def test_bad_slugs(slug, tmp_path):
    with pytest.raises(InputError, match="slug is"):
        write(random_graph(0), tmp_path / "g.json", slug)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("model", "scan"), [("google/gemma-3-4b-it", "gemma-3-4b-it"), ("/a b/my model/", "my-model"),
                                             ("", "model"), ("日本", "model"), ("C:\\x\\g3", "g3")])
def test_scan(model, scan, tmp_path):
    graph = random_graph(0)
    graph = replace(graph, header=replace(graph.header, model=model))
    assert written(graph, tmp_path)["metadata"]["scan"] == scan


def test_hostile_strings(tmp_path):
    graph = random_graph(0)
    texts = ["</script>", "\x00\u2028", "\ud800"]
    label = graph.nodes.label.copy()
    label[:3] = texts
    graph = replace(graph, nodes=replace(graph.nodes, label=label), header=replace(
        graph.header, token_texts=texts, prompt="".join(texts)))
    write(graph, tmp_path / "g.json")
    again = read(tmp_path / "g.json")
    assert again.header.token_texts == ["</script>", "\x00\u2028", "?"]
    assert again.nodes.label[:3].tolist() == ["</script>", "\x00\u2028", "?"]


def test_activations_of_pruned_nodes(tmp_path):
    graph = GRAPHS["plain"]
    where = np.flatnonzero((graph.nodes.kind == "feature") & (graph.nodes.layer == 1))
    feature, position = graph.nodes.feature.copy(), graph.nodes.position.copy()
    feature[where[:2]], position[where[:2]] = 7, [0, 2]
    graph = replace(graph, nodes=replace(graph.nodes, feature=feature, position=position))
    assert "activations" not in written(graph, tmp_path)["metadata"]["gemma_circuits"]
    assert read(tmp_path / "g.json").activations is None
    keep = np.ones(len(graph), dtype=bool)
    keep[where[0]] = False
    small = graph.subgraph(keep)
    data = written(small, tmp_path)
    again = read(tmp_path / "g.json")
    assert_same(again, small)
    assert again.activations.of(1, 7)[0].tolist() == [0, 2]
    data["metadata"]["gemma_circuits"]["activations"]["value"][0] = "many"
    (tmp_path / "g.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match="gemma_circuits is damaged"):
        read(tmp_path / "g.json")
    data["metadata"]["gemma_circuits"]["activations"]["value"][0] = None
    (tmp_path / "g.json").write_text(json.dumps(data))
    with pytest.raises(FormatError, match=r"activations\.value must be finite"):
        read(tmp_path / "g.json")


def test_files_from_before_thresholds(tmp_path):
    graph = GRAPHS["plain"]
    data = written(graph, tmp_path)
    assert any(row[-1] is not None for row in data["metadata"]["gemma_circuits"]["nodes"].values())
    for row in data["metadata"]["gemma_circuits"]["nodes"].values():
        row.pop()
    (tmp_path / "g.json").write_text(json.dumps(data))
    again = read(tmp_path / "g.json")
    assert np.isnan(again.nodes.threshold).all()
    assert_same(again, replace(graph, nodes=replace(graph.nodes, threshold=again.nodes.threshold)))


def test_broken_numbers_are_not_written(tmp_path):
    graph = random_graph(0)
    with pytest.raises(InputError, match="weights must be finite"):
        write(replace(graph, weights=graph.weights * np.float32("nan")), tmp_path / "g.json")
    assert os.listdir(tmp_path) == []


def test_edits_made_elsewhere_count(tmp_path):
    graph = annotate(random_graph(1))
    data = written(graph, tmp_path)
    removed = data["nodes"].pop(0)["node_id"]
    data["links"] = [link for link in data["links"] if removed not in (link["source"], link["target"])]
    data["nodes"][0]["clerp"] = "renamed"
    data["qParams"] = {"pinnedIds": [removed, data["nodes"][1]["node_id"]], "supernodes": []}
    (tmp_path / "g.json").write_text(json.dumps(data))
    again = read(tmp_path / "g.json")
    keep = np.arange(len(graph)) > 0
    expected = graph.subgraph(keep)
    label = expected.nodes.label.copy()
    label[0] = "renamed"
    assert_same(again, replace(expected, nodes=replace(expected.nodes, label=label), header=replace(
        graph.header, pinned=[expected.node_ids[1]])))


def circuit_tracer_document(peer):
    """What circuit-tracer 0.5.0 writes for its graph: its ids, no influence on logits, qParams as it likes."""
    graph = peer.graph.prune(0.8, 0.98)
    nodes, ids, table = [], [], graph.nodes
    for row in table.rows():
        kind, layer, position, feature, token = (row[key] for key in ("kind", "layer", "position", "feature", "token"))
        layer, position, feature, token = int(layer), int(position), int(feature), int(token)
        node = {"run_idx": 0, "reverse_ctx_idx": 0, "ctx_idx": position, "clerp": "", "token_prob": 0.0,
                "is_target_logit": False, "influence": 0.5, "activation": None}
        if kind == "feature":
            node |= {"node_id": f"{layer}_{feature}_{position}", "layer": str(layer), "activation": float(row["value"]),
                     "feature": (layer + feature) * (layer + feature + 1) // 2 + feature,
                     "feature_type": "cross layer transcoder"}
        elif kind == "error":
            node |= {"node_id": f"0_{layer}_{position}", "layer": str(layer), "feature": -1,
                     "feature_type": "mlp reconstruction error"}
        elif kind == "embedding":
            node |= {"node_id": f"E_{token}_{position}", "layer": "E", "feature": position, "feature_type": "embedding"}
        else:
            probability = float(graph.target_weights[len([n for n in nodes if n["feature_type"] == "logit"])])
            node |= {"node_id": f"{layer + 1}_{token}_{position}", "layer": str(layer + 1), "feature": token,
                     "feature_type": "logit", "token_prob": probability, "influence": None,
                     "clerp": f'Output "x" (p={probability:.3f})'}
        node["jsNodeId"] = node["node_id"]
        nodes.append(node)
        ids.append(node["node_id"])
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    links = [{"source": ids[s], "target": ids[t], "weight": float(w)}
             for s, t, w in zip(graph.indices, rows, graph.weights, strict=True)]
    metadata = {"slug": "s", "scan": "gemma-2-2b", "transcoder_list": [], "prompt_tokens": graph.header.token_texts,
                "prompt": "p", "node_threshold": None, "schema_version": 1}
    return graph, ids, {"metadata": metadata, "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both",
                        "clickedId": "", "sg_pos": ""}, "nodes": nodes, "links": links}


def read_document(document, tmp_path):
    (tmp_path / "ct.json").write_text(json.dumps(document))
    return read(tmp_path / "ct.json")


@pytest.mark.parametrize("name", NAMES)
def test_circuit_tracer_file(name, tmp_path):
    graph, ids, document = circuit_tracer_document(read_peer(name))
    again = read_document(document, tmp_path)
    for column in ("kind", "layer", "position", "feature", "token", "value", "expanded"):
        np.testing.assert_array_equal(again.nodes[column], graph.nodes[column], err_msg=column)
    np.testing.assert_array_equal(again.adjacency().toarray(), graph.adjacency().toarray())
    np.testing.assert_array_equal(again.target_weights, graph.target_weights)
    np.testing.assert_allclose(again.nodes.influence, influence(graph), rtol=1e-6)
    assert again.header.tokens == graph.header.tokens
    assert (again.header.n_layers, again.header.model, again.header.scores) == (5, "gemma-2-2b", {})
    assert again.header.warnings == []
    assert again.node_ids == graph.node_ids
    assert "E_ERR" in "".join(again.node_ids)
    assert "E_ERR" not in "".join(ids)


@pytest.mark.parametrize("form", ["list", "string", "null"])
def test_pins_and_supernodes_as_lists_strings_and_nulls(form, tmp_path):
    graph, ids, document = circuit_tracer_document(read_peer("plt"))
    error = int(np.flatnonzero(graph.nodes.kind == "error")[0])
    pins, groups = [ids[0], ids[error], "9_9_9"], [["say x", ids[1], ids[error]], ["gone", "9_9_9"]]
    if form == "string":
        document["qParams"] |= {"pinnedIds": ",".join(pins), "supernodes": json.dumps(groups)}
    elif form == "null":
        document["qParams"] = dict.fromkeys(["pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"])
    else:
        document["qParams"] |= {"pinnedIds": pins, "supernodes": groups}
    header = read_document(document, tmp_path).header
    ours = graph.node_ids
    assert header.pinned == ([] if form == "null" else [ours[0], ours[error]])
    assert header.supernodes == ([] if form == "null" else [["say x", ours[1], ours[error]]])


def colliding_document(links):
    """A feature 0_2_1 of layer 0 and the error of layer 2 at position 1, which circuit-tracer calls 0_2_1 too."""
    def node(node_id, layer, kind, position=1, **more):
        return {"node_id": node_id, "feature": 0, "layer": layer, "ctx_idx": position, "feature_type": kind,
                "jsNodeId": "", "clerp": "x (p=1.0)"} | more

    names = {"f": "0_2_1", "e": "0_2_1", "deep": "3_4_1", "low": "1_4_1", "token": "E_5_1", "logit": "5_8_1"}
    return {"metadata": {"slug": "s", "scan": "m", "prompt": "p", "prompt_tokens": ["a", "b"]}, "qParams": {},
            "nodes": [node("0_2_1", "2", "mlp reconstruction error"), node("0_2_1", "0", "cross layer transcoder"),
                      node("3_4_1", "3", "cross layer transcoder"), node("1_4_1", "1", "cross layer transcoder"),
                      node("E_5_1", "E", "embedding"), node("5_8_1", "5", "logit", feature=8, token_prob=1.0)],
            "links": [{"source": names[s], "target": names[t], "weight": w} for s, t, w in links]}


def test_the_id_that_a_feature_and_an_error_share(tmp_path):
    graph = read_document(colliding_document([
        ("token", "f", 1), ("f", "low", 2), ("f", "deep", 3), ("e", "deep", 4), ("f", "logit", 5)]), tmp_path)
    assert graph.node_ids == ["E_ERR_2_1", "0_2_1", "3_4_1", "1_4_1", "E_5_1", "5_8_1"]
    error, feature, deep, low, token, logit = range(6)
    expected = np.zeros((6, 6))
    expected[feature, token] = 1  # errors have no inputs
    expected[low, feature] = 2  # an error of layer 2 cannot feed layer 1
    expected[deep, feature], expected[deep, error] = 3, 4  # two links: one each
    expected[logit, feature] = 5  # one link: a guess, and the warning says so
    np.testing.assert_array_equal(graph.adjacency().toarray(), expected)
    assert graph.header.warnings == ["1 links start at an id that a feature and an error share: taken as the feature's"]


def test_the_order_of_links_tells_a_feature_from_an_error(tmp_path):
    document = colliding_document([("deep", "logit", 3), ("f", "logit", 2)])
    error, *others = document["nodes"]
    document["nodes"] = [others[0], others[1], error, *others[2:]]  # feature 0, deep 1, error 2
    graph = read_document(document, tmp_path)
    assert graph.header.warnings == []
    assert graph.adjacency().toarray()[5].tolist() == [0, 3, 2, 0, 0, 0]
    document["links"].reverse()
    assert read_document(document, tmp_path).adjacency().toarray()[5].tolist() == [2, 3, 0, 0, 0, 0]


def test_feature_numbers_from_the_cantor_pair(tmp_path):
    document = colliding_document([])
    document["nodes"] = [document["nodes"][2] | {"node_id": "elsewhere", "feature": (3 + 70) * (3 + 71) // 2 + 70}]
    assert read_document(document, tmp_path).nodes.feature.tolist() == [70]


def broken(change):
    document = colliding_document([("token", "low", 1.0)])
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(("text", "message"), [
    ("", "the file"), ("{", "the file"), ("[1, 2]", "the file"), ("null", "the file"), ("\x00" * 99, "the file"),
    (broken(lambda d: d.pop("links")), "links: Field required"),
    (broken(lambda d: d["metadata"].pop("slug")), "metadata.slug"),
    (broken(lambda d: d.update(nodes=[])), "nodes: List should have at least 1"),
    (broken(lambda d: d["links"][0].update(weight=None)), "links.0.weight"),
    (broken(lambda d: d["links"][0].update(weight=float("nan"))), "links.0.weight"),
    (broken(lambda d: d["links"][0].update(source="9_9_9")), "names '9_9_9', which is no node"),
    (broken(lambda d: d["links"].append(d["links"][0])), "two links lead from"),
    (broken(lambda d: d["links"][0].update(source="3_4_1")), "go up in layer"),
    (broken(lambda d: d["nodes"].append(d["nodes"][2])), "2 nodes have the id '3_4_1'"),
    (broken(lambda d: d["nodes"][2].update(feature_type="neuron")), "feature_type 'neuron'"),
    (broken(lambda d: d["nodes"][2].update(layer="top")), "layer 'top'"),
    (broken(lambda d: d["nodes"][2].update(ctx_idx=7)), "positions must lie"),
    (broken(lambda d: d["nodes"][2].update(ctx_idx=10**12)), "contradicts itself"),
    (broken(lambda d: d["nodes"][2].update(node_id="x", feature=4)), "names its feature neither"),
    (broken(lambda d: d["qParams"].update(supernodes="[[")), "qParams.supernodes"),
    (broken(lambda d: d["qParams"].update(supernodes=[[1]])), "qParams.supernodes"),
    (broken(lambda d: d["metadata"].update(gemma_circuits={"version": 99})), "version 99"),
    (broken(lambda d: d["metadata"].update(gemma_circuits={})), "gemma_circuits is damaged"),
])
def test_broken_files(text, message, tmp_path):
    (tmp_path / "g.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        read(tmp_path / "g.json")


def test_truncated_and_missing(tmp_path):
    write(random_graph(0), tmp_path / "g.json")
    content = (tmp_path / "g.json").read_bytes()
    (tmp_path / "g.json").write_bytes(content[:-30])
    with pytest.raises(FormatError, match="not an attribution graph"):
        read(tmp_path / "g.json")
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path / "none.json")
