// What interventions measured of what the graph predicts. Files come from elsewhere too: only what is well formed counts.

/** [name in the header, what it is called, what it means] of the numbers, in the order in which they are shown. */
export const MEASURES = [
  ["frozen_max_relative_error", "frozen, largest error", "Attention and norms frozen: the graph’s prediction against "
    + "what was measured. It must be close to 0; this tests the tracer."],
  ["spearman_influence", "rank, by influence", "Spearman correlation of a feature’s influence with what ablating it does, "
    + "everything else free."],
  ["spearman_edge", "rank, by direct edge", "The same of its direct edge to the target."],
  ["spearman_activation", "rank, by activation", "The same of its activation: what one knows without a graph."],
  ["spearman_shuffled", "rank, shuffled", "The same after shuffling: what chance gives."],
  ["log_pearson_influence", "log-log correlation", "Pearson correlation of the logarithms of influence and effect."],
];

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** {effects: [{id, node (null: not in this page), predicted, measured}], ...the header's other fields}. */
export function validationOf(graph) {
  if (known.has(graph)) return known.get(graph);
  const written = graph.header.validation ?? {};
  const list = Array.isArray(written.effects) ? written.effects : [];
  const effects = list.filter((one) => Array.isArray(one) && isNumber(one[1]) && isNumber(one[2]))
    .map(([id, predicted, measured]) =>
      ({ id: String(id), node: graph.byId.get(String(id)) ?? null, predicted, measured }));
  const byNode = new Map(effects.filter(({ node }) => node !== null).map((effect) => [effect.node, effect]));
  known.set(graph, { ...written, effects, byNode });
  return known.get(graph);
}

const known = new WeakMap();

/** {predicted, measured} of ablating a node, or undefined. */
export function effectOf(graph, node) {
  return validationOf(graph).byNode.get(node);
}
