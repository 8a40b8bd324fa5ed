// Buttons that stand for edges and for attention heads.

import { element } from "./text.js";

const opener = element("button",
  { type: "button", className: "open-edge", title: "Show this edge and its heads" }, "›");
opener.setAttribute("aria-label", opener.title);

/** The small button at the end of a list's row that opens its edge: a copy, since a list may have thousands. */
export function openButton(edge) {
  const made = opener.cloneNode(true);
  made.dataset.edge = edge;
  return made;
}

/** Makes the buttons with data-edge and data-head inside `root` work. */
export function followEdges(app, root) {
  root.addEventListener("click", (event) => {
    const edge = event.target.closest("button[data-edge]");
    const head = event.target.closest("button[data-head]");
    if (edge) {
      app.set({ edge: Number(edge.dataset.edge), right: "node" });
      document.querySelector("#panel h2")?.focus();
    } else if (head) app.set({ head: head.dataset.head, left: "attention", large: null });
  });
  const point = (event) => {
    const found = event.target.closest("button[data-edge]");
    if (!found) return;
    const edge = Number(found.dataset.edge);
    app.hover(app.graph.edges.indices[edge], [app.graph.target[edge]]);
  };
  for (const type of ["pointerover", "focusin"]) root.addEventListener(type, point);
}
