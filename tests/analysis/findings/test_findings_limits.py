"""Causes that rest on counters of processes and control groups, on exits and on words."""

from __future__ import annotations

import signal

import pytest

from analysis.frames.run_view import RunView
from analysis.server.control_group import cpu_quota_command, nofile_command, owner_of, tasks_command
from analysis.summary import summarise

GIB = 1 << 30
DOCKER = "/sys/fs/cgroup/system.slice/docker-" + "ab12" * 16 + ".scope"


@pytest.fixture
def foreign(build):
    """One process of node under 100 clients, 40 of which got in before 1 s; 60 time out at 4 s."""
    build.manifest["server"] = {
        "foreign": True,
        "command": ["node", "server.js"],
        "processes": [
            {"pid": 800, "worker": 0, "command": "node server.js"},
            {"pid": 801, "worker": 1, "command": "node server.js"},
        ],
    }
    build.manifest["argv"] = ["profile-run", "--server-cmd", "node server.js {port}"]
    build.manifest["target_connections"] = 100
    build.stages(ramp_s=4.0, hold_s=2.0)
    build.process("server", 0, nofile_soft_count=20_000)
    build.process("client", 0, nofile_soft_count=20_000)
    build.health("failing_syscalls", "live_samples", "process_samples", "host_counters",
                 "runtime_limits",
                 "server_words", "cpu_stacks")  # fmt: skip
    for quarter in range(24):
        build.add("host_memory", at_s=quarter / 4, total_bytes=24 * GIB, available_bytes=20 * GIB)
    return build


def getting_in(build, count=40, *, failing=60):
    build.connect(count)
    build.connect(failing, from_s=1.0, until_s=2.0, stage="handshake", close_kind="timeout",
                  errno=0, closed_s=4.0)  # fmt: skip
    for quarter in range(-2, 25):
        at_s = quarter / 4
        build.live(800, at_s, open_count=max(0, min(count, round(count * at_s))))


def by_cause(build):
    summary = summarise(build.frames())
    return {finding.cause: finding for finding in summary.findings}, summary.verdict


# -- whose a control group is ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cgroup", "kind", "name"),
    [
        ("/sys/fs/cgroup/system.slice/chat.service", "unit", "chat.service"),
        ("/sys/fs/cgroup/system.slice", "unit", "system.slice"),
        (DOCKER, "container", "ab12ab12ab12"),
        ("/sys/fs/cgroup/cpu/docker/" + "0" * 64, "container", "0" * 12),
        ("/sys/fs/cgroup/machine.slice/libpod-" + "c" * 64 + ".scope", "container", "c" * 12),
        ("/sys/fs/cgroup/kubepods.slice/kubepods-pod1.slice/docker-" + "0" * 64 + ".scope", "pod",
         "docker-" + "0" * 64 + ".scope"),
        ("/sys/fs/cgroup/cpu/case", "group", "case"),
        ("/", "group", "/"),
    ],
)  # fmt: skip
def test_the_owner_of_a_group_is_told_by_its_path(cgroup, kind, name):
    owner = owner_of(cgroup)
    assert (owner.kind, owner.name) == (kind, name)


def test_the_command_is_that_of_the_owner():
    unit = "/sys/fs/cgroup/system.slice/chat.service"
    assert cpu_quota_command(unit, 2, 2, 100_000) == (
        "systemctl set-property chat.service CPUQuota=200%"
    )
    assert cpu_quota_command(DOCKER, 2, 1.5, 100_000) == "docker update --cpus 1.5 ab12ab12ab12"
    assert cpu_quota_command("/sys/fs/cgroup/cpu/case", 1, 1, 100_000) == (
        "echo 100000 > /sys/fs/cgroup/cpu/case/cpu.cfs_quota_us"
    )
    assert cpu_quota_command("/sys/fs/cgroup/case", 2, 1, 100_000) == (
        'echo "100000 100000" > /sys/fs/cgroup/case/cpu.max'
    )
    assert tasks_command(unit, 512) == "systemctl set-property chat.service TasksMax=512"
    assert tasks_command(DOCKER, 512) == "docker update --pids-limit 512 ab12ab12ab12"
    assert tasks_command("/sys/fs/cgroup/a b", 512) == "echo 512 > '/sys/fs/cgroup/a b/pids.max'"


