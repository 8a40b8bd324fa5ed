"""The notebooks on Gemma 3 270M; ``make check-real`` runs these."""

from pathlib import Path

import pytest
from test_notebooks import every, run, texts

pytestmark = pytest.mark.real


@every
def test_runs(path: Path) -> None:
    found = run.run(path, "gemma-3-270m")
    print(texts(found))
    assert not [output for cell in found.cells for output in cell.get("outputs", ()) if output.output_type == "error"]
