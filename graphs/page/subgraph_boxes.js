// The boxes of the subgraph: one per pinned node or supernode.

import { icon, KIND_NAMES } from "./shapes.js";
import { CHIP, HEAD, LINE, PAD, TEXT } from "./subgraph_layout.js";
import { svg, wrap } from "./svg.js";
import { number, shorten } from "./text.js";

const SMALL = 11; // px of places and notes
const BAR = 7; // px from the bar of influence to the bottom
const SPOKEN = 120; // characters of a name for screen readers

export const MEMBER = "member ";

/** What a drawn box or member is called among those chosen: a box's key, or "member NODE"; null for neither. */
export function nameOf(drawn) {
  if (!drawn) return null;
  return drawn.dataset.chip === undefined ? drawn.dataset.key ?? null : MEMBER + drawn.dataset.chip;
}

/** The group of one box; its middle is at 0, 0. `most` is the influence at which the bar is full. */
export function drawBox(graph, box, kept, most) {
  const { width, height, nodes, group } = box;
  const [left, top] = [-width / 2, -height / 2];
  const drawn = svg("g", { class: `box ${group === null ? graph.kind[nodes[0]] : "supernode"}`, "data-key": box.key,
    tabindex: 0, role: box.open ? "group" : "button", "aria-label": spoken(graph, box),
    ...(group === null && { "data-node": nodes[0] }), transform: `translate(${box.x},${box.y})` });
  drawn.classList.toggle("pruned", box.pruned === nodes.length);
  if (group !== null) drawn.append(svg("rect", { class: "stack", x: left + 4, y: top + 4, width, height, rx: 7 }));
  drawn.append(svg("rect", { class: "frame", x: left, y: top, width, height, rx: 6 }),
    ...head(graph, box, left + PAD, top + PAD));
  box.lines.forEach((line, i) => drawn.append(
    svg("text", { class: "label", x: left + PAD, y: top + PAD + HEAD + (i + 0.75) * LINE, "font-size": TEXT }, line)));
  const chipsTop = top + PAD + HEAD + box.lines.length * LINE + 3;
  if (box.open) {
    drawn.append(...nodes.map((node, i) =>
      chip(graph, node, left + 4, chipsTop + i * CHIP, width - 8, kept.nodes[node])));
  }
  const share = most > 0 ? Math.min(1, box.influence / most) : 0;
  for (const [name, part] of [["track", 1], ["bar", share]]) {
    const size = { width: (width - 2 * PAD) * part, height: 3 };
    drawn.append(svg("rect", { class: name, x: left + PAD, y: -top - BAR, ...size, rx: 1.5 }));
  }
  return drawn;
}

/** Kind and place, or how many members; and how many of them are pruned now. */
function head(graph, { nodes, group, pruned, width }, x, y) {
  const note = pruned === 0 ? "" : nodes.length === 1 ? "pruned now" : `${pruned} pruned`;
  const place = group === null ? graph.place(nodes[0]) : `${nodes.length} ${nodes.length === 1 ? "node" : "nodes"}`;
  const parts = group === null ? [shape(graph.kind[nodes[0]], x, y - 1)] : [];
  parts.push(svg("text", { class: "place", x: x + (group === null ? 17 : 0), y: y + 9, "font-size": SMALL }, place));
  if (note) {
    const end = x + width - 2 * PAD;
    parts.push(svg("text", { class: "note", x: end, y: y + 9, "font-size": SMALL, "text-anchor": "end" }, note));
  }
  return parts;
}

function shape(kind, x, y) {
  const made = icon(kind);
  for (const [name, value] of Object.entries({ x, y, width: 13, height: 13 })) made.setAttribute(name, value);
  return made;
}

/** A member inside an open supernode. */
function chip(graph, node, x, y, width, isKept) {
  const place = graph.place(node);
  const [line] = wrap(graph.names[node], { width: width - 76, count: 1, size: SMALL });
  return svg("g", { class: `chip${isKept ? "" : " pruned"}`, "data-chip": node, tabindex: 0, role: "button",
    "aria-label": `member ${nodeSpoken(graph, node)}${isKept ? "" : ", pruned now"}` },
  svg("rect", { class: "frame", x, y: y + 1, width, height: CHIP - 2, rx: 4 }), shape(graph.kind[node], x + 3, y + 3.5),
  svg("text", { class: "label", x: x + 20, y: y + 14, "font-size": SMALL }, line),
  svg("text", { class: "place", x: x + width - 4, y: y + 14, "font-size": SMALL - 1, "text-anchor": "end" }, place));
}

function nodeSpoken(graph, node) {
  return `${KIND_NAMES[graph.kind[node]]} ${shorten(graph.names[node], SPOKEN)} at ${graph.place(node)}`;
}

function spoken(graph, { group, nodes, name, influence, pruned }) {
  const what = group === null ? nodeSpoken(graph, nodes[0])
    : `supernode ${shorten(name, SPOKEN)}, ${nodes.length} ${nodes.length === 1 ? "node" : "nodes"}`;
  const note = pruned === 0 ? "" : nodes.length === 1 ? ", pruned now" : `, ${pruned} of them pruned now`;
  return `${what}, influence ${number(influence)}${note}`;
}
