// The subgraph: pinned nodes and supernodes as boxes with the edges between them. Changes go through the state; what is
// chosen for the next action, which supernodes are open and the zoom belong to this view alone.

import { linksOf, unitsOf } from "./aggregate.js";
import { moveToGroup } from "./actions.js";
import { Actions, emptyState } from "./subgraph_bar.js";
import { MEMBER, drawBox, nameOf } from "./subgraph_boxes.js";
import { dragBoxes, dragChips } from "./subgraph_drag.js";
import { Pointing, listen } from "./subgraph_input.js";
import { boxesOf, extentOf, placeBoxes } from "./subgraph_layout.js";
import { Links } from "./subgraph_links.js";
import { rename } from "./subgraph_rename.js";
import { sentenceOf } from "./subgraph_tip.js";
import { svg } from "./svg.js";
import { element } from "./text.js";

/** A change of these redraws the boxes. */
const SHOWS = ["pins", "groups", "labels", "thresholds", "places", "target", "path"];
const MARGIN = 24; // px around the boxes when they fill the view
const LARGEST = 1.15; // zoom of a small subgraph that fills the view
const READABLE = 0.55; // a larger one does not shrink below this by itself, only when asked to fit
const MOST_LINKS = 1000; // drawn, the strongest by share
const SAID = 60; // links told to screen readers

