// The head of a node's card: its label, which can be edited in place, its pin, and the supernode it is in.

import { groupOf } from "./actions.js";
import { button } from "./button.js";
import { icon } from "./shapes.js";
import { element, isolated, shorten, visibleLabel } from "./text.js";

const LONGEST = 500; // characters of a label or a supernode's name
const OPTION = 60; // characters of a supernode's name in the list
const NEW = "+"; // no key of a supernode: these are g0, g1, ...

/** Name, buttons, and what was edited. `refresh` follows pins and supernodes in place, so that focus stays. */
export class Title {
  constructor(app, node) {
    this.app = app;
    this.node = node;
    this.heading = element("h2", { tabIndex: -1, title: "Double click to edit the label" }, icon(app.graph.kind[node]),
      isolated(app.graph.names[node], "name"));
    this.heading.addEventListener("dblclick", () => this.edit());
    this.pin = button("Pin", () => app.pin([node], !app.isPinned(node)));
    this.group = element("select", { className: "group" });
    this.group.setAttribute("aria-label", "Supernode of this node");
    this.group.addEventListener("change", () => this.chooseGroup());
    this.editButton = button("Edit label", () => this.edit());
    this.editButton.title = "Edit the label (F2, or double click on it)";
    const close = element("button", { type: "button", className: "close", title: "Clear the selection (Escape)" }, "×");
    close.setAttribute("aria-label", "Clear the selection");
    close.addEventListener("click", () => app.select(null));
    this.line = element("div", { className: "title" }, this.heading, close);
    this.tools = element("div", { className: "node-tools" }, this.editButton, this.pin, this.group);
    this.elements = [this.line, ...this.editedNote(), this.tools];
    this.refresh(app.state);
  }

  refresh(state) {
    const pinned = state.pins.includes(this.node);
    this.pin.textContent = pinned ? "Unpin" : "Pin";
    this.pin.title = `${this.pin.textContent} this node (P)`;
    const group = groupOf(state, this.node);
    const options = [["", "no supernode"], ...state.groups.map(({ key, name }) =>
      [key, `in \u2068${shorten(visibleLabel(name), OPTION)}\u2069`]), [NEW, "new supernode…"]];
    this.group.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    this.group.value = group?.key ?? "";
  }

  /** Says that the label was edited, and what it was. */
  editedNote() {
    const { graph, state } = this.app;
    if (state.labels[graph.labelKey(this.node)] === undefined) return [];
    const original = graph.values.labels[this.node];
    return [element("p", { className: "hint edited" }, "✎ edited; original: ",
      original.trim() === "" ? "none" : isolated(shorten(visibleLabel(original), LONGEST)))];
  }

  /** The label becomes an input: Enter saves, Escape leaves it as it was. */
  edit() {
    if (!this.heading.isConnected) return;
    const { app, node } = this;
    const label = app.graph.labels[node];
    const input = element("input", { value: label, maxLength: LONGEST, spellcheck: false });
    const before = input.value;
    input.setAttribute("aria-label", "Label");
    const hint = element("small", {}, holdsFor(app.graph, node),
      " Enter saves, Escape cancels; empty: the original again.");
    const form = element("form", { className: "edit" }, input, hint);
    const done = () => {
      form.replaceWith(this.heading);
      this.editButton.focus();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      done();
      if (input.value !== before) app.setLabel(node, input.value);
    });
    cancelOnEscape(input, done);
    this.heading.replaceWith(form);
    input.select();
    input.focus();
  }

  chooseGroup() {
    const { app, node } = this;
    if (this.group.value !== NEW) return app.moveToGroup(node, this.group.value || null);
    const input = element("input", { placeholder: "name, then Enter", maxLength: LONGEST });
    input.setAttribute("aria-label", "Name of the new supernode");
    const form = element("form", {}, input);
    const done = () => {
      form.replaceWith(this.group);
      this.refresh(app.state);
      this.group.focus();
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      app.makeGroup([node], input.value);
      done();
    });
    cancelOnEscape(input, done);
    this.group.replaceWith(form);
    input.focus();
  }
}

function holdsFor(graph, node) {
  if (graph.kind[node] !== "feature") return "";
  const key = graph.labelKey(node);
  let count = 0;
  for (let i = 0; i < graph.size; i++) if (graph.kind[i] === "feature" && graph.labelKey(i) === key) count++;
  return `Holds for feature ${key} everywhere (${count} node${count === 1 ? "" : "s"} here).`;
}

function cancelOnEscape(input, done) {
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation(); // it would clear the selection
    event.preventDefault();
    done();
  });
}
