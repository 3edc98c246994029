from __future__ import annotations

import pytest

from analysis.frames.descriptors import df_descriptors
from analysis.frames.memory import df_memory_over_time, df_memory_per_connection
from analysis.frames.ports import df_ports
from analysis.frames.run_view import RunView
from analysis.frames.timeline import df_listeners
from analysis.ladder.ladder import build_ladder, layout_wall, next_wall
from analysis.verdict.verdict import wall_sentence


def ladder_of(build):
    view = RunView(build.frames())
    rungs = build_ladder(view, df_descriptors(view), df_ports(view), df_listeners(view))
    return {r.subject if r.limit == "fds_per_process" else r.limit: r for r in rungs}


@pytest.fixture
def ramped(build):
    """1,000 connections in 1 s; two workers with 600 and 400, one client."""
    build.stages(1.0, 6.0)
    build.manifest["target_connections"] = 1000
    build.process("server", 0)
    build.process("server", 1)
    build.process("client", 0, nofile_soft_count=2016)
    build.connect(1000)
    for quarter in range(29):
        at_s = quarter / 4
        count = min(1000, round(1000 * at_s))
        build.live(800, at_s, open_count=round(0.6 * count))
        build.live(801, at_s, open_count=round(0.4 * count))
        build.live(900, at_s, open_count=count)
    return build


def test_descriptors_by_the_share_of_each_process(ramped):
    ladder = ladder_of(ramped)
    first = ladder["worker 0 (pid 800, server)"]
    # 1,009 - 16 own, at 60 % of the connections
    assert (first.capacity, first.used_at_peak) == (993, 600)
    assert first.predicted_connections == 1655
    assert ladder["worker 1 (pid 801, server)"].predicted_connections == 2482
    assert ladder["client 0 (pid 900, client)"].predicted_connections == 2000
    assert first.per_connection == pytest.approx(0.6)
    assert first.fit_error_pct < 5
    assert not first.met


@pytest.mark.parametrize(("close_kind", "each"), [("timeout", 1), ("eof", 5)])
def test_what_clients_gave_up_is_open_in_the_server_and_is_no_second_descriptor(
    build, close_kind, each
):
    """50 are served; 200 more wait in vain, and the server does not see that they have left."""
    build.stages(2.0, 6.0)
    build.manifest["server"] = {"foreign": True, "command": [], "processes": []}
    build.process("server", 0)
    build.connect(50)
    build.connect(200, from_s=1.0, until_s=1.5, stage="handshake", close_kind=close_kind,
                  closed_s=4.0)  # fmt: skip
    for quarter in range(29):
        build.live(800, quarter / 4, open_count=min(250, 50 * quarter))
    worker = ladder_of(build)["worker 0 (pid 800, server)"]
    assert worker.predicted_connections == round(993 / each)


def sample_host(build, **slopes):
    for half in range(-1, 14):
        at_s = half / 2
        count = max(0, min(1000, round(1000 * at_s)))
        build.add(
            "sockstat",
            at_s=at_s,
            tcp_mem_pages=10 + slopes.get("tcp_mem", 0) * count,
            tcp_mem_max_pages=100_000,
            file_nr_count=5000 + 2 * count,
            file_max_count=slopes.get("file_max", 20_000),
            conntrack_count=-1,
            conntrack_max_count=-1,
        )
        build.add(
            "host_memory",
            at_s=at_s,
            available_bytes=10_000_000_000,
            slab_bytes=500_000_000 + 8_300 * count,
            cgroup_used_bytes=-1,
            cgroup_max_bytes=-1,
        )


def test_host_tables_are_predicted_from_their_slope(ramped):
    sample_host(ramped, tcp_mem=4)
    ladder = ladder_of(ramped)
    assert ladder["file_max"].predicted_connections == pytest.approx(7500, abs=2)
    assert ladder["file_max"].per_connection == pytest.approx(2)
    assert ladder["tcp_mem"].predicted_connections == pytest.approx(24_997, abs=3)
    assert ladder["memory"].per_connection == pytest.approx(8300, rel=1e-3)
    # 10 GB / 8.3 kB is 1.2 million, over 1,000 times this run: said, not guessed
    assert ladder["memory"].predicted_connections is None
    assert "1,000 times" in ladder["memory"].note


def test_idle_connections_hold_no_tcp_memory_and_an_endless_table_is_no_limit(ramped):
    sample_host(ramped, file_max=2**63 - 1)
    ladder = ladder_of(ramped)
    assert ladder["tcp_mem"].predicted_connections is None
    assert "idle" in ladder["tcp_mem"].note
    assert ladder["file_max"].predicted_connections is None
    assert "no limit" in ladder["file_max"].note


