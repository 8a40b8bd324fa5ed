// One message at the foot of the page: what was done, or why it could not be done.

import { element, isolated } from "./text.js";

const SHOWN = 8000; // ms for a message that asks for nothing

/** `actions`: [[text, function]] of buttons beside the message. It takes the place of an earlier one of its `topic`. */
export function notice(text, { problem = false, actions = [], topic = "" } = {}) {
  const all = document.getElementById("notices") ?? document.body.appendChild(element("div", { id: "notices" }));
  for (const earlier of [...all.children]) if (earlier.dataset.topic === topic) earlier.remove();
  const box = element("div", { className: problem ? "notice problem" : "notice" });
  box.dataset.topic = topic;
  box.setAttribute("role", problem ? "alert" : "status");
  const close = element("button", { type: "button", className: "close", title: "Close this message" }, "×");
  close.setAttribute("aria-label", close.title);
  close.addEventListener("click", () => box.remove());
  const buttons = actions.map(([name, act]) => {
    const button = element("button", { type: "button", className: "plain" }, name);
    button.addEventListener("click", () => {
      box.remove();
      act();
    });
    return button;
  });
  all.append(box);
  box.append(element("p", {}, isolated(text)), ...buttons, close); // after the box: only changes are read out
  if (!problem && actions.length === 0) setTimeout(() => box.remove(), SHOWN);
}
