"""A batch in one process: what it writes, what a rerun does, and what it refuses."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batch_samples import PROMPTS, assert_same_graph, comparable, random_prompts, tiny_settings
from filelock import FileLock

import circuits
from circuits.batches.folder import BatchFolder
from circuits.batches.run import BatchResult, _memory, trace_batch
from circuits.batches.settings import BatchSettings
from circuits.errors import ConservationError, FormatError, InputError, ModelError

GOOD = PROMPTS
BAD = {"id": "bad", "prompt": "paris", "target": "paris paris"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> BatchSettings:
    return tiny_settings(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(settings: BatchSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BatchResult]:
    """A batch that nobody changes: three prompts with graphs and one that fails."""
    folder = tmp_path_factory.mktemp("whole") / "batch"
    return folder, trace_batch([*GOOD, BAD], folder, settings)


def summary(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "summary.jsonl").read_text().splitlines()]


def test_what_is_written(whole: tuple[Path, BatchResult]) -> None:
    folder, found = whole
    ids = ["00001", "ids", "named", "bad"]
    assert [row["id"] for row in found.rows] == ids
    assert summary(folder) == found.rows
    assert (found.traced, [row["id"] for row in found.failed]) == (4, ["bad"])
    assert sorted(p.name for p in (folder / "graphs").iterdir()) == [f"{i}.safetensors" for i in ids[:3]]
    assert sorted(p.name for p in (folder / "rows").iterdir()) == sorted(f"{i}.json" for i in ids)
    assert found.failed[0]["error"]["type"] == "InputError"
    assert "2 tokens" in found.failed[0]["error"]["message"]
    assert {key for row in found.rows for key in row} == set(found.rows[3])
    assert found.rows[0]["extra"] == {"kind": 7}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_graphs_are_those_of_a_single_trace(whole: tuple[Path, BatchResult], settings: BatchSettings, tmp_path: Path
                                            ) -> None:
    folder, found = whole
    model = circuits.load_model(settings.model, device="cpu")
    transcoders = circuits.open_transcoders(settings.transcoders)
    for prompt, row in zip(GOOD, found.rows[:3], strict=True):
        arguments = {key: prompt[key] for key in ("tokens", "target", "versus") if key in prompt}
        graph = circuits.trace(model, transcoders, prompt.get("prompt"), max_logits=3, **arguments)
        pruned = graph.prune(0.8, 0.98)
        pruned.save(tmp_path / "single.safetensors")
        assert_same_graph(folder / row["graph"], tmp_path / "single.safetensors")
        assert (row["nodes"], row["edges"], row["pruned_nodes"], row["pruned_edges"]) == (
            len(graph), graph.n_edges, len(pruned), pruned.n_edges)
        assert row["pruned_nodes"] < row["nodes"]
        for name in ("replacement", "completeness"):
            assert row[name] == graph.scores[name]
        assert (row["unexplored"], row["conservation"]) == (graph.unexplored, graph.conservation)
        assert row["conservation"] < 1e-4
        assert row["active_features"] == int((graph.nodes.kind == "feature").sum())
        assert row["expanded_features"] == int(graph.nodes.expanded[graph.nodes.kind == "feature"].sum())
        assert row["n_tokens"] == len(graph.header.tokens)
        assert [target["token"] for target in row["targets"]] == (
            [None] if "versus" in prompt else graph.nodes.token[graph.target_nodes].tolist())
    contrast = found.rows[2]["targets"]
    assert contrast == [{"text": pruned.nodes.label[pruned.target_nodes[0]], "token": None, "probability": None}]


def test_answers(whole: tuple[Path, BatchResult], settings: BatchSettings, tmp_path: Path) -> None:
    model = circuits.load_model(settings.model, device="cpu")
    tokens = GOOD[1]["tokens"]
    probabilities = model.logits_with_mlps(torch.tensor([tokens]))[0, -1].softmax(-1)
    order = probabilities.argsort(descending=True).tolist()
    row = whole[1].rows[1]
    assert row["answer_rank"] == 1 + order.index(3)
    assert row["answer_probability"] == pytest.approx(float(probabilities[3]), rel=1e-4)
    assert row["correct"] is False
    assert whole[1].rows[2]["correct"] is None
    asked = [{"tokens": tokens, "answer": order[0]}, {"tokens": tokens, "answer": order[1]},
             {"tokens": tokens, "answer": 128}, {"tokens": tokens, "answer": "paris paris"}]
    rows = trace_batch(asked, tmp_path, replace(settings, max_features=1)).rows
    assert [(row["answer_rank"], row["correct"]) for row in rows[:2]] == [(1, True), (2, False)]
    assert "expected 0 to 127" in rows[2]["error"]["message"]
    assert "answer cannot be measured" in rows[3]["error"]["message"]


def test_a_rerun_skips_what_is_done_and_tries_again_what_failed(settings: BatchSettings, tmp_path: Path) -> None:
    first = trace_batch([*GOOD, BAD], tmp_path, settings)
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "graphs").iterdir()}
    again = trace_batch([*GOOD, BAD], tmp_path, settings)
    assert (again.traced, again.failed[0]["attempts"]) == (1, 2)
    (tmp_path / "graphs" / "ids.safetensors").unlink()
    third = trace_batch([*GOOD, BAD | {"target": "paris"}], tmp_path, settings)
    assert (third.traced, third.failed, third.rows[3]["attempts"]) == (2, [], 3)
    for row in (first.rows[0], first.rows[2]):
        assert (tmp_path / row["graph"]).stat().st_mtime_ns == stamps[Path(row["graph"]).name]
    assert [comparable(row) for row in third.rows[:3]] == [comparable(row) for row in first.rows[:3]]


def test_nothing_is_loaded_where_all_is_done(whole: tuple[Path, BatchResult], settings: BatchSettings,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = whole
    monkeypatch.setattr("circuits.batches.run.PromptTracer", None)
    changed = [GOOD[1], GOOD[0] | {"family": "other", "kind": 8}]
    again = trace_batch([changed[0], changed[1] | {"id": "00001"}], folder, settings)
    assert again.traced == 0
    assert again.rows == [found.rows[1], found.rows[0] | {"family": "other", "extra": {"kind": 8}}]
    assert summary(folder) == again.rows
    trace_batch(GOOD, folder, settings)


def test_an_interrupted_batch_goes_on(settings: BatchSettings, whole: tuple[Path, BatchResult], tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "prompts" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace_batch(GOOD, tmp_path, settings, progress=interrupt)
    (tmp_path / "graphs" / ".x.part").touch()
    said = []
    found = trace_batch(GOOD, tmp_path, settings, progress=lambda *what: said.append(what))
    assert found.traced == 1
    assert [what[1:] for what in said if what[0] == "prompts"] == [(2, 3), (3, 3)]
    assert not list(tmp_path.rglob("*.part"))
    for row in found.rows:
        assert_same_graph(tmp_path / row["graph"], whole[0] / row["graph"])


def test_results_do_not_depend_on_what_was_traced_before(settings: BatchSettings, tmp_path: Path) -> None:
    prompts = [prompt | {"id": f"p{i}"} for i, prompt in enumerate(random_prompts(4, seed=1))]
    forth = trace_batch(prompts, tmp_path / "forth", settings)
    back = trace_batch(prompts[::-1], tmp_path / "back", settings)
    assert not forth.failed
    for row, other in zip(forth.rows, back.rows[::-1], strict=True):
        assert comparable(row) == comparable(other)
        assert_same_graph(tmp_path / "forth" / row["graph"], tmp_path / "back" / other["graph"])


def test_trouble_of_any_kind_stops_no_other_prompt(settings: BatchSettings, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    trace, troubles = circuits.trace, [ConservationError("off by 1"), MemoryError(), ZeroDivisionError("x")]

    def troubled(*arguments, **settings):
        if len(troubles) and settings["tokens"][1] == 99:
            raise troubles.pop(0)
        return trace(*arguments, **settings)

    monkeypatch.setattr(circuits, "trace", troubled)
    found = trace_batch([{"tokens": [2, 99, 5]}] * 3 + [{"tokens": [2, 5, 5]}], tmp_path, settings)
    assert [row["error"] for row in found.rows] == [
        {"type": "ConservationError", "message": "off by 1"}, {"type": "MemoryError", "message": "MemoryError"},
        {"type": "ZeroDivisionError", "message": "x"}, None]
    assert trace_batch([{"tokens": [2, 99, 5]}] * 3, tmp_path, settings).failed == []


@pytest.mark.parametrize(("changes", "message"), [
    ({"coverage": 0.5}, "coverage was 0.95, is 0.5"), ({"model": "other"}, "is 'other'"),
    ({"threads": 2}, "threads was 1, is 2"), ({"prune": False}, "prune was True, is False")])
def test_other_settings_are_refused(whole: tuple[Path, BatchResult], settings: BatchSettings, changes: dict,
                                    message: str) -> None:
    with pytest.raises(InputError, match=message):
        trace_batch(GOOD, whole[0], replace(settings, **changes))


def test_other_versions_are_refused(whole: tuple[Path, BatchResult], settings: BatchSettings,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "0.0")
    with pytest.raises(InputError, match=r"torch was .*, is '0\.0'"):
        trace_batch(GOOD, whole[0], settings)


@pytest.mark.parametrize("change", [{"prompt": "paris x mo"}, {"target": " x"}, {"answer": "mo"}])
def test_another_prompt_under_an_id_that_is_done_is_refused(whole: tuple[Path, BatchResult], settings: BatchSettings,
                                                            change: dict) -> None:
    with pytest.raises(InputError, match=f"prompt '00001' is not the one .*{next(iter(change))} was"):
        trace_batch([GOOD[0] | change], whole[0], settings)


def test_settings_of_a_folder_without_rows_do_not_bind(settings: BatchSettings, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        trace_batch(GOOD, tmp_path, replace(settings, model=str(tmp_path / "absent")))
    found = trace_batch(GOOD[1:2], tmp_path, settings)
    assert not found.failed
    assert json.loads((tmp_path / "batch.json").read_text())["settings"]["model"] == settings.model


def test_threads(settings: BatchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's number, and afterwards this process's own again."""
    before = torch.get_num_threads()
    inside = []
    trace_batch(GOOD[:1], tmp_path, replace(settings, threads=3),
                progress=lambda *_: inside.append(torch.get_num_threads()))
    assert (inside[-1], torch.get_num_threads()) == (3, before)
    inside.clear()
    trace_batch(GOOD[:2], tmp_path, replace(settings, threads=None),
                progress=lambda *_: inside.append(torch.get_num_threads()))
    assert (inside[-1], torch.get_num_threads()) == (3, before)
    trace_batch(GOOD[:1], tmp_path / "new", replace(settings, threads=None))
    assert json.loads((tmp_path / "new" / "batch.json").read_text())["settings"]["threads"] == before


