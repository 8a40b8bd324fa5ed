"""``circuits aggregate``: folders of graphs in, tables, JSON and a page out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from planted_graphs import ON_THE, PATH, family
from typer.testing import CliRunner

from circuits.aggregating.folder import ALL, find_families, versus_of
from circuits.commands.aggregate import aggregate as command
from circuits.errors import FormatError, InputError
from circuits.graphs import AttributionGraph

app = typer.Typer()
app.command()(command)
EVIL = "<img src=x onerror=alert(1)>[/b]\x1b[31m"


def write(folder: Path, graphs: Sequence[AttributionGraph], rows: Sequence[dict[str, object]]) -> Path:
    """As ``circuits batch`` does."""
    (folder / "graphs").mkdir(parents=True)
    lines = []
    for i, (graph, row) in enumerate(zip(graphs, rows, strict=True)):
        graph.save(folder / "graphs" / f"{i:04d}.safetensors")
        lines.append({"id": f"{i:04d}", "family": None, "correct": None, "error": None, "extra": {}} | row)
    (folder / "summary.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def append(folder: Path, row: dict[str, object] | str) -> None:
    with (folder / "summary.jsonl").open("a") as file:
        file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")


@pytest.fixture(scope="module")
def graphs() -> list[AttributionGraph]:
    made = [*family(1, 5, extra=[(2, 77)]), *family(2, 5)]
    for graph in made:
        labels = graph.nodes.label.copy()
        labels[labels == f"{PATH[0]}/{PATH[1]} planted"] = EVIL
        object.__setattr__(graph, "nodes", replace(graph.nodes, label=labels))
    return made


@pytest.fixture(scope="module")
def folder(graphs: list[AttributionGraph], tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, object]] = [
        {"family": "first" if i < 5 else "second <b>", "correct": i < 5, "extra": {"size": i % 2}} for i in range(10)]
    made = write(tmp_path_factory.mktemp("batch") / "out", graphs, rows)
    append(made, {"id": "broke", "family": "first", "error": {"type": "MemoryError", "message": "none left"}})
    return made


def test_the_command_prints_and_writes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuits.commands.common.out.width", 200)
    page, numbers = tmp_path / "page.html", tmp_path / "n.json"
    done = CliRunner().invoke(app, [str(folder), "-o", str(page), "--json", str(numbers), "--top", "3"],
                              catch_exceptions=False)
    assert done.exit_code == 0
    for words in ("first: 5 prompts", "second <b>: 5 prompts", "Features that recur", "Edges of the common circuit",
                  "first against second <b>", f"{ON_THE[0]}/{ON_THE[1]} planted", "at the last token", 'on " the"'):
        assert words in done.stdout
    assert "\x1b[31m" not in done.stdout
    assert "<img src=x onerror=alert(1)>[/b]" in done.stdout  # as text, not as markup
    assert "1 prompt that failed is left out" in done.stderr
    written = json.loads(numbers.read_text())
    assert [one["name"] for one in written["families"]] == ["first", "second <b>"]
    assert written["difference"]["tested"]
    first = written["families"][0]
    assert {(one["layer"], one["feature"]) for one in first["features"]} > {ON_THE, PATH, (2, 77)}
    assert first["circuit"]["features"]
    assert first["circuit"]["edges"][0]["present"] == 1
    html = page.read_text()
    assert "<img src=x" not in html
    assert "second <b>" not in html
    # plotly reads tags in the page's JSON too
    plots = json.loads(re.search(r'id="plots">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert set(plots) == {"features_0", "places_0", "recurrence_0", "circuit_0", "features_1", "places_1",
                          "recurrence_1", "circuit_1", "volcano", "tokens"}
    texts = json.dumps(plots)
    assert "&lt;img src=x" in texts
    assert "<img" not in texts
    assert "<b>" not in texts


def test_families_are_told_by_any_key(folder: Path) -> None:
    assert {name: len(files) for name, files in find_families([folder]).families.items()} == {"first": 5,
                                                                                            "second <b>": 5}
    found = find_families([folder], "correct").families
    assert [path.stem for path in found["true"]] == [f"{i:04d}" for i in range(5)]
    assert list(find_families([folder], "correct", ["false", "true"]).families) == ["false", "true"]
    assert {name: len(files) for name, files in find_families([folder], "size").families.items()} == {"0": 5, "1": 5}


def test_plain_folders_and_files_are_one_family(folder: Path, tmp_path: Path) -> None:
    files = sorted((folder / "graphs").glob("*.safetensors"))
    assert find_families([folder / "graphs"]).families == {ALL: files}
    assert find_families(files[:2]).families == {ALL: files[:2]}
    done = CliRunner().invoke(app, [str(path) for path in files[:3]], catch_exceptions=False)
    assert f"{ALL}: 3 prompts" in done.stdout


def test_versus_needs_one_other_family(folder: Path) -> None:
    families = find_families([folder]).families
    assert versus_of(families, "second <b>") == ("first", "second <b>")
    assert versus_of(families, None) is None
    for names, versus in ((["first"], "third"), (["first"], "first")):
        with pytest.raises(InputError, match="exactly one other family"):
            versus_of({name: families[name] for name in names}, versus)
    done = CliRunner().invoke(app, [str(folder), "--by", "correct", "--family", "false", "--versus", "true"],
                              catch_exceptions=False)
    assert "false against true" in done.stdout


def test_unusable_folders_are_refused(folder: Path, graphs: list[AttributionGraph], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no graphs"):
        find_families([tmp_path / "empty"])
    with pytest.raises(InputError, match="is no folder"):
        find_families([tmp_path / "missing"])
    failed = write(tmp_path / "failed", [], [])
    append(failed, {"id": "a", "error": {"type": "InputError", "message": "no"}})
    with pytest.raises(InputError, match="all 1 prompts failed"):
        find_families([failed])
    with pytest.raises(InputError, match="no prompt has 'colour'"):
        find_families([folder], "colour")
    with pytest.raises(InputError, match="there is no family 'third'"):
        find_families([folder], None, ["third"])
    bad = write(tmp_path / "bad", graphs[:2], [{"extra": {"tags": [1]}}, {}])
    with pytest.raises(InputError, match="'tags' of prompt 0000 is a list"):
        find_families([bad], "tags")
    with pytest.raises(InputError, match="largest family has 1 graph"):
        CliRunner().invoke(app, [str(folder / "graphs" / "0000.safetensors")], catch_exceptions=False)


def test_damaged_summaries_are_refused(graphs: list[AttributionGraph], tmp_path: Path) -> None:
    for i, (line, error, match) in enumerate([
            ({"id": "lost", "error": None}, InputError, "no graph of it"),
            ({"id": "0001", "error": None}, FormatError, "line 3: prompt '0001' is there twice"),
            ("{broken", FormatError, "line 3: "), ("[]", FormatError, "line 3: "),
            ({"id": 5}, FormatError, "line 3: id: "), ({"id": "../0000"}, InputError, "no graph of it")]):
        made = write(tmp_path / str(i), graphs[:2], [{}, {}])
        append(made, line)  # type: ignore[arg-type]
        with pytest.raises(error, match=match):
            find_families([made])


def test_prompts_without_the_key_are_left_out_and_said(graphs: list[AttributionGraph], tmp_path: Path) -> None:
    made = write(tmp_path / "some", graphs[:3], [{"correct": True}, {"correct": True}, {}])
    found = find_families([made], "correct")
    assert len(found.families["true"]) == 2
    assert found.warnings == ["1 prompt without 'correct' is left out."]


def test_unusable_outputs_and_settings_are_refused_before_the_work(folder: Path, tmp_path: Path) -> None:
    for arguments, match in ((["-o", str(tmp_path)], "it is a folder"), (["--top", "0"], "top is 0"),
                             (["--share", "1.5"], "share is 1.5")):
        with pytest.raises(InputError, match=match):
            CliRunner().invoke(app, [str(folder), *arguments], catch_exceptions=False)


def test_the_diagram_draws_the_circuit(folder: Path, tmp_path: Path) -> None:
    from circuits.aggregating.diagram import circuit_figure
    from circuits.graphs.aggregate import aggregate

    found = aggregate(find_families([folder]).families)
    made = circuit_figure(found, found.families[0], "c")
    assert made is not None
    nodes = made.data[-1]
    height = dict(zip(nodes["text"], nodes["y"], strict=True))
    assert height[f"{ON_THE[0]}/{ON_THE[1]}"] == 1 < height[f"{PATH[0]}/{PATH[1]}"] == 3 < height["target"]
    assert height['" the"'] < 0
    across = dict(zip(nodes["text"], nodes["x"], strict=True))
    assert across[f"{ON_THE[0]}/{ON_THE[1]}"] < across["target"]
    ends = {(x, y) for trace in made.data[:-1] for x, y in zip(trace["x"], trace["y"], strict=True) if x is not None}
    assert ends <= set(zip(nodes["x"], nodes["y"], strict=True))
    sizes = dict(zip(nodes["text"], nodes["marker"]["size"], strict=True))
    strongest = max(found.families[0].features, key=lambda one: one.influence[0]).key
    assert np.argmax(nodes["marker"]["size"]) == list(sizes).index(f"{strongest >> 32}/{strongest & 0xFFFFFFFF}")
