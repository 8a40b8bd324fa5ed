"""The local replacement model of one prompt: frozen maps, active features, errors and constants (METHOD 1-3).

Shapes: L layers, P positions, D d_model, N active features, M masked leading positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from circuits.errors import InputError
from circuits.frozen import FrozenPass
from circuits.gemma3 import Gemma3
from circuits.prompt import masked_prefix
from circuits.transcoder import Transcoders

READ_AT_ONCE = 4096
"""Features whose decoders are read at once."""
MULTIPLIED_AT_ONCE = 512
"""Vectors that are gathered at once to be multiplied."""


@dataclass(frozen=True)
class SparseActivations:
    """Active features of a prompt, sorted by (layer, position, feature)."""

    layer: Tensor
    """(N,) int64"""
    position: Tensor
    """(N,) int64"""
    feature: Tensor
    """(N,) int64"""
    value: Tensor
    """(N,) float32"""

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True)
class Writes:
    """What is written into the residual stream at one layer's MLP output, sorted by position: features that are active
    and write there, and at every position the error (at masked ones the MLP output less what passes through the skip,
    a constant). On the layer's device."""

    decoders: Tensor
    """(U, D) decoder vectors, one for each distinct feature; then one error for each position."""
    position: Tensor
    """(W,) int64, ascending."""
    row: Tensor
    """(W,) int64 into ``decoders``."""
    value: Tensor
    """(W,) float32 activation; 1 for errors."""
    node: Tensor
    """(W,) int64 source node."""
    ends: list[int]
    """(P,) where each position's writes end."""

    def before(self, n_positions: int) -> int:
        """Writes at the first ``n_positions`` positions."""
        return self.ends[n_positions - 1] if n_positions else 0

    def sum(self) -> Tensor:
        """(P, D) sum of all writes at each position."""
        starts = self.row.new_tensor([0, *self.ends[:-1]])
        return embedding_bag(self.row, self.decoders, starts, mode="sum", per_sample_weights=self.value)


@dataclass(frozen=True)
class LocalReplacement:
    """Everything the sweep needs. Source nodes are numbered: features, errors (layer-major, unmasked positions),
    embeddings, constants (decoder bias per layer, then MLP outputs at masked positions, layer-major)."""

    frozen: FrozenPass
    active: SparseActivations
    encoders: list[Tensor]
    """Per layer (U, D): encoder vectors of the distinct features that are active."""
    encoder_row: Tensor
    """(N,) where each active feature's encoder stands in its layer's table."""
    encoder_values: Tensor
    """(N,) pre-activation minus encoder bias: what the edges into the feature must sum to."""
    writes: list[Writes]
    biases: Tensor
    """(L, D) decoder biases."""
    skips: list[Tensor | None]
    """Per layer (D, D) or None: y += x @ skip."""
    masked: int
    reconstruction: list[float]
    """Per layer: squared error over squared norm of the MLP output, unmasked positions."""

    def encoder_vectors(self, nodes: Tensor) -> Tensor:
        """(n, D) encoder vectors of the active features ``nodes`` (n,)."""
        found = self.encoders[0].new_empty(len(nodes), self.encoders[0].shape[1])
        layers = self.active.layer[nodes]
        for layer in layers.unique().tolist():
            here = layers == layer
            found[here] = self.encoders[layer][self.encoder_row[nodes[here]]]
        return found

    def error(self, layer: int, position: int) -> Tensor:
        """(D,) what the transcoder misses of a layer's MLP output at an unmasked position."""
        return self.writes[layer].decoders[position - self.n_positions]

    @property
    def n_layers(self) -> int:
        return len(self.writes)

    @property
    def n_positions(self) -> int:
        return len(self.frozen.tokens)

    @property
    def n_errors(self) -> int:
        return self.n_layers * (self.n_positions - self.masked)

    @property
    def first_embedding(self) -> int:
        return len(self.active) + self.n_errors

    @property
    def first_constant(self) -> int:
        return self.first_embedding + self.n_positions

    @property
    def n_sources(self) -> int:
        return self.first_constant + self.n_layers * (1 + self.masked)


def build_replacement(model: Gemma3, transcoders: Transcoders, tokens: list[int],
                      progress: Callable[[str, int, int], None] = lambda stage, done, total: None) -> LocalReplacement:
    """Run the prompt once, read the features that fire and measure what they leave unexplained.

    Encoders are read one layer at a time, decoder rows for active features only.

    Raises:
        InputError: the transcoders belong to another model.
    """
    transcoders.check_model(model.n_layers, model.d_model, model.name)
    masked = masked_prefix(tokens)
    if len(tokens) <= masked:
        raise InputError(f"the prompt is only the {masked} tokens where features are not read: make it longer")
    frozen = model.freeze(tokens)
    found, encoders, values = [], [], []
    for layer in range(model.n_layers):
        progress("features", layer, model.n_layers)
        x = frozen.mlp_in[layer]
        position, feature, value = transcoders.encode(layer, x[masked:])
        position = position + masked
        distinct, row = torch.unique(feature, return_inverse=True)
        table = transcoders.encoder_rows(layer, distinct).to(x)
        found.append((position, feature, value, distinct, row))
        encoders.append(table)
        values.append(_inner(table, row, x, position))
    active = SparseActivations(
        layer=torch.cat([torch.full_like(layer[0], i) for i, layer in enumerate(found)]),
        position=torch.cat([layer[0] for layer in found]), feature=torch.cat([layer[1] for layer in found]),
        value=torch.cat([layer[2] for layer in found]))
    skips = [_to(transcoders.skip(i), frozen.mlp_in) for i in range(model.n_layers)]
    biases = torch.stack([transcoders.b_dec(i).to(frozen.mlp_in) for i in range(model.n_layers)])
    tables = [(distinct, row) for *_, distinct, row in found]
    writes, reconstruction = _writes(transcoders, frozen, active, tables, skips, biases, masked)
    return LocalReplacement(frozen=frozen, active=active, encoders=encoders,
                            encoder_row=torch.cat([row for _, row in tables]), encoder_values=torch.cat(values),
                            writes=writes, biases=biases, skips=skips, masked=masked, reconstruction=reconstruction)


