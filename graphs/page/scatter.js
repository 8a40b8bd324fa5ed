// Predicted beside measured, a point for each feature: on both axes the same square-root scale with its sign, so that
// small effects can be told apart. One point at a time is read; the arrow keys go from one to the next.

import { svg } from "./svg.js";
import { element, isolated, number, shorten } from "./text.js";

const SIZE = { width: 380, height: 320, left: 62, right: 10, top: 10, bottom: 40 }; // px of the drawing's own space
const REACH = 14; // px
const LABEL = 80; // characters
const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };

export class Scatter {
  /** `effects` as of validationOf; `choose(node)` is what a click or Enter does, `point(node)` follows what is read. */
  constructor(graph, effects, { choose, point }) {
    Object.assign(this, { graph, choose, point });
    this.effects = effects.slice().sort((a, b) => a.predicted - b.predicted);
    this.most = effects.reduce((most, { predicted, measured }) =>
      Math.max(most, Math.abs(predicted), Math.abs(measured)), 0) || 1;
    this.root = svg("svg", { class: "scatter", viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, tabindex: 0, role: "slider",
      "aria-label": "Predicted and measured effect of each feature; Enter selects the one that is read" });
    this.told = element("p", { className: "told" });
    this.draw();
    this.listen();
  }

  draw() {
    const { width, height, left, right, top, bottom } = SIZE;
    const ticks = [-1, -0.25, 0, 0.25, 1].map((part) => part * this.most);
    this.ring = svg("circle", { class: "ring", r: 6 });
    const [low, high] = [this.x(-this.most), this.x(this.most)];
    const line = (tick, ends) => svg("line", { class: tick === 0 ? "zero" : "tick", ...ends });
    this.root.append(
      ...ticks.flatMap((tick) => [
        line(tick, { x1: left, x2: width - right, y1: this.y(tick), y2: this.y(tick) }),
        line(tick, { y1: top, y2: height - bottom, x1: this.x(tick), x2: this.x(tick) }),
        svg("text", { x: left - 5, y: this.y(tick) + 3.5, "text-anchor": "end" }, short(tick)),
        svg("text", { x: this.x(tick), y: height - bottom + 13, "text-anchor": anchor(tick) }, short(tick))]),
      svg("line", { class: "same", x1: low, x2: high, y1: this.y(-this.most), y2: this.y(this.most) }),
      svg("text", { class: "axis", x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" },
        "predicted by the graph"),
      svg("text", { class: "axis", x: 12, y: (top + height - bottom) / 2, "text-anchor": "middle",
        transform: `rotate(-90 12 ${(top + height - bottom) / 2})` }, "measured"),
      ...this.effects.map(({ node, predicted, measured }) => svg("circle", { class: node === null ? "dot gone" : "dot",
        r: 3, cx: this.x(predicted), cy: this.y(measured) })), this.ring);
  }

  listen() {
    const { root } = this;
    root.addEventListener("pointermove", (event) => this.read(this.nearest(event)));
    root.addEventListener("pointerleave", () => this.point(null));
    root.addEventListener("blur", () => this.point(null));
    root.addEventListener("focus", () => this.read(this.at ?? this.effects.length - 1));
    root.addEventListener("click", (event) => {
      const place = event.detail === 0 ? this.at : this.nearest(event);
      if (place !== null) this.take(place);
    });
    root.addEventListener("keydown", (event) => this.press(event));
    this.read(this.effects.length - 1, false);
  }

  press(event) {
    const to = STEPS[event.key] ? this.at + STEPS[event.key] : { Home: 0, End: this.effects.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") this.take(this.at);
    else if (to === undefined) return;
    else this.read(Math.min(this.effects.length - 1, Math.max(0, to)));
    event.preventDefault();
    event.stopPropagation();
  }

  /** Tell one of the points. */
  read(place, pointing = true) {
    const effect = this.effects[place];
    if (effect === undefined) return;
    this.at = place;
    const { id, node, predicted, measured } = effect;
    this.ring.setAttribute("cx", this.x(predicted));
    this.ring.setAttribute("cy", this.y(measured));
    const name = node === null ? `${shorten(id, LABEL)} (not in this page)` : shorten(this.graph.names[node], LABEL);
    const numbers = `: predicted ${number(predicted, true)}, measured ${number(measured, true)}`;
    this.told.replaceChildren(isolated(name), numbers);
    const values = { valuemin: 1, valuemax: this.effects.length, valuenow: place + 1, valuetext: name + numbers };
    for (const [key, value] of Object.entries(values)) this.root.setAttribute(`aria-${key}`, value);
    if (pointing) this.point(node);
  }

  take(place) {
    if (this.effects[place].node !== null) this.choose(this.effects[place].node);
  }

  /** The place of the point under the pointer, or null. */
  nearest(event) {
    const box = this.root.getBoundingClientRect();
    const scale = SIZE.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let [best, least] = [null, REACH];
    this.effects.forEach(({ predicted, measured }, place) => {
      const away = Math.hypot(this.x(predicted) - x, this.y(measured) - y);
      if (away < least) [best, least] = [place, away];
    });
    return best;
  }

  x(value) {
    return SIZE.left + part(value, this.most) * (SIZE.width - SIZE.left - SIZE.right);
  }

  y(value) {
    return SIZE.top + (1 - part(value, this.most)) * (SIZE.height - SIZE.top - SIZE.bottom);
  }
}

/** 0 to 1 for -most to most. */
const part = (value, most) => Math.round(500 * (1 + Math.sign(value) * Math.sqrt(Math.abs(value) / most))) / 1000;
const short = (value) => (value < 0 ? "−" : value > 0 ? "+" : "") + String(Number(Math.abs(value).toPrecision(2)));
const anchor = (tick) => (tick > 0 ? "end" : "middle");
