"""The API of saved graphs over a real socket: what it lists, changes, imports and deletes, and how it refuses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from random_graphs import assert_same, random_graph
from served_folder import Client, served

from circuits.graphs import AttributionGraph, export, load
from circuits.serve import summary as summary_module
from circuits.serve.folder import GraphFolder
from circuits.serve.site import Site

HOSTILE = ["<script>alert(1)</script>", "</title><img src=x onerror=alert(1)>", "\u202eabc", "\u05e9\u05dc", "a\0b",
           "\U0001f468\u200d\U0001f469", "x" * 10_000, "\"'`${1}{{7*7}}", "\ud800", "", "&lt;b&gt;",
           "\r\nSet-Cookie: a=b"]


@pytest.fixture
def folder(tmp_path: Path) -> GraphFolder:
    made = GraphFolder(tmp_path / "graphs")
    random_graph(1).save(made.root / "a.safetensors")
    return made


@pytest.fixture
def client(folder: GraphFolder) -> Iterator[Client]:
    with served(Site(folder)) as client:
        yield client


def described(graph: AttributionGraph, **changes: object) -> AttributionGraph:
    return replace(graph, header=replace(graph.header, **changes))


def test_list_and_details(client: Client, folder: GraphFolder) -> None:
    graph = random_graph(2)
    graph.nodes.label[graph.target_nodes[0]] = 'Output " Paris" (p=0.6)'
    described(graph, prompt="The capital", pinned=graph.node_ids[:2]).save(folder.root / "b.safetensors")
    export.write(graph, folder.root / "c.json")
    listed = client.get("/api/graphs").json()
    assert listed["left_out"] == 0
    found = {entry["name"]: entry for entry in listed["graphs"]}
    assert set(found) == {"a.safetensors", "b.safetensors", "c.json"}
    entry = found["b.safetensors"]
    assert (entry["prompt"], entry["model"], entry["nodes"], entry["edges"]) == (
        "The capital", "google/gemma-3-270m", len(graph), graph.n_edges)
    assert (entry["target"], entry["targets"], entry["pinned"]) == ('Output " Paris" (p=0.6)', 2, 2)
    assert entry["target_weight"] == pytest.approx(0.6)
    assert (entry["scores"], entry["unexplored"]) == ({"replacement": 0.5}, 0.04)
    assert (entry["page"], entry["thumbnail"], entry["error"]) == (True, True, None)
    same = ("nodes", "edges", "target", "targets", "scores", "model", "created")
    assert [found["c.json"][key] for key in same] == [entry[key] for key in same]
    details = client.get("/api/graphs/b.safetensors")
    assert details.headers["etag"] == entry["etag"] == details.json()["etag"]
    assert {**details.json(), "header": None} == {**entry, "header": None}
    assert details.json()["header"]["warnings"] == ["layer 2 is poor"]
    assert client.get("/api/graphs/absent.json").status == 404


def test_the_list_reads_no_edges(client: Client, folder: GraphFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        pytest.fail("a native file was read whole")

    monkeypatch.setattr("circuits.graphs.store.check", fail)
    monkeypatch.setattr(GraphFolder, "load", fail)
    assert client.get("/api/graphs").json()["graphs"][0]["edges"] == random_graph(1).n_edges


def test_large_graphs_are_listed_with_the_reason_why_they_are_not_shown(client: Client, folder: GraphFolder,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "MAX_THUMBNAIL", 100)
    (entry,) = client.get("/api/graphs").json()["graphs"]
    assert (entry["page"], entry["thumbnail"]) == (True, False)
    assert entry["too_large"].startswith("no thumbnail: the file has more than")
    monkeypatch.setattr("circuits.serve.folder.MAX_OPEN", 100)
    random_graph(1).save(folder.root / "a.safetensors")
    (entry,) = client.get("/api/graphs").json()["graphs"]
    assert (entry["page"], entry["thumbnail"], entry["nodes"]) == (False, False, len(random_graph(1)))
    assert "prune it" in entry["too_large"]
    assert client.get("/graphs/a.safetensors").status == 413


def test_damaged_files_are_listed_with_their_error(client: Client, folder: GraphFolder) -> None:
    whole = (folder.root / "a.safetensors").read_bytes()
    (folder.root / "cut.safetensors").write_bytes(whole[:-50])
    (folder.root / "noise.safetensors").write_bytes(b"\x93" * 500)
    (folder.root / "empty.json").write_text("")
    (folder.root / "deep.json").write_text("[" * 100_000)
    (folder.root / "other.json").write_text('{"a": 1}')
    (folder.root / "header.safetensors").write_bytes(whole.replace(b'"n_layers\\":3', b'"n_layers\\":x'))
    (folder.root / "bad;name.json").write_text("{}")
    (folder.root / "out.json").symlink_to("/etc/hostname")
    (folder.root / "folder.json").mkdir()
    (folder.root / b"\xff\xfe.json".decode("utf-8", "surrogateescape")).write_text("{}")
    listed = client.get("/api/graphs").json()["graphs"]
    errors = {entry["name"]: entry["error"] for entry in listed}
    assert len(errors) == 11
    assert errors.pop("a.safetensors") is None
    assert all(isinstance(error, str) and len(error) < 600 for error in errors.values())
    assert "rename the file" in errors["bad;name.json"]
    assert "leaves the folder" in errors["out.json"]
    assert "broken header" in errors["header.safetensors"]
    assert "cut short" in errors["cut.safetensors"]
    assert not any(str(folder.root) in error for error in errors.values())
    for name in ("cut.safetensors", "noise.safetensors", "empty.json", "deep.json", "other.json"):
        assert client.get(f"/api/graphs/{name}").json()["error"] == errors[name]
        assert client.get(f"/api/graphs/{name}/annotations").status == 422
        assert client.send("PUT", f"/api/graphs/{name}/annotations", {}, If_Match="*").status in (409, 422)
        page = client.get(f"/graphs/{name}")
        assert page.status == 422
        assert page.headers["content-type"].startswith("text/html")
        assert client.get(f"/graphs/{name}/thumbnail.svg").status == 422


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_stay_strings(client: Client, folder: GraphFolder, text: str) -> None:
    graph = random_graph(3)
    graph.nodes.label[:] = text
    made = described(graph, prompt=text, model=text, transcoders=text, created=text, warnings=[text],
                     supernodes=[[text, graph.node_ids[0]]], settings={text: text})
    made.save(folder.root / "a.safetensors")
    expected = text.encode("utf-8", "replace").decode()
    answer = client.get("/api/graphs")
    assert answer.headers["content-type"] == "application/json"
    (entry,) = answer.json()["graphs"]
    assert [entry[key] for key in ("prompt", "model", "transcoders", "created", "target")] == [expected] * 5
    assert client.get("/api/graphs/a.safetensors").json()["header"]["settings"] == {expected: expected}
    assert client.get("/api/graphs/a.safetensors/annotations").json()["supernodes"] == [[expected, graph.node_ids[0]]]
    compare = client.get("/compare?left=a.safetensors")
    assert compare.status == 200
    picture = client.get("/graphs/a.safetensors/thumbnail.svg")
    assert picture.headers["content-type"].startswith("image/svg+xml")
    for page in (compare.text, picture.text):
        assert "<script>alert" not in page
        assert "<img src=x" not in page
    assert "x" * 100 not in picture.text


def test_import(client: Client, folder: GraphFolder) -> None:
    graph = described(random_graph(5), prompt="An imported prompt")
    export.write(graph, folder.root.parent / "x.json")
    body = (folder.root.parent / "x.json").read_bytes()
    made = client.ask("POST", "/api/graphs", body, Content_Type="application/json")
    assert made.status == 201
    assert made.headers["location"] == "/api/graphs/an-imported-prompt.safetensors"
    assert_same(load(folder.root / "an-imported-prompt.safetensors"), graph)
    named = client.ask("POST", "/api/graphs?name=../../My%20%3Cb%3E", body, Content_Type="application/json; x=y")
    assert named.json()["name"] == "my-b.safetensors"
    assert client.get("/api/graphs/my-b.safetensors").json()["etag"] == named.headers["etag"]
    spoken = client.ask("POST", "/api/graphs?name=%E6%97%A5%E6%9C%AC", body, Content_Type="application/json")
    assert client.get(spoken.headers["location"]).json()["name"] == spoken.json()["name"] == "日本.safetensors"
    for bad in (b"", b"{]", b"[]", b'{"metadata": {}}', body[:-20], b"[" * 100_000):
        answer = client.ask("POST", "/api/graphs", bad, Content_Type="application/json")
        assert answer.status == 422
        assert answer.detail.startswith("the imported file is not an attribution graph")
    assert len(list(folder.root.iterdir())) == 4


def test_download_and_delete(client: Client, folder: GraphFolder) -> None:
    random_graph(1).save(folder.root / "Größe 2.safetensors")
    etag = client.get("/api/graphs/Gr%C3%B6%C3%9Fe%202.safetensors").headers["etag"]
    answer = client.get("/api/graphs/Gr%C3%B6%C3%9Fe%202.safetensors/file")
    assert answer.body == (folder.root / "Größe 2.safetensors").read_bytes()
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment; filename*=utf-8''Gr%C3%B6")
    assert answer.headers["etag"] == etag
    assert client.ask("DELETE", "/api/graphs/Gr%C3%B6%C3%9Fe%202.safetensors", If_Match=etag).status == 204
    assert client.ask("DELETE", "/api/graphs/Gr%C3%B6%C3%9Fe%202.safetensors").status == 404
    assert client.ask("DELETE", "/api/graphs/a.safetensors").status == 204
    assert client.get("/api/graphs").json() == {"graphs": [], "left_out": 0}


def test_no_more_than_a_thousand_are_listed(client: Client, folder: GraphFolder,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "MAX_LISTED", 2)
    for name in "bcd":
        random_graph(1).save(folder.root / f"{name}.safetensors")
    listed = client.get("/api/graphs").json()
    assert ([entry["name"][0] for entry in listed["graphs"]], listed["left_out"]) == (["d", "c"], 2)


def test_thumbnails_are_drawn_once_per_version(client: Client, folder: GraphFolder) -> None:
    path = "/graphs/a.safetensors/thumbnail.svg"
    first = client.get(path)
    assert first.status == 200
    assert client.get(path, If_None_Match=first.headers["etag"]).status == 304
    (folder.root / "a.safetensors").touch()
    assert client.get(path).body == first.body
    random_graph(6).save(folder.root / "a.safetensors")
    changed = client.get(path, If_None_Match=first.headers["etag"])
    assert changed.status == 200
    assert changed.body != first.body


def test_a_server_without_a_model_traces_nothing(client: Client) -> None:
    answer = client.send("POST", "/api/traces", {"prompt": "x"})
    assert (answer.status, "--no-model" in answer.detail) == (403, True)
    assert client.get("/api/traces").json() == {"traces": []}
    assert client.get("/api/traces/x").status == client.get("/api/traces/x/events").status == 403


def test_openapi_describes_every_endpoint(client: Client) -> None:
    document = client.get("/api/openapi.json").json()
    found = {(method.upper(), path) for path, operations in document["paths"].items() for method in operations}
    graph, trace = "/api/graphs/{name}", "/api/traces/{trace_id}"
    assert found == {
        ("GET", "/api/graphs"), ("POST", "/api/graphs"), ("GET", graph), ("DELETE", graph), ("GET", f"{graph}/file"),
        ("GET", f"{graph}/annotations"), ("PUT", f"{graph}/annotations"), ("POST", "/api/traces"),
        ("GET", "/api/traces"), ("GET", trace), ("DELETE", trace), ("GET", f"{trace}/events"),
        ("POST", f"{graph}/steer"), ("GET", f"{graph}/heads"), ("GET", f"{graph}/attention")}
    assert all(operation["description"] for operations in document["paths"].values()
               for operation in operations.values())
    assert "HTTPValidationError" not in document["components"]["schemas"]  # ours are all of one shape
    fields = document["components"]["schemas"]["TraceRequest"]["properties"]
    assert all(field["description"] for field in fields.values())
    assert fields["prompt"]["maxLength"] == 20_000
    page = client.get("/api").text
    for method, path in found:
        assert f'<span class="method">{method}</span> <code>{path}</code>' in page
    assert "http" not in page.replace("http-equiv", "")
    assert client.get("/docs").status == client.get("/redoc").status == client.get("/openapi.json").status == 404


def test_other_methods_and_addresses(client: Client) -> None:
    assert client.send("POST", "/api/graphs/a.safetensors", {}).status == 405
    assert client.get("/api/nothing").detail == "there is nothing at this address"
    page = client.get("/nothing%3Cscript%3E")
    assert page.status == 404
    assert "<script>" not in page.text
    missing = client.get("/compare?left=%3Cscript%3Ealert(1)%3C/script%3E")
    assert missing.status == 404
    assert "<script>" not in missing.text
    assert "&lt;script&gt;" in missing.text
