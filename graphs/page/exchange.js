// What goes out of the page and comes into it: the graph as JSON with what was changed here, such a file's pins,
// supernodes and labels, and the address of this view.

import { Unusable, readAnnotations } from "./neuronpedia_in.js";
import { graphText, slugOf } from "./neuronpedia_out.js";
import { notice } from "./notice.js";
import { copy, download } from "./outgoing.js";
import { element, shorten, visibleLabel } from "./text.js";

const LARGEST = 200e6; // bytes of a file that is read
const MARGIN = 8; // px between the menu and the edge of the window
const COMMANDS = [
  ["Download JSON", "What is kept at these thresholds, with your labels, pins and supernodes, in Neuronpedia's schema",
    save],
  ["Open annotations…", "Pins, supernodes and labels out of such a file, into this page", open],
  ["Copy link", "The address of this page as it is now: selection, tabs and changes are in it", copyLink],
];

/** The elements to put into the toolbar. */
export function exchangeButtons(app) {
  const menu = element("div", { id: "file-menu", className: "menu", hidden: true });
  menu.setAttribute("role", "menu");
  menu.setAttribute("aria-label", "File");
  const button = element("button", { type: "button", id: "file", title: "Download, open annotations, copy the link" },
    "File ▾");
  button.setAttribute("aria-haspopup", "menu");
  button.setAttribute("aria-controls", menu.id);
  menu.append(...COMMANDS.map(([name, meaning, act]) => {
    const item = element("button", { type: "button" }, name, element("small", {}, meaning));
    item.setAttribute("role", "menuitem");
    item.setAttribute("aria-label", name);
    item.tabIndex = -1;
    item.addEventListener("click", () => {
      toggle(false);
      act(app);
    });
    return item;
  }));
  const toggle = (open) => {
    if (menu.hidden !== open) return;
    if (!open && menu.contains(document.activeElement)) button.focus();
    menu.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
    if (!open) return;
    const room = document.documentElement.clientWidth - button.getBoundingClientRect().left - menu.offsetWidth - MARGIN;
    menu.style.left = `${Math.min(0, room)}px`;
    menu.firstChild.focus();
  };
  button.setAttribute("aria-expanded", "false");
  button.addEventListener("click", () => toggle(menu.hidden));
  menu.addEventListener("keydown", (event) => walk(event, [...menu.children], () => toggle(false)));
  const holder = element("span", { className: "menu-holder" }, button, menu);
  holder.addEventListener("focusout", (event) => {
    if (!holder.contains(event.relatedTarget)) toggle(false);
  });
  window.addEventListener("pointerdown", (event) => {
    if (!holder.contains(event.target)) toggle(false);
  });
  return [holder];
}

function walk(event, items, close) {
  const at = items.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
  if (to !== undefined) items[(to + items.length) % items.length].focus();
  else if (event.key === "Escape") close();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function save(app) {
  download(graphText(app), `${slugOf(app.graph)}.json`, "application/json");
}

function open(app) {
  const input = element("input", { type: "file", accept: ".json,application/json", id: "annotations", hidden: true });
  document.getElementById("annotations")?.remove();
  document.body.append(input);
  input.addEventListener("cancel", () => input.remove());
  input.addEventListener("change", async () => {
    input.remove();
    await apply(app, input.files[0]);
  });
  input.click();
}

/** One step of undo, or one message why nothing was changed. */
async function apply(app, file) {
  const name = shorten(visibleLabel(file.name), 80);
  try {
    if (file.size > LARGEST) throw new Unusable("it is larger than 200 MB: open a pruned graph");
    const found = readAnnotations(app.graph, app.state, await textOf(file));
    const hidden = (found.changes.pins ?? []).filter((node) => !app.kept.nodes[node]).length;
    app.set(found.changes);
    notice(`From ${name}: ${told(found)}${hidden ? `; ${hidden} of these nodes are pruned at these thresholds` : ""}.`);
  } catch (error) {
    if (!(error instanceof Unusable)) throw error;
    notice(`${name} was not opened: ${error.message}.`, { problem: true });
  }
}

async function textOf(file) {
  try {
    return await file.text();
  } catch {
    throw new Unusable("it cannot be read: choose it again");
  }
}

function told({ labels, pins, groups, unknown }) {
  const count = (number, one) => `${number.toLocaleString("en")} ${one}${number === 1 ? "" : "s"}`;
  const ignored = unknown ? `; ${count(unknown, "id")} not in this graph or unclear, left out` : "";
  return `${count(labels, "label")}, ${count(pins, "pin")} and ${count(groups, "supernode")} applied${ignored}`;
}

async function copyLink(app) {
  app.address.flush();
  if (await copy(location.href)) notice("The link is copied.");
  else showLink();
}

function showLink() {
  const field = element("input", { type: "text", readOnly: true, value: location.href });
  const close = element("button", { type: "button", className: "plain" }, "Close");
  const dialog = element("dialog", { className: "link" },
    element("label", {}, "The link to this view; copy it with Ctrl C", field), close);
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  field.select();
}
