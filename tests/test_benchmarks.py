"""Matrices of two programs compared: no figure may be shown for ones that differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

N_LAYERS, N_POS, FACTOR = 3, 4, 5.0


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


def small_parts(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"features": np.stack([np.arange(n) % N_LAYERS, np.ones(n), np.arange(n)], 1).astype(np.int64),
            "values": rng.random(n, np.float32) + 1, "logits": np.array([7, 3]),
            "probabilities": np.array([0.6, 0.3], np.float32), "tokens": np.array([2, 9, 9, 4])}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same graph from both sides, through the files; theirs with tokens of another scale. Rows come in blocks that
    end in the middle of the features, at their end, and among the logits."""
    import edge_matrix

    monkeypatch.setattr(edge_matrix, "ROWS_AT_ONCE", 3)
    n = 5
    shape = (n + 2, n + N_LAYERS * (N_POS - 1) + N_POS)
    edges = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    theirs = edges.copy()
    theirs[:, -N_POS:] /= FACTOR
    for name, matrix in (("ours", edges), ("theirs", theirs)):
        edge_matrix.write(tmp_path / name, small_parts(n), shape, [matrix[:4], matrix[4:]])
    return edge_matrix.EdgeMatrix.load(tmp_path / "ours"), edge_matrix.EdgeMatrix.load(tmp_path / "theirs")


def test_equal_matrices_pass(pair) -> None:
    import edge_matrix

    found = edge_matrix.compare(*pair, FACTOR)
    assert set(found) == {"values", "probabilities", "features", "errors", "tokens", "logit_rows"}
    assert max(found.values()) < 1e-6


def test_differences_are_relative_frobenius_norms(pair) -> None:
    import edge_matrix

    ours, theirs = pair
    expected = theirs.edges.astype(np.float64)
    expected[:, -N_POS:] *= FACTOR
    off = 0.01 * np.random.default_rng(2).standard_normal(expected.shape)
    found = edge_matrix.compare(replace(ours, edges=(expected + off)), theirs, FACTOR, limit=1.0)
    parts = {"features": np.s_[:, :5], "errors": np.s_[:, 5:-N_POS], "tokens": np.s_[:, -N_POS:],
             "logit_rows": np.s_[5:]}
    for name, part in parts.items():
        assert found[name] == pytest.approx(np.linalg.norm(off[part]) / np.linalg.norm(expected[part]))


@pytest.mark.parametrize(("row", "column", "named"), [
    (0, 0, "features"), (4, 5, "errors"), (6, 0, "logit_rows"), (3, -1, "tokens"), (6, -N_POS, "tokens")])
@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_wrong_edge_is_refused(pair, row: int, column: int, named: str, wrong: float) -> None:
    import edge_matrix

    ours, theirs = pair
    edges = np.array(ours.edges)
    edges[row, column] += wrong
    with pytest.raises(edge_matrix.MatricesDiffer, match=named):
        edge_matrix.compare(replace(ours, edges=edges), theirs, FACTOR)


def test_tokens_at_another_scale_are_refused(pair) -> None:
    import edge_matrix

    with pytest.raises(edge_matrix.MatricesDiffer, match="tokens"):
        edge_matrix.compare(*pair, 1.0)


@pytest.mark.parametrize("name", ["features", "tokens", "logits", "values", "probabilities"])
def test_other_nodes_are_refused(pair, name: str) -> None:
    import edge_matrix

    ours, theirs = pair
    changed = np.array(getattr(ours, name))
    changed.flat[0] += 1
    with pytest.raises(edge_matrix.MatricesDiffer, match=name):
        edge_matrix.compare(replace(ours, **{name: changed}), theirs, FACTOR)


def test_an_edge_row_or_feature_more_is_refused(pair) -> None:
    import edge_matrix

    ours, theirs = pair
    with pytest.raises(edge_matrix.MatricesDiffer, match="edges have shapes"):
        edge_matrix.compare(replace(ours, edges=ours.edges[1:]), theirs, FACTOR)
    with pytest.raises(edge_matrix.MatricesDiffer, match=r"4 of ours, 5 of circuit-tracer's, 1 on one side only"):
        edge_matrix.compare(replace(ours, features=ours.features[:-1]), theirs, FACTOR)


def test_incomplete_rows_are_not_written(tmp_path: Path) -> None:
    import edge_matrix

    with pytest.raises(ValueError, match="2 rows came, expected 3"):
        edge_matrix.write(tmp_path, small_parts(1), (3, 4), [np.zeros((2, 4))])
