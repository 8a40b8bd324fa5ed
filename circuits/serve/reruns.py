"""Graphs of the folder run again on the server's model, the last few kept.

Shapes: N nodes of the graph, S source nodes of the local replacement model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from circuits.errors import CircuitsError, InputError
from circuits.serve.cache import FileCache
from circuits.serve.folder import GraphFolder
from circuits.serve.question import Report
from circuits.serve.refusal import Refusal
from circuits.serve.summary import printable
from circuits.serve.tracer import Tracer

if TYPE_CHECKING:
    from circuits.attention.components import Component
    from circuits.attention.sides import SideReader
    from circuits.features.known import Labels
    from circuits.validation.rerun import Rerun

KEPT = 2
"""Local replacement models that are kept: one holds the decoders of all features that are active on its prompt."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A graph whose prompt was run again, and the names of what it consists of."""

    rerun: Rerun
    labels: Labels

    @cached_property
    def reader(self) -> SideReader:
        """Keeps what one attention score needs for the next."""
        from circuits.attention.sides import SideReader

        return SideReader(self.rerun.model, self.rerun.local)

    @cached_property
    def _nodes(self) -> np.ndarray:
        """(S,) the graph's node of every source; -1 where it has none."""
        nodes = np.full(self.rerun.local.n_sources, -1)
        known = np.flatnonzero(self.rerun.numbers >= 0)
        nodes[self.rerun.numbers[known]] = known
        return nodes

    def node_id(self, source: int) -> str | None:
        """The id of a source's node in the graph, if it has one."""
        node = int(self._nodes[source])
        return None if node < 0 else printable(self.rerun.graph.node_ids[node])

    def name(self, component: Component) -> str:
        """A component in words."""
        label = self.label(component.layer, component.feature) if component.kind == "feature" else ""
        return printable(component.words(self.rerun.graph.header.token_texts, label))

    def label(self, layer: int, feature: int) -> str:
        """A feature's label; "" where it has none or its data cannot be read."""
        try:
            return self.labels.of(layer, [feature])[0]
        except CircuitsError:
            return ""


class Reruns:
    """Called by the worker's thread alone: it has the model to itself."""

    def __init__(self, folder: GraphFolder, tracer: Tracer):
        self._folder, self._tracer = folder, tracer
        self._kept: FileCache[Subject] = FileCache(KEPT)

    def of(self, name: str, report: Report) -> Subject:
        """The graph ``name`` with its prompt run again.

        Raises:
            CircuitsError: there is no such graph, it is damaged, or was not made with the server's model.
        """
        return self._kept.get(name, self._folder.version(name), lambda: self._run(name, report))

    def _run(self, name: str, report: Report) -> Subject:
        from circuits.features.known import Labels
        from circuits.prompt import token_text
        from circuits.validation.rerun import Rerun

        graph, _ = self._folder.load(name)
        self._tracer.check_length(len(graph.header.tokens))
        model, transcoders = self._tracer.open(report)
        try:
            rerun = Rerun.of(graph, model, transcoders, None, report)
        except InputError as error:
            if (graph.header.model, graph.header.transcoders) == (model.name, transcoders.name):
                raise
            raise Refusal(422, f"{error}; this server has {model.name} and {transcoders.name}") from error
        # what cannot be read is named without labels: the reason would tell of this machine's folders
        return Subject(rerun, Labels.open_or_warn(transcoders, lambda token: token_text(model, token), []))

