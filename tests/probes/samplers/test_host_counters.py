import os
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from probes.contract.clock import now_ns
from probes.contract.probe import ProcessRef, Target
from probes.samplers.host_counters import (
    CoreTime,
    HostCountersProbe,
    SlabCache,
    parse_conntrack_stat,
    parse_meminfo,
    parse_net_counters,
    parse_numbers,
    parse_oom_kills,
    parse_pressure,
    parse_slabinfo,
    parse_sockstat,
    parse_softnet_stat,
    parse_stat,
)
from tests.neighbours.groups import memory_group

TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")

SOCKSTAT = b"""sockets: used 240019
TCP: inuse 120014 orphan 3 tw 23 alloc 240021 mem 36
UDP: inuse 0 mem 0
FRAG: inuse 0 memory 0
"""
SLABINFO = b"""slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>
btrfs_delayed_node      0      0    312   13    1 : tunables    0    0    0 : slabdata      0      0      0
TCPv6                 26     26   2496   13    8 : tunables    0    0    0 : slabdata      2      2      0
request_sock_TCP      24     24    320   12    1 : tunables    0    0    0 : slabdata      2      2      0
TCP               240019 240045   2368   13    8 : tunables    0    0    0 : slabdata  18465  18465      0
anon_vma_chain       567   1088     64   64    1 : tunables    0    0    0 : slabdata     17     17      0
skbuff_head_cache    384    384    256   16    1 : tunables    0    0    0 : slabdata     24     24      0
"""  # noqa: E501  # the kernel's lines
NETSTAT = b"""TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPMemoryPressures
TcpExt: 0 1382 1382 0
IpExt: InNoRoutes InOctets
IpExt: 0 451631096
MPTcpExt: MPCapableSYNRX
MPTcpExt: 0
"""
SNMP = b"""Icmp: InMsgs InErrors
Icmp: 1 0
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens CurrEstab
Tcp: 1 200 120000 -1 109 2 0
"""
STAT = b"""cpu  6249 7 3429 529956 510 11 89 15 0 0
cpu0 1986 3 1257 266706 89 5 10 6 0 0
cpu1 4262 4 2172 263249 420 6 78 8 0 0
intr 1 2 3
ctxt 5
"""


def test_sockstat_gives_the_tcp_line():
    assert parse_sockstat(SOCKSTAT) == {
        "inuse": 120_014,
        "orphan": 3,
        "tw": 23,
        "alloc": 240_021,
        "mem": 36,
    }
    assert parse_sockstat(b"sockets: used 1\n") == {}


def test_slabinfo_gives_the_caches_of_sockets_and_files():
    caches = {cache.name: cache for cache in parse_slabinfo(SLABINFO, page_bytes=4_096)}
    assert set(caches) == {
        "TCPv6",
        "request_sock_TCP",
        "TCP",
        "anon_vma_chain",
        "skbuff_head_cache",
    }
    assert caches["TCP"] == SlabCache("TCP", 240_019, 2_368, 18_465 * 8 * 4_096)
    assert caches["anon_vma_chain"].total_bytes == 17 * 4_096
    assert parse_slabinfo(b"") == []


def test_protocol_counters_carry_their_group():
    counters = parse_net_counters(NETSTAT)
    assert counters["TcpExtListenOverflows"] == 1_382
    assert counters["IpExtInOctets"] == 451_631_096
    assert counters["MPTcpExtMPCapableSYNRX"] == 0
    assert parse_net_counters(SNMP)["TcpMaxConn"] == -1
    assert parse_net_counters(SNMP)["TcpActiveOpens"] == 109
    assert parse_net_counters(b"") == {}


def test_conntrack_counters_are_hexadecimal_and_summed_over_the_cpus():
    text = (
        b"entries  clashres found new invalid ignore delete chainlength insert insert_failed drop "
        b"early_drop icmp_error  expect_new expect_create expect_delete search_restart\n"
        b"00040000  00000000 00000000 00000000 00000000 00000000 00000000 00000000 0003fff6 "
        b"00000002 00000010 00000001 00000000  00000000 00000000 00000000 00000000\n"
        b"00040000  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 "
        b"00000000 00000007 00000000 00000000  00000000 00000000 00000000 00000000\n"
    )
    assert parse_conntrack_stat(text) == {
        "ConntrackDrop": 23,
        "ConntrackEarlyDrop": 1,
        "ConntrackInsertFailed": 2,
    }
    assert parse_conntrack_stat(b"") == {}
    assert parse_conntrack_stat(b"entries found\n00000001 00000002\n") == {}


