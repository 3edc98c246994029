from pathlib import Path

import pytest

from probes.contract.clock import now_ns
from probes.contract.probe import ProcessRef, Target
from probes.proc.cgroup_cpu import (
    MOST_GROUPS_COUNT,
    CpuQuotas,
    cpu_groups,
    parse_cfs_quota,
    parse_cpu_max,
    parse_cpu_stat,
)
from probes.samplers.host_counters import HostCountersProbe
from tests.control_groups import control_group

V1_MOUNTS = (
    "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n"
    "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
)
V2_MOUNTS = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"


def test_the_group_of_a_process_and_all_above_it_are_found_in_version_1():
    groups = cpu_groups(23, "4:cpu,cpuacct:/pods/a\n0::/elsewhere\n", V1_MOUNTS)
    assert [group.name for group in groups] == [
        "/sys/fs/cgroup/cpu,cpuacct/pods/a",
        "/sys/fs/cgroup/cpu,cpuacct/pods",
        "/sys/fs/cgroup/cpu,cpuacct",
    ]
    assert {group.is_v2 for group in groups} == {False}
    assert {group.pid for group in groups} == {23}


def test_the_group_of_a_process_and_all_above_it_are_found_in_version_2():
    groups = cpu_groups(23, "0::/system.slice/chat.service\n", V2_MOUNTS)
    assert [group.name for group in groups] == [
        "/sys/fs/cgroup/system.slice/chat.service",
        "/sys/fs/cgroup/system.slice",
        "/sys/fs/cgroup",
    ]
    assert {group.is_v2 for group in groups} == {True}
    assert cpu_groups(23, "", V2_MOUNTS) == []
    assert cpu_groups(23, "0::/\n", "") == []


def test_a_hostile_name_of_a_group_is_made_inert_and_short():
    (group, *_) = cpu_groups(23, "0::/\x1b[31m" + 1_009 * "x" + "\n", V2_MOUNTS)
    assert group.name.isprintable()
    assert len(group.name) <= 200


@pytest.mark.parametrize("text", ["max 100000", "", "0 100000", "-1 100000", "x y", "1 2 3"])
def test_no_quota_is_none(text):
    assert parse_cpu_max(text) is None


def test_a_quota_is_in_nanoseconds():
    assert parse_cpu_max("20000 100000\n") == (20_000_000, 100_000_000)
    assert parse_cfs_quota("20000\n", "100000\n") == (20_000_000, 100_000_000)


def test_both_versions_of_cpu_stat_give_nanoseconds():
    assert parse_cpu_stat("nr_periods 96\nnr_throttled 92\nthrottled_time 7531000\n") == (
        96,
        92,
        7_531_000,
    )
    v2 = "usage_usec 5\nnr_periods 96\nnr_throttled 92\nthrottled_usec 7531\nnr_bursts 0\n"
    assert parse_cpu_stat(v2) == (96, 92, 7_531_000)
    assert parse_cpu_stat("usage_usec 5\n") == (0, 0, 0)


def test_no_more_groups_are_read_than_agreed():
    groups = cpu_groups(23, "0::" + 2 * MOST_GROUPS_COUNT * "/a" + "\n", V2_MOUNTS)
    quotas = CpuQuotas(lambda path: "1000 100000" if path.endswith("cpu.max") else "")
    quotas.add_groups(groups)
    quotas.add_groups(groups)
    assert [group for group, _ in quotas.sample()] == groups[:MOST_GROUPS_COUNT]


@pytest.mark.privileged
def test_a_quota_of_a_group_above_is_read_with_what_it_stopped(run, python_child, deadline):
    # Its own group has none: the one above has a fiftieth of a core.
    with (
        control_group("cpu", {"cpu.max": "2000 100000"}) as above,
        control_group("cpu", {}, above) as own,
    ):
        child, _ = python_child("""
ready()
sys.stdin.read(1)
while True:
    pass
""")
        (own / "cgroup.procs").write_text(str(child.pid))
        ref = ProcessRef(child.pid, "server", 0, is_python=True)
        probe = HostCountersProbe()
        probe.start(Target(run, {child.pid: ref}, frozenset(), None))
        probe.sample(now_ns())
        child.stdin.write("x")
        child.stdin.flush()
        stat = Path(above, "cpu.stat")
        deadline("it is stopped", lambda: parse_cpu_stat(stat.read_text())[1] >= 3)
        probe.stop(now_ns())
        for writer in probe.writers:
            writer.close()
        child.kill()
        child.wait()
        version = 2 if (above / "cpu.max").exists() else 1
    rows = run.read_table("cgroup_cpu").table.to_pylist()
    assert len(rows) == 2
    assert {row["pid"] for row in rows} == {child.pid}
    assert {row["cgroup"] for row in rows} == {str(above)}
    assert {row["version"] for row in rows} == {version}
    assert (rows[0]["quota_ns"], rows[0]["period_ns"]) == (2_000_000, 100_000_000)
    assert rows[1]["throttled_periods_total"] - rows[0]["throttled_periods_total"] >= 3
    assert rows[1]["periods_total"] >= rows[1]["throttled_periods_total"]
    assert rows[1]["throttled_ns_total"] > rows[0]["throttled_ns_total"]