def _inner(table: Tensor, row: Tensor, x: Tensor, position: Tensor) -> Tensor:
    """(n,) <table[row], x[position]>."""
    pairs = zip(row.split(MULTIPLIED_AT_ONCE), position.split(MULTIPLIED_AT_ONCE), strict=True)
    return torch.cat([(table[some] * x[where]).sum(-1) for some, where in pairs])


@dataclass
class _Pending:
    """Writes of features to one layer, as earlier layers' decoders are read."""

    decoders: list[Tensor] = field(default_factory=list)
    nodes: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    n_rows: int = 0

    def add(self, decoders: Tensor, nodes: Tensor, rows: Tensor) -> None:
        """(u, D) vectors; (w,) active features that write them and, of each, the row in ``decoders``."""
        self.decoders.append(decoders)
        self.nodes.append(nodes)
        self.rows.append(rows + self.n_rows)
        self.n_rows += len(decoders)


def _writes(transcoders: Transcoders, frozen: FrozenPass, active: SparseActivations,
            tables: list[tuple[Tensor, Tensor]], skips: list[Tensor | None], biases: Tensor,
            masked: int) -> tuple[list[Writes], list[float]]:
    """Of every layer: its writes, and how much of the MLP output its error is."""
    pending = [_Pending() for _ in tables]
    writes, reconstruction = [], []
    first_node = 0
    for layer, (distinct, row) in enumerate(tables):
        nodes = first_node + torch.arange(len(row), device=row.device)
        first_node += len(row)
        for start in range(0, max(len(distinct), 1), READ_AT_ONCE):
            _read_decoders(transcoders, layer, distinct[start:start + READ_AT_ONCE], start, row, nodes, frozen.mlp_in,
                           pending)
        writes.append(_layer_writes(layer, pending[layer], frozen, active, skips[layer], biases[layer], masked))
        pending[layer] = _Pending()
        error = writes[-1].decoders[len(writes[-1].decoders) - len(frozen.tokens) + masked:]
        reconstruction.append(float(error.square().sum() / frozen.mlp_out[layer, masked:].square().sum()))
    return writes, reconstruction


def _read_decoders(transcoders: Transcoders, layer: int, distinct: Tensor, start: int, row: Tensor, nodes: Tensor,
                   like: Tensor, pending: list[_Pending]) -> None:
    """Read the decoders of some ``distinct`` features of a layer, the first of which is number ``start``, and note
    them at every layer they write to."""
    here = (row >= start) & (row < start + len(distinct))
    nodes, row = nodes[here], row[here] - start
    decoders = transcoders.decoder_rows(layer, distinct).to(like)
    stored = transcoders.decoder_outputs(layer, distinct).to(like.device)
    for j, output in enumerate(transcoders.output_layers(layer)):
        has = stored[:, j]
        number = has.cumsum(0) - 1
        writing = has[row]
        pending[output].add(decoders[has, j], nodes[writing], number[row[writing]])


def _layer_writes(layer: int, pending: _Pending, frozen: FrozenPass, active: SparseActivations, skip: Tensor | None,
                  bias: Tensor, masked: int) -> Writes:
    n_layers, n_positions, _ = frozen.mlp_in.shape
    unmasked = n_positions - masked
    decoders, node, row = (torch.cat(part) for part in (pending.decoders, pending.nodes, pending.rows))
    y, x = frozen.mlp_out[layer], frozen.mlp_in[layer]
    linear = torch.zeros_like(y) if skip is None else x @ skip
    features = _sorted_writes(decoders, active.position[node], row, active.value[node], node, n_positions)
    error = y - (linear + bias + features.sum())
    error[:masked] = (y - linear)[:masked]
    where = torch.arange(n_positions, device=y.device)
    first_masked = len(active) + n_layers * unmasked + n_positions + n_layers
    errors = torch.where(where < masked, first_masked + layer * masked + where,
                         len(active) + layer * unmasked + where - masked)
    made = _sorted_writes(torch.cat([decoders, error]), torch.cat([active.position[node], where]),
                          torch.cat([row, len(decoders) + where]),
                          torch.cat([active.value[node], torch.ones_like(error[:, 0])]), torch.cat([node, errors]),
                          n_positions)
    device = frozen.layers[layer].queries.device
    return Writes(made.decoders.to(device), made.position.to(device), made.row.to(device), made.value.to(device),
                  made.node.to(device), made.ends)


def _sorted_writes(decoders: Tensor, position: Tensor, row: Tensor, value: Tensor, node: Tensor,
                   n_positions: int) -> Writes:
    order = torch.argsort(position, stable=True)
    ends = torch.bincount(position, minlength=n_positions).cumsum(0).tolist()
    return Writes(decoders, position[order], row[order], value[order], node[order], ends)


def _to(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(like)
