// SVG elements, and text in them: measured and broken into lines, since SVG does neither.

import { shorten } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";
export const FONT_FAMILY = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
const LONGEST = 300; // characters of a text that are looked at for a few lines
const BREAKS = /(?<=[\s,;:/|_\-␣])/u;
const ruler = new OffscreenCanvas(1, 1).getContext("2d");
const letters = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** An SVG element with attributes, then children; strings become text nodes, never markup. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Width in px of one line at a font size and weight. */
export function measure(text, size, weight = 400) {
  ruler.font = `${weight} ${size}px ${FONT_FAMILY}`;
  return ruler.measureText(text).width;
}

/** At most `count` lines no wider than `width` px, broken at spaces where possible; an ellipsis ends what was cut. */
export function wrap(text, { width, count, size, weight = 400 }) {
  const fits = (line) => measure(line.trimEnd(), size, weight) <= width;
  const pieces = shorten(text, LONGEST).split(BREAKS)
    .flatMap((piece) => (fits(piece) ? [piece] : graphemes(piece)));
  const lines = [];
  let line = "";
  for (const piece of pieces) {
    if (fits(line + piece)) line += piece;
    else if (lines.length === count - 1) return [...lines, cut(line + piece, fits)];
    else {
      lines.push(line.trimEnd());
      line = piece.trimStart();
    }
  }
  return [...lines, line.trimEnd()];
}

function cut(text, fits) {
  const kept = graphemes(text);
  while (kept.length > 1 && !fits(`${kept.join("")}…`)) kept.pop();
  return `${kept.join("").trimEnd()}…`;
}

function graphemes(text) {
  return Array.from(letters.segment(text), ({ segment }) => segment);
}
