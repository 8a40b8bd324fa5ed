"""What goes out of the page and comes into it: JSON in Neuronpedia's schema, and the address of a view."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from page_samples import HOSTILE, sample_graph
from playwright.sync_api import expect
from random_graphs import assert_same_columns, random_graph
from test_page_state import Modules

from circuits.graphs import neuronpedia
from circuits.graphs.scores import annotate

NAME = re.compile(r"[A-Za-z0-9_.-]+")


def file_menu(page, item):
    page.get_by_role("button", name="File", exact=False).first.click()
    page.get_by_role("menuitem", name=item).click()


def downloaded(page, tmp_path):
    with page.expect_download() as waiting:
        file_menu(page, "Download JSON")
    path = tmp_path / "page.json"
    waiting.value.save_as(path)
    return path, waiting.value.suggested_filename


def open_annotations(page, path):
    page.evaluate("document.querySelector('.notice')?.remove()")
    with page.expect_file_chooser() as waiting:
        file_menu(page, "Open annotations…")
    waiting.value.set_files(path)
    page.wait_for_selector(".notice")
    return page.locator(".notice p").inner_text()


def annotated(graph, pins=(), groups=(), labels=()):
    label = graph.nodes.label.copy()
    for node, text in labels:
        label[node] = text
    ids = graph.node_ids
    header = replace(graph.header, pinned=[ids[i] for i in pins],
                     supernodes=[[name, *(ids[i] for i in nodes)] for name, nodes in groups])
    return replace(graph, nodes=replace(graph.nodes, label=label), header=header)


def assert_equal(found, expected):
    """As assert_same, but for feature cards, which JSON has no place for, and the last digits of a sum over nodes."""
    assert_same_columns(found.nodes, expected.nodes)
    assert_same_columns(found.prompt_activations(), expected.prompt_activations())
    assert_same_columns(found, expected)
    one, two = (dict(g.header.settings) for g in (found, expected))
    before = [settings.pop("unpruned", {}).copy() for settings in (one, two)]
    sums = [counts.pop("influence", 0.0) for counts in before]
    assert before[0] == before[1]
    assert sums[0] == pytest.approx(sums[1], rel=1e-12)
    assert one == two
    assert replace(found.header, settings={}) == replace(expected.header, settings={})


GRAPHS = {"sample": sample_graph(), "plain": annotate(random_graph(1, unexpanded=0.3)),
          "shuffled": annotate(random_graph(2, shuffle=True)), "pruned": annotate(random_graph(4)).prune(0.8, 0.9)}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_download_is_the_graph_with_what_was_changed(name, open_page, tmp_path):
    graph = GRAPHS[name]
    ids, features = graph.node_ids, np.flatnonzero(graph.nodes.kind == "feature")
    a, b, c = map(int, features[:3])
    logit = int(graph.target_nodes[0])
    key = f"{graph.nodes.layer[a]}/{graph.nodes.feature[a]}"
    page = open_page(graph, f"pins={ids[a]},{ids[b]},{ids[c]}&groups=say%2520this%252C%2520now,{ids[a]},{ids[b]}"
                            f"&label={key},new%20name&label={ids[logit]},Logit%20(p%3D&node={ids[c]}")
    path, suggested = downloaded(page, tmp_path)
    assert re.fullmatch(r"[a-z0-9-]+\.json", suggested)
    same_feature = [i for i in map(int, features) if (graph.nodes.layer[i], graph.nodes.feature[i])
                    == (graph.nodes.layer[a], graph.nodes.feature[a])]
    expected = annotated(graph, [a, b, c], [("say this, now", [a, b])],
                         [*((i, "new name") for i in same_feature), (logit, "Logit (p=")])
    assert_equal(neuronpedia.read(path), expected)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["qParams"]["clickedId"] == ids[c]


@pytest.mark.parametrize("name", GRAPHS)
def test_the_download_equals_what_python_writes(name, open_page, tmp_path):
    """Field by field, but for what the page may format otherwise: the slug, and 1 for 1.0."""
    graph = GRAPHS[name]
    path, _ = downloaded(open_page(graph), tmp_path)
    neuronpedia.write(graph, tmp_path / "python.json")
    ours, theirs = (json.loads(p.read_text(encoding="utf-8")) for p in (path, tmp_path / "python.json"))
    extra, expected = ours["metadata"].pop("gemma_circuits"), theirs["metadata"].pop("gemma_circuits")
    slug = ours["metadata"].pop("slug")
    theirs["metadata"].pop("slug")
    assert slug == ("fact-michael-jordan-plays-the-sport-of" if name == "sample" else "a-b-c")
    assert ours["metadata"] == theirs["metadata"]
    assert ours["qParams"] == theirs["qParams"]
    for mine, other in zip(ours["nodes"], theirs["nodes"], strict=True):
        amounts = [node.pop("influence") for node in (mine, other)]
        assert mine == other
        assert (amounts[0] is None) == (amounts[1] is None) == (mine["feature_type"] == "logit")
        assert (amounts[0] or 0.0) == pytest.approx(amounts[1] or 0.0, rel=1e-12)
    weights = [np.float32([link.pop("weight") for link in data["links"]]) for data in (ours, theirs)]
    np.testing.assert_array_equal(*weights)
    assert ours["links"] == theirs["links"]
    assert extra["targets"] == expected["targets"]
    assert extra["header"] == expected["header"]


def test_pruned_in_the_page_as_python_prunes(open_page, tmp_path):
    graph = annotate(random_graph(7, n_layers=5, per_layer=12, n_pos=4, unexpanded=0.2))
    page = open_page(graph, "nodes=0.7&edges=0.9")
    path, _ = downloaded(page, tmp_path)
    expected = graph.prune(0.7, 0.9)
    assert 0 < len(expected) < len(graph)
    assert_equal(neuronpedia.read(path), expected)


def test_a_wider_page_gives_what_it_shows(open_page, tmp_path):
    graph = annotate(random_graph(7, n_layers=5, per_layer=12, n_pos=4))
    page = open_page(graph, thresholds=(0.6, 0.9))
    path, _ = downloaded(page, tmp_path)
    assert_equal(neuronpedia.read(path), graph.prune(0.6, 0.9))


@pytest.mark.parametrize("name", GRAPHS)
def test_the_schemas_rules(name, open_page, tmp_path):
    graph = GRAPHS[name]
    path, _ = downloaded(open_page(graph), tmp_path)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert set(data) == {"metadata", "qParams", "nodes", "links"}
    meta = data["metadata"]
    assert {"slug", "scan", "prompt", "prompt_tokens"} <= set(meta)
    assert NAME.fullmatch(meta["slug"])
    assert NAME.fullmatch(meta["scan"])
    assert isinstance(meta["prompt"], str)
    assert all(isinstance(token, str) for token in meta["prompt_tokens"])
    assert type(meta["node_threshold"]) in (int, float)
    assert all(type(meta["pruning_settings"][key]) in (int, float) for key in ("node_threshold", "edge_threshold"))
    assert isinstance(meta["info"]["generator"]["name"], str)
    params = data["qParams"]
    assert set(params) == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    assert params["linkType"] == "both"
    ids = [node["node_id"] for node in data["nodes"]]
    assert len(set(ids)) == len(ids)
    for node, kind in zip(data["nodes"], graph.nodes.kind, strict=True):
        assert isinstance(node["layer"], str)
        assert isinstance(node["ctx_idx"], int)
        assert node["feature"] is None or isinstance(node["feature"], int)
        assert isinstance(node["clerp"], str)
        assert node["feature_type"] == neuronpedia.FEATURE_TYPES[kind]
        assert (node["influence"] is None) == (kind == "logit")
        assert (re.search(r"\(p=[0-9.]+\)", node["clerp"]) is not None) == (kind == "logit")
        if kind == "feature":
            layer, feature, position = map(int, node["node_id"].split("_"))
            assert node["feature"] == (layer + feature) * (layer + feature + 1) // 2 + feature
            assert node["jsNodeId"] == f"{layer}_{feature}-0"
            assert (node["layer"], node["ctx_idx"]) == (str(layer), position)
    assert sum(node["is_target_logit"] for node in data["nodes"]) == 1
    assert all(set(link) == {"source", "target", "weight"} for link in data["links"])
    assert {link[end] for link in data["links"] for end in ("source", "target")} <= set(ids)


def test_hostile_strings_go_out_and_come_back(open_page, tmp_path):
    graph = sample_graph()
    labels = np.array([HOSTILE[i % len(HOSTILE)] for i in range(len(graph))], dtype=object)
    header = replace(graph.header, prompt="".join(HOSTILE), token_texts=HOSTILE[:10], model=HOSTILE[0],
                     warnings=list(HOSTILE), settings={HOSTILE[0]: HOSTILE[1], "\ud800": "\\ud800"},
                     supernodes=[[text, graph.node_ids[i]] for i, text in enumerate(HOSTILE)],
                     reconstruction=[0.5, float("nan")], scores={HOSTILE[1]: float("nan")})
    graph = replace(graph, nodes=replace(graph.nodes, label=labels), header=header)
    page = open_page(graph)
    path, _ = downloaded(page, tmp_path)
    neuronpedia.write(graph, tmp_path / "python.json")
    found, expected = (neuronpedia.read(p) for p in (path, tmp_path / "python.json"))
    assert found.nodes.label.tolist() == expected.nodes.label.tolist()
    assert repr(replace(found.header, pinned=[])) == repr(replace(expected.header, pinned=[]))  # repr: nan equals nan
    assert found.header.settings["?"] == "\\ud800"
    n = len(HOSTILE)
    assert open_annotations(page, path) == f"From page.json: 0 labels, {n} pins and {n} supernodes applied."
    assert page.evaluate("window.__pwned") is None


def test_import_applies_labels_pins_and_supernodes_in_one_step(graph, page, tmp_path):
    features = np.flatnonzero(graph.nodes.kind == "feature")
    a, b, c, d = map(int, features[[3, 40, 80, 120]])
    edited = annotated(graph, [a, d], [("a <b>group</b>", [b, c])], [(a, "mine, all mine"), (d, HOSTILE[2])])
    neuronpedia.write(edited, tmp_path / "edited.json")
    data = json.loads((tmp_path / "edited.json").read_text())
    data["qParams"]["pinnedIds"] += ["9_99_9", "nonsense"]
    (tmp_path / "edited.json").write_text(json.dumps(data))
    assert open_annotations(page, tmp_path / "edited.json") == (
        "From edited.json: 2 labels, 2 pins and 1 supernode applied; 2 ids not in this graph or unclear, left out.")
    path, _ = downloaded(page, tmp_path)
    expected = annotated(graph, [a, d, b, c], [("a <b>group</b>", [b, c])], [(a, "mine, all mine"), (d, HOSTILE[2])])
    assert_equal(neuronpedia.read(path), expected)
    page.keyboard.press("Control+z")
    assert page.evaluate("location.hash") == ""
    assert page.locator("#undo").is_disabled()
    page.keyboard.press("Control+y")
    assert_equal(neuronpedia.read(downloaded(page, tmp_path)[0]), expected)


def test_opening_the_unedited_file_takes_edits_of_labels_back(graph, open_page, tmp_path):
    a = int(np.flatnonzero(graph.nodes.kind == "feature")[0])
    neuronpedia.write(graph, tmp_path / "first.json")
    page = open_page(graph, f"label={graph.nodes.layer[a]}/{graph.nodes.feature[a]},edited&pins={graph.node_ids[a]}")
    assert "0 labels, 0 pins and 0 supernodes applied" in open_annotations(page, tmp_path / "first.json")
    assert_equal(neuronpedia.read(downloaded(page, tmp_path)[0]), annotated(graph, [a]))  # it names no pins


def test_what_cannot_be_used_changes_nothing(graph, open_page, tmp_path):
    page = open_page(graph, f"pins={graph.node_ids[0]}")
    before = page.evaluate("location.hash")
    neuronpedia.write(replace(graph, header=replace(graph.header, tokens=[t + 1 for t in graph.header.tokens])),
                      tmp_path / "other.json")
    neuronpedia.write(graph, tmp_path / "good.json")
    good = (tmp_path / "good.json").read_text()
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(200_000_001)
    texts = {"cut.json": good[:-20], "empty.json": "", "list.json": "[1, 2]", "null.json": "null",
             "nodes.json": '{"metadata": {}, "nodes": 3}', "<img src=x>.json": "{",
             "groups.json": json.dumps(json.loads(good) | {"qParams": {"supernodes": "[["}})}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    said = {"other.json": "a graph of another prompt", "large.json": "larger than 200 MB", "cut.json": "not JSON",
            "empty.json": "not JSON", "list.json": "not a graph in Neuronpedia's schema",
            "null.json": "not a graph in", "nodes.json": "not a graph in", "<img src=x>.json": "not JSON",
            "groups.json": "text that is not JSON"}
    for name, message in said.items():
        text = open_annotations(page, tmp_path / name)
        assert text.startswith(f"{name} was not opened: it")
        assert message in text
        assert page.locator(".notice[role=alert]").count() == 1
        assert page.evaluate("location.hash") == before
    assert page.locator("img").count() == 0
    page.get_by_role("button", name="Close this message").click()
    assert page.locator(".notice").count() == 0


def as_circuit_tracer(graph, tmp_path, **params):
    """The graph as circuit-tracer's server keeps it: errors under ids of layer 0, no labels, tokens marked."""
    neuronpedia.write(graph, tmp_path / "server.json")
    text = re.sub(r'"E_ERR_(\d+)_(\d+)(-\d+)?"', r'"0_\1_\2"', (tmp_path / "server.json").read_text())
    data = json.loads(text)
    del data["metadata"]["gemma_circuits"]
    for node in data["nodes"]:
        node["clerp"] = "" if node["feature_type"] != "logit" else 'Output "x" (p=0.5)'
    data["metadata"]["prompt_tokens"] = [token.replace("\n", "⏎") for token in data["metadata"]["prompt_tokens"]]
    data["qParams"] = params
    (tmp_path / "server.json").write_text(json.dumps(data))
    return tmp_path / "server.json", {node["node_id"] for node in data["nodes"]}


