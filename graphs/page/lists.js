// Lists of nodes in the side panel, and the sections that hold them: these fold, and stay as they were left.

import { openButton } from "./edgebuttons.js";
import { fillLater } from "./later.js";
import { icon, KIND_NAMES } from "./shapes.js";
import { element, isolated, shorten } from "./text.js";

const AT_ONCE = 16; // rows of a list that are there at once; the next come when these have been painted
const AT_FIRST = 100; // rows of a list before a button asks for the rest
const LABEL = 300; // characters of a label where it is one of many

/** Sections whose heads were clicked open or shut, by key, for as long as the page is open. */
export class Folds {
  constructor() {
    this.shut = new Set();
  }

  /** A foldable section; `note` stands small beside its title. */
  section(key, title, note, ...children) {
    const made = element("details", { className: `section of-${key}`, open: !this.shut.has(key) },
      element("summary", {}, element("h3", {}, title), ...(note ? [element("small", {}, note)] : [])), ...children);
    const keep = (open) => this.shut[open ? "delete" : "add"](key);
    made.firstChild.addEventListener("click", () => keep(!made.open)); // at once: "toggle" comes later than a next node may
    made.addEventListener("toggle", () => keep(made.open));
    return made;
  }
}

/**
 * A list of nodes, rows of {node, cells, weight, share, why, edge}: `cells()` are texts or elements beside the name,
 * `why()` a line below it; `weight` and `share` tint the row; an `edge` has a button of its own. `heads` name the
 * columns, each [text, meaning].
 */
export function nodeList(graph, name, heads, rows) {
  if (rows.length === 0) return [element("p", { className: "hint" }, "None in this graph.")];
  const head = element("div", { className: `row heads ${name}`, hidden: heads.length === 0 }, element("span"),
    ...heads.map(([text, title]) => element("span", { title: title ?? "" }, text)));
  const list = element("ol", { className: `nodes ${name}` },
    ...rows.slice(0, AT_ONCE).map((row) => nodeRow(graph, row)));
  if (rows.length > AT_ONCE) fillLater(list, () => moreRows(graph, list, rows));
  list.addEventListener("keydown", walkRows);
  return [head, list];
}

function moreRows(graph, list, rows) {
  const more = rows.slice(AT_ONCE, AT_FIRST).map((row) => nodeRow(graph, row));
  return rows.length > AT_FIRST ? [...more, restButton(graph, list, rows)] : more;
}

function restButton(graph, list, rows) {
  const all = element("button", { type: "button", className: "all plain" }, `Show all ${rows.length}`);
  const last = element("li", {}, all);
  all.addEventListener("click", () => {
    last.replaceWith(...rows.slice(AT_FIRST).map((row) => nodeRow(graph, row)));
    list.children[AT_FIRST].querySelector("button").focus();
  });
  return last;
}

/** Arrow keys go from row to row. */
function walkRows(event) {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const next = step && event.target.closest("li")?.[step]?.querySelector("button");
  if (!next) return;
  next.focus();
  event.preventDefault();
}

function nodeRow(graph, { node, cells, weight, share, why, edge }) {
  const text = shorten(graph.names[node], LABEL);
  const title = `${KIND_NAMES[graph.kind[node]]}: ${text}`;
  const button = element("button", { type: "button", className: "row", title },
    icon(graph.kind[node]), isolated(text, "name"), element("span", { className: "place" }, graph.place(node)),
    ...cells().map((cell) => (typeof cell === "string" ? element("span", {}, cell) : cell)));
  button.dataset.node = node;
  if (why) button.append(element("small", { className: "why" }, isolated(shorten(why(), LABEL))));
  if (weight !== undefined) {
    button.classList.add(weight < 0 ? "negative" : "positive");
    button.style.setProperty("--share", String(Number.isNaN(share) ? 0 : Math.min(1, share)));
  }
  return element("li", {}, button, ...(edge === undefined ? [] : [openButton(edge)]));
}
