"""``circuits features``: cards, collecting, importing, and one clear error for bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from test_prompt import write_tokenizer
from tiny_models import text_folder
from transcoder_folders import dictionary, gemma_scope_plt, native_folder

import circuits
from circuits.commands.features import features
from circuits.errors import CircuitsError, InputError
from circuits.features import FeatureData, feature_data
from circuits.graphs.neuronpedia_features import pair_index, write_feature

TEXT = "paris x mo paris paris x " * 40
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    app = typer.Typer()
    app.command()(features)

    def run(*arguments: object) -> str:
        capfd.readouterr()
        app(list(map(str, arguments)), standalone_mode=False)
        return capfd.readouterr().out

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = text_folder(tmp_path_factory.mktemp("model") / "tiny")
    write_tokenizer(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(native_folder(tmp_path / "set", dictionary(span=2, n_layers=4, features=20, d_model=32)))


@pytest.fixture
def collected(run: Run, folder: Path, model: Path, tmp_path: Path) -> Path:
    (tmp_path / "t.txt").write_text(TEXT)
    said = run(folder, "--collect", "--text", "t.txt", "--model", model, "--length", 12, "--device", "cpu")
    assert f"wrote {folder / 'features.bin'}" in said.replace("\n", "")
    return folder


def test_a_card(run: Run, collected: Path) -> None:
    data = feature_data(circuits.open_transcoders(collected))
    assert data is not None
    layer, i = 2, int(data.live(2)[0])
    known = data.read(layer, i)
    shown = run(collected, f"{layer}/{i}", "--json", "c.json")
    assert shown.startswith(f"{layer}/{i}  ")
    assert f"{known.count:,} of {data.positions:,}" in shown
    assert shown.count("«") == len(known.contexts)
    for name in ("fires on", "promotes", "suppresses", "excited by"):
        assert name in shown
    numbers = json.loads(Path("c.json").read_text())
    (card,) = numbers["features"]
    assert numbers["positions"] == data.positions
    assert (card["layer"], card["feature"], card["count"]) == (layer, i, known.count)
    assert sum(card["histogram"]) == known.count
    assert [t["id"] for t in card["promoted"]] == known.promoted.tokens.tolist()
    assert "paris" in "".join(t for c in card["contexts"] for t in c["tokens"])


def test_random_cards_are_live_and_seeded(run: Run, collected: Path) -> None:
    first = run(collected, "--random", 5, "--seed", 3, "--json", "a.json")
    assert run(collected, "--random", 5, "--seed", 3, "--json", "b.json") == first
    cards = json.loads(Path("a.json").read_text())["features"]
    assert len({(c["layer"], c["feature"]) for c in cards}) == 5
    assert all(c["count"] > 0 for c in cards)
    run(collected, "--random", 5, "--seed", 4, "--json", "b.json")
    assert Path("a.json").read_text() != Path("b.json").read_text()


def test_sampled_text_and_a_file_elsewhere(run: Run, folder: Path, model: Path) -> None:
    said = run(folder, "--collect", "--model", model, "--tokens", 100, "--length", 12, "--data", "f.bin", "--device",
               "cpu", "--random", 1)
    assert "wrote f.bin" in said
    assert "«" in said
    assert not (folder / "features.bin").exists()
    data = FeatureData.open("f.bin")
    assert data.header["text"].startswith("sampled from")
    assert 100 <= data.positions < 120


def test_imported_labels_win(run: Run, collected: Path) -> None:
    Path("l.csv").write_text("2,1,[bold]capitals[/bold]\n")
    said = run(collected, "--import", "l.csv")
    assert "labels of 1 features" in said
    assert "2/1  [bold]capitals[/bold]" in run(collected, "2/1")
    Path("m.csv").write_text("2,1,other\n")
    assert "2/1  other" in run(collected, "2/1", "--labels", "m.csv")
    assert "capitals" in run(collected, "2/1")


def test_hostile_tokens_cannot_reach_the_terminal(run: Run, folder: Path, model: Path, monkeypatch) -> None:
    monkeypatch.setattr("circuits.features.collect.token_text", lambda _, token: f"\x1b[31m[red]\r\n{token}[/nope]")
    said = run(folder, "--collect", "--model", model, "--tokens", 60, "--length", 12, "--device", "cpu", "--random", 2)
    assert "\x1b[31m" not in said
    assert "\r" not in said
    assert "⟨U+001B⟩[31m[red]⟨U+000D⟩↵" in said.replace("\n", "")


def test_neuronpedia_files(run: Run, collected: Path) -> None:
    data = FeatureData.open(collected)
    Path("l.csv").write_text("2,1,capitals\n")
    run(collected, "2/1", "--neuronpedia", "some", "--labels", "l.csv")
    index = 3 * 4 // 2 + 1  # Cantor pair of 2 and 1
    assert pair_index(2, 1) == index
    assert [p.name for p in Path("some").iterdir()] == [f"{index}.json"]
    values = json.loads((Path("some") / f"{index}.json").read_text())
    known = data.read(2, 1)
    assert (values["index"], values["label"]) == (index, "capitals")
    top = values["examples_quantiles"][0]
    assert top["quantile_name"] == "Top Activations"
    assert len(top["examples"]) == sum(c.quantile == 1 for c in known.contexts)
    for example in top["examples"]:
        assert len(example["tokens"]) == len(example["tokens_acts_list"])
        assert max(example["tokens_acts_list"]) <= values["act_max"] * 1.001
    assert values["top_logits"] == [known.texts[t] for t in known.promoted.tokens.tolist()]
    assert values["activation_frequency"] == pytest.approx(known.density)
    said = run(collected, "--neuronpedia", "all")
    live = sum(len(data.live(layer)) for layer in range(4))
    assert f"wrote {live} files" in said
    assert len(list(Path("all").iterdir())) == live


def test_feature_files_hold_strange_text(tmp_path: Path) -> None:
    path = write_feature(tmp_path, 0, 3, examples={"Top": [(["\ud800", "</script>"], [0.0, 1.0], 1)]},
                         top_logits=["\x00"], bottom_logits=[], label="x")
    assert json.loads(path.read_text(encoding="utf-8"))["top_logits"] == ["\x00"]
    with pytest.raises(InputError, match="cannot write"):
        write_feature(tmp_path / "absent", 0, 3, examples={}, top_logits=[], bottom_logits=[])


def test_a_set_spread_over_folders(run: Run, model: Path, tmp_path: Path) -> None:
    source = gemma_scope_plt(tmp_path / "scope", dictionary(span=1, n_layers=4, features=20, d_model=32))
    run(source, "--collect", "--model", model, "--tokens", 60, "--length", 12, "--device", "cpu")
    assert (Path(source) / "features.bin").is_file()
    assert "«" in run(source, "--random", 1)


def test_a_dead_feature(run: Run, model: Path, tmp_path: Path) -> None:
    made = dictionary(span=2, n_layers=4, features=20, d_model=32)
    made.b_enc[1][4] = -1000
    source = native_folder(tmp_path / "dead", made)
    said = run(source, "1/4", "--collect", "--model", model, "--tokens", 60, "--length", 12, "--device", "cpu")
    assert "1/4  never fired on" in said


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "nothing to do"), (["12"], "'12' names no feature: expected LAYER/FEATURE"), (["1/x"], "'1/x' names"),
    (["9/1"], "layer is 9, expected 0 to 3"), (["1/99"], "layer 1 has features 0 to 19"),
    (["1/1", "--text", "t.txt"], "add --collect"), (["--random", "-3"], "--random is -3"),
    (["1/1", "--labels", "absent.csv"], "cannot read absent.csv"), (["--import", "absent.csv"], "cannot read absent"),
    (["1/1", "--json", "absent/c.json"], "there is no folder absent"),
    (["1/1", "--data", "absent.bin"], "cannot read absent.bin"),
    (["1/1", "--neuronpedia", "t.txt"], "cannot write t.txt"),
    (["--collect", "--text", "absent.txt"], "cannot read absent.txt"),
    (["--collect", "--tokens", "0"], "expected at least 1"), (["--collect", "--length", "1"], "length is 1"),
    (["--collect", "--data", "absent/f.bin"], "there is no folder absent")])
def test_bad_input(run: Run, collected: Path, model: Path, arguments: list[str], message: str) -> None:
    before = (collected / "features.bin").read_bytes()
    extra = ["--model", model, "--device", "cpu"] if "--collect" in arguments else []
    with pytest.raises(CircuitsError) as error:
        run(collected, *arguments, *extra)
    assert message in str(error.value)
    assert (collected / "features.bin").read_bytes() == before


def test_no_data_yet(run: Run, folder: Path) -> None:
    with pytest.raises(InputError, match=r"no feature data beside .* circuits features .* --collect"):
        run(folder, "1/1")


def test_a_model_that_does_not_fit(run: Run, model: Path, tmp_path: Path) -> None:
    source = native_folder(tmp_path / "other", dictionary(span=2, n_layers=3, features=20, d_model=32))
    with pytest.raises(CircuitsError, match="3 layers"):
        run(source, "--collect", "--model", model, "--device", "cpu")
    assert not (Path(source) / "features.bin").exists()
