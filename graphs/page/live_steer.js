// The panel "Steer": nodes and supernodes times a multiplier, and what the server's model makes of them.

import { button } from "./button.js";
import { Refused, request } from "./live_request.js";
import { effects } from "./live_steered.js";
import { followNodes, nodeButton } from "./nodebuttons.js";
import { groupName } from "./subgraph_layout.js";
import { element, isolated, shorten, visibleLabel } from "./text.js";

const STEERED = new Set(["feature", "error", "embedding"]); // kinds that the server can change
const SHOWS = ["selected", "pins", "groups", "labels"]; // a change of these redraws the rows
const SLIDER = { min: "-5", max: "5", step: "0.5" };
const MOST = 100; // of a multiplier, and other limits of the server
const LONGEST = 200;
const LABEL = 60; // characters

export class SteerView {
  /** `address`: of this graph's steering on the server. */
  constructor(app, root, address) {
    this.app = app;
    this.root = root;
    this.address = address;
    this.rows = []; // {key, node} or {key, group: key of a supernode}, and multiplier
    this.running = null; // AbortController of the request that is under way
    this.shown = null; // the request whose answer is shown, as text
    followNodes(app, root);
  }

  render(state, previous) {
    if (previous === null) this.build();
    if (previous !== null && SHOWS.every((name) => state[name] === previous[name])) return;
    this.rows = this.rows.filter((row) => row.node !== undefined || this.groupOf(row) !== undefined);
    this.draw();
  }

