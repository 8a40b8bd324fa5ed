"""The ``circuits`` command: every command registered, and errors as one line. Heavy imports happen inside commands."""

from __future__ import annotations

import os
import sys
import warnings

import typer

from circuits.commands.aggregate import aggregate
from circuits.commands.attention import attention
from circuits.commands.batch import batch
from circuits.commands.common import err
from circuits.commands.compare import compare
from circuits.commands.convert import convert
from circuits.commands.crosscheck import crosscheck
from circuits.commands.evaluate import evaluate
from circuits.commands.features import features
from circuits.commands.graph import export_command, show
from circuits.commands.reasoning import reasoning
from circuits.commands.serve import serve
from circuits.commands.small_world import small_world
from circuits.commands.steer import steer
from circuits.commands.trace import trace
from circuits.commands.train import train
from circuits.commands.validate import validate
from circuits.errors import CircuitsError
from circuits.memory import return_freed_memory

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Exact circuit tracing for Gemma 3.")
for command in (trace, batch, attention, crosscheck, show, serve, steer, evaluate, features, train, convert, validate):
    app.command()(command)
app.command()(aggregate)
app.command()(compare)
app.command()(reasoning)
app.command("export")(export_command)
app.add_typer(small_world, name="small-world")


def main() -> None:
    """Entry point: every error a user can cause is one line and exit status 2."""
    _quiet_libraries()
    return_freed_memory()
    try:
        app()
    except CircuitsError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except Exception as error:
        if os.environ.get("CIRCUITS_TRACEBACK"):
            raise
        err.print(f"internal error: {type(error).__name__}: {error}\nThis is a bug. Set CIRCUITS_TRACEBACK=1 to see "
                  "where it happened, and report it.", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _quiet_libraries() -> None:
    """Progress bars and notes of the libraries underneath would break ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
