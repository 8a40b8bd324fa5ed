"""``circuits steer``: its numbers against runs of the model, what it prints, and one clear error for bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from test_attribution import small_dictionary
from test_prompt import write_tokenizer
from tiny_models import text_folder
from transcoder_folders import Dictionary, native_folder

import circuits
from circuits.commands.steer import steer
from circuits.errors import CircuitsError
from circuits.features.known import feature_name
from circuits.gemma3 import Gemma3
from circuits.interventions.edits import DirectionEdit, FeatureEdit, Intervention
from circuits.interventions.generate import generate
from circuits.interventions.intervene import intervene
from circuits.interventions.modes import REPLACED
from circuits.interventions.summary import steer as measure
from circuits.prompt import tokenize
from circuits.transcoder import Transcoders

PROMPT = "paris x mo paris paris x paris"


@dataclass
class Setting:
    model: Gemma3
    transcoders: Transcoders
    made: Dictionary
    folder: Path
    source: str
    tokens: list[int]

    def active(self, layer: int) -> tuple[int, int, float]:
        """Strongest feature of a layer on the prompt, its position and its value."""
        values = self.made.encode(layer, self.model.freeze(self.tokens).mlp_in[layer])[1:]
        place = int(values.argmax())
        return place % values.shape[1], place // values.shape[1] + 1, float(values.max())

    def inputs_with(self, feature: int, at: int, change: float) -> dict[int, torch.Tensor]:
        """MLP inputs (P, D) of Hugging Face's model when a feature of layer 0 changes by ``change`` at a position."""
        inputs: dict[int, torch.Tensor] = {}

        def hook(layer: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            inputs[layer], y = x[0], y.clone()
            y[0, at] += change * self.made.w_dec[0][feature, layer]
            return y

        self.model.logits_with_mlps(torch.tensor([self.tokens]), hook)
        return inputs


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("steer")
    folder = text_folder(root / "tiny")
    write_tokenizer(folder)
    made = small_dictionary("clt", True)
    source = native_folder(root / "set", made)
    model = circuits.load_model(folder, device="cpu")
    return Setting(model, circuits.open_transcoders(source), made, folder, source, tokenize(model, PROMPT))


@pytest.fixture
def run(setting: Setting, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
        ) -> Callable[..., tuple[str, dict[str, Any]]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    app = typer.Typer()
    app.command()(steer)

    def run(*arguments: object) -> tuple[str, dict[str, Any]]:
        """What is printed, and the numbers."""
        capfd.readouterr()
        names = ["--model", setting.folder, "--transcoders", setting.source, "--device", "cpu", "--json", "s.json"]
        app([str(a) for a in [*arguments, *names]], standalone_mode=False)
        return capfd.readouterr().out, json.loads(Path("s.json").read_text())

    return run


def test_the_numbers_of_one_intervention(setting: Setting, run: Callable[..., tuple[str, dict[str, Any]]]) -> None:
    low, at, value = setting.active(0)
    values = setting.made.encode(2, setting.model.freeze(setting.tokens).mlp_in[2])[at]
    high, before = int(values.argmax()), float(values.max())
    said, numbers = run(PROMPT, "--node", f"0/{low}/{at}=-20", "--node", f"2/{high}/{at}+=3", "--top", 40)
    edits = (FeatureEdit(0, low, [at], "scale", -20.0), FeatureEdit(2, high, [at], "add", 3.0))
    free = intervene(setting.model, setting.transcoders, setting.tokens, Intervention(edits))
    replaced = intervene(setting.model, setting.transcoders, setting.tokens, Intervention(edits), REPLACED)
    [found] = numbers["steered"]
    first, second = found["edits"]
    assert (first["layer"], first["feature"], first["position"], first["edit"]) == (0, low, at, "× -20")
    assert (first["before"], first["after"]) == pytest.approx((value, -20 * value), rel=1e-5)
    # what is added comes on top of what the first edit does to the feature
    now = float(setting.made.encode(2, setting.inputs_with(low, at, -21 * value)[2])[at, high])
    assert abs(now - before) > 0.1
    assert (second["before"], second["after"]) == pytest.approx((before, now + 3), rel=1e-4, abs=1e-5)
    assert all((f["layer"], f["feature"], f["position"]) != (2, high, at) for f in found["reacting"])
    likely = torch.maximum(free.probabilities_before, free.probabilities[0]).topk(40).indices.tolist()
    assert [token["token"] for token in found["tokens"]] == likely
    assert set(likely) - set(free.probabilities_before.topk(40).indices.tolist())
    kl = torch.nn.functional.kl_div(free.logits[0].log_softmax(-1), free.probabilities_before, reduction="sum")
    assert found["kl"] == pytest.approx(float(kl), rel=1e-3)
    for token in found["tokens"]:
        i = token["token"]
        assert token["probability_before"] == pytest.approx(float(free.probabilities_before[i]), rel=1e-5)
        assert token["probability"] == pytest.approx(float(free.probabilities[0, i]), rel=1e-4)
        for key, outcome in (("logit_change", free), ("predicted", replaced)):
            change = outcome.logit_changes[0]
            assert token[key] == pytest.approx(float(change[i] - change.mean()), rel=1e-3, abs=1e-5)
        assert f"{token['probability']:.4f}" in said
    assert max(abs(t["logit_change"] - t["predicted"]) for t in found["tokens"]) > 0.01
    assert f"0/{low}" in said
    assert "predicted by the graph" in said
    assert "continuation" not in said


def test_features_that_react(setting: Setting, run: Callable[..., tuple[str, dict[str, Any]]]) -> None:
    low, at, value = setting.active(0)
    _, numbers = run(PROMPT, "--node", f"0/{low}/{at}=-20", "--top", 5)
    inputs = setting.inputs_with(low, at, -21 * value)
    clean = setting.model.freeze(setting.tokens).mlp_in
    by_layer = [setting.made.encode(i, inputs[i]) - setting.made.encode(i, clean[i]) for i in range(4)]
    changes = {(layer, p, i): float(by_layer[layer][p, i]) for layer in range(4)
               for p in range(1, len(setting.tokens)) for i in range(20)}
    expected = sorted(changes.values(), key=abs, reverse=True)[:5]
    found = numbers["steered"][0]["reacting"]
    assert [f["after"] - f["before"] for f in found] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for f in found:
        assert f["after"] - f["before"] == pytest.approx(changes[f["layer"], f["position"], f["feature"]], rel=1e-3)
        assert f["name"] == feature_name(f["layer"], f["feature"], "")


def test_each_and_generated_text(setting: Setting, run: Callable[..., tuple[str, dict[str, Any]]]) -> None:
    low, at, _ = setting.active(1)
    said, numbers = run(PROMPT, "--each", "--node", f"1/{low}/{at}+gen=-9", "--node", "2/3/gen:=50", "--node",
                        "error/1/3=2", "--node", "token/2=0", "--generate", 6, "--temperature", 0.7, "--top-k", 90,
                        "--top-p", 0.9, "--seed", 4)
    edits = [FeatureEdit(1, low, [at], "scale", -9.0, True), FeatureEdit(2, 3, [], "set", 50.0, True)]
    made = generate(setting.model, setting.transcoders, setting.tokens, [Intervention((e,)) for e in edits],
                    max_new_tokens=6, temperature=0.7, top_k=90, top_p=0.9, seed=4)
    first, second, error, token = numbers["steered"]
    assert numbers["unchanged"]["tokens"] == made.unchanged.tokens
    assert [first["continuation"]["tokens"], second["continuation"]["tokens"]] == [c.tokens for c in made.steered]
    assert [e["position"] for e in first["edits"]] == [at, None]
    assert [(e["position"], e["edit"]) for e in second["edits"]] == [(None, "set to 50")]
    assert (second["kl"], second["reacting"]) == (pytest.approx(0, abs=1e-6), [])
    assert [(e["name"], e["layer"], e["position"]) for e in error["edits"] + token["edits"]] == [
        ("error", 1, 3), ("token", -1, 2)]
    assert error["kl"] > 1e-5
    assert token["kl"] > 1e-5
    assert "every generated token" in said
    assert said.count("Next token (free)") == 3
    assert said.count("unchanged") == said.count("steered") == 4


def test_a_supernode_of_a_graph(setting: Setting, run: Callable[..., tuple[str, dict[str, Any]]]) -> None:
    graph = circuits.trace(setting.model, setting.transcoders, PROMPT)
    members = [i for i, kind in zip(graph.node_ids, graph.nodes.kind, strict=True) if kind in ("feature", "error")]
    members = [members[0], members[-1]]
    replace(graph, header=replace(graph.header, supernodes=[["some [b]words", *members]])).save("g.safetensors")
    _, alone = run("--graph", "g.safetensors", "--supernode", "some [b]words=-3")
    _, nodes = run(PROMPT, "--node", f"{members[0]}=-3", "--node", f"{members[1]}=-3")
    assert alone["steered"][0]["tokens"] == nodes["steered"][0]["tokens"]
    assert alone["steered"][0]["name"] == "some [b]words=-3"
    assert alone["steered"][0]["kl"] > 1e-5
    assert alone["prompt"] == nodes["prompt"]


@pytest.mark.parametrize("mode", ["frozen", "replaced", "1-2"])
def test_modes(setting: Setting, run: Callable[..., tuple[str, dict[str, Any]]], mode: str) -> None:
    low, at, value = setting.active(1)
    high = int(setting.made.encode(2, setting.model.freeze(setting.tokens).mlp_in[2])[at].argmax())
    said, numbers = run(PROMPT, "--node", f"1/{low}/{at}=4", "--node", f"2/{high}/{at}+=2", "--mode", mode)
    found = numbers["steered"][0]
    assert f"Next token ({mode})" in said
    assert ("predicted by the graph" in said) == (mode != "replaced")
    same = all(t["logit_change"] == pytest.approx(t["predicted"], abs=1e-6) for t in found["tokens"])
    assert same == (mode == "replaced")
    assert found["edits"][0]["after"] == pytest.approx(4 * value, rel=1e-5)
    if mode != "replaced":  # clamped: what is added comes on top of the unchanged value
        assert found["edits"][1]["after"] == pytest.approx(found["edits"][1]["before"] + 2, rel=1e-6)


def test_directions_from_python(setting: Setting) -> None:
    vector = torch.ones(32)
    found = measure(setting.model, setting.transcoders, setting.tokens, [
        Intervention((DirectionEdit(1, vector, [2, -1], 3.0, generated=True),)),
        Intervention((DirectionEdit(1, vector, (), 3.0, generated=True),))], max_new_tokens=2)
    last = len(setting.tokens) - 1
    assert [[(e.name, e.position, e.edit) for e in s.edits] for s in found.steered] == [
        [("direction", 2, "plus 3"), ("direction", last, "plus 3"), ("direction", None, "plus 3")],
        [("direction", None, "plus 3")]]
    assert found.steered[1].kl == pytest.approx(0, abs=1e-6)


def test_hostile_text_cannot_reach_the_terminal(setting: Setting, run: Callable[..., tuple[str, dict[str, Any]]],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    low, at, _ = setting.active(1)
    monkeypatch.setattr("circuits.interventions.summary.token_text", lambda _m, t: f"\x1b[31m[red]{t}[/nope]")
    monkeypatch.setattr("circuits.interventions.generate.prompt_text", lambda _m, t: "\x1b[31m[/nope]")
    said, _ = run(PROMPT, "--node", f"1/{low}/{at}=4", "--generate", 2)
    assert "\x1b[31m" not in said
    assert "\\x1b[31m[red]" in said


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "give a prompt, or a graph"), ([PROMPT], "nothing is to be changed"),
    ([PROMPT, "--node", "1/2=0"], "'1/2=0' names no node"), ([PROMPT, "--node", "9/2/3=0"], "layer 9 cannot be"),
    ([PROMPT, "--node", "1/99/3:=1"], "layer 1 has no feature 99: expected 0 to 19"),
    ([PROMPT, "--node", "1/2/70=0"], "position 70 is not on the prompt"),
    ([PROMPT, "--node", "1/2/3:=nan"], "is nan: expected a finite number"),
    ([PROMPT, "--node", "1/2/0:=3"], "cannot be changed at position 0"),
    ([PROMPT, "--node", "1/2/gen:=3"], "nothing is generated: say how many"),
    ([PROMPT, "--node", "9/2/gen:=3", "--generate", "2"], "layer 9 cannot be changed"),
    ([PROMPT, "--node", "1/2/3:=1", "--node", "1/2/all:=2"], "changes feature 1/2 at position 3 twice"),
    ([PROMPT, "--node", "1/2/3:=1", "--mode", "odd"], "mode is 'odd'"),
    ([PROMPT, "--node", "1/2/3:=1", "--mode", "3-9"], "layers 3 to 9 cannot be clamped"),
    ([PROMPT, "--node", "0/2/3:=1", "--mode", "1-2"], "outside of the clamped layers 1 to 2"),
    ([PROMPT, "--node", "1/2/3:=1", "--mode", "frozen", "--generate", "2"], "nothing can be generated"),
    ([PROMPT, "--node", "1/2/3:=1", "--generate", "0"], "max_new_tokens is 0"),
    ([PROMPT, "--node", "1/2/3:=1", "--generate", "2", "--top-p", "3"], "top_p is 3"),
    ([PROMPT, "--node", "1/2/3:=1", "--top", "0"], "top is 0"),
    ([PROMPT, "--supernode", "Texas=0"], "needs --graph"),
    ([PROMPT, "--graph", "absent.safetensors"], "absent.safetensors"),
    ([PROMPT, "--node", "1/2/3:=1", "--chat"], "has no chat template")])
def test_bad_input(run: Callable[..., tuple[str, dict[str, Any]]], arguments: list[str], message: str) -> None:
    with pytest.raises(CircuitsError) as error:
        run(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("s.json").exists()
