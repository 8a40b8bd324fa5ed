"""The gallery, the form and the comparison in a real browser: every request stays at the server, nothing goes wrong."""

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from page_samples import HOSTILE, sample_graph
from page_tabs import Watched, resize
from playwright.sync_api import Browser, Page, expect
from served_folder import Client, served, tiny_source

from circuits.graphs import AttributionGraph, export, load
from circuits.serve.folder import GraphFolder
from circuits.serve.jobs import Jobs, Report, Result
from circuits.serve.schemas import TraceRequest
from circuits.serve.site import Site
from circuits.serve.tracer import Source, Tracer


class Gated:
    """The real trace, each of its rows waiting for a permit."""

    def __init__(self, tracer: Tracer):
        self.tracer, self.permits = tracer, threading.Semaphore(0)

    def __call__(self, request: TraceRequest, report: Report) -> Result:
        def slow(stage: str, done: int, total: int) -> None:
            report(stage, done, total)
            if stage == "rows":
                self.permits.acquire()

        return self.tracer(request, slow)


def named(prompt: str, seed: int = 0) -> AttributionGraph:
    graph = sample_graph(60, seed)
    return replace(graph, header=replace(graph.header, prompt=prompt, scores={"replacement": 0.1 * seed}))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return tiny_source(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def site(source: Source, tmp_path: Path) -> Site:
    folder = GraphFolder(tmp_path / "graphs")
    for seed, prompt in enumerate(["The capital of Austria is", "Fact: Michael Jordan plays the sport of"], 1):
        folder.add(named(prompt, seed), prompt)
    site = Site(folder, source)
    assert site.tracer is not None
    site.jobs = Jobs(Gated(site.tracer))
    return site


def permit(site: Site, count: int = 10_000) -> None:
    assert site.jobs is not None
    site.jobs._work.permits.release(count)  # type: ignore[attr-defined]


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    with served(site) as client:
        yield client
        permit(site)


@pytest.fixture
def page(client: Client, browser: Browser) -> Iterator[Page]:
    """The gallery; at the end nothing was said on the console, and no request went elsewhere."""
    tab = Watched(browser)
    page = tab.open(f"{client.origin}/")
    yield page
    pwned = page.evaluate("window.__pwned")
    page.close()
    assert pwned is None
    assert tab.problems == []
    own = (f"{client.origin}/", "about:", "blob:", "data:")
    assert [url for url in tab.requests if not url.startswith(own)] == []


def titles(page: Page) -> list[str]:
    return page.locator(".card h3").all_text_contents()


def traces(page: Page) -> list[tuple[str, str]]:
    return page.eval_on_selector_all(".traces li", "items => items.map(item => [item.dataset.state, "
                                     "item.querySelector('.name').textContent])")


def pictures_are_there(page: Page) -> None:
    page.wait_for_function(
        "() => [...document.querySelectorAll('.card img')].every(image => image.complete && image.naturalWidth > 0)")


def test_gallery_search_and_sort(page: Page, site: Site) -> None:
    expect(page.locator(".card")).to_have_count(2)
    pictures_are_there(page)
    assert page.locator(".card img").count() == 2
    card = page.locator(".card", has_text="Austria")
    graph = load(site.folder.root / "the-capital-of-austria-is.safetensors")
    facts = dict(zip(card.locator("dt").all_text_contents(), card.locator("dd").all_text_contents(), strict=True))
    assert facts["Nodes"] == f"{len(graph):,}"
    assert facts["Edges"] == f"{graph.n_edges:,}"
    assert (facts["Replacement"], facts["Unexplored"]) == ("0.10", "4.8%")
    assert facts["File"].startswith("the-capital-of-austria-is.safetensors, ")
    page.get_by_label("Sort").select_option("prompt")
    assert [title.split()[0] for title in titles(page)] == ["Fact:", "The"]
    page.get_by_label("Sort").select_option("replacement")
    assert [title.split()[0] for title in titles(page)] == ["Fact:", "The"]
    page.get_by_label("Search").fill("capital AUSTRIA")
    assert titles(page) == ["The capital of Austria is"]
    expect(page.locator("#count")).to_have_text("1 of 2")
    page.get_by_label("Search").fill("no such words")
    expect(page.locator("#graphs")).to_have_text("No graph has these words.")


def test_trace_with_progress_and_cancel(page: Page, site: Site) -> None:
    page.get_by_role("textbox", name="Prompt").fill("paris paris x mo")
    page.keyboard.press("Control+Enter")
    first = page.locator(".traces li").first
    expect(first.locator(".state")).to_have_text(re.compile(r"^rows \d+ of at most \d+$"), timeout=30_000)
    before = first.locator("progress").evaluate("bar => bar.position")
    permit(site, 3)
    page.wait_for_function("before => document.querySelector('progress').position > before", arg=before)
    page.get_by_text("Options").click()
    page.get_by_label("Name of the file").fill("second")
    for prompt in ("x mo", "paris mo"):
        page.get_by_role("textbox", name="Prompt").fill(prompt)
        page.get_by_role("button", name="Trace").click()
        expect(page.locator(".traces li").first.locator(".name")).to_have_text(prompt)
    assert traces(page) == [["waiting", "paris mo"], ["waiting", "x mo"], ["running", "paris paris x mo"]]
    expect(page.locator(".traces .state").first).to_have_text("waits, 2 before it")
    page.locator(".traces li").nth(1).get_by_role("button", name="Cancel").press("Enter")
    expect(page.locator(".traces .state").first).to_have_text("waits, 1 before it")
    assert traces(page)[1] == ["cancelled", "x mo"]
    page.locator(".traces li").nth(2).get_by_role("button", name="Cancel").click()
    permit(site, 1)
    expect(page.locator(".traces li").nth(2)).to_have_attribute("data-state", "cancelled")
    assert page.locator(".card").count() == 2
    page.locator(".card", has_text="Austria").get_by_role("link", name="Download").focus()
    permit(site)
    expect(page.locator(".traces li").first).to_have_attribute("data-state", "done", timeout=30_000)
    expect(page.locator(".card")).to_have_count(3)
    assert page.evaluate("document.activeElement.download") == "the-capital-of-austria-is.safetensors"
    assert titles(page)[0] == "paris mo"
    assert {path.name for path in site.folder.root.iterdir()} == {
        "second.safetensors", "the-capital-of-austria-is.safetensors",
        "fact-michael-jordan-plays-the-sport-of.safetensors"}
    page.get_by_role("link", name="Open the graph").click()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.url.endswith("/graphs/second.safetensors")
    assert "paris" in page.locator("#prompt").inner_text()


def test_what_cannot_be_traced_is_said(page: Page) -> None:
    page.get_by_role("textbox", name="Prompt").fill("paris")
    page.get_by_text("Options").click()
    page.get_by_label("Target", exact=True).fill("paris mo")
    page.get_by_role("button", name="Trace").click()
    state = page.locator(".traces li .state").first
    expect(state).to_have_text(re.compile("target 'paris mo' is 2 tokens"), timeout=30_000)
    page.get_by_label("Most features").fill("0")
    page.get_by_role("button", name="Trace").click()  # the form's own check keeps it from being sent
    assert len(traces(page)) == 1


def test_compare(page: Page, site: Site) -> None:
    expect(page.locator(".card")).to_have_count(2)
    button = page.locator("#compare")
    expect(button).to_be_disabled()
    for name in ("Austria", "Jordan"):
        page.locator(".card", has_text=name).get_by_label("Compare").check()
    expect(button).to_be_enabled()
    button.click()
    page.wait_for_url("**/compare?*")

    def shown() -> list[str]:
        found = []
        for frame in ("Left", "Right"):
            inner = page.frame_locator(f"iframe[title^={frame}]")
            inner.locator("html[data-ready]").wait_for(state="attached")
            found.append(inner.locator("#prompt").get_attribute("aria-label") and page.locator(
                f"iframe[title^={frame}]").get_attribute("src"))
        return [str(address).rpartition("/")[2].split("-")[0] for address in found]

    assert shown() == ["the", "fact"]
    page.get_by_role("button", name="Swap").click()
    page.wait_for_url("**/compare?left=fact*")
    assert shown() == ["fact", "the"]
    page.get_by_label("Right").first.select_option("fact-michael-jordan-plays-the-sport-of.safetensors")
    page.wait_for_url("**right=fact*")
    assert shown() == ["fact", "fact"]


def test_import_and_delete(page: Page, site: Site, tmp_path: Path) -> None:
    export.write(named("An imported one"), tmp_path / "theirs.json")
    (tmp_path / "more.json").write_text("{}")
    expect(page.locator(".card")).to_have_count(2)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import JSON").click()
    chooser.value.set_files(tmp_path / "theirs.json")
    expect(page.locator(".card")).to_have_count(3)
    assert titles(page)[0] == "An imported one"
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.locator(".card").first.get_by_role("button", name="Delete").click()
    assert page.locator(".card").count() == 3
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator(".card").first.get_by_role("button", name="Delete").click()
    expect(page.locator(".card")).to_have_count(2)
    assert not (site.folder.root / "theirs.safetensors").exists()
    with page.expect_download() as download:
        page.locator(".card", has_text="Austria").get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "the-capital-of-austria-is.safetensors"


def test_hostile_strings_do_no_harm(page: Page, site: Site, client: Client) -> None:
    for i, text in enumerate(HOSTILE):
        graph = named(text)
        graph.nodes.label[:] = text
        header = replace(graph.header, model=text, transcoders=text, created=text)
        replace(graph, header=header).save(site.folder.root / f"hostile {i}.safetensors")
    (site.folder.root / "<img src=x onerror=window.__pwned=1>.json").write_text("{}")
    (site.folder.root / "bad.json").write_text("<script>window.__pwned=1</script>")
    page.reload()
    expect(page.locator(".card")).to_have_count(4 + len(HOSTILE))
    for card in page.locator(".card").all():
        card.scroll_into_view_if_needed()  # pictures are loaded when they come near
    pictures_are_there(page)
    assert page.locator(".card script, .card img[src=x]").count() == 0
    assert "⟨NUL⟩" in "".join(titles(page))
    assert "⟨U+202E⟩right to left" in "".join(titles(page))
    assert page.locator(".card.damaged").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for address in ("/compare?left=hostile 0.safetensors&right=hostile 1.safetensors", "/api"):
        page.goto(client.origin + address)
        assert page.locator("main script, main img").count() == 0


def test_without_a_model_nothing_offers_to_trace(browser: Browser, site: Site) -> None:
    tab = Watched(browser)
    with served(Site(site.folder)) as client:
        page = tab.open(f"{client.origin}/")
        expect(page.locator(".card")).to_have_count(2)
        assert page.locator("form, textarea").count() == 0
        page.get_by_role("link", name="Open").first.click()
        page.wait_for_selector("html[data-ready]", state="attached")
        assert page.get_by_role("link", name="Gallery").count() == 1
        assert page.get_by_role("button", name="Trace").count() == 0
        page.close()
    assert tab.problems == []


def test_nothing_is_cut_off(page: Page, site: Site, client: Client) -> None:
    """At every width: no part lies outside of the window, no text outside of its button or beside its card."""
    site.folder.add(named("w" * 300), "long")
    for address, there in (("/", ".card >> nth=2"), ("/compare?left=long.safetensors", "iframe"), ("/api", "main")):
        page.goto(client.origin + address)
        page.wait_for_selector(there)
        page.wait_for_load_state("networkidle")
        for width in (1280, 800, 400):
            resize(page, width)
            outside = page.evaluate("""() => [...document.querySelectorAll("body *")].filter((element) => {
              const box = element.getBoundingClientRect();
              return box.width > 1 && box.height > 1 && !element.closest(".skip") && (box.right > innerWidth + 1
                || (element.matches("button, .button") && element.scrollWidth > element.clientWidth + 1));
            }).map((element) => element.outerHTML.slice(0, 90))""")
            assert outside == [], (address, width)


def test_keyboard_alone(page: Page) -> None:
    expect(page.locator(".card")).to_have_count(2)
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        reached.append(page.evaluate("(() => { const at = document.activeElement; return at.id || at.name || "
                                     "at.textContent.trim() })()"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    wanted = ["Skip to the content", "gemma-circuits", "Gallery", "Compare", "API", "prompt", "Options", "Trace",
              "search", "sort", "import"]
    assert [name for name in reached if name in wanted] == wanted
    assert {"Open", "Download", "Delete"} <= set(reached)


def contrast(one: str, two: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio of two colours such as #1b1f24."""
    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted([luminance(one), luminance(two)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(scheme: int) -> None:
    style = files("circuits.serve").joinpath("page", "serve.css").read_text()
    block = re.findall(r":root \{([^}]*)\}", style)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", block))
    for text in ("ink", "soft", "accent", "alarm", "done"):
        for ground in ("page", "band"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    assert contrast(colours["alarm"], colours["alarm-band"]) >= 4.5
    assert contrast(colours["focus"], colours["page"]) >= 3
