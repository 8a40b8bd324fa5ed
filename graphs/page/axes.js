// The names of the link view's rows (layers) and columns (tokens), beside the canvas: as text they can be searched.

import { element, isolated, shorten } from "./text.js";

/** Names the rows and columns of a layout (see layout.js). */
export function drawAxes(graph, { rows, columns, hasEverywhere }) {
  document.getElementById("rows").replaceChildren(...rows.map((row) => {
    const label = element("span", {}, row.text);
    label.style.top = `${row.center}px`;
    return label;
  }));
  document.getElementById("columns").replaceChildren(...columns.map((column, c) => {
    const position = c - (hasEverywhere ? 1 : 0);
    const text = position < 0 ? "all" : graph.tokenAt(position);
    const label = element("span", { title: shorten(text, 200) }, isolated(shorten(text, 60)),
      element("small", {}, position < 0 ? "constants" : String(position)));
    label.style.left = `${column.start}px`;
    label.style.width = `${column.size}px`;
    return label;
  }));
}

/** Stripes of rows and lines between columns, on the canvas. */
export function drawBands(context, { rows, columns, width, height }, colors) {
  context.fillStyle = colors.band;
  rows.forEach((row, r) => r % 2 === 0 && context.fillRect(0, row.start, width, row.size));
  context.fillStyle = colors.line;
  for (const column of columns) context.fillRect(column.start, 0, 1, height);
}
