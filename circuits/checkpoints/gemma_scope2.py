"""Gemma Scope 2's files: per-layer transcoders and cross-layer transcoders, with and without the affine skip.

Layout (https://huggingface.co/google/gemma-scope-2-270m-pt and its siblings):
  transcoder_all/layer_{L}_width_{W}_l0_{small,big}[_affine]/params.safetensors: w_enc (D, F), w_dec (F, D)
  clt/width_{W}_l0_{medium,big}[_affine]/params_layer_{i}.safetensors: w_dec (F, L, D), indexed by absolute layer
both with b_enc (F,), b_dec (D,), threshold (F,), optional affine_skip_connection (D, D; y += x @ skip), float32.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from circuits.checkpoints.layer import (
    Checkpoint,
    DenseLayer,
    Layer,
    require_contiguous,
    require_distinct,
    require_equal_width,
)
from circuits.checkpoints.weight_file import WeightFile, read_json
from circuits.errors import FormatError, InputError

HOOK_IN = "pre_feedforward_layernorm.output"
HOOK_OUT = "post_feedforward_layernorm.output"
_LAYER_FOLDER = re.compile(r"layer_(\d+)_(width_.+)")
_SHARD = re.compile(r"params_layer_(\d+)\.safetensors")
_HOOK = re.compile(r"layers\.(\d+)\.(.+)$")
_REFUSED = {
    "transcoder": "the transcoder family covers four depths only and a trace needs every layer: take transcoder_all",
    "crosscoder": "a crosscoder has no per-layer encoder to trace through: take transcoder_all or clt",
    "resid_post": "resid_post are autoencoders of the residual stream, they replace no MLP: take transcoder_all or clt",
    "mlp_out": "mlp_out are autoencoders of the MLP's output, they do not read its input: take transcoder_all or clt",
    "attn_out": "attn_out are autoencoders of attention outputs, they replace no MLP: take transcoder_all or clt",
}


def refuse_family(path: str | Path, local: bool = False) -> None:
    """Refuse a path inside a Gemma Scope 2 repository, or a folder, whose family cannot stand in for every MLP.

    A local folder may be called ``transcoder`` for other reasons; there the missing layers decide.

    Raises:
        FormatError: with the reason.
    """
    for part in Path(path).parts[-2:] if local else Path(path).parts:
        reason = _REFUSED.get(part.removesuffix("_all"))
        if reason and part != "transcoder_all" and not (local and part == "transcoder"):
            raise FormatError(f"{path} cannot be traced: {reason}")
    if re.search(r"layer_\d+(_\d+)+_width", str(path)):
        raise FormatError(f"{path} cannot be traced: {_REFUSED['crosscoder']}")


def one_layer_message(path: str | Path) -> str:
    """What to tell someone who names the folder of one layer."""
    variant = re.sub(r"^layer_\d+_", "", Path(path).name)
    return f"{path} is one layer of a per-layer set: name the set, {Path(path).parent / variant}"


def hub_patterns(path: str) -> list[str]:
    """What to download for ``path`` inside a repository: parameters and settings, never examples."""
    prefix = f"{path}/" if path else ""
    wanted = [f"{prefix}config.json"]
    wanted += [f"{prefix}params_layer_{digits}.safetensors" for digits in ("[0-9]", "[0-9][0-9]")]
    parent, _, variant = path.rpartition("/")
    if variant.startswith("width_"):
        for digits in ("[0-9]", "[0-9][0-9]"):
            folder = f"{parent}/layer_{digits}_{variant}" if parent else f"layer_{digits}_{variant}"
            wanted += [f"{folder}/params.safetensors", f"{folder}/config.json"]
    return wanted


def is_clt(folder: Path) -> bool:
    """Whether ``folder`` holds a CLT's shards."""
    return folder.is_dir() and any(_SHARD.fullmatch(entry.name) for entry in folder.iterdir())


def is_layer(folder: Path) -> bool:
    """Whether ``folder`` is that of one layer of a per-layer set."""
    return (folder / "params.safetensors").is_file()


