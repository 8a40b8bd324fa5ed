"""Interventions against slow, independent runs of the same model: Hugging Face's own forward pass with hooks, and the
frozen model written out (METHOD 1, 7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from test_attribution import N_LAYERS, TOKENS, small_dictionary
from tiny_models import text_folder
from torch import Tensor
from transcoder_folders import Dictionary, gemma_scope_clt, gemma_scope_plt, native_folder

import circuits
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.interventions import intervene as running
from circuits.interventions import padded
from circuits.interventions.edits import (
    DirectionEdit,
    ErrorEdit,
    FeatureEdit,
    Intervention,
    TokenEdit,
    ablate,
    positions_of,
    scale,
)
from circuits.interventions.intervene import intervene, local_replacement
from circuits.interventions.modes import FREE, FROZEN, REPLACED, Mode, constrained, read_mode
from circuits.interventions.passes import Observer
from circuits.interventions.unchanged import Unchanged
from circuits.replacement import LocalReplacement
from circuits.transcoder import Transcoders

MODES = {
    "free": FREE, "frozen": FROZEN, "replaced": REPLACED, "middle": constrained(1, 2),
    "everything clamped": constrained(0, N_LAYERS - 1), "norms free": Mode(True, False, "replaced"),
    "patterns free": Mode(False, True, "clamped"), "norms frozen": Mode(False, True, "free"),
    "patterns frozen": Mode(True, False, "free"), "replaced, rest free": Mode(False, False, "replaced"),
    "all clamped and frozen": constrained(0, N_LAYERS - 1, patterns_frozen=True, norms_frozen=True)}


@dataclass
class Setting:
    model: Gemma3
    transcoders: Transcoders
    made: Dictionary
    local: LocalReplacement


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    return circuits.load_model(str(text_folder(tmp_path_factory.mktemp("model"), head_dim=8, query_pre_attn_scalar=14)),
                               device="cpu")


@pytest.fixture(scope="module", params=["plt", "skip", "clt", "skip clt"])
def setting(request: pytest.FixtureRequest, model: Gemma3, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    made = small_dictionary("clt" if "clt" in request.param else "plt", "skip" in request.param)
    write = gemma_scope_clt if "clt" in request.param else gemma_scope_plt
    transcoders = circuits.open_transcoders(write(tmp_path_factory.mktemp("set"), made))
    return Setting(model, transcoders, made, local_replacement(model, transcoders, TOKENS))


def some_interventions(local: LocalReplacement, count: int = 7) -> list[Intervention]:
    """Of every kind, at several layers and positions, single and together; not in the order of their layers."""
    active, d_model = local.active, local.biases.shape[1]
    matters = np.flatnonzero((active.layer < N_LAYERS - 1) | (active.position == len(TOKENS) - 1))
    chosen = np.random.default_rng(1).permutation(matters)[:2 * count]
    features = [(int(active.layer[i]), int(active.feature[i]), int(active.position[i])) for i in chosen]
    single = [Intervention((FeatureEdit(*f, amount=amount),))
              for f, amount in zip(features, (0, 2, -1, 0, 5, 0, 1.5), strict=False)]
    vector = torch.randn(d_model, generator=torch.Generator().manual_seed(3))
    layer, feature, _ = features[0]
    return [*single,
            Intervention(tuple(FeatureEdit(*f) for f in features[count:count + 5])),
            Intervention((ErrorEdit(2, 5), ErrorEdit(1, 9, 3.0))), Intervention((TokenEdit(4, 2.0), TokenEdit(0, 0.5))),
            Intervention((DirectionEdit(2, vector, range(6, 9)), FeatureEdit(*features[2], "add", 0.7))),
            Intervention((DirectionEdit(1, vector, None, 0.3),)),
            Intervention((FeatureEdit(layer, feature, None, "set", 1.25),)), scale(layer, feature, 3.0),
            Intervention((FeatureEdit(*features[1], "set", 0.5), FeatureEdit(*features[3], "add", -0.5)))]


def hooked(mode: Mode) -> bool:
    """Whether Hugging Face's forward pass is of this mode, but for its MLPs."""
    return not mode.patterns_frozen and not mode.norms_frozen


