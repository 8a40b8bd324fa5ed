// The graph in memory: columns, inputs (rows of the file), outputs (the same edges, turned), and what adds up to what.

import { Heads } from "./heads.js";
import { number, percent, shorten, visibleLabel, visibleToken } from "./text.js";

const ROUNDING = 1e-5; // of a row: float32 sums from the trace agree with sums of the edges here no better
const TOKEN = 40; // characters of a token beside its position

export class Graph {
  /** What packed.js read: see content.py for the names. */
  constructor({ values, columns }) {
    this.header = values.header;
    this.values = values; // ids, labels, suggestions, paths, texts, live
    this.ids = values.ids;
    this.nodes = part(columns, "nodes");
    this.size = this.nodes.kind.length;
    this.kind = Array.from(this.nodes.kind, (code) => values.kinds[code]);
    this.isConstant = Uint8Array.from(this.kind, (kind) => Number(kind === "constant"));
    this.edges = { ...part(columns, "edges"), total: values.totalEdges };
    this.edgeCount = this.edges.indices.length;
    this.target = new Int32Array(this.edgeCount);
    for (let t = 0; t < this.size; t++) this.target.fill(t, this.edges.indptr[t], this.edges.indptr[t + 1]);
    const { nodes, weights } = part(columns, "targets");
    this.targets = { nodes: Array.from(nodes), weights: Array.from(weights) };
    this.targetWeight = new Map(this.targets.nodes.map((node, i) => [node, weights[i]]));
    this.columns = Math.max(values.header.token_texts.length, values.header.tokens.length,
      this.nodes.position.reduce((most, position) => Math.max(most, position + 1), 0));
    this.features = part(columns, "features");
    this.active = part(columns, "active");
    this.cards = part(columns, "cards");
    this.heads = values.heads ? new Heads(values.heads, (name) => part(columns, name)) : null;
    this.featureOf = this.findFeatures();
    this.byId = new Map(this.ids.map((id, i) => [id, i]));
    this.levels = this.findLevels();
    this.turnEdges();
    this.sumRows();
    this.labels = values.labels.slice();
    this.names = this.kind.map((_, i) => this.nameOf(i));
  }

  /** Place in the table of distinct features of each feature node; -1 for others. */
  findFeatures() {
    const { layer, feature } = this.features;
    const place = new Map(Array.from(layer, (l, i) => [`${l}/${feature[i]}`, i]));
    return Int32Array.from(this.kind, (kind, i) => (kind === "feature"
      ? place.get(`${this.nodes.layer[i]}/${this.nodes.feature[i]}`) ?? -1 : -1));
  }

  /** Depth of each node: a feature's layer, one above every layer for logits, -1 for nodes without inputs. */
  findLevels() {
    const level = Int32Array.from(this.kind, (kind, i) => (kind === "feature" ? this.nodes.layer[i] : -1));
    const top = level.reduce((most, value) => Math.max(most, value), 0) + 1;
    this.kind.forEach((kind, i) => {
      if (kind === "logit") level[i] = top;
    });
    return level;
  }

  turnEdges() {
    const { indices } = this.edges;
    this.outStart = new Int32Array(this.size + 1);
    for (const source of indices) this.outStart[source + 1]++;
    for (let i = 0; i < this.size; i++) this.outStart[i + 1] += this.outStart[i];
    this.outEdges = new Int32Array(indices.length);
    const next = this.outStart.slice();
    for (let e = 0; e < indices.length; e++) this.outEdges[next[indices[e]]++] = e;
  }

  /** Row totals of |weight| without constants: the trace's, from before pruning, or else of the edges here. */
  sumRows() {
    this.rowTotal = new Float64Array(this.size);
    this.rowMeasured = Array.from(this.nodes.inputAbs, (total) => total > 0);
    for (let e = 0; e < this.edgeCount; e++) {
      if (!this.isConstant[this.edges.indices[e]]) this.rowTotal[this.target[e]] += Math.abs(this.edges.weights[e]);
    }
    this.rowMeasured.forEach((measured, i) => {
      if (measured) this.rowTotal[i] = Math.max(this.rowTotal[i], this.nodes.inputAbs[i]);
    });
  }

