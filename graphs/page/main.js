// Puts the page together: reads the graph, makes the views, and draws those that are open when the state changes.

import { App } from "./app.js";
import { AttentionView } from "./attention.js";
import { CardView } from "./card.js";
import { CheckedView } from "./checked.js";
import { ExplanationView } from "./explanation.js";
import { openFrame } from "./frame.js";
import { Graph } from "./graph.js";
import { GroupsView } from "./groups.js";
import { showHeader } from "./header.js";
import { listenToKeys } from "./keys.js";
import { connect } from "./live.js";
import { SteerView } from "./live_steer.js";
import { unpack } from "./packed.js";
import { Plot } from "./plot.js";
import { followPointer } from "./preview.js";
import { PruningView } from "./pruning.js";
import { SubgraphView } from "./subgraph.js";
import { TableView } from "./table.js";
import { Toolbar } from "./toolbar.js";
import { UnexplainedView } from "./unexplained.js";

const byId = (id) => document.getElementById(id);
const OPEN_IN = { graph: ["plot"], subgraph: ["subgraph"], split: ["plot", "subgraph"], table: ["table"],
  attention: ["attention"] };

async function start() {
  const graph = new Graph(await unpack(byId("data").textContent));
  byId("data").remove();
  const app = new App(graph);
  showHeader(app);
  openFrame(app);
  const toolbar = new Toolbar(app, byId("tools"));
  const views = {
    plot: new Plot(app, byId("plot")), subgraph: new SubgraphView(app, byId("subgraph")),
    table: new TableView(app, byId("table")), attention: new AttentionView(app, byId("attention")), node: new CardView(app, byId("panel")),
    explanation: new ExplanationView(app, byId("explanation")),
    unexplained: new UnexplainedView(app, byId("unexplained")), groups: new GroupsView(app, byId("groups")),
    pruning: new PruningView(app, byId("pruning")), checked: new CheckedView(app, byId("checked")),
  };
  if (graph.values.live?.steer) views.steer = new SteerView(app, byId("steer"), graph.values.live.steer);
  const seen = {}; // the state each view has drawn
  const draw = (state) => {
    toolbar.render(state, seen.toolbar ?? null);
    seen.toolbar = state;
    for (const name of [...OPEN_IN[state.left], state.right]) {
      if (seen[name] === state) continue;
      views[name].render(state, seen[name] ?? null);
      seen[name] = state;
    }
  };
  app.subscribe(draw);
  listenToKeys(app, views.plot);
  followPointer(app, views.plot);
  connect(app, graph.values.live ?? null);
  draw(app.state);
  document.documentElement.dataset.ready = "";
}

start().catch((error) => {
  byId("prompt").textContent = `This page could not be opened (${error.message}). It needs a browser from 2023 or later.`;
  throw error;
});
