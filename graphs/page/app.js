// What the views share: the graph, the state, what pruning and the chosen target make of it, and what is pointed at.

import { makeGroup, moveToGroup, renameGroup, setLabel, setPinned, splitGroup } from "./actions.js";
import { Address } from "./address.js";
import { decode, encode } from "./hash.js";
import { endsOf, flow, scoresOf, startOf } from "./influence.js";
import { limitsOf, prune } from "./prune.js";
import { notice } from "./notice.js";
import { matches } from "./search.js";
import { Store } from "./store.js";

const LOOKED = ["selected", "edge", "head", "left", "right"]; // a change of these is a step of the browser's Back
const DRAWN = 1000; // faint edges drawn at first
const TOO_LONG = "The address of this page cannot hold all of your changes: download them as JSON to keep them.";

export class App {
  constructor(graph) {
    this.graph = graph;
    this.hovered = null;
    this.alsoHovered = [];
    this.hoverListeners = [];
    this.first = firstState(graph);
    const initial = { ...this.first, ...decode(graph, location.hash, this.first) };
    graph.relabel(initial.labels);
    this.address = new Address(() => notice(TOO_LONG, { problem: true, topic: "address" }));
    this.store = new Store(initial);
    this.store.subscribe((state, previous) => {
      if (state.labels !== previous.labels) graph.relabel(state.labels);
      this.writeHash(state, previous);
    });
    window.addEventListener("popstate", () => this.readHash());
  }

  get state() {
    return this.store.state;
  }

  /** Change fields of the state; see Store.set. Another selection closes the card of an edge. */
  set(changes, options) {
    this.store.set("selected" in changes ? { edge: null, ...changes } : changes, options);
  }

  subscribe(listener) {
    this.store.subscribe(listener);
  }

  /** Masks {nodes, edges} of what is kept at the state's thresholds. */
  get kept() {
    const { thresholds } = this.state;
    if (this.keptAt !== thresholds) {
      this.keptAt = thresholds;
      this.keptMasks = prune(this.graph, thresholds);
    }
    return this.keptMasks;
  }

  /** Influence of every node on the chosen target: the trace's for all targets, through this page's edges for one. */
  get influence() {
    const { target } = this.state;
    if (target === null) return this.graph.nodes.influence;
    if (this.influenceOf !== target) {
      this.influenceOf = target;
      this.influenceFlow = flow(this.graph, startOf(this.graph, target), null, this.graph.rowTotal).arrived;
    }
    return this.influenceFlow;
  }

  /** Where influence on the chosen target ends, of what is kept: see endsOf. */
  get ends() {
    return endsOf(this.graph, startOf(this.graph, this.state.target), this.kept.edges);
  }

  /** Replacement and completeness of what is kept. */
  get scores() {
    return scoresOf(this.graph, startOf(this.graph, this.state.target), this.kept.edges);
  }

  /** Kept nodes that the search finds, most influential first. */
  matches(query) {
    return matches(this.graph, query, this.kept.nodes);
  }

  select(node) {
    this.set(node === null ? { selected: null } : { selected: node, right: "node" });
  }

  /** The pointer or the keyboard is at a node (null: at none), or at a supernode with `others` too; not in the state. */
  hover(node, others = []) {
    if (node === this.hovered && others.length + this.alsoHovered.length === 0) return;
    this.hovered = node;
    this.alsoHovered = others;
    for (const listener of this.hoverListeners) listener(node);
  }

  onHover(listener) {
    this.hoverListeners.push(listener);
  }

  isPinned(node) {
    return this.state.pins.includes(node);
  }

  pin(nodes, pinned = true) {
    this.set(setPinned(this.state, nodes, pinned));
  }

  makeGroup(nodes, name) {
    this.set(makeGroup(this.state, nodes, name));
  }

  renameGroup(key, name) {
    this.set(renameGroup(this.state, key, name));
  }

  splitGroup(key) {
    this.set(splitGroup(this.state, key));
  }

  moveToGroup(node, key) {
    this.set(moveToGroup(this.state, node, key));
  }

  setLabel(node, text) {
    const key = this.graph.labelKey(node);
    this.set(setLabel(this.state, key, text, this.graph.values.labels[node]));
  }

  /** Tells screen readers. */
  say(text) {
    document.getElementById("said").textContent = text;
  }

  writeHash(state, previous) {
    if (this.reading) return;
    this.address.put(encode(this.graph, state, this.first), LOOKED.some((name) => state[name] !== previous[name]));
  }

  /** After Back or Forward only where one looks changes; after an address put in by hand, everything. */
  readHash() {
    const found = decode(this.graph, location.hash, this.first);
    const all = history.state?.ours !== true;
    this.reading = true;
    this.address.drop();
    this.set(all ? found : Object.fromEntries(LOOKED.map((name) => [name, found[name]])), { undoable: all });
    this.reading = false;
    this.address.write(encode(this.graph, this.state, this.first), false);
  }
}

function firstState(graph) {
  const inGraph = (ids) => ids.map((id) => graph.byId.get(id)).filter((node) => node !== undefined);
  const groups = graph.header.supernodes.map(([name, ...ids], i) => ({ key: `g${i}`, name, nodes: inGraph(ids) }))
    .filter((group) => group.nodes.length > 0);
  const pins = [...new Set([...inGraph(graph.header.pinned), ...groups.flatMap((group) => group.nodes)])];
  return { selected: null, pins, groups, labels: {}, thresholds: limitsOf(graph).first, target: null, path: null,
    query: "", left: "graph", right: "node", drawn: Math.min(DRAWN, graph.edgeCount),
    color: "kind", places: {}, dismissed: [], large: null, edge: null, head: null, cell: null };
}
