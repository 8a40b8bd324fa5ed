"""Traces over a real socket: from a prompt to a saved graph, followed and cancelled, and refused in one sentence."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from random_graphs import random_graph
from served_folder import Client, served, tiny_source
from test_serve_jobs import Work

import circuits
from circuits.graphs import load
from circuits.serve import api_traces
from circuits.serve.folder import GraphFolder
from circuits.serve.jobs import MAX_WAITING, Jobs
from circuits.serve.schemas import TraceRequest
from circuits.serve.site import Site
from circuits.serve.tracer import Source, Tracer

PROMPT = "paris paris x mo"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return tiny_source(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def site(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(GraphFolder(tmp_path_factory.mktemp("graphs")), replace(source, max_tokens=40))


@pytest.fixture(scope="module")
def client(site: Site) -> Iterator[Client]:
    with served(site) as client:
        yield client


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def slow(work: Work, source: Source, tmp_path: Path) -> Iterator[Client]:
    """A server whose traces take one step for each permit of ``work``."""
    site = Site(GraphFolder(tmp_path), source)
    site.jobs = Jobs(work)
    with served(site) as client:
        yield client
        work.permits.release(1000)


def asked(client: Client, **request: Any) -> dict[str, Any]:
    answer = client.send("POST", "/api/traces", {"prompt": PROMPT, **request})
    assert answer.status == 202, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/api/traces/{made['id']}"
    return made


def result(client: Client, **request: Any) -> dict[str, Any]:
    """The last event of a new trace."""
    *_, last = client.events(f"/api/traces/{asked(client, **request)['id']}/events")
    assert client.get(f"/api/traces/{last['id']}").json() == last
    return last


def until(client: Client, trace: dict[str, Any], **expected: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while True:
        state = client.get(f"/api/traces/{trace['id']}").json()
        if all(state[key] == value for key, value in expected.items()):
            return state
        assert time.monotonic() < deadline, state
        time.sleep(0.01)


def test_a_prompt_becomes_a_graph_like_that_of_the_command(client: Client, site: Site, source: Source) -> None:
    state = result(client, coverage=1.0, node_threshold=0.7, edge_threshold=0.9)
    assert (state["state"], state["graph"], state["error"]) == ("done", "paris-paris-x-mo.safetensors", None)
    made = load(site.folder.root / state["graph"])
    model = circuits.load_model(source.model, device="cpu")
    expected = circuits.trace(model, circuits.open_transcoders(source.transcoders), PROMPT, coverage=1.0)
    assert state["warnings"] == expected.header.warnings
    pruned = expected.prune(0.7, 0.9)
    assert made.node_ids == pruned.node_ids
    assert made.weights == pytest.approx(pruned.weights, rel=1e-5)
    assert made.header.settings == pruned.header.settings
    assert client.get("/api/graphs").json()["graphs"][0]["prompt"] == PROMPT
    again = result(client, node_threshold=0, edge_threshold=0, name="My graph: <b>")
    assert again["graph"] == "my-graph-b.safetensors"
    assert result(client)["graph"] == "paris-paris-x-mo-2.safetensors"


def test_options_reach_the_trace(client: Client, site: Site) -> None:
    state = result(client, target=" x", versus="paris", max_features=3, coverage=0.5)
    settings = load(site.folder.root / state["graph"]).header.settings
    assert (settings["target"], settings["versus"], settings["max_features"], settings["coverage"]) == (
        " x", "paris", 3, 0.5)


@pytest.mark.parametrize(("request_", "message"), [
    ({"prompt": ""}, "prompt: string should have at least 1 character"),
    ({"prompt": " \n "}, "the prompt is empty"),
    ({"prompt": "x" * 20_001}, "prompt: string should have at most 20000 characters"),
    ({"prompt": 3}, "prompt: input should be a valid string"), ({}, "prompt: field required"),
    ({"prompt": "x", "coverage": 0}, "coverage: input should be greater than 0"),
    ({"prompt": "x", "coverage": 1.1}, "coverage: input should be less than or equal to 1"),
    ({"prompt": "x", "coverage": float("nan")}, "coverage: input should be"),
    ({"prompt": "x", "node_threshold": -0.1}, "node_threshold: input should be greater than or equal to 0"),
    ({"prompt": "x", "edge_threshold": 2}, "edge_threshold: input should be less than or equal to 1"),
    ({"prompt": "x", "max_features": 0}, "max_features: input should be greater than or equal to 1"),
    ({"prompt": "x", "max_features": 1.5}, "max_features: input should be a valid integer"),
    ({"prompt": "x", "chat": "perhaps"}, "chat: input should be a valid boolean"),
    ({"prompt": "x", "name": "x" * 81}, "name: string should have at most 80 characters"),
    ({"prompt": "x", "nmae": "y"}, "nmae: extra inputs are not permitted"),
    ({"prompt": "x", "versus": "y"}, "versus needs a target"),
    ({"prompt": "x", "target": ""}, "target: string should have at least 1 character"),
    ([], "the body: input should be"), ("x", "the body: input should be")])
def test_requests_that_cannot_be_used(client: Client, request_: object, message: str) -> None:
    before = len(client.get("/api/traces").json()["traces"])
    answer = client.send("POST", "/api/traces", request_)
    assert answer.status == 422
    assert message in answer.detail
    assert len(client.get("/api/traces").json()["traces"]) == before


@pytest.mark.parametrize(("request_", "message"), [
    ({"prompt": "paris x " * 25}, "this server traces at most 40: shorten it"),
    ({"target": "paris mo"}, "is 2 tokens: 'paris'"), ({"target": "§"}, "not in the vocabulary"),
    ({"target": " x", "versus": "§"}, "not in the vocabulary"), ({"chat": True}, "has no chat template")])
def test_what_only_the_model_can_tell(client: Client, source: Source, tmp_path: Path, request_: dict[str, Any],
                                      message: str) -> None:
    """Before the model is there, such a trace fails in its turn; afterwards it is refused at once."""
    fresh = Site(GraphFolder(tmp_path), replace(source, max_tokens=40))
    with served(fresh) as other:
        failed = result(other, **request_)
    assert failed["state"] == "failed"
    assert message in failed["error"]
    assert list(tmp_path.iterdir()) == []
    assert result(client)["state"] == "done"
    answer = client.send("POST", "/api/traces", {"prompt": PROMPT, **request_})
    assert answer.status == 422
    assert message in answer.detail


def test_a_model_that_cannot_be_opened(source: Source, tmp_path: Path) -> None:
    with served(Site(GraphFolder(tmp_path), replace(source, model="no such model"))) as client:
        state = result(client)
    assert (state["state"], state["graph"]) == ("failed", None)
    assert state["error"].startswith("model 'no such model' is neither")


@pytest.mark.parametrize("prompt", [
    "<script>alert(1)</script>", "\u202ex \u05e9", "a\0b x", "\U0001f468\u200d\U0001f469", "../../x", "'\"`${1}{{7*7}}",
    "x\r\ndata: {}\r\n\r\nevent: trace", "\u2028x"])
def test_hostile_prompts(client: Client, site: Site, prompt: str) -> None:
    state = result(client, prompt=prompt, name=prompt)
    assert state["state"] == "done", state["error"]
    assert state["request"]["prompt"] == prompt
    assert load(site.folder.root / state["graph"]).header.prompt == prompt
    assert client.get(f"/api/graphs/{quote(state['graph'])}").json()["prompt"] == prompt


def test_surrogates_are_refused(client: Client) -> None:
    answer = client.ask("POST", "/api/traces", '{"prompt": "\\ud800"}', Content_Type="application/json")
    assert answer.status == 422
    assert answer.detail.startswith("prompt: ")


def test_events_tell_each_step(slow: Client, work: Work) -> None:
    first, second = asked(slow, prompt="a"), asked(slow, prompt="b")
    events = slow.events(f"/api/traces/{first['id']}/events")
    state = next(events)
    while state["stage"] != "loading the model":
        state = next(events)
    for step in range(3):
        work.permits.release()
        state = next(events)
        while state["stage"] != "rows":  # the queue behind it may have changed meanwhile
            state = next(events)
        if step < 2:
            assert (state["state"], state["done"], state["total"]) == ("running", step, 3)
    while state["finished"] is None:
        state = next(events)
    assert (state["state"], state["graph"], state["warnings"]) == ("done", "a.safetensors", ["careful"])
    assert list(events) == []
    work.permits.release(3)
    assert [event["state"] for event in slow.events(f"/api/traces/{second['id']}/events")][-1] == "done"
    assert [trace["request"]["prompt"] for trace in slow.get("/api/traces").json()["traces"]] == ["b", "a"]


def test_cancel_over_the_api(slow: Client, work: Work) -> None:
    first, second, third = (asked(slow, prompt=name) for name in "abc")
    until(slow, first, stage="loading the model")
    until(slow, third, state="waiting", ahead=2)
    assert slow.ask("DELETE", f"/api/traces/{second['id']}").json()["state"] == "cancelled"
    until(slow, third, ahead=1)
    stopping = slow.ask("DELETE", f"/api/traces/{first['id']}").json()
    assert (stopping["state"], stopping["stage"]) == ("running", "cancelling")
    work.permits.release()
    until(slow, first, state="cancelled", graph=None)
    work.permits.release(3)
    until(slow, third, state="done")
    assert slow.ask("DELETE", f"/api/traces/{third['id']}").json()["state"] == "done"
    assert work.started == ["a", "c"]
    for method, path in (("GET", "/api/traces/x"), ("DELETE", "/api/traces/x"), ("GET", "/api/traces/x/events")):
        assert slow.ask(method, path).status == 404


def test_the_queue_has_an_end(slow: Client, work: Work) -> None:
    until(slow, asked(slow), stage="loading the model")
    for _ in range(MAX_WAITING):
        asked(slow)
    answer = slow.send("POST", "/api/traces", {"prompt": PROMPT})
    assert (answer.status, "8 traces wait already" in answer.detail) == (429, True)


def test_quiet_streams_say_that_they_are_there(slow: Client, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_traces, "QUIET", 0.15)
    trace = asked(slow)
    until(slow, trace, stage="loading the model")
    seen: list[bytes] = []

    def read() -> None:
        seen.append(slow.get(f"/api/traces/{trace['id']}/events").body)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.6)
    work.permits.release(3)
    thread.join(10)
    assert seen[0].count(b": still here\n\n") >= 2
    assert seen[0].endswith(b"\n\n")


def test_cancelling_leaves_no_file_and_keeps_the_model(source: Source, tmp_path: Path) -> None:
    """Through the real trace, at each of its stages."""
    class Stop(BaseException):
        pass

    tracer = Tracer(GraphFolder(tmp_path), source)
    stages: list[str] = []
    tracer(TraceRequest(prompt=PROMPT, name="first"), lambda stage, done, total: stages.append(stage))
    order = list(dict.fromkeys(stages))
    assert order == ["loading the model", "opening the transcoders", "features", "rows", "pruning", "saving"]
    for wanted in order[2:]:
        def report(stage: str, done: int, total: int, wanted: str = wanted) -> None:
            if stage == wanted:
                raise Stop

        with pytest.raises(Stop):
            tracer(TraceRequest(prompt=PROMPT), report)
    assert [path.name for path in tmp_path.iterdir()] == ["first.safetensors"]
    stages.clear()
    tracer(TraceRequest(prompt=PROMPT), lambda stage, done, total: stages.append(stage))
    assert stages[0] == "features"


def test_closing_ends_streams_and_the_running_trace(source: Source, work: Work, tmp_path: Path) -> None:
    site = Site(GraphFolder(tmp_path), source)
    site.jobs = Jobs(work)
    random_graph().save(tmp_path / "a.safetensors")
    seen: list[dict[str, Any]] = []
    with served(site) as client:
        running, waiting = asked(client), asked(client)
        until(client, running, stage="loading the model")
        threads = [threading.Thread(target=lambda trace=trace: seen.extend(
            client.events(f"/api/traces/{trace['id']}/events"))) for trace in (running, waiting)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        threading.Timer(0.5, work.permits.release).start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert {state["id"] for state in seen} == {running["id"], waiting["id"]}
    assert [state.state for state in site.jobs.all()] == ["cancelled", "cancelled"]
