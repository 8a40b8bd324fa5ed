"""Labels: the rule on made-up features, files of labels made elsewhere, and which of them a graph shows."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import text_folder
from transcoder_folders import dictionary, native_folder

import circuits
from circuits.errors import FormatError, InputError
from circuits.features import (
    Context,
    Feature,
    Labels,
    TokenScores,
    collect_features,
    label,
    relabel,
    text_activations,
)
from circuits.features.imported import LABELS_FILE, read_labels, write_labels
from circuits.features.rule import LONGEST, compose, visible_token

EMPTY = TokenScores(np.zeros(0, int), np.zeros(0))


def feature(contexts: list[tuple[str, str, str]], promoted: tuple[str, ...] = (), *, layer: int = 9,
            strength: float = 10.0, sampled: tuple[tuple[str, str, str], ...] = ()) -> Feature:
    """From (before, peak, behind) texts."""
    texts = list(dict.fromkeys([text for c in [*contexts, *sampled] for text in c] + list(promoted)))
    made = [Context(np.array([texts.index(t) for t in c if t]), np.ones(3), 1 if c[0] else 0, quantile)
            for group, quantile in ((contexts, 1.0), (sampled, 0.4)) for c in group]
    scores = TokenScores(np.array([texts.index(t) for t in promoted], int), np.full(len(promoted), strength))
    return Feature(layer, 5, 100, 1000, 3.0, 0, np.array([100]), tuple(made), promoted=scores, suppressed=EMPTY,
                   exciting=EMPTY, fired_on=EMPTY, effect_spread=1.0, candidates=10_000, texts=dict(enumerate(texts)))


def around(*peaks: str, before: str = "", behind: str = "") -> list[tuple[str, str, str]]:
    return [(before or f"b{i}", peak, behind or f"a{i}") for i, peak in enumerate(peaks)]


@pytest.mark.parametrize(("made", "expected"), [
    (feature(around(" Michael", " Michael", " Mike", " Mike", "x"), (" Jordan", "Jordan", " Jackson")),
     'on " Michael", " Mike" -> " Jordan", " Jackson"'),
    (feature(around(*[" Jordan"] * 4, before=" Michael")), 'on " Jordan" after " Michael"'),
    (feature(around("a", "b", "c", "d", before=" of")), 'after " of"'),
    (feature(around("a", "b", "c", "d"), (" Paris", " Rome")), 'says " Paris", " Rome"'),
    (feature(around("a", "b", "c", "d")), 'on "a", "b", …'),
    (feature(around("a", "a", "A", " a ", behind=" than")), 'on "a" before " than"'),
    # promoted tokens mean little in the first third, or when they do not stand out
    (feature(around("a", "a"), (" Paris",), layer=5), 'on "a"'),
    (feature(around("a", "a"), (" Paris",), layer=6), 'on "a" -> " Paris"'),
    (feature(around("a", "a"), (" Paris",), strength=4.2), 'on "a"'),
    (feature(around("a", "a"), (" Paris",), strength=4.4), 'on "a" -> " Paris"'),
    # contexts from the middle of its activations do not count
    (feature(around("a", "a"), sampled=(("", "z", ""),) * 8), 'on "a"'),
    (feature(around("\n", "\n", '"', '"')), "on \"↵\", '\"'"),
    (feature([]), "")])
def test_the_rule(made: Feature, expected: str) -> None:
    assert label(made, 18) == expected


def test_labels_are_short_and_on_one_line() -> None:
    long = [f" {'word' * 4}{i}" for i in range(3)]
    assert compose(long, [], long) == f'on "{long[0]}" -> "{long[0]}"'
    assert len(compose([f"{i}" + "x" * 300 for i in range(3)], ["y" * 300], ["z" * 300])) <= LONGEST
    hostile = label(feature(around(*["\x1b[2J\r\n\u202e"] * 3)), 18)
    assert hostile.isprintable()
    assert "U+001B" in hostile
    assert visible_token("a\tb\n\u200b") == "a⇥b↵⟨U+200B⟩"


ROWS = [{"modelId": "m", "layer": "1-gemmascope-2-transcoder-16k", "index": "7", "description": "capital cities"},
        {"layer": 0, "feature": 3, "label": "first"}, {"layer": 0, "index": 3, "description": "second"}]
EXPECTED = {(1, 7): "capital cities", (0, 3): "first"}


@pytest.mark.parametrize(("name", "content"), [
    ("n.json", json.dumps(ROWS)), ("n.json", json.dumps({"explanations": ROWS})),
    ("n.jsonl", "\n\n".join(map(json.dumps, ROWS))), ("n.jsonl.gz", "\n".join(map(json.dumps, ROWS))),
    ("n.csv", "layer,feature,label\n1,7,capital  cities\n0,3,first\n0,3,second\n"),
    ("n.csv", "\ufeff1,7,\"capital\ncities\"\n0,3,first\n2,1,\n")])
def test_labels_from_elsewhere(tmp_path: Path, name: str, content: str) -> None:
    raw = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    found = read_labels(tmp_path / name, (10, 10, 10))
    assert found == EXPECTED
    write_labels(tmp_path / LABELS_FILE, found)
    assert read_labels(tmp_path / LABELS_FILE, (10, 10, 10)) == EXPECTED


@pytest.mark.parametrize(("name", "content", "error", "message"), [
    ("n.csv", b"layer,feature,label\n1,x,a", FormatError, "line 2: feature is 'x'"),
    ("n.csv", b"1,2", FormatError, "expected layer,feature,label, got 2"),
    ("n.csv", b"5,2,a", InputError, r"no feature 5/2 .*3 layers of 10"),
    ("n.csv", b"1,10,a", InputError, "no feature 1/10"),
    ("n.csv", b"", InputError, "holds no labels"),
    ("n.csv", b"1,2,\xff", FormatError, "UTF-8"),
    ("n.json", b"{]", FormatError, "is not JSON"),
    ("n.json", b"[" * 100_000, FormatError, "is not JSON"),
    ("n.json", b"[3]", FormatError, "entry 0: expected a JSON object, got int"),
    ("n.json", b'[{"layer": 1, "index": 2}]', FormatError, "expected layer, index"),
    ("n.json", b'[{"layer": "res", "index": 2, "description": "a"}]', FormatError, "layer is 'res'"),
    ("n.json", b'{"format": "gemma-circuits-labels", "version": 2, "labels": {}}', FormatError, "version 2"),
    ("n.jsonl", b'{"layer": 1, "index": -2, "description": "a"}', FormatError, "line 1: index is|feature is '?-2"),
    ("n.json.gz", b"[]", FormatError, "is not gzipped"),
    ("n.txt", b"1,2,a", InputError, ".csv, .json and .jsonl")])
def test_bad_label_files(tmp_path: Path, name: str, content: bytes, error: type, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_labels(tmp_path / name, (10, 10, 10))


def test_absent_label_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_labels(tmp_path / "absent.csv", (10,))


@pytest.fixture
def pair(tmp_path: Path):
    """A tiny model and a native folder with label tokens."""
    model = circuits.load_model(text_folder(tmp_path / "model"), device="cpu")
    made = dictionary(span=4, n_layers=4, features=20, d_model=32)
    for tensor in [*made.w_dec, *made.b_dec]:
        tensor *= 0.1
    return model, circuits.open_transcoders(native_folder(tmp_path / "set", made, labels=True))


def graph_labels(model, transcoders) -> dict[tuple[int, int], str]:
    graph = circuits.trace(model, transcoders, tokens=[2, 11, 12, 13])
    nodes = graph.nodes
    return {(int(nodes.layer[i]), int(nodes.feature[i])): nodes.label[i]
            for i in np.flatnonzero(nodes.kind == "feature")}


def test_a_graph_shows_imported_labels_then_the_rules_then_label_tokens(pair) -> None:
    model, transcoders = pair
    plain = graph_labels(model, transcoders)
    for (layer, i), text in plain.items():
        first = 5000 + 1000 * layer + 10 * i
        assert text.startswith(f'{layer}/{i} on "[{first}]"')
        assert ("->" in text) == (layer >= 2)  # of 4 layers, the second third starts here
    generator = torch.Generator().manual_seed(0)
    sequences = torch.cat([torch.full((40, 1), 2), torch.randint(3, 128, (40, 9), generator=generator)], 1).tolist()
    data = collect_features(model, transcoders, text_activations(model, sequences))
    ruled = graph_labels(model, transcoders)
    assert set(ruled) == set(plain)
    live = 0
    for (layer, i), text in ruled.items():
        known = data.read(layer, i)
        if known is not None:
            assert text == f"{layer}/{i} {label(known, 4)}"
            live += text != plain[layer, i]
    assert live > len(ruled) / 2
    some, other = list(ruled)[:2]
    assert transcoders.folder is not None
    write_labels(transcoders.folder / LABELS_FILE, {some: 'says "hello"'})
    imported = graph_labels(model, transcoders)
    assert imported[some] == f'{some[0]}/{some[1]} says "hello"'
    assert imported[other] == ruled[other]


def test_labels_that_cannot_be_read_cost_a_warning_not_the_graph(pair) -> None:
    model, transcoders = pair
    (transcoders.folder / "features.bin").write_bytes(b"noise" * 100)
    graph = circuits.trace(model, transcoders, tokens=[2, 11, 12, 13])
    assert any("features have no labels" in warning and "features.bin" in warning for warning in graph.header.warnings)
    i = int(np.flatnonzero(graph.nodes.kind == "feature")[0])
    assert graph.nodes.label[i] == f"{graph.nodes.layer[i]}/{graph.nodes.feature[i]}"


def test_relabel(pair) -> None:
    model, transcoders = pair
    graph = circuits.trace(model, transcoders, tokens=[2, 11, 12, 13])
    before = graph.nodes.label.copy()
    i = int(np.flatnonzero(graph.nodes.kind == "feature")[0])
    name = (int(graph.nodes.layer[i]), int(graph.nodes.feature[i]))
    relabel(graph, {name: "new", (3, 19): "x"} if name != (3, 19) else {name: "new"})
    assert graph.nodes.label[i] == f"{name[0]}/{name[1]} new"
    changed = np.flatnonzero(graph.nodes.label != before)
    assert {(int(graph.nodes.layer[j]), int(graph.nodes.feature[j])) for j in changed} <= {name, (3, 19)}


def test_labels_without_anything_known(tmp_path: Path) -> None:
    made = circuits.open_transcoders(native_folder(tmp_path / "set", dictionary(span=2)))
    assert Labels.open(made).of(1, [3, 4]) == ["", ""]
    with pytest.raises(InputError, match="cannot read"):
        Labels.open(made, labels=tmp_path / "absent.csv")
    with pytest.raises(InputError, match="cannot read"):
        Labels.open(made, data=tmp_path / "absent.bin")
