"""``circuits steer``: change features of a prompt and see what the model does. Heavy imports happen inside the
command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from circuits.commands.common import Device, JsonFile, check_outputs, err, out, progress, write_json


def steer(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; by default that of --graph.")] = None,
    node: Annotated[list[str] | None, typer.Option(
        help="LAYER/FEATURE/POSITION=MULTIPLIER, such as 12/345/8=0; :=VALUE sets, +=AMOUNT adds. POSITION: 8, -1, "
        "3-7, all, gen (every generated token), joined by +. Or error/LAYER/POSITION, token/POSITION, a graph's node "
        "id. May be given several times.")] = None,
    supernode: Annotated[list[str] | None, typer.Option(
        help="NAME=MULTIPLIER: every node of a supernode of --graph. May be given several times.")] = None,
    graph: Annotated[Path | None, typer.Option(help="A .safetensors or .json graph with supernodes.")] = None,
    each: Annotated[bool, typer.Option("--each", help="Every --node and --supernode by itself, not all together.")
                    ] = False,
    mode: Annotated[str, typer.Option(
        help="free: the model itself; frozen: direct effects; replaced: the graph's model; 5-12: free but for the MLPs "
        "of these layers.")] = "free",
    generate: Annotated[int | None, typer.Option(help="Continue the prompt by this many tokens.")] = None,
    temperature: Annotated[float, typer.Option(help="With --generate: 0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="With --generate: draw from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(
        help="With --generate: draw from the likeliest tokens that hold this probability.")] = None,
    seed: Annotated[int, typer.Option(help="With --generate: of the draws.")] = 0,
    top: Annotated[int, typer.Option(help="How many tokens and features to print.")] = 10,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the model's chat template.")] = False,
    model: Annotated[str | None, typer.Option(
        help="Alias, hub id or folder; by default what the graph names, or gemma-3-270m.")] = None,
    transcoders: Annotated[str | None, typer.Option(
        "--transcoders", help="'bundled', hub path or folder; by default what the graph names, or bundled.")] = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Change features, errors or tokens of a prompt: what it does to the next token, other features and the text."""
    check_outputs([json_file])
    import circuits
    from circuits.graphs import export
    from circuits.interventions.specification import read_interventions, read_prompt
    from circuits.interventions.summary import check_steering
    from circuits.interventions.summary import steer as measure
    from circuits.interventions.tables import steering_tables

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    check_steering(mode, top, generate, **sampling)
    loaded = None if graph is None else export.read(graph)
    named = (None, None) if loaded is None else (loaded.header.model, loaded.header.transcoders)
    with progress() as report:
        report("loading the model", 0, 1)
        opened = circuits.load_model(model or named[0] or "gemma-3-270m", device=device, progress=report)
        dictionary = circuits.open_transcoders(transcoders or named[1] or "bundled", device=opened.device,
                                               model=opened.name)
        tokens = read_prompt(opened, prompt, loaded, chat)
        interventions = read_interventions(node or [], tokens, supernode or [], loaded, each=each)
        found = measure(opened, dictionary, tokens, interventions, mode=mode, top=top, max_new_tokens=generate,
                        progress=report, **sampling)
    for warning in found.warnings:
        err.print("warning:", warning, style="yellow", markup=False, highlight=False)
    for table in steering_tables(found):
        out.print(table)
    write_json(json_file, asdict(found))
