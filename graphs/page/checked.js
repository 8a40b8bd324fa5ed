// Whether the graph is right about its features: what it predicts of ablating them beside what was measured.

import { nodeList } from "./lists.js";
import { followNodes, showNode } from "./nodebuttons.js";
import { Scatter } from "./scatter.js";
import { element, isolated, number } from "./text.js";
import { MEASURES, validationOf } from "./validation.js";

const HOW = "circuits validate graph.safetensors";
const FURTHEST = 10; // features listed
const HEADS = [["feature"], ["at"], ["predicted", "effect of ablating it, by the graph"],
  ["measured", "the effect it had"]];

export class CheckedView {
  constructor(app, root) {
    this.app = app;
    this.root = root;
    followNodes(app, root);
  }

  render(state, previous) {
    if (previous !== null && state.labels === previous.labels) return;
    const { effects, ...numbers } = validationOf(this.app.graph);
    const found = MEASURES.filter(([name]) => Number.isFinite(numbers[name]));
    if (effects.length === 0 && found.length === 0) this.root.replaceChildren(this.nothing());
    else {
      this.root.replaceChildren(this.lead(numbers, effects), ...this.numberTable(numbers, found), ...this.plot(effects));
    }
  }

  nothing() {
    return element("p", { className: "hint" }, "Nobody has checked this graph against the model yet. Its features are "
      + "ablated one by one, and what that does is compared with what the graph predicts, by ",
    element("code", {}, HOW), ".");
  }

  lead({ n_features: count, created }, effects) {
    const features = Number.isFinite(count) ? count : effects.length;
    return element("p", { className: "lead" }, `${features} ${features === 1 ? "feature was" : "features were"} ablated in `
      + "the model, one by one, and what that did to the target compared with what the graph predicts.",
    ...(created ? [" ", element("small", {}, isolated(String(created).slice(0, 40)))] : []));
  }

  numberTable(numbers, found) {
    if (found.length === 0) return [];
    return [element("table", { className: "scores" }, element("tbody", {}, ...found.map(([name, text, meaning]) => {
      const value = numbers[name];
      const row = element("tr", {}, element("th", { scope: "row" }, text, element("small", {}, meaning)),
        element("td", {}, name === "frozen_max_relative_error" ? number(value) : value.toFixed(3).replace("-", "−")));
      row.dataset.measure = name;
      return row;
    })))];
  }

  plot(effects) {
    if (effects.length === 0) return [];
    const { app } = this;
    const scatter = new Scatter(app.graph, effects,
      { choose: (node) => showNode(app, node), point: (node) => app.hover(node) });
    const gone = effects.filter(({ node }) => node === null).length;
    const note = `On the line they agree. Both axes have the same square root scale.${gone === 0 ? ""
      : ` Hollow: ${gone} ${gone === 1 ? "feature that is" : "features that are"} not in this page.`}`;
    return [element("h3", {}, "Predicted beside measured"), scatter.root, scatter.told,
      element("p", { className: "hint" }, note), ...this.furthest(effects)];
  }

  /** The features of this page of which the graph is most wrong. */
  furthest(effects) {
    const error = ({ predicted, measured }) => Math.abs(predicted - measured);
    const rows = effects.filter(({ node }) => node !== null).sort((a, b) => error(b) - error(a)).slice(0, FURTHEST)
      .map(({ node, predicted, measured }) => ({ node, cells: () => [number(predicted, true), number(measured, true)] }));
    return rows.length === 0 ? [] : [element("h3", {}, "Furthest from what was predicted"),
      ...nodeList(this.app.graph, "checked", HEADS, rows)];
  }
}
