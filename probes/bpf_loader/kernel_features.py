"""What a kernel must have for a probe, and since which version Linux has it.

Whether it is there is always found out (the kernel's types, its files, an attempt); the versions
are only said to people, because distributions bring features into older kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from probes.bpf_loader.btf import Btf, MissingTypeError
from probes.contract.errors import ProbeUnavailableError
from probes.proc.descriptor_count import kernel_counts

LEAST_KERNEL = "5.10"
"""The oldest kernel that is tested (docs/kernels.md)."""

LOCKDOWN = Path("/sys/kernel/security/lockdown")
PERF_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")

_HAS: dict[str, str] = {  # what MissingTypeError names: what has it
    "struct bpf_iter__tcp": "Linux 5.9",
    "tracepoint sys_exit": "a kernel with CONFIG_FTRACE_SYSCALLS=y",
    "tracepoint inet_sock_set_state": "Linux 4.16 with CONFIG_BPF_EVENTS=y",
    "tracepoint kmem_cache_alloc with its cache": "Linux 6.1",
    "tracepoint mark_victim": "Linux 4.18",
}


def what_has(missing: str) -> str:
    """The kernel that has what ``MissingTypeError.name`` says is not there, for a fix."""
    return f"run {_HAS.get(missing, 'a newer kernel, or leave the probe out with --probes')}"


def is_locked_down() -> bool:
    """Whether lockdown forbids programs to read the kernel's memory (kernel_lockdown(7))."""
    try:
        return "[confidentiality]" in LOCKDOWN.read_text(encoding="ascii")
    except OSError:
        return False


def perf_paranoid() -> int:
    """``kernel.perf_event_paranoid``, -1 where it cannot be read."""
    return _number(PERF_PARANOID)


def ptrace_scope() -> int:
    """``kernel.yama.ptrace_scope``, -1 on a kernel without Yama."""
    return _number(PTRACE_SCOPE)


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return -1


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that this kernel does not tell, and a newer one does.

    Attributes:
        what: In words that follow "no".
        since: The version of Linux that has it.
    """

    what: str
    since: str


def _enum_is_there(name: str) -> Callable[[Btf], bool]:
    def is_there(btf: Btf) -> bool:
        try:
            return bool(btf.enum(name))
        except MissingTypeError:
            return False

    return is_there


def _is_argument(event: str, type_name: str) -> Callable[[Btf], bool]:
    def is_there(btf: Btf) -> bool:
        try:
            return type_name in btf.tracepoint_arguments(event)
        except MissingTypeError:
            return False

    return is_there


_FEATURES: tuple[tuple[Lack, Callable[[Btf], bool]], ...] = (
    (Lack("reasons of dropped packets", "5.17"), _enum_is_there("skb_drop_reason")),
    (
        Lack("number of open descriptors without an estimate", "6.2"),
        lambda _: kernel_counts(),
    ),
    (Lack("reasons of resets that are sent", "6.10"), _enum_is_there("sk_rst_reason")),
    (
        Lack("socket of a dropped packet, so that some of other namespaces count", "6.11"),
        _is_argument("kfree_skb", "sock"),
    ),
    (
        Lack("exit status of external processes", "6.15"),
        lambda btf: btf.has_field("pidfd_info", "exit_code"),
    ),
)


def lacks(btf: Btf) -> list[Lack]:
    """What is seen less of on this kernel than on a newer one, oldest first."""
    return [lack for lack, is_there in _FEATURES if not is_there(btf)]


def lacks_of_kernel() -> list[Lack]:
    """Likewise of the running one; nothing where its types cannot be read."""
    try:
        return lacks(Btf.of_kernel())
    except ProbeUnavailableError:
        return []
