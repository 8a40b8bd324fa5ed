"""``circuits reasoning``: results, numbers as JSON, the page, and one clear line for every bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import one_clear_line, run, source  # noqa: F401
from test_reasoning import TEXT


def test_a_marked_text(run: Callable, source: list[str]) -> None:  # noqa: F811
    done = run("reasoning", TEXT, "--coverage", 1.0, "--controls", 1, "-o", "r.html", "--json", "r.json", *source)
    assert done.status == 0, done.err
    out = " ".join(done.out.split())
    [numbers] = json.loads(Path("r.json").read_text())["prompts"]
    assert f"About {numbers['through']:.0%} of the influence on" in out
    assert numbers["through"] + numbers["around"] == pytest.approx(1)
    assert numbers["spans"] == {"question": [1, 4], "reasoning": [6, 8]}
    assert numbers["ends"]["tokens"]["question"]["through"] == pytest.approx(numbers["mediated"])
    assert {(one["what"], one["mode"]) for one in numbers["effects"]} >= {("all ablated", "free")}
    assert [one["name"] for one in numbers["variants"]][:2] == ["original", "origin replaced"]
    assert "wrote r.html" in done.out
    assert "Reasoning share" in Path("r.html").read_text()


def test_a_graph_and_a_file(run: Callable, source: list[str]) -> None:  # noqa: F811
    assert run("trace", "paris x mo s x", "--no-prune", "-o", "g.safetensors", *source).status == 0
    done = run("reasoning", "--graph", "g.safetensors", "--span", "why=2:4", "--through", "why", "--no-ablation",
               "--json", "r.json", *source)
    assert done.status == 0, done.err
    [numbers] = json.loads(Path("r.json").read_text())["prompts"]
    assert (numbers["effects"], numbers["through_span"], numbers["origin"]) == ([], "why", None)
    one = {"prompt": "paris x mo s x", "spans": {"why": [2, 4], "rest": [4, 6]}}
    Path("p.jsonl").write_text(f"{json.dumps(one)}\n{json.dumps(one)}\n")
    done = run("reasoning", "-f", "p.jsonl", "--through", "why", "--from", "rest", "--no-ablation", "--json", "f.json",
               *source)
    assert done.status == 0, done.err
    first, second = json.loads(Path("f.json").read_text())["prompts"]
    assert first == second
    assert first["through"] == pytest.approx(numbers["through"])
    assert first["origin"] == "rest"


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "give a text with marked spans"),
    (["paris x"], "marks no span"),
    (["[[a]]paris"], "not closed"),
    (["paris x", "--span", "reasoning=1"], "expected NAME=FROM:TO"),
    (["paris x", "--span", "reasoning=1:9"], "the prompt has 3 tokens"),
    (["paris x", "--span", "reasoning=1:1"], "holds no token"),
    (["paris x mo", "--span", "reasoning=1:3", "--span", "question=2:4"], "overlap"),
    (["paris x", "--span", "a=1:2"], "no span 'reasoning'"),
    (["paris x", "--span", "reasoning=1:2", "--from", "b"], "no span 'b'"),
    (["paris x", "-f", "p.jsonl"], "a file of prompts holds everything"),
    (["-f", "p.jsonl"], "cannot read p.jsonl"),
    ([TEXT, "--corrupt-with", " x"], "the span 2"),
    ([TEXT, "-o", "missing/r.html"], "there is no folder"),
    ([TEXT, "--controls", "-1"], "controls is -1"),
])
def test_bad_input_is_one_clear_line(run: Callable, source: list[str], arguments: list[str],  # noqa: F811
                                     message: str) -> None:
    one_clear_line(run("reasoning", *arguments, *source), message)
