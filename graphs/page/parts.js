// Where a target's input ends, as a bar with its numbers. Parts differ in pattern as well as in colour.

import { element, percent } from "./text.js";

/** [name, what it is called, what it means] of every part, in the order in which they are shown. */
export const PARTS = [
  ["tokens", "tokens", "paths that end at tokens of the prompt: what the graph explains"],
  ["errors", "errors", "paths that end at what the transcoders leave unexplained"],
  ["pruned", "pruned", "inputs that are not kept: pruned away, or left out of long rows"],
  ["unexplored", "unexplored", "features whose inputs the trace did not compute"],
  ["constants", "constants only", "nodes that nothing feeds but constants"],
];

/** A bar of the rows [name, text, meaning, share], whose shares add up to 1, and under it a list of their numbers. */
export function partsBar(rows) {
  const shown = rows.filter(([name, , , share]) => share > 0 || name === "tokens");
  const bar = element("div", { className: "parts-bar", ariaHidden: "true" });
  for (const [name, text, , share] of shown) {
    const piece = element("span", { className: `part-${name}`, title: `${text}: ${percent(share)}` });
    piece.style.flexGrow = String(Math.max(0, share));
    bar.append(piece);
  }
  const list = element("dl", { className: "parts-list" }, ...shown.map(([name, text, meaning, share]) => {
    const row = element("div", { title: meaning }, element("dt", {}, element("i", { className: `part-${name}` }), text),
      element("dd", {}, percent(share)));
    row.dataset.part = name;
    return row;
  }));
  return [bar, list];
}

/** The rows of partsBar for parts as influence.js gives them. */
export function partRows(ends) {
  return PARTS.map(([name, text, meaning]) => [name, text, meaning, ends[name] ?? 0]);
}
