"""Pairs of components sum to the score that Hugging Face's own attention computes, whatever the layer and the set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from test_attribution import D_MODEL, TOKENS, write
from tiny_models import text_folder
from transformers.models.gemma3.modeling_gemma3 import apply_rotary_pos_emb

import circuits
from circuits.attention import qk, sides
from circuits.attention.components import KINDS, Component, Components
from circuits.attention.qk import QKAttribution, qk_attribution
from circuits.attention.sides import SideReader
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.replacement import LocalReplacement, build_replacement

SCORE_SCALE = 20**-0.5
DICTIONARIES = [("plt", False), ("plt", True), ("clt", False), ("clt", True)]
# (layer, head, query, key): local layers see 5 positions, the two heads of a group and both groups, the masked <bos>
PLACES = [(0, 1, 11, 8), (1, 0, 11, 0), (1, 3, 7, 7), (2, 2, 11, 9), (3, 1, 11, 2), (3, 2, 4, 0), (2, 0, 0, 0)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    """Its score scale is not that of its head_dim, and its rotary bases differ as in released models."""
    folder = text_folder(tmp_path_factory.mktemp("model"), query_pre_attn_scalar=20)
    return circuits.load_model(folder, device="cpu")


@pytest.fixture(scope="module", params=DICTIONARIES, ids=lambda kind: kind[0] + "-skip" * kind[1])
def local(request: pytest.FixtureRequest, model: Gemma3, tmp_path_factory: pytest.TempPathFactory) -> LocalReplacement:
    return replacement(model, tmp_path_factory.mktemp("set"), *request.param)


@pytest.fixture(scope="module")
def reader(model: Gemma3, local: LocalReplacement) -> SideReader:
    """Shared by the tests of one dictionary."""
    return SideReader(model, local)


@pytest.fixture(scope="module")
def skip_clt(model: Gemma3, tmp_path_factory: pytest.TempPathFactory) -> LocalReplacement:
    return replacement(model, tmp_path_factory.mktemp("clt"), "clt", True)


def replacement(model: Gemma3, folder: Path, kind: str, skip: bool) -> LocalReplacement:
    return build_replacement(model, circuits.open_transcoders(write(folder, kind, skip)[1]), TOKENS)


@dataclass
class Attended:
    """A layer's attention as Hugging Face's modules compute it; keys are repeated for each query head."""

    queries: torch.Tensor
    """(H, P, K) with the score scale."""
    keys: torch.Tensor
    """(H, P, K)"""
    q_scale: torch.Tensor
    """(H, P, 1) of q_norm; of k_norm below."""
    k_scale: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor]
    """(1, P, K) cosine and sine."""

    def scores(self, head: int) -> torch.Tensor:
        """(P, P) float64"""
        return self.queries[head].double() @ self.keys[head].double().T


@pytest.fixture(scope="module")
def attended(model: Gemma3) -> list[Attended]:
    seen = []

    def note(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        x = kwargs["hidden_states"]
        q, k = (projection(x).view(1, len(TOKENS), -1, model.head_dim).transpose(1, 2)
                for projection in (module.q_proj, module.k_proj))
        k = k.repeat_interleave(model.n_heads // model.n_kv_heads, 1)
        queries, keys = apply_rotary_pos_emb(module.q_norm(q), module.k_norm(k), *kwargs["position_embeddings"])
        q_scale, k_scale = (torch.rsqrt(x[0].pow(2).mean(-1, keepdim=True) + model.norm_eps) for x in (q, k))
        seen.append(Attended(queries[0] * SCORE_SCALE, keys[0], q_scale, k_scale, kwargs["position_embeddings"]))

    handles = [layer.self_attn.register_forward_pre_hook(note, with_kwargs=True) for layer in model.hf.model.layers]
    with torch.no_grad():
        model.hf.model(torch.tensor([TOKENS]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def brute(found: QKAttribution) -> np.ndarray:
    """(C, C') every pair."""
    return found.queries.vectors.double().numpy() @ found.keys.vectors.double().numpy().T


@pytest.mark.parametrize(("layer", "head", "query", "key"), PLACES)
def test_pairs_sum_to_the_score(model: Gemma3, local: LocalReplacement, reader: SideReader, attended: list[Attended],
                                layer: int, head: int, query: int, key: int) -> None:
    found = qk_attribution(model, local, layer, head, query, key, reader=reader)
    for side, vector in ((found.queries, attended[layer].queries[head, query]),
                         (found.keys, attended[layer].keys[head, key])):
        torch.testing.assert_close(side.total().float(), vector, rtol=0, atol=1e-5 * float(vector.norm()))
    score = float(attended[layer].scores(head)[query, key])
    assert found.score == pytest.approx(score, rel=1e-5)
    assert brute(found).sum() == pytest.approx(score, rel=1e-5)
    assert 0 < found.residual < 1e-5
    close = 1e-6 * np.abs(brute(found)).sum()
    np.testing.assert_allclose(found.by_query(), brute(found).sum(1), rtol=0, atol=close)
    np.testing.assert_allclose(found.by_key(), brute(found).sum(0), rtol=0, atol=close)


def carried(local: LocalReplacement, layer: int) -> torch.Tensor:
    """(S, P, D) what every source is before ``layer``'s attention, by carrying each one forward."""
    frozen, masked = local.frozen, local.masked
    at = torch.arange(local.n_positions)
    x = torch.zeros(local.n_sources, local.n_positions, D_MODEL)
    x[local.first_embedding + at, at] = frozen.embeddings
    for below in range(layer):
        x = x + frozen.layers[below].written(frozen.layers[below].transported(x))
        skip, writes = local.skips[below], local.writes[below]
        if skip is not None:
            x = x + (x * frozen.layers[below].mlp_in_gain) @ skip
        x[writes.node, writes.position] += writes.value[:, None] * writes.decoders[writes.row]
        x[local.first_constant + below, masked:] += local.biases[below]
    return x


@pytest.mark.parametrize(("layer", "head", "query", "key"), PLACES)
def test_every_component_is_carried_forward(model: Gemma3, local: LocalReplacement, reader: SideReader,
                                            attended: list[Attended], layer: int, head: int, query: int, key: int
                                            ) -> None:
    found = qk_attribution(model, local, layer, head, query, key, reader=reader)
    module, seen = model.hf.model.layers[layer].self_attn, attended[layer]
    x = carried(local, layer) * local.frozen.layers[layer].attn_in_gain
    for side, at, projection, norm, scale, factor in (
            (found.queries, query, module.q_proj, module.q_norm, seen.q_scale, SCORE_SCALE),
            (found.keys, key, module.k_proj, module.k_norm, seen.k_scale, 1.0)):
        row = head if side is found.queries else head // 2
        vectors = projection(x[:, at]).view(len(x), -1, model.head_dim)[:, row]
        vectors = vectors * scale[head, at] * (1 + norm.weight) * factor
        cos, sin = (part[0, at] for part in seen.rotary)
        expected = apply_rotary_pos_emb(vectors, vectors, cos, sin, unsqueeze_dim=0)[0]
        ours = torch.zeros_like(expected)
        ours[side.source] = side.vectors
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * float(expected.norm(dim=1).max()))
        np.testing.assert_array_equal(np.sort(side.source), side.source)
        assert set(side.position) == {at}


