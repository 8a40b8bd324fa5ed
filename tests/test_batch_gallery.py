"""The gallery: what it shows, that nothing in it runs or is loaded, and its sorting and filters in a browser."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from batch_samples import PROMPTS, tiny_settings

from circuits.batches.folder import BatchFolder
from circuits.batches.gallery import _number, write_gallery
from circuits.batches.run import trace_batch
from circuits.batches.settings import BatchSettings

NASTY = "</script><img src=x onerror=alert(1)>\u202e\x1b[31m"


def row(prompt_id: str, **changes: object) -> dict:
    return {"id": prompt_id, "prompt": f"prompt {prompt_id}", "tokens": None, "family": None, "extra": {},
            "targets": [{"text": " x", "token": 5, "probability": 0.25}], "answer": None, "answer_probability": None,
            "answer_rank": None, "correct": None, "replacement": 0.5, "completeness": 0.75, "unexplored": 0.05,
            "conservation": 2e-6, "n_tokens": 6, "active_features": 1234, "nodes": 2000, "edges": 90000,
            "pruned_nodes": 150, "pruned_edges": 4000, "seconds": 12.34, "graph": f"graphs/{prompt_id}.safetensors",
            "warnings": [], "error": None, "attempts": 1} | changes


NOTHING = dict.fromkeys(("targets", "replacement", "completeness", "unexplored", "conservation", "n_tokens",
                         "active_features", "nodes", "edges", "pruned_nodes", "pruned_edges", "seconds", "graph",
                         "warnings"))
ROWS = [
    row("a", family="one", answer=" x", answer_probability=0.25, answer_rank=1, correct=True, replacement=0.4),
    row("b", family="two", answer=" y", answer_probability=0.01, answer_rank=1203, correct=False, replacement=0.9),
    row("c", prompt=None, tokens=[2, 99, 7], replacement=0.1,
        targets=[{"text": "Output a minus b", "token": None, "probability": None}]),
    row("d", prompt=NASTY, family=NASTY, **NOTHING, error={"type": "InputError", "message": NASTY}) | {"attempts": 3}]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = BatchFolder(tmp_path_factory.mktemp("gallery") / "batch")
    folder.thumbnail("a").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    folder.page("a").touch()
    write_gallery(folder, ROWS, BatchSettings(model=NASTY))
    return folder.root / "index.html"


def test_what_is_foreign_is_escaped_and_nothing_is_loaded(gallery: Path) -> None:
    text = gallery.read_text()
    assert "<img src=x" not in text
    assert text.count("<script>") == 1
    assert text.count("&lt;img src=x") >= 4
    policy = re.search(r'content="(default-src[^"]*)"', text)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe" not in policy[1]
    assert not re.search(r'(src|href)="(https?:)?//', text)


def test_a_gallery_of_one_kind_has_only_its_columns(tmp_path: Path) -> None:
    write_gallery(BatchFolder(tmp_path), [row("a")], BatchSettings())
    text = (tmp_path / "index.html").read_text()
    assert "answered right" not in text
    assert 'id="family"' not in text
    write_gallery(BatchFolder(tmp_path), [ROWS[3]], BatchSettings())
    assert "mean replacement" not in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(("value", "text"), [
    (None, "–"), (0, "0"), (12345, "12,345"), (0.0, "0.000"), (2e-6, "2e-06"), (0.56159, "0.562"), (1.0, "1.000"),
    (4.37, "4.4"), (18.24, "18.2"), (1234.5, "1,234")])
def test_numbers(value: float | None, text: str) -> None:
    assert _number(value) == text


def ids(tab) -> list[str]:
    return tab.evaluate("[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.id).join('')")


def test_sorting_and_filtering_in_a_browser(gallery: Path, browser) -> None:
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    trouble = []
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("console", lambda said: trouble.append(said.text) if said.type == "error" else None)
    tab.on("dialog", lambda dialog: trouble.append("dialog") or dialog.dismiss())
    tab.goto(gallery.as_uri())
    assert ids(tab) == "abcd"
    head = tab.locator("th", has_text="ment").locator("button")
    for order, shown in (("descending", "bacd"), ("ascending", "cabd")):
        head.click()
        assert ids(tab) == shown
        assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == order
    tab.locator("th", has_text="prompt").locator("button").click()
    assert ids(tab) == "dcab"
    assert tab.locator("th[aria-sort]").count() == 1
    for state, shown in (("right", {"a"}), ("wrong", {"b"}), ("failed", {"d"}), ("", set("abcd"))):
        tab.locator("#state").select_option(state)
        assert set(ids(tab)) == shown
    tab.locator("#family").select_option("=two")
    assert (ids(tab), tab.locator("#count").text_content()) == ("b", "1 of 4")
    tab.locator("#family").select_option("")
    tab.locator("#words").fill("PROMPT  graph a")
    assert set(ids(tab)) == set("ab")
    tab.locator("#words").fill("99 7")
    assert ids(tab) == "c"
    assert tab.locator("img").count() == 1
    assert trouble == []
    for width in (1400, 400):
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()


def test_pages_are_written_once_for_every_graph(tmp_path: Path) -> None:
    settings = replace(tiny_settings(tmp_path), max_logits=1)
    bad = {"id": "bad", "prompt": "x", "target": "no such token"}
    trace_batch([PROMPTS[0], bad], tmp_path / "batch", settings)
    assert not list((tmp_path / "batch" / "pages").iterdir())
    assert 'href="pages/' not in (tmp_path / "batch" / "index.html").read_text()
    trace_batch([PROMPTS[0], bad], tmp_path / "batch", settings, pages=True)
    (page,) = (tmp_path / "batch" / "pages").iterdir()
    assert page.name == "00001.html"
    text = (tmp_path / "batch" / "index.html").read_text()
    assert 'href="pages/00001.html"' in text
    assert 'href="graphs/00001.safetensors"' in text
    assert text.count("data:image/svg+xml;base64,") == 1
    stamp = page.stat().st_mtime_ns
    trace_batch([PROMPTS[0]], tmp_path / "batch", settings, pages=True)
    assert page.stat().st_mtime_ns == stamp
    (tmp_path / "batch" / "graphs" / "00001.safetensors").unlink()
    trace_batch([PROMPTS[0]], tmp_path / "batch", settings, pages=True)
    assert page.stat().st_mtime_ns > stamp
