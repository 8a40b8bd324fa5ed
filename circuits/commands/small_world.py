"""``circuits small-world``: questions with known causes, and training the models that answer them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import JsonFile, check_outputs, out, progress, write_json
from circuits.errors import InputError

small_world = typer.Typer(no_args_is_help=True, help="Two small models of an invented world, with known causes for "
                          "every answer: --model small-world-s or small-world-m.")


@small_world.command()
def questions(
    task: Annotated[str | None, typer.Option(help="lookup, two_step, two_step_held_out, induction, agreement or "
                                             "counting; by default all that training asks.")] = None,
    count: Annotated[int, typer.Option(help="How many.")] = 20,
    seed: Annotated[int, typer.Option(help="Other seeds, other questions.")] = 1_000_000,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSONL for circuits batch; by default they are "
                                                "shown.")] = None,
) -> None:
    """Questions about the small world: prompts, answers, and which tokens cause them."""
    from circuits.graphs.store import replacing
    from circuits.small_world.tasks import TASKS, held_out_questions
    from circuits.small_world.tasks import questions as ask

    if count < 1:
        raise InputError(f"count is {count}: expected at least 1")
    if task is not None and task not in (*TASKS, "two_step_held_out"):
        raise InputError(f"task is {task!r}: expected one of {', '.join((*TASKS, 'two_step_held_out'))}")
    check_outputs([output])
    made = held_out_questions(count, seed) if task == "two_step_held_out" else ask(count, seed, task)
    lines = [json.dumps(question.record()) for question in made]
    if output is None:
        for line in lines:
            typer.echo(line)
        return
    with replacing(output) as scratch:
        scratch.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    out.print(f"wrote {len(lines)} questions to {output}", markup=False, highlight=False)


@small_world.command()
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder. A killed run goes on from it.")],
    json_file: JsonFile = None,
) -> None:
    """Train both models and their transcoders from nothing: under an hour on two cores."""
    check_outputs([json_file])
    from circuits.small_world.build import build

    with progress() as report:
        found = build(output, report)
    for name, tasks in found.items():
        if name in ("small-world-s", "small-world-m"):
            out.print(f"{name}:", ", ".join(f"{task} {one['right']:.0%}" for task, one in tasks.items()))
    out.print(f"wrote {output / 'bundle'}", markup=False, highlight=False)
    write_json(json_file, found)


@small_world.command()
def model(
    size: Annotated[str, typer.Argument(help="s or m.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder. A killed run goes on from it.")],
) -> None:
    """Train one of the models alone."""
    from circuits.small_world.model import SHAPES, train_model

    if size not in SHAPES:
        raise InputError(f"size is {size!r}: expected one of {', '.join(SHAPES)}")
    with progress() as report:
        found = train_model(size, output, progress=report)
    out.print(f"wrote {output}: loss {found['loss']:.3f} after {found['seconds'] / 60:.0f} minutes", markup=False,
              highlight=False)
