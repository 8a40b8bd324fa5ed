// A question to the server's model, asked by a button: the answer takes the button's place.

import { button } from "./button.js";
import { Refused, request } from "./live_request.js";
import { element, isolated, visibleLabel } from "./text.js";

/** A button `text` that asks `address`; `show(answer)` gives the elements that replace it, or an error stands there. */
export function askButton(text, address, show) {
  const place = element("div", { className: "asked" });
  const said = element("span", { className: "hint" });
  said.setAttribute("role", "status");
  const ask = button(text, async () => {
    if (ask.getAttribute("aria-disabled") === "true") return; // on its way; disabled, it would lose the keyboard
    ask.setAttribute("aria-disabled", "true");
    said.className = "hint";
    said.textContent = " asking the model…";
    try {
      place.replaceChildren(...show(await request("GET", address)));
      place.tabIndex = -1;
      place.focus();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      said.className = "problem";
      said.replaceChildren(" ", isolated(visibleLabel(error.message)));
    }
    ask.removeAttribute("aria-disabled");
  });
  place.append(ask, said);
  return place;
}

/** An address with its query. */
export function withQuery(address, values) {
  return `${address}?${new URLSearchParams(values)}`;
}
