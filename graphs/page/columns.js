// The columns of the two tables, and how their rows are put in order. Every order is by numbers: texts by their rank.

import { influenceTotal } from "./facts.js";
import { number, percent, shorten } from "./text.js";

const LABEL = 300; // characters shown of a label
const COMPARED = 200; // characters of a text that its rank goes by
const ROWS = 2 ** 20; // more than a page has edges; times a key of 32 bits it is exact in a double

/**
 * Columns of the nodes: {name, numeric, key: number to order by (NaN last), text: what is shown, raw: what is copied}.
 * Keys and texts take a node. Columns with `exportOnly` are copied, not shown.
 */
export function nodeColumns(app) {
  const { graph } = app;
  const { layer, position, token, value } = graph.nodes;
  const influence = app.influence;
  const total = influenceTotal(app);
  const valued = (i) => ((graph.kind[i] === "feature" || graph.kind[i] === "logit") && value[i] !== 0 ? value[i] : NaN);
  const share = (i) => (total > 0 ? influence[i] / total : NaN);
  const level = levelOf(graph);
  const tokenText = (i) => graph.header.token_texts[position[i]] ?? "";
  const pinned = new Set(app.state.pins);
  return [
    textColumn("id", graph.ids),
    textColumn("kind", graph.kind.map((kind) => (kind === "embedding" ? "token" : kind))),
    { name: "layer", numeric: true, key: level, text: (i) => graph.place(i).split("·")[0], raw: (i) => layer[i] },
    { name: "position", numeric: true, key: (i) => position[i], text: (i) => graph.place(i).split("·")[1],
      raw: (i) => position[i] },
    { ...textColumn("token", graph.kind.map((_, i) => graph.tokenAt(position[i]))), raw: tokenText },
    { ...textColumn("label", graph.names), raw: (i) => graph.labels[i] },
    { name: "token id", raw: (i) => (token[i] < 0 ? NaN : token[i]), exportOnly: true },
    measured("activation", valued, (x) => (Number.isNaN(x) ? "" : number(x)), "of a feature; the value of a logit"),
    measured("influence", (i) => influence[i], number, "on the chosen target"),
    measured("share", share, percent, "of the influence of all nodes"),
    { name: "pinned", numeric: true, key: (i) => Number(pinned.has(i)), text: (i) => (pinned.has(i) ? "pinned" : ""),
      raw: (i) => (pinned.has(i) ? "pinned" : "") },
  ];
}

/** Columns of the edges; keys and texts take an edge. */
export function edgeColumns(app) {
  const { graph } = app;
  const { indices, weights } = graph.edges;
  const name = textColumn("label", graph.names);
  const level = levelOf(graph);
  const end = (title, node) => [
    { name: `${title} id`, raw: (e) => graph.ids[node(e)], exportOnly: true },
    { ...name, name: title, key: (e) => name.key(node(e)), text: (e) => name.text(node(e)),
      raw: (e) => graph.labels[node(e)], node },
    { name: `${title} at`, numeric: true, key: (e) => level(node(e)) * 65536 + graph.nodes.position[node(e)],
      text: (e) => graph.place(node(e)), raw: (e) => graph.place(node(e)), meaning: "layer · position" },
  ];
  return [
    ...end("source", (e) => indices[e]), ...end("target", (e) => graph.target[e]),
    measured("weight", (e) => weights[e], (x) => number(x, true), "direct effect of the source on the target"),
    measured("share", (e) => graph.share(e), percent, "of all inputs of the target; constants stand outside"),
  ];
}

/** What a node's layer is ordered by: tokens below all layers, logits above. */
function levelOf(graph) {
  return (i) => (graph.kind[i] === "feature" || graph.kind[i] === "logit" ? graph.levels[i]
    : graph.kind[i] === "embedding" ? -1 : graph.nodes.layer[i]);
}

function measured(name, value, shown, meaning) {
  return { name, numeric: true, key: value, text: (i) => shown(value(i)), raw: value, meaning };
}

/** A column of one text per node; its ranks are made when they are first needed. */
function textColumn(name, texts) {
  let ranks = null;
  return { name, numeric: false, key: (i) => (ranks ??= ranksOf(texts))[i], text: (i) => shorten(texts[i], LABEL),
    raw: (i) => texts[i] };
}

/** The place of each text among the distinct ones, upper and lower case alike. */
function ranksOf(texts) {
  const plain = texts.map((text) => text.slice(0, COMPARED).toLowerCase());
  const ranks = new Map([...new Set(plain)].sort().map((text, rank) => [text, rank]));
  return Float64Array.from(plain, (text) => ranks.get(text));
}

/**
 * `rows` (integers) in the order of float32 `key`, NaN last; ties stay as they were. Key and place of a row share a
 * double, so that the sort is the engine's own, which needs no function to compare: 100,000 rows take milliseconds.
 */
export function ordered(rows, key, descending) {
  const packed = new Float64Array(rows.length);
  for (let i = 0; i < rows.length; i++) {
    const value = key(rows[i]);
    packed[i] = (Number.isNaN(value) ? 2 ** 32 : sortable(descending ? -value : value)) * ROWS + i;
  }
  packed.sort();
  const found = new Int32Array(rows.length);
  for (let i = 0; i < rows.length; i++) found[i] = rows[packed[i] % ROWS];
  return found;
}

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/** An unsigned integer that rises with a float32. */
function sortable(value) {
  float[0] = value + 0; // -0 is 0
  return bits[0] >>> 31 ? ~bits[0] >>> 0 : (bits[0] | 0x80000000) >>> 0;
}
