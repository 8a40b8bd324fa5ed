// What is known of a node beyond its edges, in numbers.

import { KIND_NAMES } from "./shapes.js";
import { number, percent } from "./text.js";
import { effectOf } from "./validation.js";

/** Influence of all nodes on the chosen target: what a share of influence is a share of. */
export function influenceTotal(app) {
  const here = app.influence.reduce((sum, value) => sum + (value || 0), 0);
  const before = app.state.target === null ? app.graph.header.settings.unpruned?.influence : null;
  return Number.isFinite(before) ? Math.max(before, here) : here;
}

/** [[name, text, meaning]] of a node for its card. */
export function cardFacts(app, node) {
  const { graph } = app;
  const facts = [["kind", KIND_NAMES[graph.kind[node]]], ...graph.facts(node)].map(([name, text]) => [name, text, ""]);
  const total = influenceTotal(app);
  if (app.state.target !== null) {
    facts.push(["on the chosen target", number(app.influence[node]), "influence on that target alone"]);
  }
  if (total > 0) {
    facts.push(["share of influence", percent(app.influence[node] / total),
      `of the influence of all nodes${app.state.target === null ? "" : " on the chosen target"}`]);
  }
  if (graph.kind[node] !== "feature") return facts;
  const effect = effectOf(graph, node);
  if (effect) {
    facts.push(["ablated, predicted", number(effect.predicted, true), "what ablating it does to the target, by the graph"],
      ["measured", number(effect.measured, true), "what ablating it did to the target"]);
  }
  const threshold = graph.nodes.threshold[node];
  if (!Number.isNaN(threshold)) facts.push(["threshold", number(threshold), "silent at or below this pre-activation"]);
  const data = graph.card(node);
  if (data && !Number.isNaN(data.density)) {
    facts.push(["density", percent(data.density), "share of the tokens of a text sample on which it fires"]);
  }
  if (data && !Number.isNaN(data.maximum)) {
    facts.push(["largest", number(data.maximum), "largest activation on that text sample"]);
  }
  return facts;
}
