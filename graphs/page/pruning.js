// Live pruning: thresholds as sliders, what they keep, and how the scores depend on them.

import { button } from "./button.js";
import { Curve } from "./curve.js";
import { limitsOf } from "./prune.js";
import { element, percent } from "./text.js";

const STEP = 0.005;
const WAIT = 250; // ms of rest before the curve is measured again
const TEXTS = {
  nodes: ["Node share", "Keep the strongest nodes that together have this share of influence"],
  edges: ["Edge share", "Of the edges between them, keep the strongest that together have this share"],
};

export class PruningView {
  constructor(app, root) {
    this.app = app;
    this.graph = app.graph;
    this.root = root;
    this.limits = limitsOf(app.graph);
    this.axis = "nodes";
    this.fields = {};
  }

  render(state, previous) {
    const same = (name) => previous !== null && state[name] === previous[name];
    if (same("thresholds") && same("target")) return;
    if (previous === null) this.build();
    for (const name of ["nodes", "edges"]) {
      const { slider, field } = this.fields[name];
      slider.value = String(state.thresholds[name]);
      if (Number(field.value) !== state.thresholds[name]) field.value = String(state.thresholds[name]);
      slider.setAttribute("aria-valuetext", percent(state.thresholds[name]));
    }
    const { first } = this.limits;
    this.reset.disabled = state.thresholds.nodes === first.nodes && state.thresholds.edges === first.edges;
    this.showKept();
    this.showCurve(state);
  }

  build() {
    const rows = ["nodes", "edges"].map((name) => this.fieldsOf(name));
    this.reset = button("Reset to what the page opened with",
      () => this.app.set({ thresholds: this.app.first.thresholds }));
    this.sizes = element("dl", { className: "kept" });
    this.curve = new Curve(this.graph, (axis, value) => this.change(axis, value));
    this.root.replaceChildren(...rows, this.reset, this.sizes, element("h3", {}, "Scores against the threshold"),
      this.axisChoice(), this.curve.root, this.curve.legend, this.curve.told, ...this.words());
  }

  fieldsOf(name) {
    const most = this.limits.most[name];
    const [text, meaning] = TEXTS[name];
    const field = element("input", { type: "number", min: 0, max: most, step: STEP });
    const slider = element("input", { type: "range", min: 0, max: most, step: STEP, id: `share-${name}` });
    field.setAttribute("aria-label", `${text} as a number`);
    slider.addEventListener("input", () => this.change(name, Number(slider.value)));
    field.addEventListener("change", () => {
      if (field.value !== "") this.change(name, Number(field.value));
      field.value = String(this.app.state.thresholds[name]);
    });
    this.fields[name] = { slider, field };
    const label = element("label", { htmlFor: slider.id }, text);
    return element("div", { className: "share", title: meaning }, label, slider, field,
      element("small", {}, meaning, "."));
  }

  /** The last step below a limit that is no multiple of it is the limit. */
  change(name, value) {
    const most = this.limits.most[name];
    const limited = Math.min(most, Math.max(0, value));
    const thresholds = { ...this.app.state.thresholds, [name]: limited > most - 0.98 * STEP ? most : limited };
    const { first } = this.limits;
    const opened = thresholds.nodes === first.nodes && thresholds.edges === first.edges;
    this.app.set({ thresholds: opened ? this.app.first.thresholds : thresholds }, { merge: "thresholds" });
  }

  /** Numbers of what is kept. */
  showKept() {
    const { graph, app } = this;
    const { kept, scores, ends } = app;
    const { unpruned } = graph.header.settings;
    const subject = app.state.target === null ? "the targets" : "the chosen target";
    const count = (mask) => mask.reduce((sum, value) => sum + value, 0);
    const size = (mask, held, before) => `${whole(count(mask))} of ${whole(held)} in this page`
      + (before > held ? `, ${whole(before)} before pruning` : "");
    const rows = [["nodes", "Nodes", size(kept.nodes, graph.size, unpruned?.nodes)],
      ["edges", "Edges", size(kept.edges, graph.edgeCount, Math.max(unpruned?.edges ?? 0, graph.edges.total))],
      ["replacement", "Replacement", scores.replacement.toFixed(3)],
      ["completeness", "Completeness", scores.completeness.toFixed(3)],
      ["tokens", "Reaches tokens", `${percent(ends.tokens)} of what decides ${subject}`]];
    this.sizes.replaceChildren(...rows.map(([name, term, text]) => {
      const row = element("div", {}, element("dt", {}, term), element("dd", {}, text));
      row.dataset.kept = name;
      return row;
    }));
  }

  axisChoice() {
    const choice = element("select", { id: "curve-axis" }, element("option", { value: "nodes" }, "node share"),
      element("option", { value: "edges" }, "edge share"));
    choice.addEventListener("change", () => {
      this.axis = choice.value;
      this.showCurve(this.app.state);
    });
    return element("label", { className: "choice" }, "Along ", choice);
  }

  /** The curve depends on the other threshold and the target; on its own threshold only the mark does. */
  showCurve(state) {
    const { thresholds, target } = state;
    const other = this.axis === "nodes" ? "edges" : "nodes";
    const key = `${this.axis} ${thresholds[other]} ${target}`;
    this.curve.mark(thresholds[this.axis]);
    if (key === this.measured) return;
    const wait = this.measured === undefined ? 0 : WAIT;
    this.measured = key;
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.curve.start(this.axis, thresholds, target, this.limits), wait);
  }

  words() {
    const { most } = this.limits;
    const { settings } = this.graph.header;
    const words = ["Node shares are shares of all influence on the targets before pruning; edge shares are shares of "
      + "the influence that the edges between kept nodes carry. Nodes left without a way to the targets go too. "
      + "Pruning always looks at all targets; scores and what reaches tokens are for the target chosen above."];
    if (settings.page || most.nodes < 1 || most.edges < 1) {
      words.push(`This page holds the graph up to node share ${most.nodes} and edge share ${most.edges}; `
        + "what is weaker is not in the file." + (most.edges < 1
        ? " At other shares than those it opened with, edge shares are shares of what the file holds." : ""));
    }
    return words.map((text) => element("p", { className: "hint" }, text));
  }
}

const whole = (value) => value.toLocaleString("en");