export class SubgraphView {
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.open = new Set(); // keys of supernodes that show their members
    this.chosen = new Set(); // keys of boxes, and "member NODE" for members of open supernodes
    this.boxes = new Map();
    this.links = [];
    this.fitting = true; // until somebody zooms or pans
    this.drawnLinks = new Links();
    this.boxLayer = svg("g", { class: "boxes" });
    this.content = svg("g", {}, this.drawnLinks.root, this.boxLayer);
    this.svg = svg("svg", { class: "canvas", role: "group", "aria-label": "Pinned nodes and supernodes" },
      this.content);
    this.list = element("ul", { className: "unseen" });
    this.list.setAttribute("aria-label", "Edges of the subgraph");
    this.empty = element("div", { className: "empty" });
    this.actions = new Actions(this);
    root.append(this.actions.root, this.empty, this.svg, this.list);
    this.pointing = new Pointing(this);
    this.zoom = listen(this);
    new ResizeObserver(() => this.fitting && this.fit(READABLE)).observe(this.svg);
  }

  render(state, previous) {
    const changed = SHOWS.filter((name) => previous === null || state[name] !== previous[name]);
    if (changed.length === 1 && changed[0] === "places") this.place();
    else if (changed.length > 0) this.draw();
    this.mark();
  }

  /** Everything anew. The box that had the keyboard keeps it. */
  draw() {
    const { app } = this;
    const { state } = app;
    const units = unitsOf(app.graph, state);
    const held = this.focused();
    this.links = linksOf(app.graph, app.kept.edges, units);
    const boxes = boxesOf(app, units, this.open);
    placeBoxes(app.graph, boxes, this.links, state.places);
    this.boxes = new Map(boxes.map((box) => [box.key, box]));
    for (const key of [...this.chosen]) if (!this.stands(key)) this.chosen.delete(key);
    const most = Math.max(...boxes.map((box) => box.influence), 0);
    this.boxLayer.replaceChildren(...this.inReadingOrder().map((box) => drawBox(app.graph, box, app.kept, most)));
    this.drawnLinks.draw(this.links.slice(0, MOST_LINKS), this.boxes);
    this.pointing.light();
    this.list.replaceChildren(...this.links.slice(0, SAID).map((link) => sentenceOf(this.boxes, link)));
    dragBoxes(this, this.boxLayer.querySelectorAll(".box"));
    dragChips(this, this.boxLayer.querySelectorAll(".chip"));
    this.pointing.hideTip();
    const isEmpty = boxes.length === 0;
    this.empty.replaceChildren(...(isEmpty ? emptyState(app) : []));
    for (const [part, hidden] of [[this.empty, !isEmpty], [this.svg, isEmpty]]) part.toggleAttribute("hidden", hidden);
    if (this.fitting) this.fit(READABLE);
    if (held) this.byName(held)?.focus();
  }

  /** From the outputs down to the tokens, in each row from left to right. */
  inReadingOrder() {
    return [...this.boxes.values()].sort((a, b) => a.y - b.y || a.x - b.x);
  }

  /** The same boxes at other places. */
  place() {
    const { app, boxes } = this;
    placeBoxes(app.graph, [...boxes.values()], this.links, app.state.places);
    this.follow([...boxes.keys()]);
  }

  /** Move what is drawn of boxes, and their links, to where the boxes are now. */
  follow(keys) {
    const moved = new Set(keys);
    for (const drawn of this.boxLayer.children) {
      const box = this.boxes.get(drawn.dataset.key);
      if (moved.has(box.key)) drawn.setAttribute("transform", `translate(${box.x},${box.y})`);
    }
    this.drawnLinks.follow(this.boxes, moved);
    this.pointing.hideTip();
    this.pointing.light();
  }

  /** What is selected and chosen, on what is drawn already. */
  mark() {
    const { selected } = this.app.state;
    for (const drawn of this.boxLayer.querySelectorAll(".box, .chip")) {
      const name = nameOf(drawn);
      const node = drawn.dataset.chip ?? drawn.dataset.node;
      drawn.classList.toggle("selected", node !== undefined && Number(node) === selected);
      drawn.classList.toggle("chosen", this.chosen.has(name));
      if (drawn.getAttribute("role") === "button") drawn.setAttribute("aria-pressed", String(this.chosen.has(name)));
    }
    this.actions.render();
  }

  chosenNodes() {
    return this.nodesOf([...this.chosen]);
  }

  nodesOf(names) {
    return [...new Set(names.flatMap((name) => (
      name.startsWith(MEMBER) ? [Number(name.slice(MEMBER.length))] : this.boxes.get(name).nodes)))];
  }

  stands(name) {
    if (!name.startsWith(MEMBER)) return this.boxes.has(name);
    const node = Number(name.slice(MEMBER.length));
    return [...this.boxes.values()].some((box) => box.open && box.nodes.includes(node));
  }

  /** Choose one box, or add it to those chosen (`more`; a second time takes it away). */
  choose(name, more = false) {
    if (!more) this.chosen.clear();
    if (more && this.chosen.has(name)) this.chosen.delete(name);
    else this.chosen.add(name);
    const nodes = this.chosenNodes();
    const isNode = name.startsWith(MEMBER) || this.boxes.get(name)?.group === null;
    if (!more && isNode && nodes.length === 1) this.app.select(nodes[0]);
    this.mark();
  }

  chooseOnly(names) {
    this.chosen = new Set(names);
    this.mark();
  }

  toggleOpen(key) {
    if (!this.open.delete(key)) this.open.add(key);
    this.draw();
    this.mark();
  }

  rename(key) {
    const box = this.boxes.get(key);
    if (box) rename(this, box);
  }

  /** Members leave their supernode where only members are named; boxes are unpinned. */
  remove(names) {
    const nodes = this.nodesOf(names);
    if (names.every((name) => name.startsWith(MEMBER))) this.move(nodes, null);
    else this.app.pin(nodes, false);
  }

  /** Put nodes into the supernode `key`, or out of theirs (null), one of them at a place: one step of undo. */
  move(nodes, key, place = null) {
    const changes = nodes.reduce((state, node) => ({ ...state, ...moveToGroup(state, node, key) }), this.app.state);
    const places = { ...this.app.state.places };
    for (const node of nodes) delete places[this.app.graph.ids[node]];
    if (place !== null) places[this.app.graph.ids[nodes[0]]] = place.map(Math.round);
    this.app.set({ pins: changes.pins, groups: changes.groups, places });
  }

  /** Remember where boxes stand now. */
  keepPlaces(keys, merge = null) {
    const places = { ...this.app.state.places };
    for (const key of keys) places[key] = [this.boxes.get(key).x, this.boxes.get(key).y].map(Math.round);
    this.app.set({ places }, { merge });
  }

  resetLayout() {
    this.fitting = true;
    if (Object.keys(this.app.state.places).length > 0) this.app.set({ places: {} });
    this.fit();
  }

  /** Show every box, or with `least` only as many as are shown at that zoom, from the outputs down. */
  fit(least = 0.1) {
    this.fitting = true;
    const { clientWidth, clientHeight } = this.svg;
    if (this.boxes.size === 0 || clientWidth < 10 || clientHeight < 10) return;
    const { left, right, top, bottom } = extentOf([...this.boxes.values()]);
    const scale = Math.min(LARGEST, (clientWidth - 2 * MARGIN) / (right - left),
      (clientHeight - 2 * MARGIN) / (bottom - top));
    const { d3 } = globalThis;
    const shown = scale >= least
      ? d3.zoomIdentity.translate(clientWidth / 2, clientHeight / 2).scale(scale)
        .translate(-(left + right) / 2, -(top + bottom) / 2)
      : d3.zoomIdentity.translate(clientWidth / 2, MARGIN).scale(least).translate(-(left + right) / 2, -top);
    d3.select(this.svg).call(this.zoom.transform, shown);
  }

  zoomBy(factor) {
    this.fitting = false;
    globalThis.d3.select(this.svg).call(this.zoom.scaleBy, factor);
  }

  /** The name of the box or member that has the keyboard, or null. */
  focused() {
    return this.boxLayer.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  }

  byName(name) {
    return [...this.boxLayer.querySelectorAll(".box, .chip")].find((drawn) => nameOf(drawn) === name);
  }
}
