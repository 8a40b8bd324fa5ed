"""Influence through a span of positions: hand-made graphs, and every walk of random graphs one by one."""

import itertools
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from random_graphs import fed_by_a_constant, random_graph, shares, target_vector

from circuits.errors import InputError
from circuits.graphs import AttributionGraph, Header, NodeTable, spans_null
from circuits.graphs.influence import influence
from circuits.graphs.spans import AROUND, ELSEWHERE, THROUGH, Span, check_spans, shares_through, span_flow
from circuits.graphs.spans_null import comparable_positions, shifted_spans, span_null

SPANS = [Span("question", 0, 1), Span("reasoning", 1, 2)]


def walks(graph: AttributionGraph) -> list[tuple[list[int], float]]:
    """Every walk from the targets to where it ends, with its share of influence."""
    share, start = shares(graph), target_vector(graph)
    found, open_walks = [], [([int(node)], float(start[node] / start.sum())) for node in np.flatnonzero(start)]
    while open_walks:
        walk, mass = open_walks.pop()
        inputs = np.flatnonzero(share[walk[-1]])
        if not len(inputs):
            found.append((walk[1:], mass))
        open_walks += [([*walk, int(node)], mass * float(share[walk[-1], node])) for node in inputs]
    return found


def end_of(graph: AttributionGraph, node: int) -> str:
    kind = graph.nodes.kind[node]
    if kind == "feature":
        return "constants" if graph.nodes.expanded[node] else "unexplored"
    return {"embedding": "tokens", "error": "errors"}[kind]


