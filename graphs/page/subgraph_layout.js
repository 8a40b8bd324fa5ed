// Where the boxes of the subgraph stand: higher layers above, later positions to the right, none over another.

import { measure, wrap } from "./svg.js";
import { shorten, visibleLabel } from "./text.js";

const WIDTH = 144; // px of a box
const OPEN_WIDTH = 230; // px of a supernode that shows its members
const NARROWEST = 76; // px of a token's box
export const PAD = 8;
export const HEAD = 16; // the line with the kind and the place
export const LINE = 15;
export const CHIP = 20; // one member of an open supernode
export const FOOT = 11; // the bar of influence
export const TEXT = 12; // px of a label
const LINES = 3;
const GAP_X = 12;
const GAP_Y = 46;
const STEP = 96; // px between neighbouring positions, where boxes leave room
const NAME = 300;

/** Boxes {key, group, nodes, name, lines, open, influence, pruned, width, height} of units, not placed yet. */
export function boxesOf(app, units, open) {
  const { graph, kept, influence } = app;
  return units.map(({ key, group, nodes }) => {
    const isOpen = group !== null && open.has(key);
    const name = group === null ? graph.names[nodes[0]] : groupName(group);
    const most = isOpen ? OPEN_WIDTH : WIDTH;
    const lines = wrap(name, { width: most - 2 * PAD, count: LINES, size: TEXT, weight: group === null ? 400 : 600 });
    return { key, group, nodes, name: shorten(name, NAME), lines, open: isOpen,
      width: group === null && graph.kind[nodes[0]] === "embedding" ? tokenWidth(lines) : most,
      influence: nodes.reduce((sum, node) => sum + (influence[node] || 0), 0),
      pruned: nodes.filter((node) => !kept.nodes[node]).length,
      height: PAD + HEAD + lines.length * LINE + (isOpen ? nodes.length * CHIP + 4 : 0) + FOOT };
  });
}

function tokenWidth(lines) {
  return Math.max(NARROWEST, Math.min(WIDTH, Math.max(...lines.map((line) => measure(line, TEXT))) + 2 * PAD));
}

export function groupName(group) {
  return visibleLabel(group.name) || "supernode";
}

/**
 * Gives every box x and y (its centre). They go to rows by layer and to the free place next to their position; layers
 * share a row where no link joins their boxes and there is room. Then a box with a place in `places` goes there, and
 * those it would cover make way; no other box moves.
 */
export function placeBoxes(graph, boxes, links, places) {
  const put = [];
  let bottom = 0;
  for (const row of rowsOf(graph, boxes, links)) {
    const height = Math.max(...row.map((box) => box.height));
    for (const box of row) {
      box.y = bottom - height / 2;
      box.x = freePlace(box, box.wanted, put);
      put.push(box);
    }
    bottom -= height + GAP_Y;
  }
  const isPlaced = (box) => Object.hasOwn(places, box.key);
  for (const box of boxes.filter(isPlaced)) [box.x, box.y] = places[box.key];
  for (const box of boxes) {
    if (!isPlaced(box)) box.x = freePlace(box, box.x, boxes.filter((other) => other !== box));
  }
}

/** Boxes in rows from the bottom, in each by position. */
function rowsOf(graph, boxes, links) {
  const mean = (box, of) => box.nodes.reduce((sum, node) => sum + of(node), 0) / box.nodes.length;
  const columns = [...new Set(boxes.map((box) => Math.round(mean(box, (node) => graph.nodes.position[node]))))]
    .sort((a, b) => a - b);
  for (const box of boxes) {
    box.depth = Math.round(mean(box, (node) => depthOf(graph, node)));
    box.wanted = columns.indexOf(Math.round(mean(box, (node) => graph.nodes.position[node]))) * STEP;
  }
  const joined = new Set(links.flatMap(({ source, target }) => [`${source} ${target}`, `${target} ${source}`]));
  const apart = (one, other) => Math.abs(one.wanted - other.wanted) >= (one.width + other.width) / 2 + GAP_X
    && !joined.has(`${one.key} ${other.key}`);
  const rows = [];
  for (const depth of [...new Set(boxes.map((box) => box.depth))].sort((a, b) => a - b)) {
    const layer = boxes.filter((box) => box.depth === depth);
    const last = rows.at(-1);
    const together = last?.every((one) => one.depth >= 0 && layer.every((other) => apart(one, other)));
    if (together) last.push(...layer);
    else rows.push(layer);
  }
  return rows.map((row) => row.sort((a, b) => a.wanted - b.wanted || b.influence - a.influence));
}

function depthOf(graph, node) {
  if (graph.kind[node] === "embedding") return -1;
  return graph.kind[node] === "logit" ? graph.levels[node] : graph.nodes.layer[node];
}

/** The x nearest to `wanted` at which the box stands clear of all that is put. */
function freePlace(box, wanted, put) {
  const near = put.filter((other) => Math.abs(other.y - box.y) < (other.height + box.height) / 2 + GAP_X);
  const reach = (other) => (other.width + box.width) / 2 + GAP_X;
  const clear = (x) => near.every((other) => Math.abs(other.x - x) >= reach(other) - 1e-6);
  return [wanted, ...near.flatMap((other) => [other.x + reach(other), other.x - reach(other)])]
    .sort((a, b) => Math.abs(a - wanted) - Math.abs(b - wanted)).find(clear);
}

/** {left, top, right, bottom} around all boxes. */
export function extentOf(boxes) {
  return {
    left: Math.min(...boxes.map((box) => box.x - box.width / 2)),
    right: Math.max(...boxes.map((box) => box.x + box.width / 2)),
    top: Math.min(...boxes.map((box) => box.y - box.height / 2)),
    bottom: Math.max(...boxes.map((box) => box.y + box.height / 2)),
  };
}
