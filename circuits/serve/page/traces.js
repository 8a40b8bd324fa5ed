// The list of traces: what waits, the bar of the one that runs, and what became of those that ended.

import { element, isolated, shorten, visibleLabel } from "./text.js";

const SHOWN_ENDED = 3;

/** The list's items by id, so that a report of progress changes an item and does not make it anew: the focus stays. */
export class TraceList {
  /** `cancel(trace)` is called by the buttons. */
  constructor(list, cancel) {
    this.list = list;
    this.cancel = cancel;
    this.items = new Map();
  }

  /** Show these traces, newest first: all that have not ended, and the last few that have. */
  show(traces) {
    let ended = 0;
    const shown = traces.filter((trace) => trace.finished === null || ++ended <= SHOWN_ENDED);
    const ids = new Set(shown.map((trace) => trace.id));
    for (const [id, item] of this.items) {
      if (ids.has(id)) continue;
      item.box.remove();
      this.items.delete(id);
    }
    for (const trace of shown.toReversed()) { // each new one goes before the older ones
      if (!this.items.has(trace.id)) this.list.prepend(this.make(trace));
      this.update(trace);
    }
  }

  make(trace) {
    const prompt = isolated(visibleLabel(shorten(trace.request.prompt, 120)));
    const bar = element("progress", { max: 1 });
    bar.setAttribute("aria-label", "Progress");
    const state = element("span", { className: "state" });
    const button = element("button", { type: "button", className: "quiet" }, "Cancel");
    button.addEventListener("click", () => this.cancel(trace));
    const box = element("li", {}, element("span", { className: "name" }, prompt), bar, state, button);
    box.dataset.id = trace.id;
    this.items.set(trace.id, { box, bar, state, button });
    return box;
  }

  update(trace) {
    const item = this.items.get(trace.id);
    if (!item) return;
    const { box, bar, state, button } = item;
    box.dataset.state = trace.state;
    bar.hidden = trace.state !== "running";
    button.hidden = trace.finished !== null;
    if (trace.state === "running" && trace.total > 1) {
      bar.max = trace.total;
      bar.value = trace.done;
    } else {
      bar.removeAttribute("value"); // it cannot be told how much is left
    }
    state.replaceChildren(...describe(trace));
  }
}

/** What is said aloud when a trace changes its state. */
export function announcement(trace) {
  return { waiting: "Trace waits", running: "Trace runs", done: "Trace done", failed: "Trace failed",
    cancelled: "Trace cancelled" }[trace.state];
}

function describe(trace) {
  if (trace.state === "waiting") return [trace.ahead === 1 ? "waits, 1 before it" : `waits, ${trace.ahead} before it`];
  if (trace.state === "running") return [progress(trace)];
  if (trace.state === "cancelled") return ["cancelled"];
  if (trace.state === "failed") return [element("span", { className: "problem" }, isolated(visibleLabel(trace.error)))];
  const parts = [element("a", { href: `/graphs/${encodeURIComponent(trace.graph)}` }, "Open the graph")];
  for (const warning of trace.warnings) {
    parts.push(element("span", { className: "warning" }, isolated(visibleLabel(`warning: ${warning}`))));
  }
  return parts;
}

function progress(trace) {
  if (trace.total <= 1) return trace.stage || "starts";
  return `${trace.stage} ${trace.done.toLocaleString("en")} of at most ${trace.total.toLocaleString("en")}`;
}
