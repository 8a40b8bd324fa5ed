// What flows between tokens, supernodes and outputs of both graphs: boxes from left (tokens) to right (outputs) by
// depth. Supernodes that correspond stand in one row in one colour; of a ribbon, what both graphs share is dark.

const ROW = 34; // px
const TOP = 8;
const GAP = 44; // between tokens, supernodes and outputs, at least
const BOX = { height: 22, token: 66, out: 58, name: 128 };
const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A6FB0", "#A6761D", "#5A9E3A",
  "#C2506A", "#3D8E9E", "#9A8F2D"]; // Okabe and Ito's, and more of like lightness
const GREY = "#8a8f96";
const LISTED = 24; // flows in the table

/** The diagram of one graph; `rows` of rowsOf, `scale` px of the whole flow. */
function flowDiagram(shown, side, rows, scale, width) {
  const graph = shown.graphs[side];
  const ends = boxes(shown, side, rows, scale, width);
  const drawn = shown.pair.flows[side].filter(([into, from]) => ends[into] && ends[from]);
  const offsets = stacked(drawn, ends, scale);
  const height = Math.max(...ends.filter(Boolean).map((end) => end.y + end.height)) + 10;
  const told = `Flow between tokens, ${graph.supernodes.names.length} supernodes and outputs of ${graph.name}`;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": told },
  svg("g", { class: "ribbons" }, ...drawn.flatMap((flow, i) => ribbon(flow, ends, offsets[i], scale))),
  svg("g", {}, ...ends.filter(Boolean).flatMap(boxElements)));
}

/** px of the whole flow, the same for both graphs: the busiest supernode's ribbons are as high as its box. */
function flowScale(shown) {
  const busiest = shown.pair.flows.map((flows, side) => shown.graphs[side].supernodes.names.map((_, group) =>
    Math.max(through(flows, 0, group), through(flows, 1, group)))).flat();
  return BOX.height / Math.max(...busiest, 1e-9);
}

/** Sum of the flows into (0) or from (1) an end. */
function through(flows, which, end) {
  return flows.reduce((sum, flow) => sum + (flow[which] === end ? flow[2] : 0), 0);
}

/** {row of each supernode of both graphs, color of each, count}: those that correspond first, by depth. */
function rowsOf(shown) {
  const { graphs, pair } = shown;
  const rows = graphs.map(({ supernodes }) => new Array(supernodes.names.length).fill(-1));
  const colors = graphs.map(({ supernodes }) => new Array(supernodes.names.length).fill(GREY));
  const depth = ([a, b]) => graphs[0].supernodes.depth[a] + graphs[1].supernodes.depth[b];
  const ordered = [...pair.supernodes].sort((one, two) => depth(one) - depth(two));
  ordered.forEach((groups, row) => groups.forEach((group, side) => {
    rows[side][group] = row;
    colors[side][group] = PALETTE[row % PALETTE.length];
  }));
  rows.forEach((own, side) => {
    const left = range(own.length).filter((group) => own[group] < 0);
    left.sort((a, b) => graphs[side].supernodes.depth[a] - graphs[side].supernodes.depth[b]);
    left.forEach((group, i) => (own[group] = pair.supernodes.length + i));
  });
  return { rows, colors, matched: pair.supernodes.length };
}

/** {x, y, width, height, text, color, matched} of every end: supernodes, outputs, and the tokens that anything flows
    from; both graphs' tokens stand in the same rows. */
function boxes(shown, side, { rows, colors, matched }, scale, width) {
  const { names, depth } = shown.graphs[side].supernodes;
  const room = width - BOX.token - BOX.out - BOX.name - 3 * GAP;
  const made = names.map((text, group) => ({ text: visibleLabel(text), color: colors[side][group], width: BOX.name,
    x: BOX.token + GAP + room * between(depth[group], depth), height: BOX.height, y: TOP + rows[side][group] * ROW,
    matched: rows[side][group] < matched }));
  const tall = Math.max(1, ...rows.flat().map((row) => row + 1)) * ROW;
  const outputs = Math.max(BOX.height, ...shown.pair.flows.map((flows, i) =>
    through(flows, 0, shown.graphs[i].supernodes.names.length) * scale));
  made.push({ text: "outputs", color: "var(--logit)", x: width - BOX.out - 4, width: BOX.out, height: outputs,
    y: TOP + Math.max(0, (tall - outputs) / 2), matched: true });
  const flowing = new Set(shown.pair.flows.flatMap((flows, i) =>
    flows.map(([, from]) => from - shown.graphs[i].supernodes.names.length - 1)));
  const tokens = range(content.positions).filter((position) => flowing.has(position));
  const step = Math.max(BOX.height + 2, Math.min(ROW, tall / Math.max(1, tokens.length)));
  tokens.forEach((position, i) => {
    made[names.length + 1 + position] = { text: shown.token(side, position) || String(position),
      color: "var(--embedding)", x: 4, width: BOX.token, height: BOX.height, y: TOP + i * step, matched: true };
  });
  return made;
}

