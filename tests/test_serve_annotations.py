"""Pins, supernodes and labels over a real socket: saved whole, checked against the graph, never over another's."""

import json
from dataclasses import replace

import numpy as np
import pytest
from random_graphs import assert_same, random_graph
from served_folder import Client
from test_serve_api_graphs import client, folder  # noqa: F401

from circuits.graphs import export, load
from circuits.serve.folder import GraphFolder
from circuits.serve.schemas import MAX_LABEL, MAX_SUPERNODES

# ruff: noqa: F811


def test_annotations_round_trip(client: Client, folder: GraphFolder) -> None:
    graph, path = random_graph(1), "/api/graphs/a.safetensors/annotations"
    ids = graph.node_ids
    first = client.get(path)
    assert first.json() == {"pinned": [], "supernodes": [], "labels": {}}
    given = {"pinned": [ids[1], ids[5]], "supernodes": [["<b>capital</b> \u05e9", ids[2], ids[3]], ["", ids[4]]],
             "labels": {ids[2]: "says \"Paris\" \U0001f5fc", ids[7]: ""}}
    saved = client.send("PUT", path, given, If_Match=first.headers["etag"])
    assert saved.status == 200, saved.text
    assert saved.json() == {"name": "a.safetensors", "etag": saved.headers["etag"]}
    again = client.get(path)
    assert again.headers["etag"] == saved.headers["etag"] != first.headers["etag"]
    assert again.json() == {**given, "labels": {}}
    written = load(folder.root / "a.safetensors")
    assert (written.header.pinned, written.header.supernodes) == (given["pinned"], given["supernodes"])
    labels = graph.nodes.label.copy()
    labels[2], labels[7] = given["labels"][ids[2]], ""
    expected = replace(graph, nodes=replace(graph.nodes, label=labels), header=written.header)
    assert_same(written, expected)
    entry = client.get("/api/graphs/a.safetensors").json()
    assert (entry["pinned"], entry["supernodes"]) == (2, 2)
    cleared = client.send("PUT", path, {}, If_Match=saved.headers["etag"])
    assert cleared.status == 200
    assert client.get(path).json() == {"pinned": [], "supernodes": [], "labels": {}}
    assert client.send("PUT", path, {"pinned": [ids[1], ids[1]]}, If_Match="*").status == 200
    assert client.get(path).json()["pinned"] == [ids[1]]


def test_annotations_need_the_version_they_are_of(client: Client, folder: GraphFolder) -> None:
    path, pins = "/api/graphs/a.safetensors/annotations", {"pinned": [random_graph(1).node_ids[0]]}
    etag = client.get(path).headers["etag"]
    assert client.send("PUT", path, pins).status == 428
    assert client.send("PUT", path, pins, If_Match='"older"').status == 412
    assert client.send("PUT", path, pins, If_Match=etag).status == 200
    late = client.send("PUT", path, {}, If_Match=etag)
    assert late.status == 412
    assert "changed by someone else: load it again" in late.detail
    assert client.get(path).json()["pinned"] == pins["pinned"]
    assert client.ask("DELETE", "/api/graphs/a.safetensors", If_Match=etag).status == 412
    assert client.send("PUT", "/api/graphs/absent.json/annotations", {}, If_Match="*").status == 404


@pytest.mark.parametrize(("given", "message"), [
    ({"pinned": ["no_such_node"]}, "pinned: the graph has no node 'no_such_node'"),
    ({"supernodes": [["name", "no"]]}, "supernodes.0: the graph has no node 'no'"),
    ({"labels": {"no": "x"}}, "labels: the graph has no node 'no'"),
    ({"supernodes": [["only a name"]]}, "supernodes.0: list should have at least 2 items"),
    ({"supernodes": "x"}, "supernodes: input should be a valid list"),
    ({"labels": {"0_0_0": "x" * (MAX_LABEL + 1)}}, "string should have at most 500 characters"),
    ({"supernodes": [["x" * (MAX_LABEL + 1), "y"]]}, "supernodes.0.0: string should have at most 500"),
    ({"supernodes": [["x", "y"]] * (MAX_SUPERNODES + 1)}, "supernodes: list should have at most 1000"),
    ({"pinned": ["x"] * 5001}, "pinned: list should have at most 5000"),
    ({"pinned": [1]}, "pinned.0: input should be a valid string"),
    ({"pined": []}, "pined: extra inputs are not permitted"), ([], "the body: input should be"), (None, "the body: "),
    ("x", "input should be")])
def test_annotations_that_do_not_fit(client: Client, folder: GraphFolder, given: object, message: str) -> None:
    before = (folder.root / "a.safetensors").read_bytes()
    answer = client.send("PUT", "/api/graphs/a.safetensors/annotations", given, If_Match="*")
    assert answer.status == 422
    assert message in answer.detail
    assert (folder.root / "a.safetensors").read_bytes() == before


@pytest.mark.parametrize("body", ["{", "[" * 500_000, '{"pinned": ["\\ud800"]}', "\x00", "NaN", '{"pinned": NaN}'])
def test_bodies_that_are_no_json(client: Client, body: str) -> None:
    answer = client.ask("PUT", "/api/graphs/a.safetensors/annotations", body, Content_Type="application/json",
                        If_Match="*")
    assert answer.status in (400, 422)
    assert answer.detail


def test_annotations_of_json_files(client: Client, folder: GraphFolder) -> None:
    graph = random_graph(4)
    export.write(graph, folder.root / "ours.json")
    document = json.loads((folder.root / "ours.json").read_text())
    del document["metadata"]["gemma_circuits"]
    (folder.root / "theirs.json").write_text(json.dumps({**document, "notes": "kept by them"}))
    given = {"pinned": [graph.node_ids[0]], "labels": {graph.node_ids[0]: "new"}}
    assert client.send("PUT", "/api/graphs/ours.json/annotations", given, If_Match="*").status == 200
    written = export.read(folder.root / "ours.json")
    assert written.header.pinned == given["pinned"]
    assert written.nodes.label[0] == "new"
    np.testing.assert_array_equal(written.weights, graph.weights)
    refused = client.send("PUT", "/api/graphs/theirs.json/annotations", given, If_Match="*")
    assert refused.status == 409
    assert "written by another program" in refused.detail
    assert "kept by them" in (folder.root / "theirs.json").read_text()