@pytest.mark.parametrize(
    ("cgroup", "command"),
    [
        ("/system.slice/chat.service", "systemctl edit chat.service"),
        ("/user.slice/session-3.scope", "systemctl edit NAME.service"),  # no scope has a limit
        ("", "systemctl edit NAME.service"),
        (DOCKER, "docker run --ulimit nofile=65535:65535  # container ab12ab12ab12"),
        ("/machine.slice/libpod-" + "c" * 64 + ".scope", "podman run --ulimit nofile=65535:65535"),
        ("/kubepods.slice/kubepods-pod1.slice/docker-" + "0" * 64 + ".scope", "LimitNOFILE=65535"),
    ],
)
def test_a_limit_of_descriptors_is_raised_where_its_owner_sets_it(cgroup, command):
    assert nofile_command(cgroup, 65_535).startswith(command)
    assert "65535" in nofile_command(cgroup, 65_535)


# -- cpu-quota ---------------------------------------------------------------------------------


def quota(build, *, share, until_s=5.0, cgroup="/sys/fs/cgroup/system.slice/chat.service"):
    for half in range(round(until_s * 2) + 1):
        build.add(
            "cgroup_cpu", at_s=half / 2, pid=800, cgroup=cgroup, version=2, quota_ns=10_000_000,
            period_ns=100_000_000, periods_total=5 * half,
            throttled_periods_total=round(5 * half * share),
            throttled_ns_total=round(4.5e8 * half * share),
        )  # fmt: skip


def test_a_quota_that_stops_the_server_is_named_with_its_group_and_a_whole_core(foreign):
    getting_in(foreign)
    quota(foreign, share=0.96)
    foreign.cpu(800, 10, until_s=6.0, wait_pct=85)
    foreign.host_cpu(12, from_s=0.0, until_s=6.0)
    found, verdict = by_cause(foreign)
    assert verdict.cause == "cpu-quota"
    finding = found["cpu-quota"]
    assert (finding.side, finding.subject.pid, finding.severity) == ("server", 800, "binding")
    assert finding.value_of("cpu_quota") == pytest.approx(10)
    assert finding.value_of("throttled_share") == pytest.approx(96, abs=3)
    assert finding.value_of("host_busy") == pytest.approx(12, abs=1)
    assert finding.explained_count == 60
    assert finding.fix[0].command == "systemctl set-property chat.service CPUQuota=100%"


def test_a_quota_explains_the_wait_for_a_core_also_on_a_full_host(foreign):
    getting_in(foreign)
    quota(foreign, share=1.0)
    foreign.cpu(800, 10, until_s=6.0, wait_pct=90)
    foreign.host_cpu(99, from_s=0.0, until_s=6.0)
    found, verdict = by_cause(foreign)
    assert verdict.cause == "cpu-quota"
    assert "host-cpu-saturated" not in found


def test_a_quota_that_is_seldom_used_up_is_no_finding(foreign):
    getting_in(foreign, failing=0)
    quota(foreign, share=0.1)
    foreign.cpu(800, 10, until_s=6.0)
    assert "cpu-quota" not in by_cause(foreign)[0]


# -- task-limit --------------------------------------------------------------------------------


def refused(build, syscall, errno, name, *, at_s=1.0, count=60):
    build.add("failing_syscalls", at_s=at_s + 0.2, pid=800, syscall=syscall, errno=errno,
              errno_name=name, event_count=count, first_s=at_s, last_s=at_s + 1)  # fmt: skip


def reading(build, limit, used, capacity, *, scope="", hits=-1):
    build.add("limit_readings", at_s=1.2, pid=800, limit=limit, scope=scope, used=used,
              capacity=capacity, hits_total=hits)  # fmt: skip


