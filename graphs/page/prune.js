// Pruning in the page: the steps of graphs/prune.py, on what the page holds.

import { flow, startOf } from "./influence.js";

/** The thresholds {nodes, edges} at which the page shows all it holds (most), and those it opens with (first). */
export function limitsOf(graph) {
  const { settings } = graph.header;
  const of = (values) => ({ nodes: finiteOr(values?.node_threshold, 1), edges: finiteOr(values?.edge_threshold, 1) });
  return { most: of(settings.page ?? settings), first: of(settings) };
}

const finiteOr = (value, otherwise) => (Number.isFinite(value) ? value : otherwise);

/**
 * Masks {nodes, edges} of what stays at thresholds {nodes, edges}. At the thresholds the page opened with they are the
 * masks it came with; at its limits they are all it holds. In between they equal graphs/prune.py's where the page holds
 * every edge between its nodes (edge limit 1); otherwise shares of edges are shares of those that the page holds.
 */
export function prune(graph, thresholds) {
  const { most, first } = limitsOf(graph);
  if (thresholds.nodes === first.nodes && thresholds.edges === first.edges) {
    return { nodes: graph.nodes.shown, edges: graph.edges.shown };
  }
  const all = { nodes: thresholds.nodes >= most.nodes, edges: thresholds.edges >= most.edges };
  const nodes = all.nodes ? new Uint8Array(graph.size).fill(1) : strongestNodes(graph, thresholds.nodes);
  const edges = new Uint8Array(graph.edgeCount);
  for (let e = 0; e < edges.length; e++) edges[e] = nodes[graph.edges.indices[e]] & nodes[graph.target[e]];
  if (all.nodes && all.edges) return { nodes, edges };
  if (!all.edges) keepStrongestEdges(graph, edges, thresholds.edges);
  dropDangling(graph, nodes, edges);
  return { nodes, edges };
}

function strongestNodes(graph, threshold) {
  const known = graph.nodes.influence.some((value) => value > 0); // files of others may lack it
  const influence = known ? Float64Array.from(graph.nodes.influence, (value) => value || 0)
    : flow(graph, startOf(graph)).arrived;
  const before = known ? graph.header.settings.unpruned?.influence : null;
  const total = before ?? influence.reduce((sum, value) => sum + value, 0);
  const cut = cutOf(influence.slice(), threshold, total);
  const keep = Uint8Array.from(graph.kind, (kind, i) =>
    Number(influence[i] >= cut || kind === "embedding" || kind === "logit" || kind === "constant"));
  for (const node of graph.targets.nodes) keep[node] = 1;
  return keep;
}

/** Takes weak edges out of the mask `edges`: constants' are scored like the others, but do not change the cut. */
function keepStrongestEdges(graph, edges, threshold) {
  const { indices, weights } = graph.edges;
  const start = startOf(graph);
  const { arrived, scale } = flow(graph, start, edges);
  const scores = new Float64Array(graph.edgeCount);
  const ranked = new Float64Array(graph.edgeCount);
  let count = 0;
  let total = 0;
  for (let i = 0; i < graph.size; i++) if (scale[i] > 0) total += start[i] + arrived[i];
  // All edges below this hold, together, less than the share that goes: the cut is above it, so they need no rank.
  const floor = (0.5 * (1 - threshold) * total) / Math.max(1, graph.edgeCount);
  for (let e = 0; e < graph.edgeCount; e++) {
    if (!edges[e]) continue;
    const t = graph.target[e];
    scores[e] = (start[t] + arrived[t]) * scale[t] * Math.abs(weights[e]);
    if (scores[e] >= floor && !graph.isConstant[indices[e]]) ranked[count++] = scores[e];
  }
  const cut = cutOf(ranked.subarray(0, count), threshold, total);
  for (let e = 0; e < graph.edgeCount; e++) edges[e] &= Number(scores[e] >= cut);
}

/** The score of the last item needed, strongest first, for `threshold` of `total`; items below it go. Sorts them. */
function cutOf(scores, threshold, total) {
  scores.sort();
  let running = 0;
  for (let i = scores.length - 1; i >= 0; i--) {
    running += scores[i];
    if (running >= threshold * total && running > 0) return scores[i];
  }
  return running > 0 ? scores[0] : Infinity;
}

/** Until nothing changes: features and errors without an outgoing edge go, and features without an incoming one. */
function dropDangling(graph, nodes, edges) {
  const { indptr, indices } = graph.edges;
  const { output, input } = degrees(graph, edges);
  const fixed = new Set(graph.targets.nodes);
  const dangles = (i) => nodes[i] && !fixed.has(i) && ((graph.kind[i] === "error" && !output[i])
    || (graph.kind[i] === "feature" && (!output[i] || (graph.nodes.expanded[i] && !input[i]))));
  const going = [...nodes.keys()].filter(dangles);
  for (const i of going) nodes[i] = 0;
  const check = (i) => {
    if (!dangles(i)) return;
    nodes[i] = 0;
    going.push(i);
  };
  while (going.length) {
    const gone = going.pop();
    for (let e = indptr[gone]; e < indptr[gone + 1]; e++) {
      if (!edges[e]) continue;
      edges[e] = 0;
      output[indices[e]]--;
      check(indices[e]);
    }
    for (const e of graph.outEdges.subarray(graph.outStart[gone], graph.outStart[gone + 1])) {
      if (!edges[e]) continue;
      edges[e] = 0;
      input[graph.target[e]]--;
      check(graph.target[e]);
    }
  }
  for (let i = 0; i < graph.size; i++) if (graph.isConstant[i] && !output[i]) nodes[i] = 0;
}

/** How many outgoing edges every node has, and how many incoming ones that are not constants'. */
function degrees(graph, edges) {
  const output = new Int32Array(graph.size);
  const input = new Int32Array(graph.size);
  for (let e = 0; e < graph.edgeCount; e++) {
    if (!edges[e]) continue;
    output[graph.edges.indices[e]]++;
    if (!graph.isConstant[graph.edges.indices[e]]) input[graph.target[e]]++;
  }
  return { output, input };
}
