"""The notebooks run from top to bottom on the small world, and what is kept of them is in order."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

FOLDER = Path(__file__).parents[1] / "notebooks"


def opened(name: str) -> ModuleType:
    """A program of the notebooks' folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"notebooks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run, drawing, examples = opened("run"), opened("drawing"), opened("examples")
NOTEBOOKS: list[Path] = run.notebooks()
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@cache
def executed(path: Path) -> NotebookNode:
    return run.run(path)


def shown(notebook: NotebookNode) -> list[list[tuple[str, ...]]]:
    """What kinds of output every cell has."""
    return [[(output.output_type, output.get("name", ""), *sorted(output.get("data", {})))
             for output in cell.get("outputs", ())] for cell in notebook.cells]


def texts(notebook: NotebookNode) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))


def test_there_are_six() -> None:
    assert [path.stem[0] for path in NOTEBOOKS] == list("123456")
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in listed for path in NOTEBOOKS)


@every
@pytest.mark.timeout(1200)
def test_runs_and_shows_what_is_kept(path: Path) -> None:
    found = executed(path)
    assert shown(found) == shown(nbformat.read(path, as_version=4))
    assert not [output for cell in found.cells for output in cell.get("outputs", ()) if output.output_type == "error"]


@every
def test_kept_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert list(run.complaints(notebook)) == []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell.outputs) for cell in code) >= 5
    assert not any(cell.metadata for cell in notebook.cells)
    assert 'os.environ.get("NOTEBOOK_MODEL"' in code[0].source
    kinds = {kind for cell in shown(notebook) for _, _, *kinds in cell for kind in kinds}
    assert kinds <= {"text/plain", "text/html", "image/png"}


@pytest.mark.timeout(1200)
def test_two_sizes_share_circuits() -> None:
    """Matched influence of small-world-s and -m is above both nulls where both answer right."""
    told = texts(executed(FOLDER / "4_compare_sizes.ipynb"))
    assert "40 graphs traced, comparisons: 20" in told
    assert "is significantly above that of shuffled features" in told
    assert "is significantly above that of unrelated prompts" in told


def test_reasoning_that_is_known_to_matter() -> None:
    told = texts(executed(FOLDER / "6_reasoning_share.ipynb"))
    known, asked = told.split("a fact that it knows:\n")[1].split("names that it cannot know:\n")
    assert "So the answer follows 'question' more than 'reasoning'." in known
    assert "So the answer follows 'reasoning' more than 'question'." in asked


def test_complaints() -> None:
    def of(*outputs: NotebookNode) -> list[str]:
        return list(run.complaints(new_notebook(cells=[new_markdown_cell("/tmp/x"), new_code_cell(
            "", outputs=list(outputs))])))

    def page(html: str) -> NotebookNode:
        return new_output("display_data", data={"text/html": html, "image/png": "/tmp/x/"})

    assert of(page("<td>a/b</td></table> https://example.org/home/x"), new_output("stream", text="1/2")) == []
    assert ["absolute path" in one for one in of(page("<td>/home/x/y</td>"))] == [True]
    assert ["absolute path" in one for one in of(new_output("stream", text="in '/tmp/x/y.json'"))] == [True]
    assert ["warning: late" in one for one in of(new_output("stream", name="stderr", text="late"))] == [True]
    assert ["warning: no" in one for one in of(new_output("error", ename="E", evalue="no", traceback=[]))] == [True]
    assert ["bytes" in one for one in of(page("x" * run.LARGEST))] == [True]


def test_cleaned() -> None:
    cell = new_code_cell("1", metadata={"execution": {"iopub.execute_input": "2025-01-01"}}, outputs=[
        new_output("stream", text="a"), new_output("stream", text="b"),
        new_output("display_data", data={}, metadata={"needs_background": "light"})])
    found = run.cleaned(new_notebook(cells=[cell], metadata={"a": "b"})).cells[0]
    assert (found.metadata, found.outputs[0].text, found.outputs[1].metadata) == ({}, "ab", {})


def test_kernel_is_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither the repository nor what surrounds this process is on its path; helpers are."""
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    nbformat.write(new_notebook(cells=[new_code_cell(
        "import os, sys, drawing, examples\nprint(sys.executable, os.environ['NOTEBOOK_MODEL'], *sys.path, sep='\\n')"
    )]), tmp_path / "1_x.ipynb")
    executable, model, *paths = texts(run.run(tmp_path / "1_x.ipynb", "a model")).split("\n")
    assert (executable, model) == (sys.executable, "a model")
    assert str(FOLDER.parent) not in paths
    assert list(tmp_path.iterdir()) == [tmp_path / "1_x.ipynb"]


def test_unknown_notebook() -> None:
    with pytest.raises(SystemExit, match=r"there is no notebook x.ipynb: there are 1_trace"):
        run.main(["x"])


def test_tables_escape_foreign_text() -> None:
    table = drawing.Table(["<b>", "n"], [("<script>\n", 0.00012345), ("y" * 200, 12345), ("", np.bool_(True))])
    assert "<script>" not in table._repr_html_()
    assert "<td>&lt;script&gt;↵</td><td>0.000123</td>" in table._repr_html_()
    assert table.rows[1] == ["y" * (drawing.LONGEST - 1) + "…", "12,345"]
    assert repr(table).splitlines()[-1].split() == ["yes"]


def test_parts_are_stacked_by_sign() -> None:
    figure, axes = plt.subplots()
    drawing.draw_parts(axes, {"a": np.array([1.0, -1.0]), "b": np.array([2.0, 0.0]), "c": np.array([-3.0, -2.0])})
    boxes = [(round(bar.get_x() + 0.4), bar.get_y(), bar.get_height()) for bar in axes.patches]
    assert boxes == [(0, 0, 1), (1, 0, -1), (0, 1, 2), (0, 0, -3), (1, -1, -2)]
    plt.close(figure)


def test_text_that_a_font_lacks_or_that_looks_like_mathematics() -> None:
    assert drawing.legible("a\n\N{CJK UNIFIED IDEOGRAPH-4E00}$") == "a↵□$"
    figure, axes = plt.subplots()
    drawing.name_tokens(axes, ["$\\bad{$"])
    figure.canvas.draw()  # mathematics that cannot be read would raise
    plt.close(figure)


def test_pairs_of_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(examples, "ask", lambda model, some: (asked.append(model.name) or [True], [1.0]))
    one, two = SimpleNamespace(name="small-world-s"), SimpleNamespace(name="small-world-m")
    pairs = examples.prompt_pairs(one, two)
    assert len(pairs) == len({pair.first for pair in pairs}) == 20
    assert {"small-world-s", "small-world-m"} == set(asked)
    task = {pair.first: pair.task for pair in pairs}
    words = {pair.first: len(pair.first.replace(".", " .").split()) for pair in pairs}
    for pair in pairs:
        assert pair.second == pair.first
        assert len(set(pair.unrelated)) == 2
        assert {task[other] for other in pair.unrelated} & {pair.task} == set()
        assert {words[other] for other in pair.unrelated} == {words[pair.first]}
    wrong = {pairs[0].first, pairs[9].first}
    monkeypatch.setattr(examples, "ask", lambda model, some: ([some[0].prompt not in wrong], [0.0]))
    assert not wrong & {pair.first for pair in examples.prompt_pairs(one, two)}