def test_drops_of_the_cores_are_hexadecimal_summed_and_apart():
    text = (
        b"03a6f8d9 00000010 0000003d 00000000 00000000 00000000 00000000 00000000 00000000 "
        b"00000000 00000000 00000000 00000000 00000000 00000000\n"
        b"0394fa6f 00000007 00000002 00000000 00000000 00000000 00000000 00000000 00000000 "
        b"00000000 00000000 00000000 0000000b 00000000 00000000\n"
    )
    assert parse_softnet_stat(text) == {
        "SoftnetDropped": 23,
        "SoftnetSqueezed": 63,
        "SoftnetDroppedCpu0": 16,
        "SoftnetDroppedCpu11": 7,
    }
    before_5_14 = b"00000001 00000000 00000002\n00000001 00000017 00000000\n"
    assert parse_softnet_stat(before_5_14)["SoftnetDroppedCpu1"] == 23
    assert parse_softnet_stat(b"") == {"SoftnetDropped": 0, "SoftnetSqueezed": 0}


def test_core_times_are_nanoseconds():
    together, first, second = parse_stat(STAT)
    assert together.core == -1
    assert first == CoreTime(
        core=0,
        user_ns=1_989 * TICK_NS,
        system_ns=1_257 * TICK_NS,
        softirq_ns=10 * TICK_NS,
        irq_ns=5 * TICK_NS,
        idle_ns=266_795 * TICK_NS,
        steal_ns=6 * TICK_NS,
    )
    assert second.core == 1
    assert parse_stat(b"cpu0 1 2 3 4\nintr\n") == [
        CoreTime(0, 3 * TICK_NS, 3 * TICK_NS, 0, 0, 4 * TICK_NS, 0)
    ]


def test_pressure_totals_are_nanoseconds():
    text = (
        b"some avg10=0.03 avg60=0.19 avg300=0.10 total=3930688\n"
        b"full avg10=0.03 avg60=0.17 avg300=0.10 total=3617124\n"
    )
    assert parse_pressure(text) == (3_930_688_000, 3_617_124_000)
    before_5_13 = b"some avg10=0.00 avg60=0.00 avg300=0.00 total=23\n"
    assert parse_pressure(before_5_13) == (23_000, 0)


def test_memory_is_bytes():
    text = b"MemTotal:       24684092 kB\nMemFree: 5 kB\nMemAvailable:   1009 kB\nSlab: 23 kB\n"
    assert parse_meminfo(text) == {
        "MemTotal": 24_684_092 * 1024,
        "MemAvailable": 1_009 * 1024,
        "Slab": 23 * 1024,
    }


def test_oom_kills_are_found_or_none():
    assert parse_oom_kills(b"nr_free_pages 9\noom_kill 23\npgfault 7\n") == 23
    assert parse_oom_kills(b"nr_free_pages 9\n") == 0


def test_numbers_are_split():
    assert parse_numbers(b"283290\t377720\t566580\n") == (283_290, 377_720, 566_580)
    assert parse_numbers(b"") == ()


def recorded(run, samples: int = 1, between=lambda: None) -> tuple[HostCountersProbe, Target]:
    target = Target(run, {}, frozenset(), None)
    probe = HostCountersProbe()
    probe.check()
    probe.start(target)
    for at_ns in range(samples):
        probe.sample(at_ns)
        between()
    probe.stop(samples)
    for writer in probe.writers:
        writer.close()
    return probe, target


def rows(run, table: str) -> list[dict]:
    return run.read_table(table).table.to_pylist()


def test_the_tables_hold_what_the_host_says(run):
    recorded(run)
    (first, *_) = rows(run, "sockstat")
    assert first["file_max_count"] == int(Path("/proc/sys/fs/file-max").read_text())
    limits = [int(word) for word in Path("/proc/sys/net/ipv4/tcp_mem").read_text().split()]
    assert [first["tcp_mem_pressure_pages"], first["tcp_mem_max_pages"]] == limits[1:]
    assert first["file_nr_count"] > 0
    buckets = int(Path("/proc/sys/net/ipv4/tcp_max_tw_buckets").read_text())
    assert first["tcp_timewait_max_count"] == buckets
    for name in ("arp", "ndisc"):
        assert first[f"{name}_max_count"] > 0
        assert first[f"{name}_entries_count"] >= 0
    (memory, *_) = rows(run, "host_memory")
    assert memory["total_bytes"] == psutil.virtual_memory().total
    assert 0 < memory["available_bytes"] < memory["total_bytes"]
    assert 0 < memory["slab_bytes"] < memory["total_bytes"]
    cores = {row["core"] for row in rows(run, "host_cpu")}
    assert cores == {-1, *range(psutil.cpu_count())}
    together = next(row for row in rows(run, "host_cpu") if row["core"] == -1)
    now = psutil.cpu_times()
    # The kernel takes some of iowait back now and then (proc_stat(5): "it may decrease").
    assert together["idle_ns_total"] <= (now.idle + now.iowait + 10) * 1e9


