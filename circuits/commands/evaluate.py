"""``circuits evaluate``: how well transcoders stand in for the MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from circuits.commands.common import Device, JsonFile, Model, check_outputs, out, progress, write_json
from circuits.errors import InputError


def evaluate(
    text: Annotated[Path | None, typer.Option(help="Plain text, or JSONL with a 'text' key; or give --sampled.")
                    ] = None,
    sampled: Annotated[int | None, typer.Option(help="Instead of a text: about this many tokens sampled from the "
                                                "model.")] = None,
    seed: Annotated[int, typer.Option(help="With --sampled: seed of the text.")] = 99,
    model: Model = "gemma-3-270m",
    transcoders: Annotated[list[str] | None, typer.Option(
        "--transcoders", help="'bundled', hub path or folder. May be given several times.", show_default="bundled")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSONL with a 'prompt' key: score these prompts' graphs too.")
                       ] = None,
    coverage: Annotated[float, typer.Option(help="With --prompts: share of influence to explore.")] = 1.0,
    chat: Annotated[bool, typer.Option("--chat", help="With --prompts: wrap them in the model's chat template.")
                    ] = False,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    max_tokens: Annotated[int, typer.Option(help="Read at most this many tokens of the text.")] = 16384,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Measure how well transcoders stand in for the MLPs, on a text and in graphs; several sets side by side."""
    check_outputs([json_file])
    if (text is None) == (sampled is None):
        raise InputError("give either --text with a file or --sampled with a number of tokens")
    import circuits
    from circuits.training.evaluate import evaluate_sets
    from circuits.training.graph_quality import read_prompts, score_graphs
    from circuits.training.held_out import read_sequences, sample_sequences

    names = transcoders or ["bundled"]
    with progress() as report:
        report("loading the model", 0, 1)
        opened = circuits.load_model(model, device=device, progress=report)
        sets = [circuits.open_transcoders(name, device=opened.device, model=opened.name) for name in names]
        asked = read_prompts(opened, prompts, chat=chat) if prompts else []
        sequences = (read_sequences(opened, text, length=length, max_tokens=max_tokens) if text else
                     sample_sequences(opened, tokens=sampled or 0, length=length, seed=seed, progress=report))
        graphs = score_graphs(opened, sets, asked, coverage=coverage, progress=report) if asked else []
        qualities = evaluate_sets(opened, sets, sequences, progress=report)
    found = [quality.numbers() | (graphs[i].numbers() if graphs else {}) for i, quality in enumerate(qualities)]
    print_quality(list(zip(names, found, strict=True)))
    source = str(text) if text else f"sampled from the model, seed {seed}"
    shared = {"model": opened.name, "text": source}
    entries = [{"transcoders": name} | numbers for name, numbers in zip(names, found, strict=True)]
    write_json(json_file, shared | (entries[0] if len(entries) == 1 else {"sets": entries}))


def print_quality(sets: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print the tables of transcoder sets by name, each with its numbers (:meth:`Quality.numbers`)."""
    from circuits.report import layer_table, prompt_table, quality_table

    out.print(quality_table(sets))
    out.print(layer_table(sets))
    if all("prompts" in numbers for _, numbers in sets):
        out.print(prompt_table(sets))
