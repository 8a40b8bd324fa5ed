// A short text about the node that is pointed at, beside it.

import { icon, KIND_NAMES } from "./shapes.js";
import { element, isolated, shorten } from "./text.js";

const LABEL = 300; // characters

/** Shows the preview of the hovered node where `plot` draws it. */
export function followPointer(app, plot) {
  const box = document.getElementById("preview");
  const hide = () => (box.hidden = true);
  const show = (node) => {
    const open = app.state.left === "graph" || app.state.left === "split";
    const spot = node === null || !open || !plot.pointing ? null : plot.locate(node);
    if (spot === null) return hide();
    box.replaceChildren(...preview(app.graph, node));
    box.hidden = false;
    place(box, spot, plot.view.getBoundingClientRect().right);
  };
  app.onHover(show);
  app.subscribe((state, previous) => state.selected !== previous.selected && hide());
  // the keyboard scrolls to the node it is at; under the pointer, other nodes arrive
  plot.view.addEventListener("scroll", () => (plot.walking ? show(app.hovered) : app.hover(null)));
}

function preview(graph, node) {
  return [
    element("strong", {}, icon(graph.kind[node]), isolated(shorten(graph.names[node], LABEL), "name")),
    element("dl", {}, ...[["kind", KIND_NAMES[graph.kind[node]]], ...graph.facts(node)].map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, isolated(value))))),
  ];
}

function place(box, { x, y, radius }, end) {
  const gap = radius + 12;
  const left = x + gap + box.offsetWidth > end ? x - gap - box.offsetWidth : x + gap;
  box.style.left = `${Math.max(4, left)}px`;
  box.style.top = `${Math.max(4, Math.min(innerHeight - box.offsetHeight - 4, y - box.offsetHeight / 2))}px`;
}

/** One line about a node for screen readers. */
export function sentence(graph, node) {
  const facts = graph.facts(node).map(([name, value]) => `${name} ${value}`);
  return `${KIND_NAMES[graph.kind[node]]} ${shorten(graph.names[node], LABEL)}, ${facts.join(", ")}`;
}