def test_only_counters_that_changed_have_another_row(run):
    def connect() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()).close()

    recorded(run, samples=1, between=connect)
    found = rows(run, "net_counters")
    first = {row["counter"]: row["value_total"] for row in found if row["at_ns"] == 0}
    later = {row["counter"]: row["value_total"] for row in found if row["at_ns"] == 1}
    assert len(first) > 100
    assert later["TcpActiveOpens"] >= first["TcpActiveOpens"] + 1
    assert 0 < len(later) < len(first) / 2
    assert all(first[counter] != value for counter, value in later.items())


@pytest.mark.privileged
def test_slab_caches_are_those_of_this_kernel(run):
    recorded(run, samples=4)
    found = rows(run, "slab_caches")
    assert {"TCP", "sock_inode_cache", "filp", "dentry"} <= {row["cache"] for row in found}
    assert {row["at_ns"] for row in found} == {0, 4}  # every 4th sample, and the last
    for row in found:
        assert row["total_bytes"] >= 0
        assert row["object_size_bytes"] > 0


def test_what_the_host_lacks_is_a_note_and_no_rows(run, monkeypatch):
    opened = os.open

    def lacking(path, *args, **kwargs):
        if str(path).startswith(("/proc/pressure", "/proc/slabinfo", "/proc/sys/net/netfilter")):
            raise FileNotFoundError(path)
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", lacking)
    probe, target = recorded(run)
    assert rows(run, "host_pressure") == []
    assert rows(run, "slab_caches") == []
    assert rows(run, "sockstat")[0]["conntrack_count"] == -1
    assert rows(run, "host_cpu") != []
    assert any("psi=1" in note for note in target.notes)
    assert any("slabinfo" in note for note in target.notes)
    assert probe.lost_count == 0


def test_no_descriptor_stays_open(run):
    before = os.listdir("/proc/self/fd")
    recorded(run, samples=5)
    assert os.listdir("/proc/self/fd") == before


def test_stopping_without_a_start_is_no_failure():
    HostCountersProbe().stop(now_ns())


@pytest.mark.privileged
def test_the_groups_of_the_processes_are_recorded_with_what_each_counts_of_itself(run):
    with memory_group(1 << 30) as folder:
        child = subprocess.Popen(["sleep", "60"])
        try:
            (folder / "cgroup.procs").write_text(str(child.pid))
            target = Target(run, {child.pid: ProcessRef(child.pid, "server", 0, False)},
                            frozenset(), None)  # fmt: skip
            probe = HostCountersProbe()
            probe.start(target)
            probe.add_process(ProcessRef(os.getpid(), "client", 0, False))
            probe.sample(0)
            probe.stop(1)
            for writer in probe.writers:
                writer.close()
        finally:
            child.kill()
            child.wait()
        own_id = folder.stat().st_ino
    paths = {(row["pid"], row["level"]): row for row in rows(run, "cgroups")}
    assert paths[child.pid, 0]["cgroup_id"] == own_id
    assert paths[child.pid, 0]["path"] == f"/{folder.name}"
    assert paths[os.getpid(), 0]["cgroup_id"] != own_id
    mine = [row for row in rows(run, "cgroup_memory") if row["cgroup_id"] == own_id]
    assert len(mine) == 2
    assert {row["max_bytes"] for row in mine} == {1 << 30}
    assert {row["own_oom_kills_total"] for row in mine} == {0}
    ids = {row["cgroup_id"] for row in rows(run, "cgroup_memory")}
    assert paths[os.getpid(), 0]["cgroup_id"] in ids
    assert all(0 <= row["cgroup_used_bytes"] < 1 << 30 for row in rows(run, "host_memory"))
    assert all(
        row["swap_free_bytes"] <= row["swap_total_bytes"] for row in rows(run, "host_memory")
    )
