"""Evidence is found again in tables with known contents, and what is not there is not found."""

from __future__ import annotations

import pytest

from analysis.frames.run_frames import load
from bench.recordings.grounding import Tables
from probes.contract import schema
from probes.contract.rundir import create_run_dir, open_run_dir

S = 1_000_000_000
T0 = 1_000 * S
WORKER, SIBLING = 101, 102
FINDING = {
    "cause": "fd-limit-process",
    "side": "server",
    "subject": {"role": "server", "pid": WORKER, "worker": 0},
    "first_s": 2.0,
    "last_s": 6.0,
}


def write(run, table, *rows):
    writer = run.writer(table, "test")
    empty = {schema.TEXT: "", schema.BOOL: True, schema.F64: 0.0, schema.I64: 0}
    for row in rows:
        columns = schema.TABLES[table].columns
        writer.append(*(row.get(c.name, empty[c.type]) for c in columns))
    writer.close()


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A worker at 37 % of a core that met EMFILE 1,009 times, and its sibling at 11 %."""
    run = create_run_dir(tmp_path_factory.mktemp("grounding"), "known")
    run.write_manifest(
        {
            "schema_version": schema.SCHEMA_VERSION,
            "status": "finished",
            "settings": {"keepalive_s": 7.5},
            "host": {"cpu_count": 2},
            "stages": [{"stage": "ramp", "start_ns": T0, "end_ns": T0 + 4 * S}],
        }
    )
    who = [{"pid": WORKER, "role": "server"}, {"pid": SIBLING, "role": "server"}]
    write(run, "processes", *({**each, "own_fds_count": 13, "start_ns": T0} for each in who))
    write(
        run,
        "failing_syscalls",
        *({"at_ns": T0 + at * S, "pid": WORKER, "syscall": "accept4", "errno": 24,
           "event_count": count} for at, count in ((2, 9), (3, 500), (6, 500))),
        {"at_ns": T0 + 3 * S, "pid": WORKER, "syscall": "read", "errno": 104, "event_count": 23},
    )  # fmt: skip
    write(
        run,
        "process_samples",
        *(
            {**each, "at_ns": T0 + half * S // 2, "cpu_user_ns_total": user * half * 5_000_000,
             "cpu_system_ns_total": 7 * half * 5_000_000}
            for half in range(20)
            for each, user in zip(who, (30, 4), strict=True)
        ),
    )  # fmt: skip
    write(run, "live_samples", *({**each, "at_ns": T0 + 2 * S, "open_count": 987} for each in who))
    write(
        run,
        "python_stacks",
        {"at_ns": T0 + 3 * S, "pid": WORKER, "stack": "main (a.py:3);take (b.py:140)",
         "sample_count": 61},
        {"at_ns": T0 + 3 * S, "pid": WORKER, "stack": "main (a.py:3)", "sample_count": 39},
    )  # fmt: skip
    write(
        run,
        "connections",
        *({"connection": n, "start_ns": T0 + n, "connected_ns": T0 + n + 3_000_000 + n * 1_000,
           "established_ns": T0 + S + n} for n in range(1, 102)),
    )  # fmt: skip
    return Tables(load(open_run_dir(run.path)))


def evidence(value, unit, table, of="", at_s=2.0):
    return {"id": "x", "of": of, "value": value, "unit": unit, "table": table, "at_s": at_s}


KNOWN = [
    evidence(1_009, "count", "failing_syscalls", "accept4"),
    evidence(250, "per_s", "failing_syscalls", "accept4"),
    evidence(37.0, "pct", "process_samples"),
    evidence(11.0, "pct", "process_samples"),
    evidence(24.0, "pct", "process_samples"),
    evidence(1_000, "count", "live_samples"),
    evidence(61.0, "pct", "python_stacks", "take (b.py)"),
    evidence(39.0, "pct", "python_stacks"),
    evidence(101, "count", "connections"),
    evidence(3.051, "ms", "connections"),
    evidence(1.0, "s", "connections"),
    evidence(7.5, "s", "manifest"),
    evidence(4.0, "s", "failing_syscalls"),
    evidence(0, "count", "tcp_resets"),
]


@pytest.mark.parametrize("known", KNOWN, ids=lambda each: f"{each['table']} {each['value']}")
def test_what_is_in_a_table_is_found(tables, known):
    assert tables.has(known, FINDING)


@pytest.mark.parametrize("known", KNOWN, ids=lambda each: f"{each['table']} {each['value']}")
def test_what_is_not_is_not_found(tables, known):
    assert not tables.has({**known, "value": known["value"] * 1.7 + 3}, FINDING)


def test_missing_evidence_is_told_with_its_cause_and_value(tables):
    wrong = evidence(31_337, "count", "connections")
    kept = tables.grounding([{**FINDING, "evidence": [KNOWN[0], wrong]}])
    assert kept["found_count"] == 1
    assert kept["missing"] == ["fd-limit-process: x 31337 count"]
    assert kept["made_up_count"] == 2
    assert kept["made_up_found_count"] == 0
