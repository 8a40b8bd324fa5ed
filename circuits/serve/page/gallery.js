// The gallery: graphs of the folder with search, sorting and comparing; the form that traces; traces as they go on.

import { card, matches, order } from "./cards.js";
import { element } from "./text.js";
import { TraceList, announcement } from "./traces.js";

const MAX_IMPORT = 64 * 2 ** 20; // as in guard.py
const byId = (id) => document.getElementById(id);
const state = { graphs: [], leftOut: 0, chosen: [] };

/** The server's answer as JSON; throws an Error with the sentence the server gave. */
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  const body = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(body?.detail ?? `the server answered ${answer.status}`);
  return body;
}

/** Does it, and shows the sentence at `id` when it fails. */
async function attempt(id, act) {
  byId(id).textContent = "";
  try {
    return await act();
  } catch (error) {
    byId(id).replaceChildren(element("bdi", {}, error.message));
    return undefined;
  }
}

async function loadGraphs() {
  await attempt("gallery-problem", async () => {
    const { graphs, left_out: leftOut } = await ask("/api/graphs");
    Object.assign(state, { graphs, leftOut });
    const names = new Set(graphs.map((graph) => graph.name));
    state.chosen = state.chosen.filter((name) => names.has(name));
    showGraphs();
  });
}

function showGraphs() {
  const found = state.graphs.filter((graph) => matches(graph, byId("search").value.trim()));
  found.sort(order(byId("sort").value));
  const actions = { remove, choose };
  const refocus = focused();
  byId("graphs").replaceChildren(...found.map((graph) => card(graph, state.chosen.includes(graph.name), actions)));
  if (!found.length) {
    const why = state.graphs.length ? "No graph has these words." : "No graphs yet. Trace a prompt, or put .safetensors "
      + "or .json graphs into the folder.";
    byId("graphs").append(element("li", { className: "empty" }, why));
  }
  const more = state.leftOut ? `, ${state.leftOut} older ones not shown` : "";
  byId("count").textContent = found.length === state.graphs.length ? `${found.length}${more}`
    : `${found.length} of ${state.graphs.length}${more}`;
  showChosen();
  refocus();
}

/** Gives the focus back to the same part of the same card, once the cards are made anew. */
function focused() {
  const parts = (item) => [...item.querySelectorAll("a, button, input")];
  const item = document.activeElement.closest(".card");
  if (!item) return () => {};
  const place = parts(item).indexOf(document.activeElement);
  return () => {
    const again = [...byId("graphs").children].find((other) => other.dataset.name === item.dataset.name);
    if (again) parts(again)[place]?.focus();
  };
}

function showChosen() {
  byId("compare").disabled = state.chosen.length !== 2;
  byId("compare").textContent = state.chosen.length === 1 ? "Compare: tick one more" : "Compare two";
}

/** The two ticked last are compared. */
function choose(graph, ticked) {
  state.chosen = state.chosen.filter((name) => name !== graph.name);
  if (ticked) state.chosen = [...state.chosen, graph.name].slice(-2);
  for (const item of byId("graphs").children) {
    const box = item.querySelector("input[type=checkbox]");
    if (box) box.checked = state.chosen.includes(item.dataset.name);
  }
  showChosen();
}

async function remove(graph) {
  if (!window.confirm(`Delete ${graph.name}? There is no way back.`)) return;
  await attempt("gallery-problem", () => ask(`/api/graphs/${encodeURIComponent(graph.name)}`,
    { method: "DELETE", headers: { "If-Match": graph.etag } }));
  await loadGraphs();
  byId("search").focus();
}

async function importFile(file) {
  if (file.size > MAX_IMPORT) {
    byId("gallery-problem").textContent = "The file is too large: at most 64 MiB are imported.";
    return;
  }
  const name = file.name.replace(/\.json$/i, "").slice(0, 80);
  const saved = await attempt("gallery-problem", () => ask(`/api/graphs?name=${encodeURIComponent(name)}`,
    { method: "POST", headers: { "Content-Type": "application/json" }, body: file }));
  if (saved) byId("said").textContent = `Imported as ${saved.name}`;
  if (saved) await loadGraphs();
}

/** The form's values as the API takes them: what is empty is left out. */
function request(form) {
  const values = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
  for (const name of ["coverage", "max_features", "node_threshold", "edge_threshold"]) {
    if (name in values) values[name] = Number(values[name]);
  }
  return { ...values, chat: form.elements.chat.checked };
}

/** Shows the traces, and follows the one that runs. One stream at most: a browser opens six connections to a server. */
class Follower {
  constructor() {
    this.list = new TraceList(byId("traces"), (trace) => this.cancel(trace));
    this.stream = null;
    this.followed = null;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.refresh()));
  }

  stop() {
    this.stream?.close();
    this.stream = this.followed = null;
  }

  async refresh() {
    const answer = await attempt("trace-problem", () => ask("/api/traces"));
    if (!answer) return;
    this.list.show(answer.traces);
    const open = answer.traces.filter((trace) => trace.finished === null);
    const next = open.find((trace) => trace.state === "running") ?? open.at(-1); // the oldest comes next
    if (next?.id === this.followed || document.hidden) return;
    this.stop();
    if (next) this.follow(next);
  }

  follow(trace) {
    let before = trace.state;
    this.followed = trace.id;
    this.stream = new EventSource(`/api/traces/${trace.id}/events`);
    this.stream.addEventListener("trace", async (event) => {
      const now = JSON.parse(event.data);
      this.list.update(now);
      if (now.state === before && now.finished === null) return;
      before = now.state;
      byId("said").textContent = announcement(now);
      if (now.finished !== null) this.stop();
      if (now.state === "done") await loadGraphs();
      await this.refresh();
    });
  }

  async cancel(trace) {
    await attempt("trace-problem", () => ask(`/api/traces/${trace.id}`, { method: "DELETE" }));
    await this.refresh();
  }
}

function startForm(form, follower) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button.main");
    button.disabled = true; // one press, one trace
    const made = await attempt("trace-problem", () => ask("/api/traces",
      { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request(form)) }));
    button.disabled = false;
    if (!made) return;
    byId("said").textContent = announcement(made);
    await follower.refresh();
  });
  form.elements.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

byId("search").addEventListener("input", showGraphs);
byId("sort").addEventListener("change", showGraphs);
byId("compare").addEventListener("click", () => {
  const [left, right] = state.chosen;
  location.href = `/compare?${new URLSearchParams({ left, right })}`;
});
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", async (event) => {
  for (const file of event.target.files) await importFile(file);
  event.target.value = "";
});
if (byId("trace")) {
  const follower = new Follower();
  startForm(byId("trace"), follower);
  follower.refresh();
}
loadGraphs();
