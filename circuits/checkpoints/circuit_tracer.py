"""circuit-tracer's files: a folder or hub repository with ``config.yaml`` (https://github.com/safety-research/circuit-tracer).

Per-layer (model_kind transcoder_set): layer_{i}.safetensors with W_enc (F, D), W_dec (F, D), b_enc, b_dec, optional
activation_function.threshold, W_skip (D, D; y += x @ W_skip.T).
Cross-layer (cross_layer_transcoder): W_enc_{i}.safetensors with W_enc_{i} (F, D), b_enc_{i}, b_dec_{i}, optional
threshold_{i}; W_dec_{i}.safetensors with W_dec_{i} (F, L - i, D).
``transcoders`` in config.yaml may list one file per layer, hf://org/repo/path?revision=R, in this format or in
Gemma Scope 2's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

from circuits.checkpoints import gemma_scope2
from circuits.checkpoints.layer import (
    Checkpoint,
    DenseLayer,
    Layer,
    require_contiguous,
    require_distinct,
    require_equal_width,
)
from circuits.checkpoints.weight_file import WeightFile
from circuits.errors import FormatError
from circuits.hub import snapshot

# what these names mean on Gemma 3 in circuit-tracer's own mapping (FORMATS, circuit-tracer)
HOOK_IN = "mlp.hook_in"
HOOK_OUT = "hook_mlp_out"
KINDS = {"transcoder_set": "plt", "cross_layer_transcoder": "clt"}


def hub_patterns(path: str) -> list[str]:
    """What to download for ``path`` inside a repository."""
    prefix = f"{path}/" if path else ""
    # not layer_*: the star would cross folders and fetch Gemma Scope 2's examples
    return [f"{prefix}config.yaml"] + [f"{prefix}{stem}_{digits}.safetensors" for stem in ("layer", "W_enc", "W_dec")
                                       for digits in ("[0-9]", "[0-9][0-9]")]


def matches(folder: Path) -> bool:
    """Whether ``folder`` is of this format."""
    return (folder / "config.yaml").is_file()


def open_folder(folder: Path) -> Checkpoint:
    """Open a folder with ``config.yaml``.

    Raises:
        FormatError: settings this engine cannot honour, missing, repeated, damaged or foreign files.
        ModelError: listed files that cannot be downloaded.
    """
    config = _read_config(folder / "config.yaml")
    kind = KINDS[config["model_kind"]]
    listed = config.get("transcoders")
    if listed is not None:
        checkpoint = _open_listed(_resolve(listed, folder), kind, config)
    elif kind == "plt":
        files = _numbered(folder, "layer")
        checkpoint = Checkpoint("plt", [_plt_layer(path, config) for path in require_contiguous(files, folder)])
    else:
        checkpoint = _open_clt(folder, config)
    require_equal_width(checkpoint.layers, folder)
    require_distinct(checkpoint.layers)
    return Checkpoint(kind, checkpoint.layers, model_name=str(config.get("model_name") or ""), folder=folder)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FormatError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]}): download or copy it again"
                          ) from error
    if not isinstance(config, dict):
        raise FormatError(f"{path} holds no settings: expected model_kind, feature_input_hook, feature_output_hook")
    if config.get("model_kind") not in KINDS:
        raise FormatError(f"{path} says model_kind {config.get('model_kind')}: expected {' or '.join(KINDS)}")
    for key, hook, place in (("feature_input_hook", HOOK_IN, gemma_scope2.HOOK_IN),
                             ("feature_output_hook", HOOK_OUT, gemma_scope2.HOOK_OUT)):
        if config.get(key) != hook:
            raise FormatError(f"{path} says {key} {config.get(key)}: on Gemma 3 this engine traces {hook} "
                              f"({place}) only; transcoders of another place would give wrong graphs")
    return config


def _numbered(folder: Path, stem: str) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for entry in sorted(folder.iterdir()):
        if match := re.fullmatch(rf"{stem}_(\d+)\.safetensors", entry.name):
            if int(match[1]) in found:
                raise FormatError(f"layer {int(match[1])} is there twice, {found[int(match[1])].name} and {entry.name} "
                                  f"in {folder}: delete the wrong one")
            found[int(match[1])] = entry
    return found


def _resolve(listed: Any, folder: Path) -> list[Path]:
    """Local files of a per-layer list, downloading the hf:// ones."""
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, str) for entry in listed):
        raise FormatError(f"transcoders in {folder}/config.yaml must be a list of files, one per layer")
    listed = list(listed)
    while len(listed) > 1 and listed[-1] == listed[-2]:  # published lists repeat the last shard; see FORMATS
        listed.pop()
    if len(set(listed)) != len(listed):
        twice = next(entry for entry in listed if listed.count(entry) > 1)
        raise FormatError(f"transcoders in {folder}/config.yaml names {twice} for several layers: give each its own")
    remote = {entry: _parse_uri(entry, folder) for entry in listed if entry.startswith("hf://")}
    wanted: dict[tuple[str, str | None], list[str]] = {}
    for repo, path, revision in remote.values():
        wanted.setdefault((repo, revision), []).append(path)
    roots = {key: snapshot(key[0], paths, revision=key[1]) for key, paths in wanted.items()}
    files = []
    for entry in listed:
        if entry in remote:
            repo, path, revision = remote[entry]
            files.append(roots[repo, revision] / path)
        else:
            files.append(folder / entry)
    return files


