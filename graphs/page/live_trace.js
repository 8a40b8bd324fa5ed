// The dialog that traces a prompt on the server, follows the trace and leads to its graph.

import { Refused, request } from "./live_request.js";
import { element, isolated, visibleLabel } from "./text.js";

const LONGEST_PROMPT = 20_000; // characters, as the server's limits
const LONGEST_TOKEN = 200;
const LONGEST_NAME = 80;
const LOOK = 500; // ms between looks at a trace
const MISSES = 4; // looks in a row that may go unanswered
const COVERAGE = 0.95;

export class TraceDialog {
  constructor(app, live) {
    this.live = live;
    this.following = null; // address of the trace that is followed
    const { prompt, settings } = app.graph.header;
    const text = (value) => (typeof value === "string" ? value : "");
    this.fields = {
      prompt: element("textarea", { rows: 4, maxLength: LONGEST_PROMPT, required: true, value: prompt }),
      chat: element("input", { type: "checkbox", checked: settings.chat === true }),
      target: element("input", { type: "text", maxLength: LONGEST_TOKEN, value: text(settings.target) }),
      versus: element("input", { type: "text", maxLength: LONGEST_TOKEN, value: text(settings.versus) }),
      coverage: element("input", { type: "number", min: "0.01", max: "1", step: "any", required: true,
        value: String(Number.isFinite(settings.coverage) ? settings.coverage : COVERAGE) }),
      name: element("input", { type: "text", maxLength: LONGEST_NAME, placeholder: "made of the prompt" }),
    };
    this.dialog = this.build();
    document.body.append(this.dialog);
  }

  build() {
    const labelled = (text, field, hint = "") => element("label", {}, element("span", {}, text), field,
      ...(hint ? [element("small", {}, hint)] : []));
    const { prompt, chat, target, versus, coverage, name } = this.fields;
    this.inputs = element("fieldset", {}, labelled("Prompt", prompt),
      labelled("Chat template", chat, "for -it models"),
      labelled("Target", target, "a token to explain, its space included; empty: the likeliest ones"),
      labelled("Versus", versus, "why the target and not this token"),
      labelled("Coverage", coverage, "share of influence to explore, at most 1"), labelled("Name", name));
    this.start = element("button", { type: "submit", className: "plain" }, "Trace");
    this.cancel = element("button", { type: "button", className: "plain", hidden: true }, "Cancel the trace");
    this.cancel.addEventListener("click", () => this.stop());
    this.close = element("button", { type: "button", className: "plain" }, "Close");
    this.close.addEventListener("click", () => this.dialog.close());
    this.bar = element("progress", { hidden: true });
    this.bar.setAttribute("aria-label", "Progress of the trace");
    this.said = element("p", { className: "trace-said" });
    this.said.setAttribute("role", "status");
    const form = element("form", {}, element("h2", {}, "Trace again"), this.inputs, this.bar, this.said,
      element("div", { className: "dialog-buttons" }, this.start, this.cancel, this.close));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.trace();
    });
    const dialog = element("dialog", { id: "trace-dialog" }, form);
    dialog.setAttribute("aria-label", "Trace again");
    dialog.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") event.stopPropagation(); // the page's keys do not reach through the dialog
    });
    return dialog;
  }

  open() {
    this.dialog.showModal();
    (this.following === null ? this.fields.prompt : this.cancel).focus();
  }

  asked() {
    const { prompt, chat, target, versus, coverage, name } = this.fields;
    const given = { prompt: prompt.value, chat: chat.checked, coverage: Number(coverage.value) };
    if (target.value !== "") given.target = target.value;
    if (versus.value !== "") given.versus = versus.value;
    if (name.value.trim() !== "") given.name = name.value.trim();
    return given;
  }

  async trace() {
    this.busy(true);
    this.say("asking the server…");
    try {
      const begun = await request("POST", this.live.trace, this.asked());
      this.following = `${this.live.trace}/${encodeURIComponent(begun.id)}`;
      this.cancel.hidden = false;
      this.cancel.focus();
      this.showEnd(await this.follow());
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.say(error.message, true);
    }
    this.following = null;
    this.busy(false);
  }

  /** Looks again and again until the trace has ended; gives its last state. */
  async follow() {
    let misses = 0;
    for (;;) {
      try {
        const state = await request("GET", this.following);
        misses = 0;
        this.showProgress(state);
        if (state.finished !== null) return state;
      } catch (error) {
        misses += 1;
        if (!(error instanceof Refused) || error.status !== 0 || misses >= MISSES) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, LOOK));
    }
  }

  async stop() {
    this.cancel.disabled = true;
    try {
      this.showProgress(await request("DELETE", this.following));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.say(error.message, true);
    }
  }

  showProgress({ state, ahead, stage, done, total }) {
    if (total > 1 && done <= total) {
      this.bar.max = total;
      this.bar.value = done;
    } else this.bar.removeAttribute("value");
    const waiting = ahead > 0 ? `waiting: ${ahead} before it` : "waiting";
    const counted = total > 1 ? ` ${done.toLocaleString("en")} of ${total.toLocaleString("en")}` : "";
    this.say(state === "waiting" ? waiting : `${stage || state}${counted}`);
  }

  showEnd({ state, graph, error, warnings }) {
    if (state === "done" && graph !== null) {
      const href = `${this.live.gallery}graphs/${encodeURIComponent(graph)}`;
      const link = element("a", { href, target: "_top" }, "Open ", isolated(visibleLabel(graph)));
      this.said.className = "trace-said";
      this.said.replaceChildren("Done. ", link,
        ...warnings.map((text) => element("small", {}, isolated(visibleLabel(text)))));
      link.focus();
    } else this.say(state === "cancelled" ? "Cancelled." : error ?? `the trace ended: ${state}`, state === "failed");
  }

  busy(on) {
    const focused = document.activeElement; // a control that is switched off would lose it to the page
    this.inputs.disabled = on;
    this.start.disabled = on;
    this.bar.hidden = !on;
    if (!on) this.cancel.hidden = true;
    this.cancel.disabled = false;
    if (focused === this.start) this.close.focus();
    else if (focused === this.cancel) this.start.focus();
  }

  say(text, problem = false) {
    this.said.className = problem ? "trace-said problem" : "trace-said";
    this.said.replaceChildren(isolated(visibleLabel(text)));
  }
}
