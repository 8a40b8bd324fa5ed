"""One prompt traced with two transcoder sets of a tiny model, in Python and on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from test_prompt import write_tokenizer
from tiny_models import text_folder
from transcoder_folders import Dictionary, dictionary, native_folder
from typer.testing import CliRunner

import circuits
from circuits.commands.crosscheck import crosscheck as command
from circuits.crosscheck import Crosscheck, crosscheck
from circuits.errors import InputError, ModelError
from circuits.features.cards import TranscoderCards
from circuits.gemma3 import Gemma3

PROMPT = "paris paris x mo s paris"
app = typer.Typer()
app.command()(command)


def scaled(span: int, seed: int = 0, **sizes: int) -> Dictionary:
    made = dictionary(span=span, seed=seed, **{"n_layers": 4, "features": 20, "d_model": 32, **sizes})  # type: ignore[arg-type]
    for tensor in [*made.w_dec, *made.b_dec]:
        tensor *= 0.1
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("crosscheck")
    model = text_folder(root / "model")
    write_tokenizer(model)
    clt = scaled(span=4)
    plt = Dictionary(clt.w_enc, clt.b_enc, clt.threshold, [w[:, :1] for w in clt.w_dec], clt.b_dec, None)
    return {"model": str(model), "clt": native_folder(root / "clt", clt), "plt": native_folder(root / "plt", plt),
            "shallow": native_folder(root / "shallow", scaled(span=1, n_layers=3))}


@pytest.fixture(scope="module")
def model(folders: dict[str, str]) -> Gemma3:
    return circuits.load_model(folders["model"], device="cpu")


@pytest.fixture(scope="module")
def found(model: Gemma3, folders: dict[str, str]) -> Crosscheck:
    first, second = (circuits.open_transcoders(folders[name]) for name in ("clt", "plt"))
    return crosscheck(model, first, second, PROMPT, coverage=1.0, max_logits=3)


def test_both_graphs_are_ordinary_traces_with_the_same_targets(found: Crosscheck, model: Gemma3,
                                                               folders: dict[str, str]) -> None:
    first, second = found.first, found.second
    np.testing.assert_array_equal(first.nodes.token[first.target_nodes], second.nodes.token[second.target_nodes])
    np.testing.assert_array_equal(first.target_weights, second.target_weights)
    assert (first.header.transcoder_kind, second.header.transcoder_kind) == ("clt", "plt")
    alone = circuits.trace(model, circuits.open_transcoders(folders["plt"]), PROMPT, coverage=1.0, max_logits=3)
    np.testing.assert_array_equal(second.weights, alone.weights)
    assert first.header.settings["coverage"] == second.header.settings["coverage"] == 1.0
    assert not found.same_set
    sides = found.agreement.first, found.agreement.second
    for side in sides:
        scores, lengths = side.graph.scores, side.lengths
        tokens, errors = lengths.share("tokens"), lengths.share("errors")
        assert scores["replacement"] == pytest.approx(tokens / (tokens + errors))
        assert side.lengths.share("unexplored") == 0
    assert sides[0].lengths.share("errors") != pytest.approx(sides[1].lengths.share("errors"), rel=0.01)
    assert 0 < found.agreement.tokens.value < 1
    assert found.agreement.steps < 1


def test_signatures_come_from_the_weights_of_each_set(found: Crosscheck, model: Gemma3, folders: dict[str, str]
                                                      ) -> None:
    for side, name in ((found.agreement.first, "clt"), (found.agreement.second, "plt")):
        cards, nodes = side.pruned.feature_cards(), side.pruned.nodes
        features = nodes.kind == "feature"
        made = TranscoderCards(model, circuits.open_transcoders(folders[name])).of(
            nodes.layer[features], nodes.feature[features])
        assert cards is not None
        assert isinstance(side.graph.cards, TranscoderCards)
        assert side.graph.cards.data is None
        np.testing.assert_array_equal(cards.promoted.token, made.promoted.token)
        assert len(made) > 10
    # the graphs themselves keep what they were traced with
    assert found.first.cards is not found.agreement.first.graph.cards
    assert found.second.cards is not found.agreement.second.graph.cards


def test_a_set_against_itself_agrees_in_everything(model: Gemma3, folders: dict[str, str]) -> None:
    transcoders = circuits.open_transcoders(folders["clt"])
    same = crosscheck(model, transcoders, circuits.open_transcoders(folders["clt"]), PROMPT)
    agreement = same.agreement
    assert same.same_set
    assert "same transcoder set" in same.sentences()[0]
    for measure in (agreement.tokens, agreement.token_order, agreement.places, agreement.layers, agreement.positions):
        assert measure.value == pytest.approx(1)
    assert agreement.shortening == agreement.shortening_without_errors == 0
    assert all(match.first == match.second for match in agreement.features.matches)
    assert len(agreement.features.matches) == agreement.features.paired > 10


def test_unusable_sets_and_settings_are_refused_before_the_first_trace(model: Gemma3, folders: dict[str, str]) -> None:
    clt, shallow = (circuits.open_transcoders(folders[name]) for name in ("clt", "shallow"))

    def started(stage: str, done: int, total: int) -> None:
        raise AssertionError(f"{stage} began")

    with pytest.raises(ModelError, match="transcoder has 3 layers, model has 4"):
        crosscheck(model, clt, shallow, PROMPT, progress=started)
    with pytest.raises(InputError, match="node_threshold is 2"):
        crosscheck(model, clt, clt, PROMPT, node_threshold=2, progress=started)
    with pytest.raises(InputError, match="window is -2"):
        crosscheck(model, clt, clt, PROMPT, window=-2, progress=started)
    with pytest.raises(InputError, match="versus needs a target"):
        crosscheck(model, clt, clt, PROMPT, versus=" x")


def test_the_command_prints_writes_and_saves(folders: dict[str, str], found: Crosscheck, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuits.commands.common.out.width", 200)
    files = [str(tmp_path / name) for name in ("a.safetensors", "b.json")]
    arguments = [PROMPT, "--model", folders["model"], "--transcoders", folders["clt"], "--other", folders["plt"],
                 "--device", "cpu", "--coverage", "1.0", "--max-logits", "3", "--json", str(tmp_path / "n.json")]
    done = CliRunner().invoke(app, [*arguments, "--save", *files], catch_exceptions=False)
    assert done.exit_code == 0
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers == json.loads(json.dumps(found.numbers()))
    assert set(numbers) >= {"verdicts", "same_set", "settings", "warnings", "tokens", "steps", "features"}
    for sentence in numbers["verdicts"]:
        assert sentence.split()[0] in done.stdout
    for words in ("clt (CLT)", "plt (PLT)", "influence of tokens: overlap", "Matched features", "by number of steps"):
        assert words in done.stdout
    saved = circuits.graphs.load(files[0])
    np.testing.assert_array_equal(saved.weights, found.first.weights)
    assert Path(files[1]).is_file()


def test_the_command_passes_a_contrast_on(folders: dict[str, str], tmp_path: Path) -> None:
    arguments = [PROMPT, "--model", folders["model"], "--transcoders", folders["clt"], "--other", folders["clt"],
                 "--device", "cpu", "--target", " x", "--versus", "paris", "--max-features", "6", "--seed", "2",
                 "--window", "1", "--node-threshold", "0.9", "--json", str(tmp_path / "n.json")]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    numbers = json.loads((tmp_path / "n.json").read_text())
    for side in ("first", "second"):
        settings = numbers["settings"][side]
        assert (settings["target"], settings["versus"], settings["max_features"]) == (" x", "paris", 6)
    assert numbers["targets"][0].startswith('Output " x"')
    assert numbers["same_set"]
    assert numbers["features"]["window"] == 1
    with pytest.raises(InputError, match="there is no folder"):
        CliRunner().invoke(app, [*arguments, "--save", str(tmp_path / "no" / "a.json"), str(tmp_path / "b.json")],
                           catch_exceptions=False)