def test_the_task_limit_of_a_group_is_named_by_its_own_count_of_refusals(foreign):
    getting_in(foreign)
    refused(foreign, "clone3", 11, "EAGAIN")
    reading(foreign, "threads_count", 48, -1)
    reading(foreign, "group_tasks_count", 64, 64, scope=DOCKER, hits=60)
    reading(foreign, "host_tasks_count", 300, 190_000)
    found, verdict = by_cause(foreign)
    assert verdict.cause == "task-limit"
    finding = found["task-limit"]
    assert (finding.subject.pid, finding.confidence, finding.at_connections) == (800, "high", 40)
    assert finding.value_of("eagain_calls", "clone3") == 60
    assert finding.fix[0].command.startswith("docker update --pids-limit ")
    assert int(finding.fix[0].command.split()[3]) >= 2 * 64
    assert "container ab12ab12ab12" in finding.sentence


def test_the_task_limit_of_a_user_has_the_command_of_the_shell(foreign):
    getting_in(foreign)
    refused(foreign, "clone", 11, "EAGAIN")
    reading(foreign, "user_tasks_count", 100, 100, scope="uid 1000")
    reading(foreign, "group_tasks_count", 90, 9_000, scope="/sys/fs/cgroup/pids/a", hits=0)
    finding = by_cause(foreign)[0]["task-limit"]
    assert "uid 1000" in finding.sentence
    assert finding.fix[0].command.startswith("ulimit -u ")


def test_a_refused_thread_is_a_limit_also_when_none_was_read(foreign):
    getting_in(foreign)
    refused(foreign, "clone", 11, "EAGAIN")
    finding = by_cause(foreign)[0]["task-limit"]
    assert finding.confidence == "medium"
    assert "/proc/800/limits" in finding.fix[0].command


def test_an_empty_socket_is_no_task_limit(foreign):
    getting_in(foreign)
    refused(foreign, "recvfrom", 11, "EAGAIN")
    reading(foreign, "host_tasks_count", 190_000, 190_000)
    assert "task-limit" not in by_cause(foreign)[0]


# -- mapping-limit -----------------------------------------------------------------------------


def test_mappings_that_are_used_up_are_no_want_of_memory(foreign):
    getting_in(foreign)
    refused(foreign, "mmap", 12, "ENOMEM")
    reading(foreign, "mappings_count", 65_531, 65_530)
    foreign.cpu(800, 10, until_s=6.0)
    found, verdict = by_cause(foreign)
    assert verdict.cause == "mapping-limit"
    assert "memory-exhausted" not in found
    finding = found["mapping-limit"]
    assert (finding.side, finding.subject.pid) == ("server", 800)
    assert finding.value_of("least_memory_available") == 20 * GIB
    assert finding.explained_count == 60
    command = finding.fix[0].command
    assert command.startswith("sysctl -w vm.max_map_count=")
    assert int(command.partition("=")[2]) >= 2 * 65_530


def test_an_address_space_that_is_used_up_has_the_command_of_the_shell(foreign):
    getting_in(foreign)
    refused(foreign, "mmap", 12, "ENOMEM")
    reading(foreign, "mappings_count", 400, 65_530)
    reading(foreign, "address_space_bytes", 990 << 20, 1000 << 20)
    finding = by_cause(foreign)[0]["mapping-limit"]
    assert "RLIMIT_AS" in finding.sentence
    assert finding.fix[0].command.startswith("ulimit -v unlimited")


def test_a_limit_of_the_command_itself_is_lifted_there(foreign):
    """And those that it had taken when all came at once are what it got to, not none."""
    foreign.manifest["server"]["command"] = ["sh", "-c", "ulimit -v 1024000; exec app"]
    setting = {"name": "v", "value": 1_024_000, "file": "", "line": 1}
    foreign.manifest["server"]["settings"] = [{**setting, "text": "ulimit -v 1024000; exec app"}]
    foreign.connect(60, from_s=0.5)
    foreign.connect(40, from_s=1.2, until_s=1.6, stage="handshake", close_kind="eof")
    refused(foreign, "mmap", 12, "ENOMEM", at_s=0.01)
    reading(foreign, "address_space_bytes", 990 << 20, 1000 << 20)
    finding = by_cause(foreign)[0]["mapping-limit"]
    assert finding.fix[0].command.startswith("ulimit -v unlimited instead of 1024000 in --server")
    assert finding.at_connections == 60


