"""The page's state: in the address and back, Back and Forward, undo and redo, and pure changes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from page_samples import HOSTILE, sample_graph
from page_tabs import in_hash, selected

from circuits.graphs.page.bundle import script


class Modules:
    """Functions of the page's modules, called in an empty page."""

    def __init__(self, tab, *entries):
        tab.page.goto("about:blank")
        self.page = tab.page
        self.source = "".join(script(entry) for entry in entries)

    def run(self, body, argument=None):
        return self.page.evaluate(f"(argument) => {{ {self.source}\n{body} }}", argument)

    def call(self, module, name, lists):
        """What the function gives for each list of arguments."""
        return self.run(f"return argument.map((list) => {module}.{name}(...list));", lists)


FAKE = """
const { ids, kinds, keys, targets, suggestions } = argument;
const graph = { ids, size: ids.length, kind: kinds, byId: new Map(ids.map((id, i) => [id, i])),
  labelKey: (node) => keys[node], targetWeight: new Map(targets.map((node) => [node, 1])),
  header: { settings: {} }, values: { suggestions }, edges: { indices: [3, 4] }, target: [5, 598], columns: 10,
  edgeBetween: (source, target) => [[3, 5], [4, 598]].findIndex((edge) => edge[0] === source && edge[1] === target),
  heads: { has: (key) => key === "5.2" } };
const first = { selected: null, pins: argument.pins ?? [], groups: argument.groups ?? [], labels: {},
  thresholds: { nodes: 1, edges: 1 }, target: null, path: null, query: "", left: "graph", right: "node", drawn: 1000,
  color: "kind", places: {}, dismissed: [], large: null, edge: null, head: null, cell: null };
const { encode, decode } = module_hash;
"""


def fake(**more):
    n = 600
    ids = [f"{i % 18}_{i}_{i % 7}" for i in range(n - 2)] + ["18_5_6", "18_D_6-2"]
    kinds = ["feature"] * (n - 2) + ["logit"] * 2
    keys = [f"{i % 18}/{i}" for i in range(n - 2)] + ids[-2:]
    return {"ids": ids, "kinds": kinds, "keys": keys, "targets": [n - 2, n - 1],
            "suggestions": [{"nodes": [3 * i, 3 * i + 1]} for i in range(12)], **more}


FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
NAMES = ["a,b;c|d", "100% & more #=?+", "%E0%A4%A", "\u202eright to left\u202c", FAMILY, "\u05e9\u05dc\u05d5\u05dd",
         "x" * 500, "'\"<b>", "a\nb"]
STATES = [
    {"selected": 4}, {"left": "split", "right": "pruning", "large": "right", "color": "influence"},
    {"target": 598}, {"target": 599}, {"thresholds": {"nodes": 0.55, "edges": 0.985}}, {"drawn": 0}, {"drawn": 10000},
    {"query": 'kind:error "a, b" ü%20 #'}, {"pins": [5, 3, 9]}, {"path": [3, 7, 598]}, {"dismissed": [0, 11]},
    {"labels": {f"{i % 18}/{i}": name for i, name in enumerate(NAMES)} | {"18_D_6-2": "why, not"}},
    {"pins": [1, 2, 3, 4], "groups": [{"key": f"g{i}", "name": name, "nodes": [20 + 2 * i, 21 + 2 * i]}
                                      for i, name in enumerate(NAMES)]},
    {"places": {"3_3_3": [10, -250], "18_D_6-2": [0, 99]}}, {"edge": 1}, {"edge": 0, "selected": 3},
    {"left": "attention", "right": "checked", "head": "5.2", "cell": [9, 0]},
]


@pytest.mark.parametrize("change", STATES, ids=lambda change: "-".join(change)[:40])
def test_every_field_comes_back_from_the_hash(change, tab):
    if "groups" in change:
        members = [node for group in change["groups"] for node in group["nodes"]]
        change = change | {"pins": change["pins"] + members}
    found = Modules(tab, "hash.js").run(
        FAKE + "const state = { ...first, ...argument.change };"
        "const hash = encode(graph, state, first);"
        "return [state, { ...first, ...decode(graph, `#${hash}`, first) }, hash];", fake(change=change))
    assert found[1] == found[0]
    assert found[2] != ""
    assert "#" not in found[2]


