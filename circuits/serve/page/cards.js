// One card per graph. What comes from files is foreign: it goes in by textContent, inside <bdi>.

import { element, isolated, number, percent, shorten, visibleLabel } from "./text.js";

const SCORES = [["replacement", "Replacement", "influence of tokens over that of tokens and errors; 1 is perfect"],
  ["completeness", "Completeness", "1 minus the share of inputs that come from errors; 1 is perfect"]];

/** The address of a graph's page, its picture or its file. */
export function address(graph, part = "") {
  return `/graphs/${encodeURIComponent(graph.name)}${part}`;
}

/** A card; `actions` = { remove(graph), choose(graph, chosen) }, `chosen` whether it is ticked for comparing. */
export function card(graph, chosen, actions) {
  const item = element("li", { className: graph.error === null ? "card" : "card damaged" });
  item.dataset.name = graph.name;
  const id = `card-${hash(graph.name)}`;
  item.append(picture(graph), title(graph, id));
  if (graph.error !== null) item.append(element("p", { className: "problem" }, isolated(visibleLabel(graph.error))));
  else item.append(target(graph), facts(graph));
  item.append(buttons(graph, chosen, actions, id));
  return item;
}

/** Whether every word of the search is somewhere in what the card shows. */
export function matches(graph, search) {
  const text = [graph.prompt, graph.target, graph.model, graph.transcoders, graph.name, graph.error ?? ""].join("\n")
    .toLowerCase();
  return search.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/** Compares two graphs for a sort order; those without the value come last. */
export function order(name) {
  const value = { created: (graph) => Date.parse(graph.created) || null, nodes: (graph) => graph.nodes || null,
    replacement: (graph) => graph.scores.replacement ?? null,
    completeness: (graph) => graph.scores.completeness ?? null }[name];
  if (value) return (a, b) => (value(b) ?? -Infinity) - (value(a) ?? -Infinity) || 0;
  if (name === "prompt") return (a, b) => (a.prompt || "\uffff").localeCompare(b.prompt || "\uffff");
  return (a, b) => Date.parse(b.modified) - Date.parse(a.modified);
}

function picture(graph) {
  const box = element("div", { className: "picture" });
  if (graph.thumbnail) {
    const image = element("img", { loading: "lazy", alt: "", width: 320, height: 168 });
    image.src = address(graph, "/thumbnail.svg");
    box.append(image);
  } else {
    box.append(element("p", { className: "hint" }, isolated(graph.too_large ?? "no picture: the file is damaged")));
  }
  return box;
}

function title(graph, id) {
  const shown = graph.prompt === "" ? graph.name : graph.prompt;
  const name = isolated(visibleLabel(shorten(shown, 300)));
  const inside = graph.page ? element("a", { href: address(graph) }, name) : name;
  return element("h3", { id }, inside);
}

function target(graph) {
  const line = element("p", { className: "target" }, isolated(visibleLabel(shorten(graph.target || "no target", 120))));
  if (graph.targets > 1) line.append(element("small", {}, ` and ${graph.targets - 1} more`));
  return line;
}

function facts(graph) {
  const list = element("dl", { className: "facts" });
  const add = (name, value, title = "") => list.append(element("div", { title }, element("dt", {}, name),
    element("dd", {}, value)));
  for (const [key, name, meaning] of SCORES) {
    const score = graph.scores[key];
    if (score !== undefined && score !== null) add(name, score.toFixed(2), meaning);
  }
  if (graph.unexplored !== null) add("Unexplored", percent(graph.unexplored), "influence that was not followed");
  add("Nodes", graph.nodes.toLocaleString("en"));
  add("Edges", graph.edges.toLocaleString("en"));
  if (graph.pinned) add("Pinned", String(graph.pinned));
  if (graph.supernodes) add("Supernodes", String(graph.supernodes));
  add("Model", isolated(visibleLabel(shorten(graph.model || "unknown", 60))));
  add("Transcoders", isolated(visibleLabel(shorten(graph.transcoders || "unknown", 80))));
  add("Created", when(graph.created || graph.modified));
  add("File", isolated(`${visibleLabel(graph.name)}, ${size(graph.bytes)}`));
  return list;
}

function buttons(graph, chosen, actions, id) {
  const row = element("p", { className: "buttons" });
  const named = (made) => { made.setAttribute("aria-describedby", id); return made; };
  if (graph.page) {
    row.append(named(element("a", { className: "button", href: address(graph) }, "Open")));
    const box = named(element("input", { type: "checkbox", checked: chosen }));
    box.addEventListener("change", () => actions.choose(graph, box.checked));
    row.append(element("label", { className: "check" }, box, " Compare"));
  }
  if (graph.etag === "") return row; // a name that the server does not take: nothing can be done from here
  const file = `/api/graphs/${encodeURIComponent(graph.name)}/file`;
  row.append(named(element("a", { className: "button quiet", href: file, download: graph.name }, "Download")));
  const remove = named(element("button", { type: "button", className: "quiet" }, "Delete"));
  remove.addEventListener("click", () => actions.remove(graph));
  row.append(remove);
  return row;
}

function when(text) {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return "unknown";
  return time.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

function size(bytes) {
  if (bytes < 1e6) return `${number(Math.max(bytes / 1e3, 0.1))} kB`;
  return `${number(bytes / 1e6)} MB`;
}

/** An id for the document: names may hold spaces. */
function hash(text) {
  let value = 5381;
  for (const character of text) value = (value * 33 + character.codePointAt(0)) % 4294967296;
  return value.toString(36);
}