@pytest.mark.parametrize("unexpanded", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(4))
def test_the_sweeps_equal_all_walks_one_by_one(seed: int, unexpanded: float) -> None:
    graph = random_graph(seed, n_layers=4, unexpanded=unexpanded, shuffle=True)
    position, layer, kind = graph.nodes.position, graph.nodes.layer, graph.nodes.kind
    ends = defaultdict(lambda: np.zeros((2, 3)))
    leaves, visits, passing, from_question = np.zeros(5), np.zeros(4), np.zeros(len(graph)), np.zeros(len(graph))
    for walk, mass in walks(graph):
        inside = [node for node in walk if position[node] == 1]
        ends[end_of(graph, walk[-1])][THROUGH if inside else AROUND, position[walk[-1]]] += mass
        if inside:
            leaves[layer[inside[0]] + 1] += mass
        for node in inside:
            passing[node] += mass
            from_question[node] += mass * (kind[walk[-1]] == "embedding" and position[walk[-1]] == 0)
            if kind[node] == "feature":
                visits[layer[node]] += mass
    flow = span_flow(graph, SPANS, "reasoning", "question")
    for end, rows in flow.ends.items():
        np.testing.assert_allclose(rows, ends[end], rtol=1e-10, atol=1e-14, err_msg=end)
    np.testing.assert_allclose(flow.leaves, leaves, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(flow.visits, visits, rtol=1e-10, atol=1e-14)
    assert {feature.node for feature in flow.features} == set(np.flatnonzero((kind == "feature") & (position == 1)))
    for feature in flow.features:
        assert feature.influence == pytest.approx(passing[feature.node], rel=1e-10, abs=1e-14)
        assert feature.from_origin == pytest.approx(from_question[feature.node], rel=1e-10, abs=1e-14)
    assert flow.through + flow.around == pytest.approx(1, abs=1e-12)
    assert 0 < flow.through == pytest.approx(ends["tokens"][1].sum() + ends["errors"][1].sum()
                                             + ends["unexplored"][1].sum() + ends["constants"][1].sum())
    assert flow.mediated == pytest.approx(ends["tokens"][THROUGH, 0])
    assert flow.bypass == pytest.approx(ends["tokens"][AROUND, 0])
    assert flow.own == pytest.approx(ends["tokens"][THROUGH, 1])
    # what ended at errors and unexplored features at positions 1 and 2 might have gone on through position 1
    assert flow.at_most == pytest.approx(flow.through + sum(ends[end][AROUND, 1:].sum()
                                                            for end in ("errors", "unexplored")))


def test_through_several_spans_at_once_and_shares_by_place() -> None:
    graph = random_graph(3, n_pos=5, per_layer=6)
    sets = [[1], [1, 2], [0, 4], []]
    expected = [sum(mass for walk, mass in walks(graph) if set(graph.nodes.position[walk]) & set(some))
                for some in sets]
    np.testing.assert_allclose(shares_through(graph, sets), expected, rtol=1e-10)
    spans = [Span("one", 1, 3), Span("two", 4, 5)]
    flow = span_flow(graph, spans, "one")
    assert flow.through == pytest.approx(expected[1])
    assert flow.places == ("one", "two", ELSEWHERE)
    arrived, weight = influence(graph), float(graph.target_weights.sum())
    for place, positions in (("one", [1, 2]), ("two", [4]), (ELSEWHERE, [0, 3])):
        errors = (graph.nodes.kind == "error") & np.isin(graph.nodes.position, positions)
        assert flow.share("errors", place) == pytest.approx(arrived[errors].sum() / weight)
    assert flow.share("tokens", "one", AROUND) == flow.share("errors", "one", AROUND) == 0
    assert (flow.mediated, flow.bypass, flow.origin) == (0, 0, None)
    assert np.isnan(flow.mediated_share)


def hand_made() -> AttributionGraph:
    """A question token at 1 read by a reasoning feature at 2 and by the answer's feature at 3, and the logit."""
    nodes = NodeTable.build(
        6, kind=["embedding", "embedding", "feature", "error", "feature", "logit"], layer=[-1, -1, 0, 0, 1, 2],
        position=[1, 2, 2, 3, 3, 3], feature=[-1, -1, 7, -1, 8, -1], token=[5, 6, -1, -1, -1, 9],
        expanded=[False, False, True, False, True, True])
    # logit: 1/2 answer feature, 1/4 reasoning feature, 1/8 each question token and error; constants stay out
    rows = {2: [(0, 3.0), (1, -1.0)], 4: [(0, 1.0), (2, -2.0), (3, 1.0)],
            5: [(0, 1.0), (2, 2.0), (3, -1.0), (4, 4.0)]}
    edges = [edge for node in range(6) for edge in rows.get(node, [])]
    indptr = np.cumsum([0, *(len(rows.get(node, [])) for node in range(6))])
    return AttributionGraph(
        nodes, indptr, np.array([source for source, _ in edges], np.int32), np.array([w for _, w in edges], np.float32),
        np.array([5], np.int32), np.array([0.2], np.float32), Header(tokens=[2, 5, 6, 7], n_layers=2))


def test_a_graph_with_known_shares() -> None:
    flow = span_flow(hand_made(), [Span("question", 1, 2), Span("reasoning", 2, 3)], "reasoning", "question")
    # the reasoning feature has 1/4 + 1/2 * 1/2, of which three quarters come from the question
    assert flow.through == pytest.approx(0.5)
    assert flow.mediated == pytest.approx(0.375)
    assert flow.own == pytest.approx(0.125)
    assert flow.bypass == pytest.approx(1 / 8 + 1 / 8)
    assert flow.share("errors") == pytest.approx(1 / 8 + 1 / 8)
    assert flow.at_most == pytest.approx(0.75)
    assert flow.mediated_share == pytest.approx(0.6)
    np.testing.assert_allclose(flow.leaves, [0, 0.5, 0], atol=1e-15)
    np.testing.assert_allclose(flow.visits, [0.5, 0], atol=1e-15)
    [feature] = flow.features
    assert (feature.node, feature.influence, feature.from_origin) == (2, pytest.approx(0.5), pytest.approx(0.375))


def test_the_target_itself_is_no_part_of_a_span_and_constants_are_left_out() -> None:
    graph = hand_made()
    last = span_flow(graph, [Span("end", 3, 4)], "end")
    assert last.through == pytest.approx(1 / 2 + 1 / 8)
    flow = span_flow(fed_by_a_constant(), [Span("all", 0, 1)], "all")
    assert flow.share("constants") == pytest.approx(0.5)
    assert flow.through == pytest.approx(1)


def test_the_null_is_every_shift_without_the_last_position() -> None:
    graph = random_graph(5, n_pos=8, per_layer=8)
    null = span_null(graph, Span("one", 2, 4))
    assert list(null.shifts) == [0, 4, 5]
    expected = {start: sum(mass for walk, mass in walks(graph)
                           if set(graph.nodes.position[walk]) & {start, start + 1}) for start in null.shifts}
    assert null.shifts == pytest.approx(expected)
    assert null.mean == pytest.approx(np.mean(list(expected.values())))
    # few shifts: all other pairs of the first seven positions
    pairs = [pair for pair in itertools.combinations(range(7), 2) if pair != (2, 3)]
    others = shares_through(graph, pairs)
    np.testing.assert_allclose(np.sort(null.shuffled), np.sort(others))
    own = span_flow(graph, [Span("one", 2, 4)], "one").through
    assert null.p == pytest.approx((1 + (others >= own).sum()) / (1 + len(others)))
    assert null.limit == pytest.approx(np.quantile(others, 0.95))
    assert comparable_positions(graph, Span("end", 6, 8)) == list(range(8))


def test_where_shifts_are_many_they_are_the_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans_null, "FEW", 3)
    graph = random_graph(5, n_pos=8, per_layer=8)
    null = span_null(graph, Span("one", 2, 4))
    values, own = list(null.shifts.values()), shares_through(graph, [[2, 3]])[0]
    assert null.shuffled is None
    assert null.limit == pytest.approx(np.quantile(values, 0.95))
    assert null.p == pytest.approx((1 + sum(value >= own for value in values)) / 4)
    monkeypatch.setattr(spans_null, "SHUFFLES", 10)
    monkeypatch.setattr(spans_null, "FEW", 9)
    drawn = span_null(graph, Span("one", 2, 4), seed=1).shuffled
    assert len(drawn) in (9, 10)  # the span itself, where it is drawn, does not count
    np.testing.assert_array_equal(drawn, span_null(graph, Span("one", 2, 4), seed=1).shuffled)
    assert not np.array_equal(drawn, span_null(graph, Span("one", 2, 4), seed=2).shuffled)


