// The state in the URL hash, by node ids, so that an address can be kept or sent. What is as at first is left out.

import { clean } from "./actions.js";
import { limitsOf } from "./prune.js";

const CHOICES = { left: ["graph", "subgraph", "split", "table", "attention"],
  right: ["node", "explanation", "unexplained", "groups", "pruning", "checked"], color: ["kind", "influence"],
  large: ["left", "right"] };
const LONGEST_QUERY = 1000; // characters
export const LONGEST = 500_000; // characters of a hash: addresses end at 2 million, and a longer one is a mistake

/** The hash, without "#", of what differs from the state `first`. */
export function encode(graph, state, first) {
  const found = new URLSearchParams();
  const put = (name, value) => found.set(name, value);
  const list = (nodes) => nodes.map((node) => graph.ids[node]).join(",");
  if (state.selected !== null) put("node", graph.ids[state.selected]);
  if (state.edge !== null) put("edge", list([graph.edges.indices[state.edge], graph.target[state.edge]]));
  if (state.head !== null) put("head", state.head);
  if (state.cell !== null) put("cell", state.cell.join(","));
  for (const name of Object.keys(CHOICES)) if (state[name] !== first[name]) put(name, state[name]);
  if (state.target !== null) put("target", graph.ids[state.target]);
  for (const name of ["nodes", "edges"]) {
    if (state.thresholds[name] !== first.thresholds[name]) put(name, state.thresholds[name]);
  }
  if (state.drawn !== first.drawn) put("drawn", state.drawn);
  if (state.query !== "") put("query", state.query.slice(0, LONGEST_QUERY));
  if (state.pins !== first.pins) put("pins", list(state.pins));
  const renamed = new Map(); // supernodes in an address are numbered anew
  if (state.groups !== first.groups) {
    state.groups.forEach((group, i) => renamed.set(group.key, `g${i}`));
    put("groups", state.groups.map(({ name, nodes }) => `${encodeURIComponent(whole(name))},${list(nodes)}`).join(";"));
  }
  for (const [key, text] of Object.entries(state.labels)) found.append("label", `${key},${text}`);
  const places = Object.entries(state.places)
    .map(([key, place]) => [renamed.get(key) ?? key, ...place.map(Math.round)].join(","));
  if (places.length) put("places", places.join(";"));
  if (state.path !== null) put("path", list(state.path));
  const dismissed = state.dismissed.map((i) => graph.values.suggestions[i]?.nodes[0])
    .filter((node) => node !== undefined);
  if (dismissed.length) put("dismissed", list(dismissed)); // no two suggestions share a node
  return found.toString();
}

/** All fields that a hash can give; what it names and the graph lacks, or what is malformed, is left out. */
export function decode(graph, hash, first) {
  const text = hash.replace(/^#/, "");
  const found = new URLSearchParams(text.length > LONGEST ? "" : text);
  const node = (name) => graph.byId.get(found.get(name)) ?? null;
  const nodes = (list) => [...new Set(list.split(",").map((id) => graph.byId.get(id)).filter((i) => i !== undefined))];
  const state = { selected: node("node"), target: node("target"), thresholds: thresholdsIn(graph, found, first) };
  if (state.target !== null && !graph.targetWeight.has(state.target)) state.target = null;
  const ends = nodes(found.get("edge") ?? "");
  const edge = ends.length === 2 ? graph.edgeBetween(...ends) : -1;
  state.edge = edge < 0 ? null : edge;
  state.head = graph.heads?.has(found.get("head")) ? found.get("head") : null;
  state.cell = cellIn(graph, found.get("cell") ?? "");
  for (const [name, choices] of Object.entries(CHOICES)) {
    const live = name === "right" && graph.values.live?.steer && found.get(name) === "steer";
    state[name] = live || choices.includes(found.get(name)) ? found.get(name) : first[name];
  }
  state.drawn = /^\d{1,9}$/.test(found.get("drawn")) ? Number(found.get("drawn")) : first.drawn;
  state.query = (found.get("query") ?? "").slice(0, LONGEST_QUERY);
  state.groups = found.has("groups") ? groupsIn(found.get("groups"), nodes) : first.groups;
  const pins = found.has("pins") ? nodes(found.get("pins")) : first.pins;
  state.pins = [...new Set([...pins, ...state.groups.flatMap((group) => group.nodes)])];
  if (same(state.pins, first.pins)) state.pins = first.pins;
  state.labels = found.has("label") ? labelsIn(graph, found.getAll("label")) : first.labels;
  state.places = found.has("places") ? placesIn(graph, state.groups, found.get("places")) : first.places;
  const path = nodes(found.get("path") ?? "");
  state.path = path.length > 1 ? path : null;
  const dismissed = new Set(nodes(found.get("dismissed") ?? ""));
  state.dismissed = dismissed.size === 0 ? first.dismissed
    : graph.values.suggestions.map((_, i) => i).filter((i) => dismissed.has(graph.values.suggestions[i].nodes[0]));
  return state;
}

/** [query, key], positions of the prompt, or null. */
function cellIn(graph, text) {
  const cell = /^\d{1,5},\d{1,5}$/.test(text) ? text.split(",").map(Number) : null;
  return cell !== null && cell.every((position) => position < graph.columns) ? cell : null;
}

function thresholdsIn(graph, found, first) {
  const { most } = limitsOf(graph);
  const read = (name) => {
    const value = Number.parseFloat(found.get(name));
    return value >= 0 && value <= 1 ? Math.min(value, most[name]) : first.thresholds[name];
  };
  const made = { nodes: read("nodes"), edges: read("edges") };
  return made.nodes === first.thresholds.nodes && made.edges === first.thresholds.edges ? first.thresholds : made;
}

function groupsIn(text, nodes) {
  const taken = new Set();
  return text.split(";").map((group, i) => {
    const [name, ...ids] = group.split(",");
    const free = nodes(ids.join(",")).filter((node) => !taken.has(node));
    free.forEach((node) => taken.add(node));
    return { key: `g${i}`, name: decoded(name) || `group ${i + 1}`, nodes: free };
  }).filter((group) => group.nodes.length > 0);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch { // a percent sign that begins nothing
    return text;
  }
}

function labelsIn(graph, list) {
  const known = new Set(graph.ids.map((_, i) => graph.labelKey(i)));
  return Object.fromEntries(list.map((item) => [item.slice(0, Math.max(0, item.indexOf(","))),
    clean(item.slice(item.indexOf(",") + 1))]).filter(([key, text]) => known.has(key) && text !== ""));
}

function placesIn(graph, groups, text) {
  const keys = new Set(groups.map((group) => group.key));
  return Object.fromEntries(text.split(";").map((item) => item.split(","))
    .filter(([key, ...place]) => (graph.byId.has(key) || keys.has(key)) && place.length === 2
      && place.every((value) => /^-?\d{1,6}$/.test(value)))
    .map(([key, x, y]) => [key, [Number(x), Number(y)]]));
}

const same = (a, b) => a.length === b.length && a.every((item, i) => item === b[i]);
const whole = (text) => text.replace(/\p{Surrogate}/gu, "\ufffd"); // half a pair cannot be encoded
