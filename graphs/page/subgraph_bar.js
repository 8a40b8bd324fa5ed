// The bar above the subgraph: what can be done with what is chosen, with the view, and what to pin first.

import { button } from "./button.js";
import { savePng, saveSvg } from "./picture.js";
import { MEMBER } from "./subgraph_boxes.js";
import { groupName } from "./subgraph_layout.js";
import { element, isolated, shorten } from "./text.js";

const STRONGEST = 15;
const KINDS = ["feature", "error", "embedding"];
const HINT = "Shift-click or Shift-drag chooses several · F2 renames · Delete unpins · arrows move";
const NAME = 40; // characters of a supernode's name in the chooser

/** Kept nodes of some kinds with the largest influence on the chosen target, and the target (of all, the likeliest). */
export function strongestNodes({ graph, kept, influence, state }, kinds = KINDS) {
  const target = state.target ?? graph.targets.nodes[0];
  const nodes = [...graph.kind.keys()].filter((i) => kept.nodes[i] && influence[i] > 0 && kinds.includes(graph.kind[i]))
    .sort((a, b) => influence[b] - influence[a]).slice(0, STRONGEST);
  return target === undefined ? nodes : [...nodes, target];
}

/** The path that is lit in the link view, or else the strongest one to the chosen target; null where there is none. */
export function pathNodes({ graph, state }) {
  if (state.path !== null) return state.path;
  const told = graph.values.paths.find(({ target }) => target === (state.target ?? graph.targets.nodes[0]));
  return told?.paths[0]?.nodes ?? null;
}

/** What a subgraph without pins says and offers. */
export function emptyState(app) {
  const path = pathNodes(app);
  const offers = [["nodes", strongestNodes(app)], ["features", strongestNodes(app, ["feature"])]];
  return [
    element("h3", {}, "Nothing is pinned yet"),
    element("p", {}, "Pin nodes to lay out a small circuit of your own: press P on a selected node, or begin "
      + "with these."),
    element("p", { className: "offers" },
      ...offers.map(([what, nodes]) => button(`Pin the ${STRONGEST} most influential ${what} of this target`,
        () => app.pin(nodes), { disabled: nodes.length === 0 })),
      button(`Pin the ${app.state.path === null ? "strongest" : "lit"} path`, () => app.pin(path),
        { disabled: path === null })),
    element("p", { className: "hint" }, "Then drag boxes, choose several with Shift and make supernodes of them, "
      + "or take over suggested ones under Supernodes."),
  ];
}

export class Actions {
  constructor(view) {
    this.view = view;
    const { app } = view;
    this.chosen = element("div", { className: "chosen" });
    this.chosen.setAttribute("role", "group");
    this.chosen.setAttribute("aria-label", "With what is chosen");
    this.always = element("div", { className: "always" },
      ...[["nodes", KINDS], ["features", ["feature"]]].map(([what, kinds]) => button(`Pin ${STRONGEST} ${what}`,
        () => app.pin(strongestNodes(app, kinds)), { title: `Pin the ${STRONGEST} most influential ${what} of this target` })),
      button("Pin path", () => app.pin(pathNodes(app) ?? []), { title: "Pin the lit path, or else the strongest" }),
      button("−", () => view.zoomBy(1 / 1.3), { title: "Zoom out" }),
      button("+", () => view.zoomBy(1.3), { title: "Zoom in" }),
      button("Fit", () => view.fit(), { title: "Fit to the view" }),
      button("Reset layout", () => view.resetLayout(), { title: "Reset layout: every box goes back to its own place" }),
      button("SVG", () => saveSvg(view), { title: "Save as SVG" }),
      button("PNG", () => savePng(view), { title: "Save as PNG" }));
    this.root = element("div", { className: "actions" }, this.chosen, this.always);
    this.root.setAttribute("role", "toolbar");
    this.root.setAttribute("aria-label", "Subgraph");
  }

  /** Again only where something of it changed: a name that is being typed stays. */
  render() {
    const { chosen, boxes, open, app } = this.view;
    this.root.hidden = boxes.size === 0;
    const shown = JSON.stringify([[...chosen], [...open], app.state.groups, this.hint()]);
    if (shown === this.shown) return;
    this.shown = shown;
    const held = [...this.chosen.querySelectorAll("button")].indexOf(document.activeElement);
    this.chosen.replaceChildren(...this.offers([...chosen]));
    const buttons = this.chosen.querySelectorAll("button");
    if (held >= 0) (buttons[held] ?? buttons[0] ?? this.always.querySelector("button")).focus();
  }

  offers(names) {
    const { view } = this;
    const { app } = view;
    if (names.length === 0) return [element("span", { className: "hint" }, this.hint())];
    const [name] = names;
    const box = names.length === 1 ? view.boxes.get(name) : undefined;
    if (box?.group) {
      return [button("Rename", () => view.rename(name)),
        button(view.open.has(name) ? "Hide members" : "Show members", () => view.toggleOpen(name)),
        button("Split", () => app.splitGroup(name), { title: "Split the supernode: its nodes stay pinned" }),
        button("Unpin", () => app.pin(box.nodes, false), { title: "Unpin all of its nodes" })];
    }
    const takeOut = names.every((one) => one.startsWith(MEMBER))
      ? [button("Take out", () => view.move(view.chosenNodes(), null), { title: "Take out of the supernode" })] : [];
    const label = box ? [button("Edit label", () => view.rename(name))] : [];
    const nodes = view.chosenNodes();
    const make = nodes.length > 1 ? [this.nameField(nodes)] : [];
    return [element("span", {}, `${names.length} chosen`), ...make, ...label, ...takeOut, ...this.groupChoice(nodes),
      button("Unpin", () => app.pin(nodes, false))];
  }

  hint() {
    const { links, drawnLinks } = this.view;
    const [drawn, all] = [drawnLinks.drawn.length, links.length].map((count) => count.toLocaleString("en"));
    return drawn === all ? HINT : `The strongest ${drawn} of ${all} edges · ${HINT}`;
  }

  nameField(nodes) {
    const field = element("input", { placeholder: "name", size: 12, spellcheck: false });
    field.setAttribute("aria-label", "Name of the new supernode");
    const form = element("form", {}, field, element("button", { className: "plain" }, "Make supernode"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const before = new Set(this.view.app.state.groups.map((group) => group.key));
      this.view.app.makeGroup(nodes, field.value);
      const made = this.view.app.state.groups.find((group) => !before.has(group.key));
      if (!made) return;
      this.view.chooseOnly([made.key]);
      this.view.byName(made.key)?.focus();
    });
    return form;
  }

  /** A chooser of supernodes to put the nodes into. */
  groupChoice(nodes) {
    const { view } = this;
    const groups = view.app.state.groups.filter((group) => !nodes.every((node) => group.nodes.includes(node)));
    if (groups.length === 0) return [];
    const choice = element("select", {}, element("option", { value: "" }, "Put into…"),
      ...groups.map((group) => element("option", { value: group.key }, isolated(shorten(groupName(group), NAME)))));
    choice.setAttribute("aria-label", "Put into a supernode");
    choice.addEventListener("change", () => choice.value && view.move(nodes, choice.value));
    return [choice];
  }
}