def test_a_span_that_leaves_no_room_has_no_null() -> None:
    null = span_null(random_graph(0, n_pos=3), Span("all", 0, 3))
    assert (null.shifts, null.p, len(null.shuffled)) == ({}, 1.0, 0)
    assert np.isnan(null.limit)
    assert np.isnan(null.mean)
    assert shifted_spans(Span("long", 0, 5), [1, 2]) == []


@pytest.mark.parametrize(("spans", "message"), [
    ([], "no span is given"),
    ([Span("a", 1, 1)], "'a' holds no token: its range 1:1 is empty"),
    ([Span("a", 2, 1)], "holds no token"),
    ([Span("a", 2, 4)], "the prompt has 3 tokens"),
    ([Span("a", -1, 2)], "within 0:3"),
    ([Span("", 0, 1)], "expected a name"),
    ([Span(ELSEWHERE, 0, 1)], "other than 'elsewhere'"),
    ([Span("a", 0, 1), Span("a", 1, 2)], "two spans are named 'a'"),
    ([Span("a", 0, 2), Span("b", 1, 3)], r"'a' \(0:2\) and 'b' \(1:3\) overlap"),
])
def test_bad_spans_are_refused(spans: list[Span], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_spans(spans, 3)


def test_bad_names_and_graphs_are_refused() -> None:
    graph = random_graph(0)
    with pytest.raises(InputError, match="no span 'c': there are 'question', 'reasoning'"):
        span_flow(graph, SPANS, "c")
    with pytest.raises(InputError, match="no span 'd'"):
        span_flow(graph, SPANS, "reasoning", "d")
    with pytest.raises(InputError, match="both the origin and"):
        span_flow(graph, SPANS, "reasoning", "reasoning")
    bare = replace(graph, target_nodes=np.zeros(0, np.int32), target_weights=np.zeros(0, np.float32))
    with pytest.raises(InputError, match="no targets with weight"):
        span_flow(bare, SPANS, "reasoning")
