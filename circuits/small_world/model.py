"""Training the small world's models: Gemma 3's architecture from scratch on the small world's text.

Shapes: B sequences, P positions.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from circuits.graphs.store import replacing
from circuits.model_folder import open_tokenizer, quiet_transformers
from circuits.small_world.tasks import documents
from circuits.small_world.tokenizer import n_tokens, write_tokenizer

LENGTH = 40
"""Tokens of a training sequence, ``<bos>`` and the blank line at the end included."""
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Shape:
    """Size of a model and how it is trained."""

    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int
    global_every: int
    """Every so many layers one attends to the whole text, the others to the last ``WINDOW`` tokens."""
    steps: int
    lr: float


SHAPES = {"s": Shape(n_layers=4, d_model=128, n_heads=4, d_mlp=512, global_every=2, steps=3500, lr=2e-3),
          "m": Shape(n_layers=8, d_model=192, n_heads=6, d_mlp=384, global_every=4, steps=3300, lr=2e-3)}
HEAD_DIM, KEY_VALUE_HEADS, WINDOW = 32, 2, 16
BATCH = 32
"""Sequences a step."""
WARMUP = 0.05
WEIGHT_DECAY = 0.1
CHECKPOINT, CHECKPOINT_STEPS = "checkpoint.safetensors", 250
MOMENTS = ("exp_avg", "exp_avg_sq")


def config(shape: Shape) -> Gemma3TextConfig:
    """Gemma 3 of this shape: tied embeddings, local and global layers, grouped queries."""
    return Gemma3TextConfig(
        vocab_size=n_tokens(), hidden_size=shape.d_model, intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads, num_key_value_heads=KEY_VALUE_HEADS,
        head_dim=HEAD_DIM, query_pre_attn_scalar=HEAD_DIM, sliding_window=WINDOW, max_position_embeddings=256,
        layer_types=["full_attention" if (layer + 1) % shape.global_every == 0 else "sliding_attention"
                     for layer in range(shape.n_layers)],
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=2, attention_bias=False)


def train_model(size: str, folder: Path, seed: int = 0, shape: Shape | None = None,
                progress: Report = lambda stage, done, total: None) -> dict[str, Any]:
    """Train ``small-world-{size}`` and write it to ``folder`` in Hugging Face's layout, weights in bfloat16.

    Killed, it goes on from its last checkpoint when called again; trained already, it does nothing.

    Args:
        shape: another than :data:`SHAPES` has for ``size``.

    Returns:
        The settings, the last loss and the seconds it took; also written to ``folder / "training.json"``.
    """
    shape = shape or SHAPES[size]
    done = folder / "training.json"
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    run = _Run(shape, seed, folder / CHECKPOINT)
    started, before = time.monotonic(), run.seconds
    for tokens in batches(folder, run.step, shape.steps, seed):
        loss = run.train(tokens)
        run.seconds = before + time.monotonic() - started
        if run.step % 20 == 0:
            progress(f"training small-world-{size}, loss {loss:.3f}", run.step, shape.steps)
        if run.step % CHECKPOINT_STEPS == 0:
            run.save()
    with quiet_transformers():
        run.model.to(torch.bfloat16).save_pretrained(folder)
    described = {**asdict(shape), "size": size, "seed": seed, "batch": BATCH, "length": LENGTH,
                 "weight_decay": WEIGHT_DECAY, "tokens": shape.steps * BATCH * LENGTH, "loss": run.loss,
                 "seconds": run.seconds}
    with replacing(done) as scratch:
        scratch.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return described


class _Run:
    """A model in training: weights, Adam's moments, how far it is."""

    def __init__(self, shape: Shape, seed: int, path: Path):
        """Goes on from the checkpoint at ``path``, if there is one."""
        self.shape, self.path = shape, path
        torch.manual_seed(seed)
        self.model = Gemma3ForCausalLM(config(shape))
        self.weights = dict(self.model.named_parameters())
        for name, weights in self.weights.items():
            if weights.ndim == 2:
                torch.nn.init.normal_(weights, std=shape.d_model ** -0.5 if "embed" in name else
                                      0.5 * weights.shape[1] ** -0.5)
        decayed, others = ([w for w in self.weights.values() if (w.ndim == 2) == matrix] for matrix in (True, False))
        self.optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": WEIGHT_DECAY},
                                            {"params": others, "weight_decay": 0.0}], lr=shape.lr, betas=(0.9, 0.98))
        self.step, self.seconds, self.loss = 0, 0.0, math.nan
        if path.is_file():
            self._restore()

    def train(self, tokens: Tensor) -> float:
        """One step on (B, P) tokens. Returns the loss, averaged over about 50 steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.shape.lr * _schedule(self.step / self.shape.steps)
        logits = self.model(tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        now = float(loss.detach())
        self.loss = now if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * now
        return self.loss

    def save(self) -> None:
        tensors = {f"weights.{name}": weights.detach() for name, weights in self.weights.items()}
        for name, weights in self.weights.items():
            tensors |= {f"{moment}.{name}": self.optimizer.state[weights][moment] for moment in MOMENTS}
        with replacing(self.path) as scratch:
            save_file(tensors, scratch, {"at": json.dumps([self.step, self.seconds, self.loss])})

    def _restore(self) -> None:
        with safe_open(self.path, "pt") as file:
            self.step, self.seconds, self.loss = json.loads(file.metadata()["at"])
            for name, weights in self.weights.items():
                weights.data.copy_(file.get_tensor(f"weights.{name}"))
                moments = {moment: file.get_tensor(f"{moment}.{name}") for moment in MOMENTS}
                self.optimizer.state[weights] = {"step": torch.tensor(float(self.step)), **moments}


def batches(folder: Path, first: int, steps: int, seed: int) -> Iterator[Tensor]:
    """(B, P) int64 sequences of training text for steps ``first`` to ``steps``, never the same ones."""
    tokenizer = open_tokenizer(folder)
    for step in range(first, steps):
        texts = documents(BATCH, LENGTH - 2, seed=(seed + 1) * 1_000_003 + step)
        rows = tokenizer([text + "\n\n" for text in texts], add_special_tokens=False)["input_ids"]
        yield torch.cat([torch.full((BATCH, 1), 2), torch.tensor(rows)], 1)


def _schedule(done: float) -> float:
    """Of the learning rate: rising, then a half cosine down to a fiftieth."""
    if done < WARMUP:
        return done / WARMUP
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))