def with_hooks(s: Setting, intervention: Intervention, mode: Mode) -> Tensor:
    """(V,) logits from Hugging Face's forward pass; patterns and norms are free."""
    writes = {layer: torch.zeros_like(s.local.frozen.mlp_out[layer]) for layer in range(N_LAYERS)}

    def mlp(layer: int, x: Tensor, y: Tensor) -> Tensor:
        return mlp_output(s, intervention, mode, writes, layer, x[0], lambda: y[0])[None]

    def embed(_module: object, _inputs: object, out: Tensor) -> Tensor:
        return out + token_changes(s.local, intervention)

    handle = s.model.hf.model.embed_tokens.register_forward_hook(embed)
    try:
        return s.model.logits_with_mlps(torch.tensor([s.local.frozen.tokens]), mlp)[0, -1]
    finally:
        handle.remove()


def written_out(s: Setting, intervention: Intervention, mode: Mode) -> Tensor:
    """(V,) logits of the model written out, with patterns or norms frozen."""
    hf, frozen = s.model.hf, s.local.frozen
    writes = {layer: torch.zeros_like(frozen.mlp_out[layer]) for layer in range(N_LAYERS)}
    x = frozen.embeddings + token_changes(s.local, intervention)
    for i, layer in enumerate(hf.model.layers):
        f, attn = frozen.layers[i], layer.self_attn
        read = x * f.attn_in_gain if mode.norms_frozen else layer.input_layernorm(x)
        v = attn.v_proj(read).view(len(x), s.model.n_kv_heads, -1).repeat_interleave(2, 1)
        pattern = f.pattern if mode.patterns_frozen else free_pattern(s, i, read)
        out = attn.o_proj(torch.einsum("hqp,phk->qhk", pattern, v).flatten(1))
        x = x + (out * f.attn_out_gain if mode.norms_frozen else layer.post_attention_layernorm(out))
        read = x * f.mlp_in_gain if mode.norms_frozen else layer.pre_feedforward_layernorm(x)

        def computed(read: Tensor = read, i: int = i, layer: torch.nn.Module = layer) -> Tensor:
            raw = layer.mlp(read)
            if not mode.norms_frozen:
                return layer.post_feedforward_layernorm(raw)
            before = layer.mlp(frozen.mlp_in[i])
            return raw * layer.post_feedforward_layernorm(before) / before

        x = x + mlp_output(s, intervention, mode, writes, i, read, computed)
    return hf.lm_head(x[-1] * frozen.final_gain if mode.norms_frozen else hf.model.norm(x[-1]))


def free_pattern(s: Setting, layer: int, read: Tensor) -> Tensor:
    """(H, P, P)"""
    block, at = s.model.block(layer), torch.arange(len(read))
    keys = block.keys(read, at).repeat_interleave(2, 1)
    scores = torch.einsum("qhk,phk->hqp", block.queries(read, at), keys)
    distance = at[:, None] - at
    hidden = (distance < 0) | (distance >= (block.window or len(at)))
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def mlp_output(s: Setting, intervention: Intervention, mode: Mode, writes: dict[int, Tensor], layer: int, x: Tensor,
               computed: Callable[[], Tensor]) -> Tensor:
    """(P, D) what an MLP gives, edits included; ``writes`` collects what they write to this layer and later ones."""
    made, frozen = s.made, s.local.frozen
    kind = "clamped" if mode.clamped is not None and layer in mode.clamped else mode.mlps
    before = made.encode(layer, frozen.mlp_in[layer])
    now = before if kind == "clamped" else made.encode(layer, x)
    if kind == "replaced":
        response = now - before
        response[0] = 0
        for j in range(made.w_dec[layer].shape[1]):
            writes[layer + j] += response @ made.w_dec[layer][:, j]
    for edit in intervention.edits:
        if isinstance(edit, FeatureEdit) and edit.layer == layer:
            for p in positions(s, edit):
                old, current = before[p, edit.feature], now[p, edit.feature]
                wanted = {"scale": edit.amount * old, "set": edit.amount, "add": current + edit.amount}[edit.operation]
                for j in range(made.w_dec[layer].shape[1]):
                    if mode.clamped is None or layer + j in mode.clamped:
                        writes[layer + j][p] += (wanted - current) * made.w_dec[layer][edit.feature, j]
        elif isinstance(edit, ErrorEdit) and edit.layer == layer:
            reconstruction = made.b_dec[layer] + sum(
                (made.encode(i, frozen.mlp_in[i])[edit.position] @ made.w_dec[i][:, layer - i]
                 for i in range(layer + 1) if layer - i < made.w_dec[i].shape[1]), torch.zeros(x.shape[1]))
            if made.skip:
                reconstruction = reconstruction + frozen.mlp_in[layer, edit.position] @ made.skip[layer]
            error = frozen.mlp_out[layer, edit.position] - reconstruction
            writes[layer][edit.position] += (edit.amount - 1) * error
        elif isinstance(edit, DirectionEdit) and edit.layer == layer:
            for p in positions(s, edit):
                writes[layer][p] += edit.amount * edit.vector
    if kind == "free":
        return computed() + writes[layer]
    linear = (x - frozen.mlp_in[layer]) @ made.skip[layer] if made.skip else 0
    return frozen.mlp_out[layer] + linear + writes[layer]