def test_the_memory_is_fixed_at_the_start(settings: BatchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                          ) -> None:
    free = iter([6 * 2**30, 2 * 2**30])
    monkeypatch.setattr("circuits.planning.free_memory", lambda device: next(free))
    monkeypatch.setattr("circuits.planning.used_memory", lambda device: 2**30)
    seen, trace = [], circuits.trace
    monkeypatch.setattr(circuits, "trace", lambda *a, **k: seen.append(k["memory"]) or trace(*a, **k))
    trace_batch(GOOD[:2], tmp_path, settings)
    trace_batch(GOOD, tmp_path, settings, memory=5 * 2**30)
    assert seen == [7 * 2**30, 7 * 2**30, 5 * 2**30]
    assert _memory(settings, 3, "ray") == 2**30
    assert _memory(replace(settings, device="cuda"), 3, "ray") is None


def test_unpruned_with_heads_and_limited(settings: BatchSettings, tmp_path: Path) -> None:
    found = trace_batch(GOOD, tmp_path, replace(settings, prune=False, heads=True), limit=1)
    (row,) = found.rows
    graph = circuits.graphs.load(tmp_path / row["graph"])
    assert (len(graph), graph.n_edges) == (row["nodes"], row["edges"]) == (row["pruned_nodes"], row["pruned_edges"])
    assert graph.heads is not None
    assert len(graph.heads.pair_view) > 0


