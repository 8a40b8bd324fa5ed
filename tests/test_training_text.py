"""Training text: files, data sets, sampled text and mixes give the tokens their settings say, whole or resumed."""

import hashlib
import json
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from text_sources import DOCUMENTS, FakeDataSets, jsonl, packed, with_tokenizer
from tiny_models import text_folder

import circuits
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.training.data_set import DataSetText
from circuits.training.sampling import common_vocabulary, sample_shard
from circuits.training.text import FileText, MixedText, SampledText, ShardPlan, Text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    return circuits.load_model(text_folder(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture
def plan(bare: Gemma3, tmp_path: Path) -> ShardPlan:
    return ShardPlan(with_tokenizer(bare), sequences=3, length=11, folder=tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeDataSets:
    fake = FakeDataSets([{"text": document, "id": 7} for document in [*DOCUMENTS, None]])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


def read(text: Text, plan: ShardPlan, index: int) -> torch.Tensor:
    return text.open(plan).read(index, CPU).tokens


def rows(shards: list[torch.Tensor]) -> list[list[int]]:
    return sorted(row for shard in shards for row in shard.tolist())


def cut(tokens: list[int], room: int = 10) -> list[list[int]]:
    return [[2, *tokens[i:i + room]] for i in range(0, len(tokens) - room + 1, room)]


def test_files_are_packed_cut_and_shuffled(plan: ShardPlan, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    plain = tmp_path / "b.txt"
    plain.write_text("plain text, one document of all of it, to the end")
    text = FileText([path, plain], seed=4)
    opened = text.open(plan)
    expected = cut(packed([*DOCUMENTS, plain.read_text()]))
    assert opened.shards == len(expected) // 3
    shards = [opened.read(i, CPU).tokens for i in range(opened.shards)]
    assert all(shard.shape == (3, 11) and shard.dtype == torch.int32 for shard in shards)
    found = rows(shards)
    assert len(found) == len(expected) // 3 * 3
    assert all(row in expected for row in found)
    assert [row for shard in shards for row in shard.tolist()] != expected[:len(found)]
    assert torch.equal(read(FileText([path, plain], seed=4), plan, 2), shards[2])
    assert not torch.equal(read(FileText([path, plain], seed=5), plan, 2), shards[2])
    with pytest.raises(InputError, match=rf"a.jsonl, b.txt fill {opened.shards} shards of 3 sequences of 11 tokens"):
        opened.read(opened.shards, CPU)


def test_files_are_described_by_what_they_hold(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    content = path.read_bytes()
    assert FileText([path], seed=3).describe() == {"kind": "files", "seed": 3, "files": [
        {"name": "a.jsonl", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}]}
    with pytest.raises(InputError, match="cannot read"):
        FileText([tmp_path / "absent.txt"]).describe()
    with pytest.raises(InputError, match="at least one file"):
        FileText([])


def test_files_that_cannot_be_used(bare: Gemma3, plan: ShardPlan, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        FileText([jsonl(tmp_path / "a.jsonl", DOCUMENTS)]).open(ShardPlan(bare, 3, 11, tmp_path))
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"\xe9t\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        FileText([latin]).open(plan)
    half = tmp_path / "half.jsonl"
    half.write_text('{"text": "' + "half a character \\ud800 " * 4 + '"}\n')
    assert FileText([half]).open(plan).shards == 2


def test_chat_models_start_with_the_chat_template(bare: Gemma3, tmp_path: Path) -> None:
    plan = ShardPlan(with_tokenizer(bare, "tiny-it"), sequences=2, length=11, folder=tmp_path)
    shard = read(FileText([jsonl(tmp_path / "a.jsonl", DOCUMENTS)]), plan, 0)
    assert shard[:, :4].tolist() == [[2, 105, 2364, 107]] * 2
    assert [2, *shard[0, 4:].tolist()] in cut(packed(DOCUMENTS), room=7)


def test_sampled_text_comes_with_its_activations(plan: ShardPlan) -> None:
    text = SampledText(seed=5, vocabulary=20, temperature=1.5, min_p=0.01)
    stages = []
    noted = ShardPlan(plan.model, 3, 11, plan.folder, lambda stage, done, total: stages.append(stage))
    shard = text.open(noted).read(1, CPU)
    vocabulary, _ = common_vocabulary(plan.model, [2], size=20, seed=5, min_p=0.01)
    assert (shard.tokens[:, 0] == 2).all()
    assert set(shard.tokens[:, 1:].flatten().tolist()) <= set(vocabulary.tolist())
    again = sample_shard(plan.model, [2], sequences=3, length=11, seed=6 * 1_000_003 + 1, vocabulary=vocabulary,
                         temperature=1.5, min_p=0.01)
    assert torch.equal(again["tokens"], shard.tokens)
    for found, expected in zip((shard.mlp_in, shard.mlp_out), plan.model.mlp_boundaries(shard.tokens), strict=True):
        assert found is not None
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected[:, 1:], rtol=0.01, atol=0.001)
    assert set(stages) == {"choosing the sampling vocabulary", "sampling text"}
    assert not torch.equal(read(text, plan, 0), shard.tokens)
    assert not torch.equal(read(SampledText(seed=6, vocabulary=20), plan, 1), shard.tokens)
    assert text.describe() == {"kind": "sampled", "seed": 5, "vocabulary": 20, "temperature": 1.5, "min_p": 0.01}


def test_temperature_and_min_p_shape_the_sample(plan: ShardPlan) -> None:
    cold = read(SampledText(vocabulary=0, temperature=0.01), plan, 0)
    greedy = torch.tensor([[2]] * 3)
    for _ in range(10):
        greedy = torch.cat([greedy, plan.model.logits_with_mlps(greedy)[:, -1:].argmax(-1)], 1)
    assert torch.equal(cold, greedy.int())
    assert torch.equal(read(SampledText(vocabulary=0, min_p=0.999), plan, 0), greedy.int())
    assert not torch.equal(read(SampledText(vocabulary=0), plan, 0), greedy.int())


@pytest.mark.parametrize(("settings", "message"), [({"temperature": 0.0}, "temperature"), ({"min_p": 1.0}, "min_p"),
                                                   ({"vocabulary": -1}, "vocabulary")])
def test_sampling_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SampledText(**settings)


def test_a_data_set_is_packed_in_order(plan: ShardPlan, hub: FakeDataSets) -> None:
    text = DataSetText("org/words", "validation", "text", revision="abc", subset="en")
    opened, expected = text.open(plan), cut(packed(DOCUMENTS))
    shards = [opened.read(i, CPU).tokens for i in range(len(expected) // 3)]
    for i, shard in enumerate(shards):
        assert rows([shard]) == sorted(expected[3 * i:3 * i + 3])
    assert hub.opened == [(("org/words", "en"), {"split": "validation", "revision": "abc", "streaming": True})]
    with pytest.raises(InputError, match=f"org/words .validation. fills {len(shards)} shards of 3 sequences of 11"):
        opened.read(len(shards), CPU)
    with pytest.raises(InputError, match=f"fills {len(shards)} shards"):
        text.open(plan).read(len(shards) + 20, CPU)
    assert json.loads(json.dumps(text.describe())) == {
        "kind": "data set", "name": "org/words", "split": "validation", "column": "text", "revision": "abc",
        "subset": "en", "seed": 0}


def test_a_data_set_goes_on_where_it_was(plan: ShardPlan, hub: FakeDataSets, tmp_path: Path) -> None:
    text = DataSetText("org/words", seed=3)
    opened = text.open(plan)
    whole = [opened.read(i, CPU).tokens for i in range(8)]
    note = next(tmp_path.glob("documents_*.json"))
    starts = json.loads(note.read_text())["starts"]
    places = [[number, token] for number, document in enumerate(DOCUMENTS) for token in range(len(packed([document])))]
    assert starts == [places[30 * i] for i in range(9)]
    hub.yielded = 0
    assert torch.equal(read(text, plan, 7), whole[7])
    assert hub.yielded <= 2  # from the document that shard 7 starts in
    for damaged in ("", "{", '{"starts": 3}'):
        note.write_text(damaged)
        assert torch.equal(read(text, plan, 5), whole[5])
    note.unlink()
    again = text.open(plan)
    assert all(torch.equal(again.read(i, CPU).tokens, whole[i]) for i in (6, 2, 3, 0, 7))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".lock"]


def test_data_sets_that_cannot_be_used(plan: ShardPlan, hub: FakeDataSets, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no column 'body': expected one of text, id"):
        read(DataSetText("org/words", column="body"), plan, 0)
    with pytest.raises(InputError, match="row 0: 'id' holds int"):
        read(DataSetText("org/words", column="id"), plan, 0)
    hub.rows[1] = OSError("the hub is away")
    with pytest.raises(InputError, match="org/words cannot be read: the hub is away"):
        read(DataSetText("org/words"), plan, 2)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"gemma-circuits\[datasets\]"):
        read(DataSetText("org/words"), plan, 0)


def test_the_real_library_gives_the_same(plan: ShardPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("datasets")
    folder = tmp_path / "words"
    folder.mkdir()
    jsonl(folder / "train.jsonl", DOCUMENTS)
    text, expected = DataSetText(str(folder)), cut(packed(DOCUMENTS))
    assert text.describe()["name"] == "words"
    for i in (4, 0, 1):
        assert rows([read(text, plan, i)]) == sorted(expected[3 * i:3 * i + 3])
    with pytest.raises(InputError, match=f"fills {len(expected) // 3} shards"):
        read(text, plan, 50)


def test_a_mix_gives_every_text_its_share(plan: ShardPlan, tmp_path: Path) -> None:
    files = FileText([jsonl(tmp_path / "a.jsonl", DOCUMENTS)])
    mix = MixedText([SampledText(vocabulary=0), files], [7, 3])
    sources = list(islice(mix.sources(), 100))
    for made in range(1, 101):
        given = sum(part == 1 for part, _ in sources[:made])
        assert abs(given - 0.3 * made) < 1
        assert sources[made - 1][1] == [made - given, given][sources[made - 1][0]] - 1
    opened = mix.open(plan)
    end = files.open(plan).shards
    assert opened.shards == next(i for i, (part, place) in enumerate(sources) if (part, place) == (1, end))
    for index in range(4):
        part, place = sources[index]
        assert torch.equal(opened.read(index, CPU).tokens, read(mix.texts[part], plan, place))
    assert MixedText([SampledText()], [1.0]).open(plan).shards is None
    assert mix.describe() == {"kind": "mix", "texts": [{"weight": 7, **mix.texts[0].describe()},
                                                       {"weight": 3, **files.describe()}]}
    with pytest.raises(InputError, match="above 0"):
        MixedText([files], [0.0])
    with pytest.raises(InputError, match="one for each"):
        MixedText([files], [1.0, 2.0])