def test_a_runtime_that_asks_for_more_than_there_is_meets_no_limit_of_mappings(foreign):
    getting_in(foreign, failing=0)
    refused(foreign, "mmap", 12, "ENOMEM", at_s=-0.5, count=1)
    reading(foreign, "mappings_count", 40, 65_530)
    assert "mapping-limit" not in by_cause(foreign)[0]


# -- runtime-heap-limit ------------------------------------------------------------------------

OOM = "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory"


def says(build, line, *, at_s, pid=0, count=1):
    build.add("server_words", at_s=at_s, pid=pid, source="server.log", line=line,
              event_count=count, first_s=at_s)  # fmt: skip


def told(build, size_bytes):
    build.add("runtime_limits", at_s=-0.5, pid=800, limit="v8_old_space",
              option="--max-old-space-size", size_bytes=size_bytes)  # fmt: skip


def dies(build, *, at_s, status=-1, number=0):
    row = build.rows["processes"][0]
    row |= {"exited_ns": build.ns(at_s), "exit_status": status, "exit_signal": number}


def test_a_full_heap_is_the_cause_and_the_crash_follows(foreign):
    foreign.manifest["argv"][2] = "node --max-old-space-size=64 server.js {port}"
    foreign.connect(40, stage="closed", close_kind="rst", errno=104, closed_s=2.0)
    foreign.connect(60, from_s=2.0, until_s=3.0, stage="connect", close_kind="error", errno=111)
    for quarter in range(9):
        foreign.live(800, quarter / 4, open_count=min(40, 10 * quarter))
    foreign.cpu(800, 60, until_s=2.0)
    told(foreign, 64 << 20)
    says(foreign, OOM, at_s=2.1)
    dies(foreign, at_s=2.04, number=signal.SIGABRT)
    found, verdict = by_cause(foreign)
    assert verdict.cause == "runtime-heap-limit"
    assert found["worker-crash"].follows_from == "runtime-heap-limit"
    assert found["worker-crash"].at_connections == 40  # 40 ms before it was reaped
    finding = found["runtime-heap-limit"]
    assert (finding.subject.pid, finding.at_connections, finding.confidence) == (800, 40, "high")
    assert [quote.line for quote in finding.quotes] == [OOM]
    command = finding.fix[0].command
    assert command.startswith("profile-run --server-cmd 'node --max-old-space-size=")
    assert command.endswith(" server.js {port}'")
    assert int(command.partition("size=")[2].split()[0]) >= 128


def test_a_heap_is_said_to_be_full_seconds_after_its_collector_had_the_core(foreign):
    """The process waits for a core before it can abort and write what for."""
    foreign.connect(40, stage="closed", close_kind="rst", errno=104, closed_s=5.2)
    foreign.connect(60, from_s=1.0, until_s=6.0, stage="connect", close_kind="error", errno=111)
    foreign.live(800, 0.9, open_count=40)
    foreign.cpu(800, 60, until_s=5.0)
    for second in range(3):
        foreign.add("cpu_stacks", at_s=second + 0.5, pid=800, tid=800, thread="node",
                    user_stack="start;uv_run;v8::internal::MarkCompactCollector::MarkLiveObjects",
                    sample_count=60)  # fmt: skip
    told(foreign, 64 << 20)
    says(foreign, OOM, at_s=5.3)
    dies(foreign, at_s=5.24, number=signal.SIGABRT)
    found, verdict = by_cause(foreign)
    assert found["garbage-collection"].last_s + 0.6 < found["runtime-heap-limit"].first_s
    assert found["garbage-collection"].follows_from == "runtime-heap-limit"
    assert verdict.cause == "runtime-heap-limit"


