// Pins, supernodes and labels out of attribution-graph JSON: this page's files, Python's, Neuronpedia's, and those of
// circuit-tracer's server, which keeps lists as text or null and calls the error of layer l at position p "0_l_p".

import { clean } from "./actions.js";
import { clerp } from "./neuronpedia_out.js";

const KINDS = new Map([["cross layer transcoder", "feature"], ["mlp reconstruction error", "error"],
  ["embedding", "embedding"], ["logit", "logit"], ["bias", "constant"]]);
const LABEL_AT = 8; // in a node's row of metadata.gemma_circuits

/** A file that cannot be used; the message says why and what to do. */
export class Unusable extends Error {}

/**
 * What a file says of this graph: {changes: fields of the state, labels, pins, groups: numbers of what it names here,
 * unknown: ids that this graph lacks}. Pins and supernodes take the place of the state's where the file has any; labels
 * are added to the state's.
 *
 * Throws Unusable: not JSON, not this schema, or a graph of another prompt.
 */
export function readAnnotations(graph, state, text) {
  const file = parsed(text);
  if (!samePrompt(graph, file)) {
    throw new Unusable("it is a graph of another prompt: open a file of the prompt that this page shows");
  }
  const unknown = new Set();
  const find = finder(graph, file);
  const nodes = (ids) => [...new Set(ids.map((id) => {
    const node = find(id);
    if (node === null) unknown.add(id);
    return node;
  }))].filter((node) => node !== null);
  const pins = nodes(file.pinned);
  const groups = groupsOf(file.supernodes, nodes);
  const labels = labelsOf(graph, state, file, find, unknown);
  const changes = { labels: labels.all };
  if (pins.length + groups.length > 0) {
    Object.assign(changes, { pins: [...new Set([...pins, ...groups.flatMap((group) => group.nodes)])], groups,
      places: placesOf(graph, groups, file.own?.places) });
  }
  return { changes, labels: labels.count, pins: pins.length, groups: groups.length, unknown: unknown.size };
}

function parsed(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Unusable("it is not JSON: open a graph in Neuronpedia's schema, such as this page downloads");
  }
  const parts = found !== null && typeof found === "object" ? found : {};
  if (!isObject(parts.metadata) || !Array.isArray(parts.nodes)) {
    throw new Unusable("it is not a graph in Neuronpedia's schema, which has metadata, qParams, nodes and links");
  }
  const asked = isObject(parts.qParams) ? parts.qParams : {};
  const own = parts.metadata.gemma_circuits;
  return { metadata: parts.metadata, own: isObject(own) ? own : null,
    nodes: parts.nodes.filter((node) => isObject(node) && typeof node.node_id === "string"),
    pinned: idsIn(asked.pinnedIds), supernodes: listsIn(asked.supernodes), clerps: listsIn(asked.clerps) };
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** A list, or ids in one text separated by commas, or null. */
function idsIn(value) {
  const list = typeof value === "string" ? value.split(",").filter((id) => id !== "") : value;
  return Array.isArray(list) ? list.filter((id) => typeof id === "string") : [];
}

/** A list of lists that begin with a name, or JSON text of one, or null. */
function listsIn(value) {
  let list = value;
  if (typeof value === "string" && value.trim() !== "") {
    try {
      list = JSON.parse(value);
    } catch {
      throw new Unusable("its supernodes or labels are text that is not JSON: the file is damaged");
    }
  }
  return Array.isArray(list) ? list.filter((item) => Array.isArray(item) && item.length > 1)
    .map((item) => item.map(String)) : [];
}

function samePrompt(graph, { metadata, own, nodes }) {
  const { tokens, token_texts: texts, prompt } = graph.header;
  const theirs = own?.header?.tokens;
  if (Array.isArray(theirs) && theirs.length && tokens.length) return equal(theirs, tokens);
  const given = metadata.prompt_tokens;
  if (Array.isArray(given) && given.length !== texts.length) return false;
  const ours = new Map(graph.kind.flatMap((kind, i) => (kind === "embedding" && graph.nodes.token[i] >= 0
    ? [[graph.nodes.position[i], graph.nodes.token[i]]] : [])));
  const embedded = nodes.map((node) => /^E_(\d+)_(\d+)$/.exec(node.node_id) ?? [])
    .filter(([, , position]) => ours.has(Number(position)));
  if (embedded.length) return embedded.every(([, token, position]) => ours.get(Number(position)) === Number(token));
  return Array.isArray(given) ? equal(given.map(bare), texts.map(bare)) : bare(metadata.prompt) === bare(prompt);
}

/** Text without spaces and the marks that programs write for them. */
const bare = (text) => plain(String(text)).replace(/[\s⏎→↵⇥␣·▁]/gu, "");
const plain = (text) => text.replace(/\p{Surrogate}/gu, "?"); // as writers do
const equal = (a, b) => a.length === b.length && a.every((item, i) => item === b[i]);

