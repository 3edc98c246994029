"""Connections that are dropped before anybody can accept them: what each of the rows proves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from analysis.frames.probe_trust import MATERIAL_LOSS_SHARE

pytestmark = [pytest.mark.privileged, pytest.mark.in_turn]

CORES = os.cpu_count() or 1
CONNTRACK_MAX = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())


def value(run, cause, evidence_id):
    found = [e["value"] for e in run.finding(cause)["evidence"] if e["id"] == evidence_id]
    assert found, f"no evidence {evidence_id!r}: {run.finding(cause)['evidence']}"
    return found[0]


def test_the_full_accept_queue_is_that_of_the_slow_worker(provoked):
    run = provoked("accept-queue")
    cause = "accept-queue-overflow"
    assert value(run, cause, "listen_overflows") > 0
    assert value(run, cause, "listener_backlog") == 64
    # sk_acceptq_is_full compares with >, so one more than the backlog may wait; cores that complete
    # handshakes at the same moment look before they add (tcp_v4_syn_recv_sock holds no lock of the
    # listener), so each further core may add one
    assert 32 <= value(run, cause, "longest_accept_queue") <= 64 + CORES
    assert value(run, cause, "listener_drops") > 0
    assert 0 < value(run, cause, "accept_rate") <= 21
    assert value(run, cause, "timed_out_attempts") > 0
    assert value(run, cause, "process_cpu") < 50
    assert "had time and did not come to accept" in run.finding(cause)["explanation"]
    assert run.finding(cause)["confidence"] == "high"


def test_the_queue_of_half_open_connections_is_full_and_the_accept_queue_is_not(provoked):
    run = provoked("syn-backlog")
    cause = "syn-backlog-overflow"
    assert value(run, cause, "syn_drops") > 0
    assert 32 <= value(run, cause, "half_open_connections") <= 65
    assert value(run, cause, "longest_accept_queue") < 64
    assert value(run, cause, "syns_resent") > 0
    assert "tcp_syncookies=1" in run.finding(cause)["fix"][0]["command"]
    # What a program is skipped for is counted for the whole host: drops of others move it.
    (events,) = (probe for probe in run.verdict["probes"] if probe["name"] == "tcp_events")
    is_complete = events["lost"] <= MATERIAL_LOSS_SHARE * events["seen"]
    assert run.finding(cause)["confidence"] == ("high" if is_complete else "medium")


def test_the_table_takes_as_many_connections_as_there_was_room_for(provoked):
    run = provoked("conntrack")
    cause = "conntrack-full"
    assert run.verdict["run"]["peak_connections"] == 500
    assert value(run, cause, "conntrack_entries") == CONNTRACK_MAX
    assert value(run, cause, "conntrack_max") == CONNTRACK_MAX
    # every SYN that found no room, the first of each connection and those sent again
    assert value(run, cause, "conntrack_drops") >= 500
    assert value(run, cause, "netfilter_drops") >= 500
    failed_count = run.verdict["run"]["failed_connections"]
    assert 0 < failed_count == value(run, cause, "timed_out_attempts") <= 500
    assert run.finding(cause)["confidence"] == "high"
    rung = next(r for r in run.verdict["ladder"] if r["limit"] == "conntrack")
    assert rung["met"]


def test_the_host_has_its_own_table(provoked):
    provoked("conntrack")
    count = int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())
    assert count < CONNTRACK_MAX / 2


def test_a_time_wait_that_is_full_is_worth_knowing_with_its_limit(machine, tmp_path):
    server = Path(__file__).parents[1] / "harness" / "foreign" / "closes_first.py"
    words = [
        *(sys.executable, "-P", "-m", "harness.commands.run", "--json", "--quiet", "--no-report"),
        *("--output", str(tmp_path), "--connections", "300", "--hold", "4"),
        *("--sysctl", "net.ipv4.tcp_max_tw_buckets=50"),
        *("--server-cmd", f"{sys.executable} {server} 1.5 {{port}}"),
    ]
    done = machine.record(words, tmp_path, timeout_s=120, cores=0.5)
    verdict = json.loads(done.stdout)
    (finding,) = [f for f in verdict["findings"] if f["cause"] == "orphans-or-time-wait"]
    assert finding["severity"] == "info"
    values = {e["id"]: e["value"] for e in finding["evidence"]}
    # cores that close at the same moment look before they add (inet_twsk_alloc)
    assert 50 <= values["limit_used"] <= 50 + CORES
    assert values["limit_size"] == 50
    assert values["time_wait_overflows"] >= 10
    assert finding["fix"][0]["command"].startswith("sysctl -w net.ipv4.tcp_max_tw_buckets=")
