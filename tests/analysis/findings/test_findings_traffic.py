"""What is said of data that nobody takes, on built tables with known answers."""

from __future__ import annotations

import pytest

from analysis.findings.memory import slow_consumers
from analysis.signs import send_queues
from analysis.summary import summarise
from analysis.verdict import verdict as verdict_module
from probes.contract.errors import ExitCode

PORT = 9001
MB = 1_000_000
PROBES = ("failing_syscalls", "tcp_events", "tcp_snapshot", "host_counters", "live_samples")
LENGTH_S = 30


class Watched:
    """One node process with 60 connections that is watched for 30 s."""

    def __init__(self, build, *, is_attached=True, command="node server.cjs") -> None:
        self.build = build
        server = {"foreign": True, "ports": [PORT], "attached": is_attached}
        server["processes"] = [{"pid": 800, "command": command, "role": "server"}]
        build.manifest["server"] = server
        build.manifest["settings"] = {"accept": "foreign"}
        if is_attached:
            moments = [("setup", -1.0, 0.0), ("watch", 0.0, 30.0), ("collect", 30.0, 30.2)]
            build.manifest["stages"] = [
                {"stage": n, "start_ns": build.ns(a), "end_ns": build.ns(b)} for n, a, b in moments
            ]
        self.pid = build.process("server", 0)
        build.health(*PROBES, "process_samples", "send_queues")
        for second in range(LENGTH_S + 1):
            build.add(
                "host_memory",
                at_s=second,
                total_bytes=24_000 * MB,
                available_bytes=20_000 * MB,
                cgroup_max_bytes=-1,
                cgroup_used_bytes=-1,
            )

    def hold(self, *counts):
        for half in range(2 * LENGTH_S + 1):
            count = counts[min(len(counts) - 1, half * len(counts) // (2 * LENGTH_S + 1))]
            self.build.live(self.pid, half / 2, open_count=count, established_total=count)

    def memory(self, rss_at, step_s=0.5):
        for index in range(round(LENGTH_S / step_s) + 1):
            at_s = index * step_s
            self.build.add(
                "process_samples",
                at_s=at_s,
                pid=self.pid,
                role="server",
                worker=0,
                cpu_user_ns_total=int(at_s * 1e7),
                rss_bytes=int(rss_at(at_s)),
                fd_count=80,
                state="sleeping",
                run_queue_wait_ns_total=0,
            )

    def stand(self, from_s=4, until_s=29, step_s=5, count=30, pid=800, each=4 * MB, **values):
        """Looks at which ``count`` connections stand, since 2 s before the first."""
        at_s = from_s
        while at_s <= until_s:
            row = {
                "queued_count": count + 10,
                "queued_bytes": count * each + MB,
                "standing_count": count,
                "standing_bytes": count * each,
                "closed_window_count": count,
                "longest_standing_ns": int((at_s - from_s + 2) * 1e9),
            }
            self.build.add("send_queues", at_s=at_s, pid=pid, local_port=PORT, **(row | values))
            for number in range(3):
                self.build.add(
                    "standing_sockets",
                    at_s=at_s,
                    pid=pid,
                    local_port=PORT,
                    remote_address="192.0.2.7" if number else "2001:db8::7",
                    remote_port=40_000 + number,
                    send_queue_bytes=each - number,
                    not_sent_bytes=each // 2,
                    since_s=from_s - 2,
                )
            at_s += step_s

    def traffic(self, per_s, sockets=60):
        for second in range(0, LENGTH_S + 1, 5):
            self.build.add(
                "socket_traffic",
                at_s=second,
                side="server",
                socket_count=sockets,
                tx_segments_total=100 * second,
                tx_bytes_total=int(per_s * second),
                rx_segments_total=0,
                rx_bytes_total=0,
            )

    def summary(self):
        return summarise(self.build.frames())


@pytest.fixture
def watched(build):
    return Watched(build)


def named(summary, cause="slow-consumers"):
    (finding,) = [f for f in summary.findings if f.cause == cause]
    return finding


def piles_up(watched, per_s=10 * MB, begin_s=2):
    watched.hold(60)
    watched.memory(lambda at_s: 80 * MB + max(0, at_s - begin_s) * per_s)
    watched.traffic(10 * MB)
    watched.stand()


def test_data_that_piles_up_is_named(watched):
    """With its growth, its sockets and the time left."""
    piles_up(watched)
    summary = watched.summary()
    assert summary.verdict.cause == "slow-consumers"
    assert verdict_module.exit_code(summary.verdict) == ExitCode.LIMIT_MET
    finding = named(summary)
    assert (finding.subject.pid, finding.side, finding.confidence) == (800, "server", "high")
    assert finding.value_of("standing_connections") == 30
    assert finding.value_of("connections_open") == 60
    assert finding.value_of("memory_growth") == pytest.approx(10 * MB, rel=0.02)
    assert finding.value_of("time_to_wall") == pytest.approx(2_000, rel=0.02)
    assert finding.value_of("peer_data", "[2001:db8::7]:40000") == 4 * MB
    assert finding.explained_count == 30
    assert "9.5 MiB more each second for 30 of 60 connections" in summary.verdict.sentence
    assert "(18.6 GiB left) lasts about 33 min" in summary.verdict.sentence
    assert "ws.bufferedAmount" in finding.fix[0].command
    assert finding.fix[1].command == "ss -K dst [2001:db8::7]:40000"


def test_the_tightest_limit_is_the_wall(watched):
    piles_up(watched)
    watched.build.add("cgroups", at_s=-0.5, pid=800, level=0, cgroup_id=7, path="/app.service")
    for second in range(LENGTH_S + 1):
        watched.build.add(
            "cgroup_memory",
            at_s=second,
            cgroup_id=7,
            used_bytes=(100 + 10 * second) * MB,
            peak_bytes=(100 + 10 * second) * MB,
            max_bytes=1_000 * MB,
        )
    finding = named(watched.summary())
    assert finding.value_of("memory_left", "the memory limit of app.service") == 600 * MB
    assert finding.value_of("time_to_wall") == pytest.approx(60, rel=0.02)


def test_a_heap_limit_counts_where_it_lies_above_what_is_resident(watched):
    piles_up(watched)
    for option, size in (("--max-old-space-size=64", 64), ("-Xmx400m", 400)):
        watched.build.add(
            "runtime_limits", at_s=0.1, pid=800, limit="x", option=option, size_bytes=size * MB
        )
    finding = named(watched.summary())
    assert finding.value_of("memory_left", "the heap of its runtime (-Xmx400m)") == 40 * MB


def test_a_server_that_drops_or_waits_is_only_worth_knowing(watched):
    watched.hold(60)
    watched.memory(lambda at_s: 80 * MB + at_s * 1000)
    watched.stand()
    summary = watched.summary()
    finding = named(summary)
    assert summary.verdict.cause == "no-limit-met"
    assert verdict_module.exit_code(summary.verdict) == ExitCode.REACHED
    assert finding.severity == "info"
    assert finding.value_of("time_to_wall") is None
    assert finding.explained_count == 0


def test_growth_that_comes_to_an_end_is_none(watched):
    watched.hold(60)
    watched.memory(lambda at_s: 80 * MB + min(at_s, 12) * 10 * MB)
    watched.traffic(10 * MB)
    watched.stand()
    summary = watched.summary()
    assert summary.verdict.cause == "no-limit-met"
    assert named(summary).value_of("memory_growth") is None


def test_a_leak_beside_one_that_does_not_read_is_not_its_fault(watched):
    watched.hold(60)
    watched.memory(lambda at_s: 80 * MB + at_s * 30 * MB)
    watched.traffic(60 * 10_000)  # 10 kB a second to each: two cannot keep 30 MB a second
    watched.stand(count=2)
    summary = watched.summary()
    assert summary.verdict.cause == "no-limit-met"


def test_growth_with_the_connections_is_not_theirs(watched):
    watched.hold(*range(10, 71, 4))
    watched.memory(lambda at_s: 80 * MB + at_s * 10 * MB)
    watched.stand()
    assert watched.summary().verdict.cause == "no-limit-met"


@pytest.mark.parametrize("until_s", [4, 5])
def test_what_stood_for_a_moment_is_not_told(watched, until_s):
    watched.hold(60)
    watched.memory(lambda at_s: 80 * MB + at_s * 10 * MB)
    watched.stand(from_s=4, until_s=until_s, step_s=0.5, longest_standing_ns=10**9)
    assert {f.cause for f in watched.summary().findings} == {"no-limit-met"}


def test_a_queue_that_moved_between_two_spans_is_two_spans(watched):
    watched.hold(60)
    watched.memory(lambda at_s: 80 * MB)
    watched.stand(from_s=4, until_s=9, step_s=1)
    watched.build.add("send_queues", at_s=10, pid=800, local_port=PORT)
    watched.stand(from_s=14, until_s=20, step_s=1)
    (span,) = send_queues.standing(summarise_view(watched))
    assert (span.since_s, span.until_s) == (12.0, 20.0)


def summarise_view(watched):
    from analysis.frames.run_view import RunView

    return RunView(watched.build.frames())


def test_the_process_is_told_by_its_size_where_its_descriptors_were_too_many(watched):
    watched.hold(60)
    watched.memory(lambda at_s: 80 * MB + at_s * 10 * MB)
    watched.stand(pid=0)
    finding = named(watched.summary())
    assert finding.confidence == "medium"
    assert finding.value_of("memory_growth") == pytest.approx(10 * MB, rel=0.02)


def test_one_whose_clients_are_ours_is_reached_and_yet_piles_up(build):
    watched = Watched(build, is_attached=False, command="python3 server.py")
    build.manifest["target_connections"] = 60
    build.stages(ramp_s=1.0, hold_s=29.0)
    build.process("client", 0)
    build.connect(60)
    for half in range(60):
        build.live(900, half / 2, open_count=60, established_total=60)
    piles_up(watched)
    summary = watched.summary()
    assert summary.verdict.cause == "reached"
    assert "slow-consumers" in summary.verdict.sentence
    finding = named(summary)
    assert finding.severity == "warning"
    assert "get_write_buffer_size" in finding.fix[0].command


def test_the_kill_that_it_leads_to_follows_from_it(build):
    watched = Watched(build, is_attached=False)
    build.manifest["target_connections"] = 60
    build.stages(ramp_s=1.0, hold_s=29.0)
    build.process("client", 0)
    build.connect(60, stage="closed", closed_s=29.5, close_kind="rst", errno=104)
    (server,) = [r for r in build.rows["processes"] if r["pid"] == 800]
    server |= {"exited_ns": build.ns(29.4), "exit_signal": 9}
    build.add("oom_kills", at_s=29.4, pid=800, cgroup_id=7, killed_count=1)
    build.health("oom_kills")
    piles_up(watched)
    summary = watched.summary()
    assert summary.verdict.cause == "slow-consumers"
    assert named(summary, "memory-exhausted").follows_from == "slow-consumers"


def test_servers_of_our_own_are_not_accused(watched):
    watched.build.manifest["server"] = {"ports": [PORT]}
    piles_up(watched)
    assert "slow-consumers" not in {f.cause for f in watched.summary().findings}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40, "about 40 s"), (2_000, "about 33 min"), (20_000, "about 6 h"), (10**6, "about 12 days"),
     (10**9, "more than a year")],
)  # fmt: skip
def test_a_time_to_come_is_said_in_a_unit_that_fits(seconds, words):
    assert slow_consumers.time_words(seconds) == words


