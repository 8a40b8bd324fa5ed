"""``circuits train`` from end to end: text, activations, training, refit, weights, measures, feature data, report."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import circuits
from circuits.checkpoints import native
from circuits.errors import InputError
from circuits.features.collect import collect_features
from circuits.gemma3 import Gemma3
from circuits.training.activations import ActivationStore
from circuits.training.clt import TrainableCLT
from circuits.training.evaluate import Quality, evaluate_on_sequences
from circuits.training.held_out import sample_sequences
from circuits.training.ranks import Ranks
from circuits.training.refit import calibrate, keep_strongest, refit, with_span
from circuits.training.report import read_metrics, write_report
from circuits.training.settings import TrainSettings
from circuits.training.start import start_from
from circuits.training.text import SampledText, Text
from circuits.training.trainer import Progress, last_shards, schedule, train
from circuits.transcoder import Transcoders, open_transcoders

HELD_OUT_SEED = 99
HELD_OUT_TOKENS = 8192
"""Tokens of held-out text that quality is measured on."""
FEATURE_TOKENS = 500_000
"""Tokens of training text that features are described by, at most."""
START_TOKENS = 4096
"""Tokens that new features are made from when a run starts from a trained set."""

Report = Callable[[str, int, int], None]


def train_transcoder(model: Gemma3, settings: TrainSettings, folder: Path, text: Text | None = None, *,
                     storage: str = "int8", quota: int | None = None, start: Transcoders | None = None,
                     feature_data: bool = True, ranks: Ranks | None = None,
                     progress: Report = lambda stage, done, total: None) -> Quality | None:
    """Train a transcoder set for ``model`` and write it to ``folder / "transcoder"`` in the native format.

    Activations, checkpoints, ``metrics.jsonl`` and ``report.html`` go to ``folder``; a killed run goes on from them.

    Args:
        text: what it is trained on; sampled from the model by default.
        storage: of the weights: int8, bfloat16 or float32.
        quota: bytes of disk for activations; see :class:`ActivationStore`.
        start: a trained set to start from; see :func:`circuits.training.start.start_from`.
        feature_data: describe every feature beside the weights; see :func:`collect_features`.
        ranks: the processes that train together; every one must call this.

    Returns:
        Quality on held-out text: sampled from the whole vocabulary with another seed, or a shard of the files or data
        set that training did not see. None in all processes but the first.

    Raises:
        InputError: the folder cannot be written or holds a run with other settings, or the text is too short.
    """
    ranks = ranks or Ranks()
    text = text or SampledText(seed=settings.seed)
    if storage not in native.STORAGE:
        raise InputError(f"storage is {storage!r}: expected one of {', '.join(native.STORAGE)}")
    text.describe()  # a text that cannot be read fails before a folder is made
    store = ActivationStore(model, folder / "activations", text, sequences=settings.sequences, length=settings.length,
                            quota=quota, progress=progress if ranks.first else lambda stage, done, total: None)
    needed = settings.shards + (0 if isinstance(text, SampledText) else 1)
    if store.shards is not None and store.shards < needed:
        raise InputError(f"the text fills {store.shards} shards; training on {settings.shards} and measuring on "
                         f"another needs {needed}: lower shards to {max(0, store.shards - 1)} or sequences, or give "
                         "more text")
    clt = train(store, settings, folder, device=str(model.device), ranks=ranks, keep=max(1, settings.refit),
                start=None if start is None else lambda clt: _start(clt, start, store),
                progress=lambda p: progress(*_described(p)))
    if not ranks.first:
        return None
    if ranks.size > 1:  # the last checkpoint holds every process's features
        clt = train(store, settings, folder, device=str(model.device))
    target = folder / "transcoder"
    keep = None
    order = schedule(settings, store.shards_in_quota or settings.shards)
    chosen = last_shards(order, min(max(1, settings.refit), store.shards_in_quota or settings.shards))
    if settings.features_kept:
        clt = keep_strongest(clt, store, chosen, settings.features_kept)
    if settings.refit:
        calibrate(clt, store, chosen, settings.active)
        if settings.refit_span > settings.span:
            clt = with_span(clt, settings.refit_span)
        keep = refit(clt, store, chosen, ridge=settings.refit_ridge, kept=settings.decoder_vectors, progress=progress)
    for layer in range(model.n_layers):
        progress("writing", layer, model.n_layers)
        native.write_layer(target, layer, stored_layer(clt, layer, keep), storage)
    described = _describe(settings, store, start)
    config = native_config(model, settings, described)
    native.write_config(target, **config)
    transcoders = open_transcoders(target, device=model.device)
    transcoders.name = folder.resolve().name  # feature data travels with the weights: where they were made says nothing
    measured = evaluate_on_sequences(model, transcoders, _held_out(model, settings, store), progress=progress)
    native.write_config(target, **config, quality=measured.numbers())
    if feature_data:
        at_hand = chosen if store.shards_in_quota else last_shards(order, settings.shards)
        _collect(model, transcoders, store, at_hand, progress)
    write_report(folder / "report.html", metrics=read_metrics(folder / "metrics.jsonl"), transcoders=transcoders,
                 quality=measured.numbers(), density=measured.density, settings=described,
                 title=f"{config['kind'].upper()} for {model.name}")
    return measured


def stored_layer(clt: TrainableCLT, layer: int, keep: list[Tensor] | None) -> dict[str, Tensor]:
    """A layer's tensors for the native format; decoder vectors that are zero throughout are not stored.

    Args:
        keep: per layer (S, F) bool, vectors to store; without it those that are not zero.
    """
    tensors = clt.folded(layer)
    kept = tensors["W_dec"].abs().amax(-1) > 0 if keep is None else keep[layer].T.to(tensors["W_dec"].device)
    return tensors if bool(kept.all()) else tensors | {"W_dec_keep": kept.contiguous()}


def native_config(model: Gemma3, settings: TrainSettings, training: dict[str, Any]) -> dict[str, Any]:
    """What ``config.json`` says about a set trained for ``model``."""
    span = max(settings.span, settings.refit_span if settings.refit else 0)
    return {"kind": "clt" if span > 1 else "plt", "n_layers": model.n_layers, "d_model": model.d_model,
            "d_transcoder": settings.features_kept or settings.features,
            "span": min(span, model.n_layers), "model_name": model.name,
            "masked_prefix": training["masked_prefix"], "training": training}


def _describe(settings: TrainSettings, store: ActivationStore, start: Transcoders | None) -> dict[str, Any]:
    return {**settings.as_dict(), **store.describe(), "started_from": None if start is None else start.name,
            "device": str(store.model.device), "gemma_circuits": circuits.__version__, "torch": torch.__version__,
            "transformers": transformers.__version__, "python": platform.python_version()}


def _start(clt: TrainableCLT, start: Transcoders, store: ActivationStore) -> None:
    x, y = store.read(0)
    rows = torch.linspace(0, len(x) - 1, min(START_TOKENS, len(x)), device=x.device).long()
    start_from(clt, start, x[rows], y[rows])


def _held_out(model: Gemma3, settings: TrainSettings, store: ActivationStore) -> list[list[int]]:
    if isinstance(store.text, SampledText):
        return sample_sequences(model, tokens=HELD_OUT_TOKENS, length=settings.length, seed=HELD_OUT_SEED,
                                progress=store.progress)
    rows = max(1, HELD_OUT_TOKENS // settings.length)
    return store.tokens(settings.shards)[:rows].tolist()


def _collect(model: Gemma3, transcoders: Transcoders, store: ActivationStore, at_hand: list[int],
             progress: Report) -> None:
    """Describe the features on the shards ``at_hand``, as many as FEATURE_TOKENS allows."""
    chosen = at_hand[:max(1, FEATURE_TOKENS // store.tokens_per_shard)]

    def activations() -> Any:
        for index in chosen:
            tokens, (mlp_in, _) = store.tokens(index), store.read(index)
            yield tokens, mlp_in.unflatten(0, (len(tokens), -1))

    collect_features(model, transcoders, activations(), text="the training text", progress=progress,
                     expected=len(chosen) * store.tokens_per_shard)


def _described(p: Progress) -> tuple[str, int, int]:
    left = (p.steps - p.step) * (p.tokens / p.step) / max(p.tokens_per_second, 1e-9)
    stage = (f"training, variance unexplained {sum(p.fvu) / len(p.fvu):.3f}, {p.tokens_per_second:.0f} tokens/s, "
             f"{left / 60:.0f} min left")
    return stage, p.step, p.steps
