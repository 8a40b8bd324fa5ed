// One edge: what it connects, how strong it is, and which attention heads carry it.

import { button } from "./button.js";
import { headName } from "./heads.js";
import { askButton, withQuery } from "./live_asked.js";
import { nodeButton } from "./nodebuttons.js";
import { element, isolated, number, percent, shorten } from "./text.js";

const LABEL = 60; // characters of a node's name in the heading
const HOW = "circuits attention graph.safetensors -o page.html";

/** {elements, refresh(state)}: all of an edge, and what follows the state in place. */
export function edgeCard(app, edge, folds) {
  const { graph } = app;
  const [source, target] = [graph.edges.indices[edge], graph.target[edge]];
  const name = (node) => isolated(shorten(graph.names[node], LABEL), "name");
  const close = element("button", { type: "button", className: "close", title: "Close the edge (Escape)" }, "×");
  close.setAttribute("aria-label", "Close the edge");
  close.addEventListener("click", () => {
    app.set({ edge: null });
    document.querySelector("#panel h2")?.focus();
  });
  const light = button("Light", () => app.set({ path: isLit(app.state, source, target) ? null : [source, target] }),
    { title: "Light this edge in the graph" });
  const refresh = (state) => light.setAttribute("aria-pressed", String(isLit(state, source, target)));
  refresh(app.state);
  const title = element("div", { className: "title" },
    element("h2", { tabIndex: -1 }, name(source), " → ", name(target)), close);
  const elements = [title, element("div", { className: "node-tools" }, light), sentence(graph, edge, source, target),
    about(app, edge, source, target), element("div", { className: "sections" }, ...headSections(app, edge, folds))];
  return { elements, refresh };
}

function isLit({ path }, source, target) {
  return path !== null && path.length === 2 && path.includes(source) && path.includes(target);
}

function sentence(graph, edge, source, target) {
  const [verb, sign] = graph.edges.weights[edge] < 0 ? ["lowers", "negative"] : ["raises", "positive"];
  return element("p", { className: "lead" }, nodeButton(graph, source), " ",
    element("em", { className: sign }, verb), " ", nodeButton(graph, target), ".");
}

function about(app, edge, source, target) {
  const { graph } = app;
  const facts = [["weight", number(graph.edges.weights[edge], true), "direct effect of the source on the target"],
    ["share", percent(graph.share(edge)), "of all inputs of the target; constants stand outside"],
    ["from", graph.place(source), "layer · position"], ["to", graph.place(target), "layer · position"]];
  if (!app.kept.edges[edge]) facts.push(["pruned", "at the current thresholds", ""]);
  return element("dl", { className: "about" }, ...facts.map(([name, text, meaning]) =>
    element("div", { title: meaning }, element("dt", {}, name), element("dd", {}, text))));
}

function headSections(app, edge, folds) {
  const { graph } = app;
  const missing = (...told) => (graph.values.live?.heads ? [askHeads(graph, edge, folds)]
    : [folds.section("heads", "Attention heads", "", element("p", { className: "hint" }, ...told))]);
  if (graph.heads === null) {
    return missing("This page does not say which attention heads carry its edges. A page that does is made by ",
      element("code", {}, HOW), ".");
  }
  const parts = graph.heads.ofEdge(graph.edges.indices[edge], graph.target[edge]);
  if (parts.length === 0) return missing("No head is listed for this edge: only the strongest edges were looked at.");
  return foundHeads(parts, graph.edges.weights[edge], folds);
}

/** A button that asks the server for an edge's heads. */
function askHeads(graph, edge, folds) {
  const [source, target] = [graph.edges.indices[edge], graph.target[edge]].map((node) => graph.ids[node]);
  const address = withQuery(graph.values.live.heads, { source, target });
  return askButton("Which attention heads carry it?", address, ({ heads, weight }) => (heads.length === 0
    ? [element("p", {}, "No head: the edge passes by all attention.")]
    : foundHeads(heads.map(({ layer, head, loading }) => ({ key: `${layer}.${head}`, layer, loading })), weight,
      folds)));
}

function foundHeads(parts, weight, folds) {
  return [
    folds.section("heads", `Attention heads (${parts.length})`, "share: of this edge", headList(parts, weight),
      element("p", { className: "hint" }, "A head opens its attention pattern. Parts of different layers are not to be "
        + "added up: the edge passes through one layer after the other.")),
    folds.section("layers", "Layer by layer", "", layerTable(parts, weight),
      element("p", { className: "hint" }, "At every attention layer between source and target, the parts of all heads "
        + "and what passes by without attention add up to the edge. Heads that are not listed are in “passes by”.")),
  ];
}

/** A row for each head, its bar as long as its part against the largest. */
function headList(parts, weight) {
  const largest = Math.abs(parts[0].loading);
  return element("ol", { className: "edge-heads" }, ...parts.map(({ key, loading }) => {
    const open = button(headName(key), () => {}, { title: `Show what head ${headName(key)} looks at` });
    open.dataset.head = key;
    const bar = element("span", { className: `bar ${loading < 0 ? "negative" : "positive"}`, ariaHidden: "true" },
      element("span"));
    bar.firstChild.style.width = `${largest > 0 ? (100 * Math.abs(loading)) / largest : 0}%`;
    return element("li", {}, open, bar, element("span", {}, number(loading, true)),
      element("span", {}, signedPercent(loading / weight)));
  }));
}

/** Of every layer with a listed head: the sum of its listed heads, and the rest of the edge. */
function layerTable(parts, weight) {
  const sums = new Map();
  for (const { layer, loading } of parts) {
    const { count, sum } = sums.get(layer) ?? { count: 0, sum: 0 };
    sums.set(layer, { count: count + 1, sum: sum + loading });
  }
  const cell = (value) => [element("td", {}, number(value, true)), element("td", {}, signedPercent(value / weight))];
  const rows = [...sums].sort(([a], [b]) => a - b).map(([layer, { count, sum }]) => element("tr", {},
    element("th", { scope: "row" }, `L${layer}`, element("small", {}, ` ${count} listed`)), ...cell(sum),
    ...cell(weight - sum)));
  const heading = (text, colSpan) => element("th", { scope: "col", colSpan }, text);
  const head = element("tr", {}, heading("layer", 1), heading("listed heads", 2), heading("passes by", 2));
  return element("table", { className: "by-layer" }, element("thead", {}, head), element("tbody", {}, ...rows));
}

/** A part of an edge may be larger than the edge, or against it. */
export function signedPercent(share) {
  if (!Number.isFinite(share)) return "–";
  const text = percent(Math.abs(share));
  return share < 0 ? `−${text}` : text;
}
