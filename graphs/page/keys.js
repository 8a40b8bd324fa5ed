// The keyboard: keys that work everywhere, and walking along edges in the link view.

import { sentence } from "./preview.js";
import { element } from "./text.js";

const VIEWS = ["graph", "subgraph", "split", "table", "attention"];

export const KEYS = [
  ["↑ ↓", "in the graph: to the strongest output, to the strongest input"],
  ["← →", "in the graph: to the stronger or weaker of these; at first, along the node's kind in its layer"],
  ["Home", "in the graph: to the first target"],
  ["Enter, Space", "in the graph: select the node pointed at"],
  ["P", "pin or unpin: in the graph the node pointed at, elsewhere the selected node"],
  ["Escape", "clear, one after the other: what is enlarged, the lit path, the edge, the selection, the search"],
  ["F2", "edit the label of the selected node, rename in the subgraph"],
  ["Delete", "in the subgraph: unpin, or take a member out"],
  ["Shift", "with click, Enter or a drag in the subgraph: choose several"],
  ["/", "search"],
  ["1 … 5", "graph, subgraph, both, table, attention"],
  ["Ctrl Z, Ctrl Y", "undo, redo (Ctrl Shift Z redoes, too)"],
  ["?", "this list"],
];

export function listenToKeys(app, plot) {
  window.addEventListener("keydown", (event) => press(event, app));
  plot.overlay.addEventListener("keydown", (event) => pressInPlot(event, app, plot));
}

function press(event, app) {
  const typing = event.target.matches?.("input, textarea, select, [contenteditable=true]");
  const writing = event.target.matches?.(
    "input:not([type=range], [type=checkbox], [type=radio]), textarea, [contenteditable=true]");
  if ((event.ctrlKey || event.metaKey) && !writing) {
    const redo = event.key === "y" || (event.key.toLowerCase() === "z" && event.shiftKey);
    if (redo) app.store.redo();
    else if (event.key === "z") app.store.undo();
    else return;
  } else if (event.key === "Escape") clear(app);
  else if (typing || document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key === "/") document.getElementById("search").focus();
  else if (event.key === "?") showKeys();
  else if (event.key === "p" && app.state.selected !== null) togglePin(app, app.state.selected);
  else if (/^[1-5]$/.test(event.key)) app.set({ left: VIEWS[Number(event.key) - 1] });
  else return;
  event.preventDefault();
}

function clear(app) {
  if (document.querySelector("dialog[open]")) document.querySelector("dialog[open]").close();
  else if (app.state.large !== null) app.set({ large: null });
  else if (app.state.path !== null) app.set({ path: null });
  else if (app.state.edge !== null) app.set({ edge: null });
  else if (app.state.selected !== null) app.select(null);
  else if (app.state.query !== "") app.set({ query: "" });
  app.hover(null);
}

function togglePin(app, node) {
  app.pin([node], !app.isPinned(node));
  app.say(app.isPinned(node) ? "Pinned" : "No longer pinned");
}

/** Arrow keys walk from the node pointed at or selected; without either, to the first target. */
function pressInPlot(event, app, plot) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if ((event.key === "Enter" || event.key === " ") && app.hovered !== null) app.select(app.hovered);
  else if (event.key === "p" && app.hovered !== null) togglePin(app, app.hovered);
  else if (event.key.startsWith("Arrow") || event.key === "Home") {
    const next = event.key === "Home" ? firstOf(app) : walk(app, event.key);
    if (next === null) return;
    plot.pointing = true;
    plot.walking = true;
    plot.reveal(next);
    app.hover(next);
    app.say(sentence(app.graph, next));
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

/** The first target that is shown, or else the most influential node. */
function firstOf({ graph, kept }) {
  return graph.targets.nodes.find((node) => kept.nodes[node])
    ?? graph.byInfluence([...graph.kind.keys()].filter((i) => kept.nodes[i]))[0] ?? null;
}

function walk(app, key) {
  const { graph, kept } = app;
  const at = app.hovered ?? app.state.selected;
  if (at === null || !kept.nodes[at]) return firstOf(app);
  if (key === "ArrowUp" || key === "ArrowDown") {
    const edges = key === "ArrowUp" ? graph.outputs(at, kept.edges) : graph.inputs(at, kept.edges);
    if (edges.length === 0) return null;
    app.walked = { edges: edges.map(({ node }) => node), place: 0 };
    return edges[0].node;
  }
  if (app.walked?.edges[app.walked.place] !== at) app.walked = { edges: likes(app, at), place: 0 };
  const { edges } = app.walked;
  const place = edges.indexOf(at) + (key === "ArrowRight" ? 1 : -1);
  app.walked.place = Math.min(edges.length - 1, Math.max(0, place));
  return edges[app.walked.place];
}

/** Kept nodes of the same kind and layer, most influential first. */
function likes(app, at) {
  const { graph, kept } = app;
  const { layer } = graph.nodes;
  const same = (i) => kept.nodes[i] && graph.kind[i] === graph.kind[at] && layer[i] === layer[at];
  return graph.byInfluence([...graph.kind.keys()].filter(same));
}

function showKeys() {
  document.getElementById("key-list")?.remove();
  const close = element("button", { type: "button" }, "Close");
  const dialog = element("dialog", { id: "key-list" }, element("h2", {}, "Keys"), element("dl", {},
    ...KEYS.map(([key, meaning]) => element("div", {}, element("dt", {}, key), element("dd", {}, meaning)))), close);
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