def test_a_worker_thread_of_node_has_a_heap_of_its_own(foreign):
    foreign.connect(40, stage="closed", close_kind="rst", errno=104, closed_s=2.0)
    foreign.live(800, 1.9, open_count=40)
    told(foreign, 4 << 30)
    says(foreign, "code: 'ERR_WORKER_OUT_OF_MEMORY'", at_s=2.0)
    dies(foreign, at_s=2.04, status=1)
    found, verdict = by_cause(foreign)
    assert verdict.cause == "runtime-heap-limit"
    assert "maxOldGenerationSizeMb" in found["runtime-heap-limit"].fix[0].command


def test_an_abort_with_a_full_heap_needs_no_words(foreign):
    foreign.connect(40, stage="closed", close_kind="rst", errno=104, closed_s=2.0)
    foreign.live(800, 1.9, open_count=40)
    foreign.cpu(800, 60, until_s=2.0)
    for row in foreign.rows["process_samples"]:
        row["rss_bytes"] = 90 << 20
    told(foreign, 64 << 20)
    dies(foreign, at_s=2.04, number=signal.SIGABRT)
    assert by_cause(foreign)[0]["runtime-heap-limit"].confidence == "medium"


def test_a_heap_that_is_full_and_does_not_end_is_named_on_a_crowded_host(foreign):
    """Neighbours leave it 16 samples a second, and its first attempt fails before it is full."""
    getting_in(foreign)
    told(foreign, 64 << 20)
    foreign.cpu(800, 25, until_s=6.0, wait_pct=72)
    for row in foreign.rows["process_samples"]:
        full = row["at_ns"] >= foreign.ns(1.0)
        row["rss_bytes"] = (118 if full else 70) << 20
    foreign.host_cpu(99, from_s=0.0, until_s=6.0)
    for second in range(6):
        for name, count in (("v8::internal::MarkCompactCollector::MarkLiveObjects", 9), ("on", 4)):
            foreign.add("cpu_stacks", at_s=second + 0.5, pid=800, tid=800, thread="node",
                        user_stack=f"start;uv_run;{name}", sample_count=count)  # fmt: skip
    found, verdict = by_cause(foreign)
    assert verdict.cause == "runtime-heap-limit"
    finding = found["runtime-heap-limit"]
    assert (finding.first_s, finding.at_connections) == (pytest.approx(1.0), 40)
    assert finding.value_of("collector_time") == pytest.approx(100 * 9 / 13)
    assert found["host-cpu-saturated"].severity == "warning"
    assert "waits-for-slot" not in found


def test_a_process_that_rests_has_room_in_its_heap(foreign):
    getting_in(foreign)
    told(foreign, 64 << 20)
    foreign.cpu(800, 15, until_s=6.0, wait_pct=2)
    for row in foreign.rows["process_samples"]:
        row["rss_bytes"] = 118 << 20
    for second in range(6):
        foreign.add("cpu_stacks", at_s=second + 0.5, pid=800, tid=800, thread="node",
                    user_stack="start;uv_run;v8::internal::Scavenger", sample_count=8)  # fmt: skip
    assert "runtime-heap-limit" not in by_cause(foreign)[0]


def test_an_abort_with_a_heap_that_has_room_is_a_crash(foreign):
    foreign.connect(40, stage="closed", close_kind="rst", errno=104, closed_s=2.0)
    foreign.live(800, 1.9, open_count=40)
    foreign.cpu(800, 60, until_s=2.0)
    told(foreign, 4 << 30)
    dies(foreign, at_s=2.04, number=signal.SIGABRT)
    found, verdict = by_cause(foreign)
    assert verdict.cause == "worker-crash"
    assert "runtime-heap-limit" not in found


# -- worker-replaced ---------------------------------------------------------------------------


def replaced(build, *, status=0, number=0, successor=True):
    """Of 100 connections, two descriptors each, all are lost when the first worker ends at 3 s."""
    build.manifest["server"]["processes"][0]["command"] = "nginx: worker process"
    build.manifest["server"]["processes"][1]["command"] = "nginx: worker process"
    if successor:
        build.add("processes", pid=801, role="server", worker=1, slot=1, start_s=1.0,
                  exit_status=-1, nofile_soft_count=20_000, own_fds_count=16)  # fmt: skip
    build.connect(100, stage="closed", close_kind="eof", closed_s=2.96, until_s=0.8)
    for quarter in range(16):
        at_s = quarter / 4
        build.live(800, at_s, open_count=200 if 0.8 < at_s < 2.9 else 0)
    dies(build, at_s=3.0, status=status, number=number)


