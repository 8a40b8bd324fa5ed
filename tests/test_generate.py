"""Generation under steering against Hugging Face's own, and against whole texts run anew at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from test_attribution import TOKENS, write
from test_prompt import write_tokenizer
from tiny_models import text_folder
from torch import Tensor
from transcoder_folders import Dictionary

import circuits
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.interventions.edits import DirectionEdit, FeatureEdit, Intervention, TokenEdit
from circuits.interventions.generate import NOTHING, Generation, end_tokens, generate
from circuits.interventions.intervene import intervene
from circuits.interventions.modes import FREE, FROZEN, REPLACED, constrained
from circuits.interventions.sampling import Sampler
from circuits.transcoder import Transcoders

NEW = 10
"""Far more than the window of 5, so that local layers lose the prompt from sight."""
KINDS = [("plt", False), ("clt", True)]


@dataclass
class Setting:
    model: Gemma3
    made: Dictionary
    transcoders: Transcoders


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    folder = text_folder(tmp_path_factory.mktemp("model") / "tiny", eos_token_id=None)
    return circuits.load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def settings(model: Gemma3, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Setting]:
    made = {kind: write(tmp_path_factory.mktemp("set"), *kind) for kind in KINDS}
    return {kind: Setting(model, d, circuits.open_transcoders(source)) for kind, (d, source) in made.items()}


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}{'-skip' * kind[1]}")
def setting(request: pytest.FixtureRequest, settings: dict[tuple[str, bool], Setting]) -> Setting:
    return settings[request.param]


@dataclass
class Slow:
    """The model on a whole text, with edits made by hooks on Hugging Face's modules; written without the engine."""

    setting: Setting
    edits: Sequence[FeatureEdit | DirectionEdit]
    clamped: range = range(0)
    clean: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """MLP inputs and outputs of the unchanged prompt."""

    def __post_init__(self) -> None:
        self.setting.model.logits_with_mlps(torch.tensor([TOKENS]), self._remember)

    def _remember(self, layer: int, x: Tensor, y: Tensor) -> Tensor:
        self.clean[layer] = x[0].clone(), y[0].clone()
        return y

    def probabilities(self, tokens: list[int]) -> Tensor:
        self.waiting = [torch.zeros(len(tokens), 32) for _ in range(4)]
        return self.setting.model.logits_with_mlps(torch.tensor([tokens]), self._mlp)[0, -1].softmax(-1)

    def _mlp(self, layer: int, x: Tensor, y: Tensor) -> Tensor:
        made, x, y, n = self.setting.made, x[0], y[0].clone(), len(TOKENS)
        clean_x, clean_y = self.clean[layer]
        if layer in self.clamped:
            y[:n] = clean_y + ((x[:n] - clean_x) @ made.skip[layer] if made.skip else 0)
        values, before = made.encode(layer, x), made.encode(layer, clean_x)
        for edit in self.edits:
            if edit.layer != layer:
                continue
            places = range(1, n) if edit.positions is None else edit.positions
            for p in [*places, *(range(n, len(x)) if edit.generated else ())]:
                if isinstance(edit, DirectionEdit):
                    self.waiting[layer][p] += edit.amount * edit.vector
                    continue
                now = (before if layer in self.clamped and p < n else values)[p, edit.feature]
                own = before[p, edit.feature] if p < n else now
                wanted = dict(scale=edit.amount * own, set=edit.amount, add=now + edit.amount)[edit.operation]
                if edit.operation == "scale" and own == 0:  # it is scaled where it is active
                    continue
                for j, decoder in enumerate(made.w_dec[layer][edit.feature]):
                    if not self.clamped or layer + j in self.clamped or p >= n:
                        self.waiting[layer + j][p] += (wanted - now) * decoder
        return (y + self.waiting[layer])[None]


def steered(setting: Setting, edits: Sequence[FeatureEdit | DirectionEdit], **more: object) -> Generation:
    how = {"max_new_tokens": NEW, **more}
    return generate(setting.model, setting.transcoders, TOKENS, Intervention(tuple(edits)), **how)


def assert_as_slow(setting: Setting, edits: Sequence[FeatureEdit | DirectionEdit], clamped: range = range(0)) -> None:
    """Greedy tokens and probabilities equal those of whole texts."""
    mode = constrained(clamped[0], clamped[-1]) if clamped else FREE
    made = steered(setting, edits, mode=mode)
    slow, tokens = Slow(setting, edits, clamped), list(TOKENS)
    for token, probability in zip(made.steered[0].tokens, made.steered[0].probabilities, strict=True):
        expected = slow.probabilities(tokens)
        assert token == int(expected.argmax())
        assert probability == pytest.approx(float(expected.max()), rel=1e-4)
        tokens.append(token)
    assert len(tokens) == len(TOKENS) + NEW
    assert made.steered[0].probabilities != pytest.approx(made.unchanged.probabilities, rel=1e-3)


