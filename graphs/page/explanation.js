// Why the target has its value: its strongest paths from tokens as sentences, and how much of it they cover.

import { button } from "./button.js";
import { followNodes, nodeButton } from "./nodebuttons.js";
import { PARTS, partsBar } from "./parts.js";
import { element, isolated, number, percent, shorten, visibleLabel, visibleToken } from "./text.js";

const LABEL = 80; // characters
const OUTPUT = /^Output (.+?) \(p=[^()]*\)(?: minus (.+?) \(p=[^()]*\))?$/s; // how a tracer labels logits
const LOST = { errors: "errors", pruned: "pruned inputs", unexplored: "unexplored features",
  constants: "nodes fed by constants alone" };

export class ExplanationView {
  constructor(app, root) {
    this.app = app;
    this.graph = app.graph;
    this.root = root;
    this.items = []; // {nodes, edges, item, light, pin} of each path shown
    followNodes(app, root);
  }

  render(state, previous) {
    if (previous === null || state.target !== previous.target || state.labels !== previous.labels) this.build(state);
    for (const shown of this.items) this.mark(shown, state);
  }

  build(state) {
    const { graph } = this;
    this.items = [];
    const target = state.target ?? strongestTarget(graph);
    const told = graph.values.paths.find((one) => one.target === target);
    if (told === undefined) {
      this.root.replaceChildren(element("p", { className: "hint" }, this.whyNothing(target)));
      return;
    }
    const all = state.target === null && graph.targets.nodes.length > 1;
    const hint = "All targets are chosen: this is about the strongest. Choose another above.";
    this.root.replaceChildren(this.lead(told), ...(all ? [element("p", { className: "hint" }, hint)] : []),
      ...partsBar(coverRows(told)), ...this.pathList(told), ...this.closing(told));
  }

  whyNothing(target) {
    if (target === null) return "This graph has no target, so there is nothing to explain.";
    const explained = this.graph.values.paths.length;
    if (explained === 0) return "This page was made without paths.";
    return `This page has paths for the ${explained} strongest targets only: choose one of them above.`;
  }

  /** "Tokens carry 43.0% of what decides ...; errors 39.0%, ..." */
  lead(told) {
    const lost = Object.entries(LOST).filter(([name]) => told[name] >= 5e-4)
      .map(([name, text]) => `${text} ${percent(told[name])}`);
    return element("p", { className: "lead" }, `Tokens carry ${percent(told.tokens)} of what decides `,
      nodeButton(this.graph, told.target, targetName(this.graph, told.target)),
      lost.length ? `; ${lost.join(", ")}.` : ".");
  }

  pathList(told) {
    if (told.paths.length === 0) {
      return [element("p", { className: "hint" }, "No path from a token reaches this target in what the page holds: "
        + "all of its input ends at the parts above.")];
    }
    const most = told.paths[0].share;
    let sum = 0;
    const items = told.paths.map((path, i) => {
      sum += path.share;
      return this.pathItem(path, i, told, { most, sum });
    });
    const all = button("Pin all paths", () => this.app.pin(told.paths.flatMap((path) => path.nodes)));
    all.title = "The subgraph then shows the nodes of all these paths";
    const title = told.paths.length === 1 ? "The strongest path" : `The ${told.paths.length} strongest paths`;
    return [element("h3", {}, title, element("small", {}, "share of the target’s input, and of all so far")),
      element("ol", { className: "paths" }, ...items), all];
  }

  pathItem(path, i, told, { most, sum }) {
    const light = button("Light", () => this.toggle(path.nodes));
    light.setAttribute("aria-label", `Light path ${i + 1} in the graph`);
    const pin = button("Pin", () => this.app.pin(path.nodes, !path.nodes.every((node) => this.app.isPinned(node))));
    pin.setAttribute("aria-label", `Pin path ${i + 1}`);
    const bar = element("span", { className: "bar", ariaHidden: "true" }, element("span"));
    bar.firstChild.style.width = `${(100 * path.share) / most}%`;
    const item = element("li", {}, element("div", { className: "said" }, ...this.sentence(path, told)),
      element("div", { className: "foot" }, bar,
        element("b", { title: "share of the target’s input" }, percent(path.share)),
        element("span", { title: "this path and those above it" }, `Σ ${percent(sum)}`), light, pin),
      element("p", { className: "hint gone", hidden: true }, "Pruned at the current thresholds."));
    item.addEventListener("click", (event) => {
      if (!event.target.closest("button") && getSelection().isCollapsed) this.toggle(path.nodes);
    });
    this.items.push({ nodes: path.nodes, edges: edgesOf(this.graph, path.nodes), item, light, pin });
    return item;
  }

