"""The ``circuits`` command in this process: results, numbers as JSON, and one clear line for every bad input."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from forked_processes import run_ranks
from page_samples import unpack
from random_graphs import random_graph
from safetensors.numpy import load_file
from safetensors.torch import save_file
from test_prompt import write_tokenizer
from tiny_models import text_folder
from transcoder_folders import dictionary, gemma_scope_clt, gemma_scope_plt

import circuits.graphs
from circuits import cli
from circuits.graphs.explain import explain
from circuits.graphs.scores import annotate


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Done]:
    """Run ``circuits`` with arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["circuits", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        out, err = capfd.readouterr()
        return Done(status, out, err)

    return run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """--model and --transcoders of a tiny pair with a tokenizer."""
    root = tmp_path_factory.mktemp("tiny")
    model = text_folder(root / "model")
    write_tokenizer(model)
    made = dictionary(span=4, n_layers=4, features=20, d_model=32)
    for tensor in [*made.w_dec, *made.b_dec]:
        tensor *= 0.1
    return ["--model", str(model), "--transcoders", gemma_scope_clt(root, made), "--device", "cpu"]


PROMPT = "paris paris x mo"


def test_trace_writes_every_format_and_the_numbers(run, source, tmp_path: Path) -> None:
    done = run("trace", PROMPT, *source, "-o", "g.safetensors", "-o", "g.json", "-o", "g.html", "-o", "g.graphml",
               "--json", "n.json")
    assert done.status == 0, done.err
    graph = circuits.graphs.load(tmp_path / "g.safetensors")
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["nodes"] == len(graph)
    assert numbers["edges"] == graph.n_edges
    assert numbers["replacement"] == pytest.approx(graph.scores["replacement"])
    assert numbers["conservation"] < 1e-5
    assert 0 < numbers["peak_memory_bytes"] < 4e9
    assert graph.header.settings["node_threshold"] == 0.8
    assert graph.header.prompt == PROMPT
    assert {p.name for p in tmp_path.iterdir()} == {"g.safetensors", "g.json", "g.html", "g.graphml", "n.json"}
    assert "wrote g.html" in done.out
    assert "\r" not in done.out


def test_options_reach_the_trace(run, source, tmp_path: Path) -> None:
    done = run("trace", "--tokens", "2,11,12,13", *source, "--no-prune", "--coverage", "1.0", "--max-logits", 3,
               "--logit-prob", 1, "-o", "full.safetensors")
    assert done.status == 0, done.err
    full = circuits.graphs.load(tmp_path / "full.safetensors")
    assert full.header.tokens == [2, 11, 12, 13]
    assert full.unexplored == 0
    assert len(full.target_nodes) == 3
    assert "node_threshold" not in full.header.settings
    assert run("trace", PROMPT, *source, "--target", " x", "--versus", "paris", "--max-features", 5, "--no-prune",
               "-o", "c.safetensors").status == 0
    contrast = circuits.graphs.load(tmp_path / "c.safetensors")
    assert contrast.nodes.label[contrast.target_nodes[0]].startswith('Output " x"')
    assert contrast.header.settings["expanded_features"] == 5


def test_how_a_trace_is_computed_does_not_change_it(run, source, tmp_path: Path) -> None:
    found = []
    for extra in ([], ["--device-map", "disk"], ["--memory", "20GiB"], ["--batch", 2]):
        assert run("trace", PROMPT, *source, *extra, "--json", "n.json", "-o", "g.safetensors").status == 0
        numbers = json.loads((tmp_path / "n.json").read_text())
        found.append((numbers["nodes"], numbers["edges"], numbers["unexplored"]))
    assert found[0][1] > 0
    for nodes, edges, unexplored in found[1:]:
        assert (nodes, edges) == found[0][:2]
        assert unexplored == pytest.approx(found[0][2], abs=1e-6)


def test_export_prunes_and_pages_hold_more_than_they_show(run, tmp_path: Path) -> None:
    whole = annotate(random_graph(11, n_layers=8, n_pos=6, per_layer=20, density=0.4))
    whole.save(tmp_path / "whole.safetensors")
    done = run("export", "whole.safetensors", "-o", "small.safetensors", "-o", "page.html", "--node-threshold", "0.6",
               "--edge-threshold", "0.9")
    assert done.status == 0, done.err
    small = circuits.graphs.load(tmp_path / "small.safetensors")
    assert small.node_ids == whole.prune(0.6, 0.9).node_ids
    values, columns = unpack(re.search(r'id="data">([^<]+)<', (tmp_path / "page.html").read_text())[1])
    shown = columns["nodes.shown"].astype(bool)
    assert [node for node, kept in zip(values["ids"], shown, strict=True) if kept] == small.node_ids
    assert len(shown) > len(small)
    assert int(columns["edges.shown"].sum()) == small.n_edges
    wrong = run("export", "whole.safetensors", "-o", "x.html", "--node-threshold", "1.5")
    one_clear_line(wrong, "node_threshold is 1.5")
    assert not (tmp_path / "x.html").exists()


def test_show_and_export(run, source, tmp_path: Path) -> None:
    run("trace", PROMPT, *source, "-o", "g.safetensors")
    shown = run("show", "g.safetensors", "--json", "n.json")
    assert shown.status == 0, shown.err
    assert "Features by influence" in shown.out
    assert "Strongest paths from tokens" in shown.out
    graph = circuits.graphs.load(tmp_path / "g.safetensors")
    assert explain(graph, None, 10).coverage() in " ".join(shown.out.split())
    assert json.loads((tmp_path / "n.json").read_text())["model"] == "model"
    exported = run("export", "g.safetensors", "-o", "h.json", "-o", "h.html")
    assert exported.status == 0, exported.err
    assert run("export", "h.json", "-o", "back.safetensors").status == 0
    before, after = (circuits.graphs.load(tmp_path / name) for name in ("g.safetensors", "back.safetensors"))
    np.testing.assert_array_equal(before.weights, after.weights)
    assert before.node_ids == after.node_ids


def test_evaluate(run, source, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("paris x mo paris " * 20)
    done = run("evaluate", *source, "--text", "t.txt", "--length", 12, "--max-tokens", 60, "--json", "q.json")
    assert done.status == 0, done.err
    quality = json.loads((tmp_path / "q.json").read_text())
    assert set(quality) >= {"fvu_mean", "fvu_by_layer", "active_per_position", "active_by_layer", "kl",
                            "kl_mean_ablated", "top1_agreement", "dead_fraction", "dense_fraction", "loss",
                            "loss_replaced", "loss_mean_ablated", "loss_recovered", "kl_with_errors",
                            "top1_with_errors"}
    assert len(quality["fvu_by_layer"]) == 4
    assert (quality["positions"], quality["transcoders"], quality["text"]) == (60, source[3], "t.txt")
    assert "prompts" not in quality
    assert "Transcoder quality" in done.out


def test_evaluate_on_sampled_text_and_prompts(run, source, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": PROMPT}) + "\n\n" + json.dumps({"prompt": "x mo x"}) + "\n")
    done = run("evaluate", *source, "--sampled", 40, "--length", 12, "--prompts", "p.jsonl", "--json", "q.json")
    assert done.status == 0, done.err
    quality = json.loads((tmp_path / "q.json").read_text())
    assert quality["positions"] == 44  # four sequences of eleven
    assert quality["text"] == "sampled from the model, seed 99"
    assert [graph["prompt"] for graph in quality["prompts"]] == [PROMPT, "x mo x"]
    run("trace", PROMPT, *source, "--coverage", 1, "--no-prune", "--json", "n.json")
    traced = json.loads((tmp_path / "n.json").read_text())
    assert quality["prompts"][0]["replacement_score"] == pytest.approx(traced["replacement"])
    assert quality["prompts"][0]["completeness_score"] == pytest.approx(traced["completeness"])
    for key in ("replacement_score", "completeness_score"):
        assert quality[key] == pytest.approx(sum(graph[key] for graph in quality["prompts"]) / 2)
    assert "x mo x" in done.out
    again = run("evaluate", *source, "--sampled", 40, "--length", 12, "--seed", 7, "--prompts", "p.jsonl",
                "--coverage", 0.5, "--json", "other.json")
    assert again.status == 0, again.err
    other = json.loads((tmp_path / "other.json").read_text())
    assert other["kl"] != quality["kl"]
    assert 0 < other["prompts"][0]["unexplored"] <= 0.5


def test_evaluate_several_sets_in_one_table(run, source, tmp_path: Path) -> None:
    plt = gemma_scope_plt(tmp_path / "plt", dictionary(span=1, n_layers=4, features=20, d_model=32))
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": PROMPT}))
    (tmp_path / "t.txt").write_text("paris x mo paris " * 20)
    options = ["--text", "t.txt", "--length", 12, "--prompts", "p.jsonl", "--json", "q.json"]
    done = run("evaluate", *source, "--transcoders", plt, *options)
    assert done.status == 0, done.err
    both = json.loads((tmp_path / "q.json").read_text())
    assert [entry["transcoders"] for entry in both["sets"]] == [source[3], plt]
    assert done.out.count("Transcoder quality") == 1
    run("evaluate", *source[:2], "--device", "cpu", "--transcoders", plt, *options)
    alone = json.loads((tmp_path / "q.json").read_text())
    assert both["sets"][1] == {key: value for key, value in alone.items() if key not in ("model", "text")}
    assert f"{alone['fvu_mean']:.3f}" in done.out


def test_train_then_trace_with_what_it_wrote(run, source, tmp_path: Path) -> None:
    done = run("train", *source[:2], "-o", "run", "--features", 16, "--span", 2, "--active", 3, "--epochs", 1,
               "--batch", 20, "--shards", 1, "--sequences", 8, "--length", 10, "--vocabulary", 0, "--device", "cpu")
    assert done.status == 0, done.err
    done = run("trace", PROMPT, *source[:2], "--transcoders", "run/transcoder", "--device", "cpu", "-o", "g.html")
    assert done.status == 0, done.err


def test_train_on_files_with_a_settings_file(run, source, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("paris x mo paris mo " * 60)
    (tmp_path / "train.toml").write_text("features = 99\nspan = 1\nactive = 3\nepochs = 1\nbatch = 20\nshards = 1\n"
                                         "sequences = 8\nlength = 10\nrefit = 1\n")
    done = run("train", *source[:2], "-o", "run", "--config", "train.toml", "--features", 16, "--text", "t.txt",
               "--device", "cpu", "--json", "q.json")
    assert done.status == 0, done.err
    training = json.loads((tmp_path / "run/transcoder/config.json").read_text())["training"]
    assert (training["features"], training["span"]) == (16, 1)
    assert training["text"]["files"][0]["name"] == "t.txt"
    assert json.loads((tmp_path / "q.json").read_text())["positions"] == 72
    done = run("features", "run/transcoder", "--random", 2)
    assert done.status == 0, done.err


def command(*arguments: str) -> None:
    sys.argv = ["circuits", *arguments]
    cli.main()


def test_train_on_two_processes(run, source, tmp_path: Path) -> None:
    arguments = ["train", *source[:2], "-o", "run", "--features", "16", "--span", "2", "--active", "3", "--epochs", "1",
                 "--batch", "20", "--shards", "1", "--sequences", "8", "--length", "10", "--vocabulary", "0",
                 "--device", "cpu", "--refit", "1", "--json", "q.json"]
    written = run_ranks(2, command, *arguments, output=tmp_path)
    assert written.count("wrote run/transcoder") == 1
    shared = json.loads((tmp_path / "q.json").read_text())
    done = run(*arguments, "-o", "alone", "--json", "alone.json")
    assert done.status == 0, done.err
    assert shared["fvu_mean"] == pytest.approx(json.loads((tmp_path / "alone.json").read_text())["fvu_mean"], rel=1e-2)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--text", "t.txt", "--data-set", "org/x"], "--text or --data-set, not both"),
    (["--text", "absent.txt"], "cannot read absent.txt"), (["--matryoshka", "half"], "expected numbers with commas"),
    (["--config", "absent.toml"], "cannot read absent.toml"), (["--active", "0"], "active is 0"),
    (["--quota", "-1"], "quota is -1000000000"), (["--storage", "int3"], "storage is 'int3'"),
    (["--start-from", "absent"], "there is no transcoder at 'absent'"), (["--length", "65"], "length is 65")])
def test_train_with_bad_input(run, source, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run("train", *source[:2], "-o", "run", "--sequences", 4, "--length", 10, "--device", "cpu", *arguments)
    one_clear_line(done, message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "message"), [
    (["trace", ""], "prompt is empty"),
    (["trace"], "either a prompt or --tokens"),
    (["trace", "paris", "--tokens", "2,5"], "either a prompt or --tokens"),
    (["trace", "paris x " * 40], "reads at most 64"),
    (["trace", PROMPT, "--target", "paris mo"], "is 2 tokens: 'paris'"),
    (["trace", PROMPT, "--target", "§"], "not in the vocabulary"),
    (["trace", PROMPT, "--versus", " x"], "versus needs a target"),
    (["trace", PROMPT, "--node-threshold", "1.5"], "node_threshold is 1.5"),
    (["trace", PROMPT, "--edge-threshold", "-0.1"], "edge_threshold is -0.1"),
    (["trace", PROMPT, "--coverage", "0"], "coverage is 0"),
    (["trace", PROMPT, "--max-features", "0"], "max_features is 0"),
    (["trace", PROMPT, "--dtype", "int4"], "dtype is 'int4'"),
    (["trace", PROMPT, "--model-dtype", "int4"], "dtype is 'int4'"),
    (["trace", PROMPT, "--memory", "lots"], "memory is 'lots': expected a size such as 6GiB"),
    (["trace", PROMPT, "--memory", "1KB"], "give more with --memory"),
    (["trace", PROMPT, "--row-mass", "2"], "row_mass is 2.0"),
    (["trace", PROMPT, "--device-map", "balanced"], "device map is 'balanced': expected one of auto, disk"),
    (["trace", "--tokens", "2,x"], "expected numbers with commas"),
    (["trace", "--tokens", "2,99999"], "outside the vocabulary"),
    (["trace", PROMPT, "-o", "g.pdf"], ".pdf"),
    (["trace", PROMPT, "-o", "absent/g.html"], "there is no folder absent"),
    (["trace", PROMPT, "-o", "."], "."),
    (["trace", PROMPT, "--json", "absent/n.json"], "there is no folder absent"),
    (["trace", PROMPT, "--coverage", "many"], "--coverage"),
    (["evaluate", "--text", "absent.txt"], "cannot read absent.txt"),
    (["evaluate"], "either --text with a file or --sampled"),
    (["evaluate", "--text", "t.txt", "--sampled", 5], "either --text with a file or --sampled"),
    (["evaluate", "--sampled", 0], "0 tokens to sample"),
    (["evaluate", "--sampled", 9, "--length", 65], "length is 65: expected 2 to 64"),
    (["evaluate", "--sampled", 9, "--length", 5, "--prompts", "absent.jsonl"], "cannot read absent.jsonl"),
    (["evaluate", "--sampled", 9, "--json", "absent/n.json"], "there is no folder absent")])
def test_bad_input(run, source, tmp_path: Path, arguments: list[str], message: str) -> None:
    # a later -o is fine: the bad argument alone must stop everything
    extra = ["-o", "fine.html"] if arguments[0] == "trace" else []
    done = run(*arguments, *source, *extra)
    one_clear_line(done, message)
    assert list(tmp_path.iterdir()) == []


def one_clear_line(done: Done, message: str) -> None:
    assert done.status == 2, done
    assert message in done.err
    assert "Traceback" not in done.err + done.out
    assert "internal error" not in done.err


@pytest.mark.parametrize(("content", "message"), [
    ("", "holds no prompts"), ('{"text": "x"}', "line 1: expected a JSON object with a 'prompt' key"),
    ('{"prompt": "x mo"}\n{"prompt": 3}', "line 2: 'prompt' must be a string"),
    ('{"prompt": "x mo"}\n{"prompt": " "}', "prompt 2: the prompt is empty"),
    ('{"prompt": "x mo"}', "coverage is 1.5")])
def test_bad_prompt_files(run, source, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    done = run("evaluate", *source, "--sampled", 9, "--length", 5, "--prompts", "p.jsonl", "--coverage", 1.5)
    one_clear_line(done, message)


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_bad_device(run, source, device: str) -> None:
    one_clear_line(run("trace", PROMPT, *source[:-1], device), device)


def test_bad_models_and_transcoders(run, source, tmp_path: Path) -> None:
    model, transcoders = source[1], source[3]
    one_clear_line(run("trace", PROMPT, "--model", "no such model", "--transcoders", transcoders), "no such model")
    one_clear_line(run("trace", PROMPT, *source[:2], "--transcoders", str(tmp_path / "absent")), "absent")
    other = gemma_scope_clt(tmp_path / "other", dictionary(span=3, n_layers=3, d_model=32))
    one_clear_line(run("trace", PROMPT, *source[:2], "--transcoders", other), "3 layers")
    broken = Path(gemma_scope_clt(tmp_path / "broken", dictionary(span=4, n_layers=4, d_model=32)))
    shard = broken / "params_layer_2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    one_clear_line(run("trace", PROMPT, *source[:2], "--transcoders", broken), "params_layer_2")
    shard.rename(broken / "params_layer_7.safetensors")
    one_clear_line(run("trace", PROMPT, *source[:2], "--transcoders", broken), "layer")
    cut = text_folder(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((Path(model) / "model.safetensors").read_bytes()[:-1000])
    one_clear_line(run("trace", "--tokens", "2,5,6", "--model", cut, "--transcoders", transcoders), "cut")
    (cut / "model.safetensors").rename(cut / "weights.bin")
    one_clear_line(run("trace", "--tokens", "2,5,6", "--model", cut, "--transcoders", transcoders), "safetensors")


def test_bad_graph_files(run, source, tmp_path: Path) -> None:
    run("trace", PROMPT, *source, "-o", "g.safetensors")
    whole = (tmp_path / "g.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-50])
    one_clear_line(run("show", "cut.safetensors"), "cut.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"\x93" * 500)
    one_clear_line(run("show", "noise.safetensors"), "noise.safetensors")
    (tmp_path / "noise.json").write_text("{]")
    one_clear_line(run("show", "noise.json"), "noise.json")
    one_clear_line(run("show", "absent.safetensors"), "absent.safetensors")
    one_clear_line(run("show", "g.safetensors", "--top", 0), "top is 0")
    one_clear_line(run("export", "g.safetensors", "-o", "x.pdf"), ".pdf")
    import torch
    from safetensors import safe_open

    with safe_open(tmp_path / "g.safetensors", "np") as file:
        metadata = file.metadata()
    newer = {k: v.replace('"format_version": 1', '"format_version": 99').replace('"format_version":1',
                                                                                 '"format_version":99')
             if k != "format_version" else "99" for k, v in metadata.items()}
    assert newer != metadata
    save_file({k: torch.from_numpy(v) for k, v in load_file(tmp_path / "g.safetensors").items()},
              tmp_path / "newer.safetensors", metadata=newer)
    one_clear_line(run("export", "newer.safetensors", "-o", "x.html"), "newer.safetensors")
    assert not (tmp_path / "x.html").exists()


def test_no_command_shows_help(run) -> None:
    done = run()
    assert "trace" in done.out + done.err
    for command in ("trace", "show", "export", "evaluate", "train"):
        assert run(command, "--help").status == 0