def test_the_first_layer_reads_one_embedding(model: Gemma3, skip_clt: LocalReplacement) -> None:
    found = qk_attribution(model, skip_clt, 0, 2, 11, 8)
    assert found.queries.source.tolist() == [skip_clt.first_embedding + 11]
    assert [pair.key_source for pair in found.pairs(5)] == [skip_clt.first_embedding + 8]
    assert found.by_kind()[2, 2] == pytest.approx(found.score, rel=1e-5)


def test_totals_by_kind_and_position(model: Gemma3, local: LocalReplacement, reader: SideReader) -> None:
    found = qk_attribution(model, local, 3, 1, 11, 4, versus_key=0, reader=reader)
    pairs, parts = brute(found), found.components
    close = 1e-6 * np.abs(pairs).sum()
    for totals, groups in ((found.by_kind(), parts.kind), (found.by_position(), np.where(
            parts.position < 0, len(TOKENS), parts.position))):
        of_query, of_key = groups[found.queries.source], groups[found.keys.source]
        expected = [[pairs[np.ix_(of_query == i, of_key == j)].sum() for j in range(len(totals))]
                    for i in range(len(totals))]
        np.testing.assert_allclose(totals, expected, rtol=0, atol=close)
        assert totals.sum() == pytest.approx(found.score, rel=1e-5)
    assert found.by_position().shape == (13, 13)
    constants = found.by_kind()[KINDS.index("constant")]
    assert np.abs(constants).min() > 10 * close


