// The panel "Supernodes": one's own, and those that were suggested, to accept, edit or dismiss.

import { button } from "./button.js";
import { icon } from "./shapes.js";
import { groupName } from "./subgraph_layout.js";
import { element, isolated, number, shorten, visibleLabel } from "./text.js";

const SHOWS = ["pins", "groups", "labels", "thresholds", "target", "dismissed"]; // a change of these redraws the panel
const LABEL = 200; // characters of a member's label
const OPEN = 12; // members of a suggestion before the rest is folded

export class GroupsView {
  constructor(app, root) {
    this.app = app;
    this.root = root;
    this.edits = new Map(); // of suggestions being edited: {name, nodes} by index
    for (const type of ["pointerover", "focusin"]) root.addEventListener(type, (event) => this.point(event.target));
    for (const type of ["pointerleave", "focusout"]) root.addEventListener(type, () => app.hover(null));
  }

  render(state, previous) {
    if (previous !== null && SHOWS.every((name) => state[name] === previous[name])) return;
    this.draw();
  }

  draw() {
    const { root } = this;
    const held = root.contains(document.activeElement) ? document.activeElement.dataset.at : undefined;
    const top = root.scrollTop;
    root.replaceChildren(...this.ownSection(), ...this.suggestionSection());
    root.scrollTop = top;
    if (held !== undefined) [...root.querySelectorAll("[data-at]")].find((made) => made.dataset.at === held)?.focus();
  }

  /** Rings in the other views the node, or all nodes, of what is pointed at. */
  point(target) {
    const nodes = (target.closest("[data-nodes]")?.dataset.nodes ?? "").split(" ").filter(Boolean).map(Number);
    this.app.hover(nodes[0] ?? null, nodes.slice(1));
  }

  ownSection() {
    const { groups } = this.app.state;
    return [
      element("h3", {}, `My supernodes (${groups.length})`),
      ...(groups.length === 0 ? [element("p", { className: "hint" },
        "None yet: choose several boxes in the subgraph with Shift, or accept a suggestion.")] : []),
      ...groups.map((group) => this.ownGroup(group)),
    ];
  }

  ownGroup(group) {
    const { app } = this;
    const name = field(group.name, "Name of the supernode", `name ${group.key}`);
    name.addEventListener("change", () => {
      app.renameGroup(group.key, name.value);
      name.value = app.state.groups.find(({ key }) => key === group.key)?.name ?? group.name;
    });
    name.addEventListener("keydown", (event) => {
      if (event.key === "Escape") name.value = group.name;
      if (event.key !== "Escape" && event.key !== "Enter") return;
      event.stopPropagation();
      name.blur();
    });
    const influence = group.nodes.reduce((sum, node) => sum + (app.influence[node] || 0), 0);
    const card = element("section", { className: "group" },
      element("div", { className: "title" }, name,
        keeping("Split", () => app.splitGroup(group.key), `split ${group.key}`, "The nodes stay pinned"),
        keeping("Unpin", () => app.pin(group.nodes, false), `unpin ${group.key}`, "Unpin all of its nodes")),
      element("p", { className: "hint" }, `${count(group.nodes.length)}, influence ${number(influence)}`),
      element("ul", {}, ...group.nodes.map((node) => this.member(node,
        keeping("Take out", () => app.moveToGroup(node, null), `out ${node}`, "It stays pinned")))));
    card.dataset.nodes = group.nodes.join(" ");
    card.dataset.group = group.key;
    card.setAttribute("aria-label", `Supernode ${shorten(groupName(group), LABEL)}`);
    return card;
  }

  /** A row of one node: `before` it a check box or nothing, behind it what can be done with it. */
  member(node, behind, before = null) {
    const { graph, kept } = this.app;
    const at = `node ${node} ${(behind ?? before)?.dataset.at ?? ""}`;
    const name = keeping("", () => this.app.select(node), at);
    name.replaceChildren(icon(graph.kind[node]), isolated(shorten(graph.names[node], LABEL), "name"),
      element("small", {}, graph.place(node)),
      ...(kept.nodes[node] ? [] : [element("small", { className: "note" }, "pruned now")]));
    name.className = "member";
    const row = element("li", { className: kept.nodes[node] ? "" : "gone" }, ...(before ? [before] : []), name,
      ...(behind ? [behind] : []));
    row.dataset.nodes = node;
    return row;
  }

