"""Reads what this host can hold: limits, ports, memory, tables. All reading, no deciding.

Every file is read below ``root``, so a test can put any host in a folder. Read it **before** the
run enters its own network namespace: ``tcp_mem`` does not exist there.

Sources: proc(5), capabilities(7), cgroups(7); Documentation/admin-guide/sysctl/fs.rst;
Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import math
import os
import platform
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.fleet import netns
from harness.planning.control_group import Cgroup, read_cgroup
from harness.planning.kernel_files import first_int, ints_of, key_values, text_of
from probes.bpf_loader import pid_namespace
from probes.contract.errors import HostError
from probes.contract.limits import HOST_TABLES, conntrack, epoll_watches, file_max
from probes.contract.limits.limit import HostTable

CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24
"""Bit numbers of include/uapi/linux/capability.h."""

DEFAULT_PORT_RANGE = (32768, 60999)
"""What a new network namespace starts with (net/ipv4/af_inet.c, inet_init_net)."""

_TCP_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class TableReading:
    """A limit of the whole host and its use, as they were read; 0 where the use is not told."""

    maximum_count: int
    used_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What was read. None means that the kernel does not have or does not show it.

    Attributes:
        cpu_count: Cores this process may use: its affinity, cut by the group's CPU quota.
        allowed_cpus: Their numbers by affinity alone (sched_getaffinity(2), which a cpuset cuts).
        effective_capabilities: Bit set CapEff of this process.
        namespace_errno: Why it may make no network namespace in spite of these; 0 when it may.
        nofile_soft_count: RLIMIT_NOFILE now; any process may raise it to the hard one.
        nofile_hard_count: Hard RLIMIT_NOFILE.
        nr_open_count: What even CAP_SYS_RESOURCE cannot pass.
        file_used_count: Open files of the whole host (file-nr).
        port_range: ip_local_port_range, both ends inclusive.
        reserved_ports: ip_local_reserved_ports as inclusive ranges.
        listening_ports: TCP ports somebody listens on.
        tcp_mem_pages: min, pressure and max, for all TCP sockets together.
        memory_available_bytes: MemAvailable, without regard to the control group.
        conntrack_max_count: None when nf_conntrack is not loaded.
        epoll_max_user_watches_count: Descriptors one user may have in epoll sets.
        tcp_max_orphans_count: TCP sockets of the host that no process has any more.
        netdev_max_backlog_count: Packets that wait for one core.
        tables: Further limits that are one number of the host, by name.
    """

    kernel: str
    machine: str
    python: str
    cpu_model: str
    cpu_count: int
    allowed_cpus: tuple[int, ...] = ()
    is_root: bool
    effective_capabilities: int
    namespace_errno: int = 0
    has_btf: bool
    nofile_soft_count: int
    nofile_hard_count: int
    nr_open_count: int
    file_max_count: int
    file_used_count: int
    port_range: tuple[int, int]
    reserved_ports: tuple[tuple[int, int], ...]
    listening_ports: tuple[int, ...]
    somaxconn_count: int
    tcp_mem_pages: tuple[int, int, int] | None
    page_size_bytes: int
    memory_total_bytes: int
    memory_available_bytes: int
    conntrack_max_count: int | None
    conntrack_used_count: int | None
    epoll_max_user_watches_count: int | None
    tcp_max_orphans_count: int | None = None
    netdev_max_backlog_count: int | None = None
    cgroup: Cgroup = field(default_factory=Cgroup)
    tables: Mapping[str, TableReading] = field(default_factory=dict)

    def table(self, limit: str) -> TableReading | None:
        """A limit that is one number of the whole host; None where there is none of it here.

        Args:
            limit: Its name.
        """
        if limit == file_max.LIMIT.name:
            return TableReading(self.file_max_count, self.file_used_count)
        known = {
            epoll_watches.LIMIT.name: (self.epoll_max_user_watches_count, 0),
            conntrack.LIMIT.name: (self.conntrack_max_count, self.conntrack_used_count or 0),
        }
        if limit not in known:
            return self.tables.get(limit)
        maximum, used = known[limit]
        return None if maximum is None else TableReading(maximum, used)

    def with_host_limits(self, host: Host) -> Host:
        """The same with the limits of all network namespaces, which only the first one shows.

        Args:
            host: As it was read from there, or from as near to it as possible.
        """
        return replace(
            self,
            tcp_max_orphans_count=host.tcp_max_orphans_count,
            netdev_max_backlog_count=host.netdev_max_backlog_count,
        )

    @property
    def may_raise_nofile(self) -> bool:
        """Whether this process may raise its hard RLIMIT_NOFILE; uid 0 alone does not suffice."""
        return self.has_capability(CAP_SYS_RESOURCE)

    @property
    def may_own_namespace(self) -> bool:
        """Whether this process may make a network namespace and bring its loopback up."""
        has_capabilities = self.has_capability(CAP_SYS_ADMIN) and self.has_capability(CAP_NET_ADMIN)
        return has_capabilities and not self.namespace_errno

    @property
    def nofile_ceiling_count(self) -> int:
        """The highest RLIMIT_NOFILE that this process can give to a child."""
        if self.may_raise_nofile:
            return max(self.nofile_hard_count, self.nr_open_count)
        return self.nofile_hard_count

    @property
    def memory_room_bytes(self) -> int:
        """Memory that may still be taken: the host's, or less when the control group says so."""
        if self.cgroup.memory_limit_bytes is None:
            return self.memory_available_bytes
        room = self.cgroup.memory_limit_bytes - (self.cgroup.memory_used_bytes or 0)
        return max(0, min(self.memory_available_bytes, room))

    @property
    def kernel_version(self) -> tuple[int, int]:
        """Major and minor version; (0, 0) when the release has another form."""
        parts = self.kernel.replace("-", ".").split(".")
        try:
            return int(parts[0]), int(parts[1])
        except (ValueError, IndexError):
            return 0, 0

    def has_capability(self, bit: int) -> bool:
        """Whether a capability, by its bit number, is effective."""
        return bool(self.effective_capabilities >> bit & 1)

    def to_dict(self, network_namespace: str = "host") -> dict[str, Any]:
        """The manifest's ``host`` object.

        Args:
            network_namespace: ``own`` or ``host``: where the run was made.
        """
        tcp_mem = None if self.tcp_mem_pages is None else " ".join(map(str, self.tcp_mem_pages))
        sysctls: dict[str, int | str | None] = {
            "fs.file-max": self.file_max_count,
            "fs.nr_open": self.nr_open_count,
            "fs.epoll.max_user_watches": self.epoll_max_user_watches_count,
            "net.core.somaxconn": self.somaxconn_count,
            "net.ipv4.ip_local_port_range": "{} {}".format(*self.port_range),
            "net.ipv4.ip_local_reserved_ports": format_ranges(self.reserved_ports),
            "net.ipv4.tcp_mem": tcp_mem,
            "net.netfilter.nf_conntrack_max": self.conntrack_max_count,
            "net.ipv4.tcp_max_orphans": self.tcp_max_orphans_count,
            "net.core.netdev_max_backlog": self.netdev_max_backlog_count,
        }
        return {
            "kernel": self.kernel,
            "machine": self.machine,
            "python": self.python,
            "cpu_model": self.cpu_model,
            "cpu_count": self.cpu_count,
            "cpus_allowed": format_cpus(self.allowed_cpus),
            "is_root": self.is_root,
            "effective_capabilities": f"{self.effective_capabilities:016x}",
            "may_raise_nofile": self.may_raise_nofile,
            "may_own_namespace": self.may_own_namespace,
            "has_btf": self.has_btf,
            "network_namespace": network_namespace,
            "page_size_bytes": self.page_size_bytes,
            "memory_total_bytes": self.memory_total_bytes,
            "memory_available_bytes": self.memory_available_bytes,
            "file_used_count": self.file_used_count,
            "conntrack_used_count": self.conntrack_used_count,
            "sysctls": sysctls,
            "limits": {
                "nofile_soft_count": self.nofile_soft_count,
                "nofile_hard_count": self.nofile_hard_count,
            },
            "cgroup": {
                "version": self.cgroup.version,
                "path": self.cgroup.path,
                "memory_limit_bytes": self.cgroup.memory_limit_bytes,
                "memory_used_bytes": self.cgroup.memory_used_bytes,
                "cpu_quota_cores": self.cgroup.cpu_quota_cores,
            },
        }


