// The two halves of the page: tabs, the side panel's width, and enlarging one half over the other.

import { element } from "./text.js";

const LEFT = { graph: "Graph", subgraph: "Subgraph", split: "Both", table: "Table", attention: "Attention" };
const RIGHT = { node: "Node", explanation: "Explanation", unexplained: "Unexplained", groups: "Supernodes",
  pruning: "Pruning", checked: "Checked" };
const PANES = { graph: ["plot"], subgraph: ["subgraph"], split: ["plot", "subgraph"], table: ["table"], node: ["panel"] };
const NARROWEST = 300; // px of the side panel
const STEP = 24; // px that an arrow key moves the splitter
const byId = (id) => document.getElementById(id);

/** Make the tabs and follow the state. */
export function openFrame(app) {
  const right = app.graph.values.live?.steer ? { ...RIGHT, steer: "Steer" } : RIGHT;
  const sides = { left: tabs(app, "left", LEFT), right: tabs(app, "right", right) };
  const show = (state) => {
    for (const [side, buttons] of Object.entries(sides)) showSide(state, side, buttons);
    byId("main").dataset.large = state.large ?? "";
    byId("left-panes").classList.toggle("split", state.left === "split");
  };
  listenToSplitter();
  app.subscribe(show);
  show(app.state);
}

function tabs(app, side, names) {
  const list = byId(`${side}-tabs`);
  const buttons = Object.entries(names).map(([name, title]) => {
    const button = element("button", { type: "button", id: `tab-${name}` }, title);
    button.setAttribute("role", "tab");
    button.setAttribute("aria-controls", (PANES[name] ?? [name]).join(" "));
    button.addEventListener("click", () => app.set({ [side]: name }));
    return button;
  });
  const enlarge = element("button", { type: "button", className: "enlarge" });
  enlarge.addEventListener("click", () => app.set({ large: app.state.large === side ? null : side }));
  list.append(...buttons);
  byId(`${side}-bar`).append(enlarge);
  list.addEventListener("keydown", (event) => walkTabs(event, buttons));
  return { names, buttons, enlarge };
}

function walkTabs(event, buttons) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const at = buttons.indexOf(event.target);
  if (!step || at < 0) return;
  const next = buttons[(at + step + buttons.length) % buttons.length];
  next.focus();
  next.click();
  event.preventDefault();
  event.stopPropagation();
}

function showSide(state, side, { names, buttons, enlarge }) {
  const open = new Set(PANES[state[side]] ?? [state[side]]);
  Object.keys(names).forEach((name, i) => {
    const chosen = name === state[side];
    buttons[i].setAttribute("aria-selected", String(chosen));
    buttons[i].tabIndex = chosen ? 0 : -1;
  });
  for (const pane of byId(`${side}-panes`).children) pane.hidden = !open.has(pane.id);
  const large = state.large === side;
  enlarge.textContent = large ? "⤡" : "⤢";
  enlarge.title = large ? "Show both halves again" : "Enlarge this half over the other";
  enlarge.setAttribute("aria-label", enlarge.title);
  enlarge.setAttribute("aria-pressed", String(large));
}

function listenToSplitter() {
  const splitter = byId("splitter");
  const resize = (width) => {
    const most = Math.max(NARROWEST, innerWidth * 0.7);
    byId("main").style.setProperty("--side", `${Math.round(Math.min(most, Math.max(NARROWEST, width)))}px`);
  };
  const width = () => byId("right").getBoundingClientRect().width;
  splitter.addEventListener("pointerdown", (event) => {
    splitter.setPointerCapture(event.pointerId);
    const right = byId("right").getBoundingClientRect().right;
    const move = (moved) => resize(right - moved.clientX);
    splitter.addEventListener("pointermove", move);
    splitter.addEventListener("lostpointercapture", () => splitter.removeEventListener("pointermove", move), { once: true });
  });
  splitter.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: STEP, ArrowRight: -STEP }[event.key];
    if (step) resize(width() + step);
  });
}