def test_files_of_circuit_tracers_server(graph, page, tmp_path):
    kind, layer, position = graph.nodes.kind, graph.nodes.layer, graph.nodes.position
    feature = int(np.flatnonzero(kind == "feature")[7])
    error = int(np.flatnonzero((kind == "error") & (layer > 0))[0])
    ids, theirs = graph.node_ids, f"0_{layer[error]}_{position[error]}"
    pair = int(layer[feature] + graph.nodes.feature[feature])
    pair = pair * (pair + 1) // 2 + int(graph.nodes.feature[feature])
    path, _ = as_circuit_tracer(graph, tmp_path, pinnedIds=f"{ids[feature]},{theirs},7_7_7",
                                supernodes=json.dumps([["both", theirs, ids[feature]], ["gone", "7_7_7"]]),
                                clerps=json.dumps([[str(pair), "by its number"]]))
    assert open_annotations(page, path) == (
        "From server.json: 1 label, 2 pins and 1 supernode applied; 1 id not in this graph or unclear, left out.")
    found = neuronpedia.read(downloaded(page, tmp_path)[0])
    assert_equal(found, annotated(graph, [feature, error], [("both", [error, feature])],
                                  [(feature, "by its number")]))
    path, _ = as_circuit_tracer(graph, tmp_path, pinnedIds=None, supernodes=None, linkType=None)
    assert "0 labels, 0 pins and 0 supernodes applied." in open_annotations(page, path)


