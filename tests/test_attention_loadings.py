"""Head loadings against the graph's own edges, and against edges measured without a head (METHOD 6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_attribution import TOKENS, small_dictionary
from tiny_models import text_folder
from transcoder_folders import Dictionary, gemma_scope_clt, gemma_scope_plt

import circuits
from circuits.attention import edge_heads, loadings
from circuits.attention.edge_heads import HeadLoadings, graph_head_loadings, strongest_edges, strongest_heads
from circuits.errors import InputError
from circuits.frontier import feature_starts
from circuits.frozen import FrozenPass
from circuits.gemma3 import Gemma3
from circuits.graph_nodes import replacement_of, source_numbers, starts_of, targets_of
from circuits.graphs import AttributionGraph
from circuits.prompt import CHAT_PREFIX
from circuits.transcoder import Transcoders

KINDS = ["plt", "plt skip", "clt", "clt skip", "chat"]
CHAT = [*CHAT_PREFIX, *TOKENS[1:]]


@dataclass
class Case:
    model: Gemma3
    made: Dictionary
    transcoders: Transcoders
    graph: AttributionGraph
    found: HeadLoadings


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """A full graph of each kind of transcoder, and one of a chat prompt, whose masked prefix is longer."""
    folder = tmp_path_factory.mktemp("loadings")
    models = {size: circuits.load_model(text_folder(folder / str(size), vocab_size=size), device="cpu")
              for size in (128, 2400)}
    made = {}
    for name in KINDS:
        model, tokens = (models[2400], CHAT) if name == "chat" else (models[128], TOKENS)
        kind = "plt" if name.startswith("plt") else "clt"
        dictionary = small_dictionary(kind, name != kind)
        source = (gemma_scope_clt if kind == "clt" else gemma_scope_plt)(folder / name.replace(" ", "_"), dictionary)
        transcoders = circuits.open_transcoders(source)
        graph = circuits.trace(model, transcoders, tokens=tokens, coverage=1.0, max_logits=3)
        made[name] = Case(model, dictionary, transcoders, graph, graph_head_loadings(graph, model, transcoders))
    return made


def written(case: Case, frozen: FrozenPass) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, L, P, D) what every node writes at each layer, and (N, P, D) as an embedding; from the dictionary's own
    tensors and METHOD 3."""
    nodes, made = case.graph.nodes, case.made
    n_layers, n_pos, d_model = frozen.mlp_out.shape
    at_layer, before = torch.zeros(len(nodes), n_layers, n_pos, d_model), torch.zeros(len(nodes), n_pos, d_model)
    for n in np.flatnonzero(nodes.kind == "feature"):
        layer = int(nodes.layer[n])
        for j in range(made.w_dec[layer].shape[1]):
            at_layer[n, layer + j, nodes.position[n]] = made.w_dec[layer][nodes.feature[n], j] * float(nodes.value[n])
    linear = torch.stack([x @ made.skip[i] if made.skip else torch.zeros_like(x) for i, x in enumerate(frozen.mlp_in)])
    left = frozen.mlp_out - linear
    error = left - at_layer.sum(0) - torch.stack(made.b_dec)[:, None]
    for n in np.flatnonzero(np.isin(nodes.kind, ["error", "constant"])):
        layer, position = int(nodes.layer[n]), int(nodes.position[n])
        if position < 0:
            at_layer[n, layer, len(CHAT_PREFIX) if case.graph.header.tokens == CHAT else 1:] = made.b_dec[layer]
        else:
            at_layer[n, layer, position] = (error if nodes.kind[n] == "error" else left)[layer, position]
    for n in np.flatnonzero(nodes.kind == "embedding"):
        before[n, nodes.position[n]] = frozen.embeddings[nodes.position[n]]
    return at_layer, before


