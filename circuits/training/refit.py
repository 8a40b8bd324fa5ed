"""Decoders, skips and biases at their optimum: after training, ridge regression of every MLP output on what fires.

Stochastic steps leave decoders of rare features far from their optimum; with encoders and thresholds fixed the rest is
linear least squares. The ridge pulls towards the trained decoders, so that a feature hardly seen keeps its own.

Shapes: L layers, S span, F features of a layer, T tokens of a batch, D d_model, n_l decoder vectors kept for output
layer l.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from circuits.errors import InputError
from circuits.training.clt import FEATURE_DIM, TrainableCLT, weighted_rows
from circuits.training.sparsity import Firing, bag_offsets, entries
from circuits.training.trainer import Shards, scaled

BATCH = 4064
MAX_GRAM_BYTES = 4 << 30
"""Largest regression matrix of one layer, (n_l + D + 1)^2 float32."""
LINEAR_SHARE = 1e-3
"""Ridge of skip and bias as a share of the decoders'."""
CALIBRATION_TOKENS = 16_000

Report = Callable[[str, int, int], None]


@torch.no_grad()
def calibrate(clt: TrainableCLT, shards: Shards, chosen: list[int], active: float) -> None:
    """Set each layer's threshold so that ``active`` features fire per position (BatchTopK's moving average lags)."""
    if clt.jumprelu:
        return
    x = _sample(clt, shards, chosen)
    for layer in range(clt.n_layers):
        pre = clt.pre_activations(layer, x[layer]).flatten()
        clt.threshold[layer] = pre.topk(max(1, round(active * x.shape[1]))).values[-1].clamp_min(1e-6)


@torch.no_grad()
def keep_strongest(clt: TrainableCLT, shards: Shards, chosen: list[int], count: int) -> TrainableCLT:
    """The transcoder with the ``count`` features of each layer that write most, in squared norm over a sample."""
    kept = TrainableCLT(replace(clt.settings, features=count, features_kept=0), n_layers=clt.n_layers,
                        d_model=clt.d_model, device=clt.device)
    x = _sample(clt, shards, chosen)
    state, own = clt.state(), kept.state()
    for name in ("threshold", "x_scale", "y_scale"):
        own[name].copy_(state[name])
    for layer in range(clt.n_layers):
        firing = _fire(clt, layer, x[layer])
        energy = torch.zeros(clt.features, device=clt.device).index_add_(0, firing.feature, firing.value.square())
        strongest = (energy * clt.w_dec[layer].square().sum((0, 2))).topk(count).indices.sort().values
        kept.quiet_tokens[layer] = clt.quiet_tokens[layer, strongest]
        for name in ("w_enc", "b_enc", "w_dec", "b_dec", "skip", "log_threshold"):
            if f"{name}.{layer}" in state:
                dim = FEATURE_DIM.get(name)
                tensor = state[f"{name}.{layer}"]
                own[f"{name}.{layer}"].copy_(tensor if dim is None else tensor.index_select(dim, strongest))
    return kept


@torch.no_grad()
def with_span(clt: TrainableCLT, span: int) -> TrainableCLT:
    """The same transcoder with room for decoders into ``span`` layers, the further ones zero: a refit fills them at a
    fraction of what training them costs."""
    wider = TrainableCLT(replace(clt.settings, span=span), n_layers=clt.n_layers, d_model=clt.d_model,
                         device=clt.device)
    state = clt.state()
    for name, tensor in wider.state().items():
        if name.startswith("w_dec."):
            tensor.zero_()
            tensor[:len(state[name])] = state[name]
        else:
            tensor.copy_(state[name])
    return wider


