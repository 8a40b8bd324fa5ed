"""Any opened transcoders written in any format that can hold them, one layer in memory at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from circuits.checkpoints import native
from circuits.checkpoints.layouts import (
    CircuitTracerLayout,
    GemmaScope2Layout,
    Layout,
    NativeLayout,
    write_settings,
)
from circuits.errors import InputError

if TYPE_CHECKING:
    from circuits.transcoder import Transcoders

FORMATS = ("native", "circuit-tracer", "gemma-scope-2")


def export(transcoders: Transcoders, folder: str | Path, format: str = "native", *, storage: str = "float32",
           progress: Callable[[str, int, int], None] = lambda stage, done, total: None) -> Path:
    """Write ``transcoders`` into ``folder``, which appears when it is complete.

    Opened again, the set computes the same. What a format has no place for is left out where that changes no result
    (token labels, masked positions, training settings; data of features beside the weights) and refused otherwise. A
    decoder shorter than the format's is padded with zeros; decoder vectors that are zero are not stored natively.

    Args:
        folder: new, empty, or an earlier export of the same files, which is replaced. For ``gemma-scope-2`` the set
            lies under transcoder_all or clt in it, in a folder named after width and L0 ("unknown" when not measured).
        format: one of FORMATS.
        storage: of ``native``: ``float32``, ``bfloat16`` or ``int8``. The others are float32.
        progress: told (stage, layer, layers).

    Returns:
        What to open.

    Raises:
        InputError: unknown format or storage, a set the format cannot hold, a folder with other files in it or of the
            set itself, a place that cannot be written.
        FormatError: damaged weights.
    """
    layout = _layout(transcoders, format, storage)
    target = Path(os.path.realpath(Path(folder).expanduser()))
    _check_target(target, transcoders, layout)
    scratch = target.with_name(f".{target.name[:40]}.{token_hex(4)}.part")
    try:
        scratch.mkdir(parents=True)
        for layer in range(transcoders.n_layers):
            progress("writing", layer, transcoders.n_layers)
            layout.write(scratch, layer)
        write_settings(scratch, layout)
        _check_target(target, transcoders, layout)  # much may have happened in the meantime
        _put(scratch, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; name a folder in a place that can be "
                         "written") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    progress("writing", transcoders.n_layers, transcoders.n_layers)
    return target / layout.place


def _layout(transcoders: Transcoders, format: str, storage: str) -> Layout:
    """The layout to write, if it can hold the set.

    Raises:
        InputError: it cannot.
    """
    if format not in FORMATS:
        raise InputError(f"format is {format!r}: expected one of {', '.join(FORMATS)}")
    if storage not in native.STORAGE:
        raise InputError(f"storage is {storage!r}: expected one of {', '.join(native.STORAGE)}")
    if format != "native" and storage != "float32":
        raise InputError(f"{format} files are float32, storage is {storage}: leave it out, or write the native format")
    layers = range(transcoders.n_layers)
    for layer in layers:
        width = transcoders.d_transcoder[layer]
        if width != transcoders.d_transcoder[0]:
            raise InputError(f"layer {layer} of {transcoders.name} has {width} features, layer 0 has "
                             f"{transcoders.d_transcoder[0]}: {format} needs the same number in every layer")
    ks = {transcoders.top_k(layer) for layer in layers}
    if ks != {None} and format != "native":
        raise InputError(f"{transcoders.name} is TopK, and programs that read {format} would run it as ReLU: write "
                         "the native format")
    if len(ks) > 1:
        raise InputError(f"the layers of {transcoders.name} differ in k ({', '.join(map(str, ks))}): the native "
                         "format has one k for all")
    if format == "native":
        return NativeLayout(transcoders, storage)
    with_skip = any(transcoders.skip(layer) is not None for layer in layers)
    if format == "gemma-scope-2":
        return GemmaScope2Layout(transcoders, with_skip)
    with_threshold = any(transcoders.threshold(layer) is not None for layer in layers)
    return CircuitTracerLayout(transcoders, with_skip, with_threshold)


def _check_target(target: Path, transcoders: Transcoders, layout: Layout) -> None:
    """Refuse to write over the set itself, or over anything but an earlier export of the same files."""
    if transcoders.folder is not None:
        source = Path(os.path.realpath(transcoders.folder))
        if source == target or target in source.parents:
            raise InputError(f"{target} is where {transcoders.name} lies: name another folder")
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file: name a folder")
    names = {*layout.settings(), *(name for i in range(transcoders.n_layers) for name in layout.names(i))}
    folders = {str(parent) for name in names for parent in Path(name).parents}

    def refuse(error: OSError) -> None:
        raise InputError(f"{target} cannot be looked into ({error.strerror or error}): name another folder")

    present, weights = 0, False
    for place, inside, files in os.walk(target, onerror=refuse):
        for name in (*inside, *files):
            relative = Path(place, name).relative_to(target)
            if name in inside and str(relative) in folders:
                continue
            if name in inside or relative.as_posix() not in names:
                raise InputError(f"{target} holds {relative}, which this export does not write: name a new folder, or "
                                 "empty this one")
        present += len(files)
        weights |= any(name.endswith(".safetensors") for name in files)
    if present and not weights:
        raise InputError(f"{target} holds settings without weights, not an earlier export: name a new folder, or empty "
                         "this one")


def _put(scratch: Path, target: Path) -> None:
    """The finished folder in its place; what was there is gone only then."""
    if not target.is_dir():
        scratch.rename(target)
        return
    old = target.with_name(f".{target.name[:40]}.{token_hex(4)}.old")
    target.rename(old)
    try:
        scratch.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