  /** Share of the target's row total; NaN for constants, which stand outside it. */
  share(e) {
    if (this.isConstant[this.edges.indices[e]]) return NaN;
    const total = this.rowTotal[this.target[e]];
    return total > 0 ? Math.abs(this.edges.weights[e]) / total : 0;
  }

  /** The edge from one node to another, or -1. */
  edgeBetween(source, target) {
    const { indptr, indices } = this.edges;
    const place = indices.subarray(indptr[target], indptr[target + 1]).indexOf(source);
    return place < 0 ? -1 : indptr[target] + place;
  }

  /** [{node, edge, weight, share}] into `node`, largest |weight| first; only edges of the mask `kept`, where given. */
  inputs(node, kept = null) {
    const { indptr, indices } = this.edges;
    return this.sorted(range(indptr[node], indptr[node + 1]), (e) => indices[e], kept);
  }

  /** The same for the edges out of `node`. */
  outputs(node, kept = null) {
    return this.sorted(this.outEdges.subarray(this.outStart[node], this.outStart[node + 1]), (e) => this.target[e], kept);
  }

  sorted(edges, other, kept) {
    const rows = [];
    for (const edge of edges) {
      if (kept === null || kept[edge]) {
        rows.push({ node: other(edge), edge, weight: this.edges.weights[edge], share: this.share(edge) });
      }
    }
    return rows.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  }

  /**
   * The node's row, summed: what is listed (edges of the mask `kept`), what was pruned away, constants, total. Weights
   * add up to `sum` (NaN where it was not recorded) and shares to 1. Without the trace's totals nothing is known of what
   * was pruned before this page was made.
   */
  account(node, kept = null) {
    const listed = { count: 0, weight: 0, share: 0 };
    const constants = { count: 0, weight: 0 };
    const byKind = new Map();
    const hidden = { weight: 0, share: 0 };
    for (const { node: source, edge, weight, share } of this.inputs(node)) {
      if (kept !== null && !kept[edge]) {
        hidden.weight += weight;
        hidden.share += Number.isNaN(share) ? 0 : share;
        continue;
      }
      const part = this.kind[source] === "constant" ? constants : listed;
      part.count++;
      part.weight += weight;
      if (part === listed) {
        listed.share += share;
        byKind.set(this.kind[source], (byKind.get(this.kind[source]) ?? 0) + share);
      }
    }
    const measured = this.rowMeasured[node];
    const sum = this.nodes.inputSum[node];
    const pruned = measured ? { weight: sum - listed.weight - constants.weight, share: Math.max(0, 1 - listed.share) }
      : hidden;
    if (pruned.share < ROUNDING) pruned.share = 0;
    if (Math.abs(pruned.weight) < ROUNDING * Math.max(this.rowTotal[node], Math.abs(constants.weight))) pruned.weight = 0;
    return { listed, constants, pruned, byKind, measured, sum };
  }

  tokenAt(position) {
    const text = this.header.token_texts[position];
    return text === undefined ? "" : visibleToken(text);
  }

  /** What an edited label belongs to: all nodes of one feature, or the node itself. */
  labelKey(node) {
    return this.kind[node] === "feature" ? `${this.nodes.layer[node]}/${this.nodes.feature[node]}` : this.ids[node];
  }

  /** Use other labels: {key of labelKey: text}; nodes without one have their own again. */
  relabel(edited) {
    for (let i = 0; i < this.size; i++) {
      const text = edited[this.labelKey(i)] ?? this.values.labels[i];
      if (text === this.labels[i]) continue;
      this.labels[i] = text;
      this.names[i] = this.nameOf(i);
    }
  }

  /** The node's label, or what it is where it has none. */
  nameOf(node) {
    const label = this.labels[node];
    if (label.trim() !== "" || (label !== "" && this.kind[node] === "logit")) return visibleLabel(label);
    const token = this.tokenAt(this.nodes.position[node]);
    if (this.kind[node] === "embedding" && token) return token;
    if (this.kind[node] === "feature") return `feature ${this.nodes.feature[node]}`;
    if (this.kind[node] === "logit" && this.nodes.token[node] >= 0) return `token ${this.nodes.token[node]}`;
    return { error: "error", constant: "constant", embedding: "token", logit: "target" }[this.kind[node]];
  }

