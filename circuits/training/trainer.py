"""The training loop: shards of activations in, checkpoints on the way, a trained CLT out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuits.errors import InputError
from circuits.training.clt import DEAD_TOKENS, FEATURE_DIM, TrainableCLT
from circuits.training.ranks import Ranks
from circuits.training.resample import resample_dead
from circuits.training.settings import TrainSettings

LINEAR_RATE = 0.03
"""Learning rate of skips and decoder biases as a share of the features': they start at their regression optimum,
where Adam's full-size steps are noise."""
RESAMPLE_EVERY = 160
"""Steps between two replacements of dead features, up to RESAMPLE_UNTIL of the run: a new feature needs time."""
RESAMPLE_UNTIL = 0.75
SHRINK_EVERY = 10
"""Steps between two shrinkings of far decoders."""
LOG_EVERY = 20
MAY_CHANGE = ("epochs", "shards", "decay", "refit", "refit_span", "refit_ridge", "features_kept", "decoder_vectors")
"""Settings a run may go on with another value of: what has been trained does not depend on them."""


class Shards(Protocol):
    """Where activations come from; see :class:`circuits.training.activations.ActivationStore`."""

    n_layers: int
    d_model: int

    @property
    def tokens_per_shard(self) -> int: ...

    @property
    def shards_in_quota(self) -> int | None: ...

    def read(self, index: int) -> tuple[Tensor, Tensor]: ...

    def drop(self, index: int) -> None: ...


@dataclass(frozen=True)
class Progress:
    """What a training run reports after each step."""

    step: int
    steps: int
    tokens: int
    """Seen so far, repeats counted."""
    tokens_per_second: float
    loss: float
    fvu: list[float]
    """Per layer, moving average over about 20 steps."""
    active: list[float]
    """Features firing per position of the last batch, per layer."""
    dead: list[float]
    """Share of features silent for DEAD_TOKENS tokens, per layer."""
    threshold: list[float]
    """Mean threshold, per layer, scaled units."""
    lr: float


def schedule(settings: TrainSettings, window: int) -> list[int]:
    """Shards in the order they are read: ``epochs`` shuffled passes over the first ``window`` of them, then over the
    next. Depends on the settings only, so that a killed run knows where it was."""
    order: list[int] = []
    for first in range(0, settings.shards, window):
        shards = torch.arange(first, min(first + window, settings.shards))
        for epoch in range(settings.epochs):
            generator = torch.Generator().manual_seed(settings.seed * 7919 + 1009 * first + epoch)
            order += shards[torch.randperm(len(shards), generator=generator)].tolist()
    return order


def learning_rate(settings: TrainSettings, progress: float) -> float:
    """Linear warm-up over the first share of training and linear decay over the last; ``progress`` from 0 to 1."""
    rise = progress / settings.warmup if settings.warmup else 1.0
    fall = (1.0 - progress) / settings.decay if settings.decay else 1.0
    return settings.lr * min(1.0, rise, fall)


def train(shards: Shards, settings: TrainSettings, folder: Path, *, device: str = "cpu", ranks: Ranks | None = None,
          start: Callable[[TrainableCLT], None] | None = None, keep: int = 0, checkpoint_seconds: float = 300.0,
          progress: Callable[[Progress], None] = lambda _: None) -> TrainableCLT:
    """Train a CLT; goes on from ``folder``'s checkpoint when there is one.

    Args:
        shards: activations. Under a disk quota they are dropped when their last pass is over, but for the last
            ``keep`` of the schedule.
        folder: for checkpoints (written beside, then renamed) and ``metrics.jsonl``.
        start: changes the parameters of a new run before its first step, for instance to those of another CLT.
        ranks: the processes that share the features; every one must call this.

    Raises:
        InputError: the checkpoint is of other settings, or a shard has fewer tokens than a batch.
    """
    ranks = ranks or Ranks()
    folder.mkdir(parents=True, exist_ok=True)
    clt = TrainableCLT(settings, n_layers=shards.n_layers, d_model=shards.d_model, device=device, ranks=ranks)
    adam = _optimiser(clt)
    steps_per_shard = shards.tokens_per_shard // settings.batch
    if not steps_per_shard:
        raise InputError(f"a batch of {settings.batch} tokens is more than the {shards.tokens_per_shard} of a shard: "
                         "lower batch, or raise sequences")
    order = schedule(settings, shards.shards_in_quota or settings.shards)
    steps = len(order) * steps_per_shard
    done = _resume(folder, clt, adam)
    if done == 0:
        clt.start_linear(*shards.read(order[0]))
        if start is not None:
            start(clt)
    average, saved, started = None, time.monotonic(), time.monotonic()
    for step, (x, y) in enumerate(_batches(shards, order, clt, steps_per_shard, done, keep), start=done):
        loss, fvu, gradients = clt.step(x, y)
        rate = learning_rate(settings, step / steps)
        _update(clt, adam, gradients, rate)
        if settings.decoder_penalty and step % SHRINK_EVERY == SHRINK_EVERY - 1:
            clt.shrink_far_decoders(rate * settings.decoder_penalty * SHRINK_EVERY)
        if step % RESAMPLE_EVERY == RESAMPLE_EVERY - 1 and step < RESAMPLE_UNTIL * steps:
            resample_dead(clt, adam, x, y, step)
        average = fvu if average is None else 0.95 * average + 0.05 * fvu
        speed = (step + 1 - done) * settings.batch / (time.monotonic() - started)
        report = Progress(step + 1, steps, (step + 1) * settings.batch, speed, float(loss), average.tolist(), [], [],
                          [], rate)
        if step % LOG_EVERY == LOG_EVERY - 1 or step + 1 == steps:
            _log(folder, clt, replace(report, **_sparsity(clt, x)))
        progress(report)
        if time.monotonic() - saved > checkpoint_seconds or step + 1 == steps:
            _save(folder, clt, adam, step + 1)
            saved = time.monotonic()
    return clt


