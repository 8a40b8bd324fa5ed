// Pointer, wheel and keyboard in the subgraph, and what is lit and told about the thing pointed at.

import { nameOf } from "./subgraph_boxes.js";
import { bandSelect } from "./subgraph_drag.js";
import { boxTip, linkTip } from "./subgraph_tip.js";
import { element } from "./text.js";

const STEP = 10; // px that an arrow key moves a box
const ZOOMS = [0.1, 4];

/** Makes the view listen; returns its d3 zoom. */
export function listen(view) {
  const { svg } = view;
  svg.addEventListener("click", (event) => click(view, event));
  svg.addEventListener("dblclick", (event) => {
    if (!event.target.closest(".chip")) view.rename(event.target.closest(".box")?.dataset.key);
  });
  svg.addEventListener("keydown", (event) => press(view, event));
  for (const type of ["pointerover", "focusin"]) svg.addEventListener(type, (event) => view.pointing.at(event.target));
  for (const type of ["pointerleave", "focusout"]) svg.addEventListener(type, () => view.pointing.leave());
  bandSelect(view);
  const { d3 } = globalThis;
  const zoom = d3.zoom().scaleExtent(ZOOMS)
    .filter((event) => !event.button && !event.shiftKey && (event.type === "wheel" || !event.target.closest(".box")))
    .on("zoom", (event) => {
      view.content.setAttribute("transform", String(event.transform));
      if (event.sourceEvent) view.fitting = false;
      view.pointing.hideTip();
    });
  d3.select(svg).call(zoom).on("dblclick.zoom", null);
  return zoom;
}

function click(view, event) {
  const name = nameOf(event.target.closest(".chip, .box"));
  if (name !== null) view.choose(name, event.shiftKey);
  else if (!event.shiftKey) {
    view.chooseOnly([]);
    view.app.select(null);
  }
}

function press(view, event) {
  const at = event.target.closest(".chip, .box");
  const key = event.target.closest(".box")?.dataset.key;
  const move = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
  if (!at || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" || event.key === " ") view.choose(nameOf(at), event.shiftKey);
  else if (event.key === "F2") view.rename(key);
  else if (event.key === "Delete" || event.key === "Backspace") view.remove([nameOf(at)]);
  else if (move) {
    const box = view.boxes.get(key);
    Object.assign(box, { x: box.x + move[0], y: box.y + move[1] });
    view.keepPlaces([key], `move ${key}`);
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

/** What the pointer or the keyboard is at: its links are lit, a tooltip stands beside it, the other views are told. */
export class Pointing {
  constructor(view) {
    this.view = view;
    this.lit = () => true;
    this.tip = element("div", { className: "tip", hidden: true });
    this.tip.setAttribute("role", "tooltip");
    view.root.append(this.tip);
  }

  at(target) {
    const { app, boxes, links } = this.view;
    const drawn = target.closest(".chip, .box, .link, .weight");
    if (!drawn) return this.leave();
    const { source, target: end, chip } = drawn.dataset;
    if (source !== undefined) {
      app.hover(null);
      this.light((link) => link.source === source && link.target === end);
      const link = links.find((one) => one.source === source && one.target === end);
      return this.showTip(drawn, linkTip(boxes, link));
    }
    const box = boxes.get(drawn.closest(".box").dataset.key);
    const [first, ...others] = chip === undefined ? box.nodes : [Number(chip)];
    app.hover(first, others);
    this.light((link) => link.source === box.key || link.target === box.key);
    this.showTip(drawn, boxTip(app, box, chip === undefined ? null : first));
  }

  leave() {
    this.view.app.hover(null);
    this.light(() => true);
    this.hideTip();
  }

  /** Dims the links that `isLit` (of {source, target}) is false for; by default as they were. */
  light(isLit = this.lit) {
    this.lit = isLit;
    this.view.drawnLinks.light(isLit);
  }

  /** Beside a box, below a link; always inside the view. */
  showTip(drawn, content) {
    this.tip.replaceChildren(...content);
    this.tip.hidden = false;
    const pane = this.view.root.getBoundingClientRect();
    const at = drawn.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.tip;
    const isLink = drawn.matches(".link, .weight");
    const beside = at.right + 8 + width < pane.right ? at.right + 8 : at.left - width - 8;
    const left = (isLink ? (at.left + at.right) / 2 + 14 : beside) - pane.left;
    const top = (isLink ? (at.top + at.bottom) / 2 + 10 : at.top) - pane.top;
    this.tip.style.left = `${Math.max(4, Math.min(pane.width - width - 4, left))}px`;
    this.tip.style.top = `${Math.max(4, Math.min(pane.height - height - 4, top))}px`;
  }

  hideTip() {
    this.tip.hidden = true;
  }
}
