// Which node is at a point: nodes are sorted into squares, so that a pointer's move looks at a few of them only.

const SQUARE = 32; // px; more than the largest radius and the reach together

export class HitGrid {
  /** Places {x, y} (NaN: not shown) and radii of all nodes, px. */
  constructor({ x, y }, radius) {
    Object.assign(this, { x, y, radius });
    this.squares = new Map();
    for (let i = 0; i < x.length; i++) {
      if (Number.isNaN(x[i])) continue;
      const key = keyOf(Math.floor(x[i] / SQUARE), Math.floor(y[i] / SQUARE));
      if (!this.squares.has(key)) this.squares.set(key, []);
      this.squares.get(key).push(i);
    }
  }

  /** The node nearest to a point whose edge is less than `reach` px away, or null. */
  at(px, py, reach) {
    const column = Math.floor(px / SQUARE);
    const row = Math.floor(py / SQUARE);
    let best = null;
    let least = reach;
    for (let c = column - 1; c <= column + 1; c++) {
      for (let r = row - 1; r <= row + 1; r++) {
        for (const i of this.squares.get(keyOf(c, r)) ?? []) {
          const away = Math.hypot(this.x[i] - px, this.y[i] - py) - this.radius[i];
          if (away < least) [best, least] = [i, away];
        }
      }
    }
    return best;
  }
}

const keyOf = (column, row) => column * 65536 + row;
