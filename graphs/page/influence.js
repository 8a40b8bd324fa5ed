// Influence flows from the targets down the rows: the sweep of graphs/influence.py, on the page's edges.

/** Node indices with inputs, from the logits down. */
function topDown(graph) {
  graph.order ??= Int32Array.from([...graph.levels.keys()].filter((i) => graph.levels[i] >= 0
    && graph.edges.indptr[i] < graph.edges.indptr[i + 1])).sort((a, b) => graph.levels[b] - graph.levels[a] || a - b);
  return graph.order;
}

/** Weights of the targets per node: of all of them, or 1 for one of them. */
export function startOf(graph, target = null) {
  const start = new Float64Array(graph.size);
  if (target !== null) start[target] = 1;
  else graph.targets.nodes.forEach((node, i) => (start[node] += graph.targets.weights[i]));
  return start;
}

/**
 * What arrives at every node when `start` flows down the edges of the mask `kept` (null: all), constants left out.
 * `totals` divides each row (graph.rowTotal: what is missing from a row is lost on the way), or the sum of the row's
 * kept edges where that is larger; null always divides by that sum. Returns {arrived, scale, passed}: scale is one over
 * what divided the row, 0 where nothing flows, and passed the share of the row that its kept edges hold.
 */
export function flow(graph, start, kept = null, totals = null) {
  const { indptr, indices, weights } = graph.edges;
  const arrived = new Float64Array(graph.size);
  const scale = new Float64Array(graph.size);
  const passed = new Float64Array(graph.size);
  for (const t of topDown(graph)) {
    let sum = 0;
    for (let e = indptr[t]; e < indptr[t + 1]; e++) {
      if ((kept === null || kept[e]) && !graph.isConstant[indices[e]]) sum += Math.abs(weights[e]);
    }
    if (!(sum > 0)) continue;
    const total = totals === null ? sum : Math.max(sum, totals[t]);
    scale[t] = 1 / total;
    passed[t] = sum / total;
    const mass = (start[t] + arrived[t]) * scale[t];
    if (mass === 0) continue;
    for (let e = indptr[t]; e < indptr[t + 1]; e++) {
      const s = indices[e];
      if ((kept === null || kept[e]) && !graph.isConstant[s]) arrived[s] += mass * Math.abs(weights[e]);
    }
  }
  return { arrived, scale, passed };
}

/**
 * Where influence ends: of a start scaled to 1, the shares that end at tokens, at errors, at features whose rows were
 * not computed (unexplored), at nodes whose inputs are not kept (pruned), and at nodes that nothing feeds but constants
 * (constants). They add up to 1. `places` lists {part, layer, position, share, node} of all but tokens; a pruned part
 * is at the node whose inputs are missing. Beside them, `constantInput`: what constants are of all |input|, averaged
 * over nodes with inputs by influence.
 */
export function endsOf(graph, start, kept = null) {
  const whole = start.reduce((sum, value) => sum + value, 0) || 1;
  const unit = start.map((value) => value / whole);
  const { arrived, passed } = flow(graph, unit, kept, graph.rowTotal);
  const sums = { tokens: 0, errors: 0, pruned: 0, unexplored: 0, constants: 0 };
  const places = [];
  let constant = 0;
  let weighed = 0;
  for (let i = 0; i < graph.size; i++) {
    const mass = unit[i] + arrived[i];
    if (mass <= 0) continue;
    const part = endAt(graph, i, passed[i]);
    const share = part === "pruned" ? mass * Math.max(0, 1 - passed[i]) : mass;
    sums[part] += share;
    if (share > 0 && part !== "tokens") {
      places.push({ part, layer: graph.nodes.layer[i], position: graph.nodes.position[i], share, node: i });
    }
    if (part !== "pruned" && part !== "constants") continue;
    constant += mass * constantsOf(graph, i);
    weighed += mass;
  }
  return { ...sums, constantInput: weighed > 0 ? constant / weighed : 0, places };
}

/** The part to which what ends at a node belongs. */
function endAt(graph, node, passed) {
  const kind = graph.kind[node];
  if (kind === "embedding") return "tokens";
  if (kind === "error") return "errors";
  if (passed > 0 || graph.rowTotal[node] > 0) return "pruned";
  return kind === "feature" && !graph.nodes.expanded[node] ? "unexplored" : "constants";
}

/** What the page's edges from constants are of all |input| of a node. */
function constantsOf(graph, node) {
  const { indptr, indices, weights } = graph.edges;
  let sum = 0;
  for (let e = indptr[node]; e < indptr[node + 1]; e++) if (graph.isConstant[indices[e]]) sum += Math.abs(weights[e]);
  return sum > 0 ? sum / (graph.rowTotal[node] + sum) : 0;
}

/** Replacement and completeness (graphs/scores.py) of the edges of the mask `kept`. */
export function scoresOf(graph, start, kept = null) {
  const { arrived, scale } = flow(graph, start, kept);
  let tokens = 0;
  let errors = 0;
  let fed = 0;
  for (let i = 0; i < graph.size; i++) {
    if (graph.kind[i] === "embedding") tokens += arrived[i];
    if (graph.kind[i] === "error") errors += arrived[i];
    if (scale[i] > 0) fed += arrived[i] + start[i];
  }
  const oneMinus = (piece, all) => (all > 0 ? 1 - piece / all : 1);
  return { replacement: oneMinus(errors, tokens + errors), completeness: oneMinus(errors, fed) };
}
