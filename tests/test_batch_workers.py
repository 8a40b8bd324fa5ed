"""Batches over several processes: workers that die, a batch that dies, and Ray."""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch
from batch_samples import PROMPTS, ForkedWorker, assert_same_graph, comparable, random_prompts, tiny_settings

from circuits.batches import local, ray_crew
from circuits.batches.events import Event, Foreman
from circuits.batches.prompts import Prompt
from circuits.batches.run import trace_batch
from circuits.batches.settings import BatchSettings
from circuits.errors import InputError, ModelError

MANY = 50


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> BatchSettings:
    return tiny_settings(tmp_path_factory.mktemp("tiny"), max_logits=1, coverage=0.5)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ForkedWorker]:
    """Workers are forked processes; all that were started."""
    started: list[ForkedWorker] = []

    def start(said: object) -> ForkedWorker:
        started.append(ForkedWorker(tmp_path / f"worker {len(started)}"))
        return started[-1]

    monkeypatch.setattr(local, "start_process", start)
    return started


def until_gone(pids: list[int], seconds: float = 20.0) -> bool:
    """Whether the processes end in this time; one that waits to be collected has ended."""
    end = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class PlayedCrew:
    """Workers that die when ``dies`` says so of a prompt and its attempt; a start fails when ``starts`` runs out of
    True."""

    def __init__(self, dies: Callable[[str, int], bool], starts: list[bool] | None = None):
        self.dies, self.starts = dies, iter(starts or [])
        self.events: list[Event] = []
        self.started, self.most, self.given = 0, 0, Counter[str]()
        self.alive: set[int] = set()

    def start(self) -> int:
        self.started += 1
        self.alive.add(self.started)
        self.most = max(self.most, len(self.alive))
        fine = next(self.starts, True)
        self.events.append(Event(self.started, "ready") if fine else Event(self.started, "died", message="too early"))
        return self.started

    def give(self, worker: int, prompt: Prompt, attempt: int) -> None:
        self.given[prompt.id] += 1
        if self.dies(prompt.id, attempt):
            self.events.append(Event(worker, "died", message="SIGKILL"))
        else:
            self.events.append(Event(worker, "done"))

    def wait(self) -> Event:
        event = self.events.pop(random.randrange(len(self.events)))
        if event.kind == "died":
            self.alive.remove(event.worker)
        return event


@pytest.mark.parametrize("seed", range(20))
def test_every_prompt_ends_once_whoever_dies(seed: int) -> None:
    random.seed(seed)
    deadly, workers = {"p3", "p7"}, random.randint(1, 5)
    crew = PlayedCrew(lambda id_, attempt: id_ in deadly or (random.random() < 0.3 and attempt == 1))
    prompts = [(Prompt(id=f"p{i}", prompt="x"), 0) for i in range(20)]
    done, lost = [], []
    Foreman(crew, prompts, 2, done=lambda prompt: done.append(prompt.id),
            lost=lambda prompt, attempts, why: lost.append((prompt.id, attempts, why))).run(workers)
    assert sorted(done) == sorted(prompt.id for prompt, _ in prompts if prompt.id not in deadly)
    assert sorted(lost) == [(id_, 3, "killed the worker 3 times (SIGKILL)") for id_ in sorted(deadly)]
    assert {crew.given[id_] for id_ in deadly} == {3}
    assert crew.most <= workers


def test_attempts_of_earlier_runs_count_on_but_give_no_fewer_retries() -> None:
    crew, lost = PlayedCrew(lambda id_, attempt: True), []
    Foreman(crew, [(Prompt(id="a", prompt="x"), 4)], 0, done=lambda prompt: None,
            lost=lambda prompt, attempts, why: lost.append((attempts, why))).run(3)
    assert (crew.started, lost) == (1, [(5, "killed the worker once (SIGKILL)")])


def test_workers_that_cannot_start() -> None:
    def run(*starts: bool) -> PlayedCrew:
        crew = PlayedCrew(lambda id_, attempt: False, list(starts))
        Foreman(crew, [(Prompt(id="a", prompt="x"), 0)], 2, done=lambda prompt: None, lost=None).run(1)
        return crew

    assert run(False, False, True).started == 3
    with pytest.raises(ModelError, match=r"die before their first prompt \(too early\)"):
        run(False, False, False)


