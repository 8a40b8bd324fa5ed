"""Short training runs that compare settings of a transcoder: same shards, same order, measured on a shard none saw.

    python benchmarks/transcoder_search.py ACTIVATIONS --held-out 0 --shards 1 2 3 --output search.json \\
        --run features=768 --run features=1536 --run "features=1536 span=3"

ACTIVATIONS is a folder of shards as ``circuits train`` leaves them. Each ``--run`` is settings that differ from the
defaults, as NAME=VALUE with spaces between; lines of results are appended, and runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from circuits.memory import keep_freed_memory
from circuits.training.clt import TrainableCLT
from circuits.training.settings import TrainSettings, read_config
from circuits.training.trainer import scaled, train

HELD_OUT_TOKENS = 4064


class Files:
    """Shards of a folder, in the order given."""

    shards_in_quota = None

    def __init__(self, paths: list[Path]):
        self.paths = paths
        x, _ = self.read(0)
        self.tokens_per_shard, self.n_layers, self.d_model = x.shape

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        with safe_open(self.paths[index], "pt") as shard:
            mlp_in, mlp_out = shard.get_tensor("mlp_in"), shard.get_tensor("mlp_out")
        return mlp_in.flatten(0, 1), mlp_out.flatten(0, 1)

    def drop(self, index: int) -> None:
        """Nothing: the files are the user's."""


@torch.no_grad()
def held_out_fvu(clt: TrainableCLT, x: Tensor, y: Tensor) -> list[float]:
    """Variance unexplained per layer, at the settings' number of active features (BatchTopK over these tokens)."""
    xs, ys = scaled(x, clt.x_scale), scaled(y, clt.y_scale)
    error = clt.errors(clt.fire(xs), xs, ys)[-1]
    return (error.square().mean((1, 2)) / (ys - ys.mean(1, keepdim=True)).square().mean((1, 2))).tolist()


def measure(files: Files, held_out: Files, settings: TrainSettings) -> dict[str, Any]:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        clt = train(files, settings, Path(folder), checkpoint_seconds=float("inf"))
    x, y = held_out.read(0)
    fvu = held_out_fvu(clt, x[:HELD_OUT_TOKENS], y[:HELD_OUT_TOKENS])
    vectors = sum(w.shape[0] * w.shape[1] for w in clt.w_dec)
    return {"fvu_mean": sum(fvu) / len(fvu), "fvu_by_layer": fvu, "active_per_position": settings.active * len(fvu),
            "weights": vectors * clt.d_model + sum(w.numel() for w in clt.w_enc),
            "tokens": settings.shards * settings.epochs * files.tokens_per_shard,
            "seconds": time.monotonic() - started}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a word, such as jumprelu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activations", type=Path)
    parser.add_argument("--held-out", type=int, required=True)
    parser.add_argument("--shards", type=int, nargs="+", required=True)
    parser.add_argument("--run", action="append", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    path = arguments.activations / "shard_{:05d}.safetensors"
    files = Files([Path(str(path).format(i)) for i in arguments.shards])
    held_out = Files([Path(str(path).format(arguments.held_out))])
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    done = {json.loads(line)["run"] for line in lines}
    for run in arguments.run:
        if run in done:
            continue
        named = dict(part.split("=", 1) for part in run.split())
        defaults = {"shards": len(files.paths), "epochs": 1, "refit": 0}
        settings, _ = read_config(None, **defaults | {name: _value(text) for name, text in named.items()})
        result = {"run": run, **measure(files, held_out, settings)}
        with open(arguments.output, "a") as output:
            output.write(json.dumps(result) + "\n")
        print(f"{run}: variance unexplained {result['fvu_mean']:.4f}, {result['weights'] / 1e6:.0f}M weights, "
              f"{result['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
