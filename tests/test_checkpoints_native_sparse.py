"""The native format with only some of the decoder vectors: what is read, how much of the file, and what is refused."""

import struct
from pathlib import Path

import pytest
import torch
import transcoder_folders as folders
from safetensors.torch import load_file
from test_checkpoints_native import change_tensor, layer_tensors, refused
from torch import Tensor
from transcoder_folders import Dictionary, dictionary

from circuits.checkpoints import native
from circuits.errors import FormatError, InputError
from circuits.transcoder import open_transcoders

STORED_ERROR = {"float32": 0.0, "bfloat16": 2 ** -8, "int8": 0.501 / 127}


def some_kept(d: Dictionary, seed: int = 0) -> list[Tensor]:
    """About half of the vectors, features without any and features with all among them."""
    generator = torch.Generator().manual_seed(seed)
    keep = [torch.rand(w.shape[:2], generator=generator) < 0.5 for w in d.w_dec]
    for mask in keep:
        mask[0], mask[7], mask[23] = False, True, False
    return keep


@pytest.mark.parametrize("storage", native.STORAGE)
def test_what_is_not_kept_reads_as_zero(storage: str, tmp_path: Path) -> None:
    d = dictionary(span=3, skip=True)
    keep = some_kept(d)
    opened = open_transcoders(folders.native_folder(tmp_path, d, storage=storage, keep=keep))
    for i in range(4):
        assert opened.output_layers(i) == range(i, min(4, i + 3))
        for picked in (torch.arange(24), torch.tensor([23, 7, 0, 7, 3]), torch.tensor([0]),
                       torch.tensor([], dtype=torch.int64)):
            want = d.w_dec[i][picked] * keep[i][picked, :, None]
            got = opened.decoder_rows(i, picked)
            assert got.dtype == torch.float32
            assert got.shape == want.shape
            assert bool(((got - want).abs() <= STORED_ERROR[storage] * want.abs().amax(-1, keepdim=True)).all())
            assert torch.equal(opened.decoder_outputs(i, picked), keep[i][picked])
        skip = opened.skip(i)
        assert skip is not None  # the other tensors are read as before
        torch.testing.assert_close(skip, d.skip[i] if d.skip else None, atol=0.03, rtol=0)


def test_only_the_kept_vectors_take_space(tmp_path: Path) -> None:
    d = dictionary(span=3)
    keep = some_kept(d)
    folders.native_folder(tmp_path, d, storage="int8", keep=keep)
    stored = load_file(tmp_path / "layer_1.safetensors")
    kept = int(keep[1].sum())
    assert {name: (t.dtype, tuple(t.shape)) for name, t in stored.items() if name.startswith("W_dec")} == {
        "W_dec_kept": (torch.int8, (kept, 8)), "W_dec_kept_scale": (torch.float32, (kept,)),
        "W_dec_start": (torch.int64, (25,)), "W_dec_output": (torch.uint8, (kept,))}
    assert stored["W_dec_start"].tolist() == [0, *keep[1].sum(1).cumsum(0).tolist()]


def test_a_layer_may_keep_nothing(tmp_path: Path) -> None:
    d = dictionary(span=2)
    keep = [torch.zeros_like(mask) for mask in some_kept(d)]
    opened = open_transcoders(folders.native_folder(tmp_path, d, storage="int8", keep=keep))
    assert opened.decoder_rows(0, torch.arange(24)).equal(torch.zeros(24, 2, 8))
    assert not opened.decoder_outputs(0, torch.arange(24)).any()


def test_offsets_may_be_int32(tmp_path: Path) -> None:
    d = dictionary(span=3)
    keep = some_kept(d)
    source = folders.native_folder(tmp_path, d, keep=keep)
    path = tmp_path / "layer_0.safetensors"
    change_tensor(path, W_dec_start=load_file(path)["W_dec_start"].int())
    assert open_transcoders(source).decoder_rows(0, torch.arange(24)).equal(d.w_dec[0] * keep[0][..., None])


def test_reading_features_reads_their_vectors_only(tmp_path: Path) -> None:
    if not Path("/proc/self/io").exists():
        pytest.skip("needs /proc")
    d = dictionary(span=2, n_layers=2, features=3000, d_model=256)
    keep = [torch.ones(w.shape[:2], dtype=torch.bool) for w in d.w_dec]
    keep[0][::2, 1] = False
    opened = open_transcoders(folders.native_folder(tmp_path, d, keep=keep))
    picked = torch.tensor([2999, 4, 1700, 1701])

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

    before = bytes_read()
    rows = opened.decoder_rows(0, picked)
    # six vectors of a kilobyte, and headers: two features keep one vector, two keep both
    assert bytes_read() - before < 6 * 1024 + 20_000
    assert rows.equal(d.w_dec[0][picked] * keep[0][picked, :, None])
    with (tmp_path / "layer_0.safetensors").open("r+b") as file:
        raw = file.read()
        file.seek(raw.index(d.w_dec[0][1700, 0].numpy().tobytes()))
        file.write(struct.pack("<f", float("nan")))
    assert opened.decoder_rows(0, torch.tensor([1699, 1701])).isfinite().all()
    with pytest.raises(FormatError, match=r"layer_0\.safetensors has NaN"):
        opened.decoder_rows(0, torch.tensor([1700]))


