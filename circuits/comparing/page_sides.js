// One graph: its nodes as shapes, its strongest edges, and what is lit. Matched features are filled, others hollow.

const LIT_EDGES = 80; // of the lit node, the strongest
const DEPTHS = [0, 0.25, 0.5, 0.75, 1];
const KEYS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

class Side {
  /** `act` = { select(side, node), hover(side, node or null, event), other(side) }. */
  constructor(root, shown, side, act) {
    Object.assign(this, { shown, side, act, graph: shown.graphs[side], lit: null, chosen: new Set() });
    this.edgesAt = byNode(this.graph);
    this.view = element("div", { className: "view" });
    const title = element("h3", { className: colorOf(shown, side) }, isolated(this.graph.name));
    const { left } = this.graph.edges;
    if (left) title.append(element("small", {}, ` ${left.toLocaleString("en")} weak edges are not on this page`));
    root.append(element("section", { className: "side" }, title, this.view));
  }

  draw(layout, edgeCount) {
    const { graph, side } = this;
    Object.assign(this, { layout, edgeCount, places: layout.nodes[side] });
    this.edges = svg("g", { class: "edges" });
    this.nodes = svg("g", { class: "nodes" });
    this.halo = svg("circle", { r: 10.5, class: "halo", visibility: "hidden" });
    this.svg = svg("svg", { viewBox: `0 0 ${layout.width} ${layout.height}`, width: layout.width,
      height: layout.height, tabindex: 0, role: "application", "aria-describedby": "keys",
      "aria-label": `Attribution graph of ${graph.name}` });
    this.svg.append(axes(this.shown, side, layout), this.edges, this.nodes, this.halo);
    this.shapes = graph.nodes.map((node, i) => (this.places[i] ? this.shape(node, i) : null));
    this.nodes.append(...this.shapes.filter((shape) => shape !== null));
    this.view.replaceChildren(this.svg);
    this.listen();
    this.light(null);
  }

  shape(node, i) {
    const { x, y } = this.places[i];
    const { spacing } = this.layout;
    this.most ??= Math.max(...this.graph.nodes.map(({ kind, share }) => (kind === "feature" ? share : 0)), 1e-12);
    const part = node.kind === "feature" ? 0.27 + 0.2 * Math.sqrt(Math.min(1, node.share / this.most)) : 0.33;
    const radius = Math.min(7, spacing * part);
    const matched = this.shown.partners[this.side].has(i);
    const made = svg("path", { d: OUTLINES[node.kind], class: `node ${node.kind}${matched ? "" : " unmatched"}`,
      "data-node": i, id: `node-${this.side}-${i}`, role: "img", "vector-effect": "non-scaling-stroke",
      transform: `translate(${x.toFixed(1)},${y.toFixed(1)}) scale(${radius.toFixed(2)})` });
    made.setAttribute("aria-label", `${KIND_NAMES[node.kind]} ${this.shown.name(this.side, i)}, ` +
      `${this.shown.place(this.side, i)}, ${matched ? "matched" : "unmatched"}`);
    return made;
  }