def _optimiser(clt: TrainableCLT) -> torch.optim.Adam:
    parameters = clt.parameters()
    linear = {name for name in parameters if name.startswith(("skip.", "b_dec."))}
    groups = [{"params": [p for name, p in parameters.items() if name not in linear]},
              {"params": [p for name, p in parameters.items() if name in linear]}]
    settings = clt.settings
    return torch.optim.Adam(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2),
                            fused=clt.device.type in ("cpu", "cuda"))


def _update(clt: TrainableCLT, adam: torch.optim.Adam, gradients: dict[str, Tensor], rate: float) -> None:
    for name, tensor in clt.parameters().items():
        tensor.grad = gradients[name]
    for group, share in zip(adam.param_groups, (1.0, LINEAR_RATE), strict=True):
        group["lr"] = rate * share
    adam.step()


def last_shards(order: list[int], count: int) -> list[int]:
    """The ``count`` shards whose last pass is latest, latest first."""
    return list(dict.fromkeys(reversed(order)))[:count]


def _batches(shards: Shards, order: list[int], clt: TrainableCLT, steps_per_shard: int, done: int, keep: int
             ) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches from step ``done`` on, each (L, T, D) scaled; their order depends on the settings only."""
    settings = clt.settings
    last_visit = {shard: visit for visit, shard in enumerate(order)}
    kept = last_shards(order, keep) if shards.shards_in_quota is not None else order
    first = done // steps_per_shard
    for visit in range(first, len(order)):
        x, y = shards.read(order[visit])
        shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(settings.seed * 104729 + visit))
        for i in range(done % steps_per_shard if visit == first else 0, steps_per_shard):
            rows = shuffled[i * settings.batch:(i + 1) * settings.batch].to(x.device)
            yield scaled(x[rows].to(clt.device), clt.x_scale), scaled(y[rows].to(clt.device), clt.y_scale)
        clt.ranks.wait()
        if last_visit[order[visit]] == visit and order[visit] not in kept and clt.ranks.first:
            shards.drop(order[visit])


def scaled(rows: Tensor, scale: Tensor) -> Tensor:
    """(L, T, D) float32 in units of ``scale`` (L,), from (T, L, D)."""
    return (rows.transpose(0, 1).float() / scale[:, None, None]).contiguous()


def _sparsity(clt: TrainableCLT, x: Tensor) -> dict[str, Any]:
    firing = clt.fire(x)
    counts = torch.stack([(f.value > 0).sum() for f in firing]).float()
    dead = (clt.quiet_tokens > DEAD_TOKENS).float().sum(1)
    clt.ranks.sum_(counts)
    clt.ranks.sum_(dead)
    limits = torch.stack([clt.thresholds(layer).mean() for layer in range(clt.n_layers)])
    return {"active": (counts / x.shape[1]).tolist(), "dead": (dead / clt.settings.features).tolist(),
            "threshold": limits.tolist()}


def _log(folder: Path, clt: TrainableCLT, report: Progress) -> None:
    if clt.ranks.first:
        with open(folder / "metrics.jsonl", "a") as log:
            log.write(json.dumps({"time": round(time.time(), 1), **asdict(report)}) + "\n")


def _save(folder: Path, clt: TrainableCLT, adam: torch.optim.Adam, step: int) -> None:
    """One file, whatever the number of processes: a run may go on with another number of them."""
    tensors = dict(clt.state())
    for name, parameter in clt.parameters().items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{name}.{moment}"] = adam.state[parameter][moment]
    whole = {}
    for name, tensor in tensors.items():
        dim = FEATURE_DIM.get(name.split(".")[0])
        whole[name] = (tensor if dim is None else clt.ranks.whole(tensor, dim)).contiguous()
    if clt.ranks.first:
        scratch = folder / "checkpoint.writing"
        save_file(whole, scratch, metadata={"step": str(step), "settings": json.dumps(clt.settings.as_dict())})
        scratch.rename(folder / "checkpoint.safetensors")
    clt.ranks.wait()


def _resume(folder: Path, clt: TrainableCLT, adam: torch.optim.Adam) -> int:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        metadata: dict[str, Any] = file.metadata() or {}
        stored, settings = json.loads(metadata["settings"]), clt.settings.as_dict()
        different = [name for name, value in settings.items() if stored.get(name) != value and name not in MAY_CHANGE]
        if different:
            raise InputError(f"{path} was trained with other settings ({', '.join(different)} differ): use them, or "
                             "give another folder")
        step = int(metadata["step"])

        def read(name: str) -> Tensor:
            dim = FEATURE_DIM.get(name.split(".")[0])
            tensor = file.get_tensor(name)
            return (tensor if dim is None else clt.ranks.own(tensor, dim)).to(clt.device)

        for name, tensor in clt.state().items():
            tensor.copy_(read(name))
        for name, parameter in clt.parameters().items():
            adam.state[parameter] = {"step": torch.tensor(float(step), device=_step_device(clt))} | {
                moment: read(f"{name}.{moment}") for moment in ("exp_avg", "exp_avg_sq")}
    return step


def _step_device(clt: TrainableCLT) -> torch.device:
    """Fused Adam on CUDA keeps its step count beside the parameters."""
    return clt.device if clt.device.type == "cuda" else torch.device("cpu")