@pytest.mark.parametrize(("error", "kind", "message"), [
    ("InputError", InputError, "^no such$"), ("OSError", ModelError, r"cannot trace \(OSError: no such\)")])
def test_a_worker_that_refuses_ends_the_batch(error: str, kind: type[Exception], message: str) -> None:
    crew = PlayedCrew(lambda id_, attempt: False)
    crew.events.append(Event(1, "refused", error, "no such"))
    crew.start = lambda: 1
    with pytest.raises(kind, match=message):
        Foreman(crew, [(Prompt(id="a", prompt="x"), 0)], 2, done=lambda prompt: None, lost=None).run(1)


def test_a_killed_worker_costs_nothing(settings: BatchSettings, forked: list[ForkedWorker], tmp_path: Path) -> None:
    prompts, victim = random_prompts(MANY), random.randint(0, MANY - 5)

    def kill_one(stage: str, done: int, total: int) -> None:
        if stage == "prompts" and done == victim:
            time.sleep(random.uniform(0, 0.1))
            os.kill(forked[-1].pid, signal.SIGKILL)

    found = trace_batch(prompts, tmp_path / "killed", settings, workers=2, progress=kill_one)
    assert not found.failed
    assert [worker.returncode for worker in forked].count(-signal.SIGKILL) == 1
    assert sum(row["attempts"] - 1 for row in found.rows) <= 1
    single = trace_batch(prompts, tmp_path / "single", settings)
    assert len(single.rows) == MANY
    for row, expected in zip(found.rows, single.rows, strict=True):
        assert comparable(row) == comparable(expected)
        assert_same_graph(tmp_path / "killed" / row["graph"], tmp_path / "single" / row["graph"])


