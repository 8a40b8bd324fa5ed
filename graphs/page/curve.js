// Scores of what is kept against a threshold, as a drawing. Computed a little at a time, so that the page never waits.

import { endsOf, scoresOf, startOf } from "./influence.js";
import { prune } from "./prune.js";
import { svg } from "./svg.js";
import { element, percent } from "./text.js";

const SLICE = 12; // ms of work after which the page is free again
const POINTS = 20; // beside the page's limit and what it opened with
const SIZE = { width: 360, height: 190, left: 34, right: 14, top: 8, bottom: 30 }; // px of the drawing's own space
const TICKS = [0, 0.2, 0.4, 0.6, 0.8, 1];
/** [name, what it is called]; the style sheet gives each line its own dashes. */
export const LINES = [["replacement", "replacement"], ["completeness", "completeness"], ["tokens", "reaches tokens"],
  ["nodes", "nodes kept"]];

/** What the lines show at thresholds {nodes, edges}, for one target or (null) all; rests between parts of the work. */
export function* measuring(graph, thresholds, target) {
  const kept = prune(graph, thresholds);
  yield;
  const start = startOf(graph, target);
  const scores = scoresOf(graph, start, kept.edges);
  yield;
  return { ...scores, tokens: endsOf(graph, start, kept.edges).tokens,
    nodes: kept.nodes.reduce((sum, value) => sum + value, 0) / Math.max(1, graph.size) };
}

/** Where a curve is measured: even steps up to the limit `most`, and `first`, ascending. */
export function stepsTo(most, first) {
  const even = Array.from({ length: POINTS }, (_, i) => Math.round(((i + 1) / POINTS) * most * 1e4) / 1e4);
  even[POINTS - 1] = most;
  return [...even.filter((value) => Math.abs(value - first) > 1e-6), Math.min(first, most)].sort((a, b) => a - b);
}

export class Curve {
  /** `choose(value)` takes over the threshold that is read. */
  constructor(graph, choose) {
    this.graph = graph;
    this.choose = choose;
    this.points = [];
    this.root = svg("svg", { class: "curve", viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, tabindex: 0, role: "slider",
      "aria-label": "Scores against the threshold; Enter takes the threshold that is read" });
    this.told = element("p", { className: "told" });
    this.legend = element("ul", { className: "curve-legend" }, ...LINES.map(([name, text]) =>
      element("li", {}, sample(name), text)));
    this.root.addEventListener("pointermove", (event) => this.read(this.nearest(event)));
    this.root.addEventListener("pointerleave", () => this.read(this.nearestTo(this.current)));
    this.root.addEventListener("click", () => this.take());
    this.root.addEventListener("keydown", (event) => this.press(event));
  }

  /**
   * Measure along `axis` ("nodes" or "edges") while the other threshold stays; what was being measured is dropped.
   * The page is free after every SLICE.
   */
  start(axis, thresholds, target, { most, first }) {
    this.axis = axis;
    this.most = most[axis];
    this.points = [];
    const steps = stepsTo(most[axis], first[axis]);
    const run = (this.run = {}); // another object: whatever is under way sees that it is not the latest
    let work = null;
    const part = () => {
      const value = steps[this.points.length];
      work ??= measuring(this.graph, { ...thresholds, [axis]: value }, target);
      const { done, value: found } = work.next();
      if (!done) return;
      this.points.push({ value, ...found });
      work = null;
    };
    const next = () => {
      if (this.run !== run) return;
      const end = performance.now() + SLICE;
      while (this.points.length < steps.length && performance.now() < end) part();
      if (this.points.length) this.draw();
      if (this.points.length < steps.length) setTimeout(next);
      else this.root.dataset.done = String(steps.length);
    };
    delete this.root.dataset.done;
    setTimeout(next);
  }

  /** Mark the threshold in use. */
  mark(value) {
    this.current = value;
    if (this.points.length) this.draw();
  }

  draw() {
    const { width, height, left, right, top, bottom } = SIZE;
    const at = (point, name) => `${round(this.x(point.value))},${round(y(point[name]))}`;
    const points = (name) => this.points.map((point) => at(point, name)).join(" ");
    const line = (name) => svg("polyline", { class: `line ${name}`, points: points(name) });
    const below = TICKS.filter((tick) => tick <= this.most);
    this.cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom });
    this.dots = LINES.map(([name]) => svg("circle", { class: `dot ${name}`, r: 3 }));
    const x = this.x(Math.min(this.current, this.most));
    this.root.replaceChildren(
      ...TICKS.flatMap((tick) => [svg("line", { class: "tick", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
        svg("text", { x: left - 5, y: y(tick) + 3.5, "text-anchor": "end" }, percent(tick).replace(".0", ""))]),
      ...below.map((tick) =>
        svg("text", { x: this.x(tick), y: height - bottom + 13, "text-anchor": "middle" }, short(tick))),
      svg("text", { class: "axis", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" },
        this.axis === "nodes" ? "node share" : "edge share"),
      svg("line", { class: "now", x1: x, x2: x, y1: top, y2: height - bottom }),
      ...LINES.map(([name]) => line(name)), this.cursor, ...this.dots);
    this.read(this.nearestTo(this.current));
  }

  x(value) {
    return SIZE.left + (value / (this.most || 1)) * (SIZE.width - SIZE.left - SIZE.right);
  }

  nearestTo(value) {
    const gaps = this.points.map((point) => Math.abs(point.value - value));
    return gaps.indexOf(Math.min(...gaps));
  }

  nearest(event) {
    const box = this.root.getBoundingClientRect();
    const inside = ((event.clientX - box.left) / box.width) * SIZE.width - SIZE.left;
    return this.nearestTo((inside / (SIZE.width - SIZE.left - SIZE.right)) * this.most);
  }

  /** Tell the values at one of the points. */
  read(place) {
    const point = this.points[place];
    if (point === undefined || this.cursor === undefined) return;
    this.place = place;
    const x = this.x(point.value);
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    LINES.forEach(([name], i) => {
      this.dots[i].setAttribute("cx", x);
      this.dots[i].setAttribute("cy", y(point[name]));
    });
    const told = LINES.map(([name, text]) => `${text} ${percent(point[name])}`).join(", ");
    const text = `${this.axis === "nodes" ? "Node" : "Edge"} share ${short(point.value)}: ${told}`;
    this.told.textContent = text;
    const values = { valuemin: 0, valuemax: this.most, valuenow: point.value, valuetext: text };
    for (const [name, value] of Object.entries(values)) this.root.setAttribute(`aria-${name}`, value);
  }

  press(event) {
    const last = this.points.length - 1;
    const [less, more] = [this.place - 1, this.place + 1];
    const to = { ArrowLeft: less, ArrowDown: less, ArrowRight: more, ArrowUp: more, Home: 0, End: last }[event.key];
    if (event.key === "Enter" || event.key === " ") this.take();
    else if (to === undefined) return;
    else this.read(Math.min(last, Math.max(0, to)));
    event.preventDefault();
    event.stopPropagation();
  }

  take() {
    if (this.points[this.place]) this.choose(this.axis, this.points[this.place].value);
  }
}

const y = (share) => SIZE.top + (1 - share) * (SIZE.height - SIZE.top - SIZE.bottom);
const round = (value) => Math.round(value * 10) / 10;
const short = (value) => String(Math.round(value * 1000) / 1000);

function sample(name) {
  return svg("svg", { class: "sample", viewBox: "0 0 30 8", "aria-hidden": "true" },
    svg("polyline", { class: `line ${name}`, points: "0,4 30,4" }));
}
