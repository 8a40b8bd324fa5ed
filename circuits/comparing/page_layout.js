// Where the nodes of two graphs stand: one column per token position for both, height by relative depth, and in each
// cell (layer and position) a small grid of nodes, the most influential first.

const HEIGHTS = [[500, 11], [660, 10], [860, 8]]; // px for all layers, and the smallest spacing to try with it
const LARGEST = 18; // px between neighbouring nodes, where there is room
const COLUMN_MIN = 48; // px
const COLUMN_MAX = 150;
const PAD = 6; // px of a column that its nodes leave free
const MARGIN = { left: 36, top: 6, right: 8, bottom: 44, out: 40, embedding: 30 };

/**
 * Places the nodes of `graphs` for views of `width` px. Returns {columns: [{start, size, center}], width, height,
 * spacing, yOf(depth), nodes: per graph [{x, y} or null per node]}; constants have no place.
 */
function layOut(graphs, positions, width) {
  const cells = graphs.map((graph) => gather(graph, positions));
  const room = width - MARGIN.left - MARGIN.right;
  let fitting = null;
  for (const [height, smallest] of HEIGHTS) {
    for (let spacing = LARGEST; spacing >= smallest; spacing--) {
      fitting = sized(cells, positions, height, spacing);
      if (fitting.total <= room) return placed(graphs, cells, fitting, room);
    }
  }
  return placed(graphs, cells, fitting, room); // wider than the view, which scrolls
}

/** Cells of a graph: {depth, column, nodes, pitch: the cell's share of the depth}. */
function gather(graph, positions) {
  const found = new Map();
  graph.nodes.forEach(({ kind, layer, depth, position }, node) => {
    if (kind === "constant") return;
    const column = position < 0 ? positions - 1 : Math.min(position, positions - 1); // a direction has no position
    const row = kind === "embedding" ? "in" : kind === "logit" ? "out" : layer;
    const key = `${row} ${column}`;
    if (!found.has(key)) found.set(key, { row, depth, column, nodes: [], pitch: 1 / Math.max(1, graph.layers) });
    found.get(key).nodes.push(node);
  });
  for (const { nodes } of found.values()) nodes.sort((a, b) => graph.nodes[b].share - graph.nodes[a].share);
  return [...found.values()];
}

/** How wide columns must be when all layers have `height` px and nodes are `spacing` apart. */
function sized(cells, positions, height, spacing) {
  const sizes = new Array(positions).fill(COLUMN_MIN);
  const lines = (cell) => {
    const room = cell.row === "out" ? MARGIN.out : cell.row === "in" ? MARGIN.embedding : height * cell.pitch;
    return Math.max(1, Math.floor(room / spacing));
  };
  for (const cell of cells.flat()) {
    const across = Math.ceil(cell.nodes.length / lines(cell));
    sizes[cell.column] = Math.max(sizes[cell.column], across * spacing + PAD);
  }
  return { height, spacing, sizes, total: sizes.reduce((sum, size) => sum + size, 0) };
}

function placed(graphs, cells, { height, spacing, sizes, total }, room) {
  const extra = Math.max(0, room - total) / sizes.length;
  let start = MARGIN.left;
  const columns = sizes.map((needed) => {
    const size = Math.max(needed, Math.min(needed + extra, COLUMN_MAX));
    const column = { start, size, center: start + size / 2 };
    start += size;
    return column;
  });
  const top = MARGIN.top + MARGIN.out;
  const yOf = (depth) => top + (1 - depth) * height;
  const nodes = graphs.map((graph, side) => {
    const places = new Array(graph.nodes.length).fill(null);
    for (const cell of cells[side]) {
      const y = cell.row === "out" ? MARGIN.top + MARGIN.out / 2
        : cell.row === "in" ? top + height + MARGIN.embedding / 2 : yOf(cell.depth);
      const column = columns[cell.column];
      const across = Math.max(1, Math.min(cell.nodes.length, Math.floor((column.size - PAD) / spacing)));
      const count = Math.ceil(cell.nodes.length / across);
      cell.nodes.forEach((node, i) => {
        const line = Math.floor(i / across);
        const inLine = line < count - 1 ? across : cell.nodes.length - line * across;
        places[node] = { x: column.center + ((i % across) - (inLine - 1) / 2) * spacing,
          y: y + (line - (count - 1) / 2) * spacing };
      });
    }
    return places;
  });
  return { columns, spacing, yOf, nodes, width: start + MARGIN.right,
    height: top + height + MARGIN.embedding + MARGIN.bottom };
}
