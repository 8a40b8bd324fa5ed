// What the link view adds to the legend: marks of pins and supernodes while there are any, and beside the choice of
// colour the ramp of influence.

import { element, number } from "./text.js";

export class MarkLegend {
  constructor(app, list) {
    this.app = app;
    this.most = element("span", {});
    const title = "Influence on the chosen target: colour and size follow its square root. Outputs and constants have "
      + "none and keep their colours.";
    this.ramp = element("span", { id: "ramp", title }, "0", element("i"), this.most);
    this.pins = element("li", { className: "pin-mark", title: "pinned: part of the subgraph" }, "pinned");
    this.groups = element("li", { className: "group-mark", title: "member of a supernode" }, "supernode");
    list.append(this.pins, this.groups);
    document.getElementById("color").closest("label").after(this.ramp);
  }

  /** `most`: the influence that the ramp ends with. */
  render(state, most) {
    this.ramp.hidden = state.color !== "influence";
    this.pins.hidden = state.pins.length === 0;
    this.groups.hidden = state.groups.length === 0;
    this.most.textContent = number(most);
  }
}
