// Buttons that stand for nodes: a click selects the node, pointer and focus point at it in the graph.

import { icon, KIND_NAMES } from "./shapes.js";
import { element, isolated, shorten } from "./text.js";

const LABEL = 80; // characters

/** A button for a node inside a sentence; `parts` (strings and elements) stand in place of its name where given. */
export function nodeButton(graph, node, parts = null) {
  const kind = graph.kind[node];
  const title = `Show this ${KIND_NAMES[kind]}`;
  const made = element("button", { type: "button", className: "node", title }, icon(kind),
    ...(parts ?? [isolated(shorten(graph.names[node], LABEL), "name")]));
  made.dataset.node = node;
  return made;
}

/** Makes the buttons with data-node inside `root` work. */
export function followNodes(app, root) {
  const nodeOf = (event) => {
    const found = event.target.closest("button[data-node]");
    return found ? Number(found.dataset.node) : null;
  };
  root.addEventListener("click", (event) => {
    if (nodeOf(event) !== null) showNode(app, nodeOf(event));
  });
  for (const type of ["pointerover", "focusin"]) root.addEventListener(type, (event) => app.hover(nodeOf(event)));
  for (const type of ["pointerleave", "focusout"]) root.addEventListener(type, () => app.hover(null));
}

/** Select a node and go on in its card, where the keyboard goes too. */
export function showNode(app, node) {
  app.select(node);
  document.querySelector("#panel h2")?.focus();
}
