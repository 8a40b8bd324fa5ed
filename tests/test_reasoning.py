"""Marked spans, their share of influence, and interventions on them against the same done by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from random_graphs import random_graph
from test_crosscheck import scaled
from test_prompt import VOCAB, write_tokenizer
from tiny_models import text_folder
from transcoder_folders import native_folder

import circuits
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs import AttributionGraph
from circuits.graphs.influence import influence
from circuits.graphs.spans import Span, span_flow
from circuits.interventions.edits import FeatureEdit, Intervention
from circuits.interventions.intervene import intervene, local_replacement
from circuits.interventions.modes import FREE, FROZEN, REPLACED
from circuits.reasoning.ablation import ABLATED, CIRCUIT_ABLATED, CORRUPTED
from circuits.reasoning.corruption import shuffled_tokens, tokens_in_place
from circuits.reasoning.marked import MarkedText, read_marks, token_spans
from circuits.reasoning.measure import reasoning_share, trace_reasoning
from circuits.reasoning.page import write_page
from circuits.reasoning.prediction import direct_effects, linear_effects_together
from circuits.reasoning.share import ReasoningShare
from circuits.reasoning.spanned import Case, asked_cases, parse_spans, read_cases, read_spanned
from circuits.reasoning.variants import (
    BOTH,
    CONTROL_HELD,
    HELD,
    ORIGIN,
    ORIGINAL,
    RANDOM_HELD,
    SPAN,
    Variant,
    with_kept,
)
from circuits.reasoning.words import paragraphs, variant_label
from circuits.replacement import LocalReplacement
from circuits.transcoder import Transcoders
from circuits.validation.linear import linear_effects

TEXT = "[[question]]paris x mo[[/question]] s [[reasoning]]x paris[[/reasoning]] mo paris x x[[answer]] mo"
"""<bos> paris ▁x ▁mo ▁ s ▁x ▁paris ▁mo ▁paris ▁x ▁x: the question at 1 to 3, the reasoning at 6 and 7."""
NEW, NEW_QUESTION = [VOCAB["▁mo"], VOCAB["▁x"]], [VOCAB["▁mo"], VOCAB["▁mo"], VOCAB["paris"]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gemma3, Transcoders]:
    root = tmp_path_factory.mktemp("reasoning")
    model = text_folder(root / "model")
    write_tokenizer(model)
    return (circuits.load_model(model, device="cpu"),
            circuits.open_transcoders(native_folder(root / "clt", scaled(span=4))))


@pytest.fixture(scope="module")
def model(pair: tuple[Gemma3, Transcoders]) -> Gemma3:
    return pair[0]


@pytest.fixture(scope="module")
def found(pair: tuple[Gemma3, Transcoders]) -> ReasoningShare:
    return trace_reasoning(*pair, Case(prompt=TEXT, corrupt_with=" mo x", corrupt_from_with=" mo moparis"),
                           coverage=1.0, controls=2)


@pytest.fixture(scope="module")
def local(pair: tuple[Gemma3, Transcoders], found: ReasoningShare) -> LocalReplacement:
    return local_replacement(*pair, found.graph.header.tokens)


def test_marks_are_taken_out_and_nothing_else() -> None:
    text = "A [[question]] Tom\n has 2.[[/question]]  [[why-1]]so[[/why-1]] [1, [2]] Answer: [[answer]] 5 more"
    marked = read_marks(text)
    assert marked.text == "A  Tom\n has 2.  so [1, [2]] Answer: "
    assert {name: marked.text[slice(*ends)] for name, ends in marked.spans.items()} == {
        "question": " Tom\n has 2.", "why-1": "so"}
    assert marked.answer == " 5 more"
    assert read_marks("[[a]]b[[/a]] [[answer]] 5[[/answer]]\n").answer == " 5"
    assert read_marks("[[a]]b[[/a]] c") == MarkedText("b c", {"a": (0, 1)}, "")


@pytest.mark.parametrize(("text", "message"), [
    ("no marks at all [[1, 2], [3]]", "marks no span: write it as"),
    ("[[a]]b", "'a' is not closed"),
    ("b[[/a]]", r"\[\[/a\]\] closes a span that is not open"),
    ("[[a]]b[[c]]d[[/c]][[/a]]", r"\[\[c\]\] stands inside of the span 'a'"),
    ("[[a]]b[[c]]d[[/a]]e[[/c]]", r"\[\[c\]\] stands inside of the span 'a'"),
    ("[[a]][[/a]]", "'a' is empty"),
    ("[[a]]b[[/a]][[a]]c[[/a]]", "two spans 'a'"),
    ("[[a]]b[[/a]][[answer]]5[[c]]d[[/c]]", "more after the answer"),
    ("[[a]]b[[/a]][[answer]]5[[/answer]] and so on", r"more after the answer \('and so on'\)"),
])
def test_bad_marks_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_marks(text)


def test_spans_of_characters_become_spans_of_tokens(model: Gemma3) -> None:
    tokens, spans, notes = token_spans(model, read_marks(TEXT))
    assert tokens == [VOCAB[t] for t in ("<bos>", "paris", "▁x", "▁mo", "▁", "s", "▁x", "▁paris", "▁mo", "▁paris",
                                         "▁x", "▁x")]
    assert spans == [Span("question", 1, 4), Span("reasoning", 6, 8)]
    assert notes == []  # the space before a word is no part of it that counts


@pytest.mark.parametrize(("text", "start", "first"), [
    ("x [[a]]paris mo[[/a]]", 2, None), ("x p[[a]]aris mo[[/a]]", 2, "'a' and no span"),
    ("x par[[a]]is mo[[/a]]", 3, "no span and 'a'"), ("x [[b]]par[[/b]][[a]]is mo[[/a]]", 3, "'b' and 'a'"),
])
def test_a_token_belongs_to_the_span_with_most_of_it(model: Gemma3, text: str, start: int, first: str | None) -> None:
    _, spans, notes = token_spans(model, read_marks(text))
    assert next(span for span in spans if span.name == "a") == Span("a", start, 4)
    assert len(notes) == (first is not None)
    if first:
        assert f"token 2 ' paris' lies in {first}" in notes[0]


def test_equal_halves_go_to_the_earlier_span_and_a_span_needs_a_token(model: Gemma3) -> None:
    _, spans, _ = token_spans(model, read_marks("x [[b]]m[[/b]][[a]]o x[[/a]]"))
    assert spans == [Span("b", 2, 3), Span("a", 3, 4)]
    with pytest.raises(InputError, match="'b' has no token of its own"):
        token_spans(model, read_marks("x [[b]]p[[/b]]aris"))


def test_a_tokenizer_without_offsets_reads_the_same_spans(model: Gemma3, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        is_fast, decode = False, staticmethod(lambda ids: model.tokenizer.decode(ids))
        bos_token_id = 2

        def __call__(self, text: str, **settings: object) -> dict[str, list[int]]:
            assert "return_offsets_mapping" not in settings
            return {"input_ids": model.tokenizer(text, add_special_tokens=False)["input_ids"]}

    marked = read_marks(TEXT)
    expected = token_spans(model, marked)
    slow = SimpleNamespace(**{name: getattr(model, name) for name in ("name", "vocab_size", "max_positions")},
                           tokenizer=Slow())
    assert token_spans(slow, marked) == expected  # type: ignore[arg-type]
    monkeypatch.setattr(Slow, "decode", staticmethod(lambda ids: "something else"))
    with pytest.raises(InputError, match="does not say where its tokens stand"):
        token_spans(slow, marked)  # type: ignore[arg-type]


def test_the_answer_is_the_target_and_is_no_part_of_the_prompt(model: Gemma3) -> None:
    asked = read_spanned(model, Case(prompt=TEXT))
    assert (asked.target, asked.notes, len(asked.tokens)) == (VOCAB["▁mo"], (), 12)
    asked = read_spanned(model, Case(prompt="[[a]]x[[/a]]", answer=" s x"))
    assert asked.target == VOCAB["▁"]
    assert "the answer has 3 tokens: its first, ' ', is the target" in asked.notes[0]
    assert "white space" in asked.notes[1]
    asked = read_spanned(model, Case(prompt="[[x]] paris", spans={"a": (1, 2)}, target="x", versus=" x"))
    assert (asked.spans, asked.target, asked.versus) == ((Span("a", 1, 2),), "x", " x")
    with pytest.raises(InputError, match="does not begin with a token of its own"):
        read_spanned(model, Case(prompt="[[a]]x[[/a]] pa[[answer]]ris"))
    with pytest.raises(InputError, match="both given"):
        read_spanned(model, Case(prompt=TEXT, target=" x"))


def test_spans_are_given_once(model: Gemma3) -> None:
    with pytest.raises(InputError, match="marks spans, and ranges of tokens are given"):
        read_spanned(model, Case(prompt=TEXT, spans={"a": (1, 2)}))
    with pytest.raises(InputError, match="marks no span"):
        read_spanned(model, Case(prompt="paris x"))
    with pytest.raises(InputError, match="the prompt has 3 tokens"):
        read_spanned(model, Case(prompt="paris x", spans={"a": (1, 9)}))
    with pytest.raises(InputError, match="there is no prompt"):
        read_spanned(model, Case(spans={"a": (1, 9)}))


def test_ranges_and_files_are_read_or_refused_with_the_place(tmp_path: Path) -> None:
    assert parse_spans(["question=1:9", " reasoning = 9:20 "]) == {"question": (1, 9), "reasoning": (9, 20)}
    for text in ("reasoning", "=1:2", "a=1-2", "a=-1:2", "a=1:2:3"):
        with pytest.raises(InputError, match="expected NAME=FROM:TO"):
            parse_spans([text])
    with pytest.raises(InputError, match="names 'a' twice"):
        parse_spans(["a=1:2", "a=3:4"])
    one = {"prompt": "x", "spans": {"a": [1, 2]}, "target": " x"}
    case = Case(prompt="x", spans={"a": (1, 2)}, target=" x")
    path = tmp_path / "p.jsonl"
    path.write_text(f"{json.dumps(one)}\n\n{json.dumps(one)}\n")
    assert read_cases(path) == [case, case]
    for content in (one, [one]):
        path.with_suffix(".json").write_text(json.dumps(content, indent=1))
        assert read_cases(path.with_suffix(".json")) == [case]
    for content, message in (('{"spans": {}}', "line 2 has no \"prompt\""), ("{", "line 2 is not JSON"),
                             ('{"prompt": "x", "spans": {"a": [1]}}', "line 2: spans.a.1: Field required"),
                             ('{"prompt": "x", "span": {}}', "line 2: span: Extra inputs"), ("[]", "line 2: the obj")):
        path.write_text(f"{json.dumps(one)}\n{content}\n")
        with pytest.raises(InputError, match=message):
            read_cases(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no prompt"):
        read_cases(path)
    with pytest.raises(InputError, match="cannot read"):
        read_cases(tmp_path)


def test_what_the_command_line_asks_for(tmp_path: Path) -> None:
    assert asked_cases("x", None, ["a=1:2"], False, target=" x") == [Case(prompt="x", spans={"a": (1, 2)}, target=" x")]
    assert asked_cases(None, None, ["a=1:2"], True) == [Case(spans={"a": (1, 2)})]
    for arguments in ((None, None, [], False), (None, None, ["a=1:2"], False)):
        with pytest.raises(InputError, match="give a text with marked spans"):
            asked_cases(*arguments)
    with pytest.raises(InputError, match="the graph's prompt has no marks"):
        asked_cases(None, None, [], True)
    for more in (("x", tmp_path, [], False), (None, tmp_path, ["a=1:2"], False), (None, tmp_path, [], True)):
        with pytest.raises(InputError, match="a file of prompts holds everything"):
            asked_cases(*more)


def test_tokens_in_place_of_a_span(model: Gemma3) -> None:
    tokens, span = [2, VOCAB["paris"], VOCAB["▁x"]], Span("a", 1, 3)
    assert tokens_in_place(model, "paris mo", tokens, span) == [VOCAB["paris"], VOCAB["▁mo"]]
    with pytest.raises(InputError, match=r"has 1 tokens \(paris\), the span 2 \(paris\| x\)"):
        tokens_in_place(model, "paris", tokens, span)
    with pytest.raises(InputError, match="is the span's own"):
        tokens_in_place(model, "paris x", tokens, span)
    assert shuffled_tokens([2, 5, 6, 7], Span("a", 1, 3), np.random.default_rng(0)) == [6, 5]
    assert shuffled_tokens([2, 5, 5, 7], Span("a", 1, 3), np.random.default_rng(0)) is None


@pytest.mark.parametrize("seed", range(3))
def test_edges_say_of_one_feature_what_validation_says_and_hold_a_set_where_it_is(seed: int) -> None:
    graph = random_graph(seed, n_layers=4, shuffle=True)
    features = np.flatnonzero(graph.nodes.kind == "feature")
    singles = np.zeros((len(graph), len(features)), bool)
    singles[features, np.arange(len(features))] = True
    np.testing.assert_allclose(linear_effects_together(graph, singles), linear_effects(graph, features), rtol=1e-10)
    # all features of two layers: the lower ones reach the logits only by the edges that go around the upper ones
    both = (graph.nodes.kind == "feature") & np.isin(graph.nodes.layer, (2, 3))
    edges = graph.adjacency().toarray().astype(np.float64)
    logits = np.flatnonzero(graph.nodes.kind == "logit")
    expected = -edges[np.ix_(logits, both)].sum(1)
    np.testing.assert_allclose(linear_effects_together(graph, both[:, None])[0], expected, rtol=1e-10)
    np.testing.assert_allclose(direct_effects(graph, both[:, None])[0], expected, rtol=1e-10)
    low = (graph.nodes.kind == "feature") & (graph.nodes.layer == 0)
    assert not np.allclose(linear_effects_together(graph, low[:, None]), direct_effects(graph, low[:, None]))


def test_the_shares_are_those_of_the_trace(found: ReasoningShare, pair: tuple[Gemma3, Transcoders]) -> None:
    graph = circuits.trace(*pair, tokens=found.graph.header.tokens, target=" mo", coverage=1.0)
    flow = span_flow(graph, [Span("question", 1, 4), Span("reasoning", 6, 8)], "reasoning", "question")
    assert (found.flow.through, found.flow.mediated) == (pytest.approx(flow.through), pytest.approx(flow.mediated))
    assert 0.001 < found.flow.mediated < found.flow.through < 0.99
    arrived = influence(graph)
    assert sum(found.flow.share(end) for end in flow.ends) == pytest.approx(1)
    tokens = (graph.nodes.kind == "embedding") & (graph.nodes.position < 4) & (graph.nodes.position > 0)
    assert found.flow.mediated + found.flow.bypass == pytest.approx(
        arrived[tokens].sum() / graph.target_weights.sum(), rel=1e-5)
    assert found.flow.share("unexplored") == 0
    assert found.replaced == {"reasoning": " mo x", "question": " mo moparis"}


def silenced(local: LocalReplacement, positions: range) -> Intervention:
    """Every active feature at the positions, scaled to nothing."""
    active = local.active
    here = [i for i in range(len(active)) if int(active.position[i]) in positions]
    return Intervention(tuple(FeatureEdit(int(active.layer[i]), int(active.feature[i]), int(active.position[i]),
                                          "scale", 0.0) for i in here))


def on_target(model: Gemma3, changes: torch.Tensor) -> np.ndarray:
    """Changes of the logit of " mo" less its mean."""
    logits = model.unembed(changes)
    return (logits[:, VOCAB["▁mo"]] - logits.mean(1)).numpy()


@pytest.mark.parametrize(("name", "mode"), [("frozen", FROZEN), ("replaced", REPLACED), ("free", FREE)])
def test_ablations_equal_interventions_by_hand(found: ReasoningShare, pair: tuple[Gemma3, Transcoders],
                                               local: LocalReplacement, name: str, mode: object) -> None:
    effect = found.effect(ABLATED, name)
    assert len(found.controls) == 2
    assert not any(control.overlaps(found.flow.span) for control in found.controls)
    by_hand = [silenced(local, span.positions) for span in (found.flow.span, *found.controls)]
    outcome = intervene(*pair, local, by_hand, mode)  # type: ignore[arg-type]
    changes = on_target(pair[0], outcome.final_changes)
    assert abs(changes[0]) > 0.01
    np.testing.assert_allclose([effect.change, *effect.controls], changes, rtol=1e-3, atol=1e-5)
    assert effect.kl == pytest.approx(float(outcome.kl[0]), rel=1e-3, abs=1e-6)
    assert effect.probability == pytest.approx(float(outcome.probabilities[0, VOCAB["▁mo"]]), rel=1e-4)
    assert effect.n_features == len(by_hand[0].edits)
    assert len(effect.random) == 2
    assert not np.allclose(effect.random, effect.change, rtol=1e-3)


def test_direct_effects_predict_the_frozen_ablation(found: ReasoningShare) -> None:
    for what in (ABLATED, CIRCUIT_ABLATED):
        frozen, rest = found.effect(what, "frozen"), found.effect(what, "replaced")
        assert frozen.predicted == pytest.approx(frozen.change, rel=1e-4)
        assert rest.predicted != pytest.approx(frozen.predicted, rel=1e-2)
    assert found.effect(CIRCUIT_ABLATED, "free").n_features < found.effect(ABLATED, "free").n_features


def held_by_hand(before: LocalReplacement, after: LocalReplacement, span: Span) -> Intervention:
    """The features at the span, which are as in ``before``, set to what they are in ``after``."""
    values: dict[tuple[int, int, int], float] = {}
    for local, kept in ((before, 0.0), (after, 1.0)):
        a = local.active
        for i in range(len(a)):
            if span.start <= int(a.position[i]) < span.stop:
                values[int(a.layer[i]), int(a.position[i]), int(a.feature[i])] = kept * float(a.value[i])
    return Intervention(tuple(FeatureEdit(layer, feature, position, "set", value)
                              for (layer, position, feature), value in values.items()))


@pytest.mark.parametrize(("name", "mode"), [("frozen", FROZEN), ("replaced", REPLACED), ("free", FREE)])
def test_corruption_sets_features_to_their_values_on_the_other_text(
        found: ReasoningShare, pair: tuple[Gemma3, Transcoders], local: LocalReplacement, name: str, mode: object
        ) -> None:
    effect, tokens = found.effect(CORRUPTED, name), found.graph.header.tokens
    other = local_replacement(*pair, [*tokens[:6], *NEW, *tokens[8:]])
    outcome = intervene(*pair, local, held_by_hand(local, other, found.flow.span), mode)  # type: ignore[arg-type]
    [change] = on_target(pair[0], outcome.final_changes)
    assert effect.change == pytest.approx(float(change), rel=1e-3, abs=1e-5)
    assert abs(effect.change) > 1e-3
    assert effect.predicted is None
    assert effect.random == []
    assert len(effect.controls) <= 2


def test_texts_are_run_in_the_model_and_held_features_come_from_the_original(
        found: ReasoningShare, pair: tuple[Gemma3, Transcoders], local: LocalReplacement) -> None:
    tokens, model = found.graph.header.tokens, pair[0]
    texts = {ORIGINAL: tokens, ORIGIN: [2, *NEW_QUESTION, *tokens[4:]], SPAN: [*tokens[:6], *NEW, *tokens[8:]],
             BOTH: [2, *NEW_QUESTION, *tokens[4:6], *NEW, *tokens[8:]]}
    runs = {name: local_replacement(*pair, text) for name, text in texts.items()}
    before = runs[ORIGINAL].frozen.logits
    for name, run in runs.items():
        logits, variant = run.frozen.logits, found.variant(name)
        assert variant.values == [pytest.approx(float(logits[VOCAB["▁mo"]] - logits.mean()), rel=1e-4)]
        assert variant.probability == pytest.approx(float(logits.softmax(-1)[VOCAB["▁mo"]]), rel=1e-4)
        kl = (before.softmax(-1) * (before.log_softmax(-1) - logits.log_softmax(-1))).sum()
        assert variant.kls == [pytest.approx(float(kl), abs=1e-5)]
        assert variant.n_features == 0
    outcome = intervene(*pair, runs[ORIGIN], held_by_hand(runs[ORIGIN], local, found.flow.span))
    held = found.variant(HELD)
    expected = float(on_target(model, outcome.final_before + outcome.final_changes)[0])
    assert held.values == [pytest.approx(expected, rel=1e-4)]
    assert held.value != pytest.approx(found.variant(ORIGIN).value, abs=1e-3)
    assert held.n_features == len(held_by_hand(runs[ORIGIN], local, found.flow.span).edits)
    # a control span is held likewise, where it lies in neither text
    assert not any(control.overlaps(found.flow.origin) for control in found.controls)
    outcome = intervene(*pair, runs[ORIGIN], [held_by_hand(runs[ORIGIN], local, span) for span in found.controls])
    expected = on_target(model, outcome.final_before + outcome.final_changes)
    np.testing.assert_allclose(found.variant(CONTROL_HELD).values, expected, rtol=1e-4)
    assert len(found.variant(RANDOM_HELD).values) == 2
    assert found.variant(RANDOM_HELD).n_features == held.n_features


def test_what_remains_is_of_what_both_texts_take() -> None:
    def variants(**values: float) -> list[Variant]:
        return [Variant(name, 0, [value], None, [0.0]) for name, value in values.items()]

    kept = with_kept([*variants(**{ORIGINAL: 5.0, ORIGIN: 4.0, SPAN: 1.0, BOTH: 3.0})])
    assert [one.kept for one in kept] == [1.0, 0.5, -1.0, 0.0]
    for both in (4.6, 5.5):
        assert all(math.isnan(one.kept) for one in with_kept(variants(**{ORIGINAL: 5.0, ORIGIN: 4.0, BOTH: both})))
    assert math.isnan(with_kept(variants(**{ORIGINAL: 5.0, SPAN: 4.0}))[1].kept)


def test_the_words_say_the_numbers_and_what_the_answer_follows(found: ReasoningShare) -> None:
    told = paragraphs(found)
    flow = found.flow
    start = f"About {flow.through:.0%} of the influence on {found.target} passes through 'reasoning' (positions 6 to 7)"
    assert told["Influence"][0].startswith(start)
    assert f"at most {flow.at_most:.0%}" in told["Influence"][0]
    assert ("That is more than chance" in told["Influence"][1]) == (found.null.p <= 0.05)
    assert f"{flow.mediated_share:.0%} of that goes through" in told["Influence"][2]
    free = found.effect(ABLATED, "free")
    assert f"by {free.change:+.2f} (of {found.value:.2f}) in the model" in told["Features ablated"][0]
    assert f"control spans {np.mean(free.controls):+.2f}" in told["Features ablated"][0]
    assert f"{flow.share('errors'):.0%} of influence ends at errors" in told["Not known"][0]
    assert found.sentences() == [sentence for some in told.values() for sentence in some]

    def verdict(origin: float, span: float) -> str:
        kept = {ORIGINAL: 1.0, ORIGIN: origin, HELD: 0.9, SPAN: span, BOTH: 0.0}
        variants = [Variant(name, 0, [value], None, [0.0], value) for name, value in kept.items()]
        return paragraphs(replace(found, variants=variants))["Other texts"][-1]

    assert verdict(0.8, 0.1) == "So the answer follows 'reasoning' more than 'question'."
    assert verdict(0.1, 0.8) == "So the answer follows 'question' more than 'reasoning'."
    assert "neither" in verdict(0.5, 0.45)
    assert variant_label(found, HELD) == "question replaced, features of reasoning held"
    assert "Other texts" not in paragraphs(replace(found, variants=[]))
    little = [Variant(name, 0, [value], None, [0.0]) for name, value in ((ORIGINAL, 1.0), (ORIGIN, 0.8), (BOTH, 0.7))]
    told = paragraphs(replace(found, variants=with_kept(little)))["Other texts"]
    assert told == ["With both texts replaced the target changes by -0.30: it must fall by 0.5 or more to tell which "
                    "of them the answer follows."]


def test_without_a_model_only_the_graph_is_read(found: ReasoningShare) -> None:
    graph = found.graph.prune(0.7)
    read = reasoning_share(graph, found.flow.spans)
    assert (read.effects, read.variants, read.flow.origin.name, read.pruned) == ([], [], "question", True)
    assert list(paragraphs(read)) == ["Influence", "Not known"]
    assert "The graph is pruned" in read.sentences()[-1]
    json.dumps(read.numbers(), allow_nan=False)


def test_a_graph_that_was_traced_already_and_a_pruned_one(found: ReasoningShare, pair: tuple[Gemma3, Transcoders]
                                                          ) -> None:
    case = Case(spans={"question": (1, 4), "reasoning": (6, 8)})
    again = trace_reasoning(*pair, case, graph=found.graph, ablations=False)
    assert again.flow.through == pytest.approx(found.flow.through)
    pruned = trace_reasoning(*pair, case, graph=found.graph.prune(0.5), controls=0)
    effect = pruned.effect(ABLATED, "free")
    assert effect.change == pytest.approx(found.effect(ABLATED, "free").change, rel=1e-4)
    assert (effect.predicted, effect.controls, effect.random) == (None, [], [])  # not all of them are in the graph
    assert pruned.effect(CIRCUIT_ABLATED, "frozen").predicted is not None
    with pytest.raises(InputError, match="another prompt"):
        trace_reasoning(*pair, Case(prompt=TEXT), graph=random_graph(0))
    with pytest.raises(InputError, match="has its targets already"):
        trace_reasoning(*pair, replace_case(case, target=" x"), graph=found.graph)


def replace_case(case: Case, **changes: object) -> Case:
    return case.model_copy(update=changes)


def test_bad_names_texts_and_counts(pair: tuple[Gemma3, Transcoders], found: ReasoningShare) -> None:
    case = Case(prompt="[[a]]paris x[[/a]] mo x")
    with pytest.raises(InputError, match="no span 'reasoning': there are 'a'"):
        trace_reasoning(*pair, case)
    with pytest.raises(InputError, match="no span 'b'"):
        trace_reasoning(*pair, case, through="a", origin="b")
    with pytest.raises(InputError, match="no span is the origin"):
        trace_reasoning(*pair, replace_case(case, corrupt_from_with="x"), through="a")
    with pytest.raises(InputError, match="controls is -1"):
        reasoning_share(found.graph, found.flow.spans, controls=-1)


def test_a_span_that_cannot_be_shuffled_or_shifted_says_so(pair: tuple[Gemma3, Transcoders]) -> None:
    def share(prompt: str) -> ReasoningShare:
        return trace_reasoning(*pair, Case(prompt=prompt, target=" x"), controls=1, max_features=5)

    alike = share("[[reasoning]]paris[[/reasoning]] x mo x")
    assert "'reasoning' is not corrupted: all its tokens are alike" in alike.notes[0]
    assert alike.effect(CORRUPTED, "free") is None
    assert [one.name for one in alike.variants] == [ORIGINAL]
    long = share("[[reasoning]]paris x mo[[/reasoning]] x")
    assert long.controls == []
    assert "no span of 3 tokens fits" in long.notes[-1]
    assert [one.name for one in long.variants] == [ORIGINAL, SPAN]
    beside = share("[[question]]paris x[[/question]] [[reasoning]]mo x[[/reasoning]] x")
    assert "the control spans overlap the origin" in beside.notes[-1]
    assert beside.variant(CONTROL_HELD) is None


def test_the_page_holds_the_numbers_and_escapes_texts(found: ReasoningShare, tmp_path: Path) -> None:
    header = replace(found.graph.header, prompt="<script>a</script>", token_texts=["<b>t</b>"] * 12)
    graph: AttributionGraph = replace(found.graph, header=header)
    foreign = replace(found, graph=graph)
    write_page([foreign, found], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    body = page[:page.index('id="plots"')]
    assert "<script>a" not in body
    assert "&lt;script&gt;a&lt;/script&gt;" in body
    assert "Reasoning share of 2 prompts" in body
    start = page.index(">", page.index('id="plots"')) + 1
    plots = json.loads(page[start:page.index("</script>", start)])
    text = plots["text_0"]
    assert text["layout"]["xaxis"]["ticktext"][0] == "&lt;b&gt;t&lt;/b&gt;"
    assert sum(sum(bar["y"]) for bar in text["data"]) == pytest.approx(found.flow.share("tokens"), rel=1e-4)
    [sankey] = plots["flows_1"]["data"]
    into_target = [value for value, target in zip(sankey["link"]["value"], sankey["link"]["target"], strict=True)
                   if target == len(sankey["node"]["label"]) - 1]
    assert into_target == pytest.approx([found.flow.through, found.flow.around], rel=1e-5)
    assert sum(plots["layers_1"]["data"][0]["y"]) == pytest.approx(found.flow.through, rel=1e-4)
    assert len({name for name in plots if name.endswith("_0")}) == len(plots) / 2
    found.write_page(tmp_path / "one.html")
    assert "In place of question" in (tmp_path / "one.html").read_text()
