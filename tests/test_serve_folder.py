"""The served folder: only its graphs can be named, nothing is overwritten, and a change needs the version it is of."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from random_graphs import assert_same, random_graph

from circuits.errors import FormatError, InputError
from circuits.graphs import AttributionGraph, load
from circuits.serve import folder as folder_module
from circuits.serve.folder import NAME, GraphFolder, slug
from circuits.serve.refusal import Refusal


@pytest.fixture
def folder(tmp_path: Path) -> GraphFolder:
    (tmp_path / "secret.safetensors").write_bytes(b"not to be read")
    made = GraphFolder(tmp_path / "graphs")
    random_graph(1).save(made.root / "a.safetensors")
    return made


def titled(graph: AttributionGraph, prompt: str) -> AttributionGraph:
    return replace(graph, header=replace(graph.header, prompt=prompt))


@pytest.mark.parametrize("name", [
    "../secret.safetensors", "..", ".", "", "/etc/passwd", "..\\secret.safetensors", "a.safetensors\0.json",
    "a\0.safetensors", "sub/../a.safetensors", "%2e%2e/secret.safetensors", ".a.safetensors", "a.safetensors/",
    "a.txt", "a.safetensors\n", "-a.safetensors", "_a.json", "a\u202e.json", "x" * 300 + ".json", "é" * 150 + ".json",
    "absent.safetensors", "C:a.json", "~.json", "a;b.json", "\ud800.json"])
def test_only_graphs_of_the_folder_can_be_named(folder: GraphFolder, name: str) -> None:
    for act in (folder.path, folder.version, folder.load, folder.remove, lambda n: folder.change(n, "*", lambda g: g)):
        with pytest.raises(Refusal) as refused:
            act(name)
        assert refused.value.status == 404
        assert str(folder.root) not in str(refused.value)
    assert (folder.root.parent / "secret.safetensors").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "Größe 2 (neu).json", "日本語.safetensors", "a.b,c+d=e@f-1.json"])
def test_ordinary_names(name: str) -> None:
    assert NAME.fullmatch(name)


def test_links_that_leave_the_folder_are_refused(folder: GraphFolder) -> None:
    outside = folder.root.parent / "secret.safetensors"
    (folder.root / "out.safetensors").symlink_to(outside)
    (folder.root / "broken.safetensors").symlink_to("nowhere.safetensors")
    (folder.root / "round.safetensors").symlink_to("round.safetensors")
    (folder.root / "in.safetensors").symlink_to("a.safetensors")
    (folder.root / "folder.safetensors").mkdir()
    os.mkfifo(folder.root / "pipe.safetensors")
    for name in ("out", "broken", "round", "folder", "pipe"):
        with pytest.raises(Refusal, match=r"leaves the folder|no graph|not a plain file"):
            folder.path(f"{name}.safetensors")
    assert folder.path("in.safetensors") == folder.root / "a.safetensors"
    folder.remove("in.safetensors")
    assert (folder.root / "a.safetensors").exists()


def test_load_gives_the_graph_and_its_version(folder: GraphFolder) -> None:
    graph, version = folder.load("a.safetensors")
    assert_same(graph, random_graph(1))
    assert version == folder.version("a.safetensors")
    random_graph(1).save(folder.root / "a.safetensors")  # same bytes, another version
    assert folder.version("a.safetensors") != version


def test_errors_do_not_say_where_the_folder_is(folder: GraphFolder) -> None:
    (folder.root / "b.safetensors").write_bytes(b"\x93" * 100)
    (folder.root / "b.json").write_text("{]")
    for name in ("b.safetensors", "b.json"):
        with pytest.raises(FormatError, match=rf"^{name} is not") as error:
            folder.load(name)
        assert str(folder.root) not in str(error.value)


def test_large_files_are_not_read(folder: GraphFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MAX_OPEN", 1000)
    with pytest.raises(Refusal, match="at most 0 MiB: prune it") as refused:
        folder.load("a.safetensors")
    assert refused.value.status == 413


def test_change_needs_the_version_that_was_read(folder: GraphFolder) -> None:
    _, first = folder.load("a.safetensors")
    second = folder.change("a.safetensors", first, lambda graph: titled(graph, "one"))
    assert second != first
    with pytest.raises(Refusal, match="changed by someone else") as refused:
        folder.change("a.safetensors", first, lambda graph: titled(graph, "two"))
    assert refused.value.status == 412
    with pytest.raises(Refusal, match="changed by someone else"):
        folder.remove("a.safetensors", first)
    assert load(folder.root / "a.safetensors").header.prompt == "one"
    folder.change("a.safetensors", f'"other", {second}', lambda graph: titled(graph, "three"))
    folder.change("a.safetensors", "*", lambda graph: titled(graph, graph.header.prompt + " four"))
    assert load(folder.root / "a.safetensors").header.prompt == "three four"
    folder.remove("a.safetensors", "*")
    assert folder.names() == []


def test_changes_at_once_all_count(folder: GraphFolder) -> None:
    """Each adds a letter to what it finds: none may be lost."""
    threads = [threading.Thread(target=folder.change, args=("a.safetensors", "*", lambda graph: titled(
        graph, graph.header.prompt + "x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load(folder.root / "a.safetensors").header.prompt == random_graph(1).header.prompt + "x" * 8


def test_a_change_that_fails_leaves_the_file(folder: GraphFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder.root / "a.safetensors").read_bytes()

    def half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("circuits.graphs.store.save_file", half)
    with pytest.raises(InputError, match="No space left") as error:
        folder.change("a.safetensors", "*", lambda graph: titled(graph, "x"))
    assert str(folder.root) not in str(error.value)
    with pytest.raises(InputError, match="No space left"):
        folder.add(random_graph(2), "new")
    assert (folder.root / "a.safetensors").read_bytes() == before
    assert [path.name for path in folder.root.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("links", [True, False])
def test_add_never_overwrites(folder: GraphFolder, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        def refuse(*paths: Path) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("os.link", refuse)
    (folder.root / "the-capital-of.safetensors").write_bytes(b"mine")
    found: list[str] = []
    threads = [threading.Thread(target=lambda seed=seed: found.append(folder.add(random_graph(seed), "The capital of")))
               for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"the-capital-of-{number}.safetensors" for number in range(2, 8)]
    assert (folder.root / "the-capital-of.safetensors").read_bytes() == b"mine"
    kept = {load(folder.root / name).weights.tobytes() for name in found}
    assert kept == {random_graph(seed).weights.tobytes() for seed in range(6)}
    assert len(list(folder.root.iterdir())) == 8


def test_names_are_the_newest_first_and_hide_half_written_files(folder: GraphFolder) -> None:
    for age, name in enumerate(["c.json", "b.safetensors", "d.txt", ".x.safetensors.part", ".y.json"]):
        (folder.root / name).write_bytes(b"x")
        os.utime(folder.root / name, (age, age))
    assert folder.names() == ["a.safetensors", "b.safetensors", "c.json"]


@pytest.mark.parametrize(("title", "expected"), [
    ("The capital of France is", "the-capital-of-france-is"), ("", "graph"), ("../../etc/passwd", "etc-passwd"),
    ("\0\u202e<b>", "b"), ("日本 の 首都", "日本-の-首都"), ("a" * 99, "a" * 40),
    ("word " * 30, "-".join(["word"] * 8)),
    ("İstanbul ﬁn", "i-stanbul-fin"), ("\U0001f469\u200d\U0001f467", "graph"), ("\ud800", "graph")])
def test_slug(title: str, expected: str) -> None:
    assert slug(title) == expected
    assert NAME.fullmatch(f"{slug(title)}.safetensors")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(InputError, match="as the folder of graphs"):
            GraphFolder(path)
