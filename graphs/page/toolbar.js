// Search, what is drawn, undo and redo, and what goes out of the page or comes into it.

import { button } from "./button.js";
import { exchangeButtons } from "./exchange.js";
import { KIND_MEANINGS, KIND_NAMES, icon } from "./shapes.js";
import { element, percent, shorten } from "./text.js";

const EDGE_CHOICES = [0, 300, 1000, 3000, 10000];
const DRAWN_AT_FIRST = 1000;

export class Toolbar {
  constructor(app, root) {
    this.app = app;
    this.search = element("input", { id: "search", type: "search", placeholder: "label, token, layer:12, kind:error",
      spellcheck: false, autocomplete: "off", title: 'Words in labels, tokens or promoted tokens; "layer:12", "position:4", '
        + '"kind:error", "token:Jordan", "promotes:game", "feature:345"' });
    this.search.addEventListener("input", () => app.set({ query: this.search.value, ...(this.search.value && { selected: null, right: "node" }) }));
    this.search.addEventListener("keydown", (event) => {
      const [first] = event.key === "Enter" && app.state.query !== "" ? app.matches(app.state.query) : [];
      if (first !== undefined) app.select(first);
    });
    this.found = element("span", { id: "found" });
    this.found.setAttribute("role", "status");
    this.target = this.targetChoice();
    this.edges = this.edgeChoice();
    this.color = this.choice("color", [["kind", "kind"], ["influence", "influence"]], (value) => app.set({ color: value }));
    this.undo = button("↶", () => app.store.undo(), { id: "undo", title: "Undo (Ctrl Z)" });
    this.redo = button("↷", () => app.store.redo(), { id: "redo", title: "Redo (Ctrl Y)" });
    root.append(
      element("label", { className: "search" }, "Search ", this.search), this.found,
      ...(app.graph.targets.nodes.length > 1 ? [element("label", {}, "Target ", this.target)] : []),
      element("label", {}, "Edges ", this.edges), element("label", {}, "Colour ", this.color),
      element("span", { className: "buttons" }, this.undo, this.redo, ...exchangeButtons(app)));
    document.querySelector("#left-bar .enlarge").before(this.legend());
  }

  render(state, previous) {
    if (this.search.value !== state.query) this.search.value = state.query;
    const count = state.query === "" ? "" : `${this.app.matches(state.query).length.toLocaleString("en")} found`;
    if (this.found.textContent !== count) this.found.textContent = count;
    this.target.value = String(state.target ?? "");
    this.edges.value = String(state.drawn);
    this.color.value = state.color;
    this.undo.disabled = !this.app.store.canUndo;
    this.redo.disabled = !this.app.store.canRedo;
    if (previous !== null && state.selected !== previous.selected && state.selected === null) this.app.say("Nothing selected");
  }

  targetChoice() {
    const { graph } = this.app;
    const names = Array.from(graph.targets.nodes, (node, i) =>
      [String(node), `${shorten(graph.names[node], 60)}${graph.nodes.token[node] >= 0 && !graph.names[node].includes("(p=")
        ? ` ${percent(graph.targets.weights[i])}` : ""}`]);
    return this.choice("target", [["", "all, by probability"], ...names],
      (value) => this.app.set({ target: value === "" ? null : Number(value), path: null }));
  }

  edgeChoice() {
    const { graph } = this.app;
    const most = Math.min(graph.edgeCount, Math.max(...EDGE_CHOICES));
    const counts = [...new Set([...EDGE_CHOICES.filter((count) => count < graph.edgeCount), most])];
    const named = (count) => (count === 0 ? "only of the selected node"
      : count < graph.edges.total ? `strongest ${count.toLocaleString("en")}` : `all ${count.toLocaleString("en")}`);
    const made = this.choice("edges", counts.map((count) => [String(count), named(count)]),
      (value) => this.app.set({ drawn: Number(value) }));
    if (!counts.includes(this.app.state.drawn)) this.app.set({ drawn: Math.min(DRAWN_AT_FIRST, most) });
    made.title = "Edges drawn while nothing is selected; a selected node always shows all of its edges.";
    return made;
  }

  choice(id, options, changed) {
    const made = element("select", { id }, ...options.map(([value, text]) => element("option", { value }, text)));
    made.addEventListener("change", () => changed(made.value));
    return made;
  }

  legend() {
    const { graph } = this.app;
    const present = Object.keys(KIND_NAMES).filter((kind) => graph.kind.includes(kind));
    const list = element("ul", { id: "legend" },
      ...present.map((kind) => element("li", { title: KIND_MEANINGS[kind] }, icon(kind), KIND_NAMES[kind].split(" ")[0])),
      element("li", { className: "positive-edge", title: "raises its target" }, "positive"),
      element("li", { className: "negative-edge", title: "lowers its target" }, "negative"));
    list.setAttribute("aria-label", "Legend");
    return list;
  }
}
