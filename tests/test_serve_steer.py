"""Steering, heads of an edge and attention scores over a real socket: equal to the library's, or one sentence."""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from random_graphs import random_graph
from served_folder import Client, served, tiny_source
from test_serve_jobs import Work

import circuits
from circuits.attention.edge_heads import graph_head_loadings
from circuits.attention.qk import qk_attribution
from circuits.graph_nodes import replacement_of, targets_of
from circuits.interventions.edits import ErrorEdit, FeatureEdit, Intervention, TokenEdit
from circuits.interventions.generate import generate
from circuits.interventions.intervene import Outcome, intervene
from circuits.interventions.modes import FREE, REPLACED, Mode
from circuits.serve import api_steer, reruns
from circuits.serve.folder import GraphFolder
from circuits.serve.jobs import MAX_QUESTIONS, Jobs
from circuits.serve.question import Question, Report
from circuits.serve.site import Site
from circuits.serve.tracer import Source

PROMPT = "paris paris x mo x"
NAME = "paris.safetensors"
STEER = f"/api/graphs/{NAME}/steer"


class Peer:
    """The graph and its model, asked without the server."""

    def __init__(self, source: Source):
        self.model = circuits.load_model(source.model, device="cpu")
        self.transcoders = circuits.open_transcoders(source.transcoders)
        self.graph = circuits.trace(self.model, self.transcoders, PROMPT, coverage=1.0, max_logits=3)
        self.local = replacement_of(self.graph, self.model, self.transcoders)

    def nodes(self, kind: str) -> list[int]:
        return np.flatnonzero(self.graph.nodes.kind == kind).tolist()

    def id(self, node: int) -> str:
        return self.graph.node_ids[node]

    def edit(self, node: int, amount: float) -> FeatureEdit:
        nodes = self.graph.nodes
        return FeatureEdit(int(nodes.layer[node]), int(nodes.feature[node]), int(nodes.position[node]), "scale", amount)

    def outcome(self, *edits: Any, mode: Mode = FREE) -> Outcome:
        return intervene(self.model, self.transcoders, self.local, Intervention(edits), mode, features=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return replace(tiny_source(tmp_path_factory.mktemp("tiny")), max_tokens=40)


@pytest.fixture(scope="module")
def peer(source: Source) -> Peer:
    return Peer(source)


@pytest.fixture(scope="module")
def site(source: Source, peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site(GraphFolder(tmp_path_factory.mktemp("graphs")), source)
    peer.graph.save(site.folder.root / NAME)
    return site


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[Client]:
    with served(site) as client:
        yield client


def asked(client: Client, peer: Peer, nodes: Mapping[int, float], **settings: Any) -> dict[str, Any]:
    chosen = [{"id": peer.id(node), "multiplier": amount} for node, amount in nodes.items()]
    answer = client.send("POST", STEER, {"nodes": chosen, **settings})
    assert answer.status == 200, answer.text
    return answer.json()


def test_a_node_at_its_own_value_changes_nothing(client: Client, peer: Peer) -> None:
    answer = asked(client, peer, {peer.nodes("feature")[0]: 1.0}, generate=4)
    assert (answer["reacting"], answer["n_reacting"]) == ([], 0)
    assert (answer["kl_predicted"], answer["kl_measured"]) == pytest.approx((0, 0), abs=1e-12)
    for row in answer["targets"] + answer["tokens"]:
        assert (row["predicted"], row["measured"]) == pytest.approx((0, 0), abs=1e-5)
        assert (row["probability_predicted"], row["probability_measured"]) == pytest.approx(
            (row["probability"], row["probability"]), rel=1e-5)
    assert answer["texts"]["steered"] == answer["texts"]["unchanged"]


def test_predicted_and_measured_are_those_of_the_replacement_and_of_the_model(client: Client, peer: Peer) -> None:
    feature, other = peer.nodes("feature")[1], peer.nodes("feature")[-2]
    error, token = peer.nodes("error")[5], peer.nodes("embedding")[2]
    nodes = peer.graph.nodes
    edits = (peer.edit(feature, 0.0), peer.edit(other, -2.0), TokenEdit(int(nodes.position[token]), 1.5),
             ErrorEdit(int(nodes.layer[error]), int(nodes.position[error]), 3.0))
    answer = asked(client, peer, {feature: 0.0, other: -2.0, token: 1.5, error: 3.0}, top=100)
    outcomes = {"predicted": peer.outcome(*edits, mode=REPLACED), "measured": peer.outcome(*edits)}
    targets = targets_of(peer.graph, peer.model, peer.local)
    assert [row["id"] for row in answer["targets"]] == [peer.id(node) for node in peer.nodes("logit")]
    assert [row["label"] for row in answer["targets"]] == targets.labels
    assert [row["logit"] for row in answer["targets"]] == pytest.approx(targets.values.tolist(), rel=1e-5)
    for name, outcome in outcomes.items():
        changes = (outcome.final_changes @ targets.vectors.T)[0].tolist()
        assert max(map(abs, changes)) > 0.01
        assert [row[name] for row in answer["targets"]] == pytest.approx(changes, rel=1e-4, abs=1e-6)
        assert answer[f"kl_{name}"] == pytest.approx(float(outcome.kl[0]), rel=1e-4)
        for row in answer["tokens"]:
            change = outcome.logit_changes[0] - outcome.logit_changes[0].mean()
            assert row[name] == pytest.approx(float(change[row["token"]]), rel=1e-4, abs=1e-5)
            probability = float(outcome.probabilities[0, row["token"]])
            assert row[f"probability_{name}"] == pytest.approx(probability, rel=1e-4)
    assert answer["targets"][0]["predicted"] != pytest.approx(answer["targets"][0]["measured"], rel=0.01)
    before, after = peer.local.frozen.logits.softmax(-1), outcomes["measured"].probabilities[0]
    largest = np.sort(np.maximum(before.numpy(), after.numpy()))[::-1][:100]
    assert [max(row["probability"], row["probability_measured"]) for row in answer["tokens"]] == pytest.approx(
        largest.tolist(), rel=1e-4)
    by_token = {row["token"]: row for row in answer["tokens"]}
    for row, token in zip(answer["targets"], targets.tokens, strict=True):
        same = {name: row[name] for name in ("logit", "predicted", "measured", "probability", "probability_measured")}
        assert {name: by_token[token][name] for name in same} == pytest.approx(same, rel=1e-4, abs=1e-5)


def test_the_features_that_react_most(client: Client, peer: Peer) -> None:
    first = peer.nodes("feature")[0]
    alone = client.send("POST", STEER, {"nodes": [{"id": peer.id(first), "multiplier": -3}]}).json()["reacting"]
    second = peer.graph.node_ids.index(next(row["id"] for row in alone if row["id"] is not None))
    answer = asked(client, peer, {first: -3.0, second: 0.5})  # the second would react most
    effects = peer.outcome(peer.edit(first, -3.0), peer.edit(second, 0.5)).features
    assert effects is not None
    columns = (effects.layer, effects.position, effects.feature, effects.change)
    nodes = peer.graph.nodes
    held = {(int(nodes.layer[node]), int(nodes.position[node]), int(nodes.feature[node])) for node in (first, second)}
    expected = [row for row in zip(*(column.tolist() for column in columns), strict=True)
                if row[:3] not in held and abs(row[3]) > 1e-4]
    expected.sort(key=lambda row: -abs(row[3]))
    assert answer["n_reacting"] == pytest.approx(len(expected), rel=0.02)  # the smallest may be rounding
    assert len(expected) > 20
    assert [row["change"] for row in answer["reacting"]] == pytest.approx([row[3] for row in expected[:20]], rel=1e-4)
    there = peer.local.active
    active = {tuple(place): value for *place, value in zip(
        there.layer.tolist(), there.position.tolist(), there.feature.tolist(), there.value.tolist(), strict=True)}
    silent = 0
    for row in answer["reacting"]:
        place = row["layer"], row["position"], row["feature"]
        assert row["before"] == pytest.approx(active.get(place, 0.0), rel=1e-5)
        assert row["name"].startswith(f"{row['layer']}/{row['feature']}")
        if row["id"] is None:
            silent += 1
            assert place not in active
        else:
            node = peer.graph.node_ids.index(row["id"])
            assert (nodes.layer[node], nodes.position[node], nodes.feature[node]) == place
    assert 0 < silent < 20


def test_texts_are_the_generator_s(client: Client, peer: Peer) -> None:
    node = max(peer.nodes("feature"), key=lambda i: peer.graph.nodes.influence[i])
    settings = {"temperature": 1.5, "top_k": 30, "top_p": 0.95, "seed": 7}
    answer = asked(client, peer, {node: -20.0}, generate=12, **settings)["texts"]
    made = generate(peer.model, peer.transcoders, peer.local, [Intervention((peer.edit(node, -20.0),))],
                    max_new_tokens=12, **settings)
    for name, expected in (("unchanged", made.unchanged), ("steered", made.steered[0])):
        assert answer[name] == {"text": expected.text, "tokens": len(expected.tokens), "ended": expected.ended}
    assert answer["unchanged"] != answer["steered"]
    other = asked(client, peer, {node: -20.0}, generate=12, **{**settings, "seed": 8})["texts"]
    assert other != answer
    assert asked(client, peer, {node: -20.0})["texts"] is None


def test_heads_of_an_edge(client: Client, peer: Peer) -> None:
    graph = peer.graph
    target = int(graph.target_nodes[0])
    row = slice(graph.indptr[target], graph.indptr[target + 1])
    early = graph.nodes.layer[graph.indices[row]] < 2
    source = int(graph.indices[row][np.argmax(np.abs(graph.weights[row]) * early)])
    ends = {"source": peer.id(source), "target": peer.id(target)}
    answer = client.get(f"/api/graphs/{NAME}/heads?{urlencode(ends)}").json()
    found = graph_head_loadings(graph, peer.model, peer.transcoders, [(source, target)])[0]
    assert answer["weight"] == pytest.approx(found.edge, rel=1e-6)
    assert answer["bypass"] == pytest.approx(found.bypass.tolist(), rel=1e-4, abs=1e-7)
    loadings = np.zeros_like(found.loadings)
    for part in answer["heads"]:
        loadings[part["layer"], part["head"]] = part["loading"]
        assert part["share"] == pytest.approx(part["loading"] / found.edge, rel=1e-5)
    assert loadings == pytest.approx(found.loadings, rel=1e-4, abs=1e-7)
    sizes = [abs(part["loading"]) for part in answer["heads"]]
    assert sizes == sorted(sizes, reverse=True)
    assert loadings.sum(1) + answer["bypass"] == pytest.approx(np.full(4, found.edge), rel=1e-4)
    missing = client.get(f"/api/graphs/{NAME}/heads?{urlencode({'source': ends['target'], 'target': ends['source']})}")
    assert (missing.status, "has no edge from" in missing.detail) == (422, True)


@pytest.mark.parametrize("versus", [None, 1])
def test_an_attention_score(client: Client, peer: Peer, versus: int | None) -> None:
    where = {"layer": 3, "head": 1, "query": 4, "key": 2, "top": 15} | ({} if versus is None else {"versus": versus})
    answer = client.get(f"/api/graphs/{NAME}/attention?{urlencode(where)}").json()
    found = qk_attribution(peer.model, peer.local, 3, 1, 4, 2, versus_key=versus).merged()
    assert answer["score"] == pytest.approx(found.score, rel=1e-5)
    assert answer["residual"] < 1e-4
    assert answer["pattern"] == pytest.approx(found.pattern.tolist(), rel=1e-5)
    assert sum(answer["pattern"]) == pytest.approx(1, rel=1e-5)
    assert [pair["value"] for pair in answer["pairs"]] == pytest.approx(
        [pair.contribution for pair in found.pairs(15)], rel=1e-4)
    largest = np.sort(np.abs(found.by_key()))[::-1][:15]
    assert [abs(part["value"]) for part in answer["keys"]] == pytest.approx(largest.tolist(), rel=1e-4)
    kinds = {"feature", "error", "embedding", "constant"}
    for pair, expected in zip(answer["pairs"], found.pairs(15), strict=True):
        component = found.components[expected.query_source]
        node = peer.graph.node_ids.index(pair["query_id"])
        assert peer.graph.nodes.kind[node] == component.kind
        assert component.kind in kinds
        assert peer.graph.nodes.position[node] == component.position
        if component.kind == "feature":
            assert pair["query_name"].startswith(f"{component.layer}/{component.feature}")


def test_keys_outside_of_the_window_have_no_score(client: Client) -> None:
    where = urlencode({"layer": 0, "head": 0, "query": 5, "key": 5})
    answer = client.get(f"/api/graphs/{NAME}/attention?{where}").json()
    assert answer["scores"][0] is None  # the window is five wide
    assert None not in answer["scores"][1:]


@pytest.mark.parametrize(("query", "message"), [
    ("attention?layer=0&head=0&query=5&key=0", "outside the window"),
    ("attention?layer=9&head=0&query=1&key=0", "the model has layers 0 to 3"),
    ("attention?layer=0&head=4&query=1&key=0", "heads 0 to 3"), ("attention?layer=0&head=0&query=1&key=2", "after the"),
    ("attention?layer=0&head=0&query=1", "key: field required"),
    ("attention?layer=-1&head=0&query=1&key=0", "layer: input should be greater than or equal to 0"),
    ("attention?layer=0&head=0&query=1&key=0&top=1000", "top: input should be less than or equal to 100"),
    ("heads?source=nothing&target=E_2_0", "the graph has no node 'nothing'"), ("heads?source=E_2_0", "target: field")])
def test_questions_that_cannot_be_answered(client: Client, query: str, message: str) -> None:
    answer = client.get(f"/api/graphs/{NAME}/{query}")
    assert answer.status == 422
    assert message in answer.detail


@pytest.mark.parametrize(("change", "message"), [
    ({"nodes": []}, "nodes: list should have at least 1 item"),
    ({"nodes": [{"id": "nothing", "multiplier": 0}]}, "the graph has no node 'nothing'"),
    ({"nodes": [{"id": "{feature}", "multiplier": float("nan")}]}, "nodes.0.multiplier: input should be"),
    ({"nodes": [{"id": "{feature}", "multiplier": float("inf")}]}, "nodes.0.multiplier: input should be"),
    ({"nodes": [{"id": "{feature}", "multiplier": 100.5}]}, "nodes.0.multiplier: input should be less than or equal"),
    ({"nodes": [{"id": "{feature}", "multiplier": "2x"}]}, "nodes.0.multiplier: input should be a valid number"),
    ({"nodes": [{"id": "{feature}"}]}, "nodes.0.multiplier: field required"),
    ({"nodes": [{"id": "{feature}", "multiplier": 0}] * 2}, "is given twice"),
    ({"nodes": [{"id": "{feature}", "multiplier": 0}] * 1001}, "nodes: list should have at most 1000 items"),
    ({"nodes": [{"id": "{logit}", "multiplier": 0}]}, "is a logit: only features, errors and tokens"),
    ({"nodes": [{"id": "{constant}", "multiplier": 0}]}, "is a constant: only features, errors and tokens"),
    ({"generate": 201}, "generate: input should be less than or equal to 200"),
    ({"generate": 60}, "longer than the 64"), ({"temperature": -1}, "temperature: input should be greater"),
    ({"top_p": 0}, "top_p: input should be greater than 0"), ({"top_k": 0}, "top_k: input should be greater"),
    ({"seed": 2**60}, "seed: input should be less"), ({"top": 0}, "top: input should be greater"),
    ({"mode": "free"}, "mode: extra inputs are not permitted")])
def test_steering_that_cannot_be_done(client: Client, peer: Peer, change: dict[str, Any], message: str) -> None:
    body = json.dumps({"nodes": [{"id": "{feature}", "multiplier": 0}], **change})
    for kind in ("feature", "logit", "constant"):
        body = body.replace(f"{{{kind}}}", peer.id(peer.nodes(kind)[0]))
    answer = client.ask("POST", STEER, body, Content_Type="application/json")
    assert answer.status == 422
    assert message in answer.detail


def test_only_pages_of_this_server_steer(client: Client, peer: Peer) -> None:
    body = {"nodes": [{"id": peer.id(peer.nodes("feature")[0]), "multiplier": 0}]}
    assert client.send("POST", STEER, body, Origin="http://evil.example").status == 403
    assert client.send("POST", STEER, body, Sec_Fetch_Site="same-site").status == 403
    assert client.ask("POST", STEER, json.dumps(body), Content_Type="text/plain").status == 415
    assert client.get(f"/api/graphs/{NAME}/heads?source=a&target=b", Origin="http://evil.example").status == 403


def test_graphs_of_another_model_and_graphs_that_are_not_there(client: Client, site: Site, peer: Peer) -> None:
    body = {"nodes": [{"id": peer.id(peer.nodes("feature")[0]), "multiplier": 0}]}
    assert client.send("POST", "/api/graphs/absent.json/steer", body).status == 404
    values = peer.graph.nodes.value * 1.5
    other = replace(peer.graph, nodes=replace(peer.graph.nodes, value=values), header=replace(
        peer.graph.header, model="gemma-3-27b", transcoders="elsewhere"))
    other.save(site.folder.root / "other.safetensors")
    answer = client.send("POST", "/api/graphs/other.safetensors/steer", body)
    assert answer.status == 422
    assert "that the graph was made with: gemma-3-27b and elsewhere; this server has" in answer.detail
    random_graph().save(site.folder.root / "random.safetensors")
    random = {"nodes": [{"id": random_graph().node_ids[0], "multiplier": 0}]}
    assert client.send("POST", "/api/graphs/random.safetensors/steer", random).status == 422
    long = replace(peer.graph, header=replace(peer.graph.header, tokens=[2] * 41, token_texts=["x"] * 41))
    long.save(site.folder.root / "long.safetensors")
    assert "has 41 tokens, this server" in client.send("POST", "/api/graphs/long.safetensors/steer", body).detail
    (site.folder.root / "broken.safetensors").write_bytes(b"no graph")
    broken = client.send("POST", "/api/graphs/broken.safetensors/steer", body)
    assert (broken.status, str(site.folder.root) in broken.text) == (422, False)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(client: Client, site: Site, peer: Peer,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    path = site.folder.root / "again.safetensors"
    peer.graph.save(path)
    runs = []
    run = reruns.Reruns._run

    def counted(self: reruns.Reruns, name: str, report: Any) -> Any:
        runs.append(name)
        return run(self, name, report)

    monkeypatch.setattr(reruns.Reruns, "_run", counted)
    keep = peer.graph.nodes.kind != "error"
    body = {"nodes": [{"id": peer.id(peer.nodes("error")[0]), "multiplier": 0}]}
    for _ in range(2):
        assert client.send("POST", "/api/graphs/again.safetensors/steer", body).status == 200
    assert runs == ["again.safetensors"]
    peer.graph.subgraph(keep).save(path)
    assert "has no node" in client.send("POST", "/api/graphs/again.safetensors/steer", body).detail
    assert len(runs) == 2


def test_a_graph_without_the_server_s_model(tmp_path: Path, peer: Peer) -> None:
    peer.graph.save(tmp_path / NAME)
    body = {"nodes": [{"id": peer.id(peer.nodes("feature")[0]), "multiplier": 0}]}
    with served(Site(GraphFolder(tmp_path))) as client:
        for answer in (client.send("POST", STEER, body), client.get(f"/api/graphs/{NAME}/heads?source=a&target=b")):
            assert (answer.status, "--no-model" in answer.detail) == (403, True)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def jobs(work: Work) -> Jobs:
    return Jobs(work)


@pytest.fixture
def busy(work: Work, jobs: Jobs, source: Source, peer: Peer, tmp_path: Path) -> Iterator[Client]:
    """A server whose trace runs until ``work`` permits it to go on."""
    site = Site(GraphFolder(tmp_path), source)
    peer.graph.save(tmp_path / NAME)
    site.jobs = jobs
    with served(site) as client:
        client.send("POST", "/api/traces", {"prompt": "first"})
        client.send("POST", "/api/traces", {"prompt": "second"})
        while work.started != ["first"]:
            time.sleep(0.01)
        yield client
        work.permits.release(1000)


def test_steering_goes_between_traces(busy: Client, work: Work, peer: Peer) -> None:
    started: list[list[str]] = []

    def steer() -> None:
        asked(busy, peer, {peer.nodes("feature")[0]: 0.0})
        started.append(list(work.started))

    thread = threading.Thread(target=steer)
    thread.start()
    time.sleep(0.3)
    assert started == []
    assert busy.get("/api/graphs").status == 200  # other requests do not wait
    work.permits.release(3)
    thread.join(20)
    assert started == [["first"]] or started == [["first", "second"]]
    while work.started != ["first", "second"]:
        time.sleep(0.01)


def test_waiting_has_an_end(busy: Client, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_steer, "PATIENCE", 0.2)
    body = {"nodes": [{"id": peer.id(peer.nodes("feature")[0]), "multiplier": 0}]}
    answer = busy.send("POST", STEER, body)
    assert (answer.status, "a trace is running" in answer.detail) == (429, True)


def test_callers_that_are_gone_leave_the_queue(busy: Client, jobs: Jobs, work: Work, peer: Peer) -> None:
    body = json.dumps({"nodes": [{"id": peer.id(peer.nodes("feature")[0]), "multiplier": 0}]})
    waiting = []
    for _ in range(MAX_QUESTIONS):
        waiting.append(http.client.HTTPConnection("127.0.0.1", busy.port, timeout=10))
        waiting[-1].request("POST", STEER, body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 30
    while len(jobs._questions) < MAX_QUESTIONS:  # one more that came before them would wait itself
        assert time.monotonic() < deadline
        time.sleep(0.02)
    answer = busy.ask("POST", STEER, body, Content_Type="application/json")
    assert answer.status == 429
    assert f"{MAX_QUESTIONS} questions to the model wait already" in answer.detail
    for connection in waiting:
        connection.close()
    while jobs._questions:  # the trace runs on
        assert time.monotonic() < deadline + 10
        time.sleep(0.02)
    work.permits.release(6)
    asked(busy, peer, {peer.nodes("feature")[0]: 0.0})


def test_a_dropped_question_is_not_begun_or_ends_at_its_next_report() -> None:
    steps: list[str] = []

    def work(report: Report) -> int:
        steps.append("begun")
        if len(steps) > 1:
            question.drop()  # as another thread does
        report("half", 1, 2)
        steps.append("ended")
        return 7

    question = Question(work)
    question.run()
    assert (question.answer.result(), steps) == (7, ["begun", "ended"])
    question = Question(work)
    question.drop()
    question.run()
    assert question.answer.cancelled()
    assert steps == ["begun", "ended"]
    question = Question(work)
    question.run()  # what stopped it does not reach the worker
    assert steps == ["begun", "ended", "begun"]
    assert question.answer.exception() is not None
