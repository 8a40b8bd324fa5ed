// Search. Words match labels, tokens of embeddings and logits, promoted tokens, and feature numbers: "345", "12/345".
// "layer:12" (or "layer:3-7", "layer:emb", "layer:out"), "position:4" (or "pos:", "position:all"), "kind:error",
// "token:Jordan", "promotes:game" and "feature:345" narrow it. Quotes hold words together. All parts must hold.

import { KIND_NAMES } from "./shapes.js";
import { visibleToken } from "./text.js";

const FIELDS = new Map([["layer", "layer"], ["position", "position"], ["pos", "position"], ["kind", "kind"],
  ["token", "token"], ["promotes", "promotes"], ["feature", "feature"]]);
const PART = /(?:([a-z]+):)?(?:"([^"]*)"?|([^\s"]\S*))/gi;
const SHOWN_TOKENS = 3; // promoted tokens named as the reason of a match

const known = new WeakMap(); // graph: lower-case texts that were searched before

/** Nodes of the mask `kept` that match, most influential first. */
export function matches(graph, query, kept = null) {
  const tests = parse(query).map((part) => testOf(graph, part).test);
  const found = [];
  for (let i = 0; i < graph.size; i++) {
    if ((kept === null || kept[i]) && tests.every((test) => test(i))) found.push(i);
  }
  return graph.byInfluence(found);
}

/** For each part of a query, what of a node that matches it did: ['label', 'promotes "␣game"']. */
export function reasons(graph, query) {
  const tests = parse(query).map((part) => testOf(graph, part));
  return (node) => [...new Set(tests.map(({ reason }) => reason(node)))];
}

/** [{field or null, text}]; a field without a text yet is left out. */
function parse(query) {
  const parts = [];
  for (const [whole, name, quoted, word] of query.matchAll(PART)) {
    const field = FIELDS.get(name?.toLowerCase()) ?? null;
    const bare = name !== undefined && field === null ? `${name}:${quoted ?? word}` : quoted ?? word;
    const unfinished = whole.endsWith(":") && FIELDS.has(whole.slice(0, -1).toLowerCase());
    if (bare === "" || unfinished) continue;
    parts.push({ field, text: plain(bare) });
  }
  return parts;
}

/** As written in the graph: marks that stand for spaces and line ends on the page count as these. */
function plain(text) {
  return text.replaceAll("␣", " ").replaceAll("↵", "\n").replaceAll("⇥", "\t").toLowerCase();
}

function testOf(graph, { field, text }) {
  if (field === null) return anywhere(graph, text);
  const { layer, position, feature } = graph.nodes;
  const layers = numbers(text.replace(/^l(?=\d)/, ""));
  const places = numbers(text);
  const inside = (i) => graph.kind[i] !== "logit" && graph.kind[i] !== "embedding";
  const [named, index] = text.includes("/") ? text.split("/").map(Number) : [null, Number(text)];
  const tests = {
    layer: (i) => (text === "emb" ? graph.kind[i] === "embedding" : text === "out" ? graph.kind[i] === "logit"
      : inside(i) && layers(layer[i])),
    position: (i) => (text === "all" ? position[i] < 0 : position[i] >= 0 && places(position[i])),
    feature: (i) => graph.kind[i] === "feature" && feature[i] === index && (named === null || layer[i] === named),
    kind: (i) => graph.kind[i] === text || KIND_NAMES[graph.kind[i]].includes(text.replace(/(?<=..)s$/, "")),
    token: (i) => position[i] >= 0 && tokenText(graph, i).includes(text),
    promotes: (i) => promoted(graph, i).some((token) => token.includes(text)),
  };
  const reason = {
    layer: (i) => `layer ${graph.place(i).split("·")[0]}`,
    position: (i) => `position ${graph.place(i).split("·")[1]}`,
    feature: (i) => `feature ${layer[i]}/${feature[i]}`,
    kind: (i) => KIND_NAMES[graph.kind[i]],
    token: (i) => `token "${graph.tokenAt(position[i])}"`,
    promotes: (i) => promotedReason(graph, i, text),
  };
  return { test: tests[field], reason: reason[field] };
}

/** A part without a field. */
function anywhere(graph, text) {
  const { layer, feature } = graph.nodes;
  const inName = (i) => named(graph, i).some((name) => name.includes(text));
  const isNumber = (i) => graph.kind[i] === "feature"
    && (text === String(feature[i]) || text === `${layer[i]}/${feature[i]}`);
  return {
    test: (i) => inName(i) || isNumber(i) || promoted(graph, i).some((token) => token.includes(text)),
    reason: (i) => (inName(i) ? "label" : isNumber(i) ? `feature ${layer[i]}/${feature[i]}`
      : promotedReason(graph, i, text)),
  };
}

/** A test for "7" or "3-7". */
function numbers(text) {
  const [, first, last] = /^(\d+)(?:-(\d+))?$/.exec(text) ?? [null, NaN, NaN];
  return (value) => value >= Number(first) && value <= Number(last ?? first);
}

/** Label and name of a node, and an embedding's token, in lower case; kept until the label is another. */
function named(graph, i) {
  const { names } = knownOf(graph);
  const label = graph.labels[i];
  if (names[i]?.label !== label) {
    const texts = [label, graph.names[i], ...(graph.kind[i] === "embedding" ? [tokenText(graph, i)] : [])];
    names[i] = { label, texts: [...new Set(texts.map((text) => text.toLowerCase()))] };
  }
  return names[i].texts;
}

function tokenText(graph, i) {
  return (graph.header.token_texts[graph.nodes.position[i]] ?? "").toLowerCase();
}

/** Promoted tokens of a node's feature, in lower case. */
function promoted(graph, i) {
  const place = graph.featureOf[i] < 0 ? -1 : graph.features.card[graph.featureOf[i]];
  if (place < 0) return [];
  const { promotedBy } = knownOf(graph);
  promotedBy[place] ??= promotedTokens(graph, place).map((text) => text.toLowerCase());
  return promotedBy[place];
}

function promotedTokens(graph, place) {
  const { "promoted.start": start, "promoted.token": token } = graph.cards;
  return Array.from(token.subarray(start[place], start[place + 1]), (id) => graph.tokenText(id));
}

function promotedReason(graph, i, text) {
  const texts = promotedTokens(graph, graph.features.card[graph.featureOf[i]])
    .filter((token) => token.toLowerCase().includes(text));
  return `promotes ${[...new Set(texts)].slice(0, SHOWN_TOKENS).map((token) => `"${visibleToken(token)}"`).join(", ")}`;
}

function knownOf(graph) {
  if (!known.has(graph)) known.set(graph, { names: [], promotedBy: [] });
  return known.get(graph);
}
