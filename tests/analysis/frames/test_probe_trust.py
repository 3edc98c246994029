"""A probe that fails, or loses much, lowers the confidence of what needs it: every kind of finding.

The runs are those of the tests of the finders, each with a probe that failed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from analysis.causes import CAUSE_IDS
from analysis.evidence import Finding
from analysis.frames import processes
from analysis.frames.probe_trust import MATERIAL_LOSS_SHARE, PROBE_OF_TABLE, ProbeTrust
from analysis.frames.run_frames import RunFrames
from analysis.frames.run_view import RunView
from analysis.summary import summarise
from probes.collect.registry import PROBES
from probes.contract.schema import TABLES
from tests.analysis.conftest import RunBuilder
from tests.analysis.findings import (
    test_findings,
    test_findings_attached,
    test_findings_clients,
    test_findings_fates,
    test_findings_foreign,
    test_findings_host_queues,
    test_findings_left_queues,
    test_findings_limits,
    test_findings_queues,
    test_findings_traffic,
    test_findings_workers,
)

FAILED_S = 0.2


class Recorded(Exception):  # carries a run out of the test that built it
    def __init__(self, frames: RunFrames) -> None:
        super().__init__()
        self.frames = frames


class Watched(RunBuilder):
    """Every probe ran, but for those told otherwise; the run is handed over once it is built."""

    def __init__(self, parent: Path, **unlike: dict[str, Any]) -> None:
        super().__init__(parent)
        self._unlike = unlike

    def frames(self) -> RunFrames:
        self.rows["probe_health"] = []
        for probe in PROBES:
            self.health(probe, **{"seen_count": 100_000, **self._unlike.get(probe, {})})
        raise Recorded(super().frames())


@dataclass(frozen=True)
class Scenario:
    """A run of another test.

    Attributes:
        cause: What it shows.
        table: One that this cause needs.
        test: The test that builds it.
        fixture: What the test gets instead of ``build``.
        arguments: Its other arguments.
    """

    cause: str
    table: str
    test: Callable[..., None]
    fixture: Any = None
    arguments: tuple[Any, ...] = ()

    def frames(self, parent: Path, **unlike: dict[str, Any]) -> RunFrames:
        parent.mkdir()
        build: Any = Watched(parent, **unlike)
        try:
            if self.fixture is not None:
                build = self.fixture.__wrapped__(build)
            self.test(build, *self.arguments)
        except Recorded as recorded:
            return recorded.frames
        raise AssertionError("the test builds no run")

    def finding(self, parent: Path, **unlike: dict[str, Any]) -> Finding:
        return self.finding_in(self.frames(parent, **unlike))

    def finding_in(self, frames: RunFrames) -> Finding:
        findings = summarise(frames).findings
        found = [each for each in findings if each.cause == self.cause]
        assert found, [each.cause for each in findings]
        return found[0]


def other_proxy_pool(proxy: Any) -> None:
    test_findings_foreign.test_a_proxy_without_ports_is_the_server_s_side(proxy)


def killed_for_memory(watched: Any) -> None:
    attached.idle(watched)
    watched.rows["processes"][0] |= {"exited_ns": watched.ns(3.9), "exit_signal": 9}
    watched.add("oom_kills", at_s=3.9, pid=800, cgroup_id=-1, killed_count=1)
    for half in range(12):
        watched.add("host_memory", at_s=half / 2, total_bytes=8 << 30, available_bytes=1 << 20,
                    oom_kills_total=int(half >= 8))  # fmt: skip
    watched.frames()


own, attached, clients = test_findings, test_findings_attached, test_findings_clients
fates = test_findings_fates
tables = test_findings_host_queues
queues, workers, foreign = test_findings_queues, test_findings_workers, test_findings_foreign
limits, traffic = test_findings_limits, test_findings_traffic
left = test_findings_left_queues

SCENARIOS = (
    Scenario("no-limit-met", "net_counters",
             attached.test_nothing_wrong_is_a_verdict_of_its_own_with_exit_code_0,
             attached.watched),
    Scenario("fd-limit-process", "failing_syscalls", own.test_server_at_its_descriptor_limit,
             own.full_server),
    Scenario("ephemeral-ports-exhausted", "port_groups", own.test_no_local_port_left),
    Scenario("ephemeral-ports-exhausted", "failing_syscalls", other_proxy_pool,
             type("Proxy", (), {"__wrapped__": staticmethod(
                 lambda build: foreign.proxy.__wrapped__(foreign.foreign.__wrapped__(build)))})),
    Scenario("accept-spin", "failing_syscalls", own.test_a_full_worker_that_keeps_its_listener,
             own.full_server, ("failing_syscalls",)),
    Scenario("server-resets-when-full", "failing_syscalls",
             own.test_a_full_server_that_accepts_and_closes, own.full_server),
    Scenario("worker-crash", "live_samples", own.test_a_worker_that_dies_takes_its_connections),
    Scenario("upgrade-unanswered", "live_samples",
             foreign.test_accepted_and_never_answered, foreign.foreign),
    Scenario("full-worker-on-shared-listener", "live_samples",
             workers.test_the_spread_is_the_root_where_the_limits_had_been_enough),
    Scenario("cpu-quota", "cgroup_cpu",
             limits.test_a_quota_that_stops_the_server_is_named_with_its_group_and_a_whole_core,
             limits.foreign),
    Scenario("task-limit", "limit_readings",
             limits.test_the_task_limit_of_a_group_is_named_by_its_own_count_of_refusals,
             limits.foreign),
    Scenario("mapping-limit", "limit_readings",
             limits.test_mappings_that_are_used_up_are_no_want_of_memory, limits.foreign),
    Scenario("runtime-heap-limit", "server_words",
             limits.test_a_full_heap_is_the_cause_and_the_crash_follows, limits.foreign),
    Scenario("worker-replaced", "live_samples",
             limits.test_a_worker_that_is_replaced_takes_each_connection_along_once,
             limits.foreign, (0, 0)),
    Scenario("handshake-cost", "process_samples",
             limits.test_a_hash_in_each_handshake_is_named_from_the_first_second, limits.foreign),
    Scenario("hot-worker-code", "python_stacks", own.test_one_worker_in_its_own_code),
    Scenario("hot-worker-code", "process_samples", own.test_one_worker_in_its_own_code),
    Scenario("hot-acceptor", "process_samples", workers.test_an_acceptor_that_everybody_waits_for,
             workers.handoff),
    Scenario("garbage-collection", "live_samples",
             workers.test_the_collector_takes_the_core_and_wins_over_the_code_it_interrupts,
             workers.held),
    Scenario("worker-blocked", "blocked_samples", workers.test_a_worker_that_sleeps_in_its_loop,
             workers.held),
    Scenario("accept-imbalance", "live_samples", workers.test_one_worker_has_nearly_all,
             workers.held),
    Scenario("keepalive-storm", "process_samples", own.test_pings_that_fill_a_core),
    Scenario("keepalive-storm", "socket_traffic",
             attached.test_pings_that_fill_a_core_are_told_by_their_size, attached.watched),
    Scenario("bind-ports-exhausted", "port_groups",
             clients.test_no_port_left_at_bind_while_destinations_have_room, clients.early_bind),
    Scenario("source-address-missing", "failing_syscalls",
             clients.test_an_address_that_is_not_local, clients.foreign_source),
    Scenario("port-search-cost", "cpu_stacks",
             clients.test_connect_slows_in_a_pool_over_half_full, clients.filling_pool),
    Scenario("host-cpu-saturated", "host_cpu",
             clients.test_messages_fall_behind_on_a_host_that_others_fill),
    Scenario("client-is-the-limit", "process_samples",
             clients.test_a_client_at_a_full_core_that_comes_late),
    Scenario("fd-limit-system", "sockstat", clients.test_the_file_table_of_the_host_is_full),
    Scenario("accept-queue-overflow", "listeners",
             queues.test_the_full_accept_queue_names_the_worker_that_owns_it, queues.stalled),
    Scenario("syn-backlog-overflow", "net_counters",
             queues.test_the_full_queue_of_half_open_connections, queues.stalled),
    Scenario("conntrack-full", "sockstat", queues.test_the_full_connection_tracking_table,
             queues.stalled),
    Scenario("neighbour-table-full", "sockstat",
             tables.test_segments_without_a_neighbour_name_the_full_table, tables.stalled,
             ("arp", "ipv4")),
    Scenario("softnet-drops", "skb_drops",
             tables.test_segments_that_a_core_dropped_name_it_with_its_limit, tables.stalled),
    Scenario("orphans-or-time-wait", "net_counters",
             tables.test_orphans_at_their_limit_are_named_with_what_was_reset, tables.closing),
    Scenario("enobufs", "failing_syscalls", attached.test_enobufs_of_a_server, attached.watched),
    Scenario("memory-exhausted", "host_memory", killed_for_memory, attached.watched),
    Scenario("memory-exhausted", "oom_kills", killed_for_memory, attached.watched),
    Scenario("tcp-memory-pressure", "socket_pressure",
             attached.test_tcp_that_is_out_of_memory, attached.watched, (4_096,)),
    Scenario("own-limit", "connection_fates",
             fates.test_who_closes_the_others_at_once_has_a_limit_of_its_own, fates.foreign),
    Scenario("queue-left-standing", "open_fates",
             left.test_a_watched_server_that_is_told_once_leaves_some_in_its_queue,
             attached.watched),
    Scenario("sockets-left-open", "open_fates",
             left.test_sockets_that_clients_have_left_are_told_before_the_limit_is_met,
             attached.watched),
    Scenario("waits-for-slot", "open_fates",
             fates.test_threads_that_are_all_taken_are_a_slot_that_is_waited_for, fates.foreign),
    Scenario("unix-queue-full", "unix_listeners",
             fates.test_a_unix_queue_at_its_backlog_is_full, fates.foreign),
    Scenario("slow-consumers", "send_queues", traffic.test_data_that_piles_up_is_named,
             traffic.watched),
    Scenario("message-amplification", "process_samples",
             traffic.test_messages_that_each_go_to_all_are_named_with_the_number_that_fills_the_core,
             traffic.chat),
    Scenario("backend-unavailable", "failing_syscalls",
             fates.test_a_proxy_whose_connects_fail_reaches_nobody, fates.foreign,
             (111, "ECONNREFUSED")),
    Scenario("receive-buffer-full", "socket_memory",
             attached.test_receive_buffers_that_nobody_reads_are_those_of_the_server,
             attached.watched, ("server", "receive-buffer-full")),
)  # fmt: skip

SEEN_BY_THE_FLEET_ALONE = {"reached", "upgrade-refused", "closed-by-server", "host-lost"}
"""What clients of ours, or agents, saw with each connection or host, which no probe can miss."""


def test_every_kind_of_finding_is_looked_at():
    assert {each.cause for each in SCENARIOS} == CAUSE_IDS - SEEN_BY_THE_FLEET_ALONE


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: f"{each.cause}-{each.table}")
def test_a_probe_that_failed_half_way_is_said_and_believed_less(tmp_path, scenario):
    broken = {"state": "failed", "reason": "OSError: 524", "failed_s": FAILED_S}
    frames = scenario.frames(tmp_path / "broken", **{PROBE_OF_TABLE[scenario.table]: broken})
    found = scenario.finding_in(frames)
    assert found.confidence in ("medium", "low")
    # nothing but this failure has those words
    told = [line for line in found.missing if "OSError: 524" in line]
    assert any(line.startswith(scenario.table) for line in told), found.missing
    has_rows = len(frames[scenario.table]) > 0
    assert has_rows is any(f"{scenario.table} ends 0.2 s after" in line for line in told)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: f"{each.cause}-{each.table}")
def test_a_probe_that_failed_at_its_first_reading_is_believed_no_more(tmp_path, scenario):
    """As eBPF probes do on a kernel that lacks what reading their maps takes."""
    broken = {"state": "failed", "reason": "OSError: 524", "failed_s": -0.5}
    found = scenario.finding(tmp_path / "broken", **dict.fromkeys(PROBES, broken))
    assert found.confidence in ("medium", "low")
    assert any("OSError: 524" in line for line in found.missing)


LOSSES = [(7, 12_345, False), (123, 12_345, False), (124, 12_345, True), (7, -1, True)]


@pytest.mark.parametrize(("lost", "seen", "is_material"), LOSSES)
def test_a_loss_counts_from_its_threshold_on(tmp_path, lost, seen, is_material):
    assert MATERIAL_LOSS_SHARE == 0.01
    (scenario,) = [each for each in SCENARIOS if each.cause == "port-search-cost"]
    losing = {"cpu_stacks": {"lost_count": lost, "seen_count": seen}}
    summary = summarise(scenario.frames(tmp_path / "losing", **losing))
    (found,) = [each for each in summary.findings if each.cause == "port-search-cost"]
    of = f"{lost} events, of how many is not known" if seen < 0 else f"{lost} of 12,345 events ("
    assert any(of in line for line in found.missing) is is_material
    assert (found.confidence == "high") is not is_material
    assert any(f"probe cpu_stacks lost {of}" in line for line in summary.missing) is is_material
    health = summary.probe_health.set_index("probe").loc["cpu_stacks"]
    assert (health["lost_count"], health["seen_count"]) == (lost, seen)
    assert health["is_loss_material"] == is_material


def test_who_rests_on_what_was_not_seen_takes_any_loss_for_material(tmp_path):
    scenario = SCENARIOS[0]
    losing = {"failing_syscalls": {"lost_count": 1}}
    found = scenario.finding(tmp_path / "losing", **losing)
    assert (found.cause, found.confidence) == ("no-limit-met", "medium")
    assert any("1 of 100,000 events" in line for line in found.missing)


@pytest.mark.parametrize(("missed", "is_doubted"), [(900, False), (1_100, True)])
def test_runs_that_were_skipped_for_anybodys_events_count_by_their_share(
    tmp_path, missed, is_doubted
):
    """The kernel counts them for the whole host, where others make most of the calls."""
    skipping = {"failing_syscalls": {"missed_count": missed, "run_count": 100_000}}
    found = SCENARIOS[0].finding(tmp_path / "skipping", **skipping)
    assert (found.cause, found.confidence) == ("no-limit-met", "medium" if is_doubted else "high")
    told = [line for line in found.missing if "1,100 of 100,000 runs (1.1 %)" in line]
    assert bool(told) is is_doubted


def test_no_limit_met_doubts_every_probe_that_failed(tmp_path):
    broken = {"state": "failed", "reason": "OSError: 524", "failed_s": 3.0}
    found = SCENARIOS[0].finding(tmp_path / "broken", tcp_events=broken)
    assert found.confidence == "medium"
    assert "probe tcp_events failed 3.0 s after watching began: OSError: 524" in found.missing


def test_of_an_older_recording_the_last_row_says_until_when_a_failed_probe_saw(tmp_path):
    (scenario,) = [each for each in SCENARIOS if each.cause == "conntrack-full"]
    broken = {"state": "failed", "reason": "x", "failed_ns": -1, "seen_count": -1}
    found = scenario.finding(tmp_path / "broken", host_counters=broken)
    assert "sockstat ends 1.0 s after the ramp began, when its probe failed: x" in found.missing


def test_a_probe_process_that_was_gone_long_before_the_end_is_said(tmp_path):
    (scenario,) = [each for each in SCENARIOS if each.cause == "host-cpu-saturated"]
    frames = scenario.frames(tmp_path / "gone")
    for table, rows in ((name, frames[name]) for name in TABLES if name in PROBE_OF_TABLE):
        origin_ns = RunView(frames).origin_ns
        frames.put(table, rows[rows["at_ns"] <= origin_ns + 2_500_000_000])
    frames.put("probe_health", frames["probe_health"].iloc[:0])
    trust = ProbeTrust(RunView(frames))
    assert trust.doubts(["host_cpu"]) == (
        "host_cpu ends 2.5 s after the ramp began: the probe process had ended",
    )
    whole = scenario.frames(tmp_path / "whole")
    whole.put("probe_health", whole["probe_health"].iloc[:0])
    assert ProbeTrust(RunView(whole)).doubts(["host_cpu"]) == ()


def test_a_probe_that_was_asked_for_and_left_no_row_has_failed(tmp_path):
    frames = SCENARIOS[0].frames(tmp_path / "some")
    health = frames["probe_health"]
    asked = set(health["probe"])
    frames.manifest["probes_asked"] = sorted(asked)
    frames.put("probe_health", health[health["probe"] != "cpu_stacks"])
    some = processes.df_probe_health(RunView(frames)).set_index("probe")
    assert set(some.index) == asked
    assert set(some.index[some["state"] == "failed"]) == {"cpu_stacks"}
    assert "left no health row" in some.loc["cpu_stacks", "reason"]
    frames.put("probe_health", health.iloc[:0])
    none = processes.df_probe_health(RunView(frames))
    assert set(none["probe"]) == asked
    assert set(none["state"]) == {"failed"}
    assert none["lost_count"].dtype == health["lost_count"].dtype


def test_every_table_of_a_probe_is_known_by_it():
    written = {name for name, table in TABLES.items() if table.producer.startswith("probes.")}
    assert set(PROBE_OF_TABLE) == written
    assert set(PROBE_OF_TABLE.values()) == set(PROBES)
    modules = {}
    for table, probe in PROBE_OF_TABLE.items():
        modules.setdefault(TABLES[table].producer, set()).add(probe)
    assert all(len(probes) == 1 for probes in modules.values()), modules
