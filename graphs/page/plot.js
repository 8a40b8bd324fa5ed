// The link view: edges and nodes on one canvas, what is pointed at on a second. Both have the size of the view and are
// drawn shifted by the scroll offset, so a long prompt needs no larger canvas. Many edges are a picture of their own
// (strands.js): scrolling copies it.

import { drawAxes, drawBands } from "./axes.js";
import { colorsOf, rampColor } from "./colors.js";
import { HitGrid } from "./hit.js";
import { layOut, radii, strongest } from "./layout.js";
import { MarkLegend } from "./marklegend.js";
import { Shapes, head, member, pinned, ring } from "./marks.js";
import { edgesBetween, edgesOfNode, strongestEdges } from "./pick.js";
import { Strands, stroke, widthOf } from "./strands.js";

const REACH = 5; // px around a node that still counts as on it
const EDGES_POINTED = 120; // of the node pointed at, the strongest; a selected node shows all
const DIMMED = 0.22;
const PATH_WIDTH = 3.5; // px
const DRAWN_FROM = ["selected", "pins", "groups", "thresholds", "target", "path", "query", "labels", "drawn", "color"];

export class Plot {
  constructor(app, view) {
    Object.assign(this, { app, view, graph: app.graph });
    this.overlay = document.getElementById("overlay");
    this.base = document.getElementById("base").getContext("2d");
    this.top = this.overlay.getContext("2d");
    this.strands = new Strands(this.graph, () => this.draw());
    this.legend = new MarkLegend(app, document.getElementById("legend"));
    this.port = { left: 0, top: 0, width: 0, height: 0 };
    this.layout = null;
    this.pointing = false; // the pointer or the keyboard is in this view
    this.walking = false; // it is the keyboard
    app.onHover(() => this.drawPointed());
    this.listen();
    new ResizeObserver(() => this.resize()).observe(view);
    for (const query of ["(prefers-color-scheme: dark)", "(prefers-contrast: more)"]) {
      window.matchMedia(query).addEventListener("change", () => this.recolor());
    }
  }

  listen() {
    const { overlay, app, view } = this;
    const at = (event) => this.at(event.clientX, event.clientY);
    overlay.addEventListener("pointermove", (event) => {
      const node = at(event);
      this.pointing = true;
      this.walking = false;
      overlay.classList.toggle("on-node", node !== null);
      app.hover(node);
    });
    for (const type of ["pointerleave", "blur"]) {
      overlay.addEventListener(type, () => {
        this.pointing = false;
        app.hover(null);
      });
    }
    overlay.addEventListener("click", (event) => app.select(at(event)));
    view.addEventListener("scroll", () => {
      if (view.clientWidth === 0) return; // hidden
      Object.assign(this.port, { left: view.scrollLeft, top: view.scrollTop });
      this.draw();
    });
  }

  resize() {
    const width = this.view.clientWidth - 1; // the real size may be a fraction less than these whole numbers
    const height = this.view.clientHeight - 1;
    if (width < 1 || height < 1) return;
    const { port } = this;
    Object.assign(port, { left: this.view.scrollLeft, top: this.view.scrollTop });
    if (port.width === width && port.height === height && this.scale === devicePixelRatio) return this.draw();
    Object.assign(port, { width, height });
    this.scale = devicePixelRatio;
    for (const { canvas } of [this.base, this.top]) {
      canvas.width = Math.round(width * this.scale);
      canvas.height = Math.round(height * this.scale);
    }
    const first = this.layout === null;
    if (this.drawn) this.arrange();
    this.recolor();
    if (first && this.layout) this.reveal(this.app.state.selected ?? this.graph.targets.nodes[0] ?? 0);
  }

  /** Colours anew, and all that has them. */
  recolor() {
    this.colors = colorsOf(this.view);
    this.shapes = new Shapes(this.colors);
    if (this.drawn) this.pickEdges();
    this.draw();
  }

