// Where nodes stand: one row per layer (embeddings at the bottom, logits on top), one column per position, and in
// each cell a small grid of nodes, most influential first. Columns widen and rows grow with what they must hold.
//
// Only shown nodes have a place: a page holds far more nodes than it opens with, and room for all of them would leave
// none for those few. Rows, columns and the order in a cell are those of all nodes, so that pruning never reorders.

const LARGEST = 20; // px between neighbouring nodes, where there is room
const SMALLEST = 9;
const SCROLLED = 11; // where the sheet is wider than the view anyway
const COLUMN_MIN = 58; // px: a token's text can be read
const COLUMN_MAX = 170; // px: beyond this a wide window spreads few tokens so far that edges turn flat
const CELL_PAD = 6;
const MARGIN = { left: 44, top: 4, right: 8, bottom: 40 };

/**
 * Places the nodes of the mask `shown` for a view of `width` by `height` px; larger than the view where the smallest
 * spacing needs it. Returns {x, y} per node (whole px; NaN where not shown), spacing, {text, center, start, size} per
 * row and column, and the sheet's width and height.
 */
export function layOut(graph, shown, width, height) {
  const cells = gather(graph, shown);
  const room = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  let spacing = LARGEST;
  let across = fitColumns(cells, spacing, room);
  while (across === null && --spacing >= SMALLEST) across = fitColumns(cells, spacing, room);
  if (across === null) {
    spacing = SCROLLED;
    across = wideColumns(cells, spacing, room.height);
  }
  const columns = spread(columnSizes(across, spacing), room.width, MARGIN.left, COLUMN_MAX);
  const rows = spread(rowSizes(cells, across, spacing), room.height, MARGIN.top, Infinity);
  return { ...place(graph, cells, across, rows, columns, spacing), spacing, columns,
    rows: rows.map((row, i) => ({ ...row, ...cells.rows[i] })), hasEverywhere: cells.everywhere,
    width: Math.max(width, end(columns) + MARGIN.right), height: Math.max(height, end(rows) + MARGIN.bottom) };
}

/** Radius per node, px: by the square root of influence, so that areas compare; tokens and logits have one size. */
export function radii(graph, shown, influence, spacing) {
  const most = strongest(graph, shown, influence);
  return Float32Array.from(graph.kind, (kind, i) => {
    const fixed = kind === "logit" || kind === "embedding";
    const radius = spacing * (fixed ? 0.34 : 0.27 + 0.19 * Math.sqrt(Math.min(1, (influence[i] || 0) / most)));
    return Math.round(4 * Math.min(7, radius)) / 4;
  });
}

/** The largest influence of a shown feature or error: what size and colour are measured against. */
export function strongest(graph, shown, influence) {
  let most = 0;
  for (let i = 0; i < graph.size; i++) {
    const counts = shown[i] && (graph.kind[i] === "feature" || graph.kind[i] === "error");
    if (counts && influence[i] > most) most = influence[i];
  }
  return most || 1;
}

function end(bands) {
  const last = bands[bands.length - 1];
  return last ? last.start + last.size : 0;
}

/** Sorts nodes into cells[row][column]. A first column holds constants that are the same at every position. */
function gather(graph, shown) {
  const { layer, position } = graph.nodes;
  const everywhere = graph.kind.some((kind, i) => kind === "constant" && position[i] < 0);
  const used = graph.kind.map((kind, i) => (kind === "embedding" ? -1 : kind === "logit" ? Infinity : layer[i]));
  const layers = [...new Set(used)].filter((l) => l >= 0 && l < Infinity).sort((a, b) => b - a);
  const rows = [{ layer: Infinity, text: "out" }, ...layers.map((l) => ({ layer: l, text: `L${l}` })),
    { layer: -1, text: "emb" }];
  const rowOf = new Map(rows.map((row, i) => [row.layer, i]));
  const columns = Math.max(1, graph.columns) + (everywhere ? 1 : 0);
  const grid = rows.map(() => Array.from({ length: columns }, () => []));
  graph.ranking ??= graph.byInfluence(Array.from(graph.kind.keys()));
  for (const node of graph.ranking) {
    if (!shown[node]) continue;
    const unplaced = everywhere && graph.kind[node] === "constant" ? 0 : columns - 1; // a direction has no position
    const column = position[node] < 0 ? unplaced : position[node] + (everywhere ? 1 : 0);
    grid[rowOf.get(used[node]) ?? rows.length - 1][column].push(node);
  }
  return { grid, rows, columns, everywhere };
}

function narrowColumns(cells, spacing) {
  return new Array(cells.columns).fill(Math.floor((COLUMN_MIN - CELL_PAD) / spacing));
}

const lines = (nodes, across) => Math.ceil(nodes.length / across);

/** Columns as wide as their nodes need for the rows to fit `height`: scrolling goes one way only. */
function wideColumns(cells, spacing, height) {
  const most = Math.max(1, Math.floor((height / cells.grid.length - CELL_PAD / 2) / spacing));
  return narrowColumns(cells, spacing).map((narrow, c) =>
    cells.grid.reduce((count, row) => Math.max(count, Math.ceil(row[c].length / most)), narrow));
}

function columnSizes(across, spacing) {
  return across.map((count) => Math.max(COLUMN_MIN, count * spacing + CELL_PAD));
}

function rowSizes(cells, across, spacing) {
  const most = (row) => Math.max(1, ...row.map((nodes, c) => lines(nodes, across[c])));
  return cells.grid.map((row) => most(row) * spacing + CELL_PAD / 2);
}

const total = (sizes) => sizes.reduce((sum, size) => sum + size, 0);

/** Nodes side by side per column, widening the fullest column until the rows fit; null where they cannot. */
function fitColumns(cells, spacing, room) {
  const across = narrowColumns(cells, spacing);
  let width = total(columnSizes(across, spacing));
  const excess = (c) => cells.grid.reduce((sum, row) => sum + Math.max(0, lines(row[c], across[c]) - 1), 0);
  const excesses = across.map((_, c) => excess(c));
  while (width <= room.width) {
    if (total(rowSizes(cells, across, spacing)) <= room.height) return across;
    const fullest = excesses.reduce((best, value, c) => (value > excesses[best] ? c : best), 0);
    if (excesses[fullest] === 0) return null;
    across[fullest]++;
    excesses[fullest] = excess(fullest);
    width += spacing;
  }
  return null;
}

/** Bands one after another that share what is left of `room`. */
function spread(sizes, room, start, most) {
  const extra = Math.max(0, room - total(sizes)) / sizes.length;
  let at = start;
  return sizes.map((needed) => {
    const size = Math.max(needed, Math.min(needed + extra, most));
    const band = { start: at, size, center: at + size / 2 };
    at += size;
    return band;
  });
}

function place(graph, cells, across, rows, columns, spacing) {
  const x = new Float32Array(graph.size).fill(NaN);
  const y = new Float32Array(graph.size).fill(NaN);
  cells.grid.forEach((row, r) => row.forEach((nodes, c) => {
    const count = lines(nodes, across[c]);
    nodes.forEach((node, i) => {
      const line = Math.floor(i / across[c]);
      const inLine = line < count - 1 ? across[c] : nodes.length - line * across[c];
      x[node] = Math.round(columns[c].center + ((i % across[c]) - (inLine - 1) / 2) * spacing);
      y[node] = Math.round(rows[r].center + (line - (count - 1) / 2) * spacing);
    });
  }));
  return { x, y };
}
