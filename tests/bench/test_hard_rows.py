"""Hard rows: their file, the harm that is counted, and what is kept of a run; none is run here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.recordings import hard, label
from bench.recordings.harm import KINDS, harm_of_connections, lacking
from bench.recordings.score_document import hard_part, markdown
from harness.options import run as run_options
from probes.contract.clock import NS_PER_S
from probes.contract.errors import RunDirError
from probes.contract.rundir import create_run_dir

ROWS = hard.rows()


def test_the_rows_are_commands_with_neighbours_harm_and_a_label():
    groups = [row.recording.label.group for row in ROWS]
    assert min(groups.count(group) for group in label.HARD.values()) >= 6
    assert len({row.id for row in ROWS}) == len(ROWS)
    for row in ROWS:
        run_options.parse(list(row.recording.words))
        assert {each[0] for each in row.beside} <= {*hard.NEIGHBOURS}, row.id
        kinds = {kind for kinds in row.harm for kind in kinds.split("|")}
        assert {kind for kind in kinds if "." not in kind} <= {*KINDS}, row.id
        assert bool(row.harm) is not row.recording.label.is_healthy, row.id
        label.of_document(json.loads(row.recording.label.to_json()))
    doubles = [row.recording.label for row in ROWS if row.recording.label.group == "two faults"]
    assert all(len(each.roots) == 2 and all(r.side for r in each.roots) for each in doubles)


def attempt(started_s, established_s=0.0, closed_s=0.0, errno=0, kind="none"):
    moments = (int(each * NS_PER_S) for each in (started_s, 0.0, established_s, closed_s))
    return (0, 0, *moments, "open", errno, kind, "127.0.0.1", 9000)


def test_harm_is_counted_from_the_records_of_the_connections(tmp_path):
    run = create_run_dir(tmp_path, "hard")
    writer = run.writer("connections", "test")
    for each in (
        attempt(1.0, 1.1),
        attempt(1.0, 1.6),  # slow
        attempt(1.0, 1.1, 9.0, kind="local"),  # ended by its client, as it should
        attempt(1.0, 1.1, 2.0, 104, "rst"),  # lost
        attempt(1.0, 0.0, 2.0, 99, "error"),
        attempt(1.0, 0.0, 2.0, 99, "error"),
        attempt(1.0, 0.0, 3.0, 0, "timeout"),
        attempt(1.0),  # waits
    ):
        writer.append(*each)
    writer.close()
    harm = harm_of_connections(run, 10)
    assert harm == {
        **{"missing": 6, "failed": 3, "lost": 1, "slow": 1},
        **{"errno.99": 2, "errno.104": 1, "end.error": 2, "end.rst": 1, "end.timeout": 1},
    }
    assert lacking({"errno.99": 2, "end.rst|end.timeout": 2}, harm) == []
    assert lacking({"failed": 4, "slow": 1}, harm) == ["failed: 3 of 4"]


def run_of(row, *causes, harm=None, verdict="fd-limit-process"):
    finding = {"severity": "warning", "side": "", "follows_from": "", "confidence": "high"}
    subject = {"role": "server", "worker": 0, "command": ""}
    return hard.HardRun(
        row.recording.label,
        row.harm,
        {**dict.fromkeys(("missing", "failed", "lost", "slow"), 10_000), "errno.99": 10_000}
        if harm is None
        else harm,
        {
            "exit_code": 3,
            "verdict": {"cause": verdict, "side": "", "confidence": "high"},
            "findings": [{**finding, "cause": cause, "subject": subject} for cause in causes],
            "is_crowded": False,
            "grounding": dict.fromkeys(("found_count", "made_up_count", "made_up_found_count"), 0)
            | {"missing": []},
        },
    )


def test_what_is_kept_is_read_again_and_what_did_no_harm_is_not_scored(tmp_path):
    double, other = ROWS[0], next(row for row in ROWS if row.id == "hard/crash-1")
    path = tmp_path / "hard.jsonl"
    roots = [root.cause for root in double.recording.label.roots]
    runs = [
        run_of(double, *roots, harm={"errno.99": 1_000, "missing": 1_000}),
        run_of(double, roots[0], harm={"errno.99": 1_000, "missing": 1_000}),
        run_of(other, "worker-crash", harm={"lost": 3}),
    ]
    path.write_text("".join(run.to_json() + "\n" for run in runs))
    again = hard.read(path)
    assert again == runs
    both, one = hard.cases(again)
    assert (both.is_exact, one.is_exact) == (True, False)
    (left,) = hard.left_out(again)
    assert left.startswith("hard/crash-1: lost: 3 of ")
    page = "\n".join(hard_part([both, one], [left]))
    assert "two faults" in page
    assert left in page
    assert page in markdown([replace(both)], [both, one], [left])
    path.write_text("{}\n")
    with pytest.raises(RunDirError, match="line 1"):
        hard.read(path)


def test_cores_that_others_had_are_kept_apart_from_the_findings():
    subject = {"role": "", "worker": -1, "command": ""}
    common = {"severity": "binding", "side": "host", "subject": subject, "follows_from": ""}
    common["confidence"] = "high"
    share = {"id": "host_share", "of": "processes beside the run", "value": 60.0}
    crowded = {**common, "cause": "host-cpu-saturated", "evidence": [share]}
    by_itself = {**crowded, "evidence": [{**share, "value": 5.0}]}
    document = {
        "exit_code": 3,
        "verdict": {"cause": "host-cpu-saturated", "side": "host", "confidence": "high"},
        "findings": [crowded],
        "grounding": {},
    }
    assert hard.kept(document)["findings"] == []
    assert hard.kept(document)["is_crowded"]
    (finding,) = hard.kept({**document, "findings": [by_itself]})["findings"]
    assert "evidence" not in finding