@pytest.mark.parametrize(("status", "number"), [(0, 0), (-1, signal.SIGTERM)])
def test_a_worker_that_is_replaced_takes_each_connection_along_once(foreign, status, number):
    replaced(foreign, status=status, number=number)
    found, verdict = by_cause(foreign)
    assert verdict.cause == "worker-replaced"
    assert "worker-crash" not in found
    finding = found["worker-replaced"]
    assert (finding.subject.pid, finding.at_connections) == (800, 100)
    assert finding.value_of("lost_with_it") == 100
    assert finding.value_of("process_connections") == 100
    assert finding.value_of("successor_age") == pytest.approx(2.0)
    assert "pid 801" in finding.sentence
    assert finding.fix[0].command.startswith("worker_shutdown_timeout ")


def test_what_a_worker_had_that_is_gone_counts_for_no_connection_of_the_next(foreign):
    """Its counters stay: each connection was taken for two, and half of those lost with it told."""
    for worker, ended_s in ((2, 3.0), (3, 0.0)):
        row = {"exited_s": ended_s, "exit_status": 0} if ended_s else {}
        foreign.process("server", worker, **row)
    foreign.connect(100, stage="closed", close_kind="eof", closed_s=2.96, until_s=0.8)
    foreign.connect(100, from_s=3.1, until_s=3.4)
    for quarter in range(16):
        at_s = quarter / 4
        foreign.live(802, at_s, open_count=100 if at_s > 0.8 else 0)
        foreign.live(803, at_s, open_count=100 if at_s > 3.4 else 0)
    view = RunView(foreign.frames())
    assert view.descriptors_per_connection("server") == 1


def test_one_that_ends_well_without_a_successor_is_a_crash_to_its_clients(foreign):
    replaced(foreign, successor=False)
    found, verdict = by_cause(foreign)
    assert verdict.cause == "worker-crash"
    assert found["worker-crash"].value_of("process_connections") == 100


def test_one_that_failed_is_a_crash_although_it_has_a_successor(foreign):
    replaced(foreign, status=1)
    assert by_cause(foreign)[1].cause == "worker-crash"


# -- handshake-cost ----------------------------------------------------------------------------

HASH = "start;uv_run;PBKDF2Sync;PKCS5_PBKDF2_HMAC"


def hashing(build, *, count=40, pct=99, stack=HASH, from_s=0.0, wait_pct=None):
    build.connect(count, from_s=from_s, until_s=4.0)
    build.connect(100 - count, from_s=0.0, until_s=0.5, stage="handshake", close_kind="timeout",
                  closed_s=4.0)  # fmt: skip
    build.cpu(800, 1, from_s=-0.5, until_s=from_s)
    build.cpu(800, pct, from_s=from_s, until_s=6.0, wait_pct=wait_pct)
    for half in range(round(from_s * 2), 12):
        build.add("cpu_stacks", at_s=half / 2 + 0.1, pid=800, tid=800, thread="node",
                  user_stack=stack, sample_count=24, period_ns=20_000_000)  # fmt: skip
    for quarter in range(24):
        build.live(800, quarter / 4, open_count=min(count, round(count * quarter / 16)))


def test_a_hash_in_each_handshake_is_named_from_the_first_second(foreign):
    hashing(foreign)
    found, verdict = by_cause(foreign)
    assert verdict.cause == "handshake-cost"
    assert "hot-worker-code" not in found
    finding = found["handshake-cost"]
    assert (finding.subject.pid, finding.first_s) == (800, pytest.approx(0.0, abs=0.1))
    assert finding.value_of("handshake_cpu") == pytest.approx(97_000, rel=0.1)
    assert finding.value_of("handshake_rate") == pytest.approx(10, rel=0.1)
    assert finding.value_of("work_samples", "password hash") == 100
    assert "pbkdf2Sync" in finding.fix[0].command
    assert finding.fix[1].command == "profile-run --ramp 9"


