"""What this process may do: capabilities, its user namespace, and what a filter of calls leaves.

User id 0 alone says little. Root of a container has some capabilities of the host's, root of a user
namespace has all of them and none that counts for eBPF, and a seccomp filter refuses calls whatever
the capabilities are.

Source: capabilities(7), user_namespaces(7), proc(5) (status), seccomp(2);
kernel/bpf/syscall.c (bpf_capable, perfmon_capable: of the first user namespace).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from probes.bpf_loader import syscalls as bpf_kernel
from probes.contract.errors import ProbeUnavailableError

CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39
"""Bit numbers of include/uapi/linux/capability.h; the last two since Linux 5.8."""

_STATUS, _USER_NAMESPACE = Path("/proc/self/status"), Path("/proc/self/ns/user")
_FIRST_INODE = 0xEFFFFFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h
_ARRAY_MAP = 2  # BPF_MAP_TYPE_ARRAY


def parse_status(text: str) -> dict[str, str]:
    """Lines ``Name: value`` of /proc/PID/status."""
    pairs = (line.partition(":") for line in text.split("\n"))
    return {name: value.strip() for name, _, value in pairs}


def in_first_user_namespace() -> bool:
    """Whether this process is in the first user namespace; True where that cannot be known."""
    try:
        return _USER_NAMESPACE.stat().st_ino == _FIRST_INODE
    except OSError:
        return True


def require_bpf() -> None:
    """This process may load eBPF programs that read the kernel's memory.

    Raises:
        ProbeUnavailableError: It may not; with what would let it.
    """
    if os.geteuid() != 0:
        raise ProbeUnavailableError("eBPF needs root", fix="run it with sudo")
    if not in_first_user_namespace():
        raise ProbeUnavailableError(
            "root of a user namespace may not load eBPF",
            fix="run it as root of the host, or in a container without a user namespace "
            "(docker run --userns host)",
        )
    try:
        status = parse_status(_STATUS.read_text(encoding="ascii", errors="replace"))
    except OSError:
        return  # no /proc of ours: the kernel will say
    effective = int(status.get("CapEff", "0") or "0", 16)
    lacks = [name for name, bit in (("BPF", CAP_BPF), ("PERFMON", CAP_PERFMON))
             if not effective >> bit & 1]  # fmt: skip
    if lacks and not effective >> CAP_SYS_ADMIN & 1:
        names = " and ".join(f"CAP_{name}" for name in lacks)
        flags = " ".join(f"--cap-add {name}" for name in lacks)
        raise ProbeUnavailableError(
            f"this root lacks {names}, which eBPF needs",
            fix=f"give the container them: docker run {flags}, or --privileged",
        )
    try:
        os.close(bpf_kernel.create_map("connscope_check", _ARRAY_MAP, 4, 4, 1, 0))
    except OSError as error:
        if error.errno != errno.EPERM:
            return  # no eBPF in this kernel, or no memory: compiling says more
        is_filtered = status.get("Seccomp", "0") == "2"
        who = "a seccomp filter" if is_filtered else "a security module or lockdown"
        raise ProbeUnavailableError(
            f"bpf(2) is refused although the capabilities are there: {who} forbids it",
            fix="docker run --security-opt seccomp=unconfined, or --privileged"
            if is_filtered
            else "cat /sys/kernel/security/lockdown; run it where that is none",
        ) from error