  /** Where it is, short: "L12·7". */
  place(node) {
    const position = this.nodes.position[node] < 0 ? "all" : this.nodes.position[node];
    const layer = { embedding: "emb", logit: "out" }[this.kind[node]] ?? `L${this.nodes.layer[node]}`;
    return `${layer}·${position}`;
  }

  /** [[name, text]] of what is known of a node. */
  facts(node) {
    const { layer, position, feature, token, value, influence } = this.nodes;
    const kind = this.kind[node];
    const facts = [];
    if (kind !== "embedding" && kind !== "logit") facts.push(["layer", String(layer[node])]);
    facts.push(["position", position[node] < 0 ? "all" : `${position[node]} ${shorten(this.tokenAt(position[node]), TOKEN)}`.trim()]);
    if (kind === "feature") facts.push(["feature", String(feature[node])], ["activation", number(value[node])]);
    if (token[node] >= 0) facts.push(["token id", String(token[node])]);
    if (kind === "logit") {
      facts.push(["value", number(value[node])]);
      if (token[node] >= 0 && this.targetWeight.has(node)) {
        facts.push(["probability", percent(this.targetWeight.get(node))]);
      }
    }
    facts.push(["influence", number(influence[node])]);
    return facts;
  }

  /** Why a node has no inputs to show, or "" where it has. */
  withoutInputs(node) {
    if (this.edges.indptr[node] !== this.edges.indptr[node + 1] || this.rowMeasured[node]) return "";
    if (this.kind[node] === "feature" && !this.nodes.expanded[node]) {
      return "Not computed: the trace stopped before it reached this feature (part of what is unexplored).";
    }
    if (this.kind[node] === "feature" || this.kind[node] === "logit") return "None in this graph.";
    return "None: this is where the graph begins.";
  }

  /** [[position, activation]] of the node's feature on this prompt; empty for other kinds. */
  activations(node) {
    const place = this.featureOf[node];
    if (place < 0) return [];
    const found = [];
    for (let i = this.active.start[place]; i < this.active.start[place + 1]; i++) {
      found.push([this.active.position[i], this.active.value[i]]);
    }
    return found;
  }

  /**
   * What the transcoder's feature data says of the node's feature, or null: {density, maximum (NaN where unknown),
   * promoted, suppressed: [[text, score]], contexts: [{tokens, activations (shares of the maximum), peak, quantile}]}.
   */
  card(node) {
    const place = this.featureOf[node] < 0 ? -1 : this.features.card[this.featureOf[node]];
    if (place < 0) return null;
    const { cards } = this;
    const list = (name) => range(cards[`${name}.start`][place], cards[`${name}.start`][place + 1]).map((i) =>
      [this.tokenText(cards[`${name}.token`][i]), cards[`${name}.score`][i]]);
    const contexts = range(cards["contexts.start"][place], cards["contexts.start"][place + 1]).map((c) => {
      const tokens = range(cards["contexts.first"][c], cards["contexts.first"][c + 1]);
      return { tokens: tokens.map((i) => this.tokenText(cards["contexts.token"][i])),
        activations: tokens.map((i) => cards["contexts.activation"][i] / 255), peak: cards["contexts.peak"][c],
        quantile: cards["contexts.quantile"][c] };
    });
    return { density: cards.density[place], maximum: cards.max_activation[place], promoted: list("promoted"),
      suppressed: list("suppressed"), contexts };
  }

  tokenText(token) {
    return this.values.texts[token] ?? `token ${token}`;
  }

  byInfluence(nodes) {
    return nodes.sort((a, b) => (this.nodes.influence[b] || 0) - (this.nodes.influence[a] || 0));
  }
}

/** Columns whose name starts with `name.`, without it. */
function part(columns, name) {
  return Object.fromEntries(Object.entries(columns).filter(([key]) => key.startsWith(`${name}.`))
    .map(([key, column]) => [key.slice(name.length + 1), column]));
}

export function range(start, end) {
  return Array.from({ length: end - start }, (_, i) => start + i);
}