def active(setting: Setting, layer: int) -> tuple[int, int]:
    """The feature of a layer that is strongest on the prompt after its first position, and where."""
    values = setting.made.encode(layer, setting.model.freeze(TOKENS).mlp_in[layer])[1:]
    place = int(values.argmax())
    return place % values.shape[1], place // values.shape[1] + 1


def active_later(setting: Setting, layer: int) -> int:
    """The feature of a layer that is active at most tokens of the unchanged text."""
    tokens = [*TOKENS, *generate(setting.model, setting.transcoders, TOKENS, max_new_tokens=NEW).unchanged.tokens]
    values = setting.made.encode(layer, setting.model.freeze(tokens).mlp_in[layer])
    return int((values[len(TOKENS):] > 0).sum(0).argmax())


def test_unchanged_text_is_hugging_faces(setting: Setting) -> None:
    model = setting.model
    made = generate(model, setting.transcoders, TOKENS, Intervention((NOTHING,)), max_new_tokens=NEW)
    expected = model.hf.generate(torch.tensor([TOKENS]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    assert made.unchanged.tokens == expected[0, len(TOKENS):].tolist()
    assert made.steered[0] == made.unchanged
    assert not made.unchanged.ended
    assert len(set(made.unchanged.tokens)) > 3


@pytest.mark.parametrize("operation", ["scale", "set", "add"])
def test_a_feature_at_every_generated_token(setting: Setting, operation: str) -> None:
    positions = None if operation == "scale" else ()
    assert_as_slow(setting, [FeatureEdit(1, active_later(setting, 1), positions, operation, 6.0, generated=True)])


def test_edits_together_on_the_prompt_and_after(setting: Setting) -> None:
    (low, at), (high, there) = active(setting, 0), active(setting, 2)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    assert_as_slow(setting, [FeatureEdit(0, low, [at], "scale", -5.0),
                             FeatureEdit(0, (low + 1) % 20, (), "set", 3.0, generated=True),
                             FeatureEdit(2, high, [there], "add", 4.0, generated=True),
                             DirectionEdit(1, direction, [5], 2.0, generated=True)])


def test_constrained_patching_clamps_the_prompt_alone(setting: Setting) -> None:
    feature, at = active(setting, 1)
    assert_as_slow(setting, [FeatureEdit(1, feature, [at], "scale", -8.0),
                             FeatureEdit(3, 4, (), "set", 3.0, generated=True)], range(1, 3))


def test_prompt_edits_as_longer_prompts_have_them(tmp_path: Path) -> None:
    """In bfloat16, where the embedding is rounded: the same text as a prompt gives the same next token."""
    model = circuits.load_model(text_folder(tmp_path / "tiny", eos_token_id=None), device="cpu", dtype="bfloat16")
    transcoders = circuits.open_transcoders(write(tmp_path / "set", "clt", True)[1])
    edit = Intervention((FeatureEdit(1, 4, [3, 7], "set", 5.0), TokenEdit(2, 0.0)))
    made = generate(model, transcoders, TOKENS, edit, max_new_tokens=NEW).steered[0]
    for step in (0, 1, 6, NEW - 1):
        outcome = intervene(model, transcoders, [*TOKENS, *made.tokens[:step]], edit)
        logits = model.unembed(outcome.final_before + outcome.final_changes[0])
        assert float(logits.softmax(-1)[made.tokens[step]]) == pytest.approx(made.probabilities[step], rel=1e-4)


def test_each_text_depends_on_its_own_edits_and_the_seed(settings: dict[tuple[str, bool], Setting]) -> None:
    setting = settings["clt", True]
    feature, at = active(setting, 1)
    edits = [Intervention((FeatureEdit(1, feature, [at], "scale", -9.0, generated=True),)), Intervention((NOTHING,)),
             Intervention((FeatureEdit(2, 3, (), "set", 40.0, generated=True),))]
    how = dict(max_new_tokens=NEW, temperature=0.8, top_k=50, top_p=0.95)

    def text(*chosen: int, seed: int = 5) -> Generation:
        return generate(setting.model, setting.transcoders, TOKENS, [edits[i] for i in chosen], seed=seed, **how)

    together = text(0, 1, 2)
    assert [c.tokens for c in text(2, 0).steered] == [together.steered[i].tokens for i in (2, 0)]
    assert together.steered[1].tokens == together.unchanged.tokens == text().unchanged.tokens
    assert len({tuple(c.tokens) for c in (together.unchanged, *together.steered)}) == 3
    assert text(seed=6).unchanged.tokens != together.unchanged.tokens


def test_every_text_ends_by_itself(model: Gemma3, settings: dict[tuple[str, bool], Setting],
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings["plt", False]
    edits = [FeatureEdit(1, 2, (), "set", 9.0, generated=True)]
    whole = steered(setting, edits)
    end = next(t for t in whole.unchanged.tokens[2:] if t not in whole.steered[0].tokens)
    monkeypatch.setattr(model.hf.config, "eos_token_id", [end, 127])
    cut = steered(setting, edits)
    before = whole.unchanged.tokens.index(end)
    assert cut.unchanged.tokens == whole.unchanged.tokens[:before + 1]
    assert cut.unchanged.text == "".join(f"[{t}]" for t in whole.unchanged.tokens[:before])
    assert cut.unchanged.ended
    assert cut.steered == whole.steered


def test_what_ends_a_text(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "tiny", eos_token_id=[1, 9])
    assert end_tokens(circuits.load_model(folder, device="cpu")) == {1, 9}
    write_tokenizer(folder)
    model = circuits.load_model(folder, device="cpu")
    turn = model.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    own = {turn} - {model.tokenizer.unk_token_id}
    assert end_tokens(model) == {1, 9, model.tokenizer.eos_token_id} | own


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [
    (1.0, None, None), (0.5, 3, None), (2.0, None, 0.6), (1.0, 4, 0.7), (1.0, 99, 1.0), (1e-30, None, None)])
def test_what_is_drawn_from(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0, 2.5, 0.0, 2.4], [0.0, 0.1, 0.2, 4.0, 0.3, -1.0]])
    found = Sampler(temperature, top_k, top_p).log_probabilities(logits).exp()
    for row, given in zip(found.tolist(), logits.double().tolist(), strict=True):
        weight = {i: 2.718281828459045 ** ((v - max(given)) / temperature) for i, v in enumerate(given)}
        kept = sorted(weight, key=lambda i: -weight[i])[:top_k]
        total, mass, nucleus = sum(weight[i] for i in kept), 0.0, []
        for i in kept:
            if mass < (top_p or 1.0):
                nucleus.append(i)
                mass += weight[i] / total
        total = sum(weight[i] for i in nucleus)
        assert row == pytest.approx([weight[i] / total if i in nucleus else 0.0 for i in range(6)], abs=1e-12)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0], [2.0, 0.0, 0.0, 0.0]])
    sampler = Sampler(temperature=1.5, top_k=3, seed=11)
    drawn = torch.stack([sampler.choose(logits) for _ in range(4000)], 1)
    for row, expected in zip(drawn, sampler.log_probabilities(logits).exp(), strict=True):
        share = torch.bincount(row, minlength=4) / 4000
        # four standard deviations of a share
        assert (share - expected).abs().max() < 4 * 0.5 / 4000**0.5
    assert Sampler(temperature=0.0).choose(logits).tolist() == [2, 0]