def test_a_contrast_is_the_difference_of_two_keys(model: Gemma3, local: LocalReplacement, reader: SideReader,
                                                  attended: list[Attended]) -> None:
    first, second = (qk_attribution(model, local, 2, 3, 11, key, reader=reader) for key in (8, 10))
    found = qk_attribution(model, local, 2, 3, 11, 8, versus_key=10, reader=reader)
    scores = attended[2].scores(3)[11]
    assert found.score == pytest.approx(float(scores[8] - scores[10]), rel=1e-5)
    assert np.exp(found.score) == pytest.approx(found.pattern[8] / found.pattern[10], rel=1e-4)
    assert found.residual < 1e-5
    np.testing.assert_allclose(found.by_query(), first.by_query() - second.by_query(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.by_key(), np.concatenate([first.by_key(), -second.by_key()]), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.keys.position, [8] * len(first.keys.source) + [10] * len(second.keys.source))
    pairs = {(p.query_source, p.key_source, p.key_position): p.contribution for p in found.pairs(200)}
    assert {position for *_, position in pairs} == {8, 10}
    for part, sign in ((first, 1), (second, -1)):
        for pair in part.pairs(20):
            assert pairs[pair.query_source, pair.key_source, pair.key_position] == pytest.approx(
                sign * pair.contribution, rel=1e-4)


def test_what_two_keys_share_cancels_in_a_merged_contrast(model: Gemma3, local: LocalReplacement, reader: SideReader
                                                          ) -> None:
    found = qk_attribution(model, local, 2, 3, 11, 8, versus_key=10, reader=reader)
    merged = found.merged()
    assert merged.keys.source.tolist() == sorted(set(found.keys.source.tolist()))
    assert len(merged.keys.source) < len(found.keys.source)
    assert {pair.key_position for pair in merged.pairs(30)} == {-1}
    expected = np.zeros(len(found.components))
    np.add.at(expected, found.keys.source, found.by_key())
    np.testing.assert_allclose(merged.by_key(), expected[merged.keys.source], rtol=0, atol=1e-5)
    np.testing.assert_allclose(merged.by_query(), found.by_query(), rtol=0, atol=1e-5)
    single = qk_attribution(model, local, 2, 3, 11, 8, reader=reader)
    assert single.merged() is single


@pytest.mark.parametrize("at_once", [1, 700, qk.PAIRS_AT_ONCE])
def test_strongest_pairs(model: Gemma3, skip_clt: LocalReplacement, monkeypatch: pytest.MonkeyPatch, at_once: int
                         ) -> None:
    monkeypatch.setattr(qk, "PAIRS_AT_ONCE", at_once)
    found = qk_attribution(model, skip_clt, 3, 2, 11, 5)
    pairs = brute(found)
    best = np.argsort(-np.abs(pairs), axis=None)[:50]
    row, column = np.unravel_index(best, pairs.shape)
    ours = found.pairs(50)
    assert [(p.query_source, p.key_source, p.key_position) for p in ours] == [
        (int(found.queries.source[i]), int(found.keys.source[j]), 5) for i, j in zip(row, column, strict=True)]
    np.testing.assert_allclose([p.contribution for p in ours], pairs[row, column], rtol=1e-4)
    everything = found.pairs(10**6)
    assert len(everything) == pairs.size
    assert sum(p.contribution for p in everything) == pytest.approx(found.score, rel=1e-4)
    assert found.pairs(0) == []


@pytest.mark.parametrize("head_dim", [1, 6])  # of one number, a pair is as large as its vectors' lengths allow
def test_short_vectors_are_not_multiplied(monkeypatch: pytest.MonkeyPatch, head_dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(400, head_dim, generator=generator) * torch.linspace(-4, 2, 400).exp()[:, None]
            for _ in range(2))
    multiplied = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(qk, "PAIRS_AT_ONCE", 20)
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, count: multiplied.append(len(x)) or topk(x, count))
    row, column, value = qk.strongest(q, k, 100)
    expected = np.sort(np.abs((q @ k.T).numpy()), axis=None)[::-1][:100]
    np.testing.assert_allclose(np.abs(value), expected, rtol=1e-5)
    np.testing.assert_allclose(value, (q[row] * k[column]).sum(1).numpy(), rtol=1e-4)
    assert max(multiplied) <= 400  # one row of all keys
    assert sum(multiplied) < 0.2 * 400 * 400


