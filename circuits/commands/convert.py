"""``circuits convert``: transcoders of any format written in another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import out, progress


def convert(
    source: Annotated[str, typer.Argument(help="'bundled', hub path or folder.")],
    output: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or an earlier conversion of this set.")],
    to: Annotated[str, typer.Option(help="native, circuit-tracer or gemma-scope-2.")] = "native",
    storage: Annotated[str, typer.Option(help="With native: float32, bfloat16 or int8.")] = "float32",
) -> None:
    """Write transcoders in another format, for another program or another precision."""
    from circuits.checkpoints.export import export
    from circuits.transcoder import open_transcoders

    with progress() as report:
        opened = open_transcoders(source)
        place = export(opened, output, to, storage=storage, progress=report)
    files = [path for path in output.expanduser().rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    widest = max(path.stat().st_size for path in files)
    span = max(len(opened.output_layers(layer)) for layer in range(opened.n_layers))
    out.print(f"wrote {place}: {opened.kind.upper()} of {opened.n_layers} layers, {opened.d_transcoder[0]} features "
              f"each, span {span}, {storage}, {size / 1e6:.1f} MB in {len(files)} files, the largest "
              f"{widest / 1e6:.1f} MB", markup=False, highlight=False, soft_wrap=True)
