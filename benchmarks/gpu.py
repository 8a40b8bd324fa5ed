"""Traces on a GPU: 9, 70 and 6,000 tokens with a CLT of Google's size on a model of Gemma 3 270M's shape.

    python benchmarks/gpu.py WORK --json gpu.json

Needs no downloads: the model has random weights (seeded) in 270M's shape, the CLT is google_size.py's, 14,560 features
a layer, 12 GiB in WORK. 7,500 rows at most. Figures are given only when the edges into every target sum to its value.
The target of the longest trace is 60 s and 70 GiB of the device. For the kernels' own figures: benchmarks/kernels.py.
``--device cpu --quick`` runs the same steps at a size any machine can.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import google_size
import numpy as np
from measured_run import conclude
from processes import RunFailed, measured
from provenance import provenance

HERE = Path(__file__).parent
LENGTHS, QUICK_LENGTHS = (9, 70, 6000), (9, 30)
MAX_ROWS = 7500
TARGET_SECONDS, TARGET_BYTES = 60.0, 70 * 2**30
CONSERVATION_LIMIT = 1e-4
SHAPE = dict(vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
             num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512,
             max_position_embeddings=32768)
"""google/gemma-3-270m's config.json; every sixth layer is global."""
QUICK_SHAPE = SHAPE | dict(vocab_size=512, hidden_size=48, intermediate_size=64, num_hidden_layers=6, head_dim=16,
                           query_pre_attn_scalar=16, sliding_window=8, max_position_embeddings=256)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Traces on a GPU.")
    parser.add_argument("work", type=Path, help="folder for the model, the CLT and the runs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", default="float32", help="arithmetic of the rows")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens")
    parser.add_argument("--quick", action="store_true", help="a small model and CLT")
    parser.add_argument("--resume", action="store_true", help="keep runs that an earlier call finished")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args(arguments)
    lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
    try:
        report = run(options.work, options.device, options.rows, tuple(lengths), options.quick, options.resume)
    except (RunFailed, google_size.CannotWrite) as error:
        sys.exit(str(error))
    conclude(report, lines(report), any("failure" in entry for entry in report["traces"]), options.json)


def run(work: Path, device: str, rows: str, lengths: tuple[int, ...], quick: bool, resume: bool) -> dict[str, Any]:
    """Prepare the model and the CLT, then trace every length in its own process.

    Raises:
        RunFailed: a process did not end well.
        CannotWrite: no space for the CLT.
    """
    shape = QUICK_SHAPE if quick else SHAPE
    model = write_model(work / ("quick-model" if quick else "model"), shape)
    clt = work / "clt" / ("quick" if quick else google_size.NAME)
    features, active = (200, 40.0) if quick else (google_size.FEATURES, google_size.ACTIVE)
    google_size.write(clt, str(model), features, active)
    traces = []
    for length in lengths:
        ids = np.random.default_rng(0).integers(3, shape["vocab_size"], length - 1)
        job = {"model": str(model), "tokens": [2, *ids.tolist()], "transcoders": str(clt), "device": device,
               "settings": {"coverage": 1.0, "max_features": MAX_ROWS, "dtype": rows}}
        folder = work / "runs" / f"{device.replace(':', '-')}-{length}-{rows}"
        command = [sys.executable, HERE / "trace_run.py", json.dumps(job), os.cpu_count(), folder]
        traces.append(_entry(length, measured(command, folder, os.cpu_count() or 1, resume)))
    return {"benchmark": "traces on a GPU", **provenance(), "device": device, "device_name": device_name(device),
            "rows": rows, "features_per_layer": features, "traces": traces}


def _entry(length: int, found: dict[str, Any]) -> dict[str, Any]:
    entry = {"tokens": length, "conservation": found["conservation"]}
    if not found["conservation"] <= CONSERVATION_LIMIT:  # a NaN must not pass
        return entry | {"failure": f"{length} tokens: conservation residual {found['conservation']:.1e}, allowed is "
                                   f"{CONSERVATION_LIMIT:.0e}"}
    keys = ("seconds", "open_seconds", "peak_bytes", "active_features", "active_per_position", "rows_computed", "edges",
            "unexplored")
    entry |= {key: found[key] for key in keys}
    if "device_peak_bytes" in found:
        entry["device_peak_bytes"] = found["device_peak_bytes"]
        entry["target_met"] = found["seconds"] <= TARGET_SECONDS and found["device_peak_bytes"] <= TARGET_BYTES
    return entry


def write_model(folder: Path, shape: dict[str, int]) -> Path:
    """A random Gemma 3 of this shape; weights of unit gain per layer, so that activations keep their scale."""
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(shape["num_hidden_layers"])]
    model = Gemma3ForCausalLM(Gemma3TextConfig(**shape, layer_types=kinds, bos_token_id=2, eos_token_id=1,
                                               pad_token_id=0, tie_word_embeddings=True))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        size = 0.1 if "norm" in name else parameter.shape[-1] ** -0.5
        parameter.data.normal_(generator=generator).mul_(size)
    scratch = folder.with_name(folder.name + ".partial")
    model.save_pretrained(scratch)
    scratch.rename(folder)
    return folder


def device_name(device: str) -> str:
    """The GPU's name; ``cpu`` elsewhere."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def lines(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    found = [f"{report['device_name']}, {report['features_per_layer']} features a layer, {report['rows']} rows"]
    for entry in report["traces"]:
        if "failure" in entry:
            found.append(f"FAILED: {entry['failure']}")
            continue
        memory = entry.get("device_peak_bytes", entry["peak_bytes"]) / 2**30
        found.append(f"{entry['tokens']:6} tokens: {entry['seconds']:8.2f} s, {memory:6.2f} GiB, "
                     f"{entry['rows_computed']} of {entry['active_features']} rows, coverage "
                     f"{1 - entry['unexplored']:.3f}, conservation {entry['conservation']:.1e}")
    return found


if __name__ == "__main__":
    main()
