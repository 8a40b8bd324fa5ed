"""Transcoders against a dense dictionary, whatever format it was stored in; opening is lazy and checks the model."""

import dataclasses
import json
import struct
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
import transcoder_folders as folders
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transcoder_folders import Dictionary, dictionary

import circuits
from circuits import bundled, transcoder
from circuits.checkpoints.layer import Checkpoint
from circuits.errors import FormatError, InputError, ModelError
from circuits.kernels import encode
from circuits.transcoder import Transcoders, open_transcoders

LAYOUTS: dict[str, tuple[Callable[..., str], int, bool, dict[str, Any]]] = {
    "gemma scope plt": (folders.gemma_scope_plt, 1, False, {}),
    "gemma scope plt affine": (folders.gemma_scope_plt, 1, True, {}),
    "gemma scope plt affine, no config": (folders.gemma_scope_plt, 1, True, {"config": False}),
    "gemma scope clt": (folders.gemma_scope_clt, 4, False, {}),
    "gemma scope clt affine": (folders.gemma_scope_clt, 4, True, {}),
    "gemma scope clt affine, no config": (folders.gemma_scope_clt, 4, True, {"config": False}),
    "circuit-tracer plt": (folders.tracer_plt, 1, False, {}),
    "circuit-tracer plt skip": (folders.tracer_plt, 1, True, {"activation": "jump_relu"}),
    "circuit-tracer clt": (folders.tracer_clt, 4, False, {}),
    "native plt": (folders.native_folder, 1, True, {}),
    "native clt": (folders.native_folder, 4, True, {}),
    "native clt short span": (folders.native_folder, 2, False, {}),
    "native clt int8": (folders.native_folder, 3, True, {"storage": "int8"}),
    "native clt bfloat16": (folders.native_folder, 3, True, {"storage": "bfloat16"}),
}
ERROR = {"native clt int8": 0.5 / 127, "native clt bfloat16": 2 ** -8}
"""Largest storage error of a weight, as a share of the largest of its row."""


def dense(entries: tuple[torch.Tensor, ...], shape: tuple[int, int]) -> torch.Tensor:
    position, feature, value = entries
    assert (position.dtype, feature.dtype, value.dtype) == (torch.int64, torch.int64, torch.float32)
    flat = position * shape[1] + feature
    assert bool((flat.diff() > 0).all()), "entries are not sorted, or repeat"
    return torch.zeros(shape).index_put((position, feature), value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_dictionary(layout: str, tmp_path: Path) -> None:
    write, span, skip, options = LAYOUTS[layout]
    d = dictionary(span=span, skip=skip)
    opened = open_transcoders(write(tmp_path, d, **options))
    assert (opened.kind, opened.n_layers, opened.d_model) == ("plt" if span == 1 else "clt", 4, 8)
    assert opened.d_transcoder == (24,) * 4
    picked = torch.tensor([23, 0, 7, 7])
    error = ERROR.get(layout, 0.0)

    def same(got: torch.Tensor, want: torch.Tensor, dim: int = -1) -> None:
        assert got.dtype == torch.float32
        assert got.shape == want.shape
        assert bool(((got - want).abs() <= error * want.abs().amax(dim, keepdim=True) + 1e-7).all())

    for i in range(4):
        assert opened.output_layers(i) == range(i, min(4, i + span))
        encoder = opened.encoder(i)
        same(encoder.w_enc, d.w_enc[i])
        assert encoder.threshold is not None
        assert encoder.k is None
        torch.testing.assert_close(encoder.b_enc, d.b_enc[i])
        torch.testing.assert_close(encoder.threshold, d.threshold[i])
        same(opened.encoder_rows(i, picked), d.w_enc[i][picked])
        torch.testing.assert_close(opened.encoder_bias(i, picked), d.b_enc[i][picked])
        same(opened.decoder_rows(i, picked), d.w_dec[i][picked])
        torch.testing.assert_close(opened.b_dec(i), d.b_dec[i])
        if d.skip is None:
            assert opened.skip(i) is None
        else:
            got = opened.skip(i)
            assert got is not None
            same(got, d.skip[i], dim=0)
        # activations of the dictionary as it was stored: at a threshold, a rounded weight may decide otherwise
        stored = dataclasses.replace(d, w_enc=[opened.encoder(j).w_enc for j in range(4)])
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(i))
        want = stored.encode(i, x)
        assert 0 < int((want != 0).sum()) < want.numel()
        torch.testing.assert_close(dense(opened.encode(i, x), (5, 24)), want)


