// Edges as curves: how one is drawn, and many of them, through a picture that is drawn piece by piece, so that nothing
// waits for it.

const MARGIN = 0.5; // of the view's size, drawn beyond it on each side, so that short scrolls need no new picture
const AT_ONCE = 120; // edges that the first frame has; so few are drawn without a picture
const PIECE = { least: 100, most: 800 }; // edges of each later frame
const SLOW = 40; // ms between frames: draw less in each
const FAST = 24; // ms between frames: draw more in each

/** How wide an edge with a share (NaN: a constant's) of its target's inputs is, px. */
export const widthOf = (share) => 0.8 + 5 * Math.sqrt(Number.isNaN(share) ? 0.01 : Math.min(1, share));

/** Makes the curve from (x1, y1) up to (x2, y2) the context's path. */
export function curve(context, x1, y1, x2, y2) {
  const bend = (y2 - y1) * 0.4;
  context.beginPath();
  context.moveTo(x1, y1);
  context.bezierCurveTo(x1, y1 + bend, x2, y2 - bend, x2, y2);
}

/**
 * Edges, strongest first. Many are a picture of the visible part of the sheet and some of what is beside it, whose later
 * pieces go under earlier ones: the strongest edges are seen first and end on top, and scrolling copies the picture.
 */
export class Strands {
  /** `changed()` is called when another piece is there to be drawn on the page. */
  constructor(graph, changed) {
    Object.assign(this, { graph, changed, edges: [], style: null, layout: null, part: null, frame: 0 });
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d");
  }

  /** Show other edges: `style(e)` gives {color, width, dashed (not, where it is missing)}. */
  show(edges, style) {
    Object.assign(this, { edges, style, part: null });
  }

  /** Edges have other places now. */
  place(layout) {
    Object.assign(this, { layout, part: null });
  }

  get few() {
    return this.edges.length <= AT_ONCE;
  }

  get done() {
    return this.few || (this.part !== null && this.next >= this.edges.length);
  }

  /** Draws what `port` {left, top, width, height} of the sheet has, on a context whose origin is the sheet's. */
  drawOn(context, port) {
    if (this.few) {
      for (let i = this.edges.length - 1; i >= 0; i--) this.strokeEdge(context, port, this.edges[i]);
      return;
    }
    if (!this.covers(port)) this.begin(port);
    const { left, top, width, height } = this.part;
    context.drawImage(this.canvas, left, top, width, height);
  }

  covers({ left, top, width, height }) {
    const { part } = this;
    return part !== null && part.scale === devicePixelRatio && left >= part.left && top >= part.top
      && left + width <= part.left + part.width && top + height <= part.top + part.height;
  }

  begin(port) {
    const [left, width] = around(port.left, port.width, this.layout.width);
    const [top, height] = around(port.top, port.height, this.layout.height);
    const scale = devicePixelRatio;
    this.part = { left, top, width, height, scale };
    this.canvas.width = Math.ceil(width * scale); // empties it, too
    this.canvas.height = Math.ceil(height * scale);
    this.context.setTransform(scale, 0, 0, scale, -left * scale, -top * scale);
    this.context.globalCompositeOperation = "destination-over";
    this.next = 0;
    this.piece = AT_ONCE;
    this.draw(AT_ONCE);
    cancelAnimationFrame(this.frame);
    this.last = null;
    if (!this.done) this.frame = requestAnimationFrame((now) => this.go(now));
  }

  /** The next piece, as large as the time between frames allows. */
  go(now) {
    if (this.part === null) return;
    const gap = this.last === null ? SLOW : now - this.last;
    if (gap > SLOW) this.piece = Math.max(PIECE.least, this.piece / 2);
    if (gap < FAST) this.piece = Math.min(PIECE.most, this.piece * 2);
    this.last = now;
    this.draw(this.piece);
    if (!this.done) this.frame = requestAnimationFrame((later) => this.go(later));
    this.changed();
  }

  /** Draws the next edges until `count` of them are in this part of the sheet. */
  draw(count) {
    for (let drawn = 0; drawn < count && this.next < this.edges.length; this.next++) {
      if (this.strokeEdge(this.context, this.part, this.edges[this.next])) drawn++;
    }
  }

  /** Whether the edge is in that part of the sheet, and so was drawn. */
  strokeEdge(context, { left, top, width, height }, e) {
    const { x, y } = this.layout;
    const from = this.graph.edges.indices[e];
    const to = this.graph.target[e];
    const inside = Math.max(x[from], x[to]) >= left && Math.min(x[from], x[to]) <= left + width
      && Math.max(y[from], y[to]) >= top && Math.min(y[from], y[to]) <= top + height;
    if (inside) stroke(context, this.layout, from, to, this.style(e)); // not where a node is hidden: NaN compares false
    return inside;
  }
}

export function stroke(context, { x, y }, from, to, { color, width, dashed }) {
  curve(context, x[from], y[from], x[to], y[to]);
  context.strokeStyle = color;
  context.lineWidth = width;
  if (dashed) context.setLineDash([5, 4]);
  context.stroke();
  if (dashed) context.setLineDash([]);
}

/** Start and size of what to draw around a view of `size` px at `start` on a sheet of `whole` px, whole px. */
function around(start, size, whole) {
  const first = Math.max(0, Math.floor(start - MARGIN * size));
  const last = Math.min(Math.max(whole, start + size), Math.ceil(start + size + MARGIN * size));
  return [first, Math.ceil(last - first)];
}
