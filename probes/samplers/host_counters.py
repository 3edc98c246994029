"""What the host and the run's network namespace count anyway.

Measures:
    TCP sockets and buffer pages against tcp_mem, open files against file-max, conntrack
    (``sockstat``); memory of the host, and of the cgroups of the run's processes with the limits
    above them (``host_memory``, ``cgroups``, ``cgroup_memory``); the CPU quota of the servers'
    groups and those above them, where there is one (``cgroup_cpu``); slab caches of sockets and
    files (``slab_caches``); counters of protocols, of the cores' queues of packets and of the
    neighbour tables that changed (``net_counters``); time per core (``host_cpu``); pressure stall
    totals (``host_pressure``).
Hook:
    Files of /proc, opened once and re-read with pread: that is 2 to 5 times cheaper than opening
    them anew. The probe process is in the run's network namespace, so /proc/net is the run's.
    Neighbour tables by netlink (``probes/proc/neighbour_tables.py``).
Cost:
    About 0.5 ms twice a second: 0.1 % of a core. slabinfo, the dearest with 2 ms, only every 2 s;
    of a server in service every 8 s. A control group above a server costs 2 us.
Misses:
    tcp_mem pages, orphans, allocated TCP sockets, neighbours, the cores' queues of packets, open
    files, slab, memory, killed processes, cores and pressure are of the whole host: others move
    them as well. So do others in the same network namespace with its counters, where the run has
    none of its own. A cgroup that a process is moved to later, a limit that a group above gets
    later, and groups outside of the probe's own cgroup namespace are not seen. Version 1 does not
    count allocations that failed. A cache that SLUB merged into another has no line of its own, so
    no row. The kernel's slabinfo counts objects on per-CPU lists as active.
Checked against:
    Captured files of this and other kernels, and the live files of the host, read another way
    (tests/probes/samplers/test_host_counters.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from probes.contract.clock import NS_PER_S, now_ns
from probes.contract.probe import Probe, ProcessRef, Target
from probes.contract.schema import SERVER_ROLES
from probes.contract.table_writer import TableWriter
from probes.proc.cgroup_cpu import CpuQuotas
from probes.proc.cgroup_memory import CgroupUse, MemoryGroups, tightest
from probes.proc.neighbour_tables import FAMILIES, NeighbourTable, read_table

_NS_PER_TICK = NS_PER_S // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

SLAB_CACHES = frozenset(
    {
        "TCP",
        "TCPv6",
        "request_sock_TCP",
        "request_sock_TCPv6",
        "tw_sock_TCP",
        "tw_sock_TCPv6",
        "tcp_bind_bucket",
        "tcp_bind2_bucket",
        "sock_inode_cache",
        "filp",
        "dentry",
        "proc_inode_cache",
        "inode_cache",
        "eventpoll_epi",
        "eventpoll_pwq",
        "ep_head",
        "anon_vma_chain",
        "skbuff_head_cache",
        "skbuff_small_head",
        "skbuff_fclone_cache",
        "skbuff_ext_cache",
        "nf_conntrack",
        "kmalloc-32",
        "kmalloc-64",
        "kmalloc-cg-64",
    }
)
CONNTRACK_COUNTERS = {
    b"drop": "ConntrackDrop",
    b"early_drop": "ConntrackEarlyDrop",
    b"insert_failed": "ConntrackInsertFailed",
}
"""Column of /proc/net/stat/nf_conntrack, and what ``net_counters`` calls it."""

_MEMINFO = (b"MemTotal", b"MemAvailable", b"Slab", b"SwapTotal", b"SwapFree")

_NO_TABLE = NeighbourTable(-1, -1, -1)
_PRESSURE_TICKS, _SLAB_TICKS, _SPARING_SLAB_TICKS = 2, 4, 8

PRESSURE_RESOURCES = ("cpu", "memory", "io")


@dataclass(frozen=True, slots=True)
class SlabCache:
    """One line of /proc/slabinfo; ``total_bytes`` is what its slabs take, used or not."""

    name: str
    active_objects_count: int
    object_size_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class CoreTime:
    """One cpu line of /proc/stat in ns; core -1 is all together."""

    core: int
    user_ns: int
    system_ns: int
    softirq_ns: int
    irq_ns: int
    idle_ns: int
    steal_ns: int


def parse_sockstat(text: bytes) -> dict[str, int]:
    """The TCP line of /proc/net/sockstat: inuse, orphan, tw, alloc, mem (pages)."""
    for line in text.split(b"\n"):
        if line.startswith(b"TCP:"):
            words = line.split()[1:]
            pairs = zip(words[::2], words[1::2], strict=True)
            return {name.decode(): int(value) for name, value in pairs}
    return {}


def parse_numbers(text: bytes) -> tuple[int, ...]:
    """Whitespace-separated numbers: tcp_mem, file-nr, file-max, nf_conntrack_count."""
    return tuple(int(word) for word in text.split())


def parse_meminfo(text: bytes) -> dict[str, int]:
    """/proc/meminfo in bytes: MemTotal, MemAvailable, Slab, SwapTotal, SwapFree."""
    found = {}
    for line in text.split(b"\n"):
        name, _, rest = line.partition(b":")
        if name in _MEMINFO:
            found[name.decode()] = int(rest.split()[0]) * 1024
    return found


def parse_oom_kills(text: bytes) -> int:
    """``oom_kill`` of /proc/vmstat (Linux 4.13), 0 when there is no such line."""
    start = text.find(b"\noom_kill ")
    return int(text[start + 10 :].split(None, 1)[0]) if start >= 0 else 0


def parse_slabinfo(text: bytes, page_bytes: int = _PAGE_BYTES) -> list[SlabCache]:
    """The caches of SLAB_CACHES that /proc/slabinfo (version 2.1, slabinfo(5)) lists."""
    caches = []
    for line in text.split(b"\n"):
        name, _, rest = line.partition(b" ")
        if name.decode("ascii", "replace") not in SLAB_CACHES:
            continue
        numbers, _, slabdata = rest.partition(b": slabdata")
        active, _objects, size, _per_slab, pages = (int(word) for word in numbers.split()[:5])
        slabs = int(slabdata.split()[1])
        caches.append(SlabCache(name.decode(), active, size, slabs * pages * page_bytes))
    return caches


def parse_net_counters(text: bytes) -> dict[str, int]:
    """/proc/net/netstat or snmp: pairs of lines, names and values, as ``TcpExtListenDrops``."""
    counters: dict[str, int] = {}
    lines = text.split(b"\n")
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        prefix, _, header = names.partition(b":")
        group = prefix.decode()
        columns = zip(header.split(), values.partition(b":")[2].split(), strict=False)
        for name, value in columns:
            counters[group + name.decode()] = int(value)
    return counters


def parse_conntrack_stat(text: bytes) -> dict[str, int]:
    """/proc/net/stat/nf_conntrack: packets dropped for want of an entry, summed over the CPUs.

    ``drop``: an entry was needed and could not be made; ``early_drop``: another made room for it;
    ``insert_failed``: made and not inserted (net/netfilter/nf_conntrack_standalone.c, hexadecimal).
    """
    header, *lines = text.splitlines() or [b""]
    columns = header.split()
    counters = {}
    for column, name in CONNTRACK_COUNTERS.items():
        if column in columns:
            at = columns.index(column)
            counters[name] = sum(int(line.split()[at], 16) for line in lines if line)
    return counters


def parse_softnet_stat(text: bytes) -> dict[str, int]:
    """/proc/net/softnet_stat: packets dropped at a core's full queue, and rounds cut short.

    One line a core, hexadecimal: the second column counts drops at net.core.netdev_max_backlog, the
    third rounds that ended with packets left (net/core/net-procfs.c, softnet_seq_show). Cores that
    dropped something have a counter of their own, ``SoftnetDroppedCpu3``; the thirteenth column is
    their number, before Linux 5.14 the line's is taken.
    """
    counters = {"SoftnetDropped": 0, "SoftnetSqueezed": 0}
    for line_number, line in enumerate(text.splitlines()):
        columns = line.split()
        dropped, squeezed = int(columns[1], 16), int(columns[2], 16)
        counters["SoftnetDropped"] += dropped
        counters["SoftnetSqueezed"] += squeezed
        if dropped:
            core = int(columns[12], 16) if len(columns) > 12 else line_number
            counters[f"SoftnetDroppedCpu{core}"] = dropped
    return counters


NEIGHBOUR_COUNTERS = {"arp": "ArpTableFulls", "ndisc": "NdiscTableFulls"}
"""Table of neighbours, and what ``net_counters`` calls the entries that it refused."""

_NET_COUNTERS = (
    ("/proc/net/netstat", parse_net_counters),
    ("/proc/net/snmp", parse_net_counters),
    ("/proc/net/stat/nf_conntrack", parse_conntrack_stat),
    ("/proc/net/softnet_stat", parse_softnet_stat),
)


def parse_stat(text: bytes) -> list[CoreTime]:
    """The cpu lines of /proc/stat (proc(5)), all cores together first."""
    cores = []
    for line in text.split(b"\n"):
        if not line.startswith(b"cpu"):
            break
        name, *words = line.split()
        ticks = [int(word) * _NS_PER_TICK for word in words]
        ticks += [0] * (8 - len(ticks))
        user, nice, system, idle, iowait, irq, softirq, steal = ticks[:8]
        core = int(name[3:]) if len(name) > 3 else -1
        cores.append(CoreTime(core, user + nice, system, softirq, irq, idle + iowait, steal))
    return cores


def parse_pressure(text: bytes) -> tuple[int, int]:
    """Totals of /proc/pressure/* in ns: (some, full); full is 0 where the kernel has no such line.

    Source: Documentation/accounting/psi.rst; the file counts microseconds.
    """
    totals = {b"some": 0, b"full": 0}
    for line in text.split(b"\n"):
        kind, _, rest = line.partition(b" ")
        if kind in totals:
            totals[kind] = int(rest.rpartition(b"total=")[2]) * 1000
    return totals[b"some"], totals[b"full"]


class _Files:
    """Files of /proc, opened at first use and read again and again from their start."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def read(self, path: str) -> bytes:
        """The whole file, b'' when it is absent, not permitted or gone."""
        fd = self._fds.get(path)
        if fd is None:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                fd = -1
            self._fds[path] = fd
        if fd < 0:
            return b""
        try:
            return b"".join(self._chunks(fd))
        except OSError:
            return b""

    @staticmethod
    def _chunks(fd: int) -> Iterator[bytes]:
        offset = 0
        while chunk := os.pread(fd, 1 << 16, offset):
            yield chunk
            # seq_file hands out at most what its buffer holds: a short read is not the end, except
            # that small single-buffer files are; a second empty pread costs about 1 us.
            offset += len(chunk)

    def close(self) -> None:
        for fd in self._fds.values():
            if fd >= 0:
                os.close(fd)
        self._fds.clear()


class HostCountersProbe(Probe):
    """Appends rows to its nine tables, ``sockstat`` to ``host_pressure``."""

    name = "host_counters"
    writes_rows = True
    period_s = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._files = _Files()
        self._tables: dict[str, TableWriter] = {}
        self._tick = 0
        self._slab_ticks = _SLAB_TICKS
        self._pressure_ticks = _PRESSURE_TICKS
        self._net_text: dict[str, bytes] = {}
        self._net_values: dict[str, int] = {}
        self._groups = MemoryGroups()
        self._quotas = CpuQuotas(lambda path: self._files.read(path).decode("ascii", "replace"))

    def check(self) -> None:
        """Always possible; files that are absent or not permitted have no rows."""

    def start(self, target: Target) -> None:
        """Opens the tables and notes which sources this host does not have."""
        for table in (
            "sockstat",
            "host_memory",
            "cgroups",
            "cgroup_memory",
            "cgroup_cpu",
            "slab_caches",
            "net_counters",
            "host_cpu",
            "host_pressure",
        ):
            self._tables[table] = target.run.writer(table, self.name)
        self.writers = list(self._tables.values())
        if not self._files.read("/proc/slabinfo"):
            target.notes.append("no slab caches: /proc/slabinfo is readable by root only")
        if not self._files.read("/proc/pressure/cpu"):
            target.notes.append("no pressure stall totals: this kernel runs without psi=1")
        for ref in target.processes.values():
            self.add_process(ref)
        if not target.processes:
            self._add_groups(os.getpid())
        if target.is_sparing:  # whose ticks are twice as long
            self._slab_ticks, self._pressure_ticks = _SPARING_SLAB_TICKS, 1

    @property
    def note(self) -> str:
        """What it could not see, for the row of its health."""
        left_out = self._groups.left_out_count
        return f"{left_out} cgroups beyond the first ones were not read" if left_out else ""

    def add_process(self, ref: ProcessRef) -> None:
        """The groups of a process that came later count from now on."""
        self._add_groups(ref.pid)
        if ref.role in SERVER_ROLES:
            self._quotas.add_process(ref.pid)

    def _add_groups(self, pid: int) -> None:
        at_ns = now_ns()
        for level, group in enumerate(self._groups.add(pid)):
            self._tables["cgroups"].append(at_ns, pid, level, group.cgroup_id, group.path)

    def sample(self, at_ns: int) -> None:
        """Appends what is due: most tables every call, pressure every 2nd, slab every 4th."""
        parts: list[Callable[[int], None]] = [
            self._sample_sockstat,
            self._sample_memory,
            self._sample_quotas,
            self._sample_cpu,
            self._sample_net_counters,
        ]
        if self._tick % self._pressure_ticks == 0:
            parts.append(self._sample_pressure)
        if self._tick % self._slab_ticks == 0:
            parts.append(self._sample_slab)
        self._tick += 1
        for part in parts:
            part(at_ns)

    def _numbers(self, path: str) -> tuple[int, ...]:
        return parse_numbers(self._files.read(path))

    def _sample_sockstat(self, at_ns: int) -> None:
        tcp = parse_sockstat(self._files.read("/proc/net/sockstat"))
        limits = self._numbers("/proc/sys/net/ipv4/tcp_mem") or (-1, -1, -1)
        file_nr = self._numbers("/proc/sys/fs/file-nr") or (-1, 0, -1)
        entries = self._numbers("/proc/sys/net/netfilter/nf_conntrack_count") or (-1,)
        entries_max = self._numbers("/proc/sys/net/netfilter/nf_conntrack_max") or (-1,)
        timewait_max = self._numbers("/proc/sys/net/ipv4/tcp_max_tw_buckets") or (-1,)
        neighbours = {name: read_table(name) or _NO_TABLE for name in FAMILIES}
        self._tables["sockstat"].append(
            at_ns,
            tcp.get("inuse", -1),
            tcp.get("orphan", -1),
            tcp.get("tw", -1),
            tcp.get("alloc", -1),
            tcp.get("mem", -1),
            limits[1],
            limits[2],
            file_nr[0],
            file_nr[2],
            entries[0],
            entries_max[0],
            timewait_max[0],
            *(
                count
                for table in neighbours.values()
                for count in (table.entries_count, table.most_count)
            ),
        )
        self._append_changed(
            at_ns,
            {
                NEIGHBOUR_COUNTERS[name]: table.fulls_total
                for name, table in neighbours.items()
                if table.fulls_total >= 0
            },
        )

    def _sample_memory(self, at_ns: int) -> None:
        memory = parse_meminfo(self._files.read("/proc/meminfo"))
        groups = self._groups.read()
        narrowest = tightest([use for _, use in groups]) or CgroupUse()
        self._tables["host_memory"].append(
            at_ns,
            memory.get("MemTotal", -1),
            memory.get("MemAvailable", -1),
            memory.get("Slab", -1),
            narrowest.used_bytes,
            narrowest.max_bytes,
            parse_oom_kills(self._files.read("/proc/vmstat")),
            memory.get("SwapTotal", -1),
            memory.get("SwapFree", -1),
        )
        for cgroup_id, use in groups:
            self._tables["cgroup_memory"].append(
                at_ns,
                use.used_bytes,
                use.peak_bytes,
                use.max_bytes,
                use.limit_hits_total,
                use.oom_kills_total,
                use.tcp_used_bytes,
                use.tcp_max_bytes,
                cgroup_id,
                use.own_oom_kills_total,
                use.own_ooms_total,
            )

    def _sample_quotas(self, at_ns: int) -> None:
        for group, quota in self._quotas.sample():
            self._tables["cgroup_cpu"].append(
                at_ns,
                group.pid,
                group.name,
                2 if group.is_v2 else 1,
                quota.quota_ns,
                quota.period_ns,
                quota.periods_total,
                quota.throttled_periods_total,
                quota.throttled_ns_total,
            )

    def _sample_slab(self, at_ns: int) -> None:
        for cache in parse_slabinfo(self._files.read("/proc/slabinfo")):
            self._tables["slab_caches"].append(
                at_ns,
                cache.name,
                cache.active_objects_count,
                cache.object_size_bytes,
                cache.total_bytes,
            )

    def _sample_net_counters(self, at_ns: int) -> None:
        for path, parse in _NET_COUNTERS:
            text = self._files.read(path)
            if text == self._net_text.get(path):
                continue
            self._net_text[path] = text
            self._append_changed(at_ns, parse(text))

    def _append_changed(self, at_ns: int, counters: dict[str, int]) -> None:
        for counter, value in counters.items():
            if self._net_values.get(counter) != value:
                self._net_values[counter] = value
                self._tables["net_counters"].append(at_ns, counter, value)

    def _sample_cpu(self, at_ns: int) -> None:
        for core in parse_stat(self._files.read("/proc/stat")):
            self._tables["host_cpu"].append(
                at_ns,
                core.core,
                core.user_ns,
                core.system_ns,
                core.softirq_ns,
                core.irq_ns,
                core.idle_ns,
                core.steal_ns,
            )

    def _sample_pressure(self, at_ns: int) -> None:
        for resource in PRESSURE_RESOURCES:
            text = self._files.read(f"/proc/pressure/{resource}")
            if text:
                some_ns, full_ns = parse_pressure(text)
                self._tables["host_pressure"].append(at_ns, resource, some_ns, full_ns)

    def stop(self, at_ns: int) -> None:
        """Takes a last sample of everything and closes the files."""
        if self._tables:
            self._tick = 0
            self.sample(at_ns)
        self._files.close()