def require_own_proc() -> None:
    """The numbers in /proc are those that signals and people in this namespace mean.

    Raises:
        HostError: /proc is of another pid namespace.
    """
    if pid_namespace.proc_is_of_another():
        raise HostError(
            f"/proc shows another pid namespace than the one of this process (its pid is "
            f"{os.getpid()} and not {os.readlink('/proc/self')})",  # noqa: PTH115 - a link of procfs
            fix="mount -t proc proc /proc, in a mount namespace of its own (unshare --mount-proc)",
        )


def read_host(root: Path = Path("/")) -> Host:
    """Reads the host below ``root``; limits, affinity and uid are those of this process.

    Raises:
        HostError: There is no Linux /proc, or it is of another pid namespace.
    """
    if root == Path("/"):
        require_own_proc()
    sysctl = root / "proc/sys"
    tables = {limit.name: _table(sysctl, table) for limit, table in HOST_TABLES}
    open_files, tracked, watches = (
        tables.pop(limit.LIMIT.name) for limit in (file_max, conntrack, epoll_watches)
    )
    memory = _meminfo(root / "proc/meminfo")
    if open_files is None or "MemTotal" not in memory:
        raise HostError(
            f"no Linux /proc at {root / 'proc'}: this host's limits cannot be read",
            fix="run on Linux, with /proc mounted: mount -t proc proc /proc",
        )
    nr_open = first_int(sysctl / "fs/nr_open") or 1_048_576
    soft, hard = (
        nr_open if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    status = key_values(root / "proc/self/status")
    cgroup = read_cgroup(root)
    tcp_mem = ints_of(sysctl / "net/ipv4/tcp_mem")
    ports = ints_of(sysctl / "net/ipv4/ip_local_port_range")
    host = Host(
        kernel=text_of(sysctl / "kernel/osrelease").strip() or platform.release(),
        machine=platform.machine(),
        python=platform.python_version(),
        cpu_model=_cpu_model(root / "proc/cpuinfo"),
        cpu_count=_usable_cores(cgroup),
        allowed_cpus=tuple(sorted(os.sched_getaffinity(0))),
        is_root=os.geteuid() == 0,
        effective_capabilities=int(status.get("CapEff", "0") or "0", 16),
        has_btf=(root / "sys/kernel/btf/vmlinux").exists(),
        nofile_soft_count=soft,
        nofile_hard_count=hard,
        nr_open_count=nr_open,
        file_max_count=open_files.maximum_count,
        file_used_count=open_files.used_count,
        port_range=(ports[0], ports[1]) if len(ports) == 2 else DEFAULT_PORT_RANGE,
        reserved_ports=parse_ranges(text_of(sysctl / "net/ipv4/ip_local_reserved_ports")),
        listening_ports=_listening_ports(root),
        somaxconn_count=first_int(sysctl / "net/core/somaxconn") or 128,
        tcp_mem_pages=(tcp_mem[0], tcp_mem[1], tcp_mem[2]) if len(tcp_mem) == 3 else None,
        page_size_bytes=resource.getpagesize(),
        memory_total_bytes=memory["MemTotal"],
        memory_available_bytes=memory.get("MemAvailable", memory.get("MemFree", 0)),
        conntrack_max_count=None if tracked is None else tracked.maximum_count,
        conntrack_used_count=None if tracked is None else tracked.used_count,
        epoll_max_user_watches_count=None if watches is None else watches.maximum_count,
        tables={name: table for name, table in tables.items() if table is not None},
        tcp_max_orphans_count=first_int(sysctl / "net/ipv4/tcp_max_orphans"),
        netdev_max_backlog_count=first_int(sysctl / "net/core/netdev_max_backlog"),
        cgroup=cgroup,
    )
    # trying costs a few milliseconds, which a host without any sign of a refusal saves
    is_doubtful = status.get("Seccomp", "0") != "0" or not first_int(
        sysctl / "user/max_net_namespaces"
    )
    if root == Path("/") and is_doubtful and host.may_own_namespace:
        return replace(host, namespace_errno=netns.refusal())
    return host


def parse_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """Parses a port list such as ``8080,9000-9010`` into inclusive ranges."""
    ranges = []
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        try:
            ranges.append((int(low), int(high or low)))
        except ValueError:
            continue
    return tuple(ranges)


def format_ranges(ranges: tuple[tuple[int, int], ...]) -> str:
    """The inverse of ``parse_ranges``."""
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def format_cpus(cpus: Iterable[int]) -> str:
    """Numbers of cores as the kernel lists them: ``0-3,8``."""
    ranges: list[tuple[int, int]] = []
    for cpu in sorted(cpus):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1] = ranges[-1][0], cpu
        else:
            ranges.append((cpu, cpu))
    return format_ranges(tuple(ranges))