  build() {
    const field = (label, input) => element("label", {}, label, input);
    const numeric = (value, limits) => element("input", { type: "number", value, required: true, ...limits });
    this.bar = element("div", { className: "steer-add" });
    this.list = element("ol", { className: "steer-rows" });
    this.fields = { generate: numeric("20", { min: "0", max: String(LONGEST), step: "1" }),
      temperature: numeric("0", { min: "0", max: "100", step: "any" }),
      seed: numeric("0", { min: "0", max: String(Number.MAX_SAFE_INTEGER), step: "1" }) };
    const { generate, temperature, seed } = this.fields;
    this.go = element("button", { type: "submit", className: "plain", id: "steer-run" }, "Run");
    this.stop = button("Stop", () => this.running?.abort(), { hidden: true });
    this.said = element("p", { className: "steer-said" });
    this.said.setAttribute("role", "status");
    this.found = element("div", { className: "steered" });
    const form = element("form", {}, this.list, element("div", { className: "steer-text" },
      field("Continue by (tokens) ", generate), field("temperature ", temperature), field("seed ", seed)),
    element("div", { className: "buttons" }, this.go, this.stop), this.said);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running === null && this.rows.length > 0) this.run();
    });
    form.addEventListener("input", () => this.mark());
    this.root.replaceChildren(element("p", { className: "hint" }, "Multiply nodes and see whether the model moves as the "
      + "graph predicts: 0 switches a node off, −1 turns it round, 1 holds it at its value whatever else changes."),
    this.bar, form, this.found);
  }

  draw() {
    const held = this.root.contains(document.activeElement) ? document.activeElement.dataset.at : undefined;
    this.bar.replaceChildren(...this.offers());
    this.list.replaceChildren(...this.rows.map((row) => this.row(row)));
    this.go.disabled = this.rows.length === 0;
    this.mark();
    if (held !== undefined) [...this.root.querySelectorAll("[data-at]")].find((made) => made.dataset.at === held)?.focus();
  }

  /** What can be added: the selected node, the pinned ones, and the supernodes. */
  offers() {
    const { state } = this.app;
    const selected = state.selected === null ? [] : this.free([state.selected]);
    const pinned = this.free(state.pins);
    const add = (text, nodes, at) => {
      const made = button(text, () => this.add(nodes.map((node) => ({ key: `node ${node}`, node }))),
        { disabled: nodes.length === 0 });
      made.dataset.at = at;
      return made;
    };
    const groups = state.groups.filter((group) => !this.rows.some((row) => row.key === group.key)
      && this.steerable(group.nodes).length > 0);
    const choice = element("select", { disabled: groups.length === 0 }, element("option", { value: "" },
      groups.length === 0 ? "No supernode to add" : "Add a supernode…"), ...groups.map((group) =>
      element("option", { value: group.key }, shorten(groupName(group), LABEL))));
    choice.setAttribute("aria-label", "Add a supernode");
    choice.dataset.at = "supernode";
    choice.addEventListener("change", () => choice.value && this.add([{ key: choice.value, group: choice.value }]));
    return [add("Add selected", selected, "selected"), add(`Add pinned (${pinned.length})`, pinned, "pinned"), choice];
  }

  steerable(nodes) {
    return nodes.filter((node) => STEERED.has(this.app.graph.kind[node]));
  }

  /** Those that can be steered and have no row of their own. */
  free(nodes) {
    return this.steerable(nodes).filter((node) => !this.rows.some((row) => row.node === node));
  }

  groupOf({ group }) {
    return this.app.state.groups.find(({ key }) => key === group);
  }

  add(rows) {
    this.rows = [...this.rows, ...rows.map((row) => ({ ...row, multiplier: 0 }))];
    this.draw();
    this.list.lastChild?.querySelector("input[type=range]").focus();
  }

  remove(row) {
    this.rows = this.rows.filter((other) => other !== row);
    this.draw();
    (this.list.lastChild?.querySelector("input[type=range]") ?? this.bar.querySelector("button"))?.focus();
  }

  row(row) {
    const { graph } = this.app;
    const group = row.node === undefined ? this.groupOf(row) : null;
    const text = shorten(group === null ? graph.names[row.node] : groupName(group), LABEL);
    const named = group === null ? [nodeButton(graph, row.node), element("small", {}, graph.place(row.node))]
      : [isolated(text, "name"), element("small", {}, `${this.steerable(group.nodes).length} nodes`)];
    const at = (made, name, label) => {
      made.dataset.at = `${name} ${row.key}`;
      made.setAttribute("aria-label", `${label} ${text}`);
      return made;
    };
    const slider = at(element("input", { type: "range", ...SLIDER, value: String(row.multiplier) }), "slider",
      "Multiplier of");
    const field = at(element("input", { type: "number", min: String(-MOST), max: String(MOST), step: "any",
      required: true, value: String(row.multiplier) }), "field", "Multiplier of");
    const set = (value, from) => {
      if (!Number.isFinite(value)) return;
      row.multiplier = value;
      if (from !== slider) slider.value = String(value);
      if (from !== field) field.value = String(value);
      this.mark();
    };
    slider.addEventListener("input", () => set(slider.valueAsNumber, slider));
    field.addEventListener("input", () => set(field.valueAsNumber, field));
    return element("li", {}, element("span", { className: "steer-name" }, ...named), slider, field,
      at(button("off", () => set(0, null)), "off", "Switch off"),
      at(element("button", { type: "button", className: "close", onclick: () => this.remove(row) }, "×"), "remove",
        "Do not steer"));
  }

  /** What is asked of the server; a node's own row counts before that of its supernode. */
  asked() {
    const chosen = new Map();
    for (const row of this.rows.filter(({ node }) => node === undefined)) {
      for (const node of this.steerable(this.groupOf(row).nodes)) chosen.set(node, row.multiplier);
    }
    for (const { node, multiplier } of this.rows) if (node !== undefined) chosen.set(node, multiplier);
    const numbers = Object.entries(this.fields).map(([name, input]) => [name, input.valueAsNumber]);
    return { nodes: [...chosen].map(([node, multiplier]) => ({ id: this.app.graph.ids[node], multiplier })),
      ...Object.fromEntries(numbers) };
  }

  async run() {
    const asked = this.asked();
    this.running = new AbortController();
    this.busy(true);
    this.say("asking the model… (the first time, it is loaded)");
    try {
      const answer = await request("POST", this.address, asked, {}, this.running.signal);
      this.shown = JSON.stringify(asked);
      this.found.replaceChildren(...effects(this.app.graph, answer));
      this.say("");
      this.app.say("Steered");
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (this.running.signal.aborted) this.say("Stopped.");
      else this.say(error.message, true);
    } finally {
      this.running = null;
      this.busy(false);
    }
    this.mark();
  }

  busy(on) {
    const focused = document.activeElement; // a button that is switched off would lose it to the page
    this.go.disabled = on || this.rows.length === 0;
    this.stop.hidden = !on;
    if (on && focused === this.go) this.stop.focus();
    else if (!on && (focused === this.stop || focused === document.body)) this.go.focus();
  }

  /** Tells an answer to other settings from one to these. */
  mark() {
    const old = this.shown !== null && this.shown !== JSON.stringify(this.asked());
    this.found.classList.toggle("old", old);
    const note = this.found.querySelector(".steer-old");
    if (note !== null) note.hidden = !old;
  }

  say(text, problem = false) {
    this.said.className = problem ? "steer-said problem" : "steer-said";
    this.said.replaceChildren(isolated(visibleLabel(text)));
  }
}
