"""What came first, what changed at the failure, connect time by use: built runs, known answers."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.summary import summarise

FULL_S = 2.0


@pytest.fixture
def filled(build):
    """One pool of 101 ports that is full after 2 s; then connects fail; client 0 dies at 4 s."""
    build.stages(ramp_s=5.0, hold_s=2.0)
    build.manifest["target_connections"] = 150
    build.manifest["plan"] = {"port_range": [40_000, 40_100], "bind": "late"}
    worker = build.process("server", 0)
    build.cpu(worker, 10.0, from_s=-0.5, until_s=FULL_S)
    build.cpu(worker, 90.0, from_s=FULL_S, until_s=7.0)
    client = build.process("client", 0, exited_s=4.0, exit_signal=9)
    build.connect(101, until_s=FULL_S)
    build.connect(10, from_s=FULL_S + 0.5, until_s=4.0, stage="connect", errno=99)
    build.add("events", at_s=4.0, event="process_exited", pid=client, detail="signal 9")
    build.add("events", at_s=-0.1, event="probes_ready", detail="none")
    return summarise(build.frames())


def test_moments_are_in_order_and_quiet_events_are_left_out(filled):
    moments = filled.moments
    assert list(moments["moment"]) == ["port_pool_full", "first_failure", "process_exited"]
    assert list(moments["at_s"]) == sorted(moments["at_s"])
    full, failure, death = moments.to_dict("records")
    assert full["at_s"] == pytest.approx(FULL_S * 100 / 101), "the 101st connection takes the last"
    assert full["detail"] == "all 101 ports from 127.0.0.1 to port 9000 were in use"
    assert failure["at_s"] == pytest.approx(FULL_S + 0.5, abs=0.01)
    assert failure["detail"] == "connect EADDRNOTAVAIL: first of 10 in 1 process"
    assert (death["role"], death["worker"]) == ("client", 0)


def test_a_healthy_run_has_no_moment_and_nothing_to_compare(build):
    build.stages(ramp_s=1.0, hold_s=1.0)
    build.manifest["target_connections"] = 23
    build.process("server", 0)
    build.process("client", 0)
    build.connect(23)
    summary = summarise(build.frames())
    assert summary.moments.empty
    assert summary.before_failure.empty
    assert summary.connect_by_use["connection_count"].sum() == 23


def test_ports_that_are_given_back_do_not_fill_a_pool(build):
    build.stages(ramp_s=4.0, hold_s=1.0)
    build.manifest["plan"] = {"port_range": [40_000, 40_099]}
    build.process("client", 0)
    build.connect(60, until_s=1.0, stage="closed", closed_s=1.5, close_kind="fin")
    build.connect(60, from_s=2.0, until_s=3.0)
    summary = summarise(build.frames())
    assert "port_pool_full" not in set(summary.moments["moment"])
    assert summary.connect_by_use["used_pct"].max() < 60


def test_connect_time_goes_to_the_twentieth_of_the_range_it_belongs_to(build):
    build.stages(ramp_s=1.0, hold_s=1.0)
    build.manifest["plan"] = {"port_range": [40_000, 40_099]}
    build.process("client", 0)
    build.connect(100)
    columns = build.connections
    for i in range(100):  # 0.1 ms while half of the pool is free, then 1 ms
        took_ns = 100_000 if i < 50 else 1_000_000
        columns["connected_ns"][i] = columns["start_ns"][i] + took_ns
        columns["established_ns"][i] = columns["connected_ns"][i] + 1_000
    by_use = summarise(build.frames()).connect_by_use
    assert list(by_use["used_pct"]) == [2.5 + 5 * i for i in range(20)]
    assert set(by_use["connection_count"]) == {5}
    assert list(by_use["p50_ms"]) == pytest.approx([0.1] * 10 + [1.0] * 10, rel=1e-3)


def test_before_at_and_after_the_first_failure(filled):
    figures = {(r["measure"], r["subject"]): r for r in filled.before_failure.to_dict("records")}
    opened = figures[("new connections", "")]
    assert opened["before"] == pytest.approx(101 / 2.5, rel=0.02)
    assert (opened["at_failure"], opened["after"]) == (0, 0)
    failed = figures[("failed or lost connections", "")]
    assert failed["before"] == 0
    assert failed["at_failure"] == pytest.approx(10 / 2.0)
    cpu = figures[("CPU", "worker 0 (pid 800, server)")]
    assert cpu["before"] < 40
    assert cpu["at_failure"] == pytest.approx(90, abs=1)
    assert cpu["after"] == pytest.approx(90, abs=1)


def test_a_failure_at_once_has_no_before(build):
    build.stages(ramp_s=3.0, hold_s=1.0)
    build.process("client", 0)
    build.connect(5, until_s=0.01, stage="connect", errno=111)
    build.connect(20, from_s=0.1)
    frame = summarise(build.frames()).before_failure
    assert frame["before"].isna().all()
    assert np.isfinite(frame["at_failure"]).any()


def test_functions_of_the_worker_are_compared_by_one_kind_of_sample(build):
    build.stages(ramp_s=6.0, hold_s=3.0)
    build.manifest["target_connections"] = 40
    worker = build.process("server", 0, nofile_soft_count=30, own_fds_count=10)
    build.process("client", 0)
    build.cpu(worker, 10.0, from_s=0.0, until_s=3.0)
    build.cpu(worker, 100.0, from_s=3.0, until_s=9.0, fd_count=30)
    build.live(worker, 3.0, open_count=20, established_total=20)
    build.connect(20, until_s=3.0)
    build.connect(20, from_s=3.0, until_s=3.2, stage="handshake", errno=104, close_kind="rst")
    build.add(
        "failing_syscalls", at_s=4.0, pid=worker, syscall="accept4", errno=24, event_count=9000,
        first_s=3.0, last_s=9.0,
    )  # fmt: skip
    for second in range(1, 9):
        place = "read" if second < 3 else "accept_all"
        build.add(
            "cpu_stacks", at_s=second + 0.2, pid=worker, user_stack=f"main;{place}", sample_count=50
        )
    build.add(  # only after the failure: these cannot be compared with anything before it
        "python_stacks", at_s=8.5, pid=worker, stack="run (loop.py:3)", sample_count=50
    )
    frame = summarise(build.frames()).before_failure
    functions = frame[frame["unit"] == "% of its samples"].set_index("measure")
    assert set(functions.index) == {"in read", "in accept_all"}
    assert functions.loc["in read", "before"] == 100
    assert functions.loc["in accept_all", ["at_failure", "after"]].tolist() == [100, 100]
