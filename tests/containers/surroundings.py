"""Containers that connscope is tried in: what each is made of, and what cannot run there.

Made with ``unshare``, ``setpriv`` and control groups, which is what a container engine does; the
groups are named as Docker names them. The root is this machine's, so that Python, bcc and the
project are there as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NAMESPACES = ("--mount", "--pid", "--net", "--cgroup", "--ipc", "--uts", "--fork", "--kill-child")
OWN_PROC = "--mount-proc"

DOCKER_CAPABILITIES = (
    *("chown", "dac_override", "fsetid", "fowner", "mknod", "net_raw", "setgid", "setuid"),
    *("setfcap", "setpcap", "net_bind_service", "sys_chroot", "kill", "audit_write"),
)
"""What Docker leaves to root unless it is told otherwise (moby, oci/caps/defaults.go)."""

EBPF = (
    "failing_syscalls",
    "oom_kills",
    "connection_fates",
    "tcp_events",
    "cpu_stacks",
    "syscall_mix",
    "runq_latency",
    "skb_allocs",
)
_READ_ONLY = "mount --make-rprivate / && mount -o remount,bind,ro /"
_NO_TRACEFS = (
    "for each in /sys/kernel/tracing /sys/kernel/debug; do "
    "[ ! -d $each ] || mount -t tmpfs -o ro none $each; done"
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """One kind of container.

    Attributes:
        key: What commands and the table call it.
        what: In words.
        namespaces: Options of unshare.
        setup: A line of shell, run inside while everything is still allowed.
        rights: A command that takes rights away and then runs another one.
        limits: Of control groups, by controller and file of version 2.
        lacks: Probes that cannot run in it.
        is_refused: No run is possible in it, which is said in a line with what would help.
    """

    key: str
    what: str
    namespaces: tuple[str, ...] = (*NAMESPACES, OWN_PROC)
    setup: str = "true"
    rights: tuple[str, ...] = ()
    limits: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    is_refused: bool = False


def _bounding(*names: str) -> tuple[str, ...]:
    words = ",".join(["-all", *(f"+{name}" for name in names)])
    return ("setpriv", f"--bounding-set={words}", "--inh-caps=-all")


def _filtered() -> tuple[str, ...]:
    return ("{python}", "-P", "{project}/tests/containers/call_filter.py")


SURROUNDINGS = (
    Surroundings("privileged", "namespaces of its own and all capabilities"),
    Surroundings(
        "docker",
        "Docker's capabilities and a filter of calls like its own",
        rights=(*_filtered(), *_bounding(*DOCKER_CAPABILITIES)),
        lacks=(*EBPF, "python_stacks"),
    ),
    Surroundings(
        "filter",
        "all capabilities, but a filter of calls (seccomp)",
        rights=_filtered(),
        lacks=EBPF,
    ),
    Surroundings("no-capability", "root without any", rights=_bounding(), lacks=EBPF),
    Surroundings(
        "no-ptrace",
        "all capabilities but CAP_SYS_PTRACE",
        rights=("setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-all"),
        lacks=("python_stacks",),
    ),
    Surroundings(
        "user-namespace",
        "root of a user namespace with one user",
        namespaces=("--user", "--map-root-user", *NAMESPACES, OWN_PROC),
        lacks=EBPF,
    ),
    Surroundings(
        "nobody",
        "an ordinary user",
        rights=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"),
        lacks=EBPF,
    ),
    Surroundings("quota", "one core's time of two", limits={"cpu": {"cpu.max": "100000 100000"}}),
    Surroundings(
        "cpuset",
        "the first core alone",
        limits={"cpuset": {"cpuset.mems": "0", "cpuset.cpus": "0"}},
    ),
    Surroundings("memory", "2 GiB of memory", limits={"memory": {"memory.max": str(2 << 30)}}),
    Surroundings("read-only", "a root that is read-only, /tmp apart", setup=_READ_ONLY),
    Surroundings("no-tracefs", "neither tracefs nor debugfs", setup=_NO_TRACEFS),
    Surroundings(
        "no-cgroupfs",
        "no control groups to be seen",
        setup="umount -R -l /sys/fs/cgroup",
    ),
    Surroundings(
        "no-sysfs",
        "an empty /sys, so no types of the kernel",
        setup="umount -R -l /sys; mount -t tmpfs -o ro none /sys",
        lacks=EBPF,
    ),
    Surroundings(
        "proc-of-host",
        "a pid namespace of its own, and the /proc of the host",
        namespaces=NAMESPACES,
        is_refused=True,
    ),
)
