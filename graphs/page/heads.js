// Which attention heads carry the edges, what the strongest heads look at, and the pairs of components that make their
// scores. A head's key is "layer.head".

const STEPS = 65535; // an attention weight of 1: see content.py

export class Heads {
  /** `about`: {positions, names, omitted: patterns that did not fit into the page}; `columns(name)` gives those of "heads", "views" and "pairs". */
  constructor(about, columns) {
    this.positions = about.positions;
    this.omitted = about.omitted;
    this.names = about.names;
    this.rows = columns("heads");
    this.pairs = columns("pairs");
    const { layer, head, weight, pattern } = columns("views");
    this.pattern = pattern;
    this.views = Array.from(layer, (l, i) => ({ key: `${l}.${head[i]}`, weight: weight[i] }));
    this.viewOf = new Map(this.views.map(({ key }, i) => [key, i]));
    this.byEdge = new Map();
    this.byHead = new Map();
    this.rows.loading.forEach((_, row) => {
      add(this.byEdge, this.edgeKey(this.rows.source[row], this.rows.target[row]), row);
      add(this.byHead, this.headKey(row), row);
    });
    this.byCell = new Map();
    this.pairs.view.forEach((view, pair) => add(this.byCell, this.cellKey(view, this.pairs.query[pair],
      this.pairs.key[pair]), pair));
  }

  edgeKey(source, target) {
    return `${source}>${target}`;
  }

  headKey(row) {
    return `${this.rows.layer[row]}.${this.rows.head[row]}`;
  }

  cellKey(view, query, key) {
    return (view * this.positions + query) * this.positions + key;
  }

  has(key) {
    return this.viewOf.has(key) || this.byHead.has(key);
  }

  /** Heads that carry edges but whose pattern is not here: [{key, weight}], weight the sum of |part|, largest first. */
  get unseen() {
    const sum = (rows) => rows.reduce((total, row) => total + Math.abs(this.rows.loading[row]), 0);
    return [...this.byHead].filter(([key]) => !this.viewOf.has(key)).map(([key, rows]) => ({ key, weight: sum(rows) }))
      .sort((a, b) => b.weight - a.weight);
  }

  /** [{key, layer, loading}] of an edge, the largest |loading| first. */
  ofEdge(source, target) {
    return (this.byEdge.get(this.edgeKey(source, target)) ?? []).map((row) =>
      ({ key: this.headKey(row), layer: this.rows.layer[row], loading: this.rows.loading[row] }));
  }

  /** [{source, target, loading}] of the edges that a head carries, the largest |loading| first. */
  edgesOf(key) {
    const { source, target, loading } = this.rows;
    return (this.byHead.get(key) ?? []).map((row) =>
      ({ source: source[row], target: target[row], loading: loading[row] }))
      .sort((a, b) => Math.abs(b.loading) - Math.abs(a.loading));
  }

  /** How much the query looks at the key, 0 to 1. */
  weight(view, query, key) {
    return this.pattern[this.cellKey(view, query, key)] / STEPS;
  }

  /** Mean weight on the first token over the queries after it: what goes to the attention sink. */
  sink(view) {
    let sum = 0;
    for (let query = 1; query < this.positions; query++) sum += this.weight(view, query, 0);
    return this.positions > 1 ? sum / (this.positions - 1) : NaN;
  }

  /** [[query, key]] of the cells whose pairs are here, those that are looked at most first. */
  cells(view) {
    const here = [...this.byCell.values()].filter(([pair]) => this.pairs.view[pair] === view)
      .map(([pair]) => [this.pairs.query[pair], this.pairs.key[pair]]);
    return here.sort((a, b) => this.weight(view, ...b) - this.weight(view, ...a));
  }

  /** {score, pairs: [{value, query: {node, name}, key: {node, name}}]} of a cell, largest |value| first; or null. */
  scoreOf(view, query, key) {
    const found = this.byCell.get(this.cellKey(view, query, key));
    if (found === undefined) return null;
    const { queryNode, keyNode, queryName, keyName, value, score } = this.pairs;
    const pairs = found.map((pair) => ({ value: value[pair],
      query: { node: queryNode[pair], name: this.names[queryName[pair]] },
      key: { node: keyNode[pair], name: this.names[keyName[pair]] } }));
    return { score: score[found[0]], pairs: pairs.sort((a, b) => Math.abs(b.value) - Math.abs(a.value)) };
  }
}

function add(map, key, item) {
  const list = map.get(key);
  if (list === undefined) map.set(key, [item]);
  else list.push(item);
}

/** "L5H2" for the key "5.2". */
export function headName(key) {
  return `L${key.replace(".", "H")}`;
}