def test_who_waits_for_a_full_proxy_is_not_open_in_it(build):
    """It has 146 connections and as many to what is behind it; 300 more wait in its queue."""
    build.stages(2.0, 6.0)
    build.manifest["server"] = {"foreign": True, "command": [], "processes": []}
    build.process("server", 0, nofile_soft_count=300)
    build.connect(146)
    build.connect(300, from_s=1.2, until_s=1.5, stage="handshake", close_kind="timeout",
                  closed_s=4.0)  # fmt: skip
    build.add("failing_syscalls", at_s=2.0, pid=800, syscall="accept4", errno=24,
              errno_name="EMFILE", event_count=3, first_s=1.1, last_s=2.0)  # fmt: skip
    for quarter in range(29):
        build.live(800, quarter / 4, open_count=min(292, 100 * quarter))
    view = RunView(build.frames())
    assert view.descriptors_per_connection("server") == 2


def test_files_that_others_open_are_not_the_connections_own(ramped):
    for half in range(-1, 14):
        at_s = half / 2
        count = max(0, min(1000, round(1000 * at_s)))
        ramped.add("sockstat", at_s=at_s, file_nr_count=5000 + 40 * count,
                   file_max_count=2_000_000)  # fmt: skip
    assert ladder_of(ramped)["file_max"].predicted_connections == pytest.approx(49_875, rel=0.01)
    for pid, count in ((800, 620), (801, 420), (900, 1020)):
        role = "client" if pid == 900 else "server"
        ramped.add("process_samples", at_s=1.0, pid=pid, role=role, fd_count=count)
    assert ladder_of(ramped)["file_max"].predicted_connections is None


def test_a_rung_that_was_not_measured_says_so(ramped):
    ladder = ladder_of(ramped)
    blind = ("file_max", "tcp_mem", "memory", "conntrack", "accept_queue", "cpu_worker", "cpu_host")
    for limit in blind:
        assert ladder[limit].predicted_connections is None, limit
        assert ladder[limit].note, limit


def test_ports_by_group_with_and_without_the_kernels_snapshot(ramped):
    ramped.manifest["plan"] = {"port_range": [40000, 41008]}
    from_records = ladder_of(ramped)["ephemeral_ports"]
    assert (from_records.capacity, from_records.used_at_peak) == (1009, 1000)
    assert from_records.predicted_connections == 1009
    assert not from_records.met
    assert "connections" in from_records.source


def test_the_kernels_snapshot_counts_also_ports_that_no_record_knows(ramped):
    # 9 more than the records know: TIME_WAIT of an earlier run, say
    ramped.add(
        "port_groups",
        at_s=1.0,
        source_address="127.0.0.1",
        destination_address="127.0.0.1",
        destination_port=9000,
        ports_used_count=1009,
        range_low_port=40000,
        range_high_port=41008,
    )
    rung = ladder_of(ramped)["ephemeral_ports"]
    assert (rung.capacity, rung.used_at_peak, rung.met) == (1009, 1009, True)
    assert "port_groups" in rung.source


def test_keepalives_predict_the_cpu_rung(ramped):
    ramped.manifest["settings"]["keepalive_s"] = 0.5
    ramped.cpu(800, 40, from_s=1.0, until_s=7.0)
    ramped.cpu(801, 20, from_s=1.0, until_s=7.0)
    ramped.cpu(900, 40, from_s=1.0, until_s=7.0)
    ramped.host_cpu(60, from_s=1.0, until_s=7.0)
    for row in ramped.rows["live_samples"]:
        if row["role"] == "server":
            since_s = max(0.0, (row["at_ns"] - ramped.ns(1.0)) / 1e9)
            row["tx_pings_total"] = row["rx_pongs_total"] = round(since_s * row["open_count"] / 0.5)
    ladder = ladder_of(ramped)
    # 1,000 connections take 40 % of worker 0's core; the fleet takes 100 of 200 %, others 20
    assert ladder["cpu_worker"].predicted_connections == pytest.approx(2500, rel=0.02)
    assert ladder["cpu_worker"].subject == "worker 0 (pid 800, server)"
    assert ladder["cpu_host"].predicted_connections == pytest.approx(1800, rel=0.02)
    assert ladder["cpu_worker"].fit_error_pct < 15
    # The same cost per message at ten times the interval carries ten times the connections.
    assert "about 5,000 at 1 s and about 25,000 at 5 s" in ladder["cpu_worker"].note


