"""Run notebooks top to bottom, each in a new kernel of this Python, and keep their outputs.

    python notebooks/run.py                                  all of them, on the small world; ``make notebooks``
    python notebooks/run.py 3_attention                      one of them
    python notebooks/run.py --model gemma-3-270m --check     outputs are not kept
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from circuits.graphs.store import replacing

HERE = Path(__file__).parent
MODEL = "small-world-s"
CELL_SECONDS, START_SECONDS = 1500, 300
NOISE = "ignore:IProgress not found,ignore:Sparse CSR tensor support"
"""Warnings of other packages that say nothing to a reader."""
LARGEST = 300_000
"""Bytes of a notebook: a code host does not show large ones."""
FOLDERS = re.compile(r"(?<![\w.<])(?:/(?:home|root|tmp|usr|opt|var|work|mnt|private|Users)/|[A-Z]:\\)")
"""How absolute paths begin."""


class ThisPython(KernelSpecManager):
    """One kernel, whatever others are installed: that of the Python which runs this."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(argv=get_kernel_dict()["argv"], display_name="Python 3", language="python")


def notebooks() -> list[Path]:
    """All of them, in order."""
    return sorted(HERE.glob("[0-9]_*.ipynb"))


def run(path: Path, model: str = MODEL) -> NotebookNode:
    """The notebook as it is after a run in a folder that has the helpers beside it and is then removed.

    Args:
        model: what the notebook opens.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for helper in ("drawing.py", "examples.py"):
            shutil.copy(HERE / helper, folder / helper)
        inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MPLBACKEND")}
        kernel = AsyncKernelManager(kernel_spec_manager=ThisPython(), transport="ipc",
                                    connection_file=str(folder / "kernel.json"))
        client = NotebookClient(notebook, km=kernel, timeout=CELL_SECONDS, startup_timeout=START_SECONDS,
                                record_timing=False, resources={"metadata": {"path": str(folder)}})
        client.execute(cleanup_kc=True, env=inherited | {"NOTEBOOK_MODEL": model, "IPYTHONDIR": str(folder / "ipython"),
                                                         "PYTHONWARNINGS": NOISE})
    return cleaned(notebook)


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """Without what says nothing but where and when it ran; parts of one stream joined."""
    notebook.metadata = NotebookNode(kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
                                     language_info={"name": "python"})
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        kept: list[NotebookNode] = []
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = NotebookNode()
            if kept and output.output_type == "stream" and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
            else:
                kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept
    return notebook


def complaints(notebook: NotebookNode) -> Iterator[str]:
    """Why a notebook should not be kept as it is."""
    text = nbformat.writes(notebook)
    if len(text.encode()) > LARGEST:
        yield f"it has {len(text.encode()):,} bytes, at most {LARGEST:,} should be kept: show fewer or smaller figures"
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"cell {number} shows an error or a warning: {output.get('evalue') or output.get('text')}"
            for shown in (output.get("text", ""), *(value for kind, value in output.get("data", {}).items()
                                                    if not kind.startswith("image/"))):
                if found := FOLDERS.search(shown):
                    yield f"cell {number} shows an absolute path: ...{shown[found.start():][:60]}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run notebooks and keep their outputs.")
    parser.add_argument("names", nargs="*", help="of notebooks, without .ipynb; all by default")
    parser.add_argument("--model", default=MODEL, help="what they open")
    parser.add_argument("--check", action="store_true", help="keep no outputs")
    options = parser.parse_args(arguments)
    chosen = [HERE / f"{Path(name).stem}.ipynb" for name in options.names] or notebooks()
    if missing := [path.name for path in chosen if not path.is_file()]:
        sys.exit(f"there is no notebook {missing[0]}: there are {', '.join(path.stem for path in notebooks())}")
    for path in chosen:
        print(path.name, flush=True)
        notebook = run(path, options.model)
        if found := list(complaints(notebook)):
            sys.exit("\n".join(f"{path.name}: {one}" for one in found))
        if not options.check:
            with replacing(path) as scratch:
                nbformat.write(notebook, scratch)


if __name__ == "__main__":
    main()
