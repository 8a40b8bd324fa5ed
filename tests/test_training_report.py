"""The training report: the numbers in its figures against the inputs, hostile text, and the page in a real browser."""

import json
import math
from pathlib import Path
from typing import Any

import lxml.html
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser
from transcoder_folders import Dictionary, dictionary, native_folder

import circuits
from circuits.errors import FormatError, InputError
from circuits.training import report_figures
from circuits.training.report import read_metrics, write_report
from circuits.training.report_figures import decoder_norms
from circuits.transcoder import Transcoders

N_LAYERS, SPAN, FEATURES = 4, 3, 24
QUALITY = {"fvu_mean": 0.2, "fvu_by_layer": [0.1, 0.2, 0.3, 0.2], "active_per_position": 40.25,
           "active_by_layer": [9.0, 10.0, 11.0, 10.25], "kl": 1.5, "kl_mean_ablated": 7.25, "top1_agreement": 0.523,
           "dead_by_layer": [0.0, 0.25, 0.5, 0.125], "dense_by_layer": [0.0, 0.0, 0.125, 0.0], "positions": 4064,
           "loss_recovered": None, "prompts": [{"prompt": "<b>", "replacement_score": 0.6}], "made_up": 3.5}
SETTINGS = {"features": 24, "lr": 1e-3, "matryoshka": [0.25, 0.5], "text": {"kind": "sampled", "seed": 7}}
HOSTILE = ["<script>window.__pwned=1</script>", "</script><img src=x onerror=window.__pwned=1>", "{{ 7 * 7 }}",
           "<!-- <script>", "\ud800", "\"'`&lt;b&gt;", "x" * 10_000]


def line(step: int, **changes: Any) -> dict[str, Any]:
    """Every key; each value tells its step and layer."""
    return {"time": 1000.0 + 3600 * step / 40, "step": step, "steps": 40, "tokens": 1000 * step, "lr": 1e-3,
            "loss": 8.0 / step, "fvu": [0.1 * (i + 1) / step for i in range(N_LAYERS)],
            "active": [10.0 + i for i in range(N_LAYERS)], "dead": [0.01 * i for i in range(N_LAYERS)],
            "threshold": [0.5 + i for i in range(N_LAYERS)], "tokens_per_second": 500.0 + step, **changes}


@pytest.fixture(scope="module")
def sparse() -> Dictionary:
    """Some of layer 1's features do not write at distance 2, and some not at distance 1."""
    d = dictionary(span=SPAN, n_layers=N_LAYERS, features=FEATURES)
    d.w_dec[1][:18, 2] = 0.0
    d.w_dec[1][:6, 1] = 0.0
    return d


@pytest.fixture(scope="module")
def transcoders(sparse: Dictionary, tmp_path_factory: pytest.TempPathFactory) -> Transcoders:
    return circuits.open_transcoders(native_folder(tmp_path_factory.mktemp("clt"), sparse))


def write(path: Path, transcoders: Transcoders, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "metrics": [line(step) for step in (1, 20, 40)], "quality": QUALITY, "density": None, "settings": SETTINGS,
        "title": "a run", **changes}
    write_report(path, transcoders=transcoders, **arguments)
    return path


def parsed(path: Path) -> tuple[lxml.html.HtmlElement, dict[str, Any]]:
    page = lxml.html.fromstring(path.read_bytes())
    return page, json.loads(page.get_element_by_id("plots").text)


def table(page: lxml.html.HtmlElement, name: str) -> dict[str, str]:
    return {row[0].text_content(): row[1].text_content() for row in page.get_element_by_id(name).xpath("./tbody/tr")}


def test_curves_hold_the_metrics(transcoders: Transcoders, tmp_path: Path) -> None:
    page, plots = parsed(write(tmp_path / "report.html", transcoders))
    (loss,) = plots["loss"]["data"]
    assert loss["x"] == [1000, 20_000, 40_000]
    assert loss["y"] == [8.0, 0.4, 0.2]
    mean, worst, held_out = plots["fvu"]["data"]
    assert mean["y"] == pytest.approx([0.25, 0.25 / 20, 0.25 / 40], rel=1e-5)
    assert worst["y"] == pytest.approx([0.4, 0.4 / 20, 0.4 / 40], rel=1e-5)
    assert held_out["y"] == [0.2, 0.2]
    (heat,) = plots["fvu_over_time"]["data"]
    assert np.array(heat["z"]) == pytest.approx(np.outer([0.1, 0.2, 0.3, 0.4], [1, 1 / 20, 1 / 40]), rel=1e-5)
    edges = heat["x"]
    assert edges[1:3] == pytest.approx([math.sqrt(1000 * 20_000), math.sqrt(20_000 * 40_000)], rel=1e-5)
    assert edges[0] < 1000
    assert edges[3] > 40_000
    (total,) = plots["active_total"]["data"]
    assert total["y"] == [46.0] * 3
    (dead,) = plots["dead_over_time"]["data"]
    assert [row[0] for row in dead["z"]] == [0.0, 0.01, 0.02, 0.03]
    (threshold,) = plots["threshold_over_time"]["data"]
    assert [row[-1] for row in threshold["z"]] == [0.5, 1.5, 2.5, 3.5]
    (speed,) = plots["speed"]["data"]
    assert speed["y"] == [501.0, 520.0, 540.0]
    assert {plots[name]["layout"]["xaxis"]["title"]["text"] for name in ("loss", "fvu", "speed")} == {"Tokens seen"}
    facts = {row[0].text: row[1].text for row in page.xpath("//dl/div")}
    assert facts["tokens seen"] == "40,000"
    assert facts["took"] == "1.0 hours, pauses included"
    assert facts["features write to"] == "their own and the next 2 layers"


