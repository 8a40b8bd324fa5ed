"""The native format: rounding of int8, labels, settings, atomic writing, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transcoder_folders as folders
from safetensors.torch import load_file
from transcoder_folders import dictionary

from circuits.checkpoints import native
from circuits.errors import FormatError, InputError
from circuits.transcoder import open_transcoders


def refused(source: Path, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        open_transcoders(source)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v != "drop"}))


def change_tensor(path: Path, **changes: torch.Tensor | None) -> None:
    tensors: dict[str, Any] = load_file(path) | changes
    folders.save(path, {name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_int8_is_one_byte_a_weight_within_half_a_step_of_its_row(tmp_path: Path) -> None:
    d = dictionary(span=3, skip=True)
    d.w_enc[0][5] = 0.0  # a dead row has scale 0
    d.w_dec[0][:, 1] *= 1e-6  # rows of very different sizes do not share a scale
    source = folders.native_folder(tmp_path, d, storage="int8")
    stored = load_file(tmp_path / "layer_0.safetensors")
    assert {name: (t.dtype, tuple(t.shape)) for name, t in stored.items()} == {
        "W_enc": (torch.int8, (24, 8)), "W_enc_scale": (torch.float32, (24,)),
        "W_dec": (torch.int8, (24, 3, 8)), "W_dec_scale": (torch.float32, (24, 3)),
        "skip": (torch.int8, (8, 8)), "skip_scale": (torch.float32, (8,)),
        "b_enc": (torch.float32, (24,)), "b_dec": (torch.float32, (8,)), "threshold": (torch.float32, (24,))}
    opened = open_transcoders(source)
    assert opened.encoder(0).w_enc[5].tolist() == [0.0] * 8
    got = opened.decoder_rows(0, torch.arange(24))
    assert bool(((got - d.w_dec[0]).abs() <= 0.501 / 127 * d.w_dec[0].abs().amax(-1, keepdim=True)).all())
    assert int(stored["W_dec"].abs().amax()) == 127
    assert d.skip is not None
    skip = opened.skip(0)
    assert skip is not None
    assert bool(((skip - d.skip[0]).abs() <= 0.501 / 127 * d.skip[0].abs().amax(0, keepdim=True)).all())


def test_labels_and_settings_come_back(tmp_path: Path) -> None:
    source = folders.native_folder(tmp_path, dictionary(span=2), labels=True, storage="int8", masked_prefix=4,
                                   training={"tokens": 5}, quality={"fvu": [0.5]})
    opened = open_transcoders(source)
    labels = opened.label_tokens(2, torch.tensor([3, 0]))
    assert labels is not None
    assert labels[0].dtype == labels[1].dtype == torch.int32
    assert labels[0].tolist() == [[2030, 2031, 2032], [2000, 2001, 2002]]
    assert labels[1].tolist() == [[7030, 7031, 7032], [7000, 7001, 7002]]
    assert (opened.masked_positions, opened.model_name, opened.kind) == (4, "gemma-3-270m", "clt")
    config = native.read_config(tmp_path)
    assert (config["training"], config["quality"], config["version"]) == ({"tokens": 5}, {"fvu": [0.5]}, 2)
    plain = open_transcoders(folders.native_folder(tmp_path / "plain", dictionary(span=2), masked_prefix=None))
    assert plain.label_tokens(0, torch.tensor([0])) is None
    assert plain.masked_positions is None


def test_relu_is_a_layer_without_thresholds(tmp_path: Path) -> None:
    d = dictionary(span=1)
    source = folders.native_folder(tmp_path, d)
    for i in range(4):
        change_tensor(tmp_path / f"layer_{i}.safetensors", threshold=None)
    position, feature, value = open_transcoders(source).encode(0, torch.ones(1, 8))
    pre = d.w_enc[0].sum(1) + d.b_enc[0]
    assert feature.tolist() == (pre > 0).nonzero()[:, 0].tolist()
    torch.testing.assert_close(value, pre[feature])
    assert position.tolist() == [0] * len(feature)


def test_topk_is_a_setting_of_the_folder(tmp_path: Path) -> None:
    d = dictionary(span=1)
    source = folders.native_folder(tmp_path, d, k=3)
    for i in range(4):
        change_tensor(tmp_path / f"layer_{i}.safetensors", threshold=None)
    opened = open_transcoders(source)
    assert [opened.top_k(i) for i in range(4)] == [3] * 4
    _, feature, value = opened.encode(2, torch.ones(1, 8))
    want = (d.w_enc[2].sum(1) + d.b_enc[2]).topk(3)
    assert feature.tolist() == sorted(want.indices.tolist())
    assert sorted(value.tolist()) == pytest.approx(sorted(want.values.tolist()))


def test_version_1_is_read(tmp_path: Path) -> None:
    d = dictionary(span=2)
    source = folders.native_folder(tmp_path, d, storage="int8")
    change_config(tmp_path, version=1, k="drop")
    opened = open_transcoders(source)
    torch.testing.assert_close(opened.decoder_rows(1, torch.arange(24)), d.w_dec[1], atol=0.02, rtol=0)
    assert opened.decoder_outputs(1, torch.tensor([3, 3])).tolist() == [[True, True]] * 2


def test_files_that_are_no_part_of_the_format_are_left_alone(tmp_path: Path) -> None:
    source = folders.native_folder(tmp_path, dictionary(span=2))
    for name in ("features.bin", "features.safetensors", "layers.json", "README.md"):
        (tmp_path / name).write_bytes(b"anything")
    assert open_transcoders(source).n_layers == 4


@pytest.mark.parametrize(("changes", "match"), [
    ({"version": 3}, "format version 3, this gemma-circuits reads up to 2: upgrade"),
    ({"version": 0}, "says version 0"), ({"version": "drop"}, "says version None"),
    ({"n_layers": 5}, r"lacks layer_4\.safetensors \(4 of 5 layers are there\)"),
    ({"n_layers": 3}, r"layer_3\.safetensors is none of the 3 layers"),
    ({"n_layers": "four"}, "says n_layers 'four'"), ({"d_model": 0}, "says d_model 0"),
    ({"d_model": 16}, r"b_dec in .* has shape \[8\], expected \[16\]"),
    ({"d_transcoder": 23}, r"b_enc in .* has shape \[24\], expected \[23\]"),
    ({"d_transcoder": "drop"}, "says d_transcoder None"),
    ({"span": 3}, r"W_dec in .* has shape \[24, 2, 8\], expected \[24, 3, 8\]"),
    ({"kind": "sae"}, "says kind 'sae', expected clt or plt"), ({"kind": "plt"}, "kind plt with span 2"),
    ({"masked_prefix": -1}, "says masked_prefix -1"),
    ({"k": 0}, "says k 0, expected 1 to 24"), ({"k": 25}, "says k 25, expected 1 to 24"), ({"k": True}, "says k True"),
    ({"k": 3}, "has thresholds, but config.json says k 3"),
    ({"format": "other"}, "holds no transcoder this reader knows")])
def test_settings_that_contradict(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    folders.native_folder(tmp_path, dictionary(span=2))
    change_config(tmp_path, **changes)
    refused(tmp_path, match)


@pytest.mark.parametrize(("changes", "match"), [
    ({"W_enc_scale": None}, "has no tensor W_enc_scale"),
    ({"W_dec_scale": torch.ones(24)}, r"W_dec_scale in .* has shape \[24\], expected \[24, 2\]"),
    ({"skip_scale": torch.full((8,), float("nan"))}, "skip_scale in .* has 8 NaN"),
    ({"W_enc": torch.ones(24, 8)}, "has W_enc_scale, but W_enc is F32: scales belong to I8 only"),
    ({"W_enc": torch.ones(24, 8, dtype=torch.int16)}, "W_enc in .* has dtype I16"),
    ({"threshold": torch.full((24,), float("inf"))}, "threshold in .* has 24 NaN or infinite"),
    ({"threshold": torch.ones(24, dtype=torch.int8)}, "threshold in .* has dtype I8"),
    ({"promoted_tokens": torch.zeros(24, 3, dtype=torch.int32)}, "has promoted_tokens alone"),
    ({"promoted_tokens": torch.zeros(24, 3), "active_tokens": torch.zeros(24, 3)}, "promoted_tokens .* dtype F32"),
    ({"W_skip": torch.eye(8)}, "tensor W_skip .* does not define"),
    ({"W_dec": None}, "has no tensor W_dec")])
def test_damaged_layers(changes: dict[str, torch.Tensor | None], match: str, tmp_path: Path) -> None:
    folders.native_folder(tmp_path, dictionary(span=2, skip=True), storage="int8")
    change_tensor(tmp_path / "layer_1.safetensors", **changes)
    refused(tmp_path, match)


def test_truncated_and_copied_layers(tmp_path: Path) -> None:
    folders.native_folder(tmp_path, dictionary(span=1))
    path = tmp_path / "layer_2.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(tmp_path, r"layer_2\.safetensors is truncated")
    shutil.copy(tmp_path / "layer_1.safetensors", path)
    refused(tmp_path, "layer 2 is a copy of layer 1")


def layer_tensors() -> dict[str, torch.Tensor]:
    d = dictionary(span=2)
    return {"W_enc": d.w_enc[0], "W_dec": d.w_dec[0], "b_enc": d.b_enc[0], "b_dec": d.b_dec[0]}


@pytest.mark.parametrize(("changes", "error", "match"), [
    ({"W_dec": torch.full((24, 2, 8), float("nan"))}, InputError, "W_dec of layer 0 has NaN"),
    ({"w_skip": torch.eye(8)}, InputError, "layer 0 has tensors w_skip: expected some of"),
    ({"W_dec": torch.ones(24, 8)}, InputError, r"expected \(F, S, D\)"),
    ({"b_enc": torch.ones(5)}, FormatError, r"b_enc .* has shape \[5\], expected \[24\]"),
    ({"promoted_tokens": torch.ones(24, 2)}, FormatError, "has promoted_tokens alone")])
def test_nothing_wrong_is_written(changes: dict[str, torch.Tensor], error: type[Exception], match: str,
                                  tmp_path: Path) -> None:
    native.write_layer(tmp_path, 0, layer_tensors())
    before = (tmp_path / "layer_0.safetensors").read_bytes()
    with pytest.raises(error, match=match):
        native.write_layer(tmp_path, 0, layer_tensors() | changes)
    assert [path.name for path in tmp_path.iterdir()] == ["layer_0.safetensors"]
    assert (tmp_path / "layer_0.safetensors").read_bytes() == before


def test_arguments_of_the_writer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="storage is 'int4': expected one of int8, float32, bfloat16"):
        native.write_layer(tmp_path, 0, layer_tensors(), "int4")
    tensors = layer_tensors()
    del tensors["b_dec"]
    with pytest.raises(InputError, match="layer 0 lacks b_dec"):
        native.write_layer(tmp_path, 0, tensors)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        native.write_layer(tmp_path / "file", 0, layer_tensors())
    with pytest.raises(InputError, match="cannot be written"):
        native.write_config(tmp_path / "file" / "deeper", kind="plt", n_layers=1, d_model=8, d_transcoder=24, span=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
