"""``circuits features``: what features mean; collect it, print it, give it names."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuits.commands.common import Device, JsonFile, Model, check_outputs, out, progress, write_json
from circuits.errors import InputError

if TYPE_CHECKING:
    from circuits.features import FeatureData, Labels
    from circuits.transcoder import Transcoders

Names = list[tuple[int, int]]


def features(
    transcoders: Annotated[str, typer.Argument(metavar="SET", help="'bundled', hub path or folder.")],
    feature: Annotated[list[str] | None, typer.Argument(metavar="LAYER/FEATURE", help="Such as 12/345.")] = None,
    random_count: Annotated[int, typer.Option("--random", help="Print this many random live features.")] = 0,
    seed: Annotated[int, typer.Option(help="Of --random, and of sampled text.")] = 0,
    collect: Annotated[bool, typer.Option("--collect", help="Make the feature data, on --text or on text sampled from "
                                          "the model.")] = False,
    text: Annotated[Path | None, typer.Option(help="With --collect: plain text, or JSONL with a 'text' key.")] = None,
    tokens: Annotated[int, typer.Option(help="With --collect: how many tokens at most.")] = 100_000,
    length: Annotated[int, typer.Option(help="With --collect: tokens per sequence.")] = 128,
    model: Model = "gemma-3-270m",
    data: Annotated[Path | None, typer.Option(help="The file of feature data, when it is not features.bin beside the "
                                              "transcoders.")] = None,
    import_labels: Annotated[Path | None, typer.Option("--import", help="Keep labels from this file (.csv, .json, "
                                                       ".jsonl) beside the transcoders.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Use labels from this file now.")] = None,
    neuronpedia: Annotated[Path | None, typer.Option(help="Write feature JSON into this folder, of the features named "
                                                     "or of all that are live.")] = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Print what is known of features: what they fire on, what they promote, and their labels."""
    check_outputs([json_file])
    if text is not None and not collect:
        raise InputError("--text is what --collect reads: add --collect")
    if random_count < 0:
        raise InputError(f"--random is {random_count}: expected a number of features")
    names = [_name(value) for value in feature or []]
    if not (names or random_count or collect or import_labels or neuronpedia):
        raise InputError("nothing to do: name features such as 12/345, or give --random N, --collect, --import FILE or "
                         "--neuronpedia FOLDER")
    from circuits.features import Labels
    from circuits.transcoder import open_transcoders

    opened = open_transcoders(transcoders)
    if import_labels is not None:
        _import(opened, import_labels)
    if collect:
        _collect(opened, model, device, text, tokens, length, seed, data)
    if not (names or random_count or neuronpedia or json_file):
        return
    known = Labels.open(opened, labels=labels, data=data)
    found = known.data
    if found is None:
        raise InputError(f"there is no feature data beside {transcoders}: make it with circuits features "
                         f"{transcoders} --collect, or name a file with --data")
    names += _random(found, random_count, seed)
    cards = [_card(found, known, layer, i) for layer, i in names]
    if neuronpedia is not None:
        _write_neuronpedia(found, known, names or list(_live(found)), neuronpedia)
    write_json(json_file, {"positions": found.positions, "text": found.header.get("text"),
                           "label_rule": found.header.get("label_rule"), "features": cards})


def _name(value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})/(\d{1,8})", value, re.ASCII)
    if not found:
        raise InputError(f"{value!r} names no feature: expected LAYER/FEATURE such as 12/345")
    return int(found[1]), int(found[2])


def _collect(opened: Transcoders, model: str, device: str, text: Path | None, tokens: int, length: int, seed: int,
             data: Path | None) -> None:
    import circuits
    from circuits.features import collect_features, text_activations
    from circuits.training.held_out import read_sequences, sample_sequences

    check_outputs([data])
    with progress() as report:
        report("loading the model", 0, 1)
        loaded = circuits.load_model(model, device=device, progress=report)
        opened.check_model(loaded.n_layers, loaded.d_model, loaded.name)
        if text is None:
            sequences = sample_sequences(loaded, tokens=tokens, length=length, seed=seed, progress=report)
            origin = f"sampled from {loaded.name}, seed {seed}"
        else:
            sequences = read_sequences(loaded, text, length=length, max_tokens=tokens)
            origin = text.name
        made = collect_features(loaded, opened, text_activations(loaded, sequences), path=data, text=origin,
                                expected=sum(map(len, sequences)), progress=report)
    live = sum(len(made.live(layer)) for layer in range(made.n_layers))
    out.print(f"wrote {made.path}: {live} live features of {sum(made.d_transcoder)}, {made.positions} positions of "
              f"text, {made.path.stat().st_size / 1e6:.1f} MB", markup=False, highlight=False, soft_wrap=True)


def _import(opened: Transcoders, source: Path) -> None:
    from circuits.features.imported import LABELS_FILE, read_labels, write_labels

    if opened.folder is None:
        raise InputError(f"{opened.name} lies in no folder to keep labels in: give them with --labels each time")
    found = read_labels(source, opened.d_transcoder)
    if not opened.folder.is_dir():
        opened.folder.mkdir()
    write_labels(opened.folder / LABELS_FILE, found)
    out.print(f"wrote {opened.folder / LABELS_FILE}: labels of {len(found)} features", markup=False, highlight=False,
              soft_wrap=True)


def _live(data: FeatureData) -> Iterator[tuple[int, int]]:
    return ((layer, int(i)) for layer in range(data.n_layers) for i in data.live(layer))


def _random(data: FeatureData, count: int, seed: int) -> Names:
    live = list(_live(data)) if count else []
    return sorted(random.Random(seed).sample(live, min(count, len(live))))


def _card(data: FeatureData, labels: Labels, layer: int, feature: int) -> dict[str, Any]:
    """Print a card; the same as plain values for JSON."""
    from circuits.features.card import card, values

    found, label = data.read(layer, feature), labels.of(layer, [feature])[0]
    if found is None:
        line = f"{layer}/{feature}  never fired on {data.positions:,} positions of text"
        out.print(f"{line}\n", markup=False, highlight=False)
        return {"layer": layer, "feature": feature, "label": label, "density": 0.0}
    for text in card(found, label):
        out.print(text, soft_wrap=True)
    out.print()
    return values(found, label)


def _write_neuronpedia(data: FeatureData, labels: Labels, names: Names, folder: Path) -> None:
    from circuits.features.card import examples, texts
    from circuits.graphs.neuronpedia_features import write_feature

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; name a folder") from None
    written = 0
    for layer, i in names:
        found = data.read(layer, i)
        if found is None:
            continue
        write_feature(folder, layer, i, examples=examples(found), top_logits=texts(found, found.promoted),
                      bottom_logits=texts(found, found.suppressed), act_min=0.0, act_max=found.max_activation,
                      activation_frequency=found.density, histogram=found.histogram.tolist(),
                      label=labels.of(layer, [i])[0])
        written += 1
    out.print(f"wrote {written} files into {folder}", markup=False, highlight=False, soft_wrap=True)