def test_slab_per_connection_is_its_slope_over_the_baseline(ramped):
    for half in range(-1, 14):
        at_s = half / 2
        count = max(0, min(1000, round(1000 * at_s)))
        ramped.add(
            "slab_caches",
            at_s=at_s,
            cache="TCP",
            active_objects_count=323 + 2 * count,
            object_size_bytes=2520,
            total_bytes=99,
        )
    view = RunView(ramped.frames())
    rows = df_memory_per_connection(view, df_memory_over_time(view)).set_index("component")
    assert rows.loc["TCP", "bytes_per_connection"] == pytest.approx(5040, rel=1e-3)
    assert rows.loc["TCP", "baseline_bytes"] == pytest.approx(323 * 2520, rel=1e-2)
    assert rows.loc["TCP", "fit_error_pct"] < 1


def test_messages_at_a_rate_of_the_whole_run_predict_nothing(ramped):
    ramped.manifest["settings"]["message_rate_per_s"] = 5000
    ramped.cpu(800, 40, from_s=1.0, until_s=7.0)
    ramped.cpu(900, 40, from_s=1.0, until_s=7.0)
    ramped.host_cpu(60, from_s=1.0, until_s=7.0)
    ladder = ladder_of(ramped)
    for limit in ("cpu_worker", "cpu_host"):
        assert ladder[limit].predicted_connections is None
        assert "fixed rate" in ladder[limit].note


@pytest.mark.parametrize(
    ("fixed", "server", "client", "ports"),
    [
        (None, "setting", "setting", "setting"),
        ([], "plan", "plan", "plan"),
        (["workers"], "setting", "plan", "plan"),
        (["nofile", "port_range"], "setting", "plan", "setting"),
        (["clients", "source_addresses"], "plan", "setting", "setting"),
    ],
)
def test_what_the_planner_laid_out_by_itself_moves_with_the_target(
    ramped, fixed, server, client, ports
):
    ramped.manifest["plan"] = {} if fixed is None else {"fixed": fixed}
    ladder = ladder_of(ramped)
    assert ladder["worker 0 (pid 800, server)"].moved_by == server
    assert ladder["client 0 (pid 900, client)"].moved_by == client
    assert ladder["ephemeral_ports"].moved_by == ports


def test_neither_processes_nor_addresses_of_somebody_elses_server_are_the_planners(ramped):
    ramped.manifest["server"] = {"foreign": True, "command": [], "processes": []}
    ramped.manifest["plan"] = {"fixed": []}
    ladder = ladder_of(ramped)
    assert ladder["worker 0 (pid 800, server)"].moved_by == "setting"
    assert ladder["client 0 (pid 900, client)"].moved_by == "plan"
    assert ladder["ephemeral_ports"].moved_by == "setting"


def test_the_verdict_names_the_wall_of_the_host_and_not_that_of_the_layout(ramped):
    ramped.manifest["plan"] = {"fixed": []}
    sample_host(ramped)
    view = RunView(ramped.frames())
    rungs = build_ladder(view, df_descriptors(view), df_ports(view), df_listeners(view))
    assert layout_wall(rungs).subject == "worker 0 (pid 800, server)"
    wall = next_wall(rungs)
    assert (wall.limit, wall.moved_by) == ("file_max", "setting")
    said = "planner cannot move is the file table (fs.file-max) of the host, at about"
    assert f"{said} {wall.predicted_connections:,} " in wall_sentence(rungs)


def test_the_wall_of_the_layout_is_named_where_no_other_is_known(ramped):
    ramped.manifest["plan"] = {"fixed": []}
    view = RunView(ramped.frames())
    rungs = build_ladder(view, df_descriptors(view), df_ports(view), df_listeners(view))
    assert next_wall(rungs).subject == "worker 0 (pid 800, server)"
    assert layout_wall(rungs) is None
    assert wall_sentence(rungs).endswith(
        "at about 1,655 connections, which the planner moves for a larger target"
    )


@pytest.mark.parametrize("is_sampled", [True, False])
def test_files_that_others_close_meanwhile_are_not_those_of_the_run(ramped, is_sampled):
    """1,000 connections take 2,000 files; a neighbour gives back 1,500 during the ramp."""
    for half in range(-1, 14):
        at_s = half / 2
        count = max(0, min(1000, round(1000 * at_s)))
        others = 5000 if at_s < 0.5 else 3500
        ramped.add("sockstat", at_s=at_s, file_nr_count=others + 2 * count, file_max_count=203_500,
                   conntrack_max_count=-1)  # fmt: skip
    for pid, role, share in ((800, "server", 0.6), (801, "server", 0.4), (900, "client", 1.0)):
        for half in range(-1, 14 if is_sampled else -1):
            count = max(0, min(1000, round(1000 * half / 2)))
            ramped.add("process_samples", at_s=half / 2, pid=pid, role=role,
                       worker=pid % 100, fd_count=round(share * count))  # fmt: skip
    rung = ladder_of(ramped)["file_max"]
    assert rung.used_at_peak == 5500
    exact = rung.predicted_connections == pytest.approx(100_000, rel=0.01)
    assert exact is is_sampled
