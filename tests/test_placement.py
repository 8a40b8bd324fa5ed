"""Weights on one device, in memory and on disk: the same graph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_attribution import TOKENS, write
from tiny_models import text_folder

import circuits
from circuits.errors import InputError
from circuits.placement import weight

LAYERS = [f"model.layers.{i}" for i in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("device_map", [
    "auto", "disk", dict(zip(LAYERS, ["cpu", "disk", "disk", "cpu"], strict=True))], ids=["auto", "disk", "mixed"])
@pytest.mark.parametrize(("kind", "coverage"), [("clt", 1.0), ("plt", 0.9)])
def test_placements_give_the_same_graph(folder: Path, tmp_path: Path, device_map: str | dict[str, str], kind: str,
                                        coverage: float) -> None:
    _, source = write(tmp_path, kind, True)
    transcoders = circuits.open_transcoders(source)
    whole = circuits.trace(circuits.load_model(folder, device="cpu"), transcoders, tokens=TOKENS, coverage=coverage)
    spread = circuits.load_model(folder, device="cpu", device_map=device_map)
    graph = circuits.trace(spread, transcoders, tokens=TOKENS, coverage=coverage)
    np.testing.assert_array_equal(graph.nodes.expanded, whole.nodes.expanded)
    np.testing.assert_array_equal(graph.indptr, whole.indptr)
    np.testing.assert_array_equal(graph.indices, whole.indices)
    np.testing.assert_array_equal(graph.weights, whole.weights)
    np.testing.assert_array_equal(graph.nodes.value, whole.nodes.value)


def test_layers_on_disk_hold_no_memory(folder: Path) -> None:
    spread = circuits.load_model(folder, device="cpu", device_map="disk")
    layers = spread.hf.model.layers
    assert all(parameter.is_meta for layer in layers for parameter in layer.parameters())
    assert not spread.embedding.is_meta
    whole = circuits.load_model(folder, device="cpu")
    torch.testing.assert_close(weight(layers[1].self_attn.o_proj), whole.hf.model.layers[1].self_attn.o_proj.weight)
    assert layers[1].self_attn.o_proj.weight.is_meta
    frozen = spread.freeze(TOKENS)
    assert frozen.gathered
    torch.testing.assert_close(frozen.logits, whole.freeze(TOKENS).logits, rtol=0, atol=0)
    torch.testing.assert_close(spread.mlp_norm_gain(2), whole.mlp_norm_gain(2), rtol=0, atol=0)


@pytest.mark.parametrize(("device_map", "message"), [
    ("balanced", "device map is 'balanced': expected one of auto, disk"),
    ({"model.layers.0": "cpu"}, "names 1 modules: expected one device for each of model.layers.0 to model.layers.3")])
def test_unknown_maps(folder: Path, device_map: str | dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        circuits.load_model(folder, device="cpu", device_map=device_map)


def test_auto_fills_devices_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs with room for one layer each, memory for one, the rest on disk; sizes counted, nothing moved."""
    import accelerate.utils

    from circuits import placement

    model = circuits.load_model(folder, device="cpu").hf
    layer = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    around = sum(p.numel() * p.element_size() for p in model.parameters()) - 4 * layer
    free = {0: 2 * (layer + around) + 10, 1: int(1.2 * layer), "cpu": int(1.2 * layer)}
    monkeypatch.setattr(accelerate.utils, "get_max_memory", lambda: free)
    assert placement._layer_devices(model, torch.device("cuda:0"), "auto") == [0, 1, "cpu", "disk"]
