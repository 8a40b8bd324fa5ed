// A name edited where it stands: Enter or leaving the field keeps it, Escape does not.

import { element } from "./text.js";

/** Edit the supernode's name or the node's label of `box` in a field over it. */
export function rename(view, box) {
  view.root.querySelector(".rename")?.blur();
  const { app, root } = view;
  const node = box.nodes[0];
  const text = box.group === null ? app.graph.labels[node] : box.group.name;
  const field = element("input", { className: "rename", value: text, spellcheck: false });
  field.setAttribute("aria-label", box.group === null ? "Label of the node" : "Name of the supernode");
  const pane = root.getBoundingClientRect();
  const at = view.byName(box.key).getBoundingClientRect();
  field.style.left = `${Math.max(4, Math.min(at.left - pane.left, pane.width - 214))}px`;
  field.style.top = `${Math.max(4, at.top - pane.top + 16)}px`;
  field.style.width = `${Math.max(210, at.width)}px`;
  const finish = (keep) => {
    if (field.done) return;
    field.done = true; // taking the field away blurs it
    field.remove();
    if (keep && field.value !== text) {
      if (box.group === null) app.setLabel(node, field.value);
      else app.renameGroup(box.key, field.value);
    }
    view.byName(box.key)?.focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") finish(event.key === "Enter");
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  field.addEventListener("blur", () => finish(true));
  root.append(field);
  field.focus();
  field.select();
}