  suggestionSection() {
    const { app } = this;
    const { suggestions } = app.graph.values;
    const { dismissed, groups } = app.state;
    const all = suggestions.map((suggestion, index) => ({ ...suggestion, index,
      kept: suggestion.nodes.filter((node) => app.kept.nodes[node]) }));
    const within = ({ kept }) => kept.length > 0
      && groups.find((group) => kept.every((node) => group.nodes.includes(node)));
    const open = all.filter((one) => !dismissed.includes(one.index) && !within(one));
    const accepted = all.filter((one) => !dismissed.includes(one.index) && within(one));
    const away = all.filter((one) => dismissed.includes(one.index));
    return [
      element("h3", {}, `Suggestions (${open.length})`),
      ...(all.length === 0 ? [element("p", { className: "hint" }, "This graph came without suggestions.")] : []),
      ...open.map((one) => this.suggestion(one)),
      ...(accepted.length === 0 ? [] : [element("h3", {}, `Accepted (${accepted.length})`),
        element("ul", {}, ...accepted.map((one) => element("li", {}, "✓ ", isolated(shown(one)), " is in ",
          isolated(shorten(groupName(within(one)), LABEL)))))]),
      ...(away.length === 0 ? [] : [element("h3", {}, `Dismissed (${away.length})`),
        element("ul", {}, ...away.map((one) => element("li", { className: "away" }, isolated(shown(one)),
          keeping("Bring back", () => app.set({ dismissed: dismissed.filter((index) => index !== one.index) }),
            `back ${one.index}`))))]),
    ];
  }

  suggestion(one) {
    const edit = this.edits.get(one.index);
    const chosen = edit ? one.kept.filter((node) => !edit.without.has(node)) : one.kept;
    const name = edit ? field(edit.name, "Name of the supernode", `edit ${one.index}`) : isolated(shown(one), "name");
    if (edit) name.addEventListener("input", () => (edit.name = name.value));
    const card = element("section", { className: "group suggestion" },
      element("div", { className: "title" }, edit ? name : element("strong", {}, name)),
      element("p", { className: "reason" }, isolated(visibleLabel(one.reason ?? ""))),
      element("p", { className: "hint" }, this.measures(one)),
      this.members(one, edit), this.suggestionButtons(one, edit, chosen));
    card.dataset.nodes = one.kept.join(" ");
    card.dataset.suggestion = one.index;
    card.setAttribute("aria-label", `Suggested supernode ${shown(one)}`);
    return card;
  }

  measures(one) {
    const { influence } = this.app;
    const sum = one.kept.reduce((total, node) => total + (influence[node] || 0), 0);
    const pruned = one.nodes.length - one.kept.length;
    return [count(one.kept.length), pruned > 0 && `${pruned} more pruned now`, `influence ${number(sum)}`,
      Number.isFinite(one.cohesion) && `cohesion ${one.cohesion.toFixed(2)}`,
      Number.isFinite(one.separation) && `separation ${one.separation.toFixed(2)}`].filter(Boolean).join(", ");
  }

  members(one, edit) {
    const rows = one.nodes.map((node) => this.member(node, null, edit ? this.check(one, edit, node) : null));
    if (edit || rows.length <= OPEN) return element("ul", {}, ...rows);
    return element("div", {}, element("ul", {}, ...rows.slice(0, OPEN)),
      element("details", {}, element("summary", {}, `${rows.length - OPEN} more`),
        element("ul", {}, ...rows.slice(OPEN))));
  }

  check(one, edit, node) {
    const isKept = one.kept.includes(node);
    const box = element("input", { type: "checkbox", checked: isKept && !edit.without.has(node), disabled: !isKept });
    box.dataset.at = `check ${one.index} ${node}`;
    const { graph } = this.app;
    box.setAttribute("aria-label", `Take ${shorten(graph.names[node], LABEL)} at ${graph.place(node)}`);
    box.addEventListener("change", () => {
      if (box.checked) edit.without.delete(node);
      else edit.without.add(node);
      this.draw();
    });
    return box;
  }

  suggestionButtons(one, edit, chosen) {
    const { app } = this;
    const accept = keeping("Accept", () => {
      this.edits.delete(one.index);
      app.makeGroup(chosen, edit ? edit.name : one.name);
    }, `accept ${one.index}`, edit ? "Make a supernode of the checked nodes" : "Make a supernode of these nodes");
    accept.disabled = chosen.length === 0;
    const change = (toggle) => {
      toggle();
      this.draw();
    };
    const others = edit ? [keeping("Cancel", () => change(() => this.edits.delete(one.index)), `change ${one.index}`)]
      : [keeping("Edit", () => change(() => this.edits.set(one.index, { name: one.name, without: new Set() })),
        `change ${one.index}`, "Change its name or its members first"),
      keeping("Dismiss", () => app.set({ dismissed: [...app.state.dismissed, one.index] }), `dismiss ${one.index}`)];
    return element("p", { className: "buttons" }, accept, ...others);
  }
}

function shown(suggestion) {
  return shorten(visibleLabel(suggestion.name), LABEL);
}

function count(nodes) {
  return `${nodes} ${nodes === 1 ? "node" : "nodes"}`;
}

function field(value, label, at) {
  const made = element("input", { value, spellcheck: false });
  made.dataset.at = at; // what has the keyboard, so that it keeps it when the panel is drawn again
  made.setAttribute("aria-label", label);
  return made;
}

/** A button that keeps the keyboard when the panel is drawn again. */
function keeping(text, pressed, at, title = "") {
  const made = button(text, pressed);
  made.title = title;
  made.dataset.at = at;
  return made;
}
