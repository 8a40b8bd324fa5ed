"""``circuits trace``: a prompt in, its attribution graph out. Heavy imports happen inside commands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import (
    Device,
    DeviceMap,
    JsonFile,
    Memory,
    Model,
    TranscodersOption,
    check_outputs,
    err,
    out,
    progress,
    write_json,
)
from circuits.commands.graph import graph_numbers, print_graph, write_graph
from circuits.errors import InputError
from circuits.memory import peak_memory

HEADS_UP_TO = 128
"""Tokens of a prompt whose attention heads are looked at unasked."""


def trace(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; or give --tokens.")] = None,
    output: Annotated[list[Path] | None, typer.Option(
        "--output", "-o", help="File to write: .safetensors, .json, .graphml or .html. May be given several times.")
    ] = None,
    model: Model = "gemma-3-270m",
    transcoders: TranscodersOption = "bundled",
    tokens: Annotated[str | None, typer.Option(help="Token ids instead of text, such as 2,818,5279.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the model's chat template.")] = False,
    target: Annotated[str | None, typer.Option(help="Explain this token instead of the top logits.")] = None,
    versus: Annotated[str | None, typer.Option(help="With --target: why that token and not this one.")] = None,
    coverage: Annotated[float, typer.Option(help="Share of influence to explore; 1.0 computes every row.")] = 0.95,
    max_features: Annotated[int | None, typer.Option(
        help="Stop after this many features' rows; by default 7,500 beyond 256 tokens, else no limit.")] = None,
    max_logits: Annotated[int, typer.Option(help="At most this many top logits.")] = 10,
    logit_prob: Annotated[float, typer.Option(help="Probability the top logits must hold.")] = 0.95,
    no_prune: Annotated[bool, typer.Option("--no-prune", help="Keep every node and edge.")] = False,
    node_threshold: Annotated[float, typer.Option(help="Share of influence that kept nodes hold.")] = 0.8,
    edge_threshold: Annotated[float, typer.Option(help="Share of edge scores that kept edges hold.")] = 0.98,
    dtype: Annotated[str, typer.Option(
        help="Arithmetic of the rows: float32, bfloat16, float16, or mixed (float32 where influence is high).")
    ] = "float32",
    model_dtype: Annotated[str, typer.Option(help="Weights and forward pass: float32, bfloat16 or float16.")
                           ] = "float32",
    batch: Annotated[int | None, typer.Option(help="Most targets computed at once.")] = None,
    memory: Memory = None,
    row_mass: Annotated[float | None, typer.Option(
        help="Share of each row that is stored, largest edges first; by default 1, on long prompts 0.98.")] = None,
    no_heads: Annotated[bool, typer.Option("--no-heads", help="Leave out which attention heads carry the edges; .html "
                                           "and .safetensors files of prompts up to 128 tokens have it.")] = False,
    scores: Annotated[int, typer.Option(help="Attention scores that the page can explain, a second or so each.")
                      ] = 8,
    labels: Annotated[Path | None, typer.Option(help="Names of features: JSON, JSONL or CSV; see circuits features.")
                      ] = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    json_file: JsonFile = None,
) -> None:
    """Trace why the model continues a prompt as it does, and write the graph."""
    from circuits.graphs.prune import check_thresholds

    started = time.monotonic()
    check_outputs([*(output or []), json_file], output or [])
    check_thresholds(node_threshold, edge_threshold)
    ids = None if tokens is None else _token_ids(tokens)
    if (prompt is None) == (ids is None):
        raise InputError("give either a prompt or --tokens")
    if scores < 0:
        raise InputError(f"scores is {scores}: expected 0 or more")
    import circuits
    from circuits.attention.table import with_heads
    from circuits.features import relabel
    from circuits.features.imported import read_labels
    from circuits.planning import parse_memory

    limit = None if memory is None else parse_memory(memory)

    with progress() as report:
        report("loading the model", 0, 1)
        opened = circuits.load_model(model, dtype=model_dtype, device=device, progress=report, device_map=device_map)
        dictionary = circuits.open_transcoders(transcoders, device=opened.device, model=opened.name)
        names = {} if labels is None else read_labels(labels, dictionary.d_transcoder)
        graph = circuits.trace(
            opened, dictionary, prompt, tokens=ids, chat=chat, coverage=coverage, max_features=max_features,
            max_logits=max_logits, logit_prob=logit_prob, target=target, versus=versus, dtype=dtype, batch=batch,
            memory=limit, row_mass=row_mass, progress=report)
        relabel(graph, names)
        shown = graph if no_prune else graph.prune(node_threshold, edge_threshold)
        kept = any(path.suffix.lower() in (".html", ".safetensors") for path in output or [])
        if kept and not no_heads and len(graph.header.tokens) <= HEADS_UP_TO:
            graph, shown = with_heads(graph, shown, opened, dictionary, scores=scores, progress=report)
    write_graph(shown, output or [], None if no_prune else (graph, node_threshold, edge_threshold))
    for warning in graph.header.warnings:
        err.print("warning:", warning, style="yellow", markup=False, highlight=False)
    seconds = time.monotonic() - started
    print_graph(shown, seconds=seconds)
    for path in output or []:
        out.print(f"wrote {path}", markup=False, highlight=False)
    write_json(json_file, {**graph_numbers(shown), "seconds": seconds, "peak_memory_bytes": peak_memory()})


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--tokens is {text!r}: expected numbers with commas, such as 2,818,5279") from None