/** A depth's place between the shallowest and the deepest supernode. */
function between(depth, all) {
  const [low, high] = [Math.min(...all), Math.max(...all)];
  return high > low ? (depth - low) / (high - low) : 0.5;
}

/** Where each ribbon starts and ends, stacked along its boxes: [start, end] px from the middle. */
function stacked(drawn, ends, scale) {
  const found = drawn.map(() => [0, 0]);
  for (const [which, own, other] of [[0, 1, 0], [1, 0, 1]]) { // starts are at sources (1), ends at targets (0)
    const groups = Map.groupBy(drawn.map((_, i) => i), (i) => drawn[i][own]);
    for (const members of groups.values()) {
      members.sort((i, j) => ends[drawn[i][other]].y - ends[drawn[j][other]].y);
      let at = -members.reduce((sum, i) => sum + drawn[i][2] * scale, 0) / 2;
      for (const i of members) {
        found[i][which] = at + (drawn[i][2] * scale) / 2;
        at += drawn[i][2] * scale;
      }
    }
  }
  return found;
}

function ribbon([into, from, share, same], ends, [start, end], scale) {
  const [a, b] = [ends[from], ends[into]];
  const [x1, x2] = [a.x + a.width, b.x];
  const [y1, y2] = [a.y + a.height / 2 + start, b.y + b.height / 2 + end];
  const reach = Math.max(GAP, Math.abs(x2 - x1) / 2);
  const d = `M${x1} ${y1}C${x1 + reach} ${y1} ${x2 - reach} ${y2} ${x2} ${y2}`;
  const title = `${a.text} → ${b.text}: ${percent(share)} of the flow, ${percent(same)} in both graphs`;
  const path = (part, name) => svg("path", { d, class: name, stroke: a.color,
    "stroke-width": Math.max(0.6, part * scale) }, svg("title", {}, title));
  return [path(share, "whole"), ...(same > 0 ? [path(same, "same")] : [])];
}

function boxElements({ x, y, width, height, text, color, matched }) {
  const [line] = wrap(text, { width: width - 10, count: 1, size: 12 });
  return [svg("rect", { x, y, width, height, rx: 4, class: matched ? "box" : "box unmatched", stroke: color }),
    svg("text", { x: x + 5, y: y + height / 2 + 4 }, line, svg("title", {}, shorten(text, 300)))];
}

/** The strongest flows of both graphs as rows; what flows between the same ends of both is one row. */
function flowTable(shown) {
  const [one, two] = shown.graphs.map(({ supernodes }) => supernodes.names.length);
  const partner = new Map(shown.pair.supernodes);
  const same = (end) => (end < one ? partner.get(end) : end - one + two);
  const left = new Map(shown.pair.flows[1].map((flow) => [`${flow[0]} ${flow[1]}`, flow]));
  const rows = shown.pair.flows[0].map(([into, from, share, common]) => {
    const key = `${same(into)} ${same(from)}`;
    const other = left.get(key)?.[2] ?? 0;
    left.delete(key);
    return [endName(shown, 0, from), endName(shown, 0, into), share, other, common];
  });
  for (const [into, from, share, common] of left.values()) {
    rows.push([endName(shown, 1, from), endName(shown, 1, into), 0, share, common]);
  }
  rows.sort((a, b) => Math.max(b[2], b[3]) - Math.max(a[2], a[3]));
  const heads = ["from", "into", ...shown.graphs.map(({ name }) => name), "in both"];
  return element("div", { className: "wide" }, element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, isolated(text))))),
    element("tbody", {}, ...rows.slice(0, LISTED).map(([from, into, ...shares]) => element("tr", {},
      ...[from, into, ...shares.map(percent)].map((text) => element("td", {}, isolated(shorten(text, LABEL)))))))));
}

function endName(shown, side, end) {
  const { names } = shown.graphs[side].supernodes;
  if (end < names.length) return visibleLabel(names[end]);
  const position = end - names.length - 1;
  return position < 0 ? "outputs" : `${shown.token(side, position)} (${position})`;
}
