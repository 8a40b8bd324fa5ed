// Plain buttons.

import { element } from "./text.js";

/** A button that calls `pressed`; `properties` as of element(), and `title` is its name too, where given. */
export function button(text, pressed, properties = {}) {
  const made = element("button", { type: "button", className: "plain", ...properties }, text);
  if (properties.title) made.setAttribute("aria-label", properties.title);
  made.addEventListener("click", pressed);
  return made;
}
