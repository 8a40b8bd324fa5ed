"""Text sampled from the model itself, with the MLP activations met on the way.

Shapes: B sequences, P positions (the masked prefix left out), L layers, D d_model, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from circuits.gemma3 import Gemma3

MIN_P = 0.001
"""Tokens less probable than this share of the likeliest are never sampled (min-p, arXiv 2407.01082)."""
TEMPERATURE = 0.9
CPU_TILE, OTHER_TILE = 1 << 20, 1 << 26
"""Elements of logits made at once: what stays in a processor's cache; elsewhere, what a few large products need."""


@torch.no_grad()
def common_vocabulary(model: Gemma3, prefix: list[int], *, size: int, seed: int, sequences: int = 128,
                      length: int = 32, min_p: float = MIN_P,
                      progress: Callable[[str, int, int], None] = lambda stage, done, total: None
                      ) -> tuple[Tensor, float]:
    """The ``size`` token ids the model gives most probability to in a pilot sample, and the share they hold.

    Sampling from these alone makes a decoding step several times cheaper: with 262,144 tokens the unembedding is
    most of a small Gemma's arithmetic.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    mass = torch.zeros(model.vocab_size, device=model.device)
    step, cache = torch.tensor([prefix] * sequences, device=model.device), None
    for position in range(length):
        progress("choosing the sampling vocabulary", position, length)
        hidden, cache = model.decode(step, cache)
        logits = (hidden @ model.unembedding.T).float()
        step = sample_next(hidden, model.unembedding, temperature=1.0, min_p=min_p, generator=generator)
        mass += logits.softmax(-1).sum(0)
    kept = mass.topk(min(size, model.vocab_size))
    return kept.indices.sort().values, float(kept.values.sum() / mass.sum())


@torch.no_grad()
def sample_shard(model: Gemma3, prefix: list[int], *, sequences: int, length: int, seed: int,
                 vocabulary: Tensor | None = None, temperature: float = TEMPERATURE, min_p: float = MIN_P,
                 device: torch.device | str = "cpu",
                 progress: Callable[[str, int, int], None] = lambda stage, done, total: None) -> dict[str, Tensor]:
    """Sample text from the model and keep the MLP activations met on the way.

    Args:
        prefix: tokens every sequence starts with (the masked prefix; activations there are not kept).
        length: positions per sequence, prefix included.
        vocabulary: token ids to sample from; all without it.
        device: where the activations are kept.

    Returns:
        ``tokens`` (B, P + len(prefix)) int32 on the CPU; ``mlp_in`` and ``mlp_out`` (B, P, L, D) bfloat16.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    tokens = torch.zeros(sequences, length, dtype=torch.int32, device=model.device)
    tokens[:, :len(prefix)] = torch.tensor(prefix, device=model.device)
    shape = (sequences, length - len(prefix), model.n_layers, model.d_model)
    mlp_in, mlp_out = (torch.empty(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
    head = model.unembedding if vocabulary is None else model.unembedding[vocabulary]
    step, cache = tokens[:, :len(prefix)].long(), None
    for position in range(len(prefix), length + 1):
        with model.record_mlps() as recorded:
            hidden, cache = model.decode(step, cache)
        if position > len(prefix):
            for kept, met in ((mlp_in, recorded["in"]), (mlp_out, recorded["out"])):
                kept[:, position - len(prefix) - 1] = torch.stack([layer[:, -1] for layer in met], 1)
        if position < length:
            step = sample_next(hidden, head, temperature=temperature, min_p=min_p, generator=generator)
            step = step if vocabulary is None else vocabulary[step]
            tokens[:, position] = step[:, 0]
        progress("sampling text", position, length)
    return {"tokens": tokens.cpu(), "mlp_in": mlp_in, "mlp_out": mlp_out}


def sample_next(hidden: Tensor, head: Tensor, *, temperature: float, min_p: float, generator: torch.Generator
                ) -> Tensor:
    """(B, 1) rows of ``head`` drawn from softmax(hidden @ head.T / temperature) cut at ``min_p`` of the likeliest.

    The logits are made a tile at a time, and only those that may survive the cut are kept: the full matrix would be
    most of a step's memory traffic. Drawn by the Gumbel trick.

    Args:
        hidden: (B, D); head: (V, D).
    """
    room = CPU_TILE if hidden.device.type == "cpu" else OTHER_TILE
    size = max(1, room // len(hidden))
    highest = torch.full((len(hidden), 1), -torch.inf, device=hidden.device)
    found = []
    for start in range(0, len(head), size):
        tile = (hidden @ head[start:start + size].T).float().div_(temperature)
        highest = torch.maximum(highest, tile.amax(1, keepdim=True))
        row, place = torch.nonzero(tile > highest + math.log(min_p), as_tuple=True)
        found.append((row, place + start, tile[row, place]))
    row, place, logit = (torch.cat(parts) for parts in zip(*found, strict=True))
    kept = logit > highest[row, 0] + math.log(min_p)
    row, place, logit = row[kept], place[kept], logit[kept]
    score = logit - torch.empty_like(logit).exponential_(generator=generator).log_()
    best = torch.full((len(hidden),), -torch.inf, device=hidden.device).scatter_reduce_(0, row, score, "amax")
    won = score == best[row]
    drawn = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
    return drawn.index_copy_(0, row[won], place[won, None])
