// What was traced, with what, and how far to trust it.

import { element, isolated, percent, shorten, visibleLabel, visibleToken } from "./text.js";

const POOR = 0.5; // unexplained share of an MLP output above which a layer is named

/** Show it, and keep what pruning changes up to date. */
export function showHeader(app) {
  const { graph } = app;
  const { header } = graph;
  const texts = header.token_texts.length ? header.token_texts : [header.prompt];
  document.getElementById("prompt").replaceChildren(...texts.map((text, i) => {
    const token = isolated(shorten(visibleToken(text), 2000), "token");
    token.title = `position ${i}`;
    return token;
  }));
  const facts = () => document.getElementById("facts").replaceChildren(...headerFacts(app).map(([name, value, meaning]) =>
    element("div", { title: meaning }, element("dt", {}, name), element("dd", {}, isolated(value)))));
  facts();
  app.subscribe((state, previous) => state.thresholds !== previous.thresholds && facts());
  const warnings = [...header.warnings, ...reconstructionWarning(header.reconstruction), ...cutWarning(graph)];
  const list = document.getElementById("warnings");
  list.hidden = warnings.length === 0;
  list.replaceChildren(...warnings.map((text) => element("li", {}, isolated(shorten(visibleLabel(text), 1000)))));
}

function headerFacts(app) {
  const { graph, kept } = app;
  const { header } = graph;
  const { scores, settings } = header;
  const kind = header.transcoder_kind ? ` (${header.transcoder_kind.toUpperCase()})` : "";
  const facts = [
    ["Model", visibleLabel(header.model || "unknown"), "the traced model"],
    ["Transcoders", visibleLabel((header.transcoders || "unknown") + kind), "what stands in for the MLPs"],
  ];
  if (settings.target) {
    const versus = settings.versus ? ` not ${visibleToken(String(settings.versus))}` : "";
    facts.push(["Target", visibleToken(String(settings.target)) + versus, "what the graph explains"]);
  }
  facts.push(
    ["Replacement", score(scores.replacement), "share of influence that comes from tokens rather than errors, before pruning"],
    ["Completeness", score(scores.completeness), "share of node inputs that are not errors, weighted by influence, before pruning"
      + (Number.isFinite(scores.completeness_all_nodes) ? `; ${score(scores.completeness_all_nodes)} over all nodes` : "")],
    ["Unexplored", percent(header.unexplored), "influence that arrived at features whose inputs were not computed"],
    ["Conservation", tiny(header.conservation), "largest relative gap between a node's value and the sum of its edges"],
    ["Pruned", thresholds(settings, app.state.thresholds), "shares of influence kept by node and by edge pruning"],
    ["Size", `${count(kept.nodes)} nodes, ${count(kept.edges)} edges`, "shown now"],
  );
  const measured = header.reconstruction.filter((x) => x !== null);
  if (measured.length) {
    facts.push(["Reconstruction error", score(measured.reduce((a, b) => a + b) / measured.length),
      "of the MLP outputs on this prompt, mean over layers; by layer: " + header.reconstruction.map(score).join(", ")]);
  }
  return facts;
}

function score(value) {
  return Number.isFinite(value) ? value.toFixed(2) : "unknown";
}

function tiny(value) {
  return Number.isFinite(value) ? value.toExponential(1) : "unknown";
}

function count(mask) {
  return mask.reduce((sum, kept) => sum + kept, 0).toLocaleString("en");
}

function thresholds({ unpruned }, { nodes, edges }) {
  const parts = [];
  if (nodes < 1) parts.push(`nodes ${nodes}`);
  if (edges < 1) parts.push(`edges ${edges}`);
  const whole = Number.isFinite(unpruned?.nodes) && Number.isFinite(unpruned?.edges)
    ? ` of ${unpruned.nodes.toLocaleString("en")} nodes, ${unpruned.edges.toLocaleString("en")} edges` : "";
  return (parts.join(", ") || "no") + whole;
}

function reconstructionWarning(byLayer) {
  const poor = byLayer.map((value, layer) => [layer, value]).filter(([, value]) => value !== null && value > POOR);
  if (!poor.length) return [];
  const layers = poor.map(([layer, value]) => `L${layer} ${value.toFixed(2)}${value >= 1 ? " (worse than predicting zero)" : ""}`);
  return [`Poorly reconstructed on this prompt (squared error over the squared MLP output): ${layers.join(", ")}.`];
}

function cutWarning(graph) {
  const left = graph.edges.total - graph.edgeCount;
  if (left === 0) return [];
  return [`This page holds the ${graph.edgeCount.toLocaleString("en")} strongest edges; ${left.toLocaleString("en")} `
    + "weaker ones were left out and are counted with what was pruned away. Prune the graph to see all it has."];
}
