"""``circuits convert``: any format in, any format out, one line."""

from pathlib import Path

import pytest
import torch
import transcoder_folders as folders
import typer
from transcoder_folders import dictionary
from typer.testing import CliRunner

from circuits.commands.convert import convert
from circuits.errors import InputError
from circuits.transcoder import open_transcoders

app = typer.Typer()
app.command()(convert)


def test_convert_writes_and_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    d = dictionary(span=2, skip=True)
    source = folders.native_folder(tmp_path / "in", d)
    done = CliRunner().invoke(app, [source, "scope", "--to", "gemma-scope-2"], catch_exceptions=False)
    assert done.exit_code == 0
    place = "scope/clt/width_96_l0_unknown_affine"
    size = sum(path.stat().st_size for path in Path("scope").rglob("*") if path.is_file())
    assert done.stdout.count("\n") == 1
    assert f"{place}: CLT of 4 layers, 24 features each, span 2, float32, {size / 1e6:.1f} MB in 5 files" in done.stdout
    assert torch.equal(open_transcoders(place).decoder_rows(0, torch.tensor([3]))[:, :2], d.w_dec[0][[3]])
    done = CliRunner().invoke(app, [place, "small", "--storage", "int8"], catch_exceptions=False)
    assert "int8" in done.stdout
    assert open_transcoders("small").n_layers == 4


def test_convert_refuses_before_it_writes(tmp_path: Path) -> None:
    source = folders.native_folder(tmp_path / "in", dictionary(span=2))
    for arguments, match in (([source, str(tmp_path / "out"), "--to", "npz"], "format is 'npz'"),
                             ([source, source], "name another folder"),
                             ([str(tmp_path / "gone"), str(tmp_path / "out")], "no transcoder at")):
        with pytest.raises(InputError, match=match):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
