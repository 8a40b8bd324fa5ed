// The subgraph as a file of its own: SVG with every colour and font written out, or PNG drawn from it.

import { download } from "./outgoing.js";
import { extentOf } from "./subgraph_layout.js";
import { FONT_FAMILY, svg, wrap } from "./svg.js";
import { element, shorten, visibleToken } from "./text.js";

const MARGIN = 20;
const HEADING = 15; // px of the title's letters
const NARROWEST = 320; // px, so that a title has room
const LONGEST = 200; // characters of the prompt in the title
const PAINT = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin"];
const LETTERS = ["fill", "font-size", "font-weight", "text-anchor", "paint-order", "stroke", "stroke-width",
  "stroke-linejoin"];
const UNWRITABLE = /[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu; // what XML cannot hold
const LARGEST = 16_000; // px of a side of a PNG; browsers draw no larger ones

/** {text, width, height}: the subgraph of `view` as a self-contained SVG file. */
export function picture(view) {
  const { left, top, right, bottom } = extentOf([...view.boxes.values()]);
  const width = Math.max(NARROWEST, right - left) + 2 * MARGIN;
  const prompt = visibleToken(view.app.graph.header.prompt).replaceAll("␣", " ").trim();
  const title = shorten(prompt, LONGEST) || "Attribution graph";
  const lines = wrap(title, { width: width - 2 * MARGIN, count: 2, size: HEADING, weight: 600 });
  const heading = MARGIN + lines.length * HEADING * 1.35;
  const height = bottom - top + heading + 2 * MARGIN;
  const style = getComputedStyle(view.svg);
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "font-family": FONT_FAMILY },
    svg("title", {}, title), svg("rect", { width, height, fill: getComputedStyle(document.body).backgroundColor }),
    ...lines.map((line, i) => svg("text", { x: MARGIN, y: MARGIN + (i + 0.8) * HEADING * 1.35, "font-size": HEADING,
      "font-weight": 600, fill: style.color }, line)));
  const body = plain(view.content);
  body.setAttribute("transform", `translate(${(width - (right - left)) / 2 - left},${heading + MARGIN - top})`);
  drawn.append(body);
  const text = new XMLSerializer().serializeToString(drawn).replace(UNWRITABLE, "\ufffd");
  return { text: `<?xml version="1.0" encoding="UTF-8"?>\n${text}\n`, width, height };
}

/** A copy that needs no style sheet, without what only serves the screen. */
function plain(original) {
  const copy = svg(original.localName);
  const isText = original.localName === "text";
  for (const { name, value } of original.attributes) {
    if (!/^(class|role|tabindex|aria-.*|data-.*)$/.test(name)) copy.setAttribute(name, value);
  }
  const style = getComputedStyle(original);
  if (style.opacity !== "1") copy.setAttribute("opacity", style.opacity);
  if (isText || original instanceof SVGGeometryElement) {
    for (const name of isText ? LETTERS : PAINT) copy.setAttribute(name, style.getPropertyValue(name));
  }
  for (const child of original.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) copy.append(child.data);
    else if (child.dataset.screen === undefined) copy.append(plain(child));
  }
  return copy;
}

export function saveSvg(view) {
  download(still(view, picture).text, `${fileName(view)}.svg`, "image/svg+xml");
}

/** At twice the size, less where a side would be too long for the browser. */
export async function savePng(view) {
  const { text, width, height } = still(view, picture);
  const scale = Math.min(2, LARGEST / width, LARGEST / height);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = element("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => (blob ? download(blob, `${fileName(view)}.png`)
    : view.app.say("This browser cannot draw a picture of that size: save as SVG instead")), "image/png");
}

/** What `made` makes of the view while nothing in it is lit, selected or chosen. */
function still(view, made) {
  for (const name of ["selected", "chosen", "dim"]) {
    for (const drawn of view.svg.querySelectorAll(`.${name}`)) drawn.classList.remove(name);
  }
  try {
    return made(view);
  } finally {
    view.mark();
    view.pointing.light();
  }
}

function fileName({ app }) {
  const words = app.graph.header.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return `${words.join("-").slice(0, 40).toWellFormed().replace(/[-\ufffd]+$/, "") || "graph"}-subgraph`;
}