@pytest.mark.parametrize("layout", ["gemma scope plt", "circuit-tracer plt", "native clt int8"])
def test_tiles_do_not_change_what_is_active(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, span, skip, options = LAYOUTS[layout]
    opened = open_transcoders(write(tmp_path, dictionary(span=span, skip=skip), **options))
    x = torch.randn(6, 8)
    whole = opened.encode(1, x)
    monkeypatch.setattr(transcoder, "MAX_TILE", 8 * 5)
    for got, want in zip(opened.encode(1, x), whole, strict=True):
        torch.testing.assert_close(got, want)


def test_encoding_makes_no_tensor_above_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_transcoders(folders.gemma_scope_plt(tmp_path, dictionary(span=1, features=400)))
    monkeypatch.setattr(transcoder, "MAX_TILE", 1000)
    monkeypatch.setattr(encode, "CACHED_TILE", 1000)
    sizes: list[int] = []
    addmm = torch.addmm

    def measured(*args: torch.Tensor) -> torch.Tensor:
        sizes.append(addmm(*args).numel())
        return addmm(*args)

    monkeypatch.setattr(torch, "addmm", measured)
    opened.encode(0, torch.randn(50, 8))
    assert sum(sizes) == 50 * 400
    assert max(sizes) <= 1000


def test_nothing_active_and_no_positions_are_empty(tmp_path: Path) -> None:
    d = dictionary(span=1)
    d.threshold[2].fill_(1e6)
    opened = open_transcoders(folders.tracer_plt(tmp_path / "jump", d))
    topk = open_transcoders(folders.tracer_plt(tmp_path / "topk", d, threshold=False, activation="topk", k=2))
    for entries in (opened.encode(2, torch.randn(3, 8)), opened.encode(0, torch.zeros(0, 8)),
                    topk.encode(0, torch.zeros(0, 8))):
        assert [len(column) for column in entries] == [0, 0, 0]
        assert [column.dtype for column in entries] == [torch.int64, torch.int64, torch.float32]
    assert opened.decoder_rows(0, torch.tensor([], dtype=torch.int64)).shape == (0, 1, 8)


def test_jumprelu_below_zero_keeps_negative_activations_but_no_zeros(tmp_path: Path) -> None:
    d = dictionary(span=1)
    d.threshold[0].fill_(-0.5)
    d.b_enc[0][3], d.w_enc[0][3] = 0.0, torch.zeros(8)
    opened = open_transcoders(folders.tracer_plt(tmp_path, d))
    x = torch.randn(6, 8)
    position, feature, value = opened.encode(0, x)
    assert 3 not in feature.tolist()
    assert float(value.min()) < 0
    torch.testing.assert_close(dense((position, feature, value), (6, 24)), d.encode(0, x))


@pytest.mark.parametrize("source", ["relu", "topk"])
@pytest.mark.parametrize("write", [folders.tracer_plt, folders.tracer_clt])
def test_relu_and_topk(source: str, write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d = dictionary(span=1 if write is folders.tracer_plt else 4)
    options: dict[str, Any] = {"activation": "topk", "k": 3} if source == "topk" else {}
    opened = open_transcoders(write(tmp_path, d, threshold=False, **options))
    x = torch.randn(7, 8)
    x[2] = 0.0
    want = (x @ d.w_enc[1].T + d.b_enc[1]).relu()
    if source == "topk":
        monkeypatch.setattr(transcoder, "MAX_TILE", 2 * 24)  # two positions a tile
        kept = want.topk(3, dim=1)
        want = torch.zeros_like(want).scatter(1, kept.indices, kept.values)
    torch.testing.assert_close(dense(opened.encode(1, x), (7, 24)), want)
    assert opened.encoder(1).threshold is None
    assert opened.encoder(1).k == (3 if source == "topk" else None)


def test_a_reader_of_sparse_decoders_needs_no_change_here() -> None:
    """A format may keep decoders by (feature, output layer) only; the class asks for rows and gets a rectangle."""

    class SparseLayer:
        path, n_features, d_model, n_outputs, k = Path("sparse"), 3, 2, 2, None

        def __init__(self) -> None:
            self.stored = {(0, 1): torch.tensor([1.0, 2.0]), (2, 0): torch.tensor([3.0, 4.0])}

        def encoder(self, start: int, stop: int) -> torch.Tensor:
            return torch.eye(3, 2)[start:stop]

        def encoder_rows(self, features: torch.Tensor) -> torch.Tensor:
            return torch.eye(3, 2)[features]

        def vector(self, name: str) -> torch.Tensor | None:
            return {"b_enc": torch.zeros(3), "b_dec": torch.zeros(2)}.get(name)

        def decoder_rows(self, features: torch.Tensor) -> torch.Tensor:
            rows = torch.zeros(len(features), 2, 2)
            for row, feature in enumerate(features.tolist()):
                for output in range(2):
                    rows[row, output] = self.stored.get((feature, output), torch.zeros(2))
            return rows

        def decoder_outputs(self, features: torch.Tensor) -> torch.Tensor:
            pairs = [[(feature, output) in self.stored for output in range(2)] for feature in features.tolist()]
            return torch.tensor(pairs)

        def skip(self) -> None:
            return None

        def labels(self, features: torch.Tensor) -> None:
            return None

    opened = Transcoders("sparse", Checkpoint("clt", [SparseLayer()]))
    assert opened.output_layers(0) == range(0, 2)
    rows = opened.decoder_rows(0, torch.tensor([2, 0]))
    assert rows.tolist() == [[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 2.0]]]
    assert opened.decoder_outputs(0, torch.tensor([2, 0])).tolist() == [[True, False], [False, True]]
    assert [column.tolist() for column in opened.encode(0, torch.tensor([[0.0, 5.0]]))] == [[0], [1], [5.0]]


def poke(path: Path, name: str, index: int, value: float) -> None:
    """Overwrite one float32 of a stored tensor in place."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    start = json.loads(raw[8:8 + length])[name]["data_offsets"][0]
    at = 8 + length + start + 4 * index
    path.write_bytes(raw[:at] + struct.pack("<f", value) + raw[at + 4:])


def test_nan_in_weights_is_reported_when_read(tmp_path: Path) -> None:
    d = dictionary(span=1, skip=True)
    source = folders.tracer_plt(tmp_path, d)
    for name, index in (("W_dec", 5 * 8 + 3), ("W_enc", 6 * 8), ("W_skip", 9)):
        poke(tmp_path / "layer_1.safetensors", name, index, float("nan"))
    opened = open_transcoders(source)
    assert torch.isfinite(opened.decoder_rows(1, torch.tensor([4, 6]))).all()
    damaged = [lambda: opened.decoder_rows(1, torch.tensor([4, 5])), lambda: opened.encoder(1),
               lambda: opened.encoder_rows(1, torch.tensor([6])), lambda: opened.skip(1),
               lambda: opened.encode(1, torch.randn(2, 8))]
    for read in damaged:
        with pytest.raises(FormatError, match=r"layer_1\.safetensors.* NaN or infinite"):
            read()
    with pytest.raises(InputError, match="x has NaN or infinite values"):
        opened.encode(0, torch.full((1, 8), float("nan")))
    huge = torch.full((1, 8), 3e37)  # the sum over features overflows, no element does
    assert torch.isfinite(opened.encode(0, huge)[2]).all()


def test_arguments_out_of_range(tmp_path: Path) -> None:
    opened = open_transcoders(folders.tracer_plt(tmp_path, dictionary(span=1)))
    for layer in (-1, 4):
        with pytest.raises(InputError, match="expected 0 to 3"):
            opened.b_dec(layer)
    for bad in (torch.tensor([24]), torch.tensor([-1]), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(InputError, match="numbers from 0 to 23"):
            opened.decoder_rows(0, bad)
    with pytest.raises(InputError, match=r"expected \(positions, 8\)"):
        opened.encode(0, torch.zeros(2, 9))


def test_check_model_names_what_to_open(tmp_path: Path) -> None:
    opened = open_transcoders(folders.tracer_plt(tmp_path, dictionary(span=1)))
    opened.check_model(4, 8, "some model")
    with pytest.raises(ModelError, match="transcoder has 4 layers, model has 34: open the one trained for gemma-3-4b"):
        opened.check_model(34, 2560, "m")
    with pytest.raises(ModelError, match="transcoder has 8 dimensions, model has 16: open the one trained for m"):
        opened.check_model(4, 16, "m")


def test_opening_a_large_clt_reads_almost_nothing(tmp_path: Path) -> None:
    """Sparse files of 0.6 GB apparent size: a read of everything would show in the process's memory."""
    d_model, n_layers, features = 640, 3, 25_000

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

    def rss() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    shapes = {"b_enc": (features,), "b_dec": (d_model,), "threshold": (features,), "w_enc": (d_model, features),
              "w_dec": (features, n_layers, d_model)}
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    for layer in range(n_layers):
        with (tmp_path / f"params_layer_{layer}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            row = 8 + len(text) + header["w_dec"]["data_offsets"][0] + 4 * (24_999 * n_layers + layer) * d_model
            file.seek(row)
            file.write(struct.pack("<f", 7.0 + layer))
            file.truncate(8 + len(text) + at)
    open_transcoders(folders.tracer_plt(tmp_path / "warm", dictionary(span=1)))
    before, start, read = rss(), time.perf_counter(), bytes_read()
    opened = open_transcoders(tmp_path)
    for layer in range(n_layers):
        rows = opened.decoder_rows(layer, torch.tensor([3, 12_000, 24_999]))
        assert rows.shape == (3, n_layers - layer, d_model)
        assert rows[2, 0, 0] == 7.0 + layer
    assert time.perf_counter() - start < 3
    assert rss() - before < 30e6
    assert bytes_read() - read < 1e6
    encoder = opened.encoder(0)
    assert encoder.w_enc.shape == (features, d_model)
    assert encoder.w_enc.T.is_contiguous()  # the file's own (D, F), not a copy
    held = rss()
    del encoder
    assert held - rss() > 0.8 * 4 * d_model * features  # reading it was counted, and is given back


class Hub:
    """Stands in for snapshot_download: copies what the patterns let through, as the hub's client does."""

    def __init__(self, remote: Path, cache: Path):
        self.remote, self.cache = remote, cache
        self.calls: list[tuple[str, str | None]] = []
        self.files: list[str] = []

    def __call__(self, repo_id: str, *, allow_patterns: list[str], ignore_patterns: list[str] | None = None,
                 revision: str | None = None) -> str:
        self.calls.append((repo_id, revision))
        target = self.cache / repo_id.replace("/", "--")
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted((self.remote / repo_id).rglob("*")):
            name = file.relative_to(self.remote / repo_id).as_posix()
            if (file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns)
                    and not any(fnmatch(name, pattern) for pattern in ignore_patterns or [])):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(file.read_bytes())
                self.files.append(name)
        return str(target)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "remote", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    monkeypatch.chdir(tmp_path)
    return hub


def check_same(opened: Transcoders, d: Dictionary) -> None:
    for i in range(d.n_layers):
        every = torch.arange(len(d.b_enc[i]))
        torch.testing.assert_close(opened.encoder(i).w_enc, d.w_enc[i])
        torch.testing.assert_close(opened.decoder_rows(i, every), d.w_dec[i])


def test_hub_gemma_scope_set_downloads_its_variant_only(hub: Hub) -> None:
    repo = hub.remote / "google/gemma-scope-2-270m-pt"
    d = dictionary(span=1)
    folders.gemma_scope_plt(repo, d, config=False)
    folders.gemma_scope_plt(repo, dictionary(span=1, skip=True, seed=1))
    folders.gemma_scope_plt(repo, dictionary(span=1, seed=2), variant="width_262k_l0_small")
    folders.gemma_scope_plt(repo, dictionary(span=1, seed=3), family="transcoder")
    folders.gemma_scope_clt(repo, dictionary(span=4, seed=4))
    opened = open_transcoders("google/gemma-scope-2-270m-pt/transcoder_all/width_16k_l0_small")
    check_same(opened, d)
    assert opened.model_name == "google/gemma-3-270m"
    assert hub.calls == [("google/gemma-scope-2-270m-pt", None)]
    assert hub.files == [f"transcoder_all/layer_{i}_width_16k_l0_small/params.safetensors" for i in range(4)]


def test_hub_clt_and_a_repository_root(hub: Hub) -> None:
    d = dictionary(span=4, skip=True)
    folders.gemma_scope_clt(hub.remote / "google/gemma-scope-2-1b-it", d)
    opened = open_transcoders("google/gemma-scope-2-1b-it/clt/width_262k_l0_medium_affine/")
    check_same(opened, d)
    assert not any("examples" in name for name in hub.files)
    hub.files.clear()
    own = hub.remote / "me/my-transcoder"
    folders.native_folder(own, dictionary(span=2))
    folders.gemma_scope_plt(own / "layer_1_deeper", dictionary(span=1))
    for name in ("features.bin", "labels.json", "examples.bin"):
        (own / name).write_bytes(b"of features")
    check_same(open_transcoders("me/my-transcoder"), dictionary(span=2))
    assert sorted(hub.files) == ["config.json", "features.bin", "labels.json", *(
        f"layer_{i}.safetensors" for i in range(4))]


def test_hub_circuit_tracer_folder(hub: Hub) -> None:
    d = dictionary(span=1, skip=True)
    folders.tracer_plt(hub.remote / "mwhanna/gemma-scope-2-270m-pt/transcoder_all/width_16k_l0_small_affine", d)
    check_same(open_transcoders("mwhanna/gemma-scope-2-270m-pt/transcoder_all/width_16k_l0_small_affine"), d)
    assert len(hub.files) == 5


def test_hub_paths_that_cannot_be_traced_download_nothing(hub: Hub) -> None:
    for path, reason in (("transcoder/width_16k_l0_small", "four depths only"),
                         ("resid_post_all/layer_5_width_16k_l0_small", "autoencoders of the residual stream"),
                         ("attn_out/width_16k_l0_small", "attention outputs"),
                         ("mlp_out/width_16k_l0_small", "do not read its input"),
                         ("crosscoder/layer_5_9_12_15_width_65k_l0_big", "crosscoder")):
        with pytest.raises(FormatError, match=reason):
            open_transcoders(f"google/gemma-scope-2-270m-pt/{path}")
    with pytest.raises(InputError, match=r"transcoder_all/width_16k_l0_small$"):
        open_transcoders("google/gemma-scope-2-270m-pt/transcoder_all/layer_5_width_16k_l0_small")
    assert hub.calls == []


def test_hub_path_without_a_transcoder(hub: Hub) -> None:
    folders.gemma_scope_plt(hub.remote / "google/gemma-scope-2-270m-pt", dictionary(span=1))
    for path in ("", "/transcoder_all", "/transcoder_all/width_1m_l0_small"):
        with pytest.raises(InputError, match="google/gemma-scope-2-270m-pt has no transcoder at"):
            open_transcoders(f"google/gemma-scope-2-270m-pt{path}")
    assert hub.files == []


def hub_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "503 Service Unavailable")
    return error


