// Which edges the link view draws.

import { startOf } from "./influence.js";

/** The `count` kept edges through which most influence on the chosen target flows, strongest first. */
export function strongestEdges({ graph, kept, influence, state }, count) {
  if (count === 0) return [];
  const start = startOf(graph, state.target);
  const strength = new Float64Array(graph.edgeCount);
  const ranked = new Float64Array(graph.edgeCount);
  let size = 0;
  for (let t = 0; t < graph.size; t++) {
    const mass = (influence[t] || 0) + start[t];
    for (let e = graph.edges.indptr[t]; e < graph.edges.indptr[t + 1]; e++) {
      if (!kept.edges[e]) continue;
      strength[e] = (graph.share(e) || 0) * mass;
      ranked[size++] = strength[e];
    }
  }
  const values = ranked.subarray(0, size).sort(); // numbers sort far faster than what they belong to
  const cut = size > count ? values[size - count] : -1;
  const found = [];
  for (let e = 0; e < graph.edgeCount; e++) if (kept.edges[e] && strength[e] >= cut) found.push(e);
  return found.sort((a, b) => strength[b] - strength[a]).slice(0, count);
}

/** The kept edges into and out of a node, largest share of the target's inputs first; constants' have none: last. */
export function edgesOfNode({ graph, kept }, node) {
  const found = [];
  const add = (e) => kept.edges[e] && found.push({ e, share: graph.share(e) || 0 });
  for (let e = graph.edges.indptr[node]; e < graph.edges.indptr[node + 1]; e++) add(e);
  for (let i = graph.outStart[node]; i < graph.outStart[node + 1]; i++) add(graph.outEdges[i]);
  return found.sort((a, b) => b.share - a.share).map(({ e }) => e);
}

/** {from, to, edge} of every step of a path of nodes, upwards; edge is -1 where it is not kept. */
export function edgesBetween(graph, nodes, keptEdges) {
  const up = nodes.length > 1 && graph.levels[nodes[0]] > graph.levels[nodes.at(-1)] ? nodes.slice().reverse() : nodes;
  return up.slice(1).map((to, i) => {
    const from = up[i];
    for (let e = graph.edges.indptr[to]; e < graph.edges.indptr[to + 1]; e++) {
      if (graph.edges.indices[e] === from && keptEdges[e]) return { from, to, edge: e };
    }
    return { from, to, edge: -1 };
  });
}