@pytest.mark.parametrize(("count", "is_named"), [(60, True), (95, False)])
def test_a_core_that_stays_full_for_longer_than_those_take_who_left_is_at_something_else(
    foreign, count, is_named
):
    """Of 95 that were made each cost 42 ms: five that were given up are no two seconds of work."""
    hashing(foreign, count=count, stack="start;uv_run;rebuild_index")
    found, _ = by_cause(foreign)
    assert ("handshake-cost" in found) is is_named


@pytest.mark.parametrize(
    ("count", "cause", "severity"),
    [
        (10, "handshake-cost", "warning"),  # 120 ms each: a whole core makes 33 of 100
        (40, "host-cpu-saturated", "binding"),  # 30 ms: it makes all
    ],
)
def test_on_a_crowded_host_it_matters_what_a_whole_core_would_make(foreign, count, cause, severity):
    hashing(foreign, count=count, pct=30, wait_pct=68)
    foreign.host_cpu(99, from_s=0.0, until_s=6.0)
    found, verdict = by_cause(foreign)
    assert verdict.cause == cause
    assert found["host-cpu-saturated"].severity == severity
    assert not {"own-limit", "waits-for-slot"} & set(found)
    if cause == "handshake-cost":
        finding = found[cause]
        assert finding.value_of("handshake_cpu") == pytest.approx(120_000, rel=0.1)
        assert "a whole core makes 9 a second" in finding.sentence
        assert finding.fix[1].command == "profile-run --ramp 7"


@pytest.mark.parametrize(
    "name",
    ["hash_password (app.py:9)", "checkPassword (auth.py:3)", "hashpw (bcrypt/__init__.py:84)"],
)
def test_a_password_hash_is_known_by_what_the_program_calls_it(foreign, name):
    """The native frames of the same time have no name that says so."""
    hashing(foreign, stack="_start;main;[unknown];libcrypto.so.3+0x1e0000")
    for half in range(12):
        foreign.add("python_stacks", at_s=half / 2 + 0.1, pid=800, thread="MainThread",
                    stack=f"serve (app.py:40);{name}", sample_count=5)  # fmt: skip
    finding = by_cause(foreign)[0]["handshake-cost"]
    assert finding.value_of("work_samples", "password hash") == 100
    assert "thread pool" in finding.fix[0].command


def test_handshakes_that_are_made_at_the_same_time_may_all_come_too_late(foreign):
    """Go on one core: goroutines take turns, and most stacks end in the library's assembler."""
    foreign.connect(100, from_s=0.0, until_s=0.2, stage="handshake", close_kind="timeout",
                    errno=110, closed_s=3.0)  # fmt: skip
    foreign.cpu(800, 99, until_s=6.0)
    whole = "runtime.goexit;net/http.(*conn).serve;main.hashPassword;crypto/sha256.block"
    for half in range(12):
        for stack, count in (("[unknown];crypto/sha256.block", 18), (whole, 6)):
            foreign.add("cpu_stacks", at_s=half / 2 + 0.1, pid=800, tid=801, thread="app",
                        user_stack=stack, sample_count=count)  # fmt: skip
    for quarter in range(24):
        foreign.live(800, quarter / 4, open_count=min(100, 100 * quarter))
    found, verdict = by_cause(foreign)
    assert verdict.cause == "handshake-cost"
    assert "upgrade-unanswered" not in found
    finding = found["handshake-cost"]
    assert finding.value_of("handshake_cpu") == pytest.approx(30_000, rel=0.1)
    assert finding.value_of("function_samples", "main.hashPassword") == pytest.approx(25)
    assert finding.value_of("handshake_rate") == 0
    assert "(password hash)" in finding.sentence


@pytest.mark.parametrize(("stops_at", "is_named"), [(4, False), (24, True)])
def test_what_others_made_while_it_made_none_is_not_its_handshakes(foreign, stops_at, is_named):
    """One worker of two hangs in a regular expression after its first second."""
    hashing(foreign, stack="start;uv_run;RegExpMatch;backtrack")
    other = foreign.process("server", 1)
    foreign.cpu(other, 5, until_s=6.0)
    rows = [row for row in foreign.rows["live_samples"] if row["pid"] == 800]
    for quarter, row in enumerate(rows):
        count = round(20 * min(quarter, stops_at) / 16)
        row |= {"open_count": count, "established_total": count}
        foreign.live(other, quarter / 4, open_count=round(20 * quarter / 16))
    found, _ = by_cause(foreign)
    assert ("handshake-cost" in found) is is_named


