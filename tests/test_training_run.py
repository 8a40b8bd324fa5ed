"""``train_transcoder`` from end to end on a tiny model, and settings files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import text_folder

import circuits
from circuits.errors import InputError
from circuits.features.file import FeatureData
from circuits.gemma3 import Gemma3
from circuits.training import run
from circuits.training.data_set import DataSetText
from circuits.training.run import train_transcoder
from circuits.training.settings import TrainSettings, read_config
from circuits.training.text import FileText, MixedText, SampledText
from circuits.training.text_config import text_from

SETTINGS = TrainSettings(features=24, span=3, active=4, epochs=3, batch=60, lr=3e-3, shards=2, sequences=24, length=16,
                         refit=2, refit_ridge=5.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    return circuits.load_model(text_folder(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(autouse=True)
def little_held_out_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HELD_OUT_TOKENS", 120)


@pytest.mark.parametrize("changes", [
    {}, {"span": 1, "skip": False}, {"sparsity": "jumprelu", "matryoshka": (0.5,), "refit": 0},
    {"decoder_vectors": 0.6, "features_kept": 20}, {"refit_span": 4}],
    ids=["clt", "plt", "jumprelu", "fewer vectors", "refit span"])
def test_trains_exports_measures_describes_and_traces(model: Gemma3, tmp_path: Path, changes: dict) -> None:
    settings = replace(SETTINGS, **changes)
    measured = train_transcoder(model, settings, tmp_path, SampledText(vocabulary=100), storage="float32")
    assert measured is not None
    config = json.loads((tmp_path / "transcoder" / "config.json").read_text())
    assert config["training"]["features"] == settings.features
    assert config["training"]["text"] == {"kind": "sampled", "seed": 0, "vocabulary": 100, "temperature": 0.9,
                                          "min_p": 0.001}
    assert config["quality"] == measured.numbers()
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["steps"] == 3 * 2 * (24 * 15 // 60)
    transcoders = circuits.open_transcoders(tmp_path / "transcoder")
    assert len(transcoders.output_layers(0)) == max(settings.span, settings.refit_span)
    assert transcoders.d_transcoder[0] == changes.get("features_kept", 24)
    assert transcoders.kind == ("plt" if settings.span == 1 else "clt")
    assert (transcoders.skip(0) is None) is not settings.skip
    outputs = torch.stack([transcoders.decoder_outputs(layer, torch.arange(20)).sum() for layer in range(2)])
    assert int(outputs.sum()) < 2 * 20 * 3 if changes.get("decoder_vectors") else bool((outputs > 0).all())
    graph = circuits.trace(model, transcoders, tokens=[2, 5, 9, 30, 77], coverage=1.0)
    assert graph.conservation < 1e-5
    data = FeatureData.open(tmp_path / "transcoder")
    assert sum(int(data.live(layer).sum()) for layer in range(model.n_layers)) > 0
    assert (tmp_path / "report.html").stat().st_size > 1e6


def test_refitting_does_no_harm_on_the_text_it_was_fitted_to(model: Gemma3, tmp_path: Path) -> None:
    fvu = {}
    for refit in (0, 2):
        measured = train_transcoder(model, replace(SETTINGS, refit=refit), tmp_path / str(refit), storage="float32",
                                    feature_data=False)
        assert measured is not None
        fvu[refit] = measured.fvu_mean
    assert fvu[2] < fvu[0]
    assert not (tmp_path / "2" / "transcoder" / "features.bin").exists()


def test_a_finished_run_is_exported_again_without_training(model: Gemma3, tmp_path: Path) -> None:
    first = train_transcoder(model, SETTINGS, tmp_path, storage="float32", feature_data=False)
    stages = []
    again = train_transcoder(model, SETTINGS, tmp_path, storage="float32", feature_data=False,
                             progress=lambda stage, done, total: stages.append(stage))
    assert first is not None
    assert again is not None
    assert again.numbers() == first.numbers()
    assert not any(stage.startswith("training") for stage in stages)


def test_a_quota_leaves_only_the_last_shards(model: Gemma3, tmp_path: Path) -> None:
    shard = 24 * 16 * 4 + 4 * 24 * 15 * model.n_layers * model.d_model
    settings = replace(SETTINGS, shards=4, refit=1)
    train_transcoder(model, settings, tmp_path, quota=int(2.1 * shard), storage="float32", feature_data=False)
    assert len(list((tmp_path / "activations").glob("shard_*.safetensors"))) == 1


def test_training_on_files_holds_a_shard_out(model: Gemma3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tokenizer:
        bos_token_id = 2

        def __call__(self, text: str, add_special_tokens: bool) -> dict:
            return {"input_ids": [5 + ord(c) % 50 for c in text]}

        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    named = Gemma3(model.hf, Tokenizer(), "tiny")
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 26)
    text = FileText([path])
    with pytest.raises(InputError, match="needs 4: lower shards to 2"):
        train_transcoder(named, replace(SETTINGS, shards=3), tmp_path / "run", text, feature_data=False)
    seen: list[list[list[int]]] = []
    monkeypatch.setattr(run, "evaluate_on_sequences",
                        lambda model, transcoders, sequences, **_: seen.append(sequences) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_transcoder(named, SETTINGS, tmp_path / "run", text, feature_data=False)
    assert len(seen[0]) == 7
    assert all(ids[0] == 2 and len(ids) == 16 for ids in seen[0])


def test_bad_storage_is_refused_before_any_work(model: Gemma3, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="storage is 'int3'"):
        train_transcoder(model, SETTINGS, tmp_path / "run", storage="int3")
    assert not (tmp_path / "run").exists()


def test_settings_from_a_file_with_flags_on_top(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text('features = 32\nlr = 1\nmatryoshka = [0.5]\n[[text]]\nkind = "sampled"\nvocabulary = 50\n')
    settings, tables = read_config(path, features=64, active=None)
    assert (settings.features, settings.lr, settings.matryoshka) == (64, 1.0, (0.5,))
    assert settings.active == TrainSettings().active
    assert text_from(tables) == SampledText(vocabulary=50)
    assert settings.prefixes == [32, 64]
    mixed = text_from([{"kind": "files", "paths": ["a.txt"], "weight": 2}, {"kind": "data set", "name": "org/x"}])
    assert mixed == MixedText([FileText([Path("a.txt")]), DataSetText("org/x")], [2.0, 1.0])


@pytest.mark.parametrize(("content", "message"), [
    ("features = 'many'", "features is 'many': expected a int"), ("width = 3", "width is not a training setting"),
    ("features =", "is not TOML"), ("span = 0", "span is 0: expected at least 1"),
    ("active = 9000", "of 1536 features: expected fewer"), ("lr = 2.0", "lr is 2.0"), ("beta1 = 1.0", "beta1 is 1.0"),
    ("sparsity = 'relu'", "expected batchtopk or jumprelu"), ("matryoshka = [0.5, 0.2]", "expected ascending shares"),
    ("matryoshka = 'half'", "expected a list of numbers"), ("decoder_penalty = -1.0", "decoder_penalty is -1.0"),
    ("refit = -1", "refit is -1"), ("skip = 1", "skip is 1: expected a bool"), ("seed = true", "seed is True")])
def test_bad_settings_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "train.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_config(path)


@pytest.mark.parametrize("tables", [[], 3, [{"kind": "web"}], [{"kind": "files"}], [{"kind": "sampled", "size": 3}],
                                    [{"kind": "sampled", "weight": 0}]])
def test_bad_text_tables_are_refused(tables: object) -> None:
    with pytest.raises(InputError, match=r"\[\[text\]\]"):
        text_from(tables)


def test_a_settings_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_config(tmp_path / "absent.toml")


def test_the_checkpoint_of_another_run_is_refused(model: Gemma3, tmp_path: Path) -> None:
    train_transcoder(model, SETTINGS, tmp_path, storage="float32", feature_data=False)
    with pytest.raises(InputError, match="other settings"):
        train_transcoder(model, replace(SETTINGS, features=32), tmp_path, storage="float32")
