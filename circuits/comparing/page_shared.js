// What this page takes from the modules of the graph's page, which stand before it, and the two sides' nodes.

const { element, isolated, number, percent, shorten, visibleLabel, visibleToken } = module_text;
const { svg, wrap } = module_svg;
const { icon, KIND_NAMES } = module_shapes;

const content = JSON.parse(document.getElementById("content").textContent);
const byId = (id) => document.getElementById(id);

/** The outline of every kind of node, in the unit circle. */
const OUTLINES = Object.fromEntries(Object.keys(KIND_NAMES).map((kind) =>
  [kind, icon(kind).firstChild.getAttribute("d")]));

/** The class that marks a side's headings with its colour in the figures. */
const colorOf = (shown, side) => `side-${Math.min(1, side === 0 ? 0 : shown.pair.second)}`;

/** The pair that is shown: its two graphs, which node of one is which of the other, and what is told of matches. */
class Shown {
  constructor(number) {
    this.number = number;
    this.pair = content.pairs[number];
    this.graphs = [content.graphs[0], content.graphs[this.pair.second]];
    this.partners = [new Map(this.pair.partners), new Map(this.pair.partners.map(([a, b]) => [b, a]))];
    this.matchOf = [new Map(), new Map()];
    for (const match of this.pair.matches) {
      this.matchOf[0].set(match.first, match);
      this.matchOf[1].set(match.second, match);
    }
  }

  /** Text of the token at a position of one of the graphs. */
  token(side, position) {
    const text = this.graphs[side].tokens[position];
    return text === undefined ? "" : visibleToken(text);
  }

  name(side, node) {
    return visibleLabel(this.graphs[side].nodes[node].name);
  }

  /** Where a node is, short: "L12·7". */
  place(side, node) {
    const { kind, layer, position } = this.graphs[side].nodes[node];
    const level = { embedding: "emb", logit: "out" }[kind] ?? `L${layer}`;
    return position < 0 ? level : `${level}·${position}`;
  }
}