def test_bars_set_training_beside_held_out_text(transcoders: Transcoders, tmp_path: Path) -> None:
    _, plots = parsed(write(tmp_path / "report.html", transcoders))
    last = line(40)
    for name, key in (("fvu_by_layer", "fvu"), ("active_by_layer", "active"), ("dead_by_layer", "dead")):
        training, held_out = plots[name]["data"]
        assert training["y"] == pytest.approx(last[key], rel=1e-5)
        assert held_out["y"] == QUALITY[name]
        assert held_out["x"] == [0, 1, 2, 3]
        assert training["marker"]["color"] != held_out["marker"]["color"]
    assert plots["dense_by_layer"]["data"][0]["y"] == QUALITY["dense_by_layer"]


def test_tables(transcoders: Transcoders, tmp_path: Path) -> None:
    page, _ = parsed(write(tmp_path / "report.html", transcoders))
    quality, settings = table(page, "quality"), table(page, "settings")
    assert quality["FVU, mean over layers"] == "0.200"
    assert quality["FVU, worst layer"] == "0.300"
    assert quality["Top-1 agreement, every MLP replaced"] == "52.3%"
    assert quality["Positions measured"] == "4,064"
    assert quality["made up"] == "3.5"
    assert not any("recovered" in name or "prompts" in name for name in quality)
    assert settings == {"features": "24", "lr": "0.001", "matryoshka": "[0.25, 0.5]", "text.kind": "sampled",
                        "text.seed": "7"}


def test_decoder_norms(transcoders: Transcoders, sparse: Dictionary, tmp_path: Path,
                       monkeypatch: pytest.MonkeyPatch) -> None:
    mean = np.full((N_LAYERS, SPAN), np.nan)
    share = mean.copy()
    for layer, w_dec in enumerate(sparse.w_dec):
        for distance in range(w_dec.shape[1]):
            mean[layer, distance] = np.mean([float(torch.linalg.vector_norm(v)) for v in w_dec[:, distance]])
            share[layer, distance] = np.mean([bool(v.any()) for v in w_dec[:, distance]])
    norms, stored = decoder_norms(transcoders)
    np.testing.assert_allclose(norms, mean, rtol=1e-5)
    np.testing.assert_array_equal(stored, share)
    _, plots = parsed(write(tmp_path / "report.html", transcoders))
    drawn, kept = (np.array(plots[name]["data"][0]["z"], dtype=float) for name in ("decoder_norms", "decoders_stored"))
    assert drawn[1, 2] == pytest.approx(mean[1, 2] / mean[3, 0], rel=1e-5)  # scaled by what layer 3 writes to itself
    assert drawn[:, 0].tolist() == [1.0] * N_LAYERS
    assert kept[1].tolist() == [1.0, 0.75, 0.25]
    assert np.isnan(drawn[3, 1:]).all()
    monkeypatch.setattr(report_figures, "MAX_TILE", 5 * SPAN * sparse.d_model)
    np.testing.assert_allclose(decoder_norms(transcoders)[0], mean, rtol=1e-5)
    monkeypatch.setattr(report_figures, "MAX_FEATURES", 8)  # every third
    expected = sparse.w_dec[0][::3].norm(dim=2).mean(0)
    np.testing.assert_allclose(decoder_norms(transcoders)[0][0], expected, rtol=1e-5)


def test_density_histogram(transcoders: Transcoders, tmp_path: Path) -> None:
    shares = np.array([0.0, 0.0, 0.003, 0.02, 0.02, 0.09, 0.11, 0.5, 1.0], dtype=np.float32)
    density = [shares, np.zeros(3, np.float32), np.array([0.02], np.float32), np.array([], np.float32)]
    quality = {key: value for key, value in QUALITY.items() if key != "dead_by_layer"}
    page, plots = parsed(write(tmp_path / "report.html", transcoders, density=density, quality=quality))
    (bars,) = plots["density"]["data"]
    counts = {place: count for place, count in zip(bars["x"], bars["y"], strict=True) if count}
    assert counts == {-2.625: 1, -1.625: 3, -1.125: 1, -0.875: 1, -0.375: 1, -0.125: 1}
    (heat,) = plots["density_by_layer"]["data"]
    assert [sum(n or 0 for n in row) for row in heat["z"]] == [7, 0, 1, 0]
    assert heat["z"][2][heat["x"].index(-1.75)] == 1
    (mark,) = plots["density"]["layout"]["shapes"]
    assert mark["x0"] == mark["x1"] == -1.0
    assert -1.0 in heat["x"]  # no bin is on both sides of the line
    caption = page.get_element_by_id("density").getnext().text
    assert "13 features; 5 (38.5%) never fired" in caption
    assert "3 (23.1%) fire on more than 10% of positions" in caption
    *silent, no_features = plots["dead_by_layer"]["data"][1]["y"]
    assert silent == pytest.approx([2 / 9, 1.0, 0.0], rel=1e-5)
    assert no_features is None