def test_a_core_that_makes_no_handshakes_is_not_taken_by_them(foreign):
    hashing(foreign, count=2, stack="start;uv_run;rebuild_index;sort_all")
    found, _ = by_cause(foreign)
    assert "handshake-cost" not in found
    assert found["hot-worker-code"].subject.pid == 800


@pytest.mark.parametrize(("until_s", "cause"), [(4.5, "handshake-cost"), (6.0, "hot-worker-code")])
def test_who_goes_on_when_all_are_open_is_at_something_else(foreign, until_s, cause):
    """Each handshake came after a second, between the turns of a loop that never rests."""
    foreign.manifest["target_connections"] = 60
    begun_ns = foreign.ns(0.0)
    foreign.connect(60, from_s=0.0, until_s=4.0, start_ns=begun_ns, connected_ns=begun_ns)
    foreign.cpu(800, 1, from_s=-0.5, until_s=0.0)
    foreign.cpu(800, 95, from_s=0.0, until_s=until_s)
    foreign.cpu(800, 1, from_s=until_s, until_s=6.0)
    sampled = {"pid": 800, "tid": 800, "thread": "node", "user_stack": "start;uv_run;turn"}
    for half in range(round(until_s * 2)):
        at_s = half / 2 + 0.1
        foreign.add("cpu_stacks", at_s=at_s, sample_count=24, period_ns=20_000_000, **sampled)
    for quarter in range(24):
        foreign.live(800, quarter / 4, open_count=min(60, round(60 * quarter / 16)))
    named = {f.cause for f in summarise(foreign.frames()).findings}
    assert named & {"handshake-cost", "hot-worker-code"} == {cause}


def test_cheap_handshakes_at_a_full_core_are_what_a_ramp_is(foreign):
    foreign.manifest["target_connections"] = 20_000
    foreign.connect(20_000, until_s=4.0)
    foreign.cpu(800, 1, from_s=-0.5, until_s=0.0)
    foreign.cpu(800, 99, until_s=4.0)
    foreign.cpu(800, 1, from_s=4.0, until_s=6.0)
    summary = summarise(foreign.frames())
    assert [finding.cause for finding in summary.findings] == ["reached"]
    # and yet the page does not deny it
    assert summary.hot_worker is not None
    assert summary.hot_worker["pid"] == 800
    assert summary.hot_worker["is_ramp_only"]


# -- the server's own words --------------------------------------------------------------------


def test_an_unknown_line_near_the_first_failure_is_quoted_and_means_nothing(foreign):
    getting_in(foreign)
    quota(foreign, share=1.0)
    foreign.cpu(800, 10, until_s=6.0, wait_pct=90)
    says(foreign, "error: the cat is on the table", at_s=3.5, count=7)
    says(foreign, "error: long before", at_s=-0.9)
    found, verdict = by_cause(foreign)
    assert set(found) == {"cpu-quota"}
    assert [(q.line, q.count) for q in verdict.quotes] == [("error: the cat is on the table", 7)]


def test_what_was_said_is_quoted_also_where_nothing_explains_the_failures(foreign):
    getting_in(foreign)
    says(foreign, "[error] something of its own", at_s=3.9)
    _, verdict = by_cause(foreign)
    assert verdict.cause == "not-explained"
    assert [q.line for q in verdict.quotes] == ["[error] something of its own"]


def test_a_line_of_another_process_is_not_quoted(foreign):
    getting_in(foreign)
    quota(foreign, share=1.0)
    foreign.cpu(800, 10, until_s=6.0, wait_pct=90)
    says(foreign, "error: of somebody else", at_s=3.5, pid=4711)
    assert by_cause(foreign)[1].quotes == ()
