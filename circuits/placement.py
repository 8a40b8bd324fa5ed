"""Where a model's weights lie: one device, or layers spread over several, over CPU memory and disk (accelerate)."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from typing import Any

import torch
from torch import Tensor

from circuits.errors import InputError, ModelError
from circuits.hub import first_line

DEVICE_MAPS = ("auto", "disk")


def resolve_device(device: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` as a torch device that exists here.

    Raises:
        InputError: a device of another form, or one this machine lacks.
    """
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError:
        where = None
    if where is None or where.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device is {device!r}: expected auto, cpu, cuda, cuda:N or mps")
    missing = (where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count()) or (
        where.type == "mps" and not has_mps)
    if missing:
        raise InputError(f"device {device} is not on this machine: use --device auto")
    return where


def place(model: Any, where: torch.device, device_map: str | dict[str, Any] | None, name: str) -> Any:
    """The model on ``where``, or with its layers spread as ``device_map`` says.

    Args:
        device_map: ``auto``: layers on the GPUs in order while they fit, then in CPU memory, then on disk; ``disk``:
            every layer on disk; or a device (``cuda:1``, ``cpu``, ``disk``) for each ``model.layers.N``. Layers that
            are not on a GPU are brought to ``where`` one at a time; embeddings and the final norm stay there.

    Raises:
        InputError: an unknown map.
        ModelError: it does not fit, or the driver does not work.
    """
    if device_map is not None:
        return _spread(model, where, device_map, name)
    try:
        return model.to(where)
    except RuntimeError as error:  # out of memory, or a driver that does not work
        raise ModelError(f"{name} cannot be moved to {where} ({first_line(error)}): use --device cpu, --device-map "
                         "auto, a smaller model or --model-dtype bfloat16") from error


def weight(module: Any, where: torch.device | None = None) -> Tensor:
    """The weight of a Linear or norm as float32 on ``where``, wherever it lies; a view where nothing must move."""
    if getattr(module, "_hf_hook", None) is None:
        return module.weight.detach().to(where or module.weight.device).float()
    from accelerate.utils import align_module_device

    with align_module_device(module):
        return module.weight.detach().to(where or module.weight.device).float().clone()


def _spread(model: Any, where: torch.device, device_map: str | dict[str, Any], name: str) -> Any:
    try:
        from accelerate import dispatch_model
    except ImportError as error:
        raise InputError("--device-map needs accelerate: pip install 'gemma-circuits[spread]'") from error
    layers = _layer_devices(model, where, device_map)
    around = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    full = {**{part: _device_key(where) for part in around},
            **{f"model.layers.{i}": device for i, device in enumerate(layers)}}
    folder = tempfile.mkdtemp(prefix="gemma-circuits-") if "disk" in layers else None
    try:
        placed = dispatch_model(model, full, main_device=_device_key(where), offload_dir=folder, force_hooks=True)
    except (RuntimeError, OSError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True) if folder else None
        raise ModelError(f"{name} cannot be spread over {', '.join(sorted(set(map(str, layers))))} "
                         f"({first_line(error)}): use --device cpu, a smaller model or --model-dtype bfloat16"
                         ) from error
    if folder:
        weakref.finalize(placed, shutil.rmtree, folder, ignore_errors=True)
    return placed


def _layer_devices(model: Any, where: torch.device, device_map: str | dict[str, Any]) -> list[Any]:
    """Device of each layer: GPU index, ``cpu`` or ``disk``."""
    n = len(model.model.layers)
    if device_map == "disk":
        return ["disk"] * n
    if isinstance(device_map, dict):
        wanted = {f"model.layers.{i}" for i in range(n)}
        if set(device_map) != wanted:
            raise InputError(f"device_map names {len(device_map)} modules: expected one device for each of "
                             f"model.layers.0 to model.layers.{n - 1}")
        return [device_map[f"model.layers.{i}"] for i in range(n)]
    if device_map != "auto":
        raise InputError(f"device map is {device_map!r}: expected one of {', '.join(DEVICE_MAPS)}")
    from accelerate.utils import get_max_memory

    size = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    rest = sum(p.numel() * p.element_size() for p in model.parameters()) - n * size
    free = dict(get_max_memory())
    first = _device_key(where)
    devices = [first] + [d for d in free if d not in (first, "cpu")] + [d for d in ("cpu",) if d != first]
    chosen: list[Any] = []
    for device in devices:
        # a tenth stays free for activations on a device that has nothing but layers, half where the trace works
        room = free.get(device, 0) * (0.5 if device == first else 0.9) - (rest if device == first else 0)
        chosen += [device] * min(n - len(chosen), max(0, int(room // size)))
    return chosen + ["disk"] * (n - len(chosen))


def _device_key(where: torch.device) -> Any:
    """How accelerate names a device: an index for GPUs."""
    return (where.index or 0) if where.type == "cuda" else str(where)