def _sample(clt: TrainableCLT, shards: Shards, chosen: list[int]) -> Tensor:
    """(L, T, D) scaled inputs of about CALIBRATION_TOKENS tokens."""
    per_shard = max(256, CALIBRATION_TOKENS // len(chosen))
    samples = []
    for index in chosen:
        x, _ = shards.read(index)
        rows = torch.linspace(0, len(x) - 1, min(per_shard, len(x))).long()
        samples.append(scaled(x[rows.to(x.device)].to(clt.device), clt.x_scale))
    return torch.cat(samples, 1)


def _fire(clt: TrainableCLT, layer: int, x: Tensor) -> Firing:
    """What fires at inference, from scaled inputs (T, D): pre-activations above the threshold."""
    pre = clt.pre_activations(layer, x)
    token, feature = torch.nonzero(pre > clt.thresholds(layer), as_tuple=True)
    return entries(token, feature, pre[token, feature], len(x))


@torch.no_grad()
def refit(clt: TrainableCLT, shards: Shards, chosen: list[int], *, ridge: float, kept: float = 1.0,
          progress: Report = lambda stage, done, total: None) -> list[Tensor]:
    """Refit ``clt``'s decoders, skips and decoder biases, in place, on the shards ``chosen``.

    Args:
        ridge: in squared scaled activations summed over tokens; see :class:`TrainSettings`.
        kept: share of (feature, output layer) decoder vectors kept: those that write most, in squared norm summed over
            tokens, over all layers. The rest become zero.

    Returns:
        Per layer (S, F) bool, the decoder vectors kept.

    Raises:
        InputError: a layer's regression is too large, or the features are shared out over processes.
    """
    if clt.ranks.size > 1:
        raise InputError("decoders are refitted by one process: set refit to 0, or go on without torchrun")
    sums = _Sums(clt)
    for done, index in enumerate(chosen):
        progress("refit: reading activations", done, len(chosen))
        x, y = shards.read(index)
        for start in range(0, len(x), BATCH):
            rows = slice(start, start + BATCH)
            sums.add(scaled(x[rows].to(clt.device), clt.x_scale), scaled(y[rows].to(clt.device), clt.y_scale))
    keep = most_written(clt, sums.energy(), kept)
    for layer in range(clt.n_layers):
        columns = sum(int(keep[s][layer - s].sum()) for s in _sources(clt, layer)) + clt.d_model + 1
        if 4 * columns ** 2 > MAX_GRAM_BYTES:
            raise InputError(f"the regression of layer {layer} has {columns} columns, {4 * columns ** 2 / 2**30:.1f} "
                             "GiB: set refit to 0, or keep fewer decoder vectors")
    for layer in range(clt.n_layers):
        progress("refit: solving", layer, clt.n_layers)
        _solve(clt, sums, keep, layer, ridge)
    return keep


def most_written(clt: TrainableCLT, energy: Tensor, kept: float) -> list[Tensor]:
    """Per layer (S, F) bool: the share ``kept`` of decoder vectors that write most, over all layers.

    Args:
        energy: (L, F) squared activations summed over tokens.
    """
    written = [energy[layer] * clt.w_dec[layer].square().sum(-1) for layer in range(clt.n_layers)]
    count = round(kept * sum(w.numel() for w in written))
    limit = torch.cat([w.flatten() for w in written]).topk(count).values[-1] if kept < 1 else -torch.inf
    return [w >= limit for w in written]


def _sources(clt: TrainableCLT, layer: int) -> range:
    return range(max(0, layer - clt.settings.span + 1), layer + 1)


class _Sums:
    """What the regressions need, summed over batches; activations are kept sparse."""

    def __init__(self, clt: TrainableCLT):
        self.clt = clt
        width = 2 * clt.d_model + 1
        self.features = [{s: torch.zeros(clt.features, width) for s in _sources(clt, layer)}
                         for layer in range(clt.n_layers)]
        """Per output and source layer (F, 2 D + 1): activations times [x, 1, y]."""
        self.linear = torch.zeros(clt.n_layers, clt.d_model + 1, width)
        """[x, 1] times [x, 1, y]."""
        self.active: list[list[sparse.csr_matrix]] = [[] for _ in range(clt.n_layers)]

    def add(self, x: Tensor, y: Tensor) -> None:
        clt = self.clt
        ones = torch.ones(*x.shape[:2], 1, device=x.device)
        table = torch.cat([x, ones, y], 2)
        by_feature = []
        for layer in range(clt.n_layers):
            firing = _fire(clt, layer, x[layer])
            self.active[layer].append(sparse.csr_matrix(
                (firing.value.cpu().numpy(), firing.feature.cpu().numpy().astype(np.int32),
                 firing.offsets.cpu().numpy().astype(np.int32)), (x.shape[1], clt.features)))
            order = torch.argsort(firing.feature, stable=True)
            by_feature.append((firing.token[order], firing.value[order], bag_offsets(firing.feature, clt.features)))
            for s in _sources(clt, layer):
                self.features[layer][s] += weighted_rows(table[layer], *by_feature[s]).cpu()
            self.linear[layer] += (table[layer, :, :clt.d_model + 1].T @ table[layer]).cpu()

    def energy(self) -> Tensor:
        """(L, F) squared activations summed over tokens."""
        rows = [sum(np.asarray(part.multiply(part).sum(0))[0] for part in parts) for parts in self.active]
        return torch.from_numpy(np.stack(rows)).float().to(self.clt.device)


def _solve(clt: TrainableCLT, sums: _Sums, keep: list[Tensor], layer: int, ridge: float) -> None:
    """Set what writes to ``layer`` to the ridge regression centred on what it is."""
    d_model, sources = clt.d_model, _sources(clt, layer)
    index = {s: keep[s][layer - s].cpu().nonzero()[:, 0] for s in sources}
    active = sparse.hstack([sparse.vstack(sums.active[s], "csr")[:, index[s].numpy()] for s in sources], "csr")
    n = active.shape[1]
    gram = torch.empty(n + d_model + 1, n + d_model + 1)
    gram[:n, :n] = torch.from_numpy((active.T @ active).toarray())
    mixed = torch.cat([sums.features[layer][s][index[s]] for s in sources])
    gram[:n, n:] = mixed[:, :d_model + 1]
    gram[n:, :n] = mixed[:, :d_model + 1].T
    gram[n:, n:] = sums.linear[layer][:, :d_model + 1]
    skip = clt.skip[layer].cpu() if clt.skip else torch.zeros(d_model, d_model)
    old = torch.cat([*(clt.w_dec[s][layer - s].cpu()[index[s]] for s in sources), skip, clt.b_dec[layer].cpu()[None]])
    rest = torch.cat([mixed[:, d_model + 1:], sums.linear[layer][:, d_model + 1:]]) - gram @ old
    penalty = torch.full((len(gram),), ridge)
    penalty[n:] *= LINEAR_SHARE
    if not clt.skip:  # columns of the skip that is not there: out of the regression
        fitted = torch.cat([torch.arange(n), torch.tensor([n + d_model])])
        gram, rest, penalty, old = gram[fitted][:, fitted], rest[fitted], penalty[fitted], old[fitted]
    gram.diagonal().add_(penalty + 1e-6 * gram.diagonal().mean())
    new = (old + torch.cholesky_solve(rest, torch.linalg.cholesky(gram))).to(clt.device)
    start = 0
    for s in sources:
        w_dec = clt.w_dec[s][layer - s]
        w_dec.zero_()
        w_dec[index[s].to(clt.device)] = new[start:start + len(index[s])]
        start += len(index[s])
    if clt.skip:
        clt.skip[layer].copy_(new[n:n + d_model])
    clt.b_dec[layer].copy_(new[-1])
