// What a node adds up from, what it feeds, and what it would be without each of its inputs.

import { nodeList } from "./lists.js";
import { KIND_NAMES } from "./shapes.js";
import { element, number, percent } from "./text.js";

const EDGE_HEADS = [["at", "layer · position"], ["weight", "direct effect of the source on the target"]];

/** The sections of a node's inputs and outputs, of what is kept. */
export function edgeSections(app, node, folds) {
  const { graph } = app;
  const inputs = graph.inputs(node, app.kept.edges);
  const outputs = graph.outputs(node, app.kept.edges);
  const missing = inputs.length ? "" : graph.withoutInputs(node);
  return [
    folds.section("inputs", `Inputs (${inputs.length})`, missing ? "" : "share: of all inputs of this node",
      ...(missing ? [element("p", { className: "hint" }, missing)] : inputParts(app, node, inputs))),
    folds.section("outputs", `Outputs (${outputs.length})`, outputs.length ? "share: of all inputs of the target" : "",
      ...nodeList(graph, "outputs", [["target"], ...EDGE_HEADS, ["share", "of all inputs of the target"]],
        outputs.map((edge) => ({ ...edge, cells: () => [number(edge.weight, true), percent(edge.share)] })))),
  ];
}

function inputParts(app, node, inputs) {
  const { graph } = app;
  const { without, meaning } = withoutInput(graph, node);
  const heads = [["source"], ...EDGE_HEADS, ["share", "of all inputs of this node"], ["without", meaning]];
  return [accountTable(graph, node, app.kept.edges, inputs), ...nodeList(graph, "inputs", heads, inputs.map((edge) =>
    ({ ...edge, cells: () => [number(edge.weight, true), percent(edge.share), without(edge.weight)] })))];
}

/** Makes the cell "without", and says what it means. Only this edge goes: everything else stays as it was. */
function withoutInput(graph, node) {
  const value = graph.nodes.value[node];
  const threshold = graph.nodes.threshold[node];
  const what = graph.kind[node] === "feature" ? "pre-activation" : "value";
  if (Number.isNaN(value) || value === 0) { // files of other programs leave values out, as 0
    return { without: () => "–", meaning: "not known: the file does not say this node's value" };
  }
  const limit = Number.isNaN(threshold) ? graph.kind[node] === "feature" ? "; below which it is off is not known" : ""
    : `; "off" at or below its threshold ${number(threshold)}`;
  const without = (weight) => {
    const left = value - weight;
    if (!(left <= threshold)) return number(left);
    const title = `${number(left)}, at or below the threshold ${number(threshold)}`;
    return element("span", { className: "off", title }, "off");
  };
  return { without, meaning: `its ${what} without this input, all else as it is: ${number(value)} − weight${limit}` };
}

/** Inputs by kind + pruned away + constants = total; shares of |weight| add up to 100% without the constants. */
function accountTable(graph, node, kept, inputs) {
  const account = graph.account(node, kept);
  const rows = kindRows(graph, inputs);
  const { constants, pruned, measured } = account;
  const known = measured && !Number.isNaN(account.sum);
  if (measured || pruned.share > 0) {
    const notes = [measured ? "" : "on this page", pruned.weight !== 0 && measured ? "its constants included" : ""];
    rows.push(["pruned", "Pruned away", notes.filter(Boolean).join(", "), number(pruned.weight, true),
      percent(pruned.share)]);
  }
  if (constants.count) {
    rows.push(["constants", counted(constants.count, "constant"), "outside the shares", number(constants.weight, true),
      "–"]);
  }
  const listed = account.listed.weight + constants.weight + (measured ? 0 : pruned.weight);
  const meaning = !measured ? "of these edges: the file does not say what was pruned"
    : graph.kind[node] === "feature" ? "pre-activation − encoder bias" : "";
  rows.push(["total", "Total", meaning, number(known ? account.sum : measured ? NaN : listed, true),
    percent(account.listed.share + pruned.share)]);
  return element("table", { className: "account", ariaLabel: "What the inputs add up to" },
    element("tbody", {}, ...rows.map(accountRow)));
}

function accountRow([part, what, note, weight, share]) {
  const name = element("th", { scope: "row" }, what, ...(note ? [" ", element("small", {}, note)] : []));
  const row = element("tr", {}, name, element("td", {}, weight), element("td", {}, share));
  row.dataset.part = part;
  return row;
}

/** A row for each kind of listed input but constants, largest share first. */
function kindRows(graph, inputs) {
  const kinds = new Map();
  for (const { node, weight, share } of inputs) {
    const kind = graph.kind[node];
    if (kind === "constant") continue;
    const sums = kinds.get(kind) ?? { count: 0, weight: 0, share: 0 };
    kinds.set(kind, { count: sums.count + 1, weight: sums.weight + weight, share: sums.share + share });
  }
  return [...kinds].sort((a, b) => b[1].share - a[1].share).map(([kind, { count, weight, share }]) =>
    [kind, counted(count, KIND_NAMES[kind]), "", number(weight, true), percent(share)]);
}

const counted = (count, name) => `${count} ${name}${count === 1 ? "" : "s"}`;