def test_supernodes_that_were_numbered_otherwise_keep_their_places(tab):
    groups = [{"key": "g7", "name": "later", "nodes": [1, 2]}, {"key": "g0", "name": "early", "nodes": [8]}]
    change = {"groups": groups, "pins": [1, 2, 8], "places": {"g7": [1, 2], "g0": [3, 4]}}
    found = Modules(tab, "hash.js").run(
        FAKE + "return decode(graph, encode(graph, { ...first, ...argument.change }, first), first);",
        fake(change=change))
    assert [group["name"] for group in found["groups"]] == ["later", "early"]
    assert found["places"] == {found["groups"][0]["key"]: [1, 2], found["groups"][1]["key"]: [3, 4]}


def test_pins_and_supernodes_of_the_file_can_be_taken_away(tab):
    own = fake(pins=[1, 2, 3], groups=[{"key": "g0", "name": "own", "nodes": [2, 3]}])
    run = Modules(tab, "hash.js").run
    assert run(FAKE + "return encode(graph, first, first);", own) == ""
    assert run(FAKE + "return decode(graph, '', first);", own)["pins"] == [1, 2, 3]
    assert run(FAKE + "return decode(graph, encode(graph, { ...first, pins: [], groups: [] }, first), first).pins;",
               own) == []


@pytest.mark.parametrize("hash_", [
    "", "#", "#%", "#%ZZ=%E0%A4", "#node", "#node=", "#node=nothing", "#pins=,,,&groups=;;,;&label=&label=,&label=x",
    "#groups=%25E0%25A4,0_0_0", "#places=a,b,c;0_0_0,1;0_0_0,NaN,1;0_0_0,1e9,2;,,", "#path=0_0_0",
    "#nodes=NaN&edges=-1",
    "#nodes=7&edges=Infinity", "#left=constructor&right=__proto__&color=&large=none", "#drawn=-5&target=0_0_0",
    "#edge=0_0_0&head=5.3&cell=10,1", "#edge=0_0_0,3_3_3&cell=1", "#edge=,&head=__proto__&cell=-1,1e1",
    "#label=__proto__,x&label=constructor,y&label=0/0,%00%20", "#dismissed=5_5_5,zz", "#" + "x" * 600_000,
    "#pins=" + "0_0_0," * 70_000, "#\ud800=\ud800", "#groups=" + ";".join("n,0_0_0" for _ in range(3000))])
def test_a_malformed_hash_gives_what_is_sound_in_it(hash_, tab):
    found = Modules(tab, "hash.js").run(
        FAKE + "const found = { ...first, ...decode(graph, JSON.parse(argument.hash), first) };"
        "encode(graph, found, first); return found;", fake(hash=json.dumps(hash_)))
    nodes = {*found["pins"], *(node for group in found["groups"] for node in group["nodes"])}
    assert nodes <= {0}
    assert found["labels"] == {}
    assert found["places"] == {}
    assert (found["left"], found["right"], found["color"], found["large"]) == ("graph", "node", "kind", None)
    assert (found["target"], found["path"], found["selected"], found["dismissed"]) == (None, None, None, [])
    assert (found["edge"], found["head"], found["cell"]) == (None, None, None)
    assert all(0 <= value <= 1 for value in found["thresholds"].values())


def test_encoding_500_pins_takes_no_time(tab):
    ms = Modules(tab, "hash.js").run(FAKE + """
      const state = { ...first, pins: graph.ids.map((_, i) => i).slice(0, 500),
        groups: [{ key: "g0", name: "x", nodes: [1, 2, 3] }] };
      encode(graph, state, first);
      const times = Array.from({ length: 21 }, () => {
        const start = performance.now(); encode(graph, state, first); return performance.now() - start; });
      return times.sort((a, b) => a - b)[10];""", fake())
    assert ms < 5


