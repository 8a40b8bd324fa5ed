"""``circuits compare`` from files to tables, numbers and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from twin_models import Twins, twins
from typer.testing import CliRunner

import circuits
from circuits.commands.compare import compare as command
from circuits.errors import InputError
from circuits.graphs.compare import Comparison
from circuits.graphs.compare_measures import MEASURES

app = typer.Typer()
app.command()(command)
TOKENS = [2, 17, 99, 31, 5, 64, 120]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Twins, dict[str, str]]:
    """Graphs of a prompt by a model and its twin, and of two more prompts of as many tokens by the twin."""
    root = tmp_path_factory.mktemp("compare")
    made = twins(root, width=40)
    models = {"one": (made.model, made.transcoders), "two": (made.twin, made.twin_transcoders)}
    opened = {name: (circuits.load_model(model, device="cpu"), circuits.open_transcoders(transcoders))
              for name, (model, transcoders) in models.items()}
    paths = {}
    for name, by, tokens in (("one", "one", TOKENS), ("two", "two", TOKENS), ("other", "two", [*TOKENS[:-1], 41]),
                             ("null", "two", [2, 50, 60, 70, 80, 90, 100]), ("long", "two", [*TOKENS, 9])):
        paths[name] = str(root / f"{name}.safetensors")
        circuits.trace(*opened[by], tokens=tokens, coverage=0.9, max_logits=1).save(paths[name])
    return made, paths


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_two_models_of_one_prompt(files: tuple[Twins, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                  ) -> None:
    made, paths = files
    monkeypatch.setattr("circuits.commands.common.out.width", 200)
    written: list[tuple[Comparison, Path]] = []
    page = pytest.importorskip("circuits.comparing.page")
    monkeypatch.setattr(page, "write_page", lambda comparison, path: written.append((comparison, path)))
    corpus, numbers = tmp_path / "corpus.txt", tmp_path / "n.json"
    corpus.write_text("paris x mo s paris mo x s " * 20)
    said = run(paths["one"], paths["two"], "--model", made.model, "--model", made.twin, "--transcoders",
               made.transcoders, "--transcoders", made.twin_transcoders, "--corpus", str(corpus), "--null",
               paths["null"], "--json", str(numbers), "-o", str(tmp_path / "page.html"), "--top", "3", "--seed", "2",
               "--node-threshold", "0.9", "--window", "0.3")
    told = json.loads(numbers.read_text())
    pair = told["pairs"][0]
    assert pair["alignment"]["matched"] == pair["alignment"]["features"][0] > 5
    assert pair["alignment"]["views"] == ["writes", "reads", "corpus"]
    assert pair["alignment"]["window"] == 0.3
    assert len(pair["measures"]["tokens"]["unrelated"]) == 1
    assert told["graphs"][0]["reading"]["rank"][-1] == 1
    for words in ("Graphs side by side", "Matched features", "Without a match", "unrelated prompts, mean",
                  *MEASURES.values()):
        assert words in said
    for sentence in told["sentences"]:
        assert sentence.split()[0] in said
    assert said.count("1.00") >= 3
    assert written[0][1] == tmp_path / "page.html"
    assert written[0][0].pairs[0].alignment.window == 0.3


def test_two_prompts_without_models(files: tuple[Twins, dict[str, str]], tmp_path: Path) -> None:
    numbers = tmp_path / "n.json"
    said = run(files[1]["two"], files[1]["other"], files[1]["null"], "--two-prompts", "--no-models", "--json",
               str(numbers))
    told = json.loads(numbers.read_text())
    assert told["two_prompts"]
    assert len(told["pairs"]) == 2
    assert told["graphs"][0]["reading"] is None
    assert told["pairs"][0]["alignment"]["views"] == ["promoted"]
    assert "fire nearly anywhere" in " ".join(said.split())


def test_refusals(files: tuple[Twins, dict[str, str]], tmp_path: Path) -> None:
    made, paths = files
    pair = [paths["one"], paths["two"]]
    arguments: Any
    for arguments, words in (
            ([paths["one"], paths["long"]], "graph 2 has 8 tokens, the first 7"),
            ([paths["two"], paths["other"]], "with --two-prompts"),
            ([paths["one"]], "there is 1 graph to compare"),
            ([*pair, "--model", made.model], "1 models are named for 2 graphs"),
            ([*pair, "--no-models", "--corpus", paths["one"]], "when no model is opened"),
            ([*pair, "-o", str(tmp_path / "page.pdf")], "is no page"),
            ([*pair, "--json", str(tmp_path / "no" / "n.json")], "there is no folder"),
            ([*pair, "--top", "0"], "top is 0"),
            ([str(tmp_path / "gone.safetensors"), paths["one"]], "gone.safetensors"),
            ([*pair, "--null", paths["long"]], "null graph 1 has 8 tokens")):
        with pytest.raises(InputError, match=words):
            run(*arguments)
