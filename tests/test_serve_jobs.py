"""The queue: order, limit, progress, and cancelling a trace that waits, one that runs, and all when it closes."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from circuits.errors import InputError
from circuits.serve import jobs as jobs_module
from circuits.serve.jobs import MAX_WAITING, Job, Jobs, Report, Result
from circuits.serve.refusal import Refusal
from circuits.serve.schemas import TraceRequest, TraceState


class Work:
    """Traces that take one step for each permit."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.started: list[str] = []

    def __call__(self, request: TraceRequest, report: Report) -> Result:
        self.started.append(request.prompt)
        report("loading the model", 0, 1)
        if request.prompt.startswith("fail"):
            raise InputError("the prompt\nhas two lines")
        if request.prompt.startswith("break"):
            raise ZeroDivisionError("/a/secret/path")
        if request.prompt.startswith("fill"):
            raise MemoryError
        for step in range(3):
            self.permits.acquire()
            try:
                report("rows", step, 3)
            except Exception:  # code in between may catch what it likes
                pytest.fail("an except Exception caught the cancelling")
        return Result(f"{request.prompt}.safetensors", ["careful"])


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def jobs(work: Work) -> Iterator[Jobs]:
    made = Jobs(work)
    made.start()
    yield made
    work.permits.release(1000)
    assert made.close(10)


def ask(jobs: Jobs, prompt: str) -> Job:
    return jobs.submit(TraceRequest(prompt=prompt))


def until(jobs: Jobs, job: Job, reached: Callable[[TraceState], bool]) -> TraceState:
    deadline = time.monotonic() + 10
    while not reached(state := jobs.look(job)[0]):
        assert time.monotonic() < deadline, state
        time.sleep(0.005)
    return state


def ended(jobs: Jobs, job: Job) -> TraceState:
    return until(jobs, job, lambda state: state.finished is not None)


def running(jobs: Jobs, job: Job) -> TraceState:
    return until(jobs, job, lambda state: state.stage == "loading the model")


def test_one_after_the_other_in_order(jobs: Jobs, work: Work) -> None:
    first, *others = made = [ask(jobs, name) for name in "abcd"]
    running(jobs, first)
    assert [jobs.look(job)[0].ahead for job in others] == [1, 2, 3]
    assert [state.request.prompt for state in jobs.all()] == ["d", "c", "b", "a"]
    assert work.started == ["a"]
    work.permits.release(12)
    assert [ended(jobs, job).state for job in made] == ["done"] * 4
    assert work.started == ["a", "b", "c", "d"]
    last = ended(jobs, made[-1])
    assert (last.graph, last.warnings, last.error) == ("d.safetensors", ["careful"], None)


def test_progress_is_told_step_by_step(jobs: Jobs, work: Work) -> None:
    job = ask(jobs, "a")
    before = jobs.look(job)[1]
    running(jobs, job)
    for step in range(2):
        work.permits.release()
        state = until(jobs, job, lambda state, step=step: (state.stage, state.done) == ("rows", step))
        assert (state.total, state.state, state.finished) == (3, "running", None)
        assert jobs.look(job)[1] > before
        before = jobs.look(job)[1]


def test_no_more_than_eight_wait(jobs: Jobs, work: Work) -> None:
    running(jobs, ask(jobs, "first"))
    waiting = [ask(jobs, f"{i}") for i in range(MAX_WAITING)]
    with pytest.raises(Refusal, match="8 traces wait already") as refused:
        ask(jobs, "one too many")
    assert refused.value.status == 429
    jobs.cancel(waiting[3])
    ask(jobs, "fits now")
    assert len(jobs.all()) == 10


def test_cancel_while_waiting_and_while_running(jobs: Jobs, work: Work) -> None:
    first, second, third = (ask(jobs, name) for name in "abc")
    running(jobs, first)
    jobs.cancel(second)
    assert jobs.look(second)[0].state == "cancelled"
    assert jobs.look(third)[0].ahead == 1
    jobs.cancel(first)
    assert jobs.look(first)[0].stage == "cancelling"
    work.permits.release(1)
    assert ended(jobs, first).state == "cancelled"
    assert ended(jobs, first).graph is None
    work.permits.release(3)
    assert ended(jobs, third).state == "done"
    assert work.started == ["a", "c"]
    jobs.cancel(third)
    assert jobs.look(third)[0].state == "done"


def test_failures_are_one_sentence_and_the_next_trace_runs(jobs: Jobs, work: Work,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    made = [ask(jobs, name) for name in ("fail", "break", "fill", "a")]
    work.permits.release(3)
    failed = [ended(jobs, job) for job in made]
    assert [state.state for state in failed] == ["failed", "failed", "failed", "done"]
    assert failed[0].error == "the prompt"
    assert failed[1].error is not None
    assert failed[1].error.startswith("internal error (ZeroDivisionError): this is a bug")
    assert "secret" not in failed[1].error
    assert failed[2].error is not None
    assert "memory is full" in failed[2].error
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_ended_traces_are_forgotten_after_a_while(jobs: Jobs, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "KEPT", 2)
    made = [ask(jobs, f"fail {i}") for i in range(4)]
    ended(jobs, made[-1])
    assert [state.request.prompt for state in jobs.all()] == ["fail 3", "fail 2"]
    with pytest.raises(Refusal) as refused:
        jobs.find(made[0].id)
    assert refused.value.status == 404
    assert jobs.find(made[3].id) is made[3]


def test_close_cancels_everything(work: Work) -> None:
    jobs = Jobs(work)
    jobs.start()
    first, second = ask(jobs, "a"), ask(jobs, "b")
    running(jobs, first)
    assert jobs.close(0.05) is False  # it waits for its permit
    work.permits.release()
    assert jobs.close(10) is True
    assert [state.state for state in jobs.all()] == ["cancelled", "cancelled"]
    assert jobs.look(second)[0].ahead == 0
    with pytest.raises(Refusal, match="closing"):
        ask(jobs, "c")


def test_close_before_anything_was_asked(work: Work) -> None:
    assert Jobs(work).close(1) is True
