"""The benchmark of ablations gives figures only where they are right."""

from pathlib import Path

import pytest
from test_attribution import TOKENS, small_dictionary
from tiny_models import text_folder
from transcoder_folders import gemma_scope_clt

import circuits
from circuits.interventions.edits import Intervention, ablate
from circuits.interventions.intervene import local_replacement


def test_figures_only_of_right_ablations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import ablations

    model = circuits.load_model(str(text_folder(tmp_path / "model")), device="cpu")
    transcoders = circuits.open_transcoders(gemma_scope_clt(tmp_path, small_dictionary("clt", skip=True)))
    local = local_replacement(model, transcoders, TOKENS)
    report = ablations.run(model, transcoders, local, 10, 2, seed=0)
    assert report["ablations"] == 10
    assert report["figures"]["ratio"] > 0
    assert "10 ablations of a prompt of 12 tokens" in ablations.line(report)

    def halved(*feature: int) -> Intervention:
        [edit] = ablate(*feature).edits
        return Intervention((type(edit)(edit.layer, edit.feature, edit.positions, "scale", 0.01),))

    monkeypatch.setattr(ablations, "ablate", halved)
    report = ablations.run(model, transcoders, local, 10, 1, seed=0)
    assert "figures" not in report
    assert "differs from a separate run by" in ablations.line(report)
