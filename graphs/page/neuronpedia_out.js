// The graph as JSON in Neuronpedia's schema, field for field as graphs/neuronpedia.py writes it, so that Python reads
// it back: what is kept at the thresholds, with the labels, pins and supernodes of the state.

const TYPES = { feature: "cross layer transcoder", error: "mlp reconstruction error", embedding: "embedding",
  logit: "logit", constant: "bias" };
const PROBABILITY = /\(p=[0-9.]+(e-?[0-9]+)?\)/;
const LEADING = /^[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/; // Python's lstrip
const PANEL = 1000; // sg_pos: thousandths of the subgraph's width and height
const MARGIN = 60;

/** The graph's JSON text. */
export function graphText(app) {
  return jsonText(graphDocument(app));
}

/** JSON text in which halves of surrogate pairs, which UTF-8 lacks, are "?". */
export function jsonText(value) {
  return JSON.stringify(value).replace(/\\(?:u(d[89a-f][0-9a-f]{2})|.)/g, (escape, half) => (half ? "?" : escape));
}

/** A file's name without suffix, of the characters that the schema allows in a slug. */
export function slugOf(graph) {
  const words = graph.header.prompt.slice(0, 400).toLowerCase().match(/[a-z0-9]+/g) ?? [];
  return words.join("-").slice(0, 40).replace(/-+$/, "") || "graph";
}

/** A model's name in the characters that the schema allows: "google/gemma-3-270m" -> "gemma-3-270m". */
export function scanName(model) {
  const last = model.replaceAll("\\", "/").replace(/\/+$/, "").split("/").at(-1);
  return last.replace(/[^A-Za-z0-9_.-]+/gu, "-").replace(/^-+|-+$/g, "") || "model";
}

/** A node's label as the schema wants it: a logit's must contain "(p=...)". */
export function clerp(kind, label, weight) {
  if (kind !== "logit") return label;
  const found = PROBABILITY.exec(label);
  if (found && label.indexOf("(p=") === found.index) return label;
  return `${label.replaceAll("(p=", "(p =")} (p=${threeDigits(weight)})`.replace(LEADING, "");
}

function graphDocument(app) {
  const { graph, state } = app;
  const nodes = [...graph.kind.keys()].filter((i) => app.kept.nodes[i]);
  const annotations = annotationsOf(app);
  const header = headerOf(app, annotations);
  return { metadata: metadataOf(app, nodes, header, annotations), qParams: {
    pinnedIds: annotations.pinned, supernodes: annotations.supernodes, linkType: "both",
    clickedId: state.selected !== null && app.kept.nodes[state.selected] ? graph.ids[state.selected] : "",
    sg_pos: positions(annotations) }, nodes: nodeEntries(graph, nodes, header), links: linksOf(app, nodes) };
}

/** Pins and supernodes by id, of kept nodes; `items`: what the subgraph shows, in the schema's order, with places. */
function annotationsOf({ graph, state, kept }) {
  const id = (node) => graph.ids[node];
  const pins = state.pins.filter((node) => kept.nodes[node]);
  const groups = state.groups.map((group) => ({ ...group, nodes: group.nodes.filter((node) => kept.nodes[node]) }))
    .filter((group) => group.nodes.length > 0);
  const grouped = new Set(groups.flatMap((group) => group.nodes));
  const alone = pins.filter((node) => !grouped.has(node)).sort((a, b) => a - b);
  const items = [...alone.map((node) => [id(node), state.places[id(node)]]),
    ...groups.map((group, i) => [`supernode:${i}`, state.places[group.key]])];
  return { pinned: pins.map(id), supernodes: groups.map((group) => [group.name, ...group.nodes.map(id)]), items };
}

/** "x y x y ..." in thousandths of the subgraph's panel, or "" while some item was not put anywhere. */
function positions({ items }) {
  if (items.length === 0 || items.some(([, place]) => place === undefined)) return "";
  const scaled = [0, 1].map((axis) => {
    const values = items.map(([, place]) => place[axis]);
    const least = Math.min(...values);
    const span = Math.max(...values) - least;
    const inside = (value) => (span ? MARGIN + ((value - least) / span) * (PANEL - 2 * MARGIN) : PANEL / 2);
    return values.map((value) => Math.round(inside(value)));
  });
  return items.map((_, i) => `${scaled[0][i]} ${scaled[1][i]}`).join(" ");
}

/** The header as graph.prune leaves it. What is not a finite number in it goes as text, which Python takes back. */
function headerOf({ graph, state: { thresholds }, first }, { pinned, supernodes }) {
  const { header } = graph;
  const known = (value) => value ?? "nan";
  const { page, ...settings } = header.settings; // what the page could show beyond these thresholds is not in the file
  const asOpened = thresholds.nodes === first.thresholds.nodes && thresholds.edges === first.thresholds.edges;
  if (!asOpened) {
    settings.unpruned ??= { nodes: graph.size, edges: graph.edges.total, influence: sum(graph.nodes.influence) };
    Object.assign(settings, { node_threshold: thresholds.nodes, edge_threshold: thresholds.edges });
  }
  return { ...header, settings, pinned, supernodes, reconstruction: header.reconstruction.map(known),
    scores: Object.fromEntries(Object.entries(header.scores).map(([name, value]) => [name, known(value)])),
    unexplored: known(header.unexplored), conservation: known(header.conservation) };
}

function metadataOf(app, nodes, header, annotations) {
  const { graph } = app;
  const share = (value) => (Number.isFinite(value) ? value : 1);
  const thresholds = { node_threshold: share(header.settings.node_threshold),
    edge_threshold: share(header.settings.edge_threshold) };
  const asked = { max_n_logits: header.settings.max_logits, desired_logit_prob: header.settings.logit_prob,
    max_feature_nodes: header.settings.max_features };
  return {
    slug: slugOf(graph), scan: scanName(header.model), schema_version: 1, prompt: header.prompt,
    prompt_tokens: header.token_texts, node_threshold: thresholds.node_threshold, info: infoOf(header),
    generation_settings: Object.fromEntries(Object.entries(asked).filter(([, value]) => Number.isFinite(value))),
    pruning_settings: thresholds,
    gemma_circuits: { version: 1, header, nodes: extraOf(graph, nodes), targets: targetsOf(app),
      activations: activationsOf(graph, nodes),
      places: Object.fromEntries(annotations.items.filter(([, place]) => place !== undefined)) } };
}

function infoOf(header) {
  const [name, ...rest] = (header.generator || "gemma-circuits").split(" ");
  const created = Date.parse(header.created);
  return { description: `Attribution graph of ${header.model} through ${header.transcoders}`, creator_name: "",
    creator_url: "", source_urls: [], generator: { name, version: rest.join(" ") || "unknown", url: "" },
    ...(Number.isFinite(created) ? { create_time_ms: created } : {}) };
}

function nodeEntries(graph, nodes, header) {
  const weightOf = (node) => graph.targetWeight.get(node) ?? 0;
  const strongest = graph.targets.nodes.reduce((best, node) => (best === -1 || weightOf(node) > weightOf(best)
    ? node : best), -1);
  const cumulative = cumulativeInfluence(graph, nodes, header);
  return nodes.map((i) => {
    const kind = graph.kind[i];
    return { node_id: graph.ids[i], ...schemaIds(graph, i), ctx_idx: Math.max(graph.nodes.position[i], 0),
      feature_type: TYPES[kind], clerp: clerp(kind, graph.labels[i], weightOf(i)),
      influence: kind === "logit" ? null : cumulative.get(i),
      activation: kind === "feature" ? shortest(graph.nodes.value[i]) : null, token_prob: weightOf(i),
      is_target_logit: i === strongest };
  });
}

function schemaIds(graph, i) {
  const { layer: layers, position, feature: features, token } = graph.nodes;
  const [layer, feature, at] = [layers[i], features[i], Math.max(position[i], 0)];
  switch (graph.kind[i]) {
    case "feature": // Cantor's pairing of (layer, feature)
      return { feature: ((layer + feature) * (layer + feature + 1)) / 2 + feature, layer: `${layer}`,
        jsNodeId: `${layer}_${feature}-0` };
    case "error": return { feature: -1, layer: `${layer}`, jsNodeId: `${layer}_${at}-0` };
    case "embedding": return { feature: at, layer: "E", jsNodeId: `E_${token[i]}-${at}` };
    case "logit": return { feature: token[i] >= 0 ? token[i] : null, layer: `${layer + 1}`,
      jsNodeId: `L_${token[i] >= 0 ? token[i] : "D"}-${at}` };
    default: return { feature: null, layer: `${Math.max(layer, 0)}`, jsNodeId: `BIAS_${layer}-${at}` };
  }
}

/** Share of the unpruned graph's influence held by the kept nodes that have at least as much. */
function cumulativeInfluence(graph, nodes, header) {
  const amount = (i) => graph.nodes.influence[i] || 0;
  const total = Math.max(header.settings.unpruned?.influence || 0, sum(nodes.map(amount)));
  let running = 0;
  return new Map([...nodes].sort((a, b) => amount(b) - amount(a)).map((i) => {
    running += amount(i);
    return [i, total > 0 ? Math.min(running / total, 1) : 1];
  }));
}

/** What the schema has no place for, by id, in the order of graphs/neuronpedia.py. */
function extraOf(graph, nodes) {
  const { layer, position, value, influence, expanded, inputSum, inputAbs, residual, threshold } = graph.nodes;
  return Object.fromEntries(nodes.map((i) => [graph.ids[i], [layer[i], position[i], shortest(value[i]),
    shortest(influence[i]), Boolean(expanded[i]), shortest(inputSum[i]), shortest(inputAbs[i]),
    shortest(residual === undefined ? NaN : residual[i]), graph.labels[i], shortest(threshold[i])]]));
}

function targetsOf({ graph, kept }) {
  return graph.targets.nodes.map((node, i) => [node, graph.targets.weights[i]]).filter(([node]) => kept.nodes[node])
    .map(([node, weight]) => [graph.ids[node], shortest(weight)]);
}

/** Columns of where the features of `nodes` fired. */
function activationsOf(graph, nodes) {
  const wanted = new Set(nodes.map((i) => graph.featureOf[i]));
  const made = { layer: [], feature: [], position: [], value: [] };
  graph.features.layer.forEach((layer, place) => {
    for (let i = graph.active.start[place]; wanted.has(place) && i < graph.active.start[place + 1]; i++) {
      made.layer.push(layer);
      made.feature.push(graph.features.feature[place]);
      made.position.push(graph.active.position[i]);
      made.value.push(shortest(graph.active.value[i]));
    }
  });
  return made;
}

function linksOf({ graph, kept }, nodes) {
  const { indptr, indices, weights } = graph.edges;
  const links = [];
  for (const t of nodes) {
    for (let e = indptr[t]; e < indptr[t + 1]; e++) {
      if (!kept.edges[e]) continue;
      links.push({ source: graph.ids[indices[e]], target: graph.ids[t], weight: shortest(weights[e]) });
    }
  }
  return links;
}

/** A short decimal that reads back as the same float32; null where it is not finite. */
function shortest(value) {
  if (!Number.isFinite(value)) return null;
  for (const digits of [6, 7, 8]) {
    const rounded = Number(value.toPrecision(digits));
    if (Math.fround(rounded) === value) return rounded;
  }
  return Number(value.toPrecision(9));
}

/** As Python rounds: halves to even. A float32 times 1000 is exact, so a half is seen as one. */
function threeDigits(weight) {
  const thousands = weight * 1000;
  const even = thousands % 1 === 0.5 && Math.floor(thousands) % 2 === 0;
  return even ? (Math.floor(thousands) / 1000).toFixed(3) : weight.toFixed(3);
}

const sum = (values) => values.reduce((all, value) => all + (value || 0), 0);