def _parse_uri(uri: str, folder: Path) -> tuple[str, str, str | None]:
    parsed = urlparse(uri)
    name, _, path = parsed.path.lstrip("/").partition("/")
    if not (parsed.netloc and name and path):
        raise FormatError(f"{uri} in {folder}/config.yaml: expected hf://org/repo/path/to/file.safetensors")
    return f"{parsed.netloc}/{name}", path, parse_qs(parsed.query).get("revision", [None])[0]


def _open_listed(paths: list[Path], kind: str, config: dict[str, Any]) -> Checkpoint:
    for path in paths:
        if path.suffix != ".safetensors":
            raise FormatError(f"{path} is listed in config.yaml: only safetensors files can be read (npz transcoders "
                              "are of Gemma 2)")
    if kind == "clt":
        return gemma_scope2.open_clt_shards(paths)
    return Checkpoint("plt", [_plt_layer(path, config) for path in paths])


def _activation(file: WeightFile, threshold: str, config: dict[str, Any]) -> tuple[dict[str, str], int | None]:
    """The threshold's name where the activation has one, and TopK's k."""
    kind = str(config.get("activation") or "").lower().replace("_", "")
    stored = threshold in file.shapes
    if kind not in ("", "relu", "jumprelu", "topk"):
        raise FormatError(f"activation {config['activation']} of {file.path}: expected relu, jump_relu or topk")
    if stored and kind in ("relu", "topk"):
        raise FormatError(f"config.yaml says activation {kind}, but {file.path} holds {threshold}, which only "
                          "jump_relu uses: correct the setting")
    if kind == "jumprelu" and not stored:
        raise FormatError(f"config.yaml says activation jump_relu, but {file.path} has no {threshold}")
    if kind != "topk":
        return {"threshold": threshold} if stored else {}, None
    k = config.get("k")
    if k is None and file.shapes.get("k") in ((), (1,)):
        k = int(file.tensor("k"))
    if not isinstance(k, int) or isinstance(k, bool):
        raise FormatError(f"config.yaml says activation topk with k {k}: expected a whole number")
    return {}, k


def _plt_layer(path: Path, config: dict[str, Any]) -> Layer:
    file = WeightFile(path)
    if "w_enc" in file.shapes:
        return gemma_scope2.open_plt_layer(path)
    names = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
    threshold, k = _activation(file, "activation_function.threshold", config)
    skip = {"skip": "W_skip"} if "W_skip" in file.shapes else {}
    return DenseLayer.open(file, names | threshold | skip, skip_is_out_by_in=True, k=k)


def _open_clt(folder: Path, config: dict[str, Any]) -> Checkpoint:
    encoders = require_contiguous(_numbered(folder, "W_enc"), folder, ": W_enc_{i}.safetensors of each layer")
    decoders = _numbered(folder, "W_dec")
    extra = sorted(set(decoders) - set(range(len(encoders))))
    if extra:
        raise FormatError(f"{folder} has W_dec_{extra[0]}.safetensors but no W_enc_{extra[0]}.safetensors: download "
                          "the missing file, or delete the extra one")
    layers: list[Layer] = []
    for i, path in enumerate(encoders):
        file, decoder = WeightFile(path), WeightFile(folder / f"W_dec_{i}.safetensors")
        names = {"w_enc": f"W_enc_{i}", "w_dec": f"W_dec_{i}", "b_enc": f"b_enc_{i}", "b_dec": f"b_dec_{i}"}
        threshold, k = _activation(file, f"threshold_{i}", config)
        layers.append(DenseLayer.open(file, names | threshold, decoder_file=decoder, triangle=len(encoders) - i, k=k))
    return Checkpoint("clt", layers)
