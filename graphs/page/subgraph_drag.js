// Dragging in the subgraph: boxes to a place or into a supernode, members out of one, a frame around several boxes.

import { svg } from "./svg.js";

const STILL = 4; // px: less is a click

/** Boxes follow the pointer, with them the others that are chosen; let go over a supernode, nodes go into it. */
export function dragBoxes(view, drawn) {
  const { d3 } = globalThis;
  let start = null;
  let moving = [];
  d3.selectAll(drawn).call(d3.drag().container(() => view.content).clickDistance(STILL)
    .filter((event) => !event.button && !event.ctrlKey && !event.target.closest(".chip"))
    .subject((event) => view.boxes.get(event.sourceEvent.target.closest(".box").dataset.key))
    .on("start", (event) => {
      start = [event.x, event.y];
      const chosen = [...view.chosen].filter((name) => view.boxes.has(name));
      moving = (chosen.includes(event.subject.key) ? chosen : [event.subject.key]).map((key) => view.boxes.get(key));
    })
    .on("drag", (event) => {
      shift(view, moving, event.dx, event.dy);
      showDrop(view, dropOf(view, event, moving));
    })
    .on("end", (event) => {
      showDrop(view, null);
      const away = Math.hypot(event.x - start[0], event.y - start[1]) * d3.zoomTransform(view.svg).k;
      const into = away < STILL ? null : dropOf(view, event, moving);
      if (away < STILL) shift(view, moving, start[0] - event.x, start[1] - event.y);
      else if (into) view.move(moving.flatMap((box) => box.nodes), into.key);
      else view.keepPlaces(moving.map((box) => box.key));
    }));
}

function shift(view, moving, dx, dy) {
  if (dx === 0 && dy === 0) return;
  for (const box of moving) Object.assign(box, { x: box.x + dx, y: box.y + dy });
  view.follow(moving.map((box) => box.key));
}

/** The supernode under the pointer into which the moving boxes (single nodes only) would go, or null. */
function dropOf(view, event, moving) {
  if (moving.some((box) => box.group !== null)) return null;
  const [x, y] = globalThis.d3.pointer(event.sourceEvent.changedTouches?.[0] ?? event.sourceEvent, view.content);
  return boxAt(view, x, y, (box) => box.group !== null);
}

function boxAt(view, x, y, fits) {
  return [...view.boxes.values()].find((box) => fits(box) && Math.abs(box.x - x) <= box.width / 2
    && Math.abs(box.y - y) <= box.height / 2) ?? null;
}

function showDrop(view, into) {
  for (const drawn of view.boxLayer.children) drawn.classList.toggle("drop", drawn.dataset.key === into?.key);
}

/** Members follow the pointer; let go outside they leave their supernode, over another they go into that one. */
export function dragChips(view, drawn) {
  const { d3 } = globalThis;
  let gone = [0, 0];
  d3.selectAll(drawn).call(d3.drag().container(() => view.content).clickDistance(STILL)
    .subject((event) => ({ x: event.x, y: event.y, chip: event.sourceEvent.target.closest(".chip") }))
    .on("start", ({ subject }) => {
      gone = [0, 0];
      subject.chip.closest(".box").parentNode.append(subject.chip.closest(".box")); // over the other boxes
    })
    .on("drag", (event) => {
      gone = [gone[0] + event.dx, gone[1] + event.dy];
      event.subject.chip.setAttribute("transform", `translate(${gone})`);
      view.pointing.hideTip();
      showDrop(view, boxAt(view, event.x, event.y, (box) => box.group !== null));
    })
    .on("end", (event) => {
      showDrop(view, null);
      const own = event.subject.chip.closest(".box").dataset.key;
      const over = boxAt(view, event.x, event.y, (box) => box.group !== null);
      event.subject.chip.removeAttribute("transform");
      if (over?.key === own || Math.hypot(...gone) * d3.zoomTransform(view.svg).k < STILL) return;
      view.move([Number(event.subject.chip.dataset.chip)], over?.key ?? null, over ? null : [event.x, event.y]);
    }));
}

/** Dragging over the background with Shift held chooses all boxes in the frame. */
export function bandSelect(view) {
  view.svg.addEventListener("pointerdown", (event) => {
    if (!event.shiftKey || event.button !== 0 || event.target.closest(".box")) return;
    const at = (moved) => globalThis.d3.pointer(moved, view.content);
    const start = at(event);
    const band = svg("rect", { class: "band" });
    view.content.append(band);
    view.svg.setPointerCapture(event.pointerId);
    event.preventDefault();
    const draw = (moved) => {
      const end = at(moved);
      const area = { x: Math.min(start[0], end[0]), y: Math.min(start[1], end[1]),
        width: Math.abs(end[0] - start[0]), height: Math.abs(end[1] - start[1]) };
      for (const [name, value] of Object.entries(area)) band.setAttribute(name, value);
      const inside = [...view.boxes.values()].filter((box) => touches(box, area)).map((box) => box.key);
      view.chooseOnly(inside);
    };
    const finish = () => {
      band.remove();
      view.svg.removeEventListener("pointermove", draw);
    };
    view.svg.addEventListener("pointermove", draw);
    view.svg.addEventListener("lostpointercapture", finish, { once: true });
  });
}

function touches(box, { x, y, width, height }) {
  return box.x + box.width / 2 >= x && box.x - box.width / 2 <= x + width && box.y + box.height / 2 >= y
    && box.y - box.height / 2 <= y + height;
}
