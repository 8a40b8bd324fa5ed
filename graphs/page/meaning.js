// What a feature means: where on this prompt it fires, tokens it promotes and suppresses, texts on which it fires most.

import { fillLater } from "./later.js";
import { element, isolated, number, percent, shorten, visibleToken } from "./text.js";

const WHOLE_PROMPT = 200; // positions up to which silent stretches are shown too
const AROUND = 2; // silent tokens shown beside a firing one of a longer prompt
const TOKEN = 60; // characters of a token

/** The section of activations at each token; nothing for nodes that are not features. */
export function promptSection(app, node, folds) {
  const { graph } = app;
  const active = new Map(graph.activations(node));
  if (graph.kind[node] !== "feature" || active.size === 0) return [];
  const largest = Math.max(...active.values());
  const read = element("p", { className: "hint read" });
  const strip = element("p", { className: "strip" });
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", "Activation at each token; arrow keys go from one where it fires to the next");
  const own = graph.nodes.position[node];
  const nodes = nodesOf(app, node);
  let before = -1;
  for (const position of shownPositions(graph, active, own)) {
    if (position !== before + 1) strip.append(element("span", { className: "gap" }, "…"));
    before = position;
    const share = (active.get(position) ?? 0) / largest;
    strip.append(promptToken(graph, position, active.get(position) ?? 0, share, position === own, nodes.get(position)));
  }
  const tell = (chip) => (read.textContent = told(graph, chip ? Number(chip.dataset.position) : own, active, own));
  tell(null);
  const point = (event) => tell(event.target.closest("[data-position]"));
  for (const type of ["pointerover", "focusin"]) strip.addEventListener(type, point);
  for (const type of ["pointerleave", "focusout"]) strip.addEventListener(type, () => tell(null));
  strip.addEventListener("keydown", walkTokens);
  return [folds.section("prompt", "On this prompt", `fires at ${active.size} of ${graph.columns} tokens`, strip, read)];
}

/** Kept nodes of the same feature by position. */
function nodesOf(app, node) {
  const { graph } = app;
  const found = new Map();
  graph.featureOf.forEach((place, i) => {
    if (place === graph.featureOf[node] && app.kept.nodes[i]) found.set(graph.nodes.position[i], i);
  });
  return found;
}

function shownPositions(graph, active, own) {
  const all = [...Array(graph.columns).keys()];
  if (graph.columns <= WHOLE_PROMPT) return all;
  const near = new Set();
  for (const position of [...active.keys(), own]) {
    for (let i = position - AROUND; i <= position + AROUND; i++) near.add(i);
  }
  return all.filter((position) => near.has(position));
}

/** One token, tinted from below by its activation; a button where the feature has a node there. */
function promptToken(graph, position, value, share, isOwn, node) {
  const made = element(node === undefined || isOwn ? "span" : "button", { className: "chip" },
    isolated(shorten(graph.tokenAt(position) || String(position), TOKEN)));
  made.dataset.position = position;
  if (value > 0) {
    made.classList.add("fires");
    made.tabIndex = isOwn ? 0 : -1;
    made.append(element("span", { className: "unseen" }, ` ${number(value)}`));
    made.style.setProperty("--share", String(share));
  }
  if (isOwn) made.setAttribute("aria-current", "true");
  if (made.tagName === "BUTTON") {
    made.type = "button";
    made.dataset.node = node;
  }
  return made;
}

function told(graph, position, active, own) {
  const token = shorten(graph.tokenAt(position), TOKEN);
  const here = position === own ? " (this node)" : "";
  const value = active.has(position) ? number(active.get(position)) : "silent";
  return `\u2068${token}\u2069 at ${position}${here}: ${value}`;
}

function walkTokens(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const chips = [...event.currentTarget.querySelectorAll(".fires")];
  chips[chips.indexOf(event.target) + step]?.focus();
  event.preventDefault();
}

/** Sections of what the transcoder's feature data says. */
export function cardSections(graph, node, folds) {
  if (graph.kind[node] !== "feature") return { tokens: [], examples: [] };
  const data = graph.card(node);
  if (data === null) {
    const why = graph.cards.density !== undefined ? "No feature data of this feature."
      : "No feature data in this graph: what the feature means elsewhere is not known.";
    return { tokens: [folds.section("meaning", "Meaning", "", hint(why))], examples: [] };
  }
  return {
    tokens: [folds.section("meaning", "Tokens", "by the direct path, before the final norm's scale",
      ...tokenList("Promotes", data.promoted), ...tokenList("Suppresses", data.suppressed))],
    examples: [folds.section("examples", `Examples (${data.contexts.length})`, "texts on which it fires",
      data.contexts.length === 0 ? hint("None: it never fired on the text sample, or no text was looked at.")
        : exampleList(data))],
  };
}

/** The panel's last and longest list: it comes when the rest is there. */
function exampleList({ contexts, maximum }) {
  const list = element("ol", { className: "contexts" });
  fillLater(list, () => contexts.map((context) => example(context, maximum)));
  return list;
}

const hint = (text) => element("p", { className: "hint" }, text);

function tokenList(title, tokens) {
  const items = tokens.map(([text, score]) => element("li", {}, isolated(shorten(visibleToken(text), TOKEN)), " ",
    element("small", {}, number(score, true))));
  const list = items.length ? element("ul", { className: "tokens" }, ...items) : hint("none stand out");
  list.setAttribute("aria-label", title);
  return [element("h4", {}, title), list];
}

/** A stretch of text; tokens are tinted by their activation, the one it was chosen for is marked. */
function example({ tokens, activations, peak, quantile }, maximum) {
  const kind = quantile >= 1 ? "top" : `typical: at or above ${percent(quantile)} of its activations`;
  const size = (share) => (Number.isNaN(maximum) ? `${percent(share)} of the largest` : number(share * maximum));
  const text = element("p", { className: "context" }, ...tokens.map((token, i) => {
    const made = isolated(readable(token), i === peak ? "peak" : "");
    if (activations[i] > 0) {
      made.title = size(activations[i]);
      made.style.setProperty("--share", String(activations[i]));
    }
    return made;
  }));
  return element("li", {}, element("small", {}, `${kind} · ${size(activations[peak])} at the marked token`), text);
}

/** A token in running text: spaces stay spaces, line ends are marks. */
function readable(token) {
  return shorten(token, TOKEN).split(" ").map(visibleToken).join(" ");
}
