// A map of layers by token positions whose cells are shares: a canvas as wide as the view, drawn again as one scrolls,
// so that a prompt may be long. For the keyboard and for screen readers there is one cell, which the arrow keys move.

import { element, isolated, percent, shorten } from "./text.js";

const CELL = { narrowest: 9, widest: 40, high: 13 }; // px
const LABELS = 30; // px at the left, for layers
const TOKEN = 24; // characters
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class HeatMap {
  /**
   * `rows` and `columns` are names, top to bottom and left to right; `describe(row, column)` a cell's text,
   * `choose(row, column)` what a click or Enter does.
   */
  constructor({ rows, columns, describe, choose }) {
    Object.assign(this, { rows, columns, describe, choose, at: [0, 0], most: 0 });
    this.values = new Float64Array(rows.length * columns.length);
    this.canvas = element("canvas", { ariaHidden: "true" });
    this.cell = element("div", { className: "cell", tabIndex: 0 });
    this.cell.setAttribute("role", "gridcell");
    this.row = element("div", {}, this.cell);
    this.row.setAttribute("role", "row");
    this.sheet = element("div", { className: "sheet" }, this.canvas, this.row, this.rowNames(), this.columnNames());
    this.root = element("div", { className: "heatmap" }, this.sheet);
    this.root.setAttribute("role", "grid");
    this.root.setAttribute("aria-label", "Lost influence by layer and position");
    this.root.setAttribute("aria-rowcount", String(rows.length));
    this.root.setAttribute("aria-colcount", String(columns.length));
    this.told = element("p", { className: "told" });
    this.listen();
  }

  rowNames() {
    return element("div", { className: "row-names", ariaHidden: "true" },
      ...this.rows.map((name) => element("span", {}, name)));
  }

  columnNames() {
    return element("div", { className: "column-names", ariaHidden: "true" }, ...this.columns.map(({ place, token }) =>
      element("span", {}, place, " ", isolated(shorten(token, TOKEN)))));
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
    const [row, column] = this.at;
    const ends = { Home: [row, 0], End: [row, this.columns.length - 1] };
    if (event.key === "Enter" || event.key === " ") this.choose(row, column);
    else if (step) this.point([row + step[0], column + step[1]]);
    else if (ends[event.key]) this.point(ends[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.reveal();
  }

  /** Shares by row and column: values[row * columns + column]. */
  show(values) {
    this.values = values;
    this.most = values.reduce((most, value) => Math.max(most, value), 0);
    this.point(this.strongest());
    this.draw();
  }

  strongest() {
    const best = this.values.indexOf(this.most);
    return best < 0 ? [0, 0] : [Math.floor(best / this.columns.length), best % this.columns.length];
  }

  point(at) {
    if (at === null || this.columns.length === 0) return;
    const row = Math.min(this.rows.length - 1, Math.max(0, at[0]));
    const column = Math.min(this.columns.length - 1, Math.max(0, at[1]));
    this.at = [row, column];
    const text = this.describe(row, column);
    this.cell.setAttribute("aria-label", text);
    this.cell.setAttribute("aria-colindex", String(column + 1));
    this.row.setAttribute("aria-rowindex", String(row + 1));
    this.told.replaceChildren(isolated(text));
    this.placeCell();
  }

  resize() {
    const width = this.root.clientWidth;
    if (width === 0) return;
    const wide = (width - LABELS) / Math.max(1, this.columns.length);
    this.wide = Math.max(CELL.narrowest, Math.min(CELL.widest, Math.floor(wide)));
    this.sheet.style.width = `${LABELS + this.wide * this.columns.length}px`;
    this.sheet.style.setProperty("--wide", `${this.wide}px`);
    this.sheet.style.setProperty("--high", `${CELL.high}px`);
    this.placeCell();
    this.draw();
  }

  placeCell() {
    if (this.wide === undefined) return;
    const { style } = this.cell;
    style.left = `${LABELS + this.at[1] * this.wide}px`;
    style.top = `${this.at[0] * CELL.high}px`;
  }

  reveal() {
    const left = this.at[1] * this.wide;
    if (left < this.root.scrollLeft) this.root.scrollLeft = left;
    const right = LABELS + left + this.wide - this.root.clientWidth;
    if (right > this.root.scrollLeft) this.root.scrollLeft = right;
  }

  /** [row, column] under the pointer, or null. */
  cellAt(event) {
    const box = this.sheet.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top) / CELL.high);
    const column = Math.floor((event.clientX - box.left - LABELS) / this.wide);
    const behindNames = event.clientX - this.root.getBoundingClientRect().left < LABELS;
    const inside = row >= 0 && row < this.rows.length && column >= 0 && column < this.columns.length;
    return inside && !behindNames ? [row, column] : null;
  }

  draw() {
    const width = this.root.clientWidth;
    const height = this.rows.length * CELL.high;
    if (width === 0 || this.wide === undefined) return;
    const { canvas } = this;
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const style = getComputedStyle(this.root);
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    context.translate(LABELS - this.root.scrollLeft, 0);
    const first = Math.max(0, Math.floor((this.root.scrollLeft - LABELS) / this.wide));
    const last = Math.min(this.columns.length, Math.ceil((this.root.scrollLeft + width) / this.wide));
    for (const [color, alpha] of [["--line", () => 0.5], ["--error", depth]]) {
      context.fillStyle = style.getPropertyValue(color);
      for (let row = 0; row < this.rows.length; row++) {
        for (let column = first; column < last; column++) {
          context.globalAlpha = alpha(this.values[row * this.columns.length + column], this.most);
          context.fillRect(column * this.wide, row * CELL.high, this.wide - 1, CELL.high - 1);
        }
      }
    }
  }
}

/** How deep the colour of a share is, 0 to 1: its square root, so that small shares can be seen. */
export function depth(share, most) {
  return most > 0 && share > 0 ? 0.06 + 0.94 * Math.sqrt(share / most) : 0;
}

/** What the colours mean: from nothing to the largest share. */
export function scaleLegend(most) {
  return element("p", { className: "scale", ariaHidden: "true" }, "0", element("span", {}),
    `${percent(most)} of the target’s input in one cell (square root scale)`);
}