# -- message-amplification -----------------------------------------------------------------------


@pytest.fixture
def chat(build):
    """A Python server with 200 connections of ours, held for 10 s."""
    server = {"foreign": True, "ports": [PORT]}
    server["processes"] = [{"pid": 800, "command": "python3 chat.py", "role": "server"}]
    build.manifest["server"] = server
    build.manifest["settings"] = {"accept": "foreign"}
    build.manifest["target_connections"] = 200
    build.stages(ramp_s=1.0, hold_s=10.0)
    build.process("server", 0)
    build.process("client", 0)
    build.health(*PROBES, "process_samples")
    build.connect(200)
    return build


def talk(build, in_per_s, out_per_in, *, cpu_pct=100.0, wait_pct=0.0):
    build.cpu(800, 5.0, from_s=-0.5, until_s=1.5, wait_pct=0.0)
    build.cpu(800, cpu_pct, from_s=1.5, until_s=11.0, wait_pct=wait_pct)
    build.cpu(900, 20.0, from_s=-0.5, until_s=11.0, wait_pct=0.0)
    for quarter in range(45):
        at_s = quarter / 4
        sent = max(0.0, at_s - 1) * in_per_s
        for pid in (800, 900):
            counts = {"tx_messages_total": int(sent), "rx_messages_total": int(sent * out_per_in)}
            counts = counts if pid == 900 else {}
            build.live(pid, at_s, open_count=200, established_total=200, **counts)


