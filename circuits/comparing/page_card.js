// What is told of the selected node and its match: both, side by side, and between them how alike they are.

const LABEL = 200; // characters
const CHIP = 40;
const COUNTERPARTS = { embedding: "The same position of the prompt.", logit: "The same output.",
  error: "The error at the same position and the nearest relative depth." };

/** The card of a node; `select(side, node)` is called by its buttons. */
function cardOf(shown, side, node, select) {
  const partner = shown.partners[side].get(node) ?? null;
  const both = side === 0 ? [node, partner] : [partner, node];
  const match = shown.matchOf[side].get(node) ?? null;
  const common = new Set((match?.shared ?? []).map(folded));
  const sides = both.map((own, i) => element("div", { className: "own" },
    ...(own === null ? nothing(shown, side, node, select) : about(shown, i, own, common))));
  const between = element("div", { className: "between" }, ...relation(shown, side, node, partner, match));
  return [sides[0], between, sides[1]];
}

function about(shown, side, node, common) {
  const { kind, layer, depth, position, share, value, promotes } = shown.graphs[side].nodes[node];
  const facts = [["kind", KIND_NAMES[kind]]];
  if (kind === "feature" || kind === "error") facts.push(["layer", `${layer}, depth ${depth.toFixed(2)}`]);
  if (position >= 0) facts.push(["position", `${position} ${shorten(shown.token(side, position), CHIP)}`]);
  if (kind === "feature") facts.push(["activation", number(value)]);
  facts.push(kind === "logit" ? ["weight", percent(share)] : ["influence", `${percent(share)} of all ${kinds(kind)}'`]);
  const title = element("h3", { className: colorOf(shown, side) }, icon(kind),
    isolated(shorten(shown.name(side, node), LABEL)));
  const made = [title, hint(shown.graphs[side].name), factList(facts)];
  if (promotes.length) {
    made.push(...chips("Promotes", promotes, (text) => common.has(folded(text))));
  }
  return made;
}

function kinds(kind) {
  return { feature: "features", error: "errors", embedding: "tokens" }[kind];
}

/** How the two belong together, or why there is only one. */
function relation(shown, side, node, partner, match) {
  const { kind } = shown.graphs[side].nodes[node];
  const needed = shown.pair.limit === null ? [] : [["a match needs", fixed(shown.pair.limit)]];
  if (match !== null) {
    const { score, similarities, confidence, margin, elsewhere, shared } = match;
    const parts = Object.entries(similarities).map(([name, value]) => [content.views[name], fixed(value)]);
    const facts = [["score", fixed(score)], ...needed, ...parts,
      ["confidence", percent(confidence)], ["ahead of the next best", fixed(margin)]];
    if (elsewhere > 0) facts.push(["as good at other positions", percent(elsewhere)]);
    const made = [element("h3", {}, "↔ match"), factList(facts)];
    return shared.length ? [...made, ...chips("Both promote", shared, () => true)] : made;
  }
  if (partner !== null) return [element("h3", {}, "↔ counterpart"), hint(COUNTERPARTS[kind] ?? "")];
  return [element("h3", {}, "no match"), ...(kind === "feature" ? [factList(needed)] : [])];
}

/** Why the other graph has no match, with what comes nearest. */
function nothing(shown, side, node, select) {
  const other = 1 - side;
  const made = [hint(`Nothing in ${shown.graphs[other].name} matches.`)];
  const near = shown.pair.nearest[side][node];
  if (shown.graphs[side].nodes[node].kind !== "feature") return made;
  if (near === undefined) {
    made.push(hint("No feature at this position and near this depth promotes any of the same tokens."));
    return made;
  }
  const [place, alike] = near;
  const button = element("button", { type: "button" }, isolated(shorten(shown.name(other, place), LABEL)));
  button.dataset.nearest = place;
  button.addEventListener("click", () => select(other, place));
  const by = shown.pair.nearestIsScore ? "score" : "by promoted tokens alone";
  made.push(element("p", {}, "Best candidate: ", button, ` ${shown.place(other, place)}, ${by} ${fixed(alike)}`));
  if (shown.partners[other].has(place)) made.push(hint("It is matched with another feature."));
  return made;
}

function factList(facts) {
  return element("dl", { className: "facts" }, ...facts.map(([name, text]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, isolated(text)))));
}

function chips(title, texts, isShared) {
  return [element("h4", {}, title), element("ul", { className: "chips" }, ...texts.map((text) =>
    element("li", { className: isShared(text) ? "shared" : "" }, isolated(shorten(visibleToken(text), CHIP)))))];
}

function fixed(value) {
  return value.toFixed(3).replace("-", "−");
}

function hint(text) {
  return element("p", { className: "hint" }, isolated(text));
}

/** Spaces around and capitals aside, as signatures of cards compare tokens. */
function folded(text) {
  return text.trim().toLowerCase();
}