ACTIONS = """
const { setPinned, makeGroup, renameGroup, splitGroup, moveToGroup, setLabel, clean } = module_actions;
const state = { pins: [1, 2, 3],
  groups: [{ key: "g0", name: "one", nodes: [1, 2] }, { key: "g1", name: "two", nodes: [3] }],
  labels: { "1/5": "mine" } };
"""


def test_changes_that_change_nothing_are_no_steps(tab):
    assert Modules(tab, "actions.js").run(ACTIONS + """return [
      setPinned(state, [1, 2], true), setPinned(state, [7], false), setPinned(state, [], true),
      makeGroup(state, [], "x"),
      renameGroup(state, "g0", "one "), renameGroup(state, "g0", "  "), renameGroup(state, "g9", "x"),
      splitGroup(state, "g9"), moveToGroup(state, 1, "g0"), moveToGroup(state, 1, "g9"),
      setLabel(state, "1/5", " mine", "was"), setLabel(state, "2/5", " basketball", " basketball"),
      setLabel(state, "2/5", "", "was")];""") == [{}] * 13


def test_changes_keep_every_node_in_at_most_one_supernode_and_pinned(tab):
    done = Modules(tab, "actions.js").run(ACTIONS + """return {
      moved: moveToGroup(state, 3, "g0"), out: moveToGroup(state, 1, null), pinned: moveToGroup(state, 9, null),
      made: makeGroup(state, [2, 3, 9, 9], " new "), unpinned: setPinned(state, [3], false),
      split: splitGroup(state, "g0"),
      reset: setLabel(state, "1/5", "was", " was "), label: setLabel(state, "1/5", "other", "was") };""")
    group = {"one": {"key": "g0", "name": "one", "nodes": [1, 2]}, "two": {"key": "g1", "name": "two", "nodes": [3]}}
    assert done["moved"] == {"pins": [1, 2, 3], "groups": [group["one"] | {"nodes": [1, 2, 3]}]}
    assert done["out"] == {"pins": [1, 2, 3], "groups": [group["one"] | {"nodes": [2]}, group["two"]]}
    assert done["pinned"] == {"pins": [1, 2, 3, 9]}
    assert done["made"] == {"pins": [1, 2, 3, 9], "groups": [
        group["one"] | {"nodes": [1]}, {"key": "g2", "name": "new", "nodes": [2, 3, 9]}]}
    assert done["unpinned"] == {"pins": [1, 2], "groups": [group["one"]]}
    assert done["split"] == {"groups": [group["two"]]}
    assert done["reset"] == {"labels": {}}
    assert done["label"] == {"labels": {"1/5": "other"}}


def test_names_are_cleaned_the_same_way_twice(tab):
    texts = [*HOSTILE, "a" * 499 + "\U0001f44d", " \0 x\0 ", "\0" * 5000, "a\ud800b"]
    found = Modules(tab, "actions.js").run("""return JSON.parse(argument).map((text) => {
      const once = module_actions.clean(text);
      return [once, module_actions.clean(once), /\\p{Surrogate}|\\0/u.test(once)]; });""", json.dumps(texts))
    for once, twice, broken in found:
        assert once == twice
        assert len(once) <= 500
        assert not broken
    assert found[-1][0] == "a\ufffdb"
    assert found[len(HOSTILE)][0] == "a" * 499
    assert found[len(HOSTILE) + 1][0] == "x"


STORE = """
const first = Object.fromEntries(["pins", "groups", "labels", "thresholds", "target", "places", "dismissed", "selected"]
  .map((name) => [name, name]));
const store = new module_store.Store({ ...first });
"""