  /** Node by node; a position is told where it changes. */
  sentence(path, told) {
    const { graph } = this;
    const { layer, position } = graph.nodes;
    const said = [];
    path.nodes.slice(0, -1).forEach((node, i) => {
      const place = graph.kind[node] === "feature" ? [`layer ${layer[node]}`] : [];
      if (i === 0 || position[node] !== position[path.nodes[i - 1]]) place.push(`position ${position[node]}`);
      const where = place.length ? ` (${place.join(", ")}) ` : " ";
      said.push(nodeButton(graph, node), element("small", {}, where), arrow(path.weights[i]));
    });
    const verb = path.sign < 0 ? ["lowers", "negative"] : ["raises", "positive"];
    return [...said, element("em", { className: verb[1] }, verb[0]), " ", ...targetName(graph, told.target)];
  }

  closing(told) {
    const count = told.paths.length;
    if (count === 0) return [];
    const what = count === 1 ? "This path carries" : `These ${count} paths carry`;
    return [element("p", { className: "closing" }, `${what} ${percent(told.covered)} of the target’s input, `
      + `all paths from tokens ${percent(told.tokens)}.`),
    element("p", { className: "hint" }, "Shares are of whole inputs, over all that this page holds; its sliders do not "
      + "change them. Along a path → raises and ⊣ lowers the next node.")];
  }

  toggle(nodes) {
    this.app.set({ path: same(this.app.state.path, nodes) ? null : nodes });
  }

  /** Follow what is lit, pinned and pruned, in place, so that focus stays. */
  mark({ nodes, edges, item, light, pin }, state) {
    const { kept } = this.app;
    const lit = same(state.path, nodes);
    const pinned = nodes.every((node) => state.pins.includes(node));
    const gone = !nodes.every((node) => kept.nodes[node]) || !edges.every((edge) => edge >= 0 && kept.edges[edge]);
    light.setAttribute("aria-pressed", String(lit));
    light.textContent = lit ? "Lit" : "Light";
    pin.setAttribute("aria-pressed", String(pinned));
    pin.textContent = pinned ? "Pinned" : "Pin";
    item.classList.toggle("lit", lit);
    item.classList.toggle("pruned", gone);
    item.querySelector(".gone").hidden = !gone;
  }
}

function strongestTarget(graph) {
  const { nodes, weights } = graph.targets;
  return nodes.length ? nodes[weights.indexOf(Math.max(...weights))] : null;
}

/** The target's name in a sentence: the token alone, or "A over B" for a contrast; edited labels as they are. */
export function targetName(graph, target) {
  const name = (text) => isolated(shorten(text, LABEL), "name");
  const original = graph.labels[target] === graph.values.labels[target];
  const found = original && graph.kind[target] === "logit" ? OUTPUT.exec(graph.labels[target]) : null;
  if (found) return [name(visibleLabel(found[1])), ...(found[2] ? [" over ", name(visibleLabel(found[2]))] : [])];
  const { target: wanted, versus } = graph.header.settings;
  if (original && graph.targets.nodes.length === 1 && wanted && versus) {
    return [name(visibleToken(String(wanted))), " over ", name(visibleToken(String(versus)))];
  }
  return [name(graph.names[target])];
}

/** The parts of a target's input, tokens split into the listed paths and the others. */
function coverRows(told) {
  const rest = PARTS.slice(1).map(([name, text, meaning]) => [name, text, meaning, told[name] ?? 0]);
  return [["tokens", "paths below", "the paths from tokens that are listed below", told.covered],
    ["others", "other token paths", "all other paths from tokens", Math.max(0, told.tokens - told.covered)], ...rest];
}

/** The edges between neighbours of a path; -1 for one that the page lacks. */
function edgesOf(graph, nodes) {
  const { indptr, indices } = graph.edges;
  return nodes.slice(1).map((target, i) => {
    for (let e = indptr[target]; e < indptr[target + 1]; e++) if (indices[e] === nodes[i]) return e;
    return -1;
  });
}

function arrow(weight) {
  const made = element("span", { className: `arrow ${weight < 0 ? "negative" : "positive"}`,
    title: `direct effect ${number(weight, true)}` }, weight < 0 ? "⊣" : "→");
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", weight < 0 ? "lowers" : "raises");
  return element("span", {}, made, " ");
}

function same(one, two) {
  return one !== null && two !== null && one.length === two.length && one.every((node, i) => node === two[i]);
}
