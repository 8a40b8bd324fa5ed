"""Transcoder files: one module per weight format, all opened into :class:`~circuits.checkpoints.layer.Checkpoint`."""

from __future__ import annotations

from pathlib import Path

from circuits.checkpoints import circuit_tracer, gemma_scope2, native
from circuits.checkpoints.layer import Checkpoint
from circuits.errors import FormatError, InputError


def read(path: Path) -> Checkpoint | None:
    """Open what is at ``path``, whatever its format: a folder, or a variant (FORMATS) of the layer folders beside it.

    Returns:
        None where there is neither.

    Raises:
        InputError: one layer's folder, or a folder of several per-layer sets.
        FormatError: of no known format, or damaged.
    """
    if native.matches(path):
        return native.open_folder(path)
    if circuit_tracer.matches(path):
        return circuit_tracer.open_folder(path)
    if gemma_scope2.is_clt(path):
        return gemma_scope2.open_clt(path)
    if gemma_scope2.variants(path):
        return gemma_scope2.open_plt(path)
    if path.name in gemma_scope2.variants(path.parent):  # even if there is such a folder: it may hold feature data
        return gemma_scope2.open_plt(path.parent, path.name)
    if not path.is_dir():
        return None
    if gemma_scope2.is_layer(path):
        raise InputError(gemma_scope2.one_layer_message(path))
    raise FormatError(f"{path} holds no transcoder this reader knows: expected config.json of {native.FORMAT}, "
                      "circuit-tracer's config.yaml, or Gemma Scope 2's params_layer_{i}.safetensors or "
                      "layer_{i}_width_... folders")


def hub_patterns(path: str) -> list[str]:
    """All that ``path`` inside a hub repository may need, in any format: parameters and settings only."""
    patterns = [*native.hub_patterns(path), *circuit_tracer.hub_patterns(path), *gemma_scope2.hub_patterns(path)]
    return list(dict.fromkeys(patterns))