def test_undo_gives_back_every_kind_of_change_and_nothing_else(tab):
    found = Modules(tab, "store.js").run(STORE + """
      const seen = [];
      for (const name of Object.keys(first)) store.set({ [name]: "new" });
      while (store.canUndo) { store.undo(); seen.push({ ...store.state }); }
      let steps = 0;
      while (store.canRedo) { store.redo(); steps++; }
      return [seen, steps, store.state];""")
    made = ["pins", "groups", "labels", "thresholds", "target", "places", "dismissed"]
    assert len(found[0]) == found[1] == len(made)
    for i, state in enumerate(found[0]):
        left = made[:len(made) - 1 - i]
        assert {name for name in made if state[name] == "new"} == set(left)
        assert state["selected"] == "new"
    assert set(found[2].values()) == {"new"}


def test_steps_of_a_slider_are_one_and_memory_is_bounded(tab):
    found = Modules(tab, "store.js").run(STORE + """
      for (let i = 0; i < 50; i++) store.set({ thresholds: i }, { merge: "thresholds" });
      const one = store.past.length;
      store.set({ pins: "p" });
      for (let i = 0; i < 5; i++) store.set({ thresholds: 100 + i }, { merge: "thresholds" });
      const three = store.past.length;
      store.undo();
      const back = store.state.thresholds;
      store.set({ labels: "l" });
      const noRedo = store.canRedo;
      for (let i = 0; i < 500; i++) store.set({ pins: i });
      let undone = 0;
      while (store.canUndo) { store.undo(); undone++; }
      store.set({ pins: store.state.pins });
      return [one, three, back, noRedo, undone, store.canRedo];""")
    assert found == [1, 3, 49, False, 200, True]


def test_reload_restores_everything(graph, open_page):
    ids, features = graph.node_ids, np.flatnonzero(graph.nodes.kind == "feature")
    a, b, c = map(int, features[[3, 9, 27]])
    target = ids[int(graph.target_nodes[1])]
    fragment = (f"node={ids[a]}&left=split&right=groups&target={target}&nodes=0.6&edges=0.9&pins={ids[c]}&query=game"
                f"&groups=na%252Cme,{ids[a]},{ids[b]}&color=influence&path={ids[b]},{target}"
                f"&label={graph.nodes.layer[a]}/{graph.nodes.feature[a]},hello, you")
    page = open_page(graph, fragment)
    page.keyboard.press("4")
    page.wait_for_function("() => location.hash.includes('left=table')")
    first = in_hash(page)
    page.reload()
    page.wait_for_selector("html[data-ready]", state="attached")
    assert in_hash(page) == first
    assert first["node"] == [ids[a]]
    assert first["label"] == [f"{graph.nodes.layer[a]}/{graph.nodes.feature[a]},hello, you"]
    assert first["groups"] == [f"na%2Cme,{ids[a]},{ids[b]}"]
    assert page.locator("#tab-table[aria-selected=true]").count() == 1
    assert page.locator("#tab-groups[aria-selected=true]").count() == 1
    assert page.locator("#search").input_value() == "game"
    assert page.locator("#target").input_value() == str(graph.target_nodes[1])
    assert page.locator("#color").input_value() == "influence"


def test_back_and_forward_move_where_one_looks_and_keep_edits(graph, page):
    first, second = (row.get_attribute("data-node") for row in page.locator("#panel button[data-node]").all()[:2])
    page.locator(f"#panel button[data-node='{first}']").first.click()
    page.focus("#panel")
    page.keyboard.press("p")  # pinned at the first step
    page.keyboard.press("Escape")
    page.locator(f"#panel button[data-node='{second}']").first.click()
    page.keyboard.press("p")
    page.keyboard.press("4")
    pins = [",".join(graph.node_ids[int(node)] for node in (first, second))]
    assert in_hash(page)["pins"] == pins
    for _ in range(4):  # table, second, nothing, first: to the entry that the page was opened with
        page.go_back()
        page.wait_for_timeout(50)
        assert in_hash(page)["pins"] == pins
    assert selected(page, graph) is None
    assert page.locator("#tab-graph[aria-selected=true]").count() == 1
    for _ in range(4):
        page.go_forward()
        page.wait_for_timeout(50)
    assert selected(page, graph) == int(second)
    assert page.locator("#tab-table[aria-selected=true]").count() == 1
    assert in_hash(page)["pins"] == pins
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert "pins" not in in_hash(page)
    assert selected(page, graph) == int(second)