def starts(*head: int) -> Tensor:
    """Offsets that begin and end as the file's, 30 vectors, with ``head`` after the first."""
    return torch.tensor([0, *head, *[30] * (24 - len(head))])


@pytest.mark.parametrize(("changes", "match"), [
    ({"W_dec_start": starts(5, 4)}, "W_dec_start .* must rise from 0 to the 30 entries"),
    ({"W_dec_start": starts(31)}, "must rise from 0 to the 30"),
    ({"W_dec_start": starts(2 ** 63 - 1, -2 ** 63, -1)}, "must rise from 0 to the 30"),
    ({"W_dec_start": starts() + 1}, "must rise from 0"),
    ({"W_dec_start": torch.tensor([*[0] * 24, 29])}, "must rise from 0 to the 30"),
    ({"W_dec_start": torch.tensor([0, 30])}, r"W_dec_start .* has shape \[2\], expected \[25\]"),
    ({"W_dec_start": starts().float()}, "W_dec_start .* dtype F32, expected one of I64, I32"),
    ({"W_dec_start": None}, "has no tensor W_dec_start"),
    ({"W_dec_output": torch.full((30,), 2, dtype=torch.uint8)}, "output layers from 0 to 1"),
    ({"W_dec_output": torch.full((30,), 255, dtype=torch.uint8)}, "output layers from 0 to 1"),
    ({"W_dec_output": torch.ones(30, dtype=torch.uint8)}, "ascending within a feature"),
    ({"W_dec_output": torch.tensor([1, 0] * 15, dtype=torch.uint8)}, "ascending within a feature"),
    ({"W_dec_output": torch.zeros(30, dtype=torch.int8)}, "W_dec_output .* dtype I8, expected one of U8"),
    ({"W_dec_output": torch.zeros(29, dtype=torch.uint8)}, "must rise from 0 to the 29 entries"),
    ({"W_dec_output": None}, "has no tensor W_dec_output"),
    ({"W_dec_kept": torch.zeros(29, 8, dtype=torch.int8)}, r"W_dec_kept .* shape \[29, 8\], expected \[30, 8\]"),
    ({"W_dec_kept": torch.zeros(30, 8)}, "has W_dec_kept_scale, but W_dec_kept is F32"),
    ({"W_dec_kept_scale": None}, "has no tensor W_dec_kept_scale"),
    ({"W_dec_kept_scale": torch.full((30,), float("inf"))}, "W_dec_kept_scale in .* has 30 NaN or infinite"),
    ({"W_dec": torch.zeros(24, 2, 8)}, "has both W_dec and W_dec_kept"),
    ({"W_dec_kept": None}, "has no tensor W_dec:")])
def test_damaged_offsets(changes: dict[str, Tensor | None], match: str, tmp_path: Path) -> None:
    d = dictionary(span=2, n_layers=3)
    keep = [torch.zeros(w.shape[:2], dtype=torch.bool) for w in d.w_dec]
    for mask in keep:
        mask[:15] = True
    assert int(keep[1].sum()) == 30
    folders.native_folder(tmp_path, d, storage="int8", keep=keep)
    open_transcoders(tmp_path)
    change_tensor(tmp_path / "layer_1.safetensors", **changes)
    refused(tmp_path, match)


@pytest.mark.parametrize("keep", [torch.ones(24, 2), torch.ones(24, 1, dtype=torch.bool),
                                  torch.ones(24, dtype=torch.bool)])
def test_the_writer_wants_one_bit_a_vector(keep: Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"W_dec_keep of layer 0 is .* expected torch.bool of shape \[24, 2\]"):
        native.write_layer(tmp_path, 0, layer_tensors() | {"W_dec_keep": keep})
    assert list(tmp_path.iterdir()) == []


def test_the_writer_refuses_a_span_that_bytes_cannot_count(tmp_path: Path) -> None:
    tensors = layer_tensors() | {"W_dec": torch.zeros(24, 257, 8)}
    with pytest.raises(InputError, match="S at most 256"):
        native.write_layer(tmp_path, 0, tensors)
