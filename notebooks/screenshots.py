"""The pictures of the README: traces a prompt on Gemma 3 270M, opens its page in Chromium and photographs the views.

Run: ``make screenshots`` (needs chromium). The graph is traced anew, so the pictures show what the program does now.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

import circuits

PROMPT = "Fact: Michael Jordan plays the sport of"
HERE = Path(__file__).parent
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    """Write page-light.png, page-dark.png, subgraph.png and explanation.png beside this file."""
    executable = shutil.which("chromium")
    if executable is None:
        sys.exit("chromium is not installed: install it (apt install chromium) and run this again")
    graph = circuits.trace(circuits.load_model("gemma-3-270m"), circuits.open_transcoders("bundled"), PROMPT)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "jordan.html"
        graph.to_html(path, thresholds=(0.8, 0.98))
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready]", state="attached")
            select_strongest(page)
            shoot(page, f"page-{scheme}.png")
            if scheme == "light":
                subgraph(page)
                explanation(page)
        browser.close()


def select_strongest(page: Page) -> None:
    """The most influential feature of the list."""
    page.locator("#panel button[data-node]:has(.icon.feature)").first.click()


def subgraph(page: Page) -> None:
    """The two strongest suggested supernodes, and the strongest paths through features, as a subgraph."""
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Supernodes").click()
    for _ in range(2):
        page.locator("#groups").get_by_role("button", name="Accept").first.click()
    page.get_by_role("tab", name="Explanation").click()
    for path in through_features(page)[:5]:
        pin = path.get_by_role("button", name="Pin path")
        if pin.get_attribute("aria-pressed") == "false":
            pin.click()
    page.get_by_role("tab", name="Supernodes").click()
    page.get_by_role("tab", name="Subgraph").click()
    shoot(page, "subgraph.png")


def explanation(page: Page) -> None:
    """The strongest path through features, lit in the link view."""
    page.get_by_role("tab", name="Graph", exact=True).click()
    page.get_by_role("tab", name="Explanation").click()
    path = through_features(page)[0]
    path.get_by_role("button", name="Light path").click()
    path.scroll_into_view_if_needed()
    shoot(page, "explanation.png")


def through_features(page: Page) -> list[Locator]:
    """Paths of the explanation that hold a feature, strongest first."""
    return page.locator("#explanation ol.paths > li", has=page.locator(".icon.feature")).all()


def shoot(page: Page, name: str) -> None:
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)
    page.screenshot(path=HERE / name)
    print(f"wrote {HERE / name}")


if __name__ == "__main__":
    main()
