"""What a training run depends on besides the model and its text; stored with the weights, read from TOML."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from circuits.errors import InputError

SPARSITY = ("batchtopk", "jumprelu")
PRODUCTS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run. Lengths are in layers, tokens or steps; rates are per step."""

    features: int = 1536
    """Features per layer."""
    span: int = 6
    """Layers a feature writes to: its own and the next span - 1. 1 is a per-layer transcoder (PLT)."""
    skip: bool = True
    """Add an affine skip, y += x @ skip, at every layer."""
    sparsity: str = "batchtopk"
    """``batchtopk`` (arXiv 2412.06410; exported as JumpReLU) or ``jumprelu`` (Gemma Scope 2's loss)."""
    active: int = 11
    """Features per layer and position: kept on average (batchtopk), or the target L0 of the penalty (jumprelu)."""
    matryoshka: tuple[float, ...] = ()
    """Shares of the feature list, ascending and below 1, that must reconstruct on their own too (arXiv 2503.17547)."""
    l0_penalty: float = 1.0
    """jumprelu: weight of (L0 / active - 1)^2 of a layer beside its fraction of variance unexplained."""
    frequency_penalty: float = 0.1
    """jumprelu: weight of the sum over a layer's features of max(0, log10(frequency / frequency_limit)) / active."""
    frequency_limit: float = 0.1
    """jumprelu: share of positions above which a feature's frequency costs."""
    bandwidth: float = 0.05
    """jumprelu: width of the straight-through kernel around a threshold, scaled pre-activation units."""
    decoder_penalty: float = 0.0
    """Far decoders shrink by this share of their feature's decoder norm, per layer of distance and unit of learning
    rate; what reaches zero vanishes."""
    batch: int = 1016
    """Tokens per step."""
    epochs: int = 2
    """Passes over the shards that fit into the disk quota together, before the next ones are made."""
    shards: int = 16
    """Files of activations in all."""
    lr: float = 1e-3
    """Peak learning rate of Adam."""
    beta1: float = 0.9
    beta2: float = 0.999
    warmup: float = 0.02
    """Share of the run over which the learning rate rises."""
    decay: float = 0.3
    """Share of the run over which it falls to zero at the end."""
    seed: int = 0
    products: str = "auto"
    """Dtype of the dense products; master weights are float32. auto: bfloat16 on CUDA, float32 elsewhere."""
    sequences: int = 256
    """Sequences per shard."""
    length: int = 128
    """Tokens per sequence, the masked prefix included."""
    refit: int = 8
    """At the end decoders, skips and biases are refitted by ridge regression on this many shards; 0: not."""
    refit_span: int = 0
    """Span of the refit, when larger than that of training: decoders into further layers start at zero there."""
    refit_ridge: float = 1000.0
    """Ridge of that regression, in squared scaled activations."""
    features_kept: int = 0
    """Features per layer kept at the end, those that write most; 0: all. Leaves out features that stayed dead."""
    decoder_vectors: float = 1.0
    """Share of (feature, output layer) decoder vectors kept, those that matter most; the rest are not stored."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "matryoshka", tuple(self.matryoshka))
        for name in ("features", "span", "active", "epochs", "batch", "shards", "sequences", "length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: expected at least 1")
        if self.active > self.features:
            raise InputError(f"active is {self.active} of {self.features} features: expected fewer")
        if self.refit < 0:
            raise InputError(f"refit is {self.refit}: expected 0 or a number of shards")
        if self.refit_span and not self.span <= self.refit_span:
            raise InputError(f"refit_span is {self.refit_span}, span {self.span}: expected 0, or at least span")
        if not 0 <= self.features_kept <= self.features:
            raise InputError(f"features_kept is {self.features_kept} of {self.features}: expected 0 (all), or fewer")
        for name, choices in (("sparsity", SPARSITY), ("products", PRODUCTS)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {getattr(self, name)!r}: expected {' or '.join(choices)}")
        for name in ("lr", "bandwidth", "frequency_limit", "decoder_vectors"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}: expected a number above 0, at most 1")
        for name in ("warmup", "decay", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: expected a number from 0, below 1")
        for name in ("l0_penalty", "frequency_penalty", "decoder_penalty", "refit_ridge"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}: expected a number from 0")
        shares = self.matryoshka
        if any(not 0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
            raise InputError(f"matryoshka is {list(shares)}: expected ascending shares between 0 and 1")

    @property
    def prefixes(self) -> list[int]:
        """Numbers of leading features that must reconstruct on their own; the last is all of them."""
        return [max(1, round(share * self.features)) for share in self.matryoshka] + [self.features]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"matryoshka": list(self.matryoshka)}


def read_config(path: Path | None, **overrides: Any) -> tuple[TrainSettings, Any]:
    """Settings from a TOML file, with ``overrides`` that are not None on top, and its ``text`` tables if it has any
    (see :func:`circuits.training.text_config.text_from`).

    Raises:
        InputError: the file cannot be read, is not TOML, or holds a name or a value that is not a setting's.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}") from None
    tables = values.pop("text", None)
    values |= {name: value for name, value in overrides.items() if value is not None}
    known = {field.name: field for field in fields(TrainSettings)}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{name} is not a training setting: expected one of {', '.join(known)}")
        values[name] = _converted(name, value, known[name].default)
    return TrainSettings(**values), tables


def _converted(name: str, value: Any, default: Any) -> Any:
    """``value`` in the type of the setting's default: TOML's 1 is a float where a float is expected, no more."""
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and all(type(item) in (int, float) for item in value):
            return tuple(float(item) for item in value)
        raise InputError(f"{name} is {value!r}: expected a list of numbers")
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise InputError(f"{name} is {value!r}: expected a {type(default).__name__}")
    return value
