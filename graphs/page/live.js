// What a page behind a server can do more: the way back to the gallery, keeping pins, supernodes and labels in the
// graph's file, and tracing again. Nothing of this while the page is a file.

import { Refused, request } from "./live_request.js";
import { TraceDialog } from "./live_trace.js";
import { notice } from "./notice.js";
import { element } from "./text.js";

const CHANGED = 412;

/** `live`: {name, etag, gallery, annotations, trace}, addresses on this server; null for a file. */
export function connect(app, live) {
  if (live === null) return;
  app.live = live;
  const gallery = element("a", { href: live.gallery, target: "_top", title: "All graphs of this server" }, "Gallery");
  const saver = new Saver(app, live);
  const made = [gallery, saver.button, saver.status];
  if (live.trace) {
    const dialog = new TraceDialog(app, live);
    const trace = element("button", { type: "button", id: "trace", title: "Trace this prompt or another one" },
      "Trace again…");
    trace.addEventListener("click", () => dialog.open());
    made.push(trace);
  }
  const place = element("span", { className: "buttons live" }, ...made);
  document.querySelector("#tools .buttons").after(place);
}

/** Keeps what a person made in the graph's file, and tells whether the file has it. */
class Saver {
  constructor(app, live) {
    this.app = app;
    this.live = live;
    this.etag = live.etag;
    this.labels = app.graph.values.labels.slice(); // as the file has them
    this.kept = JSON.stringify(chosen(app, app.first)); // pins and supernodes of the file
    this.saving = false;
    this.button = element("button", { type: "button", id: "save",
      title: "Keep pins, supernodes and labels in the graph's file (Ctrl S)" }, "Save");
    this.button.addEventListener("click", () => this.save());
    this.status = element("span", { id: "save-status" });
    this.status.setAttribute("role", "status");
    window.addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "s") return;
      event.preventDefault();
      if (!this.button.disabled) this.save();
    });
    app.subscribe((state, previous) => {
      if (["pins", "groups", "labels"].some((name) => state[name] !== previous[name])) this.show();
    });
    this.show();
  }

  /** What is to be saved: all pins and supernodes, and the labels that differ from the file's. */
  annotations() {
    const { graph, state } = this.app;
    const labels = graph.labels.map((text, i) => [i, text]).filter(([i, text]) => text !== this.labels[i]);
    return { ...chosen(this.app, state), labels: Object.fromEntries(labels.map(([i, text]) => [graph.ids[i], text])) };
  }

  show() {
    const { labels, ...others } = this.annotations();
    const unsaved = Object.keys(labels).length > 0 || JSON.stringify(others) !== this.kept;
    this.button.disabled = this.saving || !unsaved;
    const said = this.saving ? "saving…" : unsaved ? "● not saved" : "saved";
    if (this.status.textContent !== said) this.status.textContent = said;
  }

  async save() {
    const sent = this.annotations();
    this.saving = true;
    this.show();
    try {
      this.etag = (await request("PUT", this.live.annotations, sent, { "If-Match": this.etag ?? "*" })).etag;
      const { labels, ...others } = sent;
      this.kept = JSON.stringify(others);
      for (const [id, text] of Object.entries(labels)) this.labels[this.app.graph.byId.get(id)] = text;
    } catch (error) {
      this.tell(error);
    }
    this.saving = false;
    this.show();
  }

  tell(error) {
    if (!(error instanceof Refused)) throw error;
    const reload = () => {
      this.app.address.flush();
      location.reload();
    };
    if (error.status === CHANGED) {
      notice("Not saved: the graph's file was changed by someone else. Reload the page to see that; what you changed "
        + "here stays, and can then be saved.", { problem: true, topic: "save", actions: [["Reload", reload]] });
    } else notice(`Not saved: ${error.message}`, { problem: true, topic: "save" });
  }
}

/** Pins and supernodes of a state, by id. */
function chosen({ graph }, { pins, groups }) {
  const id = (node) => graph.ids[node];
  return { pinned: pins.map(id), supernodes: groups.map((group) => [group.name, ...group.nodes.map(id)]) };
}