@pytest.mark.parametrize(("more", "message"), [
    (dict(temperature=-1.0), "temperature is -1.0"), (dict(temperature=float("nan")), "temperature is nan"),
    (dict(top_k=0), "top_k is 0"), (dict(top_p=0.0), "top_p is 0.0"), (dict(top_p=1.5), "top_p is 1.5"),
    (dict(seed=-1), "seed is -1"), (dict(max_new_tokens=0), "max_new_tokens is 0"),
    (dict(max_new_tokens=60), "with 60 new ones the text is longer than the 64"),
    (dict(mode=FROZEN), "nothing can be generated"), (dict(mode=REPLACED), "nothing can be generated"),
    (dict(mode=constrained(0, 2, norms_frozen=True)), "nothing can be generated"),
    (dict(mode=constrained(2, 9)), "cannot be clamped")])
def test_impossible_settings(settings: dict[tuple[str, bool], Setting], more: dict[str, object], message: str) -> None:
    setting = settings["plt", False]
    with pytest.raises(InputError, match=message):
        generate(setting.model, setting.transcoders, TOKENS, **{"max_new_tokens": 2, **more})


@pytest.mark.parametrize(("edits", "message"), [
    ([FeatureEdit(4, 0, (), "set", 1.0, True)], "layer 4 cannot be changed: expected 0 to 3"),
    ([FeatureEdit(3, 20, (), "set", 1.0, True)], "layer 3 has no feature 20: expected 0 to 19"),
    ([DirectionEdit(-1, torch.zeros(32), (), generated=True)], "layer -1 cannot"),
    ([DirectionEdit(1, torch.zeros(31), (), generated=True)], "31 dimensions, the model 32"),
    ([FeatureEdit(3, 2, (), "set", 1.0, True)] * 2, "changes feature 3/2 twice while generating"),
    ([FeatureEdit(3, 2, (), "set", 1.0)], "names no position"),
    ([], "changes nothing")])
def test_impossible_edits(settings: dict[tuple[str, bool], Setting], edits: list[FeatureEdit], message: str) -> None:
    with pytest.raises(InputError, match=message):
        steered(settings["plt", False], edits)
