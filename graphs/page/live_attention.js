// Any attention score of a graph, taken apart by the server's model.

import { button } from "./button.js";
import { askButton, withQuery } from "./live_asked.js";
import { headName } from "./heads.js";
import { Refused, request } from "./live_request.js";
import { followNodes } from "./nodebuttons.js";
import { pairTable } from "./pairs.js";
import { element, isolated, number, percent, shorten, visibleLabel } from "./text.js";

const TOKEN = 40; // characters
const KEYS = 12; // of a query, those it looks at most

/** A button that takes the score of a cell ([query, key]) at the head `key` apart. */
export function askScore(app, key, [query, at]) {
  const [layer, head] = key.split(".");
  const address = withQuery(app.graph.values.live.attention, { layer, head, query, key: at });
  return askButton("Take it apart", address, (answer) => scoreOf(app.graph, answer));
}

/** A form for any layer, head, query and key, for pages without patterns. */
export function scoreForm(app) {
  const { graph } = app;
  const tokens = () => Array.from({ length: graph.columns }, (_, i) =>
    element("option", { value: String(i) }, `${i} ${shorten(graph.tokenAt(i), TOKEN)}`));
  const count = (max) => element("input", { type: "number", min: "0", step: "1", value: "0", required: true, ...max });
  const fields = { layer: count({ max: String(Math.max(0, graph.header.n_layers - 1)) }), head: count({}),
    query: element("select", {}, ...tokens()), key: element("select", {}, ...tokens()) };
  fields.query.value = String(graph.columns - 1);
  if (app.state.head !== null) [fields.layer.value, fields.head.value] = app.state.head.split(".");
  const go = element("button", { type: "submit", className: "plain" }, "Take it apart");
  const said = element("p", { className: "hint" });
  said.setAttribute("role", "status");
  const found = element("div");
  followNodes(app, found);
  const form = element("form", { className: "score-form" }, ...Object.entries(fields).map(([name, field]) =>
    element("label", {}, `${name[0].toUpperCase()}${name.slice(1)} `, field)), go);
  const ask = async () => {
    if (go.getAttribute("aria-disabled") === "true") return; // one at a time
    go.setAttribute("aria-disabled", "true");
    said.className = "hint";
    said.textContent = "asking the model…";
    const asked = Object.fromEntries(Object.entries(fields).map(([name, { value }]) => [name, value]));
    try {
      const answer = await request("GET", withQuery(graph.values.live.attention, asked));
      const choose = (key) => {
        fields.key.value = String(key);
        ask();
      };
      found.replaceChildren(element("h3", {}, `${headName(`${asked.layer}.${asked.head}`)}: `,
        isolated(graph.tokenAt(Number(asked.query))), " looking at ", isolated(graph.tokenAt(Number(asked.key)))),
      ...scoreOf(graph, answer), ...patternOf(graph, answer, choose));
      said.textContent = "";
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      said.className = "hint problem";
      said.replaceChildren(isolated(visibleLabel(error.message)));
    }
    go.removeAttribute("aria-disabled");
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  return [form, said, found];
}

/** The score of an answer, and its pairs. */
function scoreOf(graph, { score, pairs }) {
  const side = (id, name) => ({ node: graph.byId.get(id) ?? -1, name });
  const rows = pairs.map((pair) => ({ value: pair.value, query: side(pair.query_id, pair.query_name),
    key: side(pair.key_id, pair.key_name) }));
  const listed = pairs.reduce((sum, { value }) => sum + value, 0);
  return [element("p", {}, "Score before softmax: ", element("b", {}, number(score, true)), "."),
    element("p", { className: "hint" }, `The ${pairs.length} pairs below add up to ${number(listed, true)}; all others `
      + `to ${number(score - listed, true)}. Each is a part of the query’s position times a part of the key’s.`),
    pairTable(graph, { score, pairs: rows })];
}

/** What the query gives to the keys it looks at most; each is a button that takes its score apart. */
function patternOf(graph, { pattern }, choose) {
  const keys = [...pattern.keys()].sort((a, b) => pattern[b] - pattern[a]).slice(0, KEYS);
  return [element("h3", {}, "Where it looks", element("small", {}, "attention after softmax")),
    element("p", { className: "offers" }, ...keys.map((key) => button(
      `\u2068${shorten(graph.tokenAt(key), TOKEN)}\u2069 (${key}): ${percent(pattern[key])}`, () => choose(key))))];
}