/** A function from an id of the file to our node; null where there is none, or two could be meant. */
function finder(graph, { nodes, own }) {
  const named = new Map();
  for (const node of nodes) {
    const ours = ourNode(graph, node);
    if (!named.has(node.node_id)) named.set(node.node_id, new Set());
    named.get(node.node_id).add(ours);
  }
  return (id) => {
    const error = own === null ? /^0_(\d+)_(\d+)$/.exec(id) : null;
    const found = named.get(id) ?? new Set([graph.byId.get(id), error ? graph.byId.get(`E_ERR_${error[1]}_${error[2]}`)
      : undefined].filter((node) => node !== undefined));
    return found.size === 1 ? [...found][0] : null;
  };
}

/** Our node of a node of the file, or null: by its id, or by what it is where ids are formed otherwise. */
function ourNode(graph, { node_id: id, feature_type: type, layer, ctx_idx: position, feature }) {
  const kind = KINDS.get(String(type).toLowerCase());
  const ids = [id];
  if (kind === "error") ids.push(`E_ERR_${layer}_${position}`);
  if (kind === "feature") ids.push(`${layer}_${unpaired(feature, Number(layer))}_${position}`);
  const found = ids.map((name) => graph.byId.get(name));
  return found.find((node) => node !== undefined && graph.kind[node] === kind) ?? null;
}

/** The feature of Cantor's pair of (layer, feature); -1 where it is none of this layer. */
function unpaired(pair, layer) {
  if (!Number.isSafeInteger(pair) || pair < 0) return -1;
  const total = Math.floor((Math.sqrt(8 * pair + 1) - 1) / 2);
  const feature = pair - (total * (total + 1)) / 2;
  return total - feature === layer ? feature : -1;
}

function groupsOf(lists, nodes) {
  const taken = new Set();
  return lists.map(([name, ...ids], i) => {
    const free = nodes(ids).filter((node) => !taken.has(node));
    free.forEach((node) => taken.add(node));
    return { key: `g${i}`, name: clean(name) || `group ${i + 1}`, nodes: free };
  }).filter((group) => group.nodes.length > 0);
}

/** Labels of the state and, over them, those of the file: {all: by label key, count: how many the file edited}. */
function labelsOf(graph, state, file, find, unknown) {
  const edits = new Map();
  const originals = new Set(); // label keys that the file shows unedited
  for (const node of file.nodes) {
    const ours = ourNode(graph, node);
    const text = ours === null ? null : labelOf(graph, ours, node, file.own);
    if (text === null) continue;
    if (isOriginal(graph, ours, text)) originals.add(graph.labelKey(ours));
    else if (!edits.has(graph.labelKey(ours))) edits.set(graph.labelKey(ours), clean(text));
  }
  const byName = file.clerps.length ? featureNames(file.nodes) : null;
  for (const [name, text] of file.clerps) {
    const ours = byName.has(name) ? ourNode(graph, byName.get(name)) : find(name);
    if (ours === null) unknown.add(name);
    else if (clean(text) !== "" && !isOriginal(graph, ours, text)) edits.set(graph.labelKey(ours), clean(text));
  }
  const all = { ...state.labels };
  for (const key of originals) delete all[key];
  for (const [key, text] of edits) all[key] = text;
  const names = Object.keys(all);
  const unchanged = names.length === Object.keys(state.labels).length
    && names.every((key) => all[key] === state.labels[key]);
  return { all: unchanged ? state.labels : all, count: edits.size };
}

const isOriginal = (graph, node, text) => clean(plain(graph.values.labels[node])) === clean(text);

/** The label that the file gives to our node, or null. Other programs label tokens, errors and logits by themselves. */
function labelOf(graph, ours, node, own) {
  const text = typeof node.clerp === "string" ? node.clerp : "";
  const kind = graph.kind[ours];
  if (own === null) return kind === "feature" && clean(text) !== "" ? text : null;
  const written = own.nodes?.[node.node_id]?.[LABEL_AT];
  if (typeof written !== "string") return clean(text) === "" ? null : text;
  if (text === clerp(kind, written, node.token_prob ?? 0)) return written;
  return clean(text) === "" ? null : text;
}

/** Names by which pages call a feature in qParams.clerps, beside the node's id. */
function featureNames(nodes) {
  const names = new Map();
  for (const node of nodes) {
    if (KINDS.get(String(node.feature_type).toLowerCase()) !== "feature") continue;
    names.set(String(node.feature), node);
    names.set(`${node.layer}_${node.feature}_${node.ctx_idx}`, node);
  }
  return names;
}

/** Places of our own files: by id, and of supernodes by their number. */
function placesOf(graph, groups, places) {
  const named = Object.entries(isObject(places) ? places : {});
  return Object.fromEntries(named.map(([name, place]) => [name.replace(/^supernode:/, "g"), place])
    .filter(([key, place]) => (graph.byId.has(key) || groups.some((group) => group.key === key))
      && Array.isArray(place) && place.length === 2
      && place.every((value) => Number.isFinite(value) && Math.abs(value) < 1e6)));
}
