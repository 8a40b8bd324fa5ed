// All kept nodes and edges as a real table: sorted by any column, filtered by the search, copied or downloaded.

import { edgeColumns, nodeColumns, ordered } from "./columns.js";
import { delimited } from "./delimited.js";
import { copy, download } from "./outgoing.js";
import { icon, KIND_NAMES } from "./shapes.js";
import { element, isolated } from "./text.js";

const PAGE = 100; // rows: twice as many take over 100 ms to lay out where the machine is busy
const FIRST_SORT = { nodes: { name: "influence", descending: true }, edges: { name: "share", descending: true } };
const NEEDED = ["thresholds", "labels", "query", "target", "pins"]; // fields of the state that change the rows

export class TableView {
  constructor(app, root) {
    this.app = app;
    this.mode = "nodes";
    this.sort = { ...FIRST_SORT };
    this.page = 0;
    this.onlySelected = false;
    this.make(root);
    this.listen();
  }

  render(state, previous) {
    const changed = previous === null || NEEDED.some((name) => state[name] !== previous[name]);
    if (changed || (this.mode === "edges" && this.onlySelected && state.selected !== previous.selected)) this.refresh();
    else if (state.selected !== previous.selected) this.mark();
  }

  /** Rows anew: after a change of what is kept, found or chosen. */
  refresh() {
    const { app, mode } = this;
    this.columns = mode === "nodes" ? nodeColumns(app) : edgeColumns(app);
    this.shownColumns = this.columns.filter((column) => !column.exportOnly);
    this.unordered = mode === "nodes" ? this.keptNodes() : this.keptEdges();
    for (const [key, button] of Object.entries(this.modes)) button.setAttribute("aria-pressed", String(key === mode));
    this.only.parentElement.hidden = mode === "nodes";
    this.said.textContent = "";
    this.table.setAttribute("aria-label", mode === "nodes" ? "Nodes" : "Edges");
    this.arrange();
  }

  /** The same rows in the chosen order, from the first page on. */
  arrange() {
    const { name, descending } = this.sort[this.mode];
    this.rows = ordered(this.unordered, this.columns.find((column) => column.name === name).key, descending);
    this.showHeads();
    this.show(0);
  }

  keptNodes() {
    const { app } = this;
    if (app.state.query) return app.matches(app.state.query);
    return [...app.kept.nodes.keys()].filter((i) => app.kept.nodes[i]);
  }

  /** Kept edges; with a search those that have a node it finds at one end. */
  keptEdges() {
    const { app } = this;
    const { graph, state, kept } = app;
    const { indices } = graph.edges;
    const found = state.query ? new Set(app.matches(state.query)) : null;
    const only = this.onlySelected && state.selected !== null ? state.selected : null;
    const rows = [];
    for (let e = 0; e < graph.edgeCount; e++) {
      const target = graph.target[e];
      if (kept.edges[e] && (only === null || indices[e] === only || target === only)
        && (found === null || found.has(indices[e]) || found.has(target))) rows.push(e);
    }
    return rows;
  }

  show(page) {
    const last = Math.max(0, Math.ceil(this.rows.length / PAGE) - 1);
    this.page = Math.min(Math.max(0, page), last);
    const start = this.page * PAGE;
    const shown = this.rows.subarray(start, start + PAGE);
    const make = this.mode === "nodes" ? (row) => this.nodeRow(row) : (row) => this.edgeRow(row);
    this.body.replaceChildren(...Array.from(shown, make));
    if (shown.length === 0) {
      this.body.append(element("tr", {}, element("td", { colSpan: this.shownColumns.length }, this.app.state.query
        ? "The search finds nothing among what is kept." : "Nothing is kept.")));
    }
    const buttons = this.body.querySelectorAll("button");
    buttons.forEach((button, i) => (button.tabIndex = i === 0 ? 0 : -1));
    const count = (value) => value.toLocaleString("en");
    this.where.textContent = shown.length === 0 ? "0 rows"
      : `${count(start + 1)}–${count(start + shown.length)} of ${count(this.rows.length)}`;
    this.pager.first.disabled = this.pager.before.disabled = this.page === 0;
    this.pager.after.disabled = this.pager.last.disabled = this.page === last;
    this.scroll.scrollTop = 0;
    this.mark();
  }

  nodeRow(node) {
    const { graph } = this.app;
    const row = element("tr", {}, ...this.shownColumns.map((column) => (column.name === "label"
      ? this.nodeCell(node, column.text(node)) : cell(column, node))));
    row.dataset.node = node;
    row.children[1].prepend(icon(graph.kind[node]), " ");
    return row;
  }

  edgeRow(edge) {
    const row = element("tr", {}, ...this.shownColumns.map((column) => (column.node
      ? this.nodeCell(column.node(edge), column.text(edge)) : cell(column, edge))));
    row.dataset.node = this.app.graph.target[edge];
    row.classList.add(this.app.graph.edges.weights[edge] < 0 ? "negative" : "positive");
    return row;
  }

  nodeCell(node, text) {
    const { graph } = this.app;
    const kind = KIND_NAMES[graph.kind[node]];
    const button = element("button", { type: "button", title: `${kind}: ${text}` },
      ...(this.mode === "edges" ? [icon(graph.kind[node])] : []), isolated(text));
    button.dataset.node = node;
    return element("td", { className: "label" }, button);
  }

