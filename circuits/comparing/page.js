// The page: which pair is shown, what is selected, and what is drawn anew when either changes.

const NARROWEST = 420; // px of a flow diagram
const HINT = "Select a node, by a click or with the arrow keys: it and its match in the other graph are lit. Filled "
  + "features are matched, hollow ones are not.";
const state = { shown: null, sides: [], selected: null, hovered: null };

function show(number) {
  const shown = (state.shown = new Shown(number));
  for (const part of document.querySelectorAll("[data-pair]")) part.hidden = Number(part.dataset.pair) !== number;
  byId("sides").replaceChildren();
  state.sides = [0, 1].map((side) => new Side(byId("sides"), shown, side, { select, hover, other }));
  for (const { view } of state.sides) view.addEventListener("scroll", () => scrollBoth(view));
  byId("matches").replaceChildren(matchTable(shown, selectAndShow));
  byId("unmatched").replaceChildren(...[0, 1].map((side) => unmatchedList(shown, side, selectAndShow)));
  byId("flow-table").replaceChildren(byId("flow-table").firstElementChild, flowTable(shown));
  tellMatches(shown);
  select(0, null);
  draw();
  window.dispatchEvent(new Event("resize")); // figures of a pair that was hidden have no size yet
}

/** Both graphs and flow diagrams for the width that there is. */
function draw() {
  const { shown, sides } = state;
  const { clientWidth } = sides[0].view;
  const layout = layOut(shown.graphs, content.positions, clientWidth);
  for (const side of sides) side.draw(layout, Number(byId("edges").value));
  state.width = clientWidth;
  light();
  const [rows, scale] = [rowsOf(shown), flowScale(shown)];
  byId("flows").replaceChildren(...[0, 1].map((side) => element("section", {},
    element("h3", { className: colorOf(shown, side) }, isolated(shown.graphs[side].name)),
    flowDiagram(shown, side, rows, scale, Math.max(NARROWEST, clientWidth)))));
}

function tellMatches(shown) {
  const { matches, features, common, limits, nullPairs, views, limit } = shown.pair;
  const more = common ? ` ${common} more pairs do, but are as good at other positions.` : "";
  byId("match-count").textContent = `${matches.length} of ${features[0]} and ${features[1]}`;
  const nulls = Object.entries(limits).map(([name, value]) => `${name} ${value.toFixed(3)} (${nullPairs[name]} pairs)`);
  byId("match-rule").textContent = limit === null ? "Nothing shows what is chance, so nothing is matched."
    : `A score is the mean of: ${views.map((name) => content.views[name]).join("; ")}. A match scores no less than `
    + `95% of every null: ${nulls.join(", ")}.${more}`;
}

/** Selects a node of one side, or nothing. */
function select(side, node) {
  state.selected = node === null ? null : { side, node };
  state.hovered = null;
  byId("tip").hidden = true;
  byId("card").replaceChildren(...(node === null ? [hint(HINT)] : cardOf(state.shown, side, node, select)));
  if (state.sides[0].layout) light();
  if (node !== null) state.sides[side].reveal(node);
}

/** The same from a list below: the graphs come into view. */
function selectAndShow(side, node) {
  select(side, node);
  byId("sides").scrollIntoView({ block: "nearest" });
  state.sides[side].svg.focus({ preventScroll: true });
}

/** From the selected node to its match. */
function other(side) {
  const { selected, shown, sides } = state;
  const partner = selected?.side === side ? shown.partners[side].get(selected.node) : undefined;
  if (partner === undefined) return;
  select(1 - side, partner);
  sides[1 - side].svg.focus();
}

function hover(side, node, event) {
  const before = state.hovered;
  state.hovered = node === null ? null : { side, node };
  const tip = byId("tip");
  tip.hidden = node === null;
  if (node !== null) {
    if (before?.node !== node || before.side !== side) tip.replaceChildren(...tipOf(side, node));
    const { offsetWidth, offsetHeight } = tip;
    const below = event.clientY + 18;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - offsetWidth - 8))}px`;
    tip.style.top = `${below + offsetHeight > innerHeight ? event.clientY - offsetHeight - 10 : below}px`;
  }
  if (before?.node !== state.hovered?.node || before?.side !== state.hovered?.side) light();
}

function tipOf(side, node) {
  const { shown } = state;
  const partner = shown.partners[side].get(node);
  const told = [element("strong", {}, isolated(shorten(shown.name(side, node), 120))),
    element("span", {}, ` ${shown.place(side, node)}, ${percent(shown.graphs[side].nodes[node].share)}`)];
  const match = partner === undefined ? "no match" : `↔ ${shorten(shown.name(1 - side, partner), 120)}`;
  return [...told, element("div", {}, isolated(match))];
}

/** What is pointed at, or else selected, and its match. */
function light() {
  const { shown, sides } = state;
  const lit = state.hovered ?? state.selected;
  if (lit === null) {
    for (const side of sides) side.light(null);
    return;
  }
  sides[lit.side].light(lit.node, "selected");
  const partner = shown.partners[lit.side].get(lit.node);
  if (partner === undefined) sides[1 - lit.side].dim();
  else sides[1 - lit.side].light(partner, "match");
}

function scrollBoth(view) {
  for (const side of state.sides) {
    if (side.view.scrollLeft !== view.scrollLeft) side.view.scrollLeft = view.scrollLeft;
  }
}

function legend() {
  const items = [["feature", "matched feature"], ["feature unmatched", "feature without a match"], ["error", "error"],
    ["embedding", "token"], ["logit", "output"]];
  byId("legend").append(...items.map(([name, text]) => {
    const made = icon(name.split(" ")[0]);
    made.setAttribute("class", `icon ${name}`);
    return element("li", {}, made, text);
  }), element("li", { className: "positive-edge" }, "raises"), element("li", { className: "negative-edge" }, "lowers"));
}

byId("prompt")?.append(...content.graphs[0].tokens.map((text) =>
  element("span", { className: "token" }, isolated(visibleToken(text)))));
legend();
byId("pair")?.addEventListener("change", (event) => show(Number(event.target.value)));
byId("edges").addEventListener("change", draw);
window.addEventListener("resize", () => {
  if (state.sides[0] && state.sides[0].view.clientWidth !== state.width) draw();
});
show(0);
document.documentElement.dataset.ready = "";
