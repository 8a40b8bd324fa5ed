"""The subgraph saved as SVG and PNG."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from page_boxes import fragment, strongest
from page_samples import HOSTILE
from playwright.sync_api import Page

NAME = "<b>\U0001f468\u200d\U0001f469\u200d\U0001f467</b>"
SVG = "{http://www.w3.org/2000/svg}"


def saved(page: Page, name: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=name).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_pictures_hold_the_labels_and_need_nothing_else(graph, open_page, tmp_path):
    pins = strongest(graph)
    labels = graph.nodes.label.copy()
    hostile = [*HOSTILE[:6], "\ufffe\uffff end", HOSTILE[10], HOSTILE[14], "&amp; ]]> <![CDATA["]
    for node, text in zip(pins, hostile, strict=False):
        labels[node] = text
    changed = replace(graph, nodes=replace(graph.nodes, label=labels),
                      header=replace(graph.header, prompt="A <b> & \u202eprompt\0 of \U0001f600 " + "long " * 90))
    page = open_page(changed, fragment(changed, pins, [(NAME, pins[12:14])]))
    page.locator(".box .frame").first.hover()
    path = saved(page, "Save as SVG", tmp_path)
    assert re.fullmatch(r"a-b-prompt-of-long.*-subgraph\.svg", path.name)
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    shown = page.eval_on_selector_all("svg.canvas text", "texts => texts.map(text => text.textContent)")
    written = [element.text for element in root.iter(f"{SVG}text")]
    assert next(line for line in written if line not in shown).startswith("A <b> & ")
    assert [line.replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd") for line in shown] == written[-len(shown):]
    assert any("onerror" in line for line in written)
    assert root.find(f"{SVG}title").text.startswith("A <b> & ⟨U+202E⟩prompt⟨NUL⟩ of")
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {"svg", "g", "title", "rect", "text", "path"}
    assert not re.search(r"var\(|url\(|href|class=|<style|\bstyle=|\"0\.15|http(?!://www\.w3\.org/2000/svg)", text)
    assert "sans-serif" in root.get("font-family")
    colours = {element.get("fill") for element in root.iter() if element.get("fill")}
    assert all(re.match(r"rgba?\(|none$", colour) for colour in colours)
    png = saved(page, "Save as PNG", tmp_path).read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    size = (int.from_bytes(png[16:20]), int.from_bytes(png[20:24]))
    assert size == pytest.approx((2 * float(root.get("width")), 2 * float(root.get("height"))), abs=1)
    assert page.locator(".box.supernode").count() == 1
    assert page.evaluate("window.__pwned") is None


def test_a_png_is_drawn(graph, open_page, tmp_path):
    page = open_page(graph, fragment(graph, strongest(graph, 3)))
    data = saved(page, "Save as PNG", tmp_path).read_bytes()
    colours = page.evaluate("""async bytes => {
      const bitmap = await createImageBitmap(new Blob([new Uint8Array(bytes)]));
      const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
      return new Set(new Uint32Array(data.buffer)).size; }""", list(data))
    assert colours > 50