  showHeads() {
    const { name: by, descending } = this.sort[this.mode];
    const focused = this.head.contains(document.activeElement) ? document.activeElement.dataset.column : null;
    this.head.replaceChildren(...this.shownColumns.map(({ name, numeric, meaning }) => {
      const sign = name !== by ? "" : descending ? "▼" : "▲";
      const title = `Sort by ${name}${meaning ? `: ${meaning}` : ""}`;
      const button = element("button", { type: "button", title }, name,
        element("span", { ariaHidden: "true", className: "arrow" }, sign));
      button.dataset.column = name;
      const head = element("th", { scope: "col", className: numeric ? "numeric" : "" }, button);
      head.setAttribute("aria-sort", name !== by ? "none" : descending ? "descending" : "ascending");
      return head;
    }));
    if (focused !== null) this.head.querySelector(`[data-column="${focused}"]`)?.focus();
  }

  sortBy(name) {
    const { name: by, descending } = this.sort[this.mode];
    const numeric = this.columns.find((column) => column.name === name).numeric;
    this.sort = { ...this.sort, [this.mode]: { name, descending: name === by ? !descending : numeric } };
    this.arrange();
  }

  /** The rows of the selected node, and nothing else, are marked. */
  mark() {
    const { selected } = this.app.state;
    for (const button of this.body.querySelectorAll("button")) {
      const on = Number(button.dataset.node) === selected;
      button.closest("td").classList.toggle("selected", on);
      if (on) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
      if (this.mode === "nodes") button.closest("tr").classList.toggle("selected", on);
    }
    this.only.disabled = selected === null && !this.onlySelected;
  }

  /** All rows, not only those of this page, with full numbers. */
  exported() {
    const rows = Array.from(this.rows, (row) => this.columns.map((column) => column.raw(row)));
    return [this.columns.map((column) => column.name), ...rows];
  }

  make(root) {
    const button = (text, title, pressed) => {
      const made = element("button", { type: "button", className: "plain", title }, text);
      made.addEventListener("click", pressed);
      return made;
    };
    const turn = (text, name, page) => {
      const made = button(text, name, () => this.show(page()));
      made.setAttribute("aria-label", name);
      return made;
    };
    const mode = (text, name) => button(text, `Show all kept ${name}`, () => {
      this.mode = name;
      this.refresh();
    });
    this.modes = { nodes: mode("Nodes", "nodes"), edges: mode("Edges", "edges") };
    this.only = element("input", { type: "checkbox" });
    this.pager = { first: turn("«", "First page", () => 0), before: turn("‹", "Previous page", () => this.page - 1),
      after: turn("›", "Next page", () => this.page + 1), last: turn("»", "Last page", () => Infinity) };
    this.where = element("span", { className: "where" });
    this.where.setAttribute("role", "status");
    this.said = element("span", { className: "hint" });
    this.said.setAttribute("role", "status");
    const { first, before, after, last } = this.pager;
    const bar = element("div", { className: "table-bar" },
      element("span", { className: "buttons" }, this.modes.nodes, this.modes.edges),
      element("label", {}, this.only, " of the selected node only"),
      element("span", { className: "buttons" }, first, before, this.where, after, last),
      element("span", { className: "buttons" },
        button("Copy", "Copy all rows as tab-separated text", () => this.copyRows()),
        button("CSV", "Download all rows as CSV", () => this.downloadRows())), this.said);
    this.head = element("tr");
    this.body = element("tbody");
    this.table = element("table", {}, element("thead", {}, this.head), this.body);
    this.scroll = element("div", { className: "table-rows" }, this.table);
    root.append(bar, this.scroll);
  }

  async copyRows() {
    const done = await copy(delimited(this.exported(), "\t"));
    this.said.textContent = done ? `Copied ${this.rows.length.toLocaleString("en")} rows`
      : "The browser did not allow copying: use CSV";
  }

  downloadRows() {
    download(delimited(this.exported(), ","), `${this.mode}.csv`, "text/csv");
  }

  listen() {
    const { app } = this;
    const nodeOf = (target) => {
      const at = target.closest("[data-node]");
      return at ? Number(at.dataset.node) : null;
    };
    this.only.addEventListener("change", () => {
      this.onlySelected = this.only.checked;
      this.refresh();
    });
    this.head.addEventListener("click", (event) => {
      const column = event.target.closest("button")?.dataset.column;
      if (column) this.sortBy(column);
    });
    this.body.addEventListener("click", (event) => {
      const node = nodeOf(event.target);
      if (node !== null) app.select(node);
    });
    const point = (event) => app.hover(nodeOf(event.target));
    for (const type of ["pointerover", "focusin"]) this.body.addEventListener(type, point);
    for (const type of ["pointerleave", "focusout"]) this.body.addEventListener(type, () => app.hover(null));
    this.body.addEventListener("keydown", (event) => this.walk(event));
  }

  /** Arrow keys go from name to name; past the last row of a page to the next page. */
  walk(event) {
    const across = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0;
    if (!event.target.matches("button[data-node]") || (!across && !step)) return;
    const perRow = this.mode === "edges" ? 2 : 1;
    const buttons = [...this.body.querySelectorAll("button")];
    const at = buttons.indexOf(event.target);
    let next = buttons[at + (across ?? step * perRow)];
    if (!next && step && this.page + step >= 0 && (this.page + step) * PAGE < this.rows.length) {
      this.show(this.page + step);
      const other = this.body.querySelectorAll("button");
      next = other[step > 0 ? at % perRow : other.length - perRow + (at % perRow)];
    }
    for (const button of buttons) button.tabIndex = -1;
    (next ?? event.target).tabIndex = 0;
    next?.focus();
    event.preventDefault();
  }
}

function cell(column, row) {
  const made = element("td", { className: column.numeric ? "numeric" : column.name.replaceAll(" ", "-") });
  made.append(column.numeric ? column.text(row) : isolated(column.text(row)));
  return made;
}
