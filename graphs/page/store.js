// The state of the page: one frozen object, changed as a whole, with undo and redo of what a person made.

/** What undo gives back; the rest (selection, tabs, search) is where one looks, not what one made. */
const MADE = ["pins", "groups", "labels", "thresholds", "target", "places", "dismissed"];
const REMEMBERED = 200;

export class Store {
  constructor(initial) {
    this.state = Object.freeze(initial);
    this.past = [];
    this.future = [];
    this.listeners = [];
  }

  /** Calls `listener(state, previous)` after every change. */
  subscribe(listener) {
    this.listeners.push(listener);
  }

  /** Change some fields. Changes with the same `merge` text one after another (a slider's) are one step of undo. */
  set(changes, { undoable = true, merge = null } = {}) {
    const names = Object.keys(changes).filter((name) => changes[name] !== this.state[name]);
    if (names.length === 0) return;
    if (undoable && names.some((name) => MADE.includes(name))) {
      if (merge === null || merge !== this.merging) this.past.push(made(this.state));
      if (this.past.length > REMEMBERED) this.past.shift();
      this.future = [];
      this.merging = merge;
    }
    this.put(changes);
  }

  get canUndo() {
    return this.past.length > 0;
  }

  get canRedo() {
    return this.future.length > 0;
  }

  undo() {
    this.step(this.past, this.future);
  }

  redo() {
    this.step(this.future, this.past);
  }

  step(from, to) {
    if (from.length === 0) return;
    to.push(made(this.state));
    this.merging = null;
    this.put(from.pop());
  }

  put(changes) {
    const previous = this.state;
    this.state = Object.freeze({ ...previous, ...changes });
    for (const listener of this.listeners) listener(this.state, previous);
  }
}

function made(state) {
  return Object.fromEntries(MADE.map((name) => [name, state[name]]));
}