def test_an_id_that_two_nodes_of_a_file_share_is_left_out(open_page, tmp_path):
    graph = random_graph(3, n_layers=3, per_layer=4, n_pos=3)
    nodes = graph.nodes
    feature = next(i for i in range(len(graph)) if nodes.kind[i] == "feature" and nodes.layer[i] == 0
                   and nodes.feature[i] in (1, 2))
    path, _ = as_circuit_tracer(graph, tmp_path, pinnedIds=[graph.node_ids[feature]])
    assert "0 labels, 0 pins and 0 supernodes applied; 1 id" in open_annotations(open_page(graph), path)


def test_places_come_back_and_go_out_in_thousandths(graph, open_page, tmp_path):
    a, b, c = map(int, np.flatnonzero(graph.nodes.kind == "feature")[[1, 2, 3]])
    ids = graph.node_ids
    fragment = f"pins={ids[a]}&groups=pair,{ids[b]},{ids[c]}&places={ids[a]},100,300;g0,500,-100"
    page = open_page(graph, fragment)
    path, _ = downloaded(page, tmp_path)
    data = json.loads(path.read_text())
    assert data["qParams"]["sg_pos"] == "60 940 940 60"
    page = open_page(graph)
    open_annotations(page, path)
    assert f"places={ids[a]}%2C100%2C300%3Bg0%2C500%2C-100" in page.evaluate("location.hash")


