"""Components of the residual stream in words, and as nodes of a graph where it has them."""

from __future__ import annotations

from circuits.attention.components import Component
from circuits.errors import CircuitsError
from circuits.features.known import Labels
from circuits.gemma3 import Gemma3
from circuits.graph_nodes import source_numbers
from circuits.graphs.graph import AttributionGraph
from circuits.prompt import token_text
from circuits.replacement import LocalReplacement
from circuits.transcoder import Transcoders


class ComponentNames:
    """Names for one graph; features that it does not hold are named by their labels, where these can be read.

    Raises:
        InputError: ``local`` is not of the graph's prompt, model and transcoders.
    """

    def __init__(self, graph: AttributionGraph, model: Gemma3, transcoders: Transcoders, local: LocalReplacement):
        self.graph = graph
        numbers = source_numbers(graph, local)
        self._node = {int(number): node for node, number in enumerate(numbers) if number >= 0}
        self._labels = Labels.open_or_warn(transcoders, lambda token: token_text(model, token), [])

    def node(self, component: Component) -> int:
        """The graph's node; -1 where it has none."""
        return self._node.get(component.source, -1)

    def of(self, component: Component) -> str:
        """What the component is, in words."""
        texts, node = self.graph.header.token_texts, self.node(component)
        if component.kind != "feature":
            return component.words(texts)
        if node >= 0:
            return f'{self.graph.nodes.label[node]} at "{texts[component.position]}"'
        try:
            [label] = self._labels.of(component.layer, [component.feature])
        except CircuitsError:
            label = ""
        return component.words(texts, label)
