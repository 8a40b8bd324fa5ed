// The edges that a head carries, those first of which it carries most.

import { signedPercent } from "./edgecard.js";
import { headName } from "./heads.js";
import { element, isolated, number, shorten } from "./text.js";

const LISTED = 30;
const LABEL = 60; // characters

/** A heading and the kept edges through the head `key`. */
export function carriedEdges(app, key) {
  const { graph, kept } = app;
  const edges = graph.heads.edgesOf(key)
    .map(({ source, target, loading }) => ({ edge: graph.edgeBetween(source, target), source, target, loading }))
    .filter(({ edge }) => edge >= 0 && kept.edges[edge]);
  const note = edges.length > LISTED ? `the ${LISTED} strongest of ${edges.length}` : "share: of the edge";
  const title = element("h3", {}, `Edges that ${headName(key)} carries`, element("small", {}, note));
  if (edges.length === 0) return [title, element("p", { className: "hint" }, "None of those that are kept.")];
  return [title, element("ol", {}, ...edges.slice(0, LISTED).map((one) => element("li", {}, edgeRow(graph, one))))];
}

function edgeRow(graph, { edge, source, target, loading }) {
  const name = (node) => isolated(shorten(graph.names[node], LABEL), "name");
  const end = (node) => [name(node), element("small", {}, ` ${graph.place(node)}`)];
  const made = element("button", { type: "button", className: loading < 0 ? "negative" : "positive",
    title: "Show this edge and its heads" },
  element("span", { className: "ends" }, ...end(source), " → ", ...end(target)),
  element("span", {}, number(loading, true)), element("span", {}, signedPercent(loading / graph.edges.weights[edge])));
  made.dataset.edge = edge;
  return made;
}
