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
from pathlib import Path, PurePosixPath
from typing import Any

from harness.fleet import netns
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
class Cgroup:
    """The memory and CPU this process's control group allows.

    Attributes:
        version: 2, 1, or 0 when none was found.
        path: Path of the group that has the memory controller, '' for none.
        memory_limit_bytes: The tightest limit from the group up to the root; None for no limit.
        memory_used_bytes: Charged to the group with that limit, without inactive file cache,
            which the kernel gives back first; None for no limit.
        cpu_quota_cores: Cores that the quota pays for; None for no quota.
    """

    version: int = 0
    path: str = ""
    memory_limit_bytes: int | None = None
    memory_used_bytes: int | None = None
    cpu_quota_cores: float | None = None


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
    nr_open = _first_int(sysctl / "fs/nr_open") or 1_048_576
    soft, hard = (
        nr_open if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    status = _key_values(root / "proc/self/status")
    cgroup = _cgroup(root)
    tcp_mem = _ints(sysctl / "net/ipv4/tcp_mem")
    ports = _ints(sysctl / "net/ipv4/ip_local_port_range")
    host = Host(
        kernel=_text(sysctl / "kernel/osrelease").strip() or platform.release(),
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
        reserved_ports=parse_ranges(_text(sysctl / "net/ipv4/ip_local_reserved_ports")),
        listening_ports=_listening_ports(root),
        somaxconn_count=_first_int(sysctl / "net/core/somaxconn") or 128,
        tcp_mem_pages=(tcp_mem[0], tcp_mem[1], tcp_mem[2]) if len(tcp_mem) == 3 else None,
        page_size_bytes=resource.getpagesize(),
        memory_total_bytes=memory["MemTotal"],
        memory_available_bytes=memory.get("MemAvailable", memory.get("MemFree", 0)),
        conntrack_max_count=None if tracked is None else tracked.maximum_count,
        conntrack_used_count=None if tracked is None else tracked.used_count,
        epoll_max_user_watches_count=None if watches is None else watches.maximum_count,
        tables={name: table for name, table in tables.items() if table is not None},
        tcp_max_orphans_count=_first_int(sysctl / "net/ipv4/tcp_max_orphans"),
        netdev_max_backlog_count=_first_int(sysctl / "net/core/netdev_max_backlog"),
        cgroup=cgroup,
    )
    # trying costs a few milliseconds, which a host without any sign of a refusal saves
    is_doubtful = status.get("Seccomp", "0") != "0" or not _first_int(
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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _ints(path: Path) -> list[int]:
    try:
        return [int(word) for word in _text(path).split()]
    except ValueError:
        return []


def _first_int(path: Path) -> int | None:
    values = _ints(path)
    return values[0] if values else None


def _table(sysctl: Path, table: HostTable) -> TableReading | None:
    maximum = _first_int(sysctl / table.maximum)
    if maximum is None:
        return None
    return TableReading(maximum, (_first_int(sysctl / table.used) if table.used else 0) or 0)


def _key_values(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in _text(path).splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _meminfo(path: Path) -> dict[str, int]:
    found = {}
    for key, value in _key_values(path).items():
        number, _, unit = value.partition(" ")
        if unit == "kB" and number.isdigit():
            found[key] = int(number) * 1024
    return found


def _cpu_model(path: Path) -> str:
    values = _key_values(path)
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


def _cgroup(root: Path) -> Cgroup:
    memberships = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            memberships[controller] = path
    mounts = _cgroup_mounts(root)
    if "memory" in memberships and "memory" in mounts:
        folders = _folders(root, mounts["memory"], memberships["memory"])
        limit, used = _tightest(
            folders, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        )
        cpu = mounts.get("cpu")
        quota = None
        for folder in _folders(root, cpu, memberships.get("cpu", "/")) if cpu else []:
            quota = _smaller(
                quota,
                _ratio(
                    _first_int(folder / "cpu.cfs_quota_us"),
                    _first_int(folder / "cpu.cfs_period_us"),
                ),
            )
        return Cgroup(1, memberships["memory"], limit, used, quota)
    if "" in memberships and "" in mounts:
        folders = _folders(root, mounts[""], memberships[""])
        limit, used = _tightest(folders, "memory.max", "memory.current", "inactive_file")
        quota = None
        for folder in folders:
            words = _text(folder / "cpu.max").split()
            if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
                quota = _smaller(quota, _ratio(int(words[0]), int(words[1])))
        return Cgroup(2, memberships[""], limit, used, quota)
    return Cgroup()


def _cgroup_mounts(root: Path) -> dict[str, tuple[str, str]]:
    """Controller ('' for version 2) to (root of the mount in its hierarchy, mount point)."""
    mounts: dict[str, tuple[str, str]] = {}
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        if kinds[0] == "cgroup2":
            mounts.setdefault("", (fields[3], fields[4]))
        elif kinds[0] == "cgroup":
            for controller in kinds[2].split(","):
                mounts.setdefault(controller, (fields[3], fields[4]))
    return mounts


def _folders(root: Path, mount: tuple[str, str], membership: str) -> list[Path]:
    """The group's folder and its ancestors up to the mount point, as far as they are visible."""
    mount_root, mount_point = mount
    try:
        relative = PurePosixPath(membership).relative_to(mount_root)
    except ValueError:
        relative = PurePosixPath()  # a container that sees its own group as the mount point
    if ".." in relative.parts:
        relative = PurePosixPath()  # a group outside this cgroup namespace (cgroup_namespaces(7))
    top = root / mount_point.lstrip("/")
    levels = [relative, *relative.parents]
    return [top / level for level in levels if (top / level).is_dir()]


def _tightest(
    folders: list[Path], limit_name: str, used_name: str, cache_key: str
) -> tuple[int | None, int | None]:
    limit: int | None = None
    used: int | None = None
    for folder in folders:
        here = _first_int(folder / limit_name)
        # Version 1 writes "no limit" as the highest page-aligned long.
        if here is None or here >= 1 << 60 or (limit is not None and here >= limit):
            continue
        limit = here
        lines = (line.split() for line in _text(folder / "memory.stat").splitlines())
        cache = next((int(words[1]) for words in lines if words[:1] == [cache_key]), 0)
        used = max(0, (_first_int(folder / used_name) or 0) - cache)
    return limit, used


def _ratio(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota is not None and quota > 0 and period else None


def _smaller(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)