@pytest.mark.parametrize(("kind", "message"), [
    (GatedRepoError, "accept Google's Gemma terms, then log in"),
    (RepositoryNotFoundError, "there is no repository google/x on the hub"),
    (LocalEntryNotFoundError, "the hub cannot be reached")])
def test_hub_errors_say_what_to_do(kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise hub_error(kind)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ModelError, match=message):
        open_transcoders("google/x/clt/y")


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(ModelError, match="no disk space left for google/x"):
        open_transcoders("google/x/clt/y")


def test_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "ASSETS", tmp_path)
    with pytest.raises(InputError, match="no bundled transcoder"):
        circuits.open_transcoders("bundled")
    d = dictionary(span=2, skip=True)
    folders.native_folder(tmp_path / "gemma-3-270m-clt", d)
    opened = circuits.open_transcoders()
    check_same(opened, d)
    assert opened.name == "bundled"


def test_sources_that_are_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.safetensors").write_bytes(b"")
    for source, error, match in (("", InputError, "empty"), ("./gone", InputError, "no transcoder at"),
                                 ("bundle", InputError, "no transcoder at"), ("/gone/too", InputError, "no transcoder"),
                                 ("file.safetensors", InputError, "is a file: give the folder"),
                                 ("empty", FormatError, "holds no transcoder this reader knows")):
        with pytest.raises(error, match=match):
            open_transcoders(source)
    with pytest.raises(InputError, match="device is 'tpu'"):
        open_transcoders(folders.tracer_plt(tmp_path / "t", dictionary(span=1)), device="tpu")
