"""``circuits train``: a transcoder for a model, from text to weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import Device, JsonFile, Model, check_outputs, out, progress, write_json
from circuits.errors import InputError


def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for activations, checkpoints, report and, at "
                                         "the end, the transcoder. A killed run goes on from it.")],
    model: Model = "gemma-3-270m",
    config: Annotated[Path | None, typer.Option(help="TOML file with any training setting, and [[text]] tables. Flags "
                                                "win over it.")] = None,
    features: Annotated[int | None, typer.Option(help="Features per layer.")] = None,
    span: Annotated[int | None, typer.Option(help="Layers a feature writes to; 1 is a per-layer transcoder.")] = None,
    skip: Annotated[bool | None, typer.Option("--skip/--no-skip", help="An affine skip at every layer.")] = None,
    sparsity: Annotated[str | None, typer.Option(help="batchtopk or jumprelu.")] = None,
    active: Annotated[int | None, typer.Option(help="Active features per layer and position, on average.")] = None,
    matryoshka: Annotated[str | None, typer.Option(help="Shares of the features that must reconstruct on their own, "
                                                   "such as 0.125,0.5.")] = None,
    decoder_penalty: Annotated[float | None, typer.Option(help="How fast far decoders shrink.")] = None,
    features_kept: Annotated[int | None, typer.Option(help="Features per layer kept at the end; 0: all.")] = None,
    decoder_vectors: Annotated[float | None, typer.Option(help="Share of decoder vectors kept at the end.")] = None,
    refit: Annotated[int | None, typer.Option(help="Shards that decoders are refitted on at the end; 0: not.")] = None,
    refit_span: Annotated[int | None, typer.Option(help="Span of that refit, when larger than --span.")] = None,
    shards: Annotated[int | None, typer.Option(help="Files of activations.")] = None,
    sequences: Annotated[int | None, typer.Option(help="Sequences per file.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per sequence.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the files.")] = None,
    batch: Annotated[int | None, typer.Option(help="Tokens per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of order and weights.")] = None,
    products: Annotated[str | None, typer.Option(help="Dtype of dense products: auto, float32 or bfloat16.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Train on this file (text, or JSONL with a 'text' key) "
                                                    "instead of sampled text. May be given several times.")] = None,
    data_set: Annotated[str | None, typer.Option(help="Train on this Hugging Face data set, streamed.")] = None,
    split: Annotated[str, typer.Option(help="Of the data set.")] = "train",
    column: Annotated[str, typer.Option(help="Of the data set: the one with the text.")] = "text",
    vocabulary: Annotated[int, typer.Option(help="Sample from this many likeliest tokens; 0: all.")] = 32768,
    quota: Annotated[float | None, typer.Option(help="GB of disk for activations; 0: compute them when needed.")
                    ] = None,
    start_from: Annotated[str | None, typer.Option(help="Start from this transcoder set: bundled, folder or hub path.")
                          ] = None,
    storage: Annotated[str, typer.Option(help="int8, bfloat16 or float32.")] = "int8",
    feature_data: Annotated[bool, typer.Option("--feature-data/--no-feature-data",
                                               help="Describe every feature beside the weights.")] = True,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Train transcoders for every layer of a model. Run under torchrun to share the features over processes."""
    check_outputs([json_file])
    import circuits
    from circuits.commands.evaluate import print_quality
    from circuits.memory import keep_freed_memory
    from circuits.placement import resolve_device
    from circuits.training.data_set import DataSetText
    from circuits.training.ranks import join, own_device
    from circuits.training.run import train_transcoder
    from circuits.training.settings import read_config
    from circuits.training.text import FileText, SampledText, Text
    from circuits.training.text_config import text_from

    if text and data_set:
        raise InputError("give --text or --data-set, not both; a [[text]] table of --config mixes several")
    settings, tables = read_config(
        config, features=features, span=span, skip=skip, sparsity=sparsity, active=active,
        matryoshka=None if matryoshka is None else _shares(matryoshka), decoder_penalty=decoder_penalty,
        features_kept=features_kept, decoder_vectors=decoder_vectors, refit=refit, refit_span=refit_span, shards=shards,
        sequences=sequences, length=length, epochs=epochs, batch=batch, lr=lr, seed=seed, products=products)
    source: Text
    if text:
        source = FileText(text, settings.seed)
    elif data_set:
        source = DataSetText(data_set, split, column, seed=settings.seed)
    else:
        source = text_from(tables) if tables is not None else SampledText(settings.seed, vocabulary)
    keep_freed_memory()
    device = own_device(resolve_device(device))
    ranks = join(device)
    with progress() as report:
        report("loading the model", 0, 1)
        opened = circuits.load_model(model, device=device, progress=report)
        start = None if start_from is None else circuits.open_transcoders(
            start_from, device=opened.device, model=opened.name)
        measured = train_transcoder(opened, settings, output, source, storage=storage,
                                    quota=None if quota is None else round(quota * 1e9), start=start,
                                    feature_data=feature_data, ranks=ranks, progress=report)
    if measured is None:
        return
    print_quality([(str(output / "transcoder"), measured.numbers())])
    out.print(f"wrote {output / 'transcoder'} and {output / 'report.html'}", markup=False, highlight=False)
    write_json(json_file, measured.numbers())


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(f"--matryoshka is {text!r}: expected numbers with commas, such as 0.125,0.5") from None
