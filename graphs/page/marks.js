// What stands for a node on the canvas: its shape (drawn once per look, then copied), and what is drawn around it.

import { PATHS } from "./shapes.js";

const ARROW = 12; // px

/** Shapes drawn once for each kind, radius and colour: copying is far faster than filling a path. */
export class Shapes {
  /** `colors`: see colors.js. */
  constructor(colors) {
    this.colors = colors;
    this.scale = devicePixelRatio;
    this.made = new Map();
  }

  draw(context, kind, x, y, radius, color) {
    const key = `${kind} ${radius} ${color}`;
    if (!this.made.has(key)) this.made.set(key, this.make(kind, radius, color));
    const image = this.made.get(key);
    const size = image.width / this.scale;
    context.drawImage(image, x - size / 2, y - size / 2, size, size);
  }

  make(kind, radius, color) {
    const canvas = document.createElement("canvas");
    const half = Math.ceil(radius * 1.3 + 1);
    canvas.width = canvas.height = Math.round(2 * half * this.scale);
    const context = canvas.getContext("2d");
    context.setTransform(this.scale * radius, 0, 0, this.scale * radius, canvas.width / 2, canvas.height / 2);
    const hollow = kind === "error";
    context.fillStyle = hollow ? this.colors.page : color;
    context.fill(PATHS[kind]);
    context.strokeStyle = hollow ? color : this.colors.page;
    context.lineWidth = (hollow ? 1.5 : 0.75) / radius;
    context.stroke(PATHS[kind]);
    return canvas;
  }
}

/** A circle `gap` px outside of a node. */
export function ring(context, { x, y }, radius, i, gap, color, width) {
  context.beginPath();
  context.arc(x[i], y[i], radius[i] + gap, 0, 2 * Math.PI);
  context.strokeStyle = color;
  context.lineWidth = width;
  context.stroke();
}

/** A pinned node: a thick ring with a tick. */
export function pinned(context, layout, radius, i, color) {
  ring(context, layout, radius, i, 2.5, color, 2);
  const reach = (radius[i] + 2.5) * Math.SQRT1_2;
  context.beginPath();
  context.moveTo(layout.x[i] + reach, layout.y[i] - reach);
  context.lineTo(layout.x[i] + reach + 4, layout.y[i] - reach - 4);
  context.stroke();
}

/** A member of a supernode: dots around it. */
export function member(context, layout, radius, i, color) {
  context.setLineDash([1.5, 2.5]);
  ring(context, layout, radius, i, 5.5, color, 1.5);
  context.setLineDash([]);
}

/** The head of an arrow that ends below node `i`, where curves arrive straight from below. */
export function head(context, { x, y }, radius, i, color) {
  const tip = y[i] + radius[i] + 3;
  context.fillStyle = color;
  context.beginPath();
  context.moveTo(x[i], tip);
  context.lineTo(x[i] - ARROW / 2, tip + ARROW);
  context.lineTo(x[i] + ARROW / 2, tip + ARROW);
  context.fill();
}
