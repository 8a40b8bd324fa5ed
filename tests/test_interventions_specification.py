"""Interventions as text: what each form means, and one clear error for every malformed one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from random_graphs import random_graph
from test_prompt import write_tokenizer
from tiny_models import text_folder

import circuits
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs import AttributionGraph
from circuits.interventions.edits import Edit, ErrorEdit, FeatureEdit, TokenEdit
from circuits.interventions.specification import read_interventions, read_node, read_prompt, read_supernode

TOKENS = [2, 17, 99, 31, 5, 64]


@pytest.mark.parametrize(("text", "edits"), [
    ("12/345/3=0", [FeatureEdit(12, 345, [3], "scale", 0.0)]),
    ("0/0/-1=-2.5", [FeatureEdit(0, 0, [5], "scale", -2.5)]),
    (" 12/345/3 = 1e1 ", [FeatureEdit(12, 345, [3], "scale", 10.0)]),
    ("12/345/3:=5", [FeatureEdit(12, 345, [3], "set", 5.0)]),
    ("12/345/3+=-.5", [FeatureEdit(12, 345, [3], "add", -0.5)]),
    ("1/2/2-4=2", [FeatureEdit(1, 2, [2, 3, 4], "scale", 2.0)]),
    ("1/2/-3--1=2", [FeatureEdit(1, 2, [3, 4, 5], "scale", 2.0)]),
    ("1/2/4-4+1+5+4=2", [FeatureEdit(1, 2, [1, 4, 5], "scale", 2.0)]),
    ("1/2/all=2", [FeatureEdit(1, 2, None, "scale", 2.0)]),
    ("1/2/gen:=2", [FeatureEdit(1, 2, [], "set", 2.0, generated=True)]),
    ("1/2/all+gen+=2", [FeatureEdit(1, 2, None, "add", 2.0, generated=True)]),
    ("1/2/gen+3=2", [FeatureEdit(1, 2, [3], "scale", 2.0, generated=True)]),
    ("error/3/-2=0", [ErrorEdit(3, 4, 0.0)]),
    ("error/3/all=0", [ErrorEdit(3, p, 0.0) for p in range(1, 6)]),
    ("token/0-1=3", [TokenEdit(0, 3.0), TokenEdit(1, 3.0)]),
    ("token/all=3", [TokenEdit(p, 3.0) for p in range(6)]),
    ("12_345_3=0", [FeatureEdit(12, 345, [3], "scale", 0.0)]),
    ("12_345_3:=7", [FeatureEdit(12, 345, [3], "set", 7.0)]),
    ("E_ERR_3_4=0", [ErrorEdit(3, 4, 0.0)]),
    ("E_31_3=0", [TokenEdit(3, 0.0)])])
def test_a_node(text: str, edits: list[Edit]) -> None:
    assert list(read_node(text, TOKENS)) == edits


@pytest.mark.parametrize(("text", "message"), [
    ("12/345/3", "'12/345/3' says no change"), ("=0", "says no change"), ("", "says no change"),
    ("1/2/3=0=1", "has the position '3=0'"),
    ("1/2/3=", "ends in '': expected a number"), ("1/2/3=two", "ends in 'two': expected a number"),
    ("1/2/3=nan", "is nan: expected a finite number"), ("1/2/3:=inf", "is inf"), ("error/1/2=nan", "is nan"),
    ("12/345=0", "'12/345=0' names no node that can be changed"), ("a/b/c=0", "names no node"),
    ("-1/2/3=0", "names no node"), ("BIAS_3=0", "names no node"), ("18_D_5=0", "names no node"),
    ("1/2/x=0", "has the position 'x'"), ("1/2/3-=0", "has the position '3-'"), ("1/2/3,4=0", "the position '3,4'"),
    ("1/2/+3=0", "has the position ''"), ("1/2/4-2=0", "has the range 4-2, which ends before it begins"),
    ("1/2/6=0", "position 6 is not on the prompt, which has 6 tokens"), ("1/2/-7=0", "position -7 is not on the"),
    ("1/2/2-9=0", "position 9 is not on the prompt"), ("12_345_6=0", "position 6 is not"),
    ("token/9=0", "position 9 is not"), ("E_31_9=0", "position 9 is not"),
    ("E_30_3=0", "names token 30 at position 3, where the prompt has 31"),
    ("error/1/gen=0", "asks for generated tokens: only features"), ("token/all+gen=0", "asks for generated tokens"),
    ("error/1/2:=3", "errors and tokens can only be multiplied, as in error/1/2=0"),
    ("token/1+=3", "can only be multiplied")])
def test_malformed_nodes(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_node(text, TOKENS)
    assert message in str(error.value)


def test_errors_are_only_where_features_are_read() -> None:
    assert [edit.position for edit in read_node("error/1/all=0", [2, 105, 2364, 107, 9, 9])] == [4, 5]


@pytest.fixture
def graph() -> AttributionGraph:
    made = random_graph(seed=3)
    return replace(made, header=replace(made.header, tokens=list(range(2, 2 + int(made.nodes.position.max()) + 1))))


@pytest.fixture
def named(graph: AttributionGraph) -> Callable[..., AttributionGraph]:
    def named(**groups: list[str]) -> AttributionGraph:
        return replace(graph, header=replace(graph.header, supernodes=[[k, *ids] for k, ids in groups.items()]))
    return named


def ids_of(graph: AttributionGraph, kind: str, count: int) -> list[str]:
    return [i for i, k in zip(graph.node_ids, graph.nodes.kind, strict=True) if k == kind][:count]


def test_a_supernode(graph: AttributionGraph, named: Callable[..., AttributionGraph]) -> None:
    features, errors = ids_of(graph, "feature", 2), ids_of(graph, "error", 1)
    tokens = graph.header.tokens
    with_groups = named(Texas=features, rest=errors, **{"a = b": features[:1]})
    assert read_supernode("Texas:=3", tokens, with_groups) == tuple(
        edit for i in features for edit in read_node(f"{i}:=3", tokens))
    assert read_supernode("rest=0", tokens, with_groups) == read_node(f"{errors[0]}=0", tokens)
    assert read_supernode("a = b=-1", tokens, with_groups) == read_node(f"{features[0]}=-1", tokens)


def test_supernodes_that_cannot_be_changed(graph: AttributionGraph, named: Callable[..., AttributionGraph]) -> None:
    tokens, logit = graph.header.tokens, ids_of(graph, "logit", 1)
    for made, text, message in (
            (None, "Texas=0", "needs --graph"), (graph, "Texas=0", "has no supernode 'Texas': it has none"),
            (named(Austin=logit), "Texas=0", "it has 'Austin'"), (named(Austin=logit), "Austin=0", "a logit: only"),
            (named(Austin=["99_99_1"]), "Austin=0", "99_99_1, a node that is not in the graph"),
            (named(Austin=ids_of(graph, "feature", 1)), "Austin", "says no change")):
        with pytest.raises(InputError) as error:
            read_supernode(text, tokens, made)
        assert message in str(error.value)


def test_together_or_each() -> None:
    texts = ["1/2/3=0", "error/1/2=0"]
    [together] = read_interventions(texts, TOKENS)
    one, two = read_interventions(texts, TOKENS, each=True)
    assert together.edits == (FeatureEdit(1, 2, [3]), ErrorEdit(1, 2)) == one.edits + two.edits
    assert (together.name, one.name, two.name) == ("1/2/3=0, error/1/2=0", *texts)
    with pytest.raises(InputError, match="nothing is to be changed"):
        read_interventions([], TOKENS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Gemma3:
    folder = text_folder(tmp_path_factory.mktemp("model") / "tiny")
    write_tokenizer(folder)
    return circuits.load_model(folder, device="cpu")


def test_the_prompt_or_the_graphs(model: Gemma3, graph: AttributionGraph, tmp_path: Path) -> None:
    tokens = read_prompt(model, "paris x", None)
    of_this = replace(graph, header=replace(graph.header, tokens=tokens))
    assert read_prompt(model, None, of_this) == tokens == read_prompt(model, "paris x", of_this)
    for prompt, made, message in (
            (None, None, "give a prompt, or a graph"), ("paris paris", of_this, "the graph is of another prompt"),
            (None, replace(graph, header=replace(graph.header, tokens=[])), "does not hold all token ids"),
            (None, replace(graph, header=replace(graph.header, tokens=[2, -1])), "does not hold all token ids")):
        with pytest.raises(InputError, match=message):
            read_prompt(model, prompt, made)