def test_an_address_put_in_by_hand_counts_whole_and_can_be_undone(graph, page):
    ids = graph.node_ids
    page.evaluate("hash => { location.hash = hash }", f"pins={ids[1]},{ids[2]}&left=table")
    page.wait_for_selector("#tab-table[aria-selected=true]")
    page.evaluate("hash => { location.hash = hash }", f"pins={ids[3]}")
    page.wait_for_selector("#tab-graph[aria-selected=true]")
    assert in_hash(page) == {"pins": [ids[3]]}
    page.keyboard.press("Control+z")
    assert in_hash(page)["pins"] == [f"{ids[1]},{ids[2]}"]
    page.go_back()  # where one looked then; the pins of now
    page.wait_for_selector("#tab-table[aria-selected=true]")
    assert in_hash(page) == {"pins": [f"{ids[1]},{ids[2]}"], "left": ["table"]}


def test_typing_keeps_the_fields_own_undo(graph, page):
    page.locator("#panel button[data-node]").first.click()
    page.focus("#panel")
    page.keyboard.press("p")
    page.focus("#search")
    page.keyboard.type("pp42?z")
    page.keyboard.press("Control+z")
    assert "pins" in in_hash(page)
    assert page.locator("#search").input_value() != "pp42?z"


def test_a_burst_of_changes_ends_with_the_latest_in_the_address(graph, page):
    page.evaluate("""() => {
      const search = document.getElementById("search");
      for (let i = 0; i < 120; i++) { search.value = `game ${i}`; search.dispatchEvent(new Event("input")); }
    }""")
    assert "119" not in page.evaluate("location.hash")  # more at once would be refused by browsers
    page.wait_for_function("() => location.hash.includes('119')", timeout=3000)
    page.locator("#search").fill("last words")
    assert in_hash(page)["query"] == ["last words"]  # as when the page is left


def test_more_than_an_address_holds_is_said_once(open_page, tmp_path):
    graph = sample_graph()
    long = {f"{graph.nodes.layer[i]}/{graph.nodes.feature[i]}": "ü" * 500
            for i in np.flatnonzero(graph.nodes.kind == "feature")}
    label = graph.nodes.label.copy()
    for i in np.flatnonzero(graph.nodes.kind == "feature"):
        label[i] = long[f"{graph.nodes.layer[i]}/{graph.nodes.feature[i]}"]
    replace(graph, nodes=replace(graph.nodes, label=label)).to_neuronpedia(tmp_path / "long.json")
    page = open_page(graph)
    with page.expect_file_chooser() as waiting:
        page.locator("#file").click()
        page.get_by_role("menuitem", name="Open annotations…").click()
    waiting.value.set_files(tmp_path / "long.json")
    page.wait_for_selector(".notice[role=status]")
    assert "cannot hold all of your changes" in page.locator(".notice[role=alert]").inner_text()
    assert page.evaluate("location.hash") == ""
    page.get_by_label("Search").fill("üüü")
    assert page.locator("#found").inner_text() == f"{len(long)} found"


def test_inside_another_document_the_page_works_without_an_address(graph, tab, tmp_path):
    from circuits.graphs.page import render

    tab.problems.clear()
    tab.page.goto("about:blank")
    tab.page.evaluate("""html => { const frame = document.createElement("iframe");
      frame.sandbox = "allow-scripts"; frame.srcdoc = html; frame.width = 1200; frame.height = 700;
      document.body.append(frame); }""", render(graph))
    frame = tab.page.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for(state="attached")
    frame.locator("#panel button[data-node]").first.click()
    frame.locator("#panel.card").wait_for()
    assert tab.problems == []
