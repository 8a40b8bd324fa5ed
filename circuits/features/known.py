"""What is known of a transcoder set's features: data and labels in its folder, or in files named instead."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from circuits.errors import CircuitsError, FormatError
from circuits.features.file import FILE_NAME, FeatureData
from circuits.features.imported import LABELS_FILE, read_labels
from circuits.features.rule import compose, label
from circuits.graphs.graph import AttributionGraph
from circuits.transcoder import Transcoders


def feature_data(transcoders: Transcoders) -> FeatureData | None:
    """The feature data beside a transcoder set; None without any.

    Raises:
        FormatError: damaged, or collected from other weights.
    """
    path = None if transcoders.folder is None else transcoders.folder / FILE_NAME
    return open_feature_data(transcoders, path) if path is not None and path.is_file() else None


def open_feature_data(transcoders: Transcoders, where: str | Path) -> FeatureData:
    """Open feature data and check that it was collected from these weights.

    Raises:
        InputError: there is none.
        FormatError: damaged, or collected from other weights.
    """
    data = FeatureData.open(where)
    if data.header.get("weights") != fingerprint(transcoders):
        raise FormatError(f"{data.path} was collected from other weights than {transcoders.name}: delete it, or "
                          "collect it again with circuits features --collect")
    return data


def fingerprint(transcoders: Transcoders) -> str:
    """Digest of every layer's biases, which conversions between formats leave as they are."""
    digest = hashlib.sha256()
    for layer, width in enumerate(transcoders.d_transcoder):
        for bias in (transcoders.encoder_bias(layer, torch.arange(width)), transcoders.b_dec(layer)):
            digest.update(bias.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class Labels:
    """Short names of features: imported ones first, then the rule's from feature data, then from the label tokens of
    a native file; a feature of which none of these knows anything has no label ("")."""

    def __init__(self, transcoders: Transcoders, *, imported: dict[tuple[int, int], str] | None = None,
                 data: FeatureData | None = None, text: Callable[[int], str] | None = None):
        """
        Args:
            text: the text of a token; without it, label tokens are not used.
        """
        self.transcoders, self.imported, self.data, self.text = transcoders, imported or {}, data, text

    @classmethod
    def open(cls, transcoders: Transcoders, *, labels: Path | None = None, data: Path | None = None,
             text: Callable[[int], str] | None = None) -> Labels:
        """What lies beside the transcoders, or in the files named.

        Raises:
            InputError: a file named is absent, or its labels are of other features.
            FormatError: a damaged file, or data collected from other weights.
        """
        beside = None if transcoders.folder is None else transcoders.folder / LABELS_FILE
        labels = labels or (beside if beside is not None and beside.is_file() else None)
        imported = None if labels is None else read_labels(labels, transcoders.d_transcoder)
        opened = feature_data(transcoders) if data is None else open_feature_data(transcoders, data)
        return cls(transcoders, imported=imported, data=opened, text=text)

    @classmethod
    def open_or_warn(cls, transcoders: Transcoders, text: Callable[[int], str], warnings: list[str]) -> Labels:
        """:meth:`open`, where labels that cannot be read cost a warning, put into ``warnings``, and not the result."""
        try:
            return cls.open(transcoders, text=text)
        except CircuitsError as error:
            warnings.append(f"features have no labels: {error}")
            return cls(transcoders)

    def of(self, layer: int, features: list[int]) -> list[str]:
        """The labels of some features of a layer."""
        found = {i: self.imported[layer, i] for i in features if (layer, i) in self.imported}
        unknown = sorted(set(features) - set(found))
        if self.data is not None:
            for i in unknown:
                feature = self.data.read(layer, i)
                found[i] = "" if feature is None else label(feature, self.data.n_layers)
            unknown = [i for i in unknown if not found[i]]
        tokens = self.transcoders.label_tokens(layer, torch.tensor(unknown)) if unknown and self.text else None
        if tokens is not None and self.text is not None:
            says, on = ([[self.text(t) for t in row if t >= 0] for row in column.tolist()] for column in tokens)
            early = 3 * layer < self.transcoders.n_layers
            found |= {i: compose(on[row], [], [] if early and on[row] else says[row])
                      for row, i in enumerate(unknown)}
        return [found.get(i, "") for i in features]


def relabel(graph: AttributionGraph, labels: dict[tuple[int, int], str]) -> None:
    """Give a graph's feature nodes other labels, in place; those without one in ``labels`` keep theirs."""
    nodes = graph.nodes
    for node in (nodes.kind == "feature").nonzero()[0]:
        name = (int(nodes.layer[node]), int(nodes.feature[node]))
        if name in labels:
            nodes.label[node] = feature_name(*name, labels[name])


def feature_name(layer: int, feature: int, label: str) -> str:
    """A feature's name in a graph: where to look it up, and its label."""
    return f"{layer}/{feature} {label}".rstrip()
