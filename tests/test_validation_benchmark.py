"""The benchmark of validation on a tiny model: what it measures, that it goes on, and that a failed check hides it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_attribution import small_dictionary
from test_prompt import write_tokenizer
from tiny_models import text_folder
from transcoder_folders import gemma_scope_clt

import circuits
from circuits.validation.correlation import spearman

PROMPTS = [{"kind": "one", "prompt": "paris paris x mo"}, {"kind": "two", "prompt": "x mo is paris"}]


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import validation

    folder = text_folder(tmp_path / "model")
    write_tokenizer(folder)
    source = gemma_scope_clt(tmp_path, small_dictionary("clt", False))
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    monkeypatch.setattr(validation, "RESAMPLES", 20)
    arguments = ["--work", str(tmp_path / "work"), "--prompts", str(tmp_path / "prompts.jsonl"), "--model", str(folder),
                 "--transcoders", source, "--sample", "9", "--why", "--threads", "1",
                 "--json", str(tmp_path / "r.json")]
    validation.main(arguments)
    report = json.loads((tmp_path / "r.json").read_text())
    kept = [json.loads(path.read_text()) for path in sorted((tmp_path / "work").glob("*.json"))]
    assert [one["prompt"] for one in kept] == [one["prompt"] for one in report["prompts"]]
    assert set(report["why"]) == {*validation.WHY, "edges of the unpruned graph, with signs"}
    shares = [[np.array(one["features"][name]) / np.sum(one["features"][name]) for one in kept]
              for name in ("influence", "effect")]
    expected = spearman(*(np.concatenate(side) for side in shares))
    pooled = report["pooled"]["influence"]
    assert pooled["spearman"] == pytest.approx(expected)
    assert pooled["low"] < pooled["high"]
    assert len(kept[0]["sample"]["effect"]) == 9
    mean = np.mean([one["correlations"]["spearman_influence"] for one in kept])
    assert report["mean"]["spearman_influence"] == pytest.approx(mean)
    assert f"pooled, influence: {expected:.3f}" in capsys.readouterr().out

    monkeypatch.setattr(circuits, "load_model", None)  # what is there is kept
    validation.main(arguments)
    assert json.loads((tmp_path / "r.json").read_text())["pooled"] == report["pooled"]

    path = next((tmp_path / "work").glob("x-*.json"))
    path.write_text(json.dumps(kept[1] | {"frozen_max_relative_error": 2e-4}))
    with pytest.raises(SystemExit):
        validation.main(arguments)
    failed = json.loads((tmp_path / "r.json").read_text())
    assert "'x mo is paris': 2.0e-04" in failed["failure"]
    assert "pooled" not in failed
    assert "FAILED" in capsys.readouterr().out
