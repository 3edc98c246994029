"""Every export, read by a reader that we did not write."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from reports.exports.folded import to_folded
from reports.exports.markdown import escaped, table, to_markdown
from reports.exports.openmetrics import to_openmetrics
from reports.exports.openmetrics_text import Family, exposition
from reports.exports.perfetto import RUN_PID, to_perfetto
from reports.exports.plain_text import one_line
from reports.exports.speedscope import to_speedscope
from reports.exports.tables import csv_files, frames_of, parquet_files

SCHEMA = Path(__file__).parents[1] / "node_modules/speedscope/dist/release/file-format-schema.json"
HOSTILE = (
    '<img src=x onerror=alert(1)>|`"\'\\{x="y"} @everyone #1 [a](http://b) ![i](//c) $x$\n'
    "# EOF\r\n~~~\n```\n=cmd|' /C calc'!A0;a,b\t\x1b[2J\u202e\u2028\x00\udc80 &lt; </script>"
)
KINDS = {
    "spin": {"spin": True},
    "reached": {},
    "no_ebpf_interrupted": {"spin": True, "bpf": False, "status": "interrupted"},
    "ten_connections": {"target": 10, "workers": 1, "clients": 1},
    "hostile": {"spin": True, "hostile": HOSTILE},
}
ZERO_WIDTH = "\u200b"
anything = st.text() | st.text(alphabet='|`*_[]<>#@$&~!\\"{}=\n\r\x00\x1b\u202e\u2028\udc80aB1. -+')


@pytest.fixture(scope="module", params=list(KINDS))
def summary(request, make_summary):
    return make_summary(**KINDS[request.param])


@pytest.fixture(scope="module")
def hostile(make_summary):
    return make_summary(**KINDS["hostile"])


# -- Markdown ---------------------------------------------------------------------------------


def _tokens(text):
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return tokens, [c for t in tokens for c in (t.children or [])]


def test_markdown_has_the_verdict_the_ladder_and_every_finding(summary):
    text = to_markdown(summary)
    tokens, inline = _tokens(text)
    shown = "".join(t.content for t in inline if t.type == "text")
    assert one_line(summary.verdict.sentence.split("(")[0]) in shown
    assert sum(t.type == "table_open" for t in tokens) == 2 + len(summary.findings)
    limits = {rung.limit for rung in summary.ladder}
    assert limits <= {t.content for t in inline if t.type == "text"}
    *_, last = (t for t in tokens if t.type == "fence")
    assert last.content.startswith("profile-run --connections ")
    named = next(f for f in summary.findings if f.cause == summary.verdict.cause)
    for fix in named.fix:
        assert (
            fix.command
            in tokens[next(i for i, t in enumerate(tokens) if t.type == "fence")].content
        )


def test_markdown_of_strangers_text_forms_no_markup(hostile):
    text = to_markdown(hostile)
    tokens, inline = _tokens(text)
    kinds = {t.type for t in tokens} | {t.type for t in inline}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "s_open", "code_block"}
    assert sum(t.type == "table_open" for t in tokens) == 2 + len(hostile.findings)
    assert "@everyone" not in text.split("#### Host and command")[0].split("```")[0]
    assert text.isprintable() or all(c.isprintable() or c in "\n\u200b" for c in text)


@given(anything)
def test_escaped_text_is_read_as_it_was(text):
    _, inline = _tokens(f"x {escaped(text)} x")
    assert {t.type for t in inline} <= {"text", "text_special"}
    shown = "".join(t.content for t in inline).replace(ZERO_WIDTH, "")
    assert shown == f"x {one_line(text).replace(ZERO_WIDTH, '')} x"


@given(anything, anything)
def test_a_cell_of_a_table_is_read_as_it_was(first, second):
    lines = table(["a", "b", "c"], [[f"x{first}x", f"x{second}x", "end"]])
    tokens, _ = _tokens("\n".join(lines) + "\n")
    cells = [
        "".join(c.content for c in after.children)
        for before, after in itertools.pairwise(tokens)
        if before.type == "td_open"
    ]
    wanted = [one_line(f"x{text}x").replace(ZERO_WIDTH, "") for text in (first, second)]
    assert [cell.replace(ZERO_WIDTH, "") for cell in cells] == [*wanted, "end"]


# -- OpenMetrics ------------------------------------------------------------------------------


def _metrics(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_openmetrics_has_verdict_ladder_and_errors(summary):
    text = to_openmetrics(summary)
    assert text.endswith("\n# EOF\n")
    metrics = _metrics(text)
    (verdict,) = metrics["connscope_verdict_info"].samples
    assert verdict.labels["cause"] == summary.verdict.cause
    (peak,) = metrics["connscope_peak_connections"].samples
    assert peak.value == summary.run["peak_connections"]
    predicted = {
        s.labels["limit"]: s.value for s in metrics["connscope_limit_predicted_connections"].samples
    }
    assert predicted["file_max"] == 1_228_585
    assert metrics["connscope_limit_capacity_bytes"].unit == "bytes"
    (cpu,) = (s for s in metrics["connscope_limit_capacity_ratio"].samples)
    assert cpu.value == 2.0, "200 per cent are two cores"
    if summary.verdict.cause == "accept-spin":
        (emfile,) = (
            s for s in metrics["connscope_errors"].samples if s.labels["syscall"] == "accept4"
        )
        assert (emfile.name, emfile.value) == ("connscope_errors_total", 2_461_133)
    for family in metrics.values():
        assert family.name.startswith("connscope_")
        assert family.documentation
        assert not family.unit or family.name.endswith(f"_{family.unit}")


def test_openmetrics_without_a_ladder_still_parses(make_summary):
    bare = dataclasses.replace(make_summary(bpf=False), ladder=[], findings=[])
    assert "connscope_limit_met" not in _metrics(to_openmetrics(bare))


@given(anything, anything)
def test_any_label_comes_back(name, other):
    family = Family("connscope_x_bytes", "gauge", "bytes", name)
    family.add(1.5, {"a": name, "b": other})
    family.add(float("nan"), {"a": "not there"})
    (read,) = text_string_to_metric_families(exposition([family]))
    (sample,) = read.samples
    assert sample.value == 1.5
    kept = {c: sample.labels[k] for c, k in ((name, "a"), (other, "b"))}
    for given_text, text in kept.items():
        assert len(text) == len(given_text)
        for before, after in zip(given_text, text, strict=True):
            assert (
                before == after
                or before in "\0\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
                or not before.isprintable()
            )


def test_a_family_must_end_in_its_unit():
    with pytest.raises(ValueError, match="seconds"):
        Family("connscope_x", "gauge", "seconds", "")


def test_counters_with_equal_labels_are_added_and_gauges_are_not():
    counter, gauge = Family("c", "counter", "", "c"), Family("g", "gauge", "", "g")
    for family in (counter, gauge):
        family.add(23, {"pid": 1})
        family.add(1009, {"pid": 1})
    read = _metrics(exposition([counter, gauge]))
    assert [s.value for s in read["c"].samples] == [1032]
    assert [s.value for s in read["g"].samples] == [1009]


# -- tables -----------------------------------------------------------------------------------


def test_csv_is_read_by_pandas_with_every_frame_and_value(summary):
    files = dict(csv_files(summary))
    for name, frame in frames_of(summary):
        read = pd.read_csv(io.BytesIO(files[f"{name}.csv"]), keep_default_na=False, na_values=[""])
        assert list(read.columns) == list(frame.columns)
        assert len(read) == len(frame), name
        for column in frame.columns:
            if frame[column].dtype.kind in "if" and len(frame):
                np.testing.assert_allclose(
                    read[column].astype("float64"), frame[column].astype("float64"), rtol=1e-12
                )
    assert set(files) == {"README.md", *(f"{name}.csv" for name, _ in frames_of(summary))}


def test_parquet_is_read_by_pandas_and_knows_its_units(summary):
    files = dict(parquet_files(summary))
    for name, frame in frames_of(summary):
        read = pd.read_parquet(io.BytesIO(files[f"{name}.parquet"]))
        assert list(read.columns) == list(frame.columns)
        assert len(read) == len(frame), name
    schema = pq.read_schema(io.BytesIO(files["worker_cpu.parquet"]))
    assert schema.field("rss_bytes").metadata[b"unit"] == b"bytes"
    assert schema.field("at_s").metadata[b"unit"] == b"seconds"
    assert schema.field("cpu_pct").metadata[b"unit"] == b"per cent"
    assert json.loads(schema.metadata[b"connscope"])["run"] == summary.run["id"]


def test_a_run_without_findings_has_its_tables_all_the_same(make_summary):
    bare = dataclasses.replace(make_summary(bpf=False), ladder=[], findings=[])
    for files, read in ((csv_files(bare), pd.read_csv), (parquet_files(bare), pd.read_parquet)):
        tables = {n.split(".")[0]: read(io.BytesIO(f)) for n, f in files if n != "README.md"}
        assert len(tables["ladder"]) == len(tables["findings"]) == len(tables["evidence"]) == 0
        assert "predicted_connections" in tables["ladder"].columns


def test_a_strangers_text_stays_in_its_cell(hostile):
    files = dict(csv_files(hostile))
    read = pd.read_csv(io.BytesIO(files["events.csv"]))
    expected = (
        HOSTILE.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    )
    assert expected in set(read["detail"].dropna())
    assert len(read) == len(hostile.events)


def test_the_readme_says_unit_and_meaning_of_every_table(summary):
    files = dict(csv_files(summary))
    text = files["README.md"].decode()
    for name, frame in frames_of(summary):
        section = text.split(f"## {name}.csv\n")[1].split("\n## ")[0]
        for column in frame.columns:
            assert f"| {column} |" in section
    assert all(f"{name}.csv" in files for name in ("findings", "evidence", "fixes", "ladder"))
    assert "| rss_bytes | integer | bytes |" in text
    assert "100-250 ms bin" in text, "the meaning comes from the docstring of Summary"


# -- stacks -----------------------------------------------------------------------------------


def _samples(*rows):
    columns = ["at_s", "pid", "role", "worker", "source", "stack", "sample_count", "period_ns"]
    return pd.DataFrame(rows, columns=columns)


KNOWN = _samples(
    (1.0, 101, "server", 0, "python", "main (a.py:1);accept (b c.py:23)", 7, 10_000_000),
    (1.0, 101, "server", 0, "native", "_start;write;ksys_write_[k]", 3, 20_408_163),
    (2.0, 101, "server", 0, "python", "main (a.py:1);accept (b c.py:23)", 4, 10_000_000),
    (2.0, 202, "client", 5, "native", "_start;read", 23, 20_408_163),
    (
        2.0,
        202,
        "client",
        5,
        "native",
        f"_start;{HOSTILE.encode('utf-8', 'replace').decode()}",
        1,
        1,
    ),
)


def test_folded_adds_up_and_names_the_process():
    lines = to_folded(KNOWN).splitlines()
    counts = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in lines}
    who = "worker 0 (pid 101, server)"
    assert counts[f"{who};python;main (a.py:1);accept (b c.py:23)"] == 11
    assert counts[f"{who};native;_start;write;ksys_write_[k]"] == 3
    assert sum(counts.values()) == 38
    assert all(one_line(line) == line for line in lines)


def test_speedscope_fits_its_schema_and_adds_up():
    document = json.loads(to_speedscope(KNOWN, name=HOSTILE, exporter="connscope@0.1.0"))
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    frames = document["shared"]["frames"]
    assert {"name": "accept", "file": "b c.py", "line": 23} in frames
    assert {"name": "ksys_write_[k]", "file": "[kernel]"} in frames
    by_name = {profile["name"]: profile for profile in document["profiles"]}
    python = by_name["worker 0 (pid 101, server): Python, wall time"]
    assert python["weights"] == [70_000_000, 40_000_000], "in time order, not added up"
    assert python["unit"] == "nanoseconds"
    for profile in document["profiles"]:
        assert sum(profile["weights"]) == profile["endValue"]
        assert len(profile["samples"]) == len(profile["weights"])
        assert max(max(stack) for stack in profile["samples"]) < len(frames)
    assert document["profiles"][0]["name"].startswith("client 5"), "most samples first"


def test_speedscope_counts_samples_where_the_period_is_not_known():
    unknown = KNOWN.assign(period_ns=0)
    document = json.loads(to_speedscope(unknown, name="x", exporter="y"))
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert {profile["unit"] for profile in document["profiles"]} == {"none"}
    assert sum(profile["endValue"] for profile in document["profiles"]) == 38


# -- Perfetto (its own page reads it in test_exports_in_browser.py) ---------------------------


def test_perfetto_rates_begin_with_their_interval(make_summary):
    summary = make_summary(spin=True)
    events = json.loads(to_perfetto(summary))["traceEvents"]
    origin_us = summary.origin_ns / 1e3
    cpu = [e for e in events if e["name"] == "CPU" and e["pid"] == 1001]
    rows = summary.worker_cpu[summary.worker_cpu["pid"] == 1001]
    assert len(cpu) == len(rows)
    assert cpu[1]["ts"] == pytest.approx(origin_us + rows["at_s"].iloc[0] * 1e6, abs=1)
    assert cpu[1]["args"]["% of a core"] == pytest.approx(rows["cpu_pct"].iloc[1], abs=1e-5)
    opened = [e for e in events if e["name"] == "connections" and "open" in e["args"]]
    whole = [e for e in opened if e["pid"] == RUN_PID]
    assert whole[0]["ts"] == pytest.approx(origin_us, abs=1), "a count is of its moment"
    assert max(e["args"]["open"] for e in whole) == summary.run["peak_connections"]


def test_perfetto_error_rates_end_with_the_errors(make_summary):
    summary = make_summary(spin=True)
    some = summary.errors_over_time.iloc[:3].assign(event_count=50, events_per_s=200.0)
    some = pd.concat([some.iloc[:1], some.iloc[2:]]).assign(at_s=[3.5, 5.0])
    events = json.loads(to_perfetto(dataclasses.replace(summary, errors_over_time=some)))
    rates = [
        (round((e["ts"] * 1e3 - summary.origin_ns) / 1e9, 3), e["args"]["per s"])
        for e in events["traceEvents"]
        if e["name"] == "errors" and e["pid"] == RUN_PID
    ]
    assert rates == [(3.25, 200), (3.5, 0), (4.75, 200), (5.0, 0)]