def positions(s: Setting, edit: FeatureEdit | DirectionEdit) -> list[int]:
    given = positions_of(edit.positions, len(TOKENS))
    if given is not None:
        return given
    if isinstance(edit, FeatureEdit) and edit.operation == "scale":
        return torch.nonzero(s.made.encode(edit.layer, s.local.frozen.mlp_in[edit.layer])[1:, edit.feature]
                             )[:, 0].add(1).tolist()
    return list(range(1, len(TOKENS)))


def token_changes(local: LocalReplacement, intervention: Intervention) -> Tensor:
    changes = torch.zeros_like(local.frozen.embeddings)
    for edit in intervention.edits:
        if isinstance(edit, TokenEdit):
            changes[edit.position] += (edit.amount - 1) * local.frozen.embeddings[edit.position]
    return changes


@pytest.mark.parametrize("name", MODES)
def test_every_mode_equals_a_slow_run(setting: Setting, name: str) -> None:
    mode, interventions = MODES[name], some_interventions(setting.local)
    if mode.clamped is not None:
        interventions = [i for i in interventions
                         if all(isinstance(e, TokenEdit) or e.layer in mode.clamped for e in i.edits)]
        assert len(interventions) >= 4
    outcome = intervene(setting.model, setting.transcoders, setting.local, interventions, mode)
    slow = with_hooks if hooked(mode) else written_out
    before = slow(setting, Intervention(()), mode)
    torch.testing.assert_close(outcome.logits_before, before, rtol=1e-5, atol=1e-5)
    for i, intervention in enumerate(interventions):
        expected = slow(setting, intervention, mode) - before
        size = float(expected.abs().max())
        assert size > 1e-3, "this intervention does nothing, so it tests nothing"
        torch.testing.assert_close(outcome.logit_changes[i], expected, rtol=0, atol=3e-5 * max(size, 1.0))


def test_doubling_every_node_moves_every_target_by_its_edge(setting: Setting) -> None:
    graph = circuits.trace(setting.model, setting.transcoders, tokens=TOKENS, coverage=1.0)
    nodes, local = graph.nodes, setting.local
    features = np.flatnonzero(nodes.kind == "feature")
    sources = np.flatnonzero(np.isin(nodes.kind, ["feature", "error", "embedding"]))
    interventions = [Intervention((_double(nodes, int(i)),)) for i in sources]

    class Reads(Observer):
        """Of every feature, how much its pre-activation changes."""

        def __init__(self) -> None:
            self.found = np.zeros((len(nodes), len(sources)))

        def mlp_input(self, layer, rows, before, change) -> None:
            for target in features[nodes.layer[features] == layer]:
                here = rows.position[:len(change)] == int(nodes.position[target])
                read = change[here] @ setting.made.w_enc[layer][int(nodes.feature[target])]
                self.found[target, rows.item[:len(change)][here]] = read

    reads = Reads()
    outcome = intervene(setting.model, setting.transcoders, local, interventions, FROZEN, observer=reads)
    edges = graph.adjacency().toarray()[:, sources]
    for target in graph.target_nodes:
        vector = setting.model.unembedding[int(nodes.token[target])] - setting.model.mean_unembedding
        reads.found[target] = outcome.final_changes @ vector
    rows = nodes.expanded
    assert rows[features].all()
    np.testing.assert_allclose(reads.found[rows], edges[rows], rtol=1e-4, atol=3e-6 * np.abs(edges).max())
    direct = intervene(setting.model, setting.transcoders, local, interventions[:len(features)],
                       MODES["all clamped and frozen"])
    torch.testing.assert_close(direct.final_changes, outcome.final_changes[:len(features)], rtol=1e-4, atol=1e-5)


