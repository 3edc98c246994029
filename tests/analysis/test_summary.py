from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest

from analysis import document as verdict_document
from analysis.summary import Summary, summarise
from analysis.verdict import verdict

FRAMES = [f.name for f in dataclasses.fields(Summary) if f.type == "pd.DataFrame"]


def documented_columns() -> dict[str, list[str]]:
    """Frame name to the column names that the docstring of Summary gives it."""
    text = Summary.__doc__ or ""
    entries = re.split(r"\n {8}(?=\w+: )", text[text.index("Attributes:") :])
    found = {}
    for entry in entries:
        name, _, body = entry.strip().partition(":")
        body = re.sub(r"\([^()]*(\([^()]*\))?[^()]*\)", "", body).split(". ")[0]
        found[name] = re.findall(r"\b[a-z][a-z0-9_]*\b", body)
    return found


@pytest.fixture
def empty_summary(build):
    return summarise(build.frames())


@pytest.fixture
def small_summary(small_run):
    return summarise(small_run)


def test_an_empty_run_gives_every_frame_and_a_verdict(empty_summary):
    for name in FRAMES:
        assert isinstance(getattr(empty_summary, name), pd.DataFrame), name
    assert empty_summary.verdict.cause == "not-explained"
    assert "No connection was recorded" in empty_summary.verdict.sentence
    assert empty_summary.findings == []
    assert verdict.exit_code(empty_summary.verdict) == 3
    json.dumps(verdict_document.document(empty_summary), allow_nan=False)


def test_the_columns_are_the_documented_ones_with_and_without_rows(empty_summary, small_summary):
    documented = documented_columns()
    for name in FRAMES:
        wanted = [word for word in documented[name] if word != "and"]
        for summary in (empty_summary, small_summary):
            columns = list(getattr(summary, name).columns)
            assert sorted(columns) == sorted(set(wanted)), name


def test_every_table_ends_up_in_a_frame_with_rows(small_summary):
    without_rows = {n for n in FRAMES if getattr(small_summary, n).empty}
    # nothing failed in that run, and rows of made-up errnos are part of normal work
    of_failures = {"errors_over_time", "connection_failures", "failure_stacks"}
    assert without_rows <= of_failures | {"moments", "before_failure"}


def test_known_counts_of_the_small_run(small_summary):
    total = small_summary.connections_over_time.query("client == -1")
    assert total["open_count"].iloc[-1] == 46
    assert total["established_total"].max() == 46
    assert total["failed_total"].max() == 0
    by_client = small_summary.connections_over_time.query("client >= 0")
    assert by_client.groupby("client")["established_total"].max().to_dict() == {0: 23, 1: 23}
    phases = small_summary.phases.set_index("phase")
    assert phases.loc["ramp", "established_count"] == 46
    assert phases.loc["ramp", "server_cpu_pct"] == pytest.approx(120, rel=0.15)
    assert phases.loc["hold", "client_cpu_pct"] == pytest.approx(10, rel=0.25)
    assert phases.loc["hold", "duration_s"] == pytest.approx(3)
    assert small_summary.worker_cpu["cpu_pct"].max() == pytest.approx(60, rel=1e-6)
    connect = small_summary.latency.query("kind == 'connect'")
    assert connect["connection_count"].sum() == 46
    assert connect["p50_ms"].iloc[0] == pytest.approx(0.1, rel=1e-3)
    handshake = small_summary.latency.query("kind == 'handshake'")
    assert np.allclose(handshake["max_ms"], 0.4, rtol=1e-3)


def test_a_healthy_run_is_reached_and_names_nothing_else(small_summary):
    assert [f.cause for f in small_summary.findings] == ["reached"]
    assert small_summary.verdict.cause == "reached"
    assert small_summary.run["held_connections"] == 46
    assert verdict.exit_code(small_summary.verdict) == 0


def test_the_document_has_the_keys_of_the_interface_and_is_plain_json(small_summary):
    document = verdict_document.document(small_summary)
    assert list(document) == ["schema_version", "run", "verdict", "findings", "ladder", "probes"]
    assert {
        "id",
        "argv",
        "target_connections",
        "peak_connections",
        "held_connections",
        "status",
    } <= set(document["run"])
    assert {"cause", "side", "sentence", "at_connections", "at_s"} <= set(document["verdict"])
    finding = document["findings"][0]
    assert {
        *("cause", "severity", "side", "subject", "first_s", "last_s"),
        *("evidence", "explanation", "fix"),
    } <= set(finding)
    assert set(finding["evidence"][0]) == {"id", "of", "name", "value", "unit", "table", "at_s"}
    assert set(finding["subject"]) == {"role", "pid", "worker"}
    assert {
        *("limit", "scope", "subject", "capacity", "used_at_peak", "unit", "per_connection"),
        *("fit_error_pct", "predicted_connections", "source"),
    } <= set(document["ladder"][0])
    assert set(document["probes"][0]) == {"name", "state", "reason", "lost", "seen", "cpu_s"}
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text) == document


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(23), 23),
        (np.float64("nan"), None),
        (float("inf"), None),
        (np.bool_(True), True),
        (2.0, 2),
        ({"a": [np.float32(0.5)]}, {"a": [0.5]}),
        (None, None),
    ],
)
def test_json_safe(value, plain):
    result = verdict_document.json_safe(value)
    assert result == plain
    assert type(result) is type(plain)


def test_a_stream_cut_short_and_a_dead_supervisor_still_give_a_verdict(build, make_live):
    build.manifest |= {"status": "running", "target_connections": 46}
    build.add("events", at_s=0.0, event="phase_ramp")
    run = build.write()
    make_live(run.path)
    from analysis.frames.run_frames import load

    summary = summarise(load(run))
    assert summary.run["peak_connections"] == 45
    assert summary.run["failed_connections"] == 1
    assert summary.verdict.cause == "not-explained"
    assert any("did not finish" in line for line in summary.missing)


def test_an_interrupted_run_without_failures_blames_nobody(build):
    build.stages(1.0, 0.0)
    build.manifest |= {"status": "interrupted", "target_connections": 1009}
    build.process("server", 0)
    build.process("client", 0)
    build.connect(23)
    summary = summarise(build.frames())
    assert summary.verdict.cause == "interrupted"
    assert "23 of 1,009" in summary.verdict.sentence
    assert summary.findings == []