def test_numbers_and_labels_are_written_as_python_writes_them(tab):
    modules = Modules(tab, "neuronpedia_out.js")
    weights = np.float32([0.0625, 0.1875, 0.61, 0.0005, 0.0015, 0.9995, 1, 0.2345, 3e-9, 0.3125])
    labels = ["basketball", " (p=?) odd (p=1)", "x (p=0.25) (p=", "(p=0.3)", "", "\u2003\x1fspace", "(p=1e-5)",
              "\ufeffx"]
    cases = [(label, float(weight)) for label in labels for weight in weights]
    found = modules.call("module_neuronpedia_out", "clerp", [["logit", *case] for case in cases])
    assert found == [neuronpedia.clerp("logit", *case) for case in cases]
    models = ["google/gemma-3-4b-it", "/a b/my model/", "", "日本", "C:\\x\\g3"]
    assert modules.call("module_neuronpedia_out", "scanName", [[model] for model in models]) == list(
        map(neuronpedia.scan_name, models))


def test_copy_link_by_the_clipboard_or_a_field(graph, page):
    page.evaluate("""() => {
      navigator.clipboard.writeText = (text) => { window.__copied = text; return Promise.resolve(); }; }""")
    page.keyboard.press("2")
    file_menu(page, "Copy link")
    page.wait_for_selector(".notice")
    assert page.evaluate("window.__copied") == page.url
    assert page.url.endswith("#left=subgraph")
    page.evaluate("""() => {
      navigator.clipboard.writeText = () => Promise.reject(new Error("no"));
      document.execCommand = () => false; }""")
    file_menu(page, "Copy link")
    field = page.get_by_label("The link to this view")
    assert field.input_value() == page.url
    assert page.evaluate("getSelection().toString()") == page.url
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_the_menu_by_keyboard(graph, page):
    button = page.get_by_role("button", name="File", exact=False).first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    names = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp", "Home", "End"):
        names.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        page.keyboard.press(key)
    assert names == ["Download JSON", "Open annotations…", "Copy link", "Download JSON", "Copy link", "Download JSON"]
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "file"
    assert page.locator("#file-menu").is_hidden()
    button.click()
    page.mouse.click(640, 400)
    assert page.locator("#file-menu").is_hidden()