  /** Gives the nodes that are shown their places. */
  arrange() {
    const { port, graph, view } = this;
    if (port.width === 0) return;
    this.layout = layOut(graph, this.shown, port.width, port.height);
    for (const [id, size] of [["sheet", this.layout], ["stage", port]]) {
      const { style } = document.getElementById(id);
      style.width = `${size.width}px`;
      style.height = `${size.height}px`;
    }
    drawAxes(graph, this.layout);
    Object.assign(port, { left: view.scrollLeft, top: view.scrollTop }); // a smaller sheet may have scrolled
    this.strands.place(this.layout);
    this.size();
  }

  size() {
    if (!this.layout) return;
    this.radius = radii(this.graph, this.shown, this.app.influence, this.layout.spacing);
    this.grid = new HitGrid(this.layout, this.radius);
  }

  render(state, previous) {
    const changed = (...names) => previous === null || names.some((name) => state[name] !== previous[name]);
    if (!changed(...DRAWN_FROM)) return;
    const { kept } = this.app;
    this.drawn = state;
    this.shown = kept.nodes;
    if (changed("thresholds") || this.layout === null) this.arrange();
    else if (changed("target")) this.size();
    if (changed("thresholds", "target")) this.most = strongest(this.graph, kept.nodes, this.app.influence);
    if (changed("query", "labels", "thresholds")) this.matches = this.found(state.query);
    if (changed("path", "thresholds")) this.path = state.path && edgesBetween(this.graph, state.path, kept.edges);
    if (changed("thresholds", "target", "drawn")) this.faint = strongestEdges(this.app, state.drawn);
    if (changed("thresholds", "target", "drawn", "selected")) this.pickEdges();
    this.marked = { pins: new Set(state.pins), members: new Set(state.groups.flatMap((group) => group.nodes)) };
    this.legend.render(state, this.most);
    if (state.selected !== null && state.selected !== previous?.selected) this.reveal(state.selected);
    this.draw();
  }

  /** The nodes that a search finds, or null where there is none. */
  found(query) {
    return query === "" ? null : new Set(this.app.matches(query));
  }

  /** The edges to draw: the selected node's by sign, or else the strongest of all, faintly. */
  pickEdges() {
    const { selected } = this.drawn;
    this.near = null;
    if (selected === null || !this.shown[selected]) {
      const color = this.colors?.faint;
      return this.strands.show(this.faint, (e) => ({ color, width: 0.35 + (this.graph.share(e) || 0) * 2 }));
    }
    const edges = edgesOfNode(this.app, selected);
    this.near = new Set([selected, ...edges.flatMap((e) => [this.graph.edges.indices[e], this.graph.target[e]])]);
    this.strands.show(edges, (e) => this.signed(e));
  }

  signed(e) {
    const dashed = this.graph.edges.weights[e] < 0;
    return { color: this.colors[dashed ? "negative" : "positive"], width: widthOf(this.graph.share(e)), dashed };
  }

  draw() {
    if (!this.layout || !this.colors) return;
    const context = this.begin(this.base);
    drawBands(context, this.layout, this.colors);
    const faint = this.matches !== null || this.path !== null;
    context.globalAlpha = this.near !== null ? 0.8 : faint ? 0.4 : 1;
    this.strands.drawOn(context, this.port);
    context.globalAlpha = 1;
    if (this.path !== null) this.drawPath(context);
    this.drawNodes(context);
    this.base.canvas.toggleAttribute("data-whole", this.strands.done); // every edge is there
    this.drawPointed();
  }

