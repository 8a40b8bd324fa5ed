// What the server says of steering: targets and next tokens, predicted beside measured, features, and the text.

import { nodeButton } from "./nodebuttons.js";
import { element, isolated, number, percent, shorten, visibleLabel, visibleToken } from "./text.js";

const LABEL = 80; // characters

/** The elements that show an answer of POST …/steer. */
export function effects(graph, answer) {
  return [element("p", { className: "steer-old hint", hidden: true }, "These are the results of other settings: run "
    + "again."),
  element("h3", {}, "Targets", element("small", {}, "change of the logit")), targetTable(graph, answer.targets),
  element("h3", {}, "Next token", element("small", {}, "probability")), tokenTable(answer.tokens),
  element("p", {}, "The next token’s distribution moves by a KL divergence of ",
    element("b", {}, number(answer.kl_predicted)), " predicted, ", element("b", {}, number(answer.kl_measured)),
    " measured (nats)."),
  ...texts(answer.texts), ...features(graph, answer),
  element("p", { className: "hint" }, "Predicted: the graph’s own model of this prompt, with attention and norms held. "
    + "Measured: the model itself, in which everything reacts.")];
}

function targetTable(graph, targets) {
  const largest = Math.max(...targets.flatMap(({ predicted, measured }) => [Math.abs(predicted), Math.abs(measured)]));
  const rows = targets.map((target) => {
    const node = graph.byId.get(target.id);
    const name = node === undefined ? isolated(shorten(visibleLabel(target.label), LABEL)) : nodeButton(graph, node);
    return element("tr", {}, element("th", { scope: "row" }, name, element("small", {}, before(target))),
      ...[target.predicted, target.measured].map((change) => barCell(number(change, true), change, largest)));
  });
  return table("steer-targets", ["target", "predicted", "measured"], rows);
}

function before({ logit, probability, probability_predicted: predicted, probability_measured: measured }) {
  if (probability === null) return `before ${number(logit, true)}`;
  return `before ${number(logit, true)}, ${percent(probability)} → ${percent(predicted)} predicted, `
    + `${percent(measured)} measured`;
}

function tokenTable(tokens) {
  const largest = Math.max(...tokens.flatMap(({ probability, probability_predicted: predicted,
    probability_measured: measured }) => [probability, predicted, measured]));
  const rows = tokens.map(({ text, probability, probability_predicted: predicted, probability_measured: measured }) =>
    element("tr", {}, element("th", { scope: "row" }, isolated(shorten(visibleToken(text), LABEL))),
      ...[probability, predicted, measured].map((share) => barCell(percent(share), share, largest))));
  return table("steer-tokens", ["token", "before", "predicted", "measured"], rows);
}

function table(className, columns, rows) {
  const head = element("tr", {}, ...columns.map((text) => element("th", { scope: "col" }, text)));
  return element("table", { className: `steer-table ${className}` }, element("thead", {}, head),
    element("tbody", {}, ...rows));
}

/** A number with a bar below it; `largest` fills the cell. */
function barCell(text, value, largest) {
  const bar = element("span", { className: `bar ${value < 0 ? "negative" : "positive"}`, ariaHidden: "true" },
    element("span"));
  bar.firstChild.style.width = `${largest > 0 ? (100 * Math.abs(value)) / largest : 0}%`;
  return element("td", {}, text, bar);
}

function texts(found) {
  if (found === null) return [];
  const column = (title, { text, tokens, ended }) => element("section", {}, element("h4", {}, title),
    element("p", { className: "written" }, isolated(text)),
    element("small", {}, `${tokens} ${tokens === 1 ? "token" : "tokens"}${ended ? ", ended by the model" : ""}`));
  return [element("h3", {}, "The text goes on"), element("div", { className: "steer-texts" },
    column("unchanged", found.unchanged), column("steered", found.steered))];
}

function features(graph, { reacting, n_reacting: count }) {
  const title = element("h3", {}, `Features that react (${count.toLocaleString("en")})`,
    element("small", {}, "those that change most; activation"));
  if (reacting.length === 0) return [title, element("p", { className: "hint" }, "None.")];
  const rows = reacting.map(({ id, name, before: value, change }) => {
    const node = graph.byId.get(id);
    const shown = node === undefined ? isolated(shorten(visibleLabel(name), LABEL), "name")
      : nodeButton(graph, node, [isolated(shorten(visibleLabel(name), LABEL), "name")]);
    return element("tr", {}, element("th", { scope: "row" }, shown), element("td", {}, number(value)),
      element("td", {}, number(value + change)), element("td", {}, number(change, true)));
  });
  return [title, table("steer-features", ["feature", "before", "after", "change"], rows)];
}
