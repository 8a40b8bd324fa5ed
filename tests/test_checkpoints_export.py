"""Export: opened, written, opened again is the same dictionary; what a format cannot hold and what is in the way."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transcoder_folders as folders
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transcoder_folders import dictionary

from circuits.checkpoints import layouts, native
from circuits.checkpoints.export import FORMATS, export
from circuits.errors import InputError
from circuits.transcoder import Transcoders, open_transcoders

SOURCES: dict[str, tuple[Callable[..., str], int, bool, dict[str, Any]]] = {
    "plt": (folders.gemma_scope_plt, 1, False, {}),
    "plt skip": (folders.tracer_plt, 1, True, {}),
    "plt relu": (folders.tracer_plt, 1, False, {"threshold": False}),
    "plt relu skip": (folders.tracer_plt, 1, True, {"threshold": False}),
    "clt": (folders.tracer_clt, 4, False, {}),
    "clt relu": (folders.tracer_clt, 4, False, {"threshold": False}),
    "clt skip": (folders.gemma_scope_clt, 4, True, {}),
    "clt short span": (folders.native_folder, 2, False, {}),
    "clt short span skip": (folders.native_folder, 3, True, {}),
    "clt int8 skip": (folders.native_folder, 2, True, {"storage": "int8"}),
}


def check_same(got: Transcoders, want: Transcoders) -> None:
    """Equal bit for bit, but that a decoder may go on with zeros and ReLU may be a threshold of zero."""
    assert (got.kind, got.n_layers, got.d_model, got.d_transcoder) == (
        want.kind, want.n_layers, want.d_model, want.d_transcoder)
    for i in range(want.n_layers):
        every = torch.arange(want.d_transcoder[i])
        a, b = got.encoder(i), want.encoder(i)
        assert torch.equal(a.w_enc, b.w_enc)
        assert torch.equal(a.b_enc, b.b_enc)
        thresholds = [torch.zeros(len(every)) if e.threshold is None else e.threshold for e in (a, b)]
        assert torch.equal(*thresholds)
        assert a.k == b.k
        assert torch.equal(got.b_dec(i), want.b_dec(i))
        rows, known = got.decoder_rows(i, every), want.decoder_rows(i, every)
        assert torch.equal(rows[:, :known.shape[1]], known)
        assert not rows[:, known.shape[1]:].any()
        skips = got.skip(i), want.skip(i)
        assert (skips[0] is None) == (skips[1] is None)
        if skips[0] is not None and skips[1] is not None:
            assert torch.equal(skips[0], skips[1])
        x = torch.randn(7, want.d_model, generator=torch.Generator().manual_seed(i))
        (*active, value), (*expected, known_value) = got.encode(i, x), want.encode(i, x)
        assert all(map(torch.equal, active, expected))
        # the weights are bit-equal (above); a product of other memory layout or thread count rounds differently
        torch.testing.assert_close(value, known_value, rtol=1e-5, atol=1e-5)


def opened(kind: str, folder: Path) -> Transcoders:
    write, span, skip, options = SOURCES[kind]
    return open_transcoders(write(folder, dictionary(span=span, skip=skip), **options))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", SOURCES)
def test_round_trip(kind: str, format: str, tmp_path: Path) -> None:
    source = opened(kind, tmp_path / "source")
    stages: list[tuple[int, int]] = []
    place = export(source, tmp_path / "out", format, progress=lambda stage, done, total: stages.append((done, total)))
    again = open_transcoders(place)
    check_same(again, source)
    assert again.model_name in (source.model_name, f"google/{source.model_name}")
    assert stages == [(i, 4) for i in range(5)]
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "out").rglob("*"))
    if format == "native":
        assert again.encoder(0).threshold is None or source.encoder(0).threshold is not None
        assert len(again.output_layers(0)) == len(source.output_layers(0))
        check_same(source, again)
    back = export(again, tmp_path / "back", "native")
    check_same(open_transcoders(back), again)


def test_names_and_settings_of_a_circuit_tracer_plt(tmp_path: Path) -> None:
    d = dictionary(span=1, skip=True)
    export(open_transcoders(folders.native_folder(tmp_path / "in", d)), tmp_path / "out", "circuit-tracer")
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text()) == {
        "model_name": "google/gemma-3-270m", "model_kind": "transcoder_set", "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.yaml", *(f"layer_{i}.safetensors" for i in range(4))}
    assert d.skip is not None
    want = {"W_enc": d.w_enc[1], "W_dec": d.w_dec[1][:, 0], "b_enc": d.b_enc[1], "b_dec": d.b_dec[1],
            "activation_function.threshold": d.threshold[1], "W_skip": d.skip[1].T}
    got = load_file(tmp_path / "out/layer_1.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_names_and_settings_of_a_circuit_tracer_clt(tmp_path: Path) -> None:
    d = dictionary(span=2)
    export(open_transcoders(folders.native_folder(tmp_path / "in", d)), tmp_path / "out", "circuit-tracer")
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["model_kind"] == "cross_layer_transcoder"
    got = load_file(tmp_path / "out/W_enc_1.safetensors") | load_file(tmp_path / "out/W_dec_1.safetensors")
    padded = torch.cat([d.w_dec[1], torch.zeros(24, 1, 8)], 1)
    want = {"W_enc_1": d.w_enc[1], "b_enc_1": d.b_enc[1], "b_dec_1": d.b_dec[1], "threshold_1": d.threshold[1],
            "W_dec_1": padded}
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_clt_with_a_skip_is_listed_for_circuit_tracer_with_its_last_file_twice(tmp_path: Path) -> None:
    d = dictionary(span=4, skip=True)
    export(open_transcoders(folders.gemma_scope_clt(tmp_path / "in", d)), tmp_path / "out", "circuit-tracer")
    config = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    assert config["transcoders"] == [f"params_layer_{i}.safetensors" for i in (0, 1, 2, 3, 3)]
    assert torch.equal(load_file(tmp_path / "out/params_layer_2.safetensors")["w_dec"][:, 2:], d.w_dec[2])


def test_names_and_settings_of_gemma_scope_2(tmp_path: Path) -> None:
    d = dictionary(span=2, skip=True, features=1500)
    source = open_transcoders(folders.native_folder(tmp_path / "clt", d, quality={"active_per_position": 60.0}))
    place = export(source, tmp_path / "out", "gemma-scope-2")
    assert place == tmp_path / "out/clt/width_6k_l0_small_affine"
    config = json.loads((place / "config.json").read_text())
    assert config["hf_hook_point_in"][3] == "model.layers.3.pre_feedforward_layernorm.output"
    assert config["hf_hook_point_out"][0] == "model.layers.0.post_feedforward_layernorm.output"
    assert {key: config[key] for key in ("width", "model_name", "architecture", "l0", "affine_connection", "type")} == {
        "width": 6000, "model_name": "google/gemma-3-270m", "architecture": "jump_relu", "l0": 15.0,
        "affine_connection": True, "type": "clt"}
    shard = load_file(place / "params_layer_1.safetensors")
    assert shard["w_dec"].shape == (1500, 4, 8)
    assert not shard["w_dec"][:, [0, 3]].any()
    assert torch.equal(shard["w_dec"][:, 1:3], d.w_dec[1])
    assert torch.equal(shard["w_enc"], d.w_enc[1].T)

    plt = open_transcoders(folders.tracer_plt(tmp_path / "plt", dictionary(span=1), model_name=None))
    place = export(plt, tmp_path / "out plt", "gemma-scope-2")
    assert place == tmp_path / "out plt/transcoder_all/width_24_l0_unknown"
    layer = place.parent / "layer_2_width_24_l0_unknown"
    assert json.loads((layer / "config.json").read_text()) == {
        "hf_hook_point_in": "model.layers.2.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.2.post_feedforward_layernorm.output", "width": 24,
        "architecture": "jump_relu", "affine_connection": False, "type": "transcoder"}
    assert {path.name for path in layer.iterdir()} == {"config.json", "params.safetensors"}


@pytest.mark.parametrize("storage", native.STORAGE)
def test_native_export_keeps_what_is_known_and_stores_no_zeros(storage: str, tmp_path: Path) -> None:
    d = dictionary(span=3, skip=True)
    d.w_dec[0][5] = 0.0
    d.w_dec[1][:, 2] = 0.0
    source = open_transcoders(folders.native_folder(tmp_path / "in", d, labels=True, masked_prefix=4,
                                                    training={"tokens": 9}, quality={"fvu_mean": 0.1}))
    again = open_transcoders(export(source, tmp_path / "out", storage=storage))
    assert (again.masked_positions, again.model_name, list(again.output_layers(0))) == (4, "gemma-3-270m", [0, 1, 2])
    config = native.read_config(tmp_path / "out")
    assert (config["training"], config["quality"]) == ({"tokens": 9}, {})
    for i in range(4):
        every = torch.arange(24)
        assert torch.equal(again.decoder_outputs(i, every), d.w_dec[i].any(-1))
        labels, known = again.label_tokens(i, every), source.label_tokens(i, every)
        assert labels is not None
        assert known is not None
        assert all(torch.equal(a, b) for a, b in zip(labels, known, strict=True))
    stored = load_file(tmp_path / "out/layer_1.safetensors")
    assert stored["W_dec_kept"].shape == (48, 8)
    assert stored["W_dec_kept"].dtype == (native.STORAGE[storage] or torch.int8)
    assert "W_dec" in load_file(tmp_path / "out/layer_2.safetensors")
    if storage == "float32":
        check_same(again, source)
    twice = open_transcoders(export(again, tmp_path / "twice", storage=storage))
    for i in range(4):  # rounding what is rounded changes a scale by its last bit at most
        torch.testing.assert_close(twice.decoder_rows(i, every), again.decoder_rows(i, every), rtol=1e-6, atol=0)


def test_topk_goes_to_native_only(tmp_path: Path) -> None:
    source = open_transcoders(folders.tracer_plt(tmp_path / "in", dictionary(span=1), threshold=False,
                                                 activation="topk", k=3))
    check_same(open_transcoders(export(source, tmp_path / "out")), source)
    for format in ("circuit-tracer", "gemma-scope-2"):
        with pytest.raises(InputError, match=f"is TopK, and programs that read {format} would run it as ReLU"):
            export(source, tmp_path / "other", format)


def mixed(folder: Path, **changes: Tensor) -> Transcoders:
    """A PLT whose layer 2 differs from the others."""
    d = dictionary(span=1)
    source = folders.tracer_plt(folder, d)
    path = folder / "layer_2.safetensors"
    folders.save(path, {name: tensor for name, tensor in (load_file(path) | changes).items() if tensor.numel()})
    return open_transcoders(source)


def test_a_skip_in_some_layers_is_a_skip_of_zeros_in_the_others(tmp_path: Path) -> None:
    source = mixed(tmp_path / "in", W_skip=torch.arange(64.0).view(8, 8),
                   **{"activation_function.threshold": torch.empty(0)})
    for format in ("circuit-tracer", "gemma-scope-2"):
        again = open_transcoders(export(source, tmp_path / format, format))
        for i in range(4):
            skip, threshold = again.skip(i), again.threshold(i)
            assert skip is not None
            assert threshold is not None
            assert torch.equal(skip, torch.arange(64.0).view(8, 8).T if i == 2 else torch.zeros(8, 8))
            assert bool(threshold.any()) == (i != 2)
    again = open_transcoders(export(source, tmp_path / "native"))
    assert [again.skip(i) is None for i in range(4)] == [True, True, False, True]
    assert [again.threshold(i) is None for i in range(4)] == [False, False, True, False]


def test_layers_of_different_width(tmp_path: Path) -> None:
    d = dictionary(span=1, features=20)
    source = mixed(tmp_path / "in", W_enc=d.w_enc[2], W_dec=d.w_dec[2][:, 0], b_enc=d.b_enc[2],
                   **{"activation_function.threshold": d.threshold[2]})
    for format in FORMATS:
        with pytest.raises(InputError, match=f"layer 2 of .* has 20 features, layer 0 has 24: {format} needs the same"):
            export(source, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "match"), [
    ({"format": "gguf"}, "format is 'gguf': expected one of native, circuit-tracer, gemma-scope-2"),
    ({"storage": "int4"}, "storage is 'int4': expected one of int8"),
    ({"format": "circuit-tracer", "storage": "int8"}, "circuit-tracer files are float32, storage is int8")])
def test_arguments(arguments: dict[str, str], match: str, tmp_path: Path) -> None:
    source = opened("clt", tmp_path / "in")
    with pytest.raises(InputError, match=match):
        export(source, tmp_path / "out", **arguments)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", FORMATS)
def test_an_earlier_export_is_replaced_and_nothing_else(format: str, tmp_path: Path) -> None:
    first, other = opened("clt", tmp_path / "first"), opened("clt relu", tmp_path / "other")
    out = tmp_path / "out"
    out.mkdir()
    export(first, out, format)
    place = export(other, out, format)
    check_same(open_transcoders(place), other)
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    with pytest.raises(InputError, match=r"out holds notes\.txt, which this export does not write"):
        export(first, out, format)
    (out / "notes.txt").rename(out / "features.bin")
    with pytest.raises(InputError, match=r"out holds features\.bin"):
        export(first, out, format)
    (out / "features.bin").unlink()
    (out / "empty").mkdir()
    with pytest.raises(InputError, match="out holds empty"):
        export(first, out, format)
    before.pop("notes.txt")
    assert contents(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {"first", "other", "out"}


def test_what_is_in_the_way(tmp_path: Path) -> None:
    source = opened("clt", tmp_path / "in")
    for format in FORMATS:
        export(source, tmp_path / format, format)
    for format in FORMATS:  # an export of another format, and of other layers, is no earlier export
        with pytest.raises(InputError, match="which this export does not write"):
            export(source, tmp_path / format, FORMATS[FORMATS.index(format) - 1])
    shallow = open_transcoders(folders.tracer_clt(tmp_path / "shallow", dictionary(span=3, n_layers=3)))
    with pytest.raises(InputError, match=r"holds layer_3\.safetensors"):
        export(shallow, tmp_path / "native")
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/config.json").write_text("{}")
    with pytest.raises(InputError, match="holds settings without weights"):
        export(source, tmp_path / "settings")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is a file: name a folder"):
        export(source, tmp_path / "file")
    with pytest.raises(InputError, match="cannot write"):
        export(source, tmp_path / "file/deeper")


def test_the_set_itself_is_never_written_over(tmp_path: Path) -> None:
    native_set = open_transcoders(folders.native_folder(tmp_path / "in", dictionary(span=2)))
    with pytest.raises(InputError, match=r"in is where .*in lies: name another folder"):
        export(native_set, tmp_path / "in")
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(InputError, match="is where"):
        export(native_set, tmp_path / "link")
    scope = open_transcoders(export(native_set, tmp_path / "scope", "gemma-scope-2"))
    with pytest.raises(InputError, match="scope is where"):
        export(scope, tmp_path / "scope", "gemma-scope-2")
    copy = export(native_set, tmp_path / "in/copy")  # a folder of its own, though inside
    check_same(open_transcoders(copy), native_set)


def test_a_failure_leaves_the_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened("clt", tmp_path / "in")
    export(source, tmp_path / "out", "circuit-tracer")
    before = contents(tmp_path / "out")
    save = layouts.save

    def full(path: Path, tensors: dict[str, Tensor]) -> None:
        if path.name == "W_dec_2.safetensors":
            raise OSError(28, "No space left on device")
        save(path, tensors)

    monkeypatch.setattr(layouts, "save", full)
    with pytest.raises(InputError, match=r"cannot write .*out: No space left on device"):
        export(opened("clt relu", tmp_path / "other"), tmp_path / "out", "circuit-tracer")
    assert contents(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "other"}


def test_a_folder_that_cannot_be_put_in_place_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened("clt", tmp_path / "in")
    export(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".part") and self.is_dir():
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match="Input/output error"):
        export(opened("clt relu", tmp_path / "other"), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "other"}


@pytest.mark.parametrize("format", FORMATS)
def test_one_layer_is_in_memory_at_a_time(format: str, tmp_path: Path) -> None:
    features, d_model, n_layers = 500, 16, 6
    d = dictionary(span=2, skip=True, n_layers=n_layers, features=features, d_model=d_model)
    source = open_transcoders(folders.native_folder(tmp_path / "in", d))
    del d
    gc.collect()
    held: list[int] = []

    def large() -> int:
        tensors = [thing for thing in gc.get_objects() if type(thing) is Tensor]
        return sum(tensor.numel() >= features * d_model for tensor in tensors)

    before = large()
    export(source, tmp_path / "out", format, progress=lambda stage, done, total: held.append(large() - before))
    assert held == [0] * (n_layers + 1)


def test_feature_data_may_lie_in_the_folder_of_a_per_layer_set(tmp_path: Path) -> None:
    source = opened("plt skip", tmp_path / "in")
    place = export(source, tmp_path / "out", "gemma-scope-2")
    again = open_transcoders(place)
    assert again.folder == place
    assert not place.exists()
    place.mkdir()
    (place / "features.bin").write_bytes(b"data")
    check_same(open_transcoders(place), source)
    assert open_transcoders(place.parent).folder == place  # however it is named
    shutil.rmtree(place)
    for kind in ("clt", "clt skip", "clt short span"):
        other = opened(kind, tmp_path / kind)
        assert other.folder is not None
        assert other.folder.is_dir()