def all_of(frames):
    return {f.cause for f in summarise(frames).findings}


def test_messages_that_each_go_to_all_are_named_with_the_number_that_fills_the_core(chat):
    talk(chat, 50, 199)
    summary = summarise(chat.frames())
    finding = named(summary, "message-amplification")
    assert summary.verdict.cause == "reached"
    assert "(message-amplification)" in summary.verdict.sentence
    assert (finding.subject.pid, finding.severity, finding.confidence) == (800, "warning", "high")
    assert finding.value_of("messages_out_per_in") == pytest.approx(199, rel=0.05)
    assert finding.value_of("messages_in_rate") == pytest.approx(50, rel=0.1)
    assert finding.value_of("cpu_per_message") == pytest.approx(100, rel=0.1)
    assert finding.value_of("full_at_connections") == pytest.approx(200, rel=0.05)
    assert "hot-worker-code" not in {f.cause for f in summary.findings}
    assert any("rooms" in fix.command for fix in finding.fix)


def test_one_that_falls_behind_is_predicted_by_the_root_of_what_is_wanted(chat):
    talk(chat, 200, 50)  # a fourth of what would be to all
    finding = named(summarise(chat.frames()), "message-amplification")
    assert finding.confidence == "medium"
    assert finding.value_of("cpu_wanted") == pytest.approx(398, rel=0.1)
    assert finding.value_of("full_at_connections") == pytest.approx(100, rel=0.1)
    assert "collect what came in for" in finding.fix[0].command


