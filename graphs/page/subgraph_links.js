// The edges of the subgraph: curves between boxes with arrowheads, and the weights of the strong ones.

import { measure, svg } from "./svg.js";
import { number } from "./text.js";

const LABELLED = 0.02; // share from which a weight is written, where there is room
const MOST_LABELS = 40;
const SMALL = 11;
const ALONG = [0.5, 0.4, 0.6, 0.3, 0.7, 0.22, 0.78]; // where on a curve its weight may stand

export class Links {
  constructor() {
    this.root = svg("g", { class: "links" });
    this.weights = svg("g");
    this.drawn = [];
  }

  /** Draw `links`, strongest first, between `boxes` (a Map by key); the strongest lie on top, and weights on them. */
  draw(links, boxes) {
    const reverse = new Set(links.map(({ source, target }) => `${target} ${source}`));
    this.drawn = links.map((link) => {
      const isPair = reverse.has(`${link.source} ${link.target}`);
      return { link, isPair, element: drawLink(link), curve: null };
    });
    this.root.replaceChildren(...this.drawn.map(({ element }) => element).reverse(), this.weights);
    this.follow(boxes);
  }

  /** Bend the links to where boxes are now: all, or those of the boxes with the `moved` keys. */
  follow(boxes, moved = null) {
    for (const one of this.drawn) {
      const { source, target } = one.link;
      if (moved !== null && !moved.has(source) && !moved.has(target)) continue;
      one.curve = curveOf(boxes.get(source), boxes.get(target), one.isPair);
      bend(one);
    }
    this.weights.replaceChildren(...drawWeights(this.drawn, boxes));
  }

  /** Dims the links that `isLit` (of {source, target}) is false for. */
  light(isLit) {
    for (const drawn of [...this.root.children, ...this.weights.children]) {
      if (drawn !== this.weights) drawn.classList.toggle("dim", !isLit(drawn.dataset));
    }
  }
}

function drawLink(link) {
  const width = widthOf(link);
  return svg("g", { class: `link ${link.weight < 0 ? "negative" : "positive"}`, "data-source": link.source,
    "data-target": link.target, "data-weight": link.weight, "data-share": link.share, "data-count": link.count },
  svg("path", { class: "line", "stroke-width": width.toFixed(2),
    ...(link.weight < 0 && { "stroke-dasharray": `${4 + width} ${3 + width / 2}` }) }),
  svg("path", { class: "head" }), svg("path", { class: "reach", "data-screen": "" }));
}

function bend({ link, element, curve }) {
  const side = 4 + widthOf(link) * 1.1;
  const [x, y] = curve.end;
  const angle = Math.atan2(y - curve.late[1], x - curve.late[0]);
  const corner = (turn) => [x - side * 1.7 * Math.cos(angle) + turn * side * 0.6 * Math.sin(angle),
    y - side * 1.7 * Math.sin(angle) - turn * side * 0.6 * Math.cos(angle)].map((value) => value.toFixed(1)).join(" ");
  const back = [x - side * 1.4 * Math.cos(angle), y - side * 1.4 * Math.sin(angle)];
  const d = `M${rounded(curve.start)}C${rounded(curve.early)} ${rounded(curve.late)} ${rounded(back)}`;
  const [line, head, reach] = element.children;
  line.setAttribute("d", d);
  head.setAttribute("d", `M${x.toFixed(1)} ${y.toFixed(1)}L${corner(1)}L${corner(-1)}Z`);
  reach.setAttribute("d", d);
}

function rounded(point) {
  return point.map((value) => value.toFixed(1)).join(" ");
}

function widthOf({ share }) {
  return 0.8 + 7 * Math.sqrt(Number.isNaN(share) ? 0.005 : Math.min(1, share));
}

/** {start, early, late, end}: a cubic curve from the side of one box that faces the other. */
function curveOf(from, to, isPair) {
  const above = to.y + to.height / 2 <= from.y - from.height / 2 + 8;
  const below = to.y - to.height / 2 >= from.y + from.height / 2 - 8;
  const shift = isPair ? (above ? -12 : 12) : 0; // two units may each feed the other
  if (!above && !below) return sideways(from, to, shift);
  const up = above ? -1 : 1;
  const lean = (box, other) => box.x + shift
    + Math.max(-0.36, Math.min(0.36, (other.x - box.x) / (4 * box.width))) * box.width;
  const start = [lean(from, to), from.y + up * from.height / 2];
  const end = [lean(to, from), to.y - up * to.height / 2];
  const bend = Math.max(18, Math.abs(end[1] - start[1]) * 0.42);
  return { start, early: [start[0], start[1] + up * bend], late: [end[0], end[1] - up * bend], end };
}

function sideways(from, to, shift) {
  const right = to.x >= from.x ? 1 : -1;
  const start = [from.x + right * from.width / 2, from.y + shift];
  const end = [to.x - right * to.width / 2, to.y + shift];
  const bend = Math.max(14, Math.abs(end[0] - start[0]) * 0.4);
  return { start, early: [start[0] + right * bend, start[1]], late: [end[0] - right * bend, end[1]], end };
}

/** Weights of the strongest links, each where it covers neither a box nor another weight. */
function drawWeights(drawn, boxes) {
  const taken = [...boxes.values()].map((box) => ({ x: box.x, y: box.y, width: box.width, height: box.height }));
  const made = [];
  for (const { link, curve } of drawn) {
    if (!(link.share >= LABELLED) || made.length >= MOST_LABELS) break;
    const text = number(Number(link.weight.toPrecision(2)), true).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
    const size = { width: measure(text, SMALL, 600) + 6, height: SMALL + 5 };
    const isFree = ([x, y]) => taken.every((other) => Math.abs(other.x - x) > (other.width + size.width) / 2
      || Math.abs(other.y - y) > (other.height + size.height) / 2);
    const place = ALONG.map((t) => pointAt(curve, t)).find(isFree);
    if (!place) continue;
    taken.push({ x: place[0], y: place[1], ...size });
    made.push(svg("text", { class: `weight ${link.weight < 0 ? "negative" : "positive"}`, x: place[0].toFixed(1),
      y: (place[1] + 4).toFixed(1), "font-size": SMALL, "text-anchor": "middle", "data-source": link.source,
      "data-target": link.target }, text));
  }
  return made;
}

function pointAt({ start, early, late, end }, t) {
  const [a, b, c, d] = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];
  return [0, 1].map((i) => a * start[i] + b * early[i] + c * late[i] + d * end[i]);
}
