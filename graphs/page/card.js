// The panel beside the graph: targets and strongest nodes, what the search found, one node with all it adds up
// from, or one edge with the heads that carry it.

import { followEdges } from "./edgebuttons.js";
import { edgeCard } from "./edgecard.js";
import { cardFacts } from "./facts.js";
import { edgeSections } from "./inputs.js";
import { fillNow } from "./later.js";
import { Folds, nodeList } from "./lists.js";
import { cardSections, promptSection } from "./meaning.js";
import { followNodes } from "./nodebuttons.js";
import { reasons } from "./search.js";
import { element, isolated, number, percent, shorten } from "./text.js";
import { Title } from "./title.js";

const STRONGEST = { feature: 40, error: 20, embedding: 20 }; // nodes listed without a selection
const TARGET = 60; // characters of a target's name in a heading

/** The panel "Node": the edge that is open, or the selected node; or else what the search found, or what matters most. */
export class CardView {
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.folds = new Folds();
    this.title = null;
    this.edge = null;
    this.listen();
  }

  render(state, previous) {
    const drawn = ["selected", "edge", "thresholds", "labels", "target", ...(state.selected === null ? ["query"] : [])];
    if (previous !== null && drawn.every((name) => state[name] === previous[name])) {
      if (state.pins !== previous.pins || state.groups !== previous.groups) this.title?.refresh(state);
      this.edge?.refresh(state);
      return;
    }
    const same = previous !== null && state.selected === previous.selected && state.edge === previous.edge;
    const { scrollTop } = this.root;
    if (!same && scrollTop !== 0) this.root.scrollTop = 0; // before the new content, which would have to be laid out at once
    const focused = this.root.contains(document.activeElement) && previous?.labels !== state.labels;
    this.title = null;
    this.edge = null;
    this.root.replaceChildren(...(state.edge !== null ? this.edgeElements(state.edge)
      : state.selected !== null ? this.card(state.selected)
        : state.query ? this.results(state.query) : this.overview()));
    this.root.classList.toggle("card", state.selected !== null || state.edge !== null);
    this.root.dataset.node = state.selected ?? "";
    if (same && scrollTop !== 0) {
      fillNow();
      this.root.scrollTop = scrollTop;
    }
    if (focused && same) this.title?.editButton.focus();
  }

  /** All of one node. */
  card(node) {
    const { app, folds } = this;
    this.title = new Title(app, node);
    const { tokens, examples } = cardSections(app.graph, node, folds);
    const about = element("dl", { className: "about" }, ...cardFacts(app, node).map(([name, text, meaning]) =>
      element("div", { title: meaning }, element("dt", {}, name), element("dd", {}, isolated(text)))));
    return [...this.title.elements, about, element("div", { className: "sections" },
      ...promptSection(app, node, folds), ...tokens, ...edgeSections(app, node, folds), ...examples)];
  }

  /** All of one edge. */
  edgeElements(edge) {
    this.edge = edgeCard(this.app, edge, this.folds);
    return this.edge.elements;
  }

  results(query) {
    const { graph } = this.app;
    const found = this.app.matches(query);
    if (found.length === 0) {
      return [element("p", { className: "hint" }, "Nothing found among the nodes that are shown. Words are looked for "
        + "in labels, tokens and promoted tokens; fields: layer:12, layer:3-7, position:4, kind:error, token:Jordan, "
        + "promotes:game, feature:345. "
        + 'Quotes hold words together: token:" of".')];
    }
    const reason = reasons(graph, query);
    const rows = found.map((node) =>
      ({ node, cells: () => [number(graph.nodes.influence[node])], why: () => reason(node).join(" · ") }));
    return [this.folds.section("results", `Found (${found.length})`, "most influential first",
      ...nodeList(graph, "plain results", [["node, what matched"], ["at"], ["influence"]], rows))];
  }

  /** Without a selection: the targets, then the nodes that matter most for the chosen one. */
  overview() {
    const { graph, state } = this.app;
    const targets = graph.targets.nodes.map((node, i) => ({ node, cells: () => [targetShare(graph, node, i)] }));
    const towards = state.target === null ? "" : ` for \u2068${shorten(graph.names[state.target], TARGET)}\u2069`;
    const section = (key, title, heads, rows) => (rows.length === 0 ? []
      : [this.folds.section(key, title, "", ...nodeList(graph, "plain", heads, rows))]);
    const heads = [["node"], ["at"], ["influence"]];
    const strongest = (kind, title) => section(`strongest-${kind}`, title + towards, heads, this.strongest(kind));
    return [element("p", { className: "hint" }, "Select a node to see what it is made of and what it feeds."),
      element("div", { className: "sections" }, ...section("targets", "Targets", [], targets),
        ...strongest("feature", "Most influential features"), ...strongest("error", "Most influential errors"),
        ...strongest("embedding", "Most influential tokens"))];
  }

  /** Rows of the kept nodes of a kind that have the largest influence on the chosen target. */
  strongest(kind) {
    const { graph, influence, kept } = this.app;
    return [...graph.kind.keys()].filter((i) => graph.kind[i] === kind && kept.nodes[i])
      .sort((a, b) => (influence[b] || 0) - (influence[a] || 0)).slice(0, STRONGEST[kind])
      .map((node) => ({ node, cells: () => [number(influence[node])] }));
  }

  listen() {
    const { app, root } = this;
    followNodes(app, root);
    followEdges(app, root);
    window.addEventListener("keydown", (event) => {
      if (event.key !== "F2" || app.state.selected === null) return;
      if (app.state.right !== "node") app.set({ right: "node" });
      this.title?.edit();
      event.preventDefault();
    });
  }
}

function targetShare(graph, node, i) {
  return graph.nodes.token[node] >= 0 ? percent(graph.targets.weights[i]) : "direction";
}
