// What the graph does not explain: the parts that influence on the target ends in, scores, and where it is lost.

import { HeatMap, scaleLegend } from "./heatmap.js";
import { nodeList } from "./lists.js";
import { followNodes, showNode } from "./nodebuttons.js";
import { PARTS, partRows, partsBar } from "./parts.js";
import { element, percent } from "./text.js";

const WORST = 10; // places listed
const LOST = PARTS.filter(([name]) => name !== "tokens");
const HEADS = [["node", ""], ["at", ""], ["lost as", ""], ["share", "of what decides the target"]];
const MEANINGS = {
  replacement: "Of the influence that reaches tokens or errors, the share that reaches tokens.",
  completeness: "The share of node inputs that are not errors, each node counted by its influence.",
};

export class UnexplainedView {
  constructor(app, root) {
    this.app = app;
    this.graph = app.graph;
    this.root = root;
    this.part = "all";
    followNodes(app, root);
  }

  render(state, previous) {
    const same = (name) => previous !== null && state[name] === previous[name];
    if (same("target") && same("thresholds") && same("labels")) return;
    if (previous === null) this.build();
    this.ends = this.app.ends;
    this.showParts();
    this.showPlaces();
  }

  build() {
    this.summary = element("div");
    this.scores = element("div");
    this.axes = axesOf(this.graph);
    this.map = new HeatMap({ rows: this.axes.rows.map(({ name }) => name), columns: this.axes.columns,
      describe: (row, column) => this.describe(row, column), choose: (row, column) => this.choose(row, column) });
    this.scale = element("div");
    this.worst = element("div", { className: "worst" });
    this.root.replaceChildren(this.summary, this.scores, element("h3", {}, "Where it is lost"), this.partChoice(),
      this.map.root, this.map.told, this.scale, this.worst);
  }

  partChoice() {
    const choice = element("select", { id: "lost-part" }, element("option", { value: "all" }, "everything lost"),
      ...LOST.map(([name, text]) => element("option", { value: name }, text)));
    choice.addEventListener("change", () => {
      this.part = choice.value;
      this.showPlaces();
    });
    return element("label", { className: "choice" }, "Show ", choice);
  }

  showParts() {
    const { ends } = this;
    const lost = 1 - ends.tokens;
    const notes = [`Of all |input|, constants (decoder biases, masked positions) are ${percent(ends.constantInput)}; `
      + "they carry no influence and stand beside these parts."];
    if (!this.graph.rowMeasured.some(Boolean)) {
      notes.push("The file does not say how large inputs were before pruning: what was pruned before is not counted.");
    }
    this.summary.replaceChildren(
      element("p", { className: "lead" }, `${percent(lost)} of what decides ${this.subject()} does not come from `
        + "tokens by way of what is kept."),
      ...partsBar(partRows(ends)), ...notes.map((text) => element("p", { className: "hint" }, text)));
    this.scores.replaceChildren(scoreTable(this.graph.header.scores, this.app.scores, this.app.state.target));
  }

  subject() {
    return this.app.state.target === null && this.graph.targets.nodes.length > 1 ? "the targets" : "the target";
  }

  /** The map and the list, of the chosen part. */
  showPlaces() {
    const { rowOf, columnOf, columns, rows } = this.axes;
    const places = this.ends.places.filter(({ part }) => this.part === "all" || part === this.part);
    const values = new Float64Array(rows.length * columns.length);
    this.cells = new Map();
    for (const place of places) {
      const cell = rowOf(place) * columns.length + columnOf(place);
      values[cell] += place.share;
      this.cells.set(cell, [...(this.cells.get(cell) ?? []), place]);
    }
    this.map.show(values);
    this.scale.replaceChildren(scaleLegend(this.map.most));
    const worst = places.sort((one, two) => two.share - one.share).slice(0, WORST);
    const texts = new Map(PARTS.map(([name, text]) => [name, text]));
    this.worst.replaceChildren(element("h3", {}, `The ${worst.length} worst places`,
      element("small", {}, "pruned: the node whose inputs are missing")),
    ...nodeList(this.graph, "lost", HEADS,
      worst.map(({ node, part, share }) => ({ node, cells: () => [texts.get(part), percent(share)] }))));
  }

  /** A cell's text: where it is, what is lost there, and of that which parts. */
  describe(row, column) {
    const found = this.placesIn(row, column);
    const sumOf = (name) => found.reduce((sum, { part, share }) => sum + (part === name ? share : 0), 0);
    const sums = LOST.map(([name, text]) => [text, sumOf(name)]).filter(([, share]) => share > 0);
    const total = sums.reduce((sum, [, share]) => sum + share, 0);
    const { place, token } = this.axes.columns[column];
    const where = `${this.axes.rows[row].long}, position ${place}${token ? ` ${token}` : ""}`;
    if (sums.length === 0) return `${where}: nothing lost`;
    const parts = sums.map(([text, share]) => (sums.length > 1 ? `${text} ${percent(share)}` : text)).join(", ");
    return `${where}: ${percent(total)} (${parts})`;
  }

  /** Go to the node of a cell that loses most, or search the cell where nothing is lost. */
  choose(row, column) {
    const [strongest] = this.placesIn(row, column).sort((one, two) => two.share - one.share);
    if (strongest) showNode(this.app, strongest.node);
    else {
      const query = `layer:${this.axes.rows[row].query} position:${this.axes.columns[column].place}`;
      this.app.set({ selected: null, right: "node", query });
    }
  }

  placesIn(row, column) {
    return this.cells.get(row * this.axes.columns.length + column) ?? [];
  }
}

/** Layers from the logits down and positions, as names, and where a place of endsOf is among them. */
function axesOf(graph) {
  const logits = graph.kind.includes("logit");
  const inner = Array.from(graph.nodes.layer).filter((layer, i) => layer >= 0 && graph.kind[i] !== "logit");
  const layers = Math.max(graph.header.n_layers, inner.reduce((most, layer) => Math.max(most, layer + 1), 0));
  const rows = Array.from({ length: layers }, (_, i) => layers - 1 - i)
    .map((layer) => ({ name: `L${layer}`, long: `layer ${layer}`, query: String(layer) }));
  if (logits) rows.unshift({ name: "out", long: "targets", query: "out" });
  const everywhere = graph.nodes.position.some((position, i) => position < 0 && !graph.isConstant[i]);
  const columns = Array.from({ length: graph.columns }, (_, i) => ({ place: String(i), token: graph.tokenAt(i) }));
  if (everywhere) columns.unshift({ place: "all", token: "" });
  return {
    rows, columns, rowOf: ({ node, layer }) => (graph.kind[node] === "logit" ? 0 : layers - 1 - layer + Number(logits)),
    columnOf: ({ position }) => position + Number(everywhere),
  };
}

/** Both scores: of the whole graph before pruning (all targets), and of what is kept. */
function scoreTable(whole, kept, target) {
  const cell = (value) => element("td", {}, Number.isFinite(value) ? value.toFixed(3) : "unknown");
  const rows = Object.entries(MEANINGS).map(([name, meaning]) => element("tr", {},
    element("th", { scope: "row" }, name, element("small", {}, meaning)), cell(whole[name]), cell(kept[name])));
  const names = ["score", target === null ? "whole graph" : "whole graph, all targets", "kept part"];
  const head = element("tr", {}, ...names.map((text) => element("th", { scope: "col" }, text)));
  return element("table", { className: "scores" }, element("thead", {}, head), element("tbody", {}, ...rows));
}