def variants(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """Per-layer sets in ``folder``, by variant: (layer, folder) of each layer folder in it."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (match := _LAYER_FOLDER.fullmatch(entry.name)) and entry.is_dir():
            found.setdefault(match[2], []).append((int(match[1]), entry))
    return found


def open_plt(folder: Path, variant: str | None = None) -> Checkpoint:
    """Open the per-layer set ``variant`` of a folder of layer folders; the only one there without ``variant``.

    Raises:
        InputError: no such variant, or several and none named.
        FormatError: missing, duplicate, damaged or foreign layers.
    """
    refuse_family(folder, local=True)
    found = variants(folder)
    if variant is None and len(found) > 1:
        raise InputError(f"{folder} holds {len(found)} per-layer sets: name one, {folder}/X with X one of "
                         f"{', '.join(found)}")
    variant = variant or next(iter(found))
    if variant not in found:
        raise InputError(f"{folder} has no layer folders of {variant}: it has {', '.join(found)}")
    by_layer: dict[int, Path] = {}
    for index, entry in found[variant]:
        if index in by_layer:
            raise FormatError(f"layer {index} is there twice, {by_layer[index].name} and {entry.name} in {folder}: "
                              "delete the wrong one")
        by_layer[index] = entry
    hint = ". Gemma Scope 2's transcoder family has four depths only; transcoder_all has every layer"
    layers: list[Layer] = []
    names: set[str] = set()
    for index, entry in enumerate(require_contiguous(by_layer, folder, hint)):
        layers.append(open_plt_layer(entry / "params.safetensors"))
        config = _settings(entry)
        _check_settings(config, entry, index, layers[-1], affine_in_name=variant.endswith("_affine"))
        names |= {str(config["model_name"])} if config.get("model_name") else set()
    if len(names) > 1:
        raise FormatError(f"the layers in {folder} are of different models, {' and '.join(sorted(names))}: copy the "
                          "set again")
    require_equal_width(layers, folder)
    require_distinct(layers)
    return Checkpoint("plt", layers, model_name=names.pop() if names else _model_from_path(folder),
                      folder=folder / variant)


def open_clt(folder: Path) -> Checkpoint:
    """Open a CLT's folder.

    Raises:
        FormatError: missing, duplicate, damaged or foreign shards, settings that contradict them.
    """
    refuse_family(folder, local=True)
    shards: dict[int, Path] = {}
    for entry in sorted(folder.iterdir()):
        if match := _SHARD.fullmatch(entry.name):
            if int(match[1]) in shards:
                raise FormatError(f"layer {int(match[1])} is there twice, {shards[int(match[1])].name} and "
                                  f"{entry.name} in {folder}: delete the wrong one")
            shards[int(match[1])] = entry
    checkpoint = open_clt_shards(require_contiguous(shards, folder))
    config = _settings(folder)
    for layer in checkpoint.layers:
        _check_settings(config, folder, None, layer, affine_in_name=folder.name.endswith("_affine"))
    return Checkpoint("clt", checkpoint.layers, str(config.get("model_name") or _model_from_path(folder)),
                      folder=folder)


def open_plt_layer(path: Path) -> DenseLayer:
    """Open one layer's ``params.safetensors``."""
    file = WeightFile(path)
    return DenseLayer.open(file, _names(file), encoder_is_dxf=True)


def open_clt_shards(paths: list[Path]) -> Checkpoint:
    """Open the shards of a CLT, one per layer, in order; the decoder rectangle says how many there must be.

    Raises:
        FormatError: another number of shards than of layers, repeats, damaged or foreign shards.
    """
    layers: list[Layer] = []
    for index, path in enumerate(paths):
        file = WeightFile(path)
        _, n_layers, _ = file.expect("w_dec", (None, None, None))
        if n_layers != len(paths):
            what = "the last one is missing" if n_layers > len(paths) else "there is one too many, or a repeated one"
            raise FormatError(f"{path.parent} has {len(paths)} layer files, but w_dec in {path.name} writes to "
                              f"{n_layers} layers: {what}, copy or download the set again")
        layers.append(DenseLayer.open(file, _names(file), rectangle=(index, n_layers), encoder_is_dxf=True))
    require_equal_width(layers, paths[0].parent)
    require_distinct(layers)
    return Checkpoint("clt", layers)


def _names(file: WeightFile) -> dict[str, str]:
    names = {name: name for name in ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")}
    return names | ({"skip": "affine_skip_connection"} if "affine_skip_connection" in file.shapes else {})


def _settings(folder: Path) -> dict[str, Any]:
    """``config.json``, which some releases leave out."""
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _check_settings(config: dict[str, Any], folder: Path, index: int | None, layer: Layer,
                    affine_in_name: bool) -> None:
    """Settings and folder name against what the layer holds; ``index`` is None for the one config of a CLT."""
    if "crosscoder" in str(config.get("type", "")).lower():
        raise FormatError(f"{folder} cannot be traced: {_REFUSED['crosscoder']}")
    for key, hook in (("hf_hook_point_in", HOOK_IN), ("hf_hook_point_out", HOOK_OUT)):
        points = config.get(key) or []
        for point in [points] if isinstance(points, str) else points:
            _check_hook(str(point), key, hook, folder, index)
    architecture = config.get("architecture")
    if architecture is not None and str(architecture).lower().replace("_", "") != "jumprelu":
        raise FormatError(f"{folder}/config.json says architecture {architecture}: this reader knows jump_relu only")
    width = config.get("width")
    if index is not None and isinstance(width, int) and width != layer.n_features:
        raise FormatError(f"{folder}/config.json says width {width}, {layer.path.name} has {layer.n_features}: the two "
                          "are of different sets, download them again")
    says, affine = "config.json", config.get("affine_connection")
    if affine is None:
        says, affine = "the folder's name", affine_in_name
    has_skip = layer.skip() is not None
    if bool(affine) != has_skip:
        raise FormatError(f"{says} of {folder} says {'an' if affine else 'no'} affine skip, {layer.path.name} has "
                          f"{'one' if has_skip else 'none'}: the two are of different sets, download them again")


def _check_hook(point: str, key: str, hook: str, folder: Path, index: int | None) -> None:
    match = _HOOK.search(point)
    if (match[2] if match else point) != hook:
        raise FormatError(f"{folder}/config.json says {key} {point}: a transcoder must read {HOOK_IN} and write "
                          f"{HOOK_OUT}; this is a dictionary of another place, take transcoder_all or clt")
    if match and index is not None and int(match[1]) != index:
        raise FormatError(f"{folder} is named layer {index}, its config.json says layer {match[1]} ({key} {point}): "
                          "the folder was renamed")


def _model_from_path(folder: Path) -> str:
    """The Gemma 3 checkpoint that the repository's name in the path stands for; empty when the path has none."""
    found = re.findall(r"gemma-scope-2-(\d+[mb])-(pt|it)", str(folder))
    if not found:
        return ""
    size, kind = found[-1]
    return f"google/gemma-3-{size}" if (size, kind) == ("270m", "pt") else f"google/gemma-3-{size}-{kind}"