def measured(case: Case, frozen: FrozenPass, writes: tuple[torch.Tensor, torch.Tensor],
             without: tuple[int, int] | None = None) -> np.ndarray:
    """(N, N) every edge by carrying every node's writes forward, with einsum on Hugging Face's own weights; one
    (layer, head) brings nothing ``without`` it."""
    model, nodes = case.model, case.graph.nodes
    at_layer, x = writes
    edges = np.zeros((len(nodes), len(nodes)))

    def read(rows: np.ndarray, position: torch.Tensor, vectors: torch.Tensor) -> None:
        edges[rows] = torch.einsum("nkd,kd->kn", x[:, position], vectors).numpy()

    for i, (layer, f) in enumerate(zip(model.hf.model.layers, frozen.layers, strict=True)):
        v = layer.self_attn.v_proj(x * f.attn_in_gain).unflatten(-1, (model.n_kv_heads, model.head_dim))
        z = torch.einsum("hqp,nphk->nqhk", f.pattern, v.repeat_interleave(model.n_heads // model.n_kv_heads, 2))
        if without is not None and without[0] == i:
            z[:, :, without[1]] = 0
        x = x + layer.self_attn.o_proj(z.flatten(2)) * f.attn_out_gain
        rows = np.flatnonzero((nodes.kind == "feature") & (nodes.layer == i))
        position, feature = (torch.from_numpy(nodes[name][rows].astype(np.int64)) for name in ("position", "feature"))
        read(rows, position, case.made.w_enc[i][feature] * f.mlp_in_gain[position])
        x = x + at_layer[:, i] + ((x * f.mlp_in_gain) @ case.made.skip[i] if case.made.skip else 0)
    rows = np.flatnonzero(nodes.kind == "logit")
    unembedding = model.unembedding[torch.from_numpy(nodes.token[rows].astype(np.int64))] - model.unembedding.mean(0)
    read(rows, torch.full((len(rows),), x.shape[1] - 1), unembedding * frozen.final_gain)
    return edges


@pytest.mark.parametrize("name", KINDS)
def test_heads_and_bypass_sum_to_every_edge_at_every_layer(cases: dict[str, Case], name: str) -> None:
    graph, found = cases[name].graph, cases[name].found
    assert len(found) == graph.n_edges > 2000
    assert {str(kind) for kind in graph.nodes.kind[found.source]} == {"feature", "error", "embedding", "constant"}
    np.testing.assert_array_equal(found.weights, graph.adjacency()[found.target, found.source])
    assert found.differences().shape == (4,)
    assert found.differences().max() < edge_heads.TOLERANCE
    total = found.loadings.sum(2, dtype=np.float64) + found.bypass
    row = np.maximum.reduceat(np.abs(found.weights), graph.indptr[:-1][np.diff(graph.indptr) > 0])
    largest = np.repeat(row, np.diff(graph.indptr)[np.diff(graph.indptr) > 0])
    assert (np.abs(total - found.weights[:, None]) <= 3e-6 * largest[:, None]).all()
    # only layers above the source, up to the target, have anything to carry
    layer = np.where(graph.nodes.kind == "embedding", -1, graph.nodes.layer)
    between = (layer[found.source][:, None] < np.arange(4)) & (np.arange(4) <= layer[found.target][:, None])
    assert not found.loadings[~between].any()
    np.testing.assert_allclose(found.bypass[~between], total[~between], rtol=1e-6, atol=1e-7)
    moved = np.abs(found.loadings).sum(2)
    apart = graph.nodes.position[found.source] < graph.nodes.position[found.target]
    assert (moved[between & apart[:, None]] > 0).mean() > 0.9  # the window hides some


@torch.no_grad()
@pytest.mark.parametrize("name", ["plt skip", "clt", "chat"])
def test_loadings_are_what_edges_lose_without_a_head(cases: dict[str, Case], name: str) -> None:
    case = cases[name]
    graph, found = case.graph, case.found
    edges = found.target, found.source
    frozen = case.model.freeze(graph.header.tokens)
    writes = written(case, frozen)
    whole = measured(case, frozen, writes)
    scale = np.abs(whole).max(1)[found.target]
    assert (np.abs(whole[edges] - found.weights) <= 5e-6 * scale).all()
    below = np.zeros(len(found), bool)
    for layer in range(4):
        for head in range(4):
            loading = found.loadings[:, layer, head]
            lost = (whole - measured(case, frozen, writes, (layer, head)))[edges]
            assert (np.abs(lost - loading) <= 5e-6 * scale).all()
            if layer == 1:
                below |= (graph.nodes.layer[found.source] == 0) & (np.abs(loading) > 0.01 * scale)
    assert below.any()


def test_loadings_of_all_pairs(cases: dict[str, Case]) -> None:
    """In any order of sources and targets; pairs without an edge have none."""
    case = cases["clt skip"]
    graph, found = case.graph, case.found
    local = replacement_of(graph, case.model, case.transcoders)
    numbers = source_numbers(graph, local)
    sources = np.flatnonzero(numbers >= 0)[::-1]
    targets = np.random.default_rng(0).permutation(np.flatnonzero(graph.nodes.expanded))
    starts = starts_of(local, targets_of(graph, case.model, local), graph, targets)
    heads, bypass = (part.numpy() for part in loadings.head_loadings(local, numbers[sources], starts))
    assert heads.shape == (4, 4, len(targets), len(sources))
    dense = np.zeros((4, 4, len(graph), len(graph)), np.float32)
    dense[:, :, found.target, found.source] = found.loadings.transpose(1, 2, 0)
    edges = graph.adjacency().toarray()[targets]
    largest = np.abs(edges).max(1)[:, None]
    assert (np.abs(heads - dense[:, :, targets][..., sources]) <= 3e-6 * largest).all()
    assert (np.abs(heads.sum(1) + bypass - edges[:, sources]) <= 3e-6 * largest).all()
    assert loadings.head_loadings(local, np.zeros(0, np.int64), starts)[0].shape == (4, 4, len(targets), 0)
    with pytest.raises(InputError, match="same node twice"):
        loadings.head_loadings(local, np.array([1, 1]), starts)
    with pytest.raises(InputError, match="expected source nodes"):
        loadings.head_loadings(local, np.array([local.n_sources]), starts)
    with pytest.raises(InputError, match="enter before their layer's attention"):
        loadings.head_loadings(local, np.array([1]), replace(starts, before_attention=True))


def test_batches_do_not_change_loadings(cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases["clt skip"]
    graph = case.graph.prune(0.8, 0.95)
    expected = graph_head_loadings(graph, case.model, case.transcoders)
    per_layer = 32 + 4 * 12
    held, carried = 4 * per_layer * 24, per_layer * 24  # two targets of the last position, and two sources
    for name, value in (("HELD", held), ("CARRIED", carried), ("MOST", 7), ("ENOUGH", 2)):
        monkeypatch.setattr(loadings, name, value)
    carry_back, carry_forward, sizes = loadings.carry_back, loadings.carry_forward, []

    def back(*arguments):
        made = carry_back(*arguments)
        sizes.append(sum(at.state.numel() + at.by_head.numel() for at in made.layers.values()))
        return made

    def forward(*arguments):
        for layer, state, by_head in carry_forward(*arguments):
            assert state.numel() + by_head.numel() <= carried
            yield layer, state, by_head

    starts = feature_starts(replacement_of(graph, case.model, case.transcoders), np.arange(100))
    groups = loadings._target_groups(starts, SimpleNamespace(d_model=32, n_heads=4, head_dim=12), 4)
    np.testing.assert_array_equal(np.sort(np.concatenate([*chain(*groups)])), np.arange(100))
    assert max(len(group) for group in groups) > 1
    for group in groups:
        assert per_layer * sum(int((starts.layer[batch] + 1).sum() * (starts.position[batch].max() + 1))
                               for batch in group) <= held
    monkeypatch.setattr(loadings, "carry_back", back)
    monkeypatch.setattr(loadings, "carry_forward", forward)
    found = graph_head_loadings(graph, case.model, case.transcoders)
    assert len(sizes) > 5
    assert max(sizes) <= held
    scale = np.abs(graph.adjacency().toarray()).max(1)[found.target]
    assert (np.abs(expected.loadings - found.loadings) <= 3e-6 * scale[:, None, None]).all()
    assert (np.abs(expected.bypass - found.bypass) <= 3e-6 * scale[:, None]).all()


def test_pruned_graphs_and_chosen_edges(cases: dict[str, Case]) -> None:
    case = cases["clt"]
    pruned = case.graph.prune(0.6, 0.9)
    assert len(pruned) < len(case.graph) / 2
    found = graph_head_loadings(pruned, case.model, case.transcoders)
    assert found.differences().max() < edge_heads.TOLERANCE
    old = {node_id: i for i, node_id in enumerate(case.graph.node_ids)}
    edge = int(np.argmax(np.abs(found.loadings[:, 2, 1])))
    source, target = int(found.source[edge]), int(found.target[edge])
    ids = pruned.node_ids[source], pruned.node_ids[target]
    one = graph_head_loadings(pruned, case.model, case.transcoders, [ids])
    whole = case.found[case.found.number(old[ids[0]], old[ids[1]])]
    for part in (found[edge], one[one.number(source, target)]):
        assert part.edge == found.weights[edge]
        np.testing.assert_allclose(part.loadings, whole.loadings, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(part.bypass, whole.bypass, rtol=1e-4, atol=1e-6)
    assert len(one) == 1
    with pytest.raises(InputError, match="no loadings of an edge"):
        one.number(target, source)


def test_strongest_heads_and_the_edges_of_a_head(cases: dict[str, Case]) -> None:
    case = cases["plt skip"]
    found, graph = case.found, case.graph
    rows = strongest_heads(graph, case.model, case.transcoders, n_edges=50, per_edge=3)
    share = np.abs(graph.weights) / graph.nodes.input_abs[found.target]
    assert share[strongest_edges(graph, 50)].min() >= np.sort(share)[-50]
    pairs = list(zip(rows.target.tolist(), rows.source.tolist(), strict=True))
    assert pairs == sorted(pairs)
    assert len(set(pairs)) == 50
    for pair in set(pairs):
        here = [i for i, other in enumerate(pairs) if other == pair]
        edge = found.number(pair[1], pair[0])
        expected = np.sort(np.abs(found.loadings[edge]).ravel())[::-1][:3]
        np.testing.assert_allclose(np.abs(rows.loading[here]), expected[expected > 0], rtol=1e-4, atol=1e-6)
        for i, strongest in zip(here, found.strongest(edge, 3), strict=True):
            assert (rows.layer[i], rows.head[i]) == strongest[:2]
            assert found.loadings[edge, strongest.layer, strongest.head] == np.float32(strongest.loading)
    assert (rows.loading != 0).all()
    carried = np.abs(found.loadings[:, 1, 2]) / graph.nodes.input_abs[found.target]
    np.testing.assert_allclose(carried[found.edges_of(1, 2, 5)], np.sort(carried)[::-1][:5])
    assert (found.loadings[found.edges_of(3, 0, 10**6), 3, 0] != 0).all()
    np.testing.assert_allclose(found.shares()[1, 2], carried.sum(), rtol=1e-5)


def test_contrasts_and_directions(cases: dict[str, Case]) -> None:
    case = cases["plt"]
    model, transcoders = case.model, case.transcoders
    direction = model.unembedding[5] - model.unembedding[9]
    contrast = circuits.trace(model, transcoders, tokens=TOKENS, target=5, versus=9)
    along = circuits.trace(model, transcoders, tokens=TOKENS, direction=direction)
    found = [graph_head_loadings(contrast, model, transcoders),
             graph_head_loadings(along, model, transcoders, direction=direction)]
    for part in found:
        assert part.differences().max() < edge_heads.TOLERANCE
    of_target = [part.loadings[part.target == graph.target_nodes[0]] for part, graph in zip(found, (contrast, along),
                                                                                           strict=True)]
    np.testing.assert_allclose(*of_target, rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="give it as direction"):
        graph_head_loadings(along, model, transcoders)
    with pytest.raises(InputError, match="in the graph"):
        graph_head_loadings(along, model, transcoders, direction=2 * direction)


def test_another_model_or_other_transcoders_show(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["plt"]
    graph, local = case.graph, replacement_of(case.graph, case.model, case.transcoders)
    other = small_dictionary("plt", False)
    for w_dec in other.w_dec:
        w_dec *= 1.01
    source = gemma_scope_plt(tmp_path / "decoders", other)
    found = graph_head_loadings(graph, case.model, circuits.open_transcoders(source))
    assert found.differences().max() > 1e-3  # the features are the same, what they write is not
    other.w_enc[2] *= 1.01
    source = gemma_scope_plt(tmp_path / "encoders", other)
    with pytest.raises(InputError, match=r"of layer 2 at position .* (value|not active).* graph was made with"):
        graph_head_loadings(graph, case.model, circuits.open_transcoders(source))
    silent = replace(graph, nodes=replace(graph.nodes, feature=graph.nodes.feature + 1000))
    with pytest.raises(InputError, match=r"feature 1.* is not active on this prompt"):
        source_numbers(silent, local)
    with pytest.raises(InputError, match="of another prompt"):
        source_numbers(replace(graph, header=replace(graph.header, tokens=TOKENS[::-1])), local)
    for tokens in ([], [2, -1]):
        with pytest.raises(InputError, match="does not hold all token ids"):
            replacement_of(replace(graph, header=replace(graph.header, tokens=tokens)), case.model, case.transcoders)


def test_nodes_are_found_again(cases: dict[str, Case]) -> None:
    for case in cases.values():
        local = replacement_of(case.graph, case.model, case.transcoders)
        numbers = source_numbers(case.graph, local)
        np.testing.assert_array_equal(numbers[:local.n_sources], np.arange(local.n_sources))
        assert (numbers[local.n_sources:] == -1).all()
        kept = np.random.default_rng(0).random(len(case.graph)) < 0.5
        np.testing.assert_array_equal(source_numbers(case.graph.subgraph(kept), local), numbers[kept])


@pytest.mark.parametrize(("kind", "column", "value"), [
    ("error", "layer", 4), ("error", "position", 0), ("embedding", "position", 12), ("constant", "layer", -1),
    ("constant", "position", 1)])
def test_nodes_the_model_does_not_have(cases: dict[str, Case], kind: str, column: str, value: int) -> None:
    case = cases["plt"]
    changed = case.graph.nodes[column].copy()
    changed[np.flatnonzero(case.graph.nodes.kind == kind)[0]] = value
    graph = replace(case.graph, nodes=replace(case.graph.nodes, **{column: changed}))
    with pytest.raises(InputError, match=rf"\({kind}\) is not a part of the model"):
        source_numbers(graph, replacement_of(graph, case.model, case.transcoders))


@pytest.mark.parametrize(("edges", "message"), [
    ([(0, 10**6)], "no node 1000000"), ([(-1, 3)], "no node -1"), ([("0_1_99", 3)], "no node '0_1_99'"),
    (np.array([10**7]), "edges has numbers from 10000000"),
    ([(3, 0)], "no edge from")])
def test_edges_the_graph_does_not_have(cases: dict[str, Case], edges: list, message: str) -> None:
    case = cases["plt"]
    with pytest.raises(InputError, match=message):
        graph_head_loadings(case.graph, case.model, case.transcoders, edges)


def test_too_many_edges(cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases["plt"]
    monkeypatch.setattr(edge_heads, "MOST_NUMBERS", 1000)
    with pytest.raises(InputError, match="prune the graph"):
        graph_head_loadings(case.graph, case.model, case.transcoders)


def test_sources_have_no_inputs(cases: dict[str, Case]) -> None:
    case = cases["plt"]
    local = replacement_of(case.graph, case.model, case.transcoders)
    targets = targets_of(case.graph, case.model, local)
    with pytest.raises(InputError, match=r"\(embedding\) has no inputs"):
        starts_of(local, targets, case.graph, np.flatnonzero(case.graph.nodes.kind == "embedding"))
