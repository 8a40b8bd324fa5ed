"""The benchmark's page: one HTML file with its figures, readable offline.

What a part reports decides what is drawn of it: comparisons with circuit-tracer, growth with the prompt, kernels; any
other part is a table of its figures. Failures are shown where the figures would stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

STYLE = ("body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
         "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;text-align:left;"
         "border-bottom:1px solid #ddd;vertical-align:top}.failed{color:#b00020;white-space:pre-wrap}"
         "td.number{text-align:right;font-variant-numeric:tabular-nums}")


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the page of what is measured so far."""
    body, figures = [], 0
    for name, found in report["parts"].items():
        body.append(f"<h2>{escape(name)}</h2>")
        body += [f'<p class="failed">FAILED: {escape(failure)}</p>' for failure in failures(found)]
        for figure in _figures(found):
            # the library once, inside the page: it must open without a network
            body.append(figure.to_html(full_html=False, include_plotlyjs=figures == 0))
            figures += 1
        body += _tables(found)
    body += [f"<h2>{escape(name)}</h2><p>Not run: {escape(why)}</p>" for name, why in report["not_run"].items()]
    path.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>gemma-circuits benchmarks</title>'
                    f"<style>{STYLE}</style><h1>gemma-circuits benchmarks</h1>{_origin(report)}{''.join(body)}</html>",
                    encoding="utf-8")


def failures(found: dict[str, Any]) -> list[str]:
    """Everything in a part's report that did not pass."""
    listed = [found["failure"]] if "failure" in found else []
    for key, names in (("cases", ("transcoders", "tokens", "task", "rows")),
                       ("kernels", ("op", "dtype", "implementation")), ("traces", ("tokens",))):
        listed += [", ".join(str(entry[name]) for name in names) + f": {entry['failure']}"
                   for entry in found.get(key, ()) if "failure" in entry]
    return listed


def _origin(report: dict[str, Any]) -> str:
    machine = report["machine"]
    rows = {"commit": report["commit"] or "unknown", "time": report["time"], "processor": machine["processor"],
            "cores": machine["cores"], "memory": f"{machine['memory_bytes'] / 2**30:.0f} GiB",
            "system": machine["system"], "Python": machine["python"],
            **{name: version or "not installed" for name, version in report["versions"].items()}}
    return _table(["", ""], [[name, value] for name, value in rows.items()])


def _figures(found: dict[str, Any]) -> Iterator[go.Figure]:
    cases = [case for case in found.get("cases", ()) if "summary" in case]
    if cases:
        yield _ratios(cases)
    if len(points := found.get("points", ())) > 1:
        yield _growth(points, found["exponents"])
    kernels = [entry for entry in found.get("kernels", ()) if "failure" not in entry]
    if kernels:
        yield go.Figure(go.Bar(x=[f"{e['op']}<br>{e['dtype']}, {e['implementation']}" for e in kernels],
                               y=[100 * entry["share"] for entry in kernels])).update_layout(
            title="Share of what binds, bandwidth or products", yaxis_title="%")


def _ratios(cases: list[dict[str, Any]]) -> go.Figure:
    names = [f"{case['task']}, {case['rows']}" for case in cases]
    bars = [go.Bar(name=title, x=names, y=[case["summary"][key] for case in cases],
                   text=[f"{case['summary'][key]:.1f}" for case in cases])
            for title, key in (("time", "time_ratio"), ("peak memory", "memory_ratio"))]
    return go.Figure(bars).update_layout(title="circuit-tracer at its fastest, over gemma-circuits",
                                         yaxis_title="times", barmode="group")


def _growth(points: list[dict[str, Any]], exponents: dict[str, float]) -> go.Figure:
    tokens = [point["tokens"] for point in points]
    lines = [go.Scatter(name=f"{title} ~ tokens^{exponents[key]:.2f}", x=tokens, mode="lines+markers",
                        y=[point[key]["median"] / unit for point in points])
             for title, key, unit in (("seconds", "seconds", 1), ("GiB beyond the model", "beyond_model_bytes", 2**30))]
    return go.Figure(lines).update_layout(title="Growth with the prompt").update_xaxes(
        type="log", title="tokens").update_yaxes(type="log")


def _tables(found: dict[str, Any]) -> Iterator[str]:
    for case in found.get("cases", ()):
        if "summary" in case:
            yield _comparison(case)
    if "points" in found:
        yield _table(["tokens", "active features", "rows", "seconds", "least to most", "peak GiB", "beyond model GiB",
                      "coverage"],
                     [[p["tokens"], p["active_features"], p["rows_computed"], p["seconds"]["median"],
                       _range(p["seconds"]), p["peak_bytes"]["median"] / 2**30,
                       p["beyond_model_bytes"]["median"] / 2**30, p["coverage_reached"]] for p in found["points"]])
    for key in ("kernels", "traces"):
        if entries := [entry for entry in found.get(key, ()) if "failure" not in entry]:
            yield _table(list(entries[0]), [list(entry.values()) for entry in entries])
    plain = {key: found[key] for key in ("figures", "check") if key in found and "failure" not in found}
    if "seconds" in found and "failure" not in found:
        plain["seconds"] = found["seconds"]
    if plain:
        yield _table(["", ""], [[".".join(path), value] for path, value in _leaves(plain)])


def _comparison(case: dict[str, Any]) -> str:
    summary = case["summary"]
    ours = summary["gemma_circuits"]
    rows = [["gemma-circuits", ours["seconds"]["median"], _range(ours["seconds"]), ours["peak_bytes"]["median"] / 1e9,
             1, 1]]
    rows += [[f"circuit-tracer 0.5.0, batch {setting['batch_size']}"
              + (", pruning left out (memory)" if setting["pruning_skipped"] else ""), setting["seconds"]["median"],
              _range(setting["seconds"]), setting["peak_bytes"]["median"] / 1e9, setting["time_ratio"],
              setting["memory_ratio"]] for setting in summary["circuit_tracer"]]
    title = f"{case['transcoders']}, {case['tokens']} tokens, {case['task']}, {case['rows']} rows"
    checks = _table(["checked", ""], [[".".join(path), value] for path, value in _leaves(case["checks"][0])])
    return (f"<h3>{escape(title)}</h3>"
            + _table(["", "seconds", "least to most", "peak GB", "time x", "memory x"], rows) + checks)


def _range(values: dict[str, float]) -> str:
    return f"{values['min']:.2f} to {values['max']:.2f}"


def _leaves(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _leaves(inner, (*path, key))
        else:
            yield (*path, key), inner


def _table(head: list[str], rows: list[list[Any]]) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return f'<td class="number">{f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"}</td>'
        return f"<td>{escape(str(value))}</td>"

    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f"<table><tr>{titles}</tr>" + "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows) + "</table>"
