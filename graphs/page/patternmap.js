// An attention pattern: queries by keys on a canvas as large as the view, drawn again as one scrolls, so that a prompt
// may be long; cells can be made larger and smaller. For the keyboard and for screen readers there is one cell, which
// the arrow keys move.

import { depth } from "./heatmap.js";
import { element, isolated, shorten } from "./text.js";

const SIZES = [3, 5, 9, 13, 18, 26, 36]; // px of a cell
const READABLE = 9; // px: names that stand closer are left out
const AT_FIRST = { least: 5, scrolling: 13, most: 26 }; // px of a cell; the middle one: most where one has to scroll
const NAMES = { left: 92, top: 74 }; // px
const TOKEN = 24; // characters
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class PatternMap {
  /**
   * `tokens`: their texts; `describe(query, key)` a cell's text, `choose(query, key)` what a click or Enter does.
   */
  constructor({ tokens, describe, choose }) {
    Object.assign(this, { tokens, describe, choose, count: tokens.length, at: [0, 0], chosen: null, marked: [] });
    this.value = () => 0;
    this.most = 0;
    this.canvas = element("canvas", { ariaHidden: "true" });
    this.cell = element("div", { className: "cell", tabIndex: 0 });
    this.cell.setAttribute("role", "gridcell");
    this.row = element("div", { className: "cells" }, this.cell);
    this.row.setAttribute("role", "row");
    this.queries = element("div", { className: "queries", ariaHidden: "true" });
    this.keys = element("div", { className: "keys", ariaHidden: "true" });
    const corner = element("div", { className: "corner", ariaHidden: "true" }, "query ↓ key →");
    this.sheet = element("div", { className: "sheet" }, this.canvas, this.row, this.queries, this.keys, corner);
    this.root = element("div", { className: "patternmap" }, this.sheet);
    this.root.setAttribute("role", "grid");
    this.root.setAttribute("aria-label", "Attention pattern, queries by keys");
    this.root.setAttribute("aria-rowcount", String(this.count));
    this.root.setAttribute("aria-colcount", String(this.count));
    this.told = element("p", { className: "told" });
    this.listen();
  }

  listen() {
    for (const query of ["(prefers-color-scheme: dark)", "(prefers-contrast: more)"]) {
      window.matchMedia(query).addEventListener("change", () => this.draw());
    }
    new ResizeObserver(() => this.resize()).observe(this.root);
    this.root.addEventListener("scroll", () => this.draw());
    this.sheet.addEventListener("pointermove", (event) => this.point(this.cellAt(event)));
    this.sheet.addEventListener("click", (event) => {
      const at = this.cellAt(event) ?? (event.detail === 0 ? this.at : null);
      if (at) this.choose(...at);
    });
    this.cell.addEventListener("focus", () => this.point(this.at));
    this.cell.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    const step = STEPS[event.key];
    const [query, key] = this.at;
    const ends = { Home: [query, 0], End: [query, query], PageUp: [0, key], PageDown: [this.count - 1, key] };
    if (event.key === "Enter" || event.key === " ") this.choose(query, key);
    else if (step) this.point([query + step[0], key + step[1]]);
    else if (ends[event.key]) this.point(ends[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.reveal();
  }

  /** Draw `value(query, key)`, shares of 1; `marked` are cells that something more is known of. */
  show(value, marked) {
    Object.assign(this, { value, marked, most: 0 });
    for (let query = 0; query < this.count; query++) {
      for (let key = 0; key <= query; key++) this.most = Math.max(this.most, value(query, key));
    }
    this.point(this.at);
    this.draw();
  }

  /** Mark the cell that is read below; null: none. */
  mark(chosen) {
    this.chosen = chosen;
    if (chosen !== null) {
      this.point(chosen);
      this.reveal();
    }
    this.draw();
  }

  point(at) {
    if (at === null || this.count === 0) return;
    this.at = at.map((place) => Math.min(this.count - 1, Math.max(0, place)));
    const [query, key] = this.at;
    const text = this.describe(query, key);
    this.cell.setAttribute("aria-label", text);
    this.cell.setAttribute("aria-colindex", String(key + 1));
    this.row.setAttribute("aria-rowindex", String(query + 1));
    this.told.replaceChildren(isolated(text));
    this.placeCell();
  }

  /** Larger (1) or smaller (-1) cells. */
  zoom(step) {
    if (this.size === undefined) return;
    const place = SIZES.indexOf(this.size) + step;
    this.setSize(SIZES[Math.min(SIZES.length - 1, Math.max(0, place))]);
    this.reveal();
  }

  /** Cells as large as fit, at first; later only the canvas follows the view. */
  resize() {
    if (this.root.clientWidth === 0) return;
    if (this.size !== undefined) this.draw();
    else {
      this.setSize(this.fittingSize());
      this.reveal();
    }
  }

  fittingSize() {
    const { least, scrolling, most } = AT_FIRST;
    const wide = this.root.clientWidth - NAMES.left;
    const high = Number.parseFloat(getComputedStyle(this.root).maxHeight) - NAMES.top;
    return SIZES.findLast((size) => size <= most && size * this.count <= wide
      && (size <= scrolling || size * this.count <= high)) ?? least;
  }

  setSize(size) {
    this.size = size;
    const { style } = this.sheet;
    style.setProperty("--size", `${size}px`);
    style.width = `${NAMES.left + size * this.count}px`;
    style.height = `${NAMES.top + size * this.count}px`;
    this.nameTokens();
    this.placeCell();
    this.draw();
  }

  nameTokens() {
    const stride = Math.ceil(READABLE / this.size);
    const names = (offset, side) => this.tokens.flatMap((token, i) => {
      if (i % stride !== 0) return [];
      const name = element("span", {}, isolated(shorten(token, TOKEN)), ` ${i}`);
      name.style[side] = `${offset + i * this.size}px`;
      name.style.setProperty("--room", `${stride * this.size}px`);
      return [name];
    });
    this.queries.replaceChildren(...names(NAMES.top, "top"));
    this.keys.replaceChildren(...names(NAMES.left, "left"));
  }

  placeCell() {
    if (this.size === undefined) return;
    this.cell.style.top = `${NAMES.top + this.at[0] * this.size}px`;
    this.cell.style.left = `${NAMES.left + this.at[1] * this.size}px`;
  }

  /** Scroll to the cell that is pointed at. */
  reveal() {
    if (this.size === undefined) return;
    const within = (scroll, place, room) => Math.max(Math.min(scroll, place), place + this.size - room);
    const { root } = this;
    root.scrollTop = within(root.scrollTop, this.at[0] * this.size, root.clientHeight - NAMES.top);
    root.scrollLeft = within(root.scrollLeft, this.at[1] * this.size, root.clientWidth - NAMES.left);
  }

  /** [query, key] under the pointer, or null. */
  cellAt(event) {
    if (this.size === undefined) return null;
    const view = this.root.getBoundingClientRect();
    if (event.clientX - view.left < NAMES.left || event.clientY - view.top < NAMES.top) return null;
    const box = this.sheet.getBoundingClientRect();
    const query = Math.floor((event.clientY - box.top - NAMES.top) / this.size);
    const key = Math.floor((event.clientX - box.left - NAMES.left) / this.size);
    return query >= 0 && query < this.count && key >= 0 && key < this.count ? [query, key] : null;
  }

  draw() {
    const { root, canvas, size } = this;
    const [width, height] = [root.clientWidth, root.clientHeight];
    if (width === 0 || size === undefined) return;
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const style = getComputedStyle(root);
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    context.translate(NAMES.left - root.scrollLeft, NAMES.top - root.scrollTop);
    const seen = (scroll, room) => [Math.floor(scroll / size), Math.min(this.count, Math.ceil((scroll + room) / size))];
    const [first, last] = seen(root.scrollTop, height - NAMES.top);
    const [left, right] = seen(root.scrollLeft, width - NAMES.left);
    const gap = size > 4 ? 1 : 0;
    for (const [color, alpha] of [["--line", () => 0.5], ["--embedding", depth]]) {
      context.fillStyle = style.getPropertyValue(color);
      for (let query = first; query < last; query++) {
        for (let key = left; key < Math.min(right, query + 1); key++) {
          context.globalAlpha = Math.min(1, alpha(this.value(query, key), this.most));
          context.fillRect(key * size, query * size, size - gap, size - gap);
        }
      }
    }
    context.globalAlpha = 1;
    this.drawMarks(context, style);
  }

  /** A corner in the cells whose scores can be read, a frame around the one that is. */
  drawMarks(context, style) {
    const { size } = this;
    const corner = Math.max(2, Math.min(5, size / 3));
    context.fillStyle = style.getPropertyValue("--ink");
    for (const [query, key] of this.marked) {
      const [x, y] = [key * size, query * size];
      context.fill(new Path2D(`M${x} ${y}h${corner}l${-corner} ${corner}z`));
    }
    if (this.chosen === null) return;
    context.strokeStyle = style.getPropertyValue("--focus");
    context.lineWidth = 3;
    context.strokeRect(this.chosen[1] * size - 1, this.chosen[0] * size - 1, size + 1, size + 1);
  }
}