def test_the_competition(model: Gemma3, skip_clt: LocalReplacement, attended: list[Attended]) -> None:
    for layer, first in ((2, 7), (3, 0)):
        found = qk_attribution(model, skip_clt, layer, 1, 11, 9)
        expected = attended[layer].scores(1)[11].float().masked_fill(torch.arange(12) < first, -torch.inf)
        np.testing.assert_allclose(found.scores, expected.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.pattern, expected.softmax(0).numpy(), rtol=1e-4, atol=1e-6)
        assert found.scores[9] == pytest.approx(found.score, rel=1e-5)
    assert len(qk_attribution(model, skip_clt, 3, 1, 4, 2).scores) == 5


def test_components_are_named_as_the_nodes_of_the_graph(model: Gemma3, tmp_path: Path) -> None:
    transcoders = circuits.open_transcoders(write(tmp_path, "clt", True)[1])
    local = build_replacement(model, transcoders, TOKENS)
    graph = circuits.trace(model, transcoders, tokens=TOKENS, coverage=0.1)
    parts = Components.of(local)
    texts = graph.header.token_texts
    assert len(parts) == local.n_sources == len(graph) - len(graph.target_nodes)
    for number, node in zip(range(len(parts)), graph.nodes.rows(), strict=False):
        part = parts[number]
        assert part == Component(number, node["kind"], node["layer"], node["position"], node["feature"])
        label = node["label"] if part.kind != "feature" else f'{node["label"]} at "{texts[part.position]}"'
        assert part.words(texts) == label
    assert parts[0].words(texts, "capitals").startswith(f"{parts[0].layer}/{parts[0].feature} capitals at ")


def test_a_reader_reads_each_side_once(model: Gemma3, skip_clt: LocalReplacement, monkeypatch: pytest.MonkeyPatch
                                       ) -> None:
    reads = []
    read = SideReader._projected
    monkeypatch.setattr(SideReader, "_projected", lambda self, *a: reads.append(a[:2]) or read(self, *a))
    reader = SideReader(model, skip_clt)
    alone = [qk_attribution(model, skip_clt, 3, head, 11, 4) for head in (0, 1, 2)]
    reads.clear()
    for head in (0, 1, 2):
        found = qk_attribution(model, skip_clt, 3, head, 11, 4, reader=reader)
        np.testing.assert_array_equal(found.by_query(), alone[head].by_query())
    assert reads == [(3, 11), (3, 4), (3, 11), (3, 11), (3, 4)]  # heads 0 and 1 share keys, head 2 has others
    monkeypatch.setattr(sides, "KEPT", 0)
    reader.key(3, 0, 4)
    assert len(reads) == 5
    reader.query(3, 0, 11)
    assert len(reads) == 6  # only the latest side had been kept


@pytest.mark.parametrize(("place", "versus_key", "message"), [
    ((4, 0, 5, 3), None, "layer is 4: the model has layers 0 to 3"),
    ((-1, 0, 5, 3), None, "layer is -1"),
    ((1, 4, 5, 3), None, "head is 4: layer 1 has heads 0 to 3"),
    ((1, 0, 12, 3), None, "query is 12: the prompt has positions 0 to 11"),
    ((1, 0, 5, 6), None, "key is 6, after the query: query 5 of layer 1 sees keys 0 to 5"),
    ((1, 0, 5, -1), None, "key is -1: query 5 of layer 1 sees keys 0 to 5"),
    ((1, 0, 5, 12), None, "key is 12: query 5 of layer 1 sees keys 0 to 5"),
    ((2, 0, 11, 6), None, "key is 6, outside the window of layer 2, a local one: query 11 sees keys 7 to 11"),
    ((2, 0, 11, 7), 6, "versus_key is 6, outside the window"),
    ((1, 0, 5, 3), 6, "versus_key is 6, after the query"),
    ((1, 0, 5, 3), 3, "versus_key is 3, the key itself")])
def test_bad_places(model: Gemma3, skip_clt: LocalReplacement, place: tuple[int, int, int, int],
                    versus_key: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        qk_attribution(model, skip_clt, *place, versus_key=versus_key)


def test_a_reader_of_another_prompt(model: Gemma3, skip_clt: LocalReplacement, tmp_path: Path) -> None:
    other = replacement(model, tmp_path, "clt", True)
    with pytest.raises(InputError, match="reader reads another prompt"):
        qk_attribution(model, skip_clt, 1, 0, 5, 3, reader=SideReader(model, other))