  drawNodes(context) {
    const { near, matches, radius, colors, shapes, layout, graph, marked } = this;
    const { x, y } = layout;
    const { influence } = this.app;
    const lit = new Set(this.drawn.path);
    const byInfluence = this.drawn.color === "influence";
    for (let i = 0; i < graph.size; i++) {
      if (!this.inView(i)) continue;
      const bright = matches ?? near ?? (this.path === null ? null : lit);
      const dimmed = bright !== null && !bright.has(i) && !lit.has(i) && i !== this.drawn.selected;
      context.globalAlpha = dimmed ? DIMMED : 1;
      const kind = graph.kind[i];
      const ramped = byInfluence && kind !== "logit" && kind !== "constant"; // these have no influence
      const color = ramped ? rampColor(colors, influence[i] / this.most) : colors[kind];
      shapes.draw(context, kind, x[i], y[i], radius[i], color);
      if (marked.pins.has(i)) pinned(context, layout, radius, i, colors.ink);
      if (marked.members.has(i)) member(context, layout, radius, i, colors.ink);
    }
    context.globalAlpha = 1;
    for (const i of lit) if (this.inView(i)) ring(context, layout, radius, i, 3, colors.focus, 2.5);
    const { selected } = this.drawn;
    if (selected !== null && this.inView(selected)) ring(context, layout, radius, selected, 4, colors.ink, 2.5);
  }

  /** The lit path: thick, with arrowheads; dotted where this page lacks the edge or it is pruned. */
  drawPath(context) {
    const { layout, radius, colors } = this;
    for (const { from, to, edge } of this.path) {
      if (!this.shown[from] || !this.shown[to]) continue;
      const known = edge < 0 ? { color: colors.soft, dashed: true } : this.signed(edge);
      stroke(context, layout, from, to, { color: colors.page, width: PATH_WIDTH + 3, dashed: false });
      stroke(context, layout, from, to, { ...known, width: PATH_WIDTH });
      head(context, layout, radius, to, known.color);
    }
  }

  /** What the pointer or the keyboard is at, here or in another view. */
  drawPointed() {
    if (!this.layout || !this.colors) return;
    const context = this.begin(this.top);
    const { hovered, alsoHovered } = this.app;
    const { layout, radius, colors } = this;
    for (const i of alsoHovered) if (this.inView(i)) ring(context, layout, radius, i, 4, colors.focus, 2);
    if (hovered === null || !this.shown[hovered]) return;
    if (this.drawn.selected === null && this.path === null) {
      context.globalAlpha = 0.7;
      for (const e of edgesOfNode(this.app, hovered).slice(0, EDGES_POINTED).reverse()) {
        stroke(context, layout, this.graph.edges.indices[e], this.graph.target[e], this.signed(e));
      }
      context.globalAlpha = 1;
    }
    ring(context, layout, radius, hovered, 4, colors.focus, 2.5);
  }

  begin(context) {
    const { canvas } = context;
    const { scale } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(scale, 0, 0, scale, -this.port.left * scale, -this.port.top * scale);
    return context;
  }

  /** Whether a node is shown (others are at NaN) in the visible part of the sheet. */
  inView(i) {
    const x = this.layout.x[i] - this.port.left;
    const y = this.layout.y[i] - this.port.top;
    return x > -10 && x < this.port.width + 10 && y > -10 && y < this.port.height + 10;
  }

  /** The node at a point of the window, or null. */
  at(clientX, clientY) {
    if (!this.layout) return null;
    const box = this.overlay.getBoundingClientRect();
    // a click has whole px where the move before it has fractions: both must find the same node
    const x = Math.floor(clientX) - box.left + this.port.left;
    return this.grid.at(x, Math.floor(clientY) - box.top + this.port.top, REACH);
  }

  /** A shown node's place in the window, or null. */
  locate(node) {
    if (!this.layout || !this.shown[node]) return null;
    const box = this.overlay.getBoundingClientRect();
    return { x: this.layout.x[node] - this.port.left + box.left, y: this.layout.y[node] - this.port.top + box.top,
      radius: this.radius[node] };
  }

  /** Scrolls to a node that is out of view. */
  reveal(node) {
    if (!this.layout || !this.shown[node] || this.inView(node)) return;
    const { x, y } = this.layout;
    this.view.scrollTo({ left: x[node] - this.port.width / 2, top: y[node] - this.port.height / 2 });
    Object.assign(this.port, { left: this.view.scrollLeft, top: this.view.scrollTop });
    this.draw();
  }
}