def _table(sysctl: Path, table: HostTable) -> TableReading | None:
    maximum = first_int(sysctl / table.maximum)
    if maximum is None:
        return None
    return TableReading(maximum, (first_int(sysctl / table.used) if table.used else 0) or 0)


def _meminfo(path: Path) -> dict[str, int]:
    found = {}
    for key, value in key_values(path).items():
        number, _, unit = value.partition(" ")
        if unit == "kB" and number.isdigit():
            found[key] = int(number) * 1024
    return found


def _cpu_model(path: Path) -> str:
    values = key_values(path)
    return values.get("model name") or values.get("Processor") or values.get("cpu model") or ""


def _usable_cores(cgroup: Cgroup) -> int:
    cores = len(os.sched_getaffinity(0))
    if cgroup.cpu_quota_cores is not None:
        cores = min(cores, math.ceil(cgroup.cpu_quota_cores))
    return max(1, cores)


def _listening_ports(root: Path) -> tuple[int, ...]:
    """Ports of TCP listeners.

    The kernel lists listeners before all other sockets (net/ipv4/tcp_ipv4.c, tcp_seq_start), so
    reading stops at the first other one: a host with a million sockets costs no more.
    """
    ports = set()
    for name in ("tcp", "tcp6"):
        try:
            with (root / "proc/net" / name).open(encoding="ascii", errors="replace") as lines:
                next(lines, "")
                for line in lines:
                    words = line.split()
                    if len(words) < 4 or words[3] != _TCP_LISTEN:
                        break
                    ports.add(int(words[1].rpartition(":")[2], 16))
        except (OSError, ValueError):
            continue
    return tuple(sorted(ports))
