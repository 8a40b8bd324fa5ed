"""``circuits batch``: many prompts in, a folder of graphs out. Heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from circuits.commands.common import Device, Model, TranscodersOption, out, progress

if TYPE_CHECKING:
    from circuits.batches.run import BatchResult

MOST_NAMED = 20
"""Failed prompts that are named in the terminal."""


def batch(
    prompts: Annotated[str, typer.Argument(
        help="JSONL, one object a line with 'prompt' (text) or 'tokens' (ids), and if wanted 'id', 'chat', 'target', "
        "'versus', 'answer' (the expected next token), 'family' and any other keys; - reads standard input.")],
    output: Annotated[Path, typer.Option(
        "--output", "-o", help="Folder for graphs, summary.jsonl and index.html. What it holds already is not traced "
        "again.")],
    model: Model = "gemma-3-270m",
    transcoders: TranscodersOption = "bundled",
    workers: Annotated[int, typer.Option(
        help="Processes, each with its own copy of the model. With 2 or more, one that is killed loses only its "
        "prompt.")] = 1,
    threads: Annotated[int | None, typer.Option(
        help="Of every process; by default the cores divided by the workers. The last bits of results depend on it, so "
        "a folder keeps the number it was begun with.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: workers are Ray actors (pip install "
                                             "'gemma-circuits\\[ray]').")] = "local",
    address: Annotated[str | None, typer.Option(
        help="With --engine ray: a running cluster, such as auto or host:6379. All its nodes must see the "
        "output folder under the same path.")] = None,
    retries: Annotated[int, typer.Option(help="How often a prompt whose worker was killed is tried again.")] = 2,
    limit: Annotated[int | None, typer.Option(help="Only this many prompts, the first ones.")] = None,
    coverage: Annotated[float, typer.Option(help="Share of influence to explore; 1.0 computes every row.")] = 0.95,
    max_features: Annotated[int | None, typer.Option(
        help="Stop after this many features' rows; by default 7,500 beyond 256 tokens, else no limit.")] = None,
    max_logits: Annotated[int, typer.Option(help="At most this many top logits.")] = 10,
    logit_prob: Annotated[float, typer.Option(help="Probability the top logits must hold.")] = 0.95,
    no_prune: Annotated[bool, typer.Option("--no-prune", help="Keep every node and edge.")] = False,
    node_threshold: Annotated[float, typer.Option(help="Share of influence that kept nodes hold.")] = 0.8,
    edge_threshold: Annotated[float, typer.Option(help="Share of edge scores that kept edges hold.")] = 0.98,
    heads: Annotated[bool, typer.Option("--heads", help="Look which attention heads carry the edges, which takes some "
                                        "seconds a prompt.")] = False,
    pages: Annotated[bool, typer.Option("--pages", help="Write the interactive page of every graph, too.")] = False,
    dtype: Annotated[str, typer.Option(
        help="Arithmetic of the rows: float32, bfloat16, float16, or mixed (float32 where influence is high).")
    ] = "float32",
    model_dtype: Annotated[str, typer.Option(help="Weights and forward pass: float32, bfloat16 or float16.")
                           ] = "float32",
    memory: Annotated[str | None, typer.Option(
        help="Memory for each process to stay within, such as 6GiB; by default an equal part of what is free.")] = None,
    device: Device = "auto",
) -> None:
    """Trace many prompts into a folder: graphs, a table of measures, and a gallery."""
    from circuits.batches.run import trace_batch
    from circuits.batches.settings import BatchSettings
    from circuits.planning import parse_memory

    settings = BatchSettings(
        model=model, transcoders=transcoders, coverage=coverage, max_features=max_features, max_logits=max_logits,
        logit_prob=logit_prob, prune=not no_prune, node_threshold=node_threshold, edge_threshold=edge_threshold,
        heads=heads, dtype=dtype, model_dtype=model_dtype, device=device, threads=threads)
    with progress() as report:
        found = trace_batch(
            prompts, output, settings, workers=workers, engine=engine, address=address, retries=retries, limit=limit,
            memory=None if memory is None else parse_memory(memory), pages=pages, progress=report)
    print_batch(found, output)
    if found.failed:
        raise typer.Exit(1)


def print_batch(found: BatchResult, folder: Path) -> None:
    """Print what a batch made, and the prompts that failed."""
    from circuits.batches.gallery import mean
    from circuits.report import visible

    rows, table = found.rows, Table(show_header=False, box=None)
    facts = [("prompts", f"{len(rows)} ({found.traced} traced now, {len(rows) - found.traced} before)"),
             ("failed", str(len(found.failed)))]
    facts += [(f"mean {name}", f"{measured:.3f}") for name in ("replacement", "completeness", "unexplored", "seconds")
              if (measured := mean(rows, name)) is not None]
    if (right := mean(rows, "correct")) is not None:
        facts.append(("answered right", f"{right:.1%}"))
    for name, value in facts:
        table.add_row(Text(name, style="bold"), Text(value))
    out.print(table)
    for row in found.failed[:MOST_NAMED]:
        message = f"{row['id']} failed: {row['error']['type']}: {visible(row['error']['message'])}"
        out.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    if len(found.failed) > MOST_NAMED:
        out.print(f"and {len(found.failed) - MOST_NAMED} more, see summary.jsonl", markup=False, highlight=False)
    for name in ("summary.jsonl", "index.html"):
        out.print(f"wrote {folder / name}", markup=False, highlight=False)
