"""Cached activations: what they are of, quotas, several makers, makers that are killed, and files of other runs."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from text_sources import DOCUMENTS, jsonl, with_tokenizer
from tiny_models import text_folder

import circuits
from circuits.errors import FormatError, InputError
from circuits.gemma3 import Gemma3
from circuits.training import shard_folder
from circuits.training.activations import BATCH_BYTES, ActivationStore
from circuits.training.sampling import sample_shard
from circuits.training.shard_folder import LOCKS
from circuits.training.text import FileText, SampledText, Shard, ShardPlan, Text

SIZE = {"sequences": 4, "length": 9}
SAMPLED = SampledText(vocabulary=0)
forks = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked with the model in them")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    folder = text_folder(tmp_path_factory.mktemp("model"))
    return with_tokenizer(circuits.load_model(folder, device="cpu"))


@pytest.fixture
def files(tmp_path: Path) -> FileText:
    return FileText([jsonl(tmp_path / "text.jsonl", DOCUMENTS)])


@pytest.fixture
def store(model: Gemma3, files: FileText, tmp_path: Path) -> ActivationStore:
    return ActivationStore(model, tmp_path / "shards", files, **SIZE)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def same(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_activations_are_the_models(store: ActivationStore, model: Gemma3, tmp_path: Path) -> None:
    mlp_in, mlp_out = store.read(1)
    tokens = store.tokens(1)
    assert tokens.shape == (4, 9)
    for found, expected in zip((mlp_in, mlp_out), model.mlp_boundaries(tokens), strict=True):
        assert found.shape == (store.tokens_per_shard, store.n_layers, store.d_model) == (32, 4, 32)
        assert torch.equal(found, expected[:, 1:].flatten(0, 1).bfloat16())
    assert names(tmp_path / "shards") == ["shard_00001.safetensors"]
    size = (tmp_path / "shards" / "shard_00001.safetensors").stat().st_size
    assert 0 < size - store.shard_bytes < 2000
    assert store.shards_in_quota is None
    assert store.shards == store.text.open(ShardPlan(model, 4, 9, tmp_path)).shards
    assert store.describe()["text"]["files"][0]["name"] == "text.jsonl"
    assert (store.describe()["tokens_per_shard"], store.describe()["masked_prefix"]) == (32, 1)


@pytest.mark.parametrize("kind", ["files", "sampled"])
def test_streaming_equals_cached(kind: str, model: Gemma3, files: FileText, tmp_path: Path) -> None:
    text: Text = files if kind == "files" else SAMPLED
    cached = ActivationStore(model, tmp_path / "cached", text, **SIZE)
    streamed = ActivationStore(model, tmp_path / "streamed", text, quota=0, **SIZE)
    for index in (2, 0):
        assert same(streamed.read(index), cached.read(index))
        assert torch.equal(streamed.tokens(index), cached.tokens(index))
    streamed.make(1)
    assert list((tmp_path / "streamed").iterdir()) == []
    assert streamed.shards_in_quota == 1
    kept = streamed.read(0)[0]
    assert streamed.read(0)[0].data_ptr() == kept.data_ptr()
    streamed.drop(0)
    assert streamed.read(0)[0].data_ptr() != kept.data_ptr()


def test_activations_come_in_batches(model: Gemma3, files: FileText, tmp_path: Path, monkeypatch) -> None:
    whole = ActivationStore(model, tmp_path / "whole", files, quota=0, **SIZE).read(0)
    monkeypatch.setattr("circuits.training.activations.BATCH_BYTES", 3 * 4 * 9 * 4 * 32 * 4)
    calls: list[tuple[str, int, int]] = []
    parts = ActivationStore(model, tmp_path / "parts", files, quota=0, **SIZE,
                            progress=lambda *report: calls.append(report)).read(0)
    assert [call for call in calls if call[0] == "activations of the text"] == [
        ("activations of the text", 0, 4), ("activations of the text", 3, 4)]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0.01, atol=1e-3)
    assert BATCH_BYTES < 1e9


def test_a_quota_drops_what_was_made_longest_ago(model: Gemma3, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    size = ActivationStore(model, folder, SAMPLED, **SIZE).shard_bytes
    store = ActivationStore(model, folder, SAMPLED, quota=2 * size + size // 2, **SIZE)
    assert store.shards_in_quota == 2
    first = tuple(t.clone() for t in store.read(1))
    for index, kept in ((0, [0, 1]), (1 + LOCKS, [0, 1 + LOCKS]), (1, [1, 1 + LOCKS])):
        time.sleep(0.02)  # files are told apart by the time they were made
        held = store.read(index)
        assert names(folder) == [f"shard_{i:05d}.safetensors" for i in kept]
    assert same(held, first)
    store.drop(1)
    store.drop(1)
    assert names(folder) == [f"shard_{1 + LOCKS:05d}.safetensors"]
    with pytest.raises(InputError, match=rf"quota is {size - 1} bytes, one shard .* takes {size}"):
        ActivationStore(model, folder, SAMPLED, quota=size - 1, **SIZE)
    with pytest.raises(InputError, match="quota"):
        ActivationStore(model, folder, SAMPLED, quota=-1, **SIZE)


@pytest.mark.parametrize("size", [{"sequences": 0}, {"length": 1}, {"length": 65}])
def test_impossible_sizes(size: dict, model: Gemma3, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{next(iter(size))} is {next(iter(size.values()))}"):
        ActivationStore(model, tmp_path, SAMPLED, **{**SIZE, **size})


def test_files_of_earlier_versions_are_used(model: Gemma3, tmp_path: Path) -> None:
    made = sample_shard(model, [2], **SIZE, seed=77)
    path = tmp_path / "shard_00000.safetensors"
    save_file(made, path)
    store = ActivationStore(model, tmp_path, SAMPLED, **SIZE)
    assert same(store.read(0), (made["mlp_in"].flatten(0, 1), made["mlp_out"].flatten(0, 1)))
    assert torch.equal(store.tokens(0), made["tokens"])
    with pytest.raises(InputError, match="holds 4 sequences of 9 tokens, 1 of them masked; expected 4 of 8"):
        ActivationStore(model, tmp_path, SAMPLED, sequences=4, length=8).read(0)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FormatError, match="not a whole shard"):
        store.read(0)
    save_file({"tokens": made["tokens"]}, path)
    with pytest.raises(FormatError, match="not a whole shard"):
        store.read(0)


def test_files_of_other_runs_are_refused(store: ActivationStore, tmp_path: Path) -> None:
    store.make(0)
    folder, model, files = tmp_path / "shards", store.model, store.text
    with safe_open(folder / "shard_00000.safetensors", "pt") as file:
        assert '"kind": "files"' in file.metadata()["text"]
    assert same(ActivationStore(model, folder, files, **SIZE).read(0), store.read(0))
    with pytest.raises(InputError, match="of another text"):
        ActivationStore(model, folder, FileText(files.paths, seed=1), **SIZE).read(0)
    other = with_tokenizer(circuits.load_model(text_folder(tmp_path / "other", seed=1), device="cpu"))
    with pytest.raises(InputError, match="another model than tiny"):
        ActivationStore(other, folder, files, **SIZE).read(0)
    wide = with_tokenizer(circuits.load_model(text_folder(tmp_path / "wide", hidden_size=24), device="cpu"))
    save_file(load_file(folder / "shard_00000.safetensors"), folder / "shard_00001.safetensors")
    with pytest.raises(InputError, match="holds 4 layers of width 32, the model has 4 of 24: give an empty folder"):
        ActivationStore(wide, folder, files, **SIZE).read(1)


def test_a_model_in_another_dtype_is_the_same_model(model: Gemma3, tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "model")
    ActivationStore(model, tmp_path / "shards", SAMPLED, **SIZE).make(0)
    half = circuits.load_model(folder, dtype="bfloat16", device="cpu")
    assert len(ActivationStore(half, tmp_path / "shards", SAMPLED, **SIZE).read(0)[0]) == 32


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
                                   SafetensorError("I/O error: No space left on device (os error 28)")])
def test_a_full_disk_names_the_quota(error: Exception, store: ActivationStore, tmp_path: Path, monkeypatch) -> None:
    def fail(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(shard_folder, "save_file", fail)
    with pytest.raises(InputError, match=r"no disk space left for .*shard_00003.* smaller quota"):
        store.read(3)
    assert names(tmp_path / "shards") == []
    monkeypatch.undo()
    assert len(store.read(3)[0]) == 32


def test_folders_that_cannot_be_written(model: Gemma3, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        ActivationStore(model, tmp_path / "file" / "shards", SAMPLED, **SIZE)
    (tmp_path / "locks").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        ActivationStore(model, tmp_path, SAMPLED, **SIZE).make(0)


@dataclass(frozen=True)
class LoggedText:
    """Sampled text that notes every shard it makes."""

    log: Path

    def describe(self) -> dict:
        return SAMPLED.describe()

    def open(self, plan: ShardPlan) -> "LoggedText":
        object.__setattr__(self, "opened", SAMPLED.open(plan))
        return self

    shards = None

    def read(self, index: int, device: torch.device) -> Shard:
        with open(self.log, "a") as log:
            log.write(f"{index}\n")
        return self.opened.read(index, device)


def forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)  # the parent's threads are not in this process
        work()
        os._exit(0)
    finally:
        os._exit(1)


@forks
def test_several_makers_make_every_shard_once(model: Gemma3, tmp_path: Path) -> None:
    folder, text = tmp_path / "shards", LoggedText(tmp_path / "log")
    alone = ActivationStore(model, tmp_path / "alone", SAMPLED, **SIZE)

    def work() -> None:
        mine = ActivationStore(model, folder, text, **SIZE)
        for index in (0, 1, 2):
            assert same(mine.read(index), alone.read(index))

    for index in range(3):
        alone.make(index)
    makers = [forked(work) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in makers] == [0, 0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "2"]
    assert names(folder) == [f"shard_{i:05d}.safetensors" for i in range(3)]


@forks
def test_makers_share_a_quota(model: Gemma3, tmp_path: Path) -> None:
    quota = 2 * ActivationStore(model, tmp_path, SAMPLED, **SIZE).shard_bytes
    alone = ActivationStore(model, tmp_path, SAMPLED, quota=0, **SIZE)
    expected = [alone.read(index) for index in range(5)]

    def work() -> None:
        mine = ActivationStore(model, tmp_path / "shards", SAMPLED, quota=quota, **SIZE)
        for index in range(5):
            assert same(mine.read(index), expected[index])
            assert len(list((tmp_path / "shards").glob("shard_*"))) <= 2

    makers = [forked(work) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid in makers] == [0, 0, 0]


@forks
def test_a_killed_maker_leaves_nothing_that_counts(model: Gemma3, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "shards"
    whole = save_file

    def half(tensors: dict, path: Path, metadata: dict) -> None:
        whole(tensors, path, metadata)
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def work(index: int) -> Callable[[], None]:
        def make() -> None:
            shard_folder.save_file = half
            ActivationStore(model, folder, SAMPLED, **SIZE).make(index)
        return make

    for index in (0, 7):
        assert os.waitpid(forked(work(index)), 0)[1] == signal.SIGKILL
    assert names(folder) == ["shard_00007.writing"]  # making 7 removed what was left of 0
    store = ActivationStore(model, folder, SAMPLED, quota=3 * ActivationStore(
        model, folder, SAMPLED, **SIZE).shard_bytes, **SIZE)
    found = store.read(0)
    assert names(folder) == ["shard_00000.safetensors"]
    assert same(found, ActivationStore(model, tmp_path / "alone", SAMPLED, **SIZE).read(0))
