"""A validation told: numbers in the graph's header and as JSON, tables, the page, and ``circuits validate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from rich.console import Console
from test_attribution import TOKENS, small_dictionary
from test_cli import PROMPT, Done, run  # noqa: F401
from test_prompt import write_tokenizer
from tiny_models import text_folder
from transcoder_folders import gemma_scope_clt

import circuits.graphs
from circuits.errors import InputError
from circuits.gemma3 import Gemma3
from circuits.graphs import AttributionGraph
from circuits.validation.validate import Validation

REQUIRED = ("frozen_max_relative_error", "spearman_influence", "spearman_edge", "spearman_activation",
            "spearman_shuffled", "log_pearson_influence", "n_features", "created", "effects")
Run = Callable[..., Done]


class Made(NamedTuple):
    folder: Path
    transcoders: str
    model: Gemma3
    graph: AttributionGraph
    report: Validation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("made")
    folder = text_folder(root / "model")
    write_tokenizer(folder)
    source = gemma_scope_clt(root, small_dictionary("clt", True))
    model, transcoders = circuits.load_model(folder, device="cpu"), circuits.open_transcoders(source)
    graph = circuits.trace(model, transcoders, tokens=TOKENS, max_logits=2).prune()
    return Made(folder, source, model, graph, circuits.validate(graph, model, transcoders, multipliers=(0.0, 2.0),
                                                                controls=2))


def test_the_header_holds_what_the_graph_page_reads(made: Made, tmp_path: Path) -> None:
    annotated = made.report.annotated(made.graph)
    assert not made.graph.header.validation
    annotated.save(tmp_path / "g.safetensors")
    header = circuits.graphs.load(tmp_path / "g.safetensors").header.validation
    assert not set(REQUIRED) - set(header)
    assert header["n_features"] == len(header["effects"]) == (made.graph.nodes.kind == "feature").sum()
    found = made.report.ablations
    for (node_id, predicted, measured), node, signed in zip(
            header["effects"], found.nodes, found.measured @ found.weights, strict=True):
        assert made.graph.node_ids[node] == node_id
        assert measured == pytest.approx(signed, rel=1e-4)
        assert isinstance(predicted, float)
    assert header["frozen_max_relative_error"] < 1e-4


def test_numbers_are_plain_json(made: Made) -> None:
    numbers = json.loads(json.dumps(made.report.numbers(), allow_nan=False))
    assert not set(REQUIRED) - set(numbers)
    assert numbers["frozen"]["worst"][0]["relative_error"] == numbers["frozen_max_relative_error"]
    assert set(numbers["layers"]) == {"norms_frozen", "norms_free"}
    for found in numbers["layers"].values():
        assert len(found["by_layer"]["layer"]) == len(found["by_layer"]["cosine"])
    assert [one["multipliers"] for one in numbers["steering"]] == [[0.0, 2.0]] * len(made.report.steering)


def test_what_is_not_defined_is_null_and_not_nan(made: Made) -> None:
    one = replace(made.report.ablations, **{name: getattr(made.report.ablations, name)[:1] for name in (
        "nodes", "influence", "activation", "direct", "linear", "predicted", "measured", "kl")}, layers={})
    numbers = replace(made.report, ablations=one, steering=[]).numbers()
    json.dumps(numbers, allow_nan=False)
    assert numbers["spearman_influence"] is numbers["log_pearson_influence"] is None
    assert numbers["n_features"] == 1


def test_a_report_belongs_to_its_graph(made: Made) -> None:
    other = circuits.trace(made.model, circuits.open_transcoders(made.transcoders), tokens=TOKENS[:5])
    with pytest.raises(InputError, match="of another graph"):
        made.report.annotated(other)


def test_tables_say_the_numbers(made: Made) -> None:
    console = Console(width=200, record=True)
    for table in made.report.tables():
        console.print(table)
    told = console.export_text()
    assert f"{made.report.correlations['spearman_influence']:.3f}" in told
    assert f"{made.report.frozen.max_relative_error:.1e}" in told
    assert "2x" in told
    assert len(made.report.tables()) == 2 + bool(made.report.steering)
    assert len(replace(made.report, steering=[], ablations=replace(made.report.ablations, layers={})).tables()) == 1


def test_the_page_is_one_file_that_loads_nothing(made: Made, tmp_path: Path) -> None:
    graph = made.report.graph
    labels = graph.nodes.label.copy()
    labels[made.report.ablations.nodes] = "<img src=x onerror=alert(1)></script>"
    hostile = replace(graph, nodes=replace(graph.nodes, label=labels),
                      header=replace(graph.header, prompt="<b>hot</b>"))
    replace(made.report, graph=hostile).write_page(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "default-src &#39;none&#39;" in page
    assert "<img" not in page
    assert "<b>hot" not in page
    plots = json.loads(page.split('id="plots">')[1].split("</script>")[0])
    assert {"influence", "signed", "baselines", "cosine_distance", "error_layer"} <= set(plots)
    assert len([name for name in plots if name.startswith("steering")]) == len(made.report.steering)
    found = made.report.ablations
    effect = np.abs(found.measured) @ found.weights
    points = plots["influence"]["data"][0]
    np.testing.assert_allclose(points["y"], effect[(effect > 0) & (found.influence > 0)], rtol=1e-4)
    assert points["text"][0].startswith("&lt;img")
    with pytest.raises(InputError, match="cannot write"):
        made.report.write_page(tmp_path / "nowhere" / "report.html")


def test_the_command_notes_the_numbers_in_the_file(run: Run, made: Made, tmp_path: Path) -> None:  # noqa: F811
    source = ["--model", made.folder, "--transcoders", made.transcoders, "--device", "cpu"]
    assert run("trace", PROMPT, *source, "-o", "g.safetensors").status == 0
    before = circuits.graphs.load(tmp_path / "g.safetensors")
    done = run("validate", "g.safetensors", "--model", made.folder, "--device", "cpu", "--report", "r.html", "--json",
               "n.json", "--controls", 1)
    assert done.status == 0, done.err
    assert "warning" not in done.err
    after, numbers = circuits.graphs.load(tmp_path / "g.safetensors"), json.loads((tmp_path / "n.json").read_text())
    assert after.header.validation == {key: numbers[key] for key in after.header.validation}
    assert replace(after.header, validation={}) == before.header
    assert (after.weights == before.weights).all()
    assert {p.name for p in tmp_path.iterdir()} == {"g.safetensors", "r.html", "n.json"}
    assert f"{numbers['spearman_influence']:.3f}" in done.out
    assert "wrote g.safetensors" in done.out
    quick = run("validate", "g.safetensors", *source, "--no-layers", "--no-steering", "-o", "h.safetensors", "--json",
                "q.json")
    assert quick.status == 0, quick.err
    less = json.loads((tmp_path / "q.json").read_text())
    assert (less["layers"], less["steering"]) == ({}, [])
    assert less["spearman_influence"] == pytest.approx(numbers["spearman_influence"], abs=1e-3)
    weights = before.weights * np.float32(1.01)
    replace(before, weights=weights).save(tmp_path / "wrong.safetensors")
    wrong = run("validate", "wrong.safetensors", *source, "--no-layers", "--no-steering")
    assert wrong.status == 0
    assert "warning: frozen interventions miss the graph's edges by 9.9e-03" in " ".join(wrong.err.split())


def test_the_command_says_what_is_wrong(run: Run, made: Made, tmp_path: Path) -> None:  # noqa: F811
    made.graph.save(tmp_path / "g.safetensors")
    nameless = replace(made.graph, header=replace(made.graph.header, transcoders=""))
    nameless.save(tmp_path / "nameless.safetensors")
    for arguments, message in (
            (["absent.safetensors"], "absent.safetensors"),
            (["g.safetensors", "-o", "g.txt"], "g.txt"),
            (["g.safetensors", "--model", made.folder, "--controls", -1], "controls is -1"),
            (["nameless.safetensors", "--model", made.folder], "give --transcoders")):
        done = run("validate", *arguments)
        assert done.status == 2, arguments
        assert message in done.err
        assert done.err.strip().count("\n") == 0