  listen() {
    const nodeAt = (event) => {
      const found = event.target.closest("[data-node]");
      return found ? Number(found.dataset.node) : null;
    };
    this.svg.addEventListener("click", (event) => this.act.select(this.side, nodeAt(event)));
    this.svg.addEventListener("pointermove", (event) => this.act.hover(this.side, nodeAt(event), event));
    this.svg.addEventListener("pointerleave", (event) => this.act.hover(this.side, null, event));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.key === "Escape") this.act.select(this.side, null);
    else if (event.key === "m" || event.key === "M") this.act.other(this.side);
    else if (event.key in KEYS) this.act.select(this.side, this.towards(KEYS[event.key]));
    else return;
    event.preventDefault();
  }

  /** The nearest node in a direction from the lit one; without one, the first output. */
  towards([right, down]) {
    const from = this.lit === null ? null : this.places[this.lit];
    if (from === null) return this.graph.nodes.findIndex(({ kind }) => kind === "logit");
    let best = this.lit;
    let least = Infinity;
    this.places.forEach((place, i) => {
      if (place === null) return;
      const along = (place.x - from.x) * right + (place.y - from.y) * down;
      const aside = Math.abs((place.x - from.x) * down) + Math.abs((place.y - from.y) * right);
      if (along > 1 && along + 2 * aside < least) [best, least] = [i, along + 2 * aside];
    });
    return best;
  }

  /** Lights a node, or none: `role` says whether it is the selected one or its match. */
  light(node, role = "selected") {
    this.lit = node;
    const found = node === null ? null : this.edgesAt[node];
    const shown = found === null ? range(Math.min(this.edgeCount, this.graph.edges.source.length))
      : found.slice(0, LIT_EDGES);
    this.edges.replaceChildren(...shown.toReversed().map((edge) => this.edge(edge, found !== null)));
    for (const shape of this.chosen) shape.classList.remove("selected", "match", "near");
    this.chosen = new Set();
    this.svg.classList.toggle("lit", node !== null);
    this.halo.setAttribute("visibility", node === null ? "hidden" : "visible");
    if (node === null) {
      this.svg.removeAttribute("aria-activedescendant");
      return;
    }
    const mark = (i, name) => {
      this.shapes[i]?.classList.add(name);
      if (this.shapes[i]) this.chosen.add(this.shapes[i]);
    };
    const { source, target } = this.graph.edges;
    for (const i of shown.flatMap((edge) => [source[edge], target[edge]])) mark(i, "near");
    mark(node, role);
    for (const [name, value] of [["cx", this.places[node].x], ["cy", this.places[node].y], ["class", `halo ${role}`]]) {
      this.halo.setAttribute(name, value);
    }
    this.svg.setAttribute("aria-activedescendant", `node-${this.side}-${node}`);
  }

  /** Nothing here is the match of what is lit in the other graph. */
  dim() {
    this.light(null);
    this.edges.replaceChildren();
    this.svg.classList.add("lit");
  }

  edge(edge, lit) {
    const { source, target, weight, share } = this.graph.edges;
    const [from, to] = [this.places[source[edge]], this.places[target[edge]]];
    if (!from || !to) return "";
    const [x1, y1, x2, y2, middle] = [from.x, from.y, to.x, to.y, (from.y + to.y) / 2].map((at) => at.toFixed(1));
    return svg("path", { class: lit ? (weight[edge] < 0 ? "negative" : "positive") : "strong",
      d: `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`,
      "stroke-width": (0.7 + 5 * Math.min(1, share[edge])).toFixed(2) });
  }

  /** Scrolls the view to where a node is. */
  reveal(node) {
    const { x } = this.places[node] ?? { x: 0 };
    const { clientWidth, scrollLeft } = this.view;
    if (x < scrollLeft + 20 || x > scrollLeft + clientWidth - 20) this.view.scrollLeft = x - clientWidth / 2;
  }
}

function axes(shown, side, layout) {
  const { columns, yOf, width, height } = layout;
  const made = svg("g", { class: "axes", "aria-hidden": "true" });
  const [top, bottom] = [yOf(1), yOf(0)];
  for (const [i, { start, size }] of columns.entries()) {
    const band = { x: start, y: 0, width: size, height: height - MARGIN.bottom, class: "band" };
    if (i % 2 === 0) made.append(svg("rect", band));
  }
  for (const depth of DEPTHS) {
    made.append(svg("line", { x1: MARGIN.left - 4, x2: width - MARGIN.right, y1: yOf(depth), y2: yOf(depth) }),
      svg("text", { x: MARGIN.left - 7, y: yOf(depth) + 4, "text-anchor": "end" }, depth.toFixed(2)));
  }
  const { layers } = shown.graphs[side];
  made.append(svg("text", { x: MARGIN.left - 7, y: top - MARGIN.out / 2 + 4, "text-anchor": "end" }, "out"),
    svg("text", { x: MARGIN.left - 7, y: bottom + MARGIN.embedding / 2 + 4, "text-anchor": "end" }, "emb"),
    svg("title", {}, `Relative depth of ${layers} layers by token position`));
  for (const [position, { center, size }] of columns.entries()) {
    const text = shown.token(side, position);
    const [short] = wrap(text || String(position), { width: size - 4, count: 1, size: 12 });
    const label = svg("text", { x: center, y: height - MARGIN.bottom + 18, class: "token" }, short);
    label.append(svg("title", {}, shorten(text, 200)));
    made.append(label, svg("text", { x: center, y: height - MARGIN.bottom + 33, class: "place" }, String(position)));
  }
  return made;
}

/** Edges in and out of each node, the largest share first. */
function byNode({ nodes, edges }) {
  const found = nodes.map(() => []);
  edges.source.forEach((source, edge) => {
    found[source].push(edge);
    found[edges.target[edge]].push(edge);
  });
  for (const own of found) own.sort((a, b) => edges.share[b] - edges.share[a]);
  return found;
}

function range(count) {
  return Array.from({ length: count }, (_, i) => i);
}