def test_old_metrics_and_nothing_measured(transcoders: Transcoders, tmp_path: Path) -> None:
    old = [{"step": 0, "fvu": [0.9] * 4}, {"step": 20, "fvu": [0.5, 0.25, 0.5, math.nan], "loss": math.nan},
           {"step": 40, "fvu": [1.0]}]
    page, plots = parsed(write(tmp_path / "old.html", transcoders, metrics=old, quality={}, settings={}))
    assert set(plots) == {"fvu", "fvu_over_time", "fvu_by_layer", "decoder_norms", "decoders_stored"}
    assert plots["fvu"]["data"][0]["x"] == [20]
    assert plots["fvu"]["layout"]["xaxis"]["title"]["text"] == "Step"
    assert plots["fvu_by_layer"]["data"][0]["y"] == [0.5, 0.25, 0.5, None]
    assert not page.xpath("//table")
    _, plots = parsed(write(tmp_path / "empty.html", transcoders, metrics=[], quality={}, settings={}))
    assert set(plots) == {"decoder_norms", "decoders_stored"}
    plt = circuits.open_transcoders(native_folder(tmp_path / "plt", dictionary(span=1)))
    _, plots = parsed(write(tmp_path / "plt.html", plt, metrics=[], quality={}, settings={}))
    assert plots == {}


def test_long_runs_are_thinned_evenly_on_the_axis(transcoders: Transcoders, tmp_path: Path) -> None:
    metrics = [{"step": step, "loss": float(step)} for step in range(20, 60_001, 20)]
    _, plots = parsed(write(tmp_path / "report.html", transcoders, metrics=metrics))
    (loss,) = plots["loss"]["data"]
    assert loss["x"] == loss["y"]
    assert loss["x"][:3] == [20, 40, 60]
    assert loss["x"][-1] == 60_000
    assert 150 < len(loss["x"]) <= report_figures.MAX_POINTS
    assert max(b / a for a, b in zip(loss["x"][10:], loss["x"][11:], strict=False)) < 1.12


def test_hostile_text_stays_text_and_the_page_opens_alone(transcoders: Transcoders, tmp_path: Path, browser: Browser
                                                          ) -> None:
    density = [np.linspace(0, 1, FEATURES)] * N_LAYERS
    hostile = {f"{i}{text}": text for i, text in enumerate(HOSTILE)}
    path = write(tmp_path / "report.html", transcoders, density=density, title=HOSTILE[1], settings=hostile,
                 quality={**QUALITY, **hostile})
    _, plots = parsed(path)
    problems: list[str] = []
    requests: set[str] = set()
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)  # the script is 5 MB, and the machine may be busy
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.add(request.url))
    page.goto(path.as_uri())
    page.wait_for_function("n => document.querySelectorAll('.plot .xtitle').length === n", arg=len(plots))
    assert page.title() == HOSTILE[1]
    shown = page.eval_on_selector_all("#settings td", "cells => cells.map(cell => cell.textContent)")
    assert shown == [text.replace("\ud800", "?") for text in HOSTILE]
    assert page.locator("img").count() == 0
    assert page.evaluate("window.__pwned") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    bars = page.locator("#fvu_by_layer .bars .point")
    assert bars.count() == 2 * N_LAYERS
    page.close()
    assert problems == []
    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}


def test_what_cannot_be_written(transcoders: Transcoders, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write(tmp_path / "absent" / "report.html", transcoders)
    with pytest.raises(InputError, match="density has 1 layers, the transcoders have 4"):
        write(tmp_path / "report.html", transcoders, density=[np.zeros(3)])
    assert list(tmp_path.iterdir()) == []


def test_read_metrics_of_a_killed_and_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [line(20), line(40), line(60), line(40, loss=1.0)]
    torn = json.dumps(line(60, loss=2.0))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn[:-30])
    assert read_metrics(path) == [line(20), line(40, loss=1.0)]  # 60 is of the killed run: the resumed one went back
    with path.open("a") as log:  # resumed again: the torn line takes the first new one with it
        log.write(json.dumps(line(60)) + "\n" + json.dumps(line(80)) + "\n\n[1]\n{}\n")
    assert [row["step"] for row in read_metrics(path)] == [20, 40, 80]


def test_read_metrics_refuses_what_is_no_metrics_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(InputError, match="cannot read"):
        read_metrics(path)
    path.write_bytes(b"")
    assert read_metrics(path) == []
    path.write_bytes(b"\xff\x00 not JSON\n{}\n")
    with pytest.raises(FormatError, match="no line that is a JSON object with a step"):
        read_metrics(path)
