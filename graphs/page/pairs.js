// The score of one query and key at one head, before softmax, as pairs of components.

import { button } from "./button.js";
import { signedPercent } from "./edgecard.js";
import { nodeButton } from "./nodebuttons.js";
import { element, isolated, number, shorten, visibleLabel } from "./text.js";

const LABEL = 80; // characters
const OFFERED = 12; // cells with pairs that are offered as buttons

/** What is known of the score of `cell` ([query, key], or null: none is chosen) at a head. */
export function scoreElements(app, view, cell) {
  const { graph } = app;
  const { heads } = graph;
  const found = cell === null ? null : heads.scoreOf(view, ...cell);
  const title = element("h3", {}, "Why it looks there");
  if (found === null) {
    const hint = cell === null ? "Choose a cell of the pattern to see what makes its score."
      : `The score of ${cellText(graph, cell)} is not taken apart in this page.`;
    return [title, element("p", { className: "hint" }, hint), ...offers(app, view)];
  }
  const listed = found.pairs.reduce((sum, { value }) => sum + value, 0);
  return [title, element("p", {}, `Score of ${cellText(graph, cell)}: `, element("b", {}, number(found.score, true)),
    ", before softmax. "),
  element("p", { className: "hint" }, `The ${found.pairs.length} pairs below add up to ${number(listed, true)}; all `
    + `others to ${number(found.score - listed, true)}. Each is a part of the query’s position times a part of the key’s.`),
  pairTable(graph, found)];
}

function cellText(graph, [query, key]) {
  const token = (i) => `\u2068${shorten(graph.tokenAt(i), LABEL)}\u2069 (${i})`;
  return `${token(query)} looking at ${token(key)}`;
}

function offers(app, view) {
  const cells = app.graph.heads.cells(view).slice(0, OFFERED);
  if (cells.length === 0) {
    return [element("p", { className: "hint" }, "No score of this head is taken apart in this page.")];
  }
  const { graph } = app;
  const text = ([query, key]) => `\u2068${shorten(graph.tokenAt(query), 16)}\u2069 (${query}) → `
    + `\u2068${shorten(graph.tokenAt(key), 16)}\u2069 (${key})`;
  return [element("p", { className: "hint" }, "Taken apart, most looked at first:"),
    element("p", { className: "offers" }, ...cells.map((cell) => button(text(cell), () => app.set({ cell }))))];
}

export function pairTable(graph, { score, pairs }) {
  const head = element("tr", {}, ...["query side", "key side", "score", "share"].map((text) =>
    element("th", { scope: "col" }, text)));
  const largest = Math.abs(pairs[0].value);
  const rows = pairs.map(({ value, query, key }) => {
    const row = element("tr", { className: value < 0 ? "negative" : "positive" },
      element("td", {}, component(graph, query)), element("td", {}, component(graph, key)),
      element("td", {}, number(value, true)), element("td", {}, signedPercent(value / score)));
    row.style.setProperty("--share", String(largest > 0 ? Math.abs(value) / largest : 0));
    return row;
  });
  return element("table", { className: "pairs" }, element("thead", {}, head), element("tbody", {}, ...rows));
}

/** A button where the component is a node of this graph, else its name. */
function component(graph, { node, name }) {
  return node >= 0 ? nodeButton(graph, node) : isolated(shorten(visibleLabel(name), LABEL) || "unnamed", "name");
}
