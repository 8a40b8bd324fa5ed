// Keeps the state in the page's address. Browsers refuse or ignore more than about 100 changes of it in 10 seconds
// (a slider makes more), so that after a burst the latest state waits for its turn.

import { LONGEST } from "./hash.js";

const BURST = 40; // changes at once
const EACH = 250; // ms until one more is allowed

export class Address {
  /** `onTooLong` is called, once, when a state does not fit into an address. */
  constructor(onTooLong) {
    this.onTooLong = onTooLong;
    this.allowed = BURST;
    this.countedAt = performance.now();
    this.waiting = null;
    this.timer = null;
    this.write(location.hash.slice(1), false); // so that Back to this entry is told from an address put in by hand
    window.addEventListener("pagehide", () => this.flush());
  }

  /** Put a hash into the address, soon; `step`: as one that Back returns from. */
  put(hash, step) {
    const now = this.waiting === null ? location.hash.slice(1) : this.waiting.hash;
    if (hash === now && !step) return;
    this.waiting = { hash, step: step || (this.waiting?.step ?? false) };
    const passed = performance.now() - this.countedAt;
    this.allowed = Math.min(BURST, this.allowed + passed / EACH);
    this.countedAt += passed;
    if (this.allowed >= 1) this.flush();
    else this.timer ??= setTimeout(() => this.flush(), EACH);
  }

  /** Write what waits, now. */
  flush() {
    this.allowed -= 1;
    clearTimeout(this.timer);
    this.timer = null;
    if (this.waiting !== null) this.write(this.waiting.hash, this.waiting.step);
    this.waiting = null;
  }

  /** What waits is not to be written: the browser went elsewhere. */
  drop() {
    clearTimeout(this.timer);
    this.timer = null;
    this.waiting = null;
  }

  write(hash, step) {
    if (hash.length > LONGEST) {
      this.onTooLong?.();
      this.onTooLong = null;
      return;
    }
    const address = location.href.split("#")[0] + (hash ? `#${hash}` : "");
    try {
      history[step ? "pushState" : "replaceState"]({ ours: true }, "", address);
    } catch {
      // A page inside of another document may have no address of its own: it works without.
    }
  }
}
