// Tables: matched features, which can be put in another order, and those without a match.

const UNMATCHED = 60; // listed of each graph

/** Columns: [head, text of a match, what it is ordered by, whether it is a number]. */
function matchColumns(shown) {
  const node = (side, match) => shown.graphs[side].nodes[side === 0 ? match.first : match.second];
  const label = (side) => (match) => shown.name(side, side === 0 ? match.first : match.second);
  const layer = (side) => (match) => node(side, match).layer;
  const share = (side) => (match) => node(side, match).share;
  const position = (match) => node(0, match).position;
  const [one, two] = shown.graphs.map((graph) => graph.name);
  return [
    [one, label(0), label(0), false], [two, label(1), label(1), false],
    ["at", (match) => `${position(match)} ${shorten(shown.token(0, position(match)), 20)}`, position, true],
    ["layers", (match) => `${layer(0)(match)}, ${layer(1)(match)}`, (match) => node(0, match).depth, true],
    ["score", (match) => match.score.toFixed(3), (match) => match.score, true],
    ["confidence", (match) => percent(match.confidence), (match) => match.confidence, true],
    ["influence, first", (match) => percent(share(0)(match)), share(0), true],
    ["influence, second", (match) => percent(share(1)(match)), share(1), true],
    ["both promote", (match) => match.shared.map(visibleToken).join(", "), (match) => match.shared.join(", "), false],
  ];
}

/** The table of matches; a click on a row's first cell selects the match. */
function matchTable(shown, select) {
  const columns = matchColumns(shown);
  const body = element("tbody");
  const heads = columns.map(([text, , key, numeric], i) => {
    const button = element("button", { type: "button" }, isolated(text));
    const head = element("th", { scope: "col", className: numeric ? "numeric" : "" }, button);
    button.addEventListener("click", () => {
      const upwards = head.ariaSort === "descending" || (head.ariaSort === null && !numeric);
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", upwards ? "ascending" : "descending");
      const order = numeric ? (a, b) => key(a) - key(b) : (a, b) => key(a).localeCompare(key(b));
      fill([...shown.pair.matches].sort((a, b) => (upwards ? 1 : -1) * order(a, b)));
    });
    return head;
  });
  const fill = (matches) => body.replaceChildren(...matches.map((match) => {
    const row = element("tr", {}, ...columns.map(([, text, , numeric], i) => {
      const told = isolated(shorten(text(match), LABEL));
      if (i > 0) return element("td", { className: numeric ? "numeric" : "" }, told);
      const button = element("button", { type: "button" }, told);
      button.addEventListener("click", () => select(0, match.first));
      return element("td", {}, button);
    }));
    row.dataset.match = match.first;
    return row;
  }));
  fill(shown.pair.matches);
  return element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
}

/** The most influential features of one graph that have no match, as buttons. */
function unmatchedList(shown, side, select) {
  const nodes = shown.pair.unmatched[side];
  const items = nodes.slice(0, UNMATCHED).map((node) => {
    const button = element("button", { type: "button" }, isolated(shorten(shown.name(side, node), LABEL)));
    button.addEventListener("click", () => select(side, node));
    button.dataset.unmatched = node;
    return element("li", {}, button, " ", element("small", {},
      `${shown.place(side, node)}, ${percent(shown.graphs[side].nodes[node].share)}`));
  });
  const left = nodes.length > UNMATCHED ? ` (${UNMATCHED} most influential)` : "";
  return element("section", {}, element("h3", { className: colorOf(shown, side) },
    isolated(shown.graphs[side].name), element("small", {}, ` ${nodes.length}${left}, share of features' influence`)),
  items.length ? element("ol", {}, ...items) : element("p", { className: "hint" }, "None."));
}