def test_one_batch_at_a_time(settings: BatchSettings, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="another batch works"):
        trace_batch(GOOD, tmp_path, settings)


def test_damaged_files_are_named(whole: tuple[Path, BatchResult], settings: BatchSettings, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "ids.json").write_text("{}")
    (tmp_path / "batch.json").write_text('{"format": "other"}')
    with pytest.raises(FormatError, match=r"batch\.json is not of a batch"):
        trace_batch(GOOD, tmp_path, settings)
    (tmp_path / "batch.json").write_text((whole[0] / "batch.json").read_text())
    with pytest.raises(FormatError, match=r"ids\.json is not a row"):
        trace_batch(GOOD, tmp_path, settings)
    for text in ("{", "[]"):
        (tmp_path / "rows" / "ids.json").write_text(text)
        with pytest.raises(FormatError, match=r"ids\.json is damaged"):
            trace_batch(GOOD, tmp_path, settings)


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    BatchFolder(tmp_path).write_row({"id": "a", "x": float("nan"), "y": [float("inf"), {"z": -float("inf")}], "n": 1.5})
    assert json.loads((tmp_path / "rows" / "a.json").read_text()) == {"id": "a", "x": None, "y": [None, {"z": None}],
                                                                      "n": 1.5}


@pytest.mark.parametrize(("arguments", "message"), [
    ({"workers": 0}, "workers is 0"), ({"retries": -1}, "retries is -1"), ({"limit": 0}, "limit is 0"),
    ({"memory": 0}, "memory is 0"), ({"engine": "slurm"}, "local or ray"), ({"address": "auto"}, "with engine ray")])
def test_bad_arguments(settings: BatchSettings, tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trace_batch(GOOD, tmp_path / "new", settings, **arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("values", "message"), [
    ({"coverage": 0}, "coverage is 0"), ({"logit_prob": 1.5}, "logit_prob is 1.5"),
    ({"max_features": 0}, "max_features is 0"), ({"max_logits": 0}, "max_logits is 0"),
    ({"threads": 0}, "threads is 0"), ({"node_threshold": 2}, "node_threshold is 2"), ({"dtype": "int8"}, "int8"),
    ({"model_dtype": "mixed"}, "mixed")])
def test_bad_settings(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchSettings(**values)


def test_a_folder_that_cannot_be(settings: BatchSettings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        trace_batch(GOOD, tmp_path / "file", settings)
