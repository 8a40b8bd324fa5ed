// What the subgraph is made of: pinned nodes and supernodes as units, and the kept edges between them, added up.

/** Units [{key, group, nodes}] of the state: supernodes first, then pinned nodes in none; a node counts in one unit. */
export function unitsOf(graph, state) {
  const taken = new Set();
  const free = (nodes) => nodes.filter((node) => !taken.has(node) && taken.add(node));
  const groups = state.groups.map((group) => ({ key: group.key, group, nodes: free(group.nodes) }));
  const single = free(state.pins).map((node) => ({ key: graph.ids[node], group: null, nodes: [node] }));
  return [...groups.filter((unit) => unit.nodes.length > 0), ...single];
}

/**
 * Links between different units, largest first. Of the kept edges from members of `source` to members of `target`:
 * `weight` is the sum of their signed weights, `raising` and `lowering` that of the positive and the negative ones,
 * `size` the sum of |weight|, `count` their number. `share` is `size` over the sum of the row totals (graph.rowTotal:
 * all |input|, pruned included, constants apart) of ALL members of `target`, edges or not. Constants stand outside of
 * row totals: their edges count in `weight` and not in `share`, which is NaN where there are no others. For single
 * nodes a link is the edge, with the edge's weight and share.
 */
export function linksOf(graph, kept, units) {
  const { indptr, indices, weights } = graph.edges;
  const owner = new Int32Array(graph.size).fill(-1);
  units.forEach((unit, u) => unit.nodes.forEach((node) => (owner[node] = u)));
  const links = [];
  units.forEach((unit, u) => {
    const from = new Map();
    for (const node of unit.nodes) {
      for (let e = indptr[node]; e < indptr[node + 1]; e++) {
        const source = owner[indices[e]];
        if (source < 0 || source === u || !kept[e]) continue;
        if (!from.has(source)) from.set(source, newLink(units[source].key, unit.key));
        add(from.get(source), weights[e], graph.isConstant[indices[e]]);
      }
    }
    const total = unit.nodes.reduce((sum, node) => sum + graph.rowTotal[node], 0);
    for (const link of from.values()) links.push(finished(link, total));
  });
  return links.sort((a, b) => (b.share || 0) - (a.share || 0) || Math.abs(b.weight) - Math.abs(a.weight));
}

function newLink(source, target) {
  return { source, target, weight: 0, raising: 0, lowering: 0, size: 0, count: 0, counted: 0 };
}

function add(link, weight, isConstant) {
  link.weight += weight;
  link[weight < 0 ? "lowering" : "raising"] += weight;
  link.count++;
  if (isConstant) return;
  link.size += Math.abs(weight);
  link.counted++;
}

function finished(link, total) {
  return { ...link, share: link.counted === 0 ? NaN : total > 0 ? link.size / total : 0 };
}