def test_a_prompt_that_kills_every_worker_is_noted_and_tried_again_by_the_next_run(
        settings: BatchSettings, forked: list[ForkedWorker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deadly = tmp_path / "deadly"
    deadly.touch()
    give = local.LocalCrew.give

    def killing(crew: local.LocalCrew, worker: int, prompt: Prompt, attempt: int) -> None:
        if prompt.id == "ids" and deadly.exists():
            os.kill(worker, signal.SIGKILL)
        give(crew, worker, prompt, attempt)

    monkeypatch.setattr(local.LocalCrew, "give", killing)
    found = trace_batch(PROMPTS, tmp_path / "batch", settings, workers=2, retries=1)
    assert [row["id"] for row in found.failed] == ["ids"]
    assert found.failed[0]["error"] == {"type": "WorkerKilled", "message": "killed the worker 2 times (SIGKILL, as the "
                                        "system does when memory is full)"}
    assert found.failed[0]["attempts"] == 2
    assert until_gone([worker.pid for worker in forked])
    deadly.unlink()
    again = trace_batch(PROMPTS, tmp_path / "batch", settings, workers=2)
    assert (again.traced, again.failed, again.rows[1]["attempts"]) == (1, [], 3)


def test_workers_say_why_they_cannot_open_the_model(settings: BatchSettings, forked: list[ForkedWorker],
                                                    tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="absent"):
        trace_batch(PROMPTS, tmp_path / "batch", replace(settings, model=str(tmp_path / "absent")), workers=2)
    assert until_gone([worker.pid for worker in forked])


def test_a_worker_ends_in_the_middle_of_a_prompt_when_its_batch_is_gone(settings: BatchSettings, tmp_path: Path
                                                                        ) -> None:
    worker = ForkedWorker(tmp_path / "worker")
    job = {"folder": str(tmp_path / "batch"), "settings": settings.as_dict() | {"coverage": 1.0}, "memory": None}
    endless = {"prompt": {"id": "a", "tokens": [2, *range(3, 62)]}, "attempt": 1}
    worker.stdin.write(b"".join(json.dumps(line).encode() + b"\n" for line in (job, *[endless] * 200)))
    worker.stdin.flush()
    assert json.loads(worker.stdout.readline()) == {"kind": "ready"}
    worker.stdin.close()
    assert until_gone([worker.pid])
    assert worker.returncode is not None or worker.wait(5) is None
    assert len(worker.stdout.readlines()) < 200


def test_a_real_process(settings: BatchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started as users' are: with modules of the same names as the program's in the current folder."""
    (tmp_path / "circuits.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    crew = local.LocalCrew(local.Job("batch", settings, None))
    try:
        pid = crew.start()
        assert crew.wait() == Event(pid, "ready")
        crew.give(pid, Prompt.model_validate(PROMPTS[0] | {"id": "a"}), 1)
        assert crew.wait() == Event(pid, "done")
        assert json.loads((tmp_path / "batch" / "rows" / "a.json").read_text())["error"] is None
        os.kill(pid, signal.SIGINT)  # Ctrl-C in a terminal reaches workers too: the batch decides
        crew.give(pid, Prompt.model_validate(PROMPTS[0] | {"id": "b"}), 1)
        assert crew.wait() == Event(pid, "done")
    finally:
        crew.close()
    assert crew.wait().message == "exit status 0"
    assert until_gone([pid])


class Ref(SimpleNamespace):
    __hash__ = object.__hash__


def fake_ray(nodes: list[dict]) -> ModuleType:
    """As much of Ray as the crew uses; calls run when they are waited for. Every actor dies of its second prompt."""
    ray, calls = ModuleType("ray"), []

    class RayError(Exception):
        pass

    class Handle:
        def __init__(self, made: object):
            self.made, self.traces = made, 0

        def __getattr__(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(remote=lambda *arguments: Ref(actor=self, name=name, arguments=arguments))

    def get(ref: Ref) -> object:
        ref.actor.traces += ref.name == "trace"
        if ref.actor.traces > 1:
            raise RayError("The actor died\nand more")
        return getattr(ref.actor.made, ref.name)(*ref.arguments)

    def remote(made: type) -> SimpleNamespace:
        return SimpleNamespace(options=lambda **options: calls.append(("options", options)) or SimpleNamespace(
            remote=lambda *arguments: Handle(made(*arguments))))

    for name, value in dict(
            calls=calls, is_initialized=lambda: False, init=lambda **options: calls.append(("init", options)),
            nodes=lambda: nodes, remote=remote, wait=lambda refs, num_returns: (refs[:1], refs[1:]), get=get,
            kill=lambda actor: calls.append(("kill",)), shutdown=lambda: calls.append(("shutdown",)),
            exceptions=SimpleNamespace(RayError=RayError)).items():
        setattr(ray, name, value)
    return ray


@pytest.fixture
def own_threads() -> Iterator[None]:
    """Afterwards this process has its number of threads again: actors that are played change it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("own_threads")
def test_ray_is_used_as_it_should_be(settings: BatchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = fake_ray([{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.chdir(tmp_path)
    found = trace_batch(PROMPTS, "batch", replace(settings, threads=2), workers=1, engine="ray", address="host:1")
    assert ([row["error"] for row in found.rows], [row["attempts"] for row in found.rows]) == ([None] * 3, [1, 3, 1])
    assert ray.calls[0][1]["address"] == "host:1"
    assert ray.calls[1] == ("options", {"num_cpus": 2, "num_gpus": 0})
    assert ray.calls[2:] == [("kill",), ("shutdown",)]
    with pytest.raises(ModelError, match="absent"):
        trace_batch(PROMPTS, "other", replace(settings, model="absent"), engine="ray")
    with pytest.raises(InputError, match="no node of the Ray cluster has 3 processors"):
        trace_batch(PROMPTS, "third", replace(settings, threads=3), engine="ray")
    assert ray.calls[-1] == ("shutdown",)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'gemma-circuits\[ray\]'"):
        trace_batch(PROMPTS, "third", settings, engine="ray")


def test_ray_itself(settings: BatchSettings, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    prompts = random_prompts(4)
    found = trace_batch(prompts, tmp_path / "ray", settings, workers=2, engine="ray")
    assert not found.failed
    single = trace_batch(prompts, tmp_path / "single", settings)
    for row, expected in zip(found.rows, single.rows, strict=True):
        assert comparable(row) == comparable(expected)
        assert_same_graph(tmp_path / "ray" / row["graph"], tmp_path / "single" / row["graph"])


def test_a_cluster_that_is_not_there(settings: BatchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = fake_ray([])

    def refuse(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nPlease")

    ray.init = refuse
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(InputError, match=r"cluster host:1: Could not find any running Ray instance\.$"):
        ray_crew.RayCrew(ray_crew.Job(str(tmp_path), settings, None), "host:1")
