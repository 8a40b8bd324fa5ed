"""The page as a file: scripts joined, numbers packed, nothing of the graph outside its element, and small."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from page_samples import HOSTILE, sample_graph, unpack

from circuits.graphs.page import bundle, render
from circuits.graphs.page.packed import pack, to_script_json


def test_packed_columns_and_values_come_back():
    columns = {"a": np.array([1.5, np.nan, -np.inf], np.float32), "b.c": np.array([], np.int32),
               "d": np.arange(5, dtype=np.uint8), "e": np.array([70000, -1], np.int32),
               "f": np.arange(3, dtype=np.uint16)}
    values = {"text": [*HOSTILE, "\u2028"], "number": None}
    back, arrays = unpack(pack(values, columns))
    assert back == values
    assert list(arrays) == list(columns)
    for name, column in columns.items():
        np.testing.assert_array_equal(arrays[name], column)
    assert pack(values, columns) == pack(values, columns)  # the same bytes every time


def test_unknown_column_types_are_refused():
    with pytest.raises(KeyError):
        pack({}, {"a": np.arange(3.0)})


def test_nothing_of_the_graph_stands_outside_its_element():
    html = render(sample_graph(labels=[HOSTILE[i % len(HOSTILE)] for i in range(len(sample_graph()))]))
    data = re.search(r'<script type="application/octet-stream" id="data">([^<]*)</script>', html)[1]
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", data)
    assert "__pwned" not in html
    values, columns = unpack(data)
    assert HOSTILE[0] in values["labels"]
    assert len(columns["nodes.kind"]) == len(values["ids"])


def test_modules_are_joined_in_the_order_of_their_dependencies():
    joined = bundle.script()
    assert not re.search(r"^(import|export)\b", joined, re.MULTILINE)
    order = re.findall(r"^// ([\w/]+\.js)\n", joined, re.MULTILINE)
    assert len(set(order)) == len(order) > 10
    for name in order:
        needed = re.findall(r'from "\./([\w/.]+\.js)"', bundle.source(name))
        assert all(order.index(other) < order.index(name) for other in needed), name
    assert order[-1] == "main.js"


def test_imports_that_are_not_understood_or_circular_are_refused(monkeypatch):
    files = {"a.js": 'import { b } from "./b.js";\nexport const a = 1;\n',
             "b.js": 'import { a } from "./a.js";\nexport const b = 1;\n',
             "c.js": 'import * as b from "./b.js";\n', "d.js": "export const d = 2;\n",
             "e.js": 'import { d as f } from "./d.js";\nexport const e = f;\n'}
    monkeypatch.setattr(bundle, "source", files.__getitem__)
    with pytest.raises(ValueError, match=r"circle: a\.js -> b\.js -> a\.js"):
        bundle._add("a.js", {}, ())
    with pytest.raises(ValueError, match=r"c\.js: only imports of the form"):
        bundle._add("c.js", {}, ())
    done: dict[str, str] = {}
    bundle._add("e.js", done, ())
    assert "const { d: f } = module_d;" in done["e.js"]


def test_libraries_carry_their_licences():
    text = bundle.vendored()
    assert text.startswith("/*\nd3-dispatch")
    assert "Permission to use, copy, modify" in text
    assert "Redistribution and use in source and binary forms" in text
    assert text.count("https://d3js.org/") == 9


def test_script_json_cannot_leave_its_element():
    text = to_script_json({"a": [*HOSTILE, "\u2028"]})
    assert not re.search(r"[<>&\u2028\u2029]", text)
    assert text.isascii()
    assert json.loads(text)["a"] == [*HOSTILE, "\u2028"]