def test_a_part_of_a_core_says_the_same_on_a_crowded_host(chat):
    talk(chat, 50, 40, cpu_pct=20.0, wait_pct=79.0)
    finding = named(summarise(chat.frames()), "message-amplification")
    assert finding.value_of("cpu_wanted") == pytest.approx(100, rel=0.1)
    assert finding.value_of("core_wait") == pytest.approx(79, rel=0.05)


@pytest.mark.parametrize(
    ("in_per_s", "out_per_in", "cpu_pct", "wait_pct"),
    [
        (5_000, 1, 100.0, 0.0),  # an echo
        (50, 199, 40.0, 0.0),  # it rests
        (5, 199, 15.0, 80.0),  # it waits for its turns, and needs little
        (0.2, 199, 100.0, 0.0),  # what fills the core is something else
        (2, 199, 100.0, 0.0),  # 2.5 ms for each: code of its own
        (2_000, 7, 100.0, 0.0),  # to a few
        (40, 400, 100.0, 0.0),  # two to each: it has something of its own to say
    ],
)
def test_what_is_not_sent_to_all_or_fills_no_core_is_not_named(
    chat, in_per_s, out_per_in, cpu_pct, wait_pct
):
    talk(chat, in_per_s, out_per_in, cpu_pct=cpu_pct, wait_pct=wait_pct)
    assert "message-amplification" not in all_of(chat.frames())


def test_what_goes_out_of_another_length_is_not_what_came_in(chat):
    talk(chat, 50, 60)
    for second in range(11):
        counts = {"tx_segments_total": 3_000, "tx_bytes_total": 3_000 * 1_400}
        counts |= {"rx_segments_total": 50, "rx_bytes_total": 50 * 70}
        scaled = {name: 1 + second * count for name, count in counts.items()}
        chat.add("socket_traffic", at_s=second, side="server", socket_count=200, **scaled)
    assert "message-amplification" not in all_of(chat.frames())


def test_servers_of_our_own_send_nothing_to_all(chat):
    chat.manifest["server"] = {}
    talk(chat, 50, 199)
    assert "message-amplification" not in all_of(chat.frames())


def carries(build, rx_per_s, tx_per_s, *, rx_bytes=70, tx_bytes=66, sockets=100):
    """What the sockets of a watched worker at a full core carry, for 30 s."""
    watched = Watched(build, command="python3 chat.py")
    watched.hold(sockets)
    build.cpu(800, 99.0, from_s=0.0, until_s=30.0, wait_pct=0.0)
    for second in range(0, LENGTH_S + 1, 3):
        build.add(
            "socket_traffic",
            at_s=second,
            side="server",
            socket_count=sockets,
            tx_segments_total=tx_per_s * second,
            tx_bytes_total=tx_per_s * second * tx_bytes,
            rx_segments_total=rx_per_s * second,
            rx_bytes_total=rx_per_s * second * rx_bytes,
        )
    return watched.summary()


def test_from_outside_it_is_told_by_number_and_length_of_segments(build):
    summary = carries(build, 100, 9_500)
    finding = named(summary, "message-amplification")
    assert summary.verdict.cause == "message-amplification"
    assert finding.confidence == "medium"
    assert finding.value_of("messages_out_per_in") == pytest.approx(95)
    assert finding.value_of("full_at_connections") == pytest.approx(100, rel=0.03)


@pytest.mark.parametrize(
    "traffic",
    [
        {"rx_per_s": 100, "tx_per_s": 2_000},  # a ticker, 20 a second to each
        {"rx_per_s": 100, "tx_per_s": 9_500, "rx_bytes": 6},  # answers to pings
        {"rx_per_s": 100, "tx_per_s": 9_500, "tx_bytes": 1_400},  # something else goes out
        {"rx_per_s": 5_000, "tx_per_s": 5_000},  # an echo
    ],
)
def test_from_outside_a_full_core_of_other_messages_is_code_of_its_own(build, traffic):
    summary = carries(build, **traffic)
    assert summary.verdict.cause == "hot-worker-code"
    assert "message-amplification" not in {f.cause for f in summary.findings}
