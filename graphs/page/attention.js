// What attention heads look at: the pattern of one head, the pairs of components that make a score, and the edges that
// the head carries.

import { button } from "./button.js";
import { carriedEdges } from "./carried.js";
import { followEdges } from "./edgebuttons.js";
import { headName } from "./heads.js";
import { askScore, scoreForm } from "./live_attention.js";
import { followNodes } from "./nodebuttons.js";
import { scoreElements } from "./pairs.js";
import { PatternMap } from "./patternmap.js";
import { element, number, percent, shorten } from "./text.js";

const TOKEN = 40; // characters
const HOW = "circuits attention graph.safetensors -o page.html";

export class AttentionView {
  constructor(app, root) {
    this.app = app;
    this.graph = app.graph;
    this.heads = app.graph.heads;
    this.root = root;
    followNodes(app, root);
    followEdges(app, root);
  }

  /** Whether a server can be asked for what is not in the page. */
  get live() {
    return Boolean(this.graph.values.live?.attention);
  }

  /** The head that is looked at: the chosen one, or that which carries most. */
  get head() {
    return this.app.state.head ?? this.heads.views[0]?.key ?? this.heads.unseen[0]?.key ?? null;
  }

  render(state, previous) {
    if (this.heads === null) {
      if (previous !== null && state.head === previous.head) return;
      this.root.replaceChildren(this.nothing(), ...(this.live ? scoreForm(this.app) : []));
      return;
    }
    if (previous === null) this.build();
    const same = (name) => previous !== null && state[name] === previous[name];
    if (!same("head")) this.showHead();
    if (!same("head") || !same("cell") || !same("labels")) this.showCell(state.cell);
    if (!same("head") || !same("labels") || !same("thresholds")) this.showEdges();
  }

  nothing() {
    return element("p", { className: "hint" }, "This page holds no attention heads. A page with the heads that carry "
      + "the edges, what they look at and why is made by ", element("code", {}, HOW), ".");
  }

  build() {
    const { heads, graph } = this;
    this.choice = element("select", { id: "head" }, ...this.options());
    this.choice.addEventListener("change", () => this.app.set({ head: this.choice.value }));
    const tokens = Array.from({ length: heads.positions }, (_, i) => graph.tokenAt(i));
    this.map = new PatternMap({ tokens, describe: (query, key) => this.describe(query, key),
      choose: (query, key) => this.app.set({ cell: [query, key] }) });
    this.zoom = element("span", { className: "buttons" },
      button("−", () => this.map.zoom(-1), { title: "Smaller cells" }),
      button("+", () => this.map.zoom(1), { title: "Larger cells" }));
    this.lead = element("p", { className: "lead" });
    this.scale = element("p", { className: "scale", ariaHidden: "true" });
    this.pattern = element("div", {}, this.map.root, this.map.told, this.scale);
    this.score = element("section", { className: "score", ariaLabel: "Score of the chosen cell" });
    this.edges = element("section", { className: "carried", ariaLabel: "Edges that this head carries" });
    this.root.replaceChildren(
      element("div", { className: "head-bar" },
        element("label", { className: "choice" }, "Head ", this.choice), this.zoom),
      this.lead, this.pattern, element("div", { className: "beside" }, this.score, this.edges));
  }

  options() {
    const option = ({ key, weight }) => element("option", { value: key }, `${headName(key)}: ${number(weight)}`);
    const { views, unseen } = this.heads;
    const group = (label, list) => (list.length === 0 ? [] : [element("optgroup", { label }, ...list.map(option))]);
    return [...group("by the sum of their shares of edges", views),
      ...group("without a pattern, by what they carry", unseen)];
  }

  showHead() {
    const { heads, head } = this;
    const view = heads.viewOf.get(head);
    this.choice.value = head ?? "";
    this.pattern.hidden = this.zoom.hidden = view === undefined;
    if (head === null) this.lead.textContent = "No head carries any of the edges that were looked at.";
    else if (view === undefined) {
      const { omitted } = heads;
      this.lead.textContent = `The pattern of ${headName(head)} is not in this page: only those of the heads that carry `
        + `most are.${omitted > 0 ? ` (${omitted} of the file’s patterns were too large for a page.)` : ""}`;
    } else {
      this.lead.textContent = `${headName(head)}: on average, ${percent(heads.sink(view))} of its attention goes to the `
        + "first token (the attention sink).";
      this.map.show((query, key) => heads.weight(view, query, key), heads.cells(view));
      this.scale.replaceChildren("0", element("span"), `${percent(this.map.most)} (square root scale)`,
        element("i", { className: "known" }), "its score can be read");
    }
  }

  showCell(cell) {
    const view = this.heads.viewOf.get(this.head);
    this.score.hidden = view === undefined;
    if (view === undefined) return;
    this.map.mark(cell);
    this.score.replaceChildren(...scoreElements(this.app, view, cell));
    const unknown = cell !== null && cell[1] <= cell[0] && this.heads.scoreOf(view, ...cell) === null;
    if (unknown && this.live) this.score.append(askScore(this.app, this.head, cell));
  }

  showEdges() {
    this.edges.replaceChildren(...(this.head === null ? [] : carriedEdges(this.app, this.head)));
  }

  /** A cell's text: who looks at whom, and how much. */
  describe(query, key) {
    const token = (i) => `\u2068${shorten(this.graph.tokenAt(i), TOKEN)}\u2069 (${i})`;
    const where = `query ${token(query)}, key ${token(key)}`;
    if (key > query) return `${where}: the key comes after the query`;
    const view = this.heads.viewOf.get(this.head);
    return `${where}: ${view === undefined ? "unknown" : weightText(this.heads.weight(view, query, key))}`;
  }
}

/** An attention weight; the page holds it to 1e-5. */
export function weightText(weight) {
  return weight > 0 && weight < 5e-5 ? "<0.0001" : weight.toFixed(4);
}
