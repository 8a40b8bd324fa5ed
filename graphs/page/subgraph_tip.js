// What is told about a box or a link of the subgraph, in its tooltip and to screen readers.

import { icon, KIND_NAMES } from "./shapes.js";
import { element, isolated, number, percent, shorten } from "./text.js";

const LISTED = 8; // members of a supernode in its tooltip
const MEMBER = 60; // characters

/** Lines about a box, or about one `member` of it. */
export function boxTip({ graph, kept, influence }, box, member = null) {
  const node = member ?? (box.group === null ? box.nodes[0] : null);
  if (node === null) return groupTip(graph, box);
  const facts = [["kind", KIND_NAMES[graph.kind[node]]], ...graph.facts(node)]
    .map(([name, value]) => (name === "influence" ? [name, number(influence[node])] : [name, value]));
  return [
    element("strong", {}, icon(graph.kind[node]), isolated(shorten(graph.names[node], 300), "name")),
    element("dl", {}, ...facts.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, isolated(value))))),
    ...(kept.nodes[node] ? [] : [element("p", { className: "hint" }, "Pruned at the current thresholds: it is pinned, "
      + "but none of its edges are kept.")]),
  ];
}

function groupTip(graph, box) {
  const rest = box.nodes.length - LISTED;
  return [
    element("strong", {}, isolated(box.name, "name")),
    element("p", { className: "hint" }, `supernode of ${box.nodes.length}, influence ${number(box.influence)}`),
    element("ul", {}, ...box.nodes.slice(0, LISTED).map((node) => element("li", {}, icon(graph.kind[node]),
      isolated(shorten(graph.names[node], MEMBER), "name"), element("small", {}, graph.place(node)))),
    ...(rest > 0 ? [element("li", {}, `and ${rest} more`)] : [])),
  ];
}

/** Lines about a link: what its numbers are sums of. */
export function linkTip(boxes, link) {
  const [source, target] = [boxes.get(link.source), boxes.get(link.target)];
  const isSum = source.nodes.length > 1 || target.nodes.length > 1;
  const inputs = target.nodes.length > 1 ? "all inputs of its members" : "all its inputs";
  const sums = isSum ? ` in sum, of ${link.count} ${link.count === 1 ? "edge" : "edges"} `
    + `(raising ${number(link.raising, true)}, lowering ${number(link.lowering, true)})` : "";
  return [
    element("strong", {}, isolated(shorten(source.name, MEMBER)), " → ", isolated(shorten(target.name, MEMBER))),
    element("p", {}, `${number(link.weight, true)}${sums}`),
    element("p", { className: "hint" }, Number.isNaN(link.share)
      ? "A constant: it stands outside of the shares of inputs."
      : `${isSum ? "Sum of |weights|" : "|Weight|"}: ${percent(link.share)} of ${inputs} `
        + "(sum of |edges| before pruning, constants apart)"),
  ];
}

/** A link in one line. */
export function sentenceOf(boxes, { source, target, weight, share }) {
  const name = (key) => isolated(shorten(boxes.get(key).name, MEMBER));
  return element("li", {}, name(source), weight < 0 ? " lowers " : " raises ", name(target),
    `: ${number(weight, true)}, share ${percent(share)}`);
}