def _double(nodes, i: int):
    layer, position = int(nodes.layer[i]), int(nodes.position[i])
    if nodes.kind[i] == "feature":
        return FeatureEdit(layer, int(nodes.feature[i]), position, amount=2.0)
    return ErrorEdit(layer, position, 2.0) if nodes.kind[i] == "error" else TokenEdit(position, 2.0)


@pytest.mark.parametrize("mode", [FREE, REPLACED, FROZEN])
def test_changed_features_and_several_passes(setting: Setting, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    interventions = some_interventions(setting.local)
    whole = intervene(setting.model, setting.transcoders, setting.local, interventions, mode, features=True)
    monkeypatch.setattr(running, "NUMBERS", 2 * len(TOKENS) * 32)
    parts = intervene(setting.model, setting.transcoders, setting.local, interventions, mode, features=True)
    torch.testing.assert_close(whole.final_changes, parts.final_changes, rtol=1e-5, atol=1e-5)
    for outcome in (whole, parts):
        effects = outcome.features
        assert effects is not None
        for i, intervention in enumerate(interventions):
            expected = changed_features(setting, intervention, mode)
            mine = torch.zeros_like(expected)
            at = effects.item == i
            mine[effects.layer[at], effects.position[at], effects.feature[at]] = effects.change[at]
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=2e-5)


def changed_features(s: Setting, intervention: Intervention, mode: Mode) -> Tensor:
    """(L, P, F)"""
    slow = with_hooks if hooked(mode) else written_out
    after, before = (_mlp_inputs(s, given, mode, slow) for given in (intervention, Intervention(())))
    return torch.stack([_encoded(s, i, after[i]) - _encoded(s, i, before[i]) for i in range(N_LAYERS)])


def _mlp_inputs(s: Setting, intervention: Intervention, mode: Mode, slow: Callable) -> list[Tensor]:
    inputs: list[Tensor] = []
    original = globals()["mlp_output"]

    def recording(s, given, mode, writes, layer, x, computed):
        inputs.append(x.clone())
        return original(s, given, mode, writes, layer, x, computed)

    globals()["mlp_output"] = recording
    try:
        slow(s, intervention, mode)
    finally:
        globals()["mlp_output"] = original
    return inputs


def _encoded(s: Setting, layer: int, x: Tensor) -> Tensor:
    value = s.made.encode(layer, x)
    value[0] = 0
    return value


