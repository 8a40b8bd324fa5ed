"""Transcoders under training: parameters, one step's loss, and its gradient written out.

A per-layer transcoder is the case of span 1. Shapes: L layers, S span (output layers per feature), F features per
layer (this process's share), M Matryoshka prefixes, T tokens of a batch, D d_model, N entries that fire. Inputs and
targets are scaled: x to unit mean square, y to unit variance, per layer.

Only about 1% of features fire, so decoders are applied and their gradients formed from the entries that do
(embedding_bag and sampled products); on two CPU cores that is about ten times cheaper than the dense products.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from circuits.training.ranks import Ranks
from circuits.training.settings import TrainSettings
from circuits.training.sparsity import Firing, Penalty, bag_offsets, batch_top_k, jump_relu

DEAD_TOKENS = 50_000
"""Tokens without firing after which a feature counts as dead (and is made anew, see training/resample.py)."""
START_L0 = 4
"""jumprelu: thresholds start where this many times the target fire."""
SPARSE_PRODUCTS = ("cpu", "cuda")
"""Device types whose embedding bags take weights and whose sparse matrices take sampled products."""
FEATURE_DIM = {"w_enc": 0, "b_enc": 0, "log_threshold": 0, "w_dec": 1, "quiet_tokens": 1}
"""The dimension of each tensor that runs over features, which processes share out."""


class TrainableCLT:
    """Parameters of a CLT in scaled units; see :meth:`step` for the loss."""

    def __init__(self, settings: TrainSettings, *, n_layers: int, d_model: int, device: torch.device | str = "cpu",
                 ranks: Ranks | None = None):
        ranks = ranks or Ranks()
        ranks.check(settings.features)
        self.settings, self.ranks = settings, ranks
        self.n_layers, self.d_model = n_layers, d_model
        self.features = settings.features // ranks.size
        self.prefixes = [ranks.count(prefix) for prefix in settings.prefixes]
        self.spans = [min(settings.span, n_layers - layer) for layer in range(n_layers)]
        self.device = torch.device(device)
        bf16 = settings.products == "bfloat16" or (settings.products == "auto" and self.device.type == "cuda")
        self.products = torch.bfloat16 if bf16 else torch.float32
        self.jumprelu = settings.sparsity == "jumprelu"
        self.penalty = Penalty(settings.active, settings.l0_penalty, settings.frequency_penalty,
                               settings.frequency_limit)
        generator = torch.Generator().manual_seed(settings.seed)
        encoders = torch.randn(n_layers, settings.features, d_model, generator=generator)
        encoders = ranks.own(functional.normalize(encoders, dim=-1), 1)
        self.w_enc = [w.clone() for w in encoders]
        self.b_enc = [torch.zeros(self.features) for _ in range(n_layers)]
        self.w_dec = []
        for layer, width in enumerate(self.spans):
            w_dec = torch.zeros(width, self.features, d_model)
            w_dec[0] = 0.1 * encoders[layer]
            self.w_dec.append(w_dec)
        self.b_dec = [torch.zeros(d_model) for _ in range(n_layers)]
        self.skip = [torch.zeros(d_model, d_model) for _ in range(n_layers)] if settings.skip else []
        self.log_threshold = [torch.zeros(self.features) for _ in range(n_layers)] if self.jumprelu else []
        self.threshold = torch.zeros(n_layers)
        self.x_scale = torch.ones(n_layers)
        self.y_scale = torch.ones(n_layers)
        self.quiet_tokens = torch.zeros(n_layers, self.features)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(self.device))
            elif isinstance(value, list) and value and isinstance(value[0], Tensor):
                setattr(self, name, [tensor.to(self.device) for tensor in value])

    def parameters(self) -> dict[str, Tensor]:
        """Trained tensors by name."""
        names = ("w_enc", "b_enc", "w_dec", "b_dec", "skip", "log_threshold")
        return {f"{name}.{layer}": tensor for name in names for layer, tensor in enumerate(getattr(self, name))}

    def state(self) -> dict[str, Tensor]:
        """Everything a checkpoint needs to go on."""
        return self.parameters() | {name: getattr(self, name)
                                    for name in ("threshold", "x_scale", "y_scale", "quiet_tokens")}

    @torch.no_grad()
    def start_linear(self, x: Tensor, y: Tensor, ridge: float = 1e-3) -> None:
        """Set scales, and skip and decoder bias to the ridge regression of y on x, so features learn the rest.

        Args:
            x, y: (T, L, D) unscaled activations of a first sample.
        """
        for layer in range(self.n_layers):
            xs, ys = x[:, layer].to(self.device, torch.float32), y[:, layer].to(self.device, torch.float32)
            self.x_scale[layer] = xs.pow(2).mean().sqrt()
            y_mean, x_mean = ys.mean(0), xs.mean(0)
            self.y_scale[layer] = (ys - y_mean).pow(2).mean().sqrt()
            self.b_dec[layer].copy_(y_mean / self.y_scale[layer])
            if self.skip:
                xs, ys = (xs - x_mean) / self.x_scale[layer], (ys - y_mean) / self.y_scale[layer]
                gram = xs.T @ xs / len(xs)
                gram.diagonal().add_(ridge)
                self.skip[layer].copy_(torch.linalg.solve(gram, xs.T @ ys / len(xs)))
                self.b_dec[layer] -= x_mean / self.x_scale[layer] @ self.skip[layer]
            if self.jumprelu:
                sample = x[:2048, layer].to(self.device, torch.float32) / self.x_scale[layer]
                rate = min(0.5, START_L0 * self.settings.active / self.settings.features)
                quantile = torch.quantile(sample @ self.w_enc[layer].T, 1.0 - rate, dim=0)
                self.log_threshold[layer].copy_(quantile.clamp_min(1e-3).log())

    def pre_activations(self, layer: int, x: Tensor) -> Tensor:
        """(T, F) from scaled inputs x (T, D)."""
        return self._product(x, self.w_enc[layer].T).add_(self.b_enc[layer])

    def fire(self, x: Tensor) -> list[Firing]:
        """Entries that fire in training, per layer, from scaled inputs x (L, T, D)."""
        if self.jumprelu:
            return [jump_relu(self.pre_activations(layer, x[layer]), self.log_threshold[layer].exp(),
                              self.settings.bandwidth) for layer in range(self.n_layers)]
        pre = [self.pre_activations(layer, x[layer]) for layer in range(self.n_layers)]
        return batch_top_k(pre, self.settings.active, self.threshold, self.ranks)

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss and gradients on one batch.

        The loss is the sum over layers of the mean squared error per token and dimension (times D), averaged over the
        Matryoshka prefixes, and with jumprelu the penalties of :class:`~circuits.training.sparsity.Penalty`.

        Args:
            x, y: (L, T, D) scaled.

        Returns:
            The loss; (L,) fraction of variance unexplained on the batch; the gradient of every parameter by name.
        """
        firing = self.fire(x)
        errors = self.errors(firing, x, y)
        fvu = errors[-1].pow(2).mean((1, 2))
        loss = sum((error.pow(2).sum() / x.shape[1] for error in errors[:-1]), fvu.sum() * self.d_model)
        loss = loss / len(errors)
        # what a feature of group g writes is in the prefixes from g on
        for i in range(len(errors) - 2, -1, -1):
            errors[i] += errors[i + 1]
        for error in errors:
            error.mul_(2.0 / (x.shape[1] * len(errors)))
        gradients: dict[str, Tensor] = {}
        for layer, active in enumerate(firing):
            layer_loss, layer_gradients = self._gradients(layer, active, x[layer], errors)
            loss = loss + layer_loss
            gradients |= layer_gradients
            self._track(layer, active, x.shape[1])
        return loss, fvu, gradients

    def _groups(self) -> list[tuple[int, int]]:
        return list(zip([0, *self.prefixes[:-1]], self.prefixes, strict=True))

    def errors(self, firing: list[Firing], x: Tensor, y: Tensor) -> list[Tensor]:
        """Per prefix, reconstruction minus y (L, T, D)."""
        written = torch.zeros_like(y)
        if self.ranks.first:
            for layer in range(self.n_layers):
                written[layer] = self.b_dec[layer] - y[layer]
                if self.skip:
                    written[layer] += self._product(x[layer], self.skip[layer])
        errors = []
        groups = self._groups()
        for start, stop in groups:
            for layer, active in enumerate(firing):
                part = active if len(groups) == 1 else active.within(start, stop)
                for j in range(self.spans[layer]):
                    written[layer + j] += weighted_rows(self.w_dec[layer][j], part.feature, part.value, part.offsets)
            errors.append(self.ranks.sum_(written.clone() if stop < self.features or self.ranks.size > 1 else written))
        return errors

    def _gradients(self, layer: int, firing: Firing, x: Tensor, errors: list[Tensor]
                   ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The layer's penalty, and the gradients of its parameters.

        Args:
            errors: per group of features, the gradient at the outputs (L, T, D).
        """
        d_dec = torch.empty_like(self.w_dec[layer])
        parts, d_values = [], []
        for (start, stop), g in zip(self._groups(), errors, strict=True):
            part = firing if len(errors) == 1 else firing.within(start, stop)
            by_feature = torch.argsort(part.feature, stable=True)
            token, value = part.token[by_feature], part.value[by_feature]
            offsets = bag_offsets(part.feature - start, stop - start)
            d_value = torch.zeros_like(part.value)
            for j in range(self.spans[layer]):
                d_value += entry_products(part, g[layer + j], self.w_dec[layer][j])
                d_dec[j, start:stop] = weighted_rows(g[layer + j], token, value, offsets)
            parts.append(part)
            d_values.append(d_value)
        entry = firing if len(parts) == 1 else _joined(parts)
        d_value = torch.cat(d_values)
        d_pre = d_value * (entry.value > 0)
        by_feature = torch.argsort(entry.feature, stable=True)
        gradients = {f"w_dec.{layer}": d_dec,
                     f"w_enc.{layer}": weighted_rows(x, entry.token[by_feature], d_pre[by_feature],
                                                     bag_offsets(entry.feature, self.features)),
                     f"b_enc.{layer}": torch.zeros_like(self.b_enc[layer]).index_add_(0, entry.feature, d_pre),
                     f"b_dec.{layer}": errors[0][layer].sum(0)}
        if self.skip:
            gradients[f"skip.{layer}"] = self._product(x.T, errors[0][layer])
        if not self.jumprelu:
            return 0.0, gradients
        loss, slope = self.penalty.loss_and_slope(entry, self.features, self.ranks)
        theta = self.log_threshold[layer].exp()
        assert entry.near is not None
        # straight-through: d value/d theta = -theta K/bandwidth, d frequency/d theta = -K/(bandwidth T); K a box
        # penalties count in units of a layer's FVU, the loss in D times that
        d_theta = -(theta[entry.feature] * d_value + self.d_model / len(x) * slope[entry.feature]) * entry.near
        d_theta = torch.zeros_like(theta).index_add_(0, entry.feature, d_theta / self.settings.bandwidth)
        gradients[f"log_threshold.{layer}"] = d_theta * theta
        return self.d_model * loss, gradients

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b if self.products == torch.float32 else (a.to(self.products) @ b.to(self.products)).float()

    def _track(self, layer: int, firing: Firing, tokens: int) -> None:
        firing_now = firing.feature[firing.value > 0]
        if not self.jumprelu:
            lowest = firing.value.amin() if len(firing.value) else torch.tensor(torch.inf, device=self.device)
            lowest = self.ranks.gather(lowest).amin()
            old = self.threshold[layer]
            if torch.isfinite(lowest):
                self.threshold[layer] = lowest if old == 0 else old + 0.02 * (lowest - old)
        self.quiet_tokens[layer] += tokens
        self.quiet_tokens[layer, firing_now] = 0

    def thresholds(self, layer: int) -> Tensor:
        """(F,) JumpReLU thresholds of a layer, scaled units."""
        if self.jumprelu:
            return self.log_threshold[layer].exp()
        return self.threshold[layer].expand(self.features)

    def mean_threshold(self, layer: int) -> Tensor:
        """Over all processes' features of a layer, scaled units."""
        if not self.jumprelu:
            return self.threshold[layer]
        return self.ranks.sum_(self.thresholds(layer).sum()) / self.settings.features

    @torch.no_grad()
    def shrink_far_decoders(self, rate: float) -> None:
        """Pull every decoder vector towards zero by ``rate`` times its distance in layers times its feature's decoder
        norm, and to zero where that is all of it (a group lasso's proximal step; relative, so that scaling a
        feature's encoder up does not evade it)."""
        for w_dec in self.w_dec:
            norms = w_dec.norm(dim=-1)
            total = norms.square().sum(0).sqrt()
            distance = torch.arange(len(w_dec), device=w_dec.device)[:, None]
            w_dec *= (1.0 - rate * distance * total / norms.clamp_min(1e-12)).clamp_(0.0, 1.0)[:, :, None]

    def folded(self, layer: int) -> dict[str, Tensor]:
        """One layer in unscaled units, as JumpReLU, this process's features: what inference reads.

        Returns:
            W_enc (F, D), b_enc (F,), threshold (F,), W_dec (F, S, D), b_dec (D,), skip (D, D); y += x @ skip.
        """
        y_scales = self.y_scale[layer:layer + self.spans[layer], None, None]
        tensors = {"W_enc": self.w_enc[layer] / self.x_scale[layer], "b_enc": self.b_enc[layer].clone(),
                   "threshold": self.thresholds(layer).clone(),
                   "W_dec": (self.w_dec[layer] * y_scales).transpose(0, 1).contiguous(),
                   "b_dec": self.b_dec[layer] * self.y_scale[layer]}
        if self.skip:
            tensors["skip"] = self.skip[layer] * (self.y_scale[layer] / self.x_scale[layer])
        return tensors


def weighted_rows(table: Tensor, index: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """(len(offsets) - 1, D) sums of ``weight * table[index]`` over each bag of entries."""
    if table.device.type in SPARSE_PRODUCTS:
        return functional.embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weight,
                                        include_last_offset=True)
    bag = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=table.device), offsets.diff())
    return table.new_zeros(len(offsets) - 1, table.shape[1]).index_add_(0, bag, table[index] * weight[:, None])


def entry_products(firing: Firing, g: Tensor, w: Tensor) -> Tensor:
    """(N,) inner products of g (T, D) and w (F, D) at the entries that fire."""
    if g.device.type in SPARSE_PRODUCTS:
        pattern = torch.sparse_csr_tensor(firing.offsets, firing.feature, torch.zeros_like(firing.value),
                                          (len(g), len(w)), check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, g, w.T, beta=0.0).values()
    chunks = zip(firing.token.split(65536), firing.feature.split(65536), strict=True)
    return torch.cat([(g[token] * w[feature]).sum(-1) for token, feature in chunks])


def _joined(parts: list[Firing]) -> Firing:
    """Entries of several groups; their order by token is not kept, and nothing after asks for it."""
    near = None if parts[0].near is None else torch.cat([p.near for p in parts if p.near is not None])
    return Firing(torch.cat([p.token for p in parts]), torch.cat([p.feature for p in parts]),
                  torch.cat([p.value for p in parts]), parts[0].offsets, near)