def test_tiles_change_nothing(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    interventions = some_interventions(setting.local)
    whole = [intervene(setting.model, setting.transcoders, setting.local, interventions, mode).final_changes
             for mode in (FREE, FROZEN)]
    monkeypatch.setattr(padded, "SCORES", 100)
    for mode, expected in zip((FREE, FROZEN), whole, strict=True):
        tiled = intervene(setting.model, setting.transcoders, setting.local, interventions, mode)
        torch.testing.assert_close(tiled.final_changes, expected, rtol=1e-5, atol=1e-5)


def test_only_what_can_change_is_computed(setting: Setting) -> None:
    class Sizes(Observer):
        def __init__(self) -> None:
            self.rows: list[int] = []

        def mlp_input(self, layer, rows, before, change) -> None:
            self.rows.append(len(change))

    sizes, vector = Sizes(), torch.ones(32)
    given = [Intervention((DirectionEdit(layer, vector, position),)) for layer, position in ((0, 9), (2, 4), (3, 2))]
    outcome = intervene(setting.model, setting.transcoders, setting.local, given, observer=sizes)
    assert sizes.rows == [0, 3, 3, 11]
    assert (outcome.final_changes[:2].abs().amax(1) > 0).all()
    assert not outcome.final_changes[2].any()  # written after the last layer, before the last position


def test_layers_of_a_block_are_those_of_the_model(model: Gemma3) -> None:
    frozen = model.freeze(TOKENS)
    x, at = frozen.embeddings, torch.arange(len(TOKENS))
    for layer in range(N_LAYERS):
        block, recorded = model.block(layer), frozen.layers[layer]
        unchanged = Unchanged.of(block, x)
        torch.testing.assert_close(block.queries(unchanged.attn_in, at).transpose(0, 1), recorded.queries)
        torch.testing.assert_close(unchanged.keys.transpose(0, 1), recorded.keys)
        torch.testing.assert_close(unchanged.mlp_in, frozen.mlp_in[layer])
        torch.testing.assert_close(unchanged.out - unchanged.mid, frozen.mlp_out[layer], rtol=1e-5, atol=1e-5)
        x = unchanged.out
    normed = model.final_norm(x[-1])
    torch.testing.assert_close(normed, frozen.final_normed)
    torch.testing.assert_close(model.unembed(normed), frozen.logits)


@pytest.mark.parametrize("k", [3, None])
def test_features_of_other_activations(model: Gemma3, tmp_path: Path, k: int | None) -> None:
    """TopK, where one feature's value depends on all the others, and ReLU."""
    made = small_dictionary("plt", skip=False)
    made.threshold = [torch.zeros(20) for _ in range(N_LAYERS)]
    folder = native_folder(tmp_path / "set", made)
    transcoders = circuits.open_transcoders(folder)
    for stored in transcoders._layers:
        object.__setattr__(stored, "k", k)

    def encode(layer: int, x: Tensor) -> Tensor:
        value = (x @ made.w_enc[layer].T + made.b_enc[layer]).relu()
        kept = value.topk(k or 20, -1)
        return torch.zeros_like(value).scatter(-1, kept.indices, kept.values)

    made.encode = encode
    s = Setting(model, transcoders, made, local_replacement(model, transcoders, TOKENS))
    for intervention in some_interventions(s.local)[:8]:
        for mode in (FREE, Mode(False, False, "replaced")):
            outcome = intervene(model, transcoders, s.local, intervention, mode)
            expected = with_hooks(s, intervention, mode) - outcome.logits_before
            torch.testing.assert_close(outcome.logit_changes[0], expected, rtol=1e-4, atol=1e-4)


def test_probabilities_and_divergence(setting: Setting) -> None:
    interventions = some_interventions(setting.local)
    outcome = intervene(setting.model, setting.transcoders, setting.local, interventions)
    before, after = outcome.probabilities_before, outcome.probabilities
    assert after.shape == (len(interventions), 128)
    expected = torch.nn.functional.kl_div(after.log(), before, reduction="none").sum(-1)
    torch.testing.assert_close(outcome.kl, expected, rtol=1e-3, atol=1e-6)
    nothing = intervene(setting.model, setting.transcoders, setting.local, _times_one(setting))
    assert float(nothing.kl.max()) < 1e-9


def _times_one(s: Setting) -> list[Intervention]:
    active = s.local.active
    return [scale(int(active.layer[i]), int(active.feature[i]), 1.0) for i in (0, len(active) // 2)]


def test_features_are_left_alone_at_masked_positions(setting: Setting) -> None:
    tokens = [2, 105, 17, 107, 99, 31, 5, 64]
    from circuits import replacement

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replacement, "masked_prefix", lambda tokens: 4)
        local = local_replacement(setting.model, setting.transcoders, tokens)
    vector = torch.ones(32)
    everywhere = intervene(setting.model, setting.transcoders, local, Intervention((DirectionEdit(0, vector),)))
    named = intervene(setting.model, setting.transcoders, local, Intervention((DirectionEdit(0, vector, range(4, 8)),)))
    torch.testing.assert_close(everywhere.final_changes, named.final_changes)
    changed = intervene(setting.model, setting.transcoders, local, Intervention((TokenEdit(1, 3.0),)), REPLACED,
                        features=True).features
    assert changed is not None
    assert changed.position.min() >= 4
    for edit in (FeatureEdit(0, 1, 3), ErrorEdit(1, 2)):
        with pytest.raises(InputError, match="features are not read at the first 4"):
            intervene(setting.model, setting.transcoders, local, Intervention((edit,)))


@pytest.mark.parametrize(("edits", "mode", "message"), [
    ([FeatureEdit(0, 20, 3)], FREE, "layer 0 has no feature 20: expected 0 to 19"),
    ([FeatureEdit(4, 1, 3)], FREE, "layer 4 cannot be changed: expected 0 to 3"),
    ([ErrorEdit(-1, 3)], FREE, "layer -1 cannot be changed"),
    ([FeatureEdit(0, 1, 12)], FREE, "position 12 is not on the prompt, which has 12 tokens"),
    ([FeatureEdit(0, 1, -13)], FREE, "position -13 is not on the prompt"),
    ([FeatureEdit(0, 1, [])], FREE, "an edit names no position"),
    ([FeatureEdit(0, 1, 3, "set", 1.0)] * 2, FREE, "changes feature 0/1 at position 3 twice"),
    ([FeatureEdit(3, 1, 3, "set", 1.0)], constrained(0, 2), "at layer 3, outside of the clamped layers 0 to 2"),
    ([TokenEdit(1, 1.0)], constrained(2, 4), "layers 2 to 4 cannot be clamped: expected a range inside 0 to 3"),
    ([TokenEdit(1, 1.0)], constrained(2, 1), "layers 2 to 1 cannot be clamped"),
    ([DirectionEdit(1, torch.ones(31), 3)], FREE, "the direction has 31 dimensions, the model 32"),
    ([], FREE, "changes nothing")])
def test_impossible_edits(setting: Setting, edits: list, mode: Mode, message: str) -> None:
    with pytest.raises(InputError, match=message):
        intervene(setting.model, setting.transcoders, setting.local, Intervention(tuple(edits)), mode)


def test_silent_features_cannot_be_scaled(setting: Setting) -> None:
    active = setting.local.active
    silent = next(f for f in range(20) if not ((active.layer == 1) & (active.feature == f)).any())
    with pytest.raises(InputError, match=rf"feature 1/{silent} is not active at position 3 \(nowhere on this prompt\)"):
        intervene(setting.model, setting.transcoders, setting.local, ablate(1, silent, 3))
    with pytest.raises(InputError, match="is not active "):
        intervene(setting.model, setting.transcoders, setting.local, ablate(1, silent))
    with pytest.raises(InputError, match="there is no intervention"):
        intervene(setting.model, setting.transcoders, setting.local, [])


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -float("inf")])
def test_amounts_are_finite(amount: float) -> None:
    for make in (lambda: scale(0, 1, amount), lambda: ErrorEdit(0, 1, amount), lambda: TokenEdit(1, amount),
                 lambda: DirectionEdit(0, torch.ones(4), None, amount)):
        with pytest.raises(InputError, match="expected a finite number"):
            make()
    with pytest.raises(InputError, match="expected one direction of finite numbers"):
        DirectionEdit(0, torch.tensor([1.0, amount]))
    with pytest.raises(InputError, match="operation is 'kill'"):
        FeatureEdit(0, 1, None, "kill")


def test_modes_by_name() -> None:
    assert [read_mode(name) for name in ("free", "frozen", "replaced", "2-5")] == [FREE, FROZEN, REPLACED,
                                                                                constrained(2, 5)]
    for wrong in ("", "Free", "3", "1-2-3", "-1-2", "a-b"):
        with pytest.raises(InputError, match="expected frozen, replaced, free, or layers such as 5-12"):
            read_mode(wrong)
