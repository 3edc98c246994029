"""What each eBPF program reads of the kernel, and the one object that the default probes share.

A function per C file builds its ``BpfSource`` from the kernel's types: struct fields by all their
spellings, positions of tracepoint arguments, enum values. The default probes share one compiled
object (``acquire``), so that the compiler starts once and the processes and ports to watch are
written once; a probe whose source this kernel cannot satisfy is left out of it and told why.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from probes.bpf_program import (
    PERF_EVENT,
    RAW_TRACEPOINT,
    TRACING,
    BpfObject,
    BpfSource,
    MapType,
    check_bpf,
)
from probes.btf import Btf, MissingTypeError
from probes.errors import ProbeUnavailableError
from probes.probe import Target

STACKS_PER_KEY = 4
STACK_DEPTH = 127  # PERF_MAX_STACK_DEPTH
STACK = np.dtype([("frames", "<u8", (STACK_DEPTH,))])

# enum loss of probes/bpf/common.h, in its order
LOSSES = (
    "failures",
    "failure_stacks",
    "cpu_samples",
    "cpu_paused",
    "resets",
    "drops",
    "port_groups",
    "other",
)

CONFIG = np.dtype([("netns_inum", "<u4"), ("paused", "<u4"), ("server_ports", "u1", (8192,))])

FAILURE_KEY = np.dtype([("pid", "<u4"), ("nr", "<u4"), ("errno", "<u4")])
FAILURE = np.dtype([("count", "<u8"), ("first_ns", "<u8"), ("last_ns", "<u8")])
FAILURE_RECORD_KEY = np.dtype([("key", FAILURE_KEY), ("ordinal", "<u4")])
FAILURE_RECORD = np.dtype(
    [
        ("at_ns", "<u8"),
        ("tid", "<u4"),
        ("kernel_stack", "<i4"),
        ("user_stack", "<i4"),
        ("unused", "<u4"),
    ]
)

SAMPLE_KEY = np.dtype(
    [("pid", "<u4"), ("tid", "<u4"), ("kernel_stack", "<i4"), ("user_stack", "<i4")]
)
SAMPLE = np.dtype([("count", "<u8"), ("comm", "S16")])

TCP_COUNTS = np.dtype(
    [
        ("transitions", "<u8", (4, 16, 16)),
        ("retransmits", "<u8", (4, 16)),
        (
            "pressure",
            [("count", "<u8"), ("first_ns", "<u8"), ("allocated_max_pages", "<u8")],
            (4, 4),
        ),
    ]
)
RESET_KEY = np.dtype([("received", "u1"), ("side", "u1"), ("state", "u1"), ("reason", "u1")])
RESET_COUNT = np.dtype([("count", "<u8"), ("first_ns", "<u8")])
DROP_KEY = np.dtype([("location", "<u8"), ("reason", "<u8")])

STATE_SUMS = np.dtype(
    [
        ("sockets", "<u8"),
        ("full_sockets", "<u8"),
        ("rmem_alloc", "<i8"),
        ("wmem_alloc", "<i8"),
        ("wmem_queued", "<i8"),
        ("forward_alloc", "<i8"),
        ("sndbuf", "<i8"),
        ("rcvbuf", "<i8"),
        ("rmem_alloc_max", "<i8"),
        ("wmem_queued_max", "<i8"),
    ]
)
SNAPSHOT_SUMS = np.dtype([("by", STATE_SUMS, (4, 16))])
PORT_GROUP = np.dtype([("source", "<u4"), ("destination", "<u4"), ("port", "<u4")])

_SOCK_COMMON = {
    "skc_daddr": ["skc_daddr"],
    "skc_rcv_saddr": ["skc_rcv_saddr"],
    "skc_dport": ["skc_dport"],
    "skc_num": ["skc_num"],
    "skc_family": ["skc_family"],
    "skc_state": ["skc_state"],
    "net": ["skc_net.net"],
}


def common(btf: Btf) -> BpfSource:
    """Configuration and losses, part of every object."""
    del btf
    return BpfSource(
        "common.h",
        {},
        {},
        {},
        {
            "config": MapType("<i4", CONFIG),
            "watched_pids": MapType("<u4", "u1"),
            "losses": MapType("<i4", "<u8"),
        },
    )


def failing_syscalls(btf: Btf) -> BpfSource:
    """Failing system calls with their first stacks."""
    btf.tracepoint_arguments("sys_exit")
    return BpfSource(
        "failing_syscalls.c",
        # x86; arm64; riscv (a7 carries the number)
        {"pt_regs": {"nr": ["orig_ax", "syscallno", "a7"]}},
        {
            "ERRNO_EAGAIN": errno.EAGAIN,
            "ERRNO_EINPROGRESS": errno.EINPROGRESS,
            "ERRNO_EINTR": errno.EINTR,
            "STACKS_PER_KEY": STACKS_PER_KEY,
        },
        {"failing_syscalls": RAW_TRACEPOINT},
        {
            "failures": MapType(FAILURE_KEY, FAILURE),
            "failure_records": MapType(FAILURE_RECORD_KEY, FAILURE_RECORD),
            "failure_traces": MapType("<u4", STACK),
        },
    )


def cpu_stacks(btf: Btf) -> BpfSource:
    """CPU samples with both stacks."""
    del btf
    return BpfSource(
        "cpu_stacks.c",
        {},
        {},
        {"cpu_sample": PERF_EVENT},
        {"cpu_samples": MapType(SAMPLE_KEY, SAMPLE), "cpu_traces": MapType("<u4", STACK)},
    )


def argument_position(btf: Btf, event: str, type_name: str, occurrence: int = 0) -> int:
    """Position of a raw tracepoint's argument by its type, -1 when this kernel has it not."""
    try:
        arguments = btf.tracepoint_arguments(event)
    except MissingTypeError:
        return -1
    positions = [index for index, name in enumerate(arguments) if name == type_name]
    return positions[occurrence] if occurrence < len(positions) else -1


def enum_or_empty(btf: Btf, name: str) -> dict[str, int]:
    """An enum's values, empty on a kernel that is older than the enum."""
    try:
        return btf.enum(name)
    except MissingTypeError:
        return {}


def tcp_events(btf: Btf) -> BpfSource:
    """TCP's tracepoints and skb drops."""
    btf.tracepoint_arguments("inet_sock_set_state")
    drops = enum_or_empty(btf, "skb_drop_reason")
    return BpfSource(
        "tcp_events.c",
        {
            "sock_common": _SOCK_COMMON,
            "sock": {"sk_protocol": ["sk_protocol"]},
            "inet_sock": {"inet_sport": ["inet_sport"]},
            "net": {"inum": ["ns.inum"]},
            "net_device": {"net": ["nd_net.net"]},
            "sk_buff": {
                "head": ["head"],
                "transport_header": ["transport_header"],
                "dev": ["dev"],
                "sk": ["sk"],
            },
        },
        {
            "RESET_REASON_ARG": argument_position(btf, "tcp_send_reset", "sk_rst_reason"),
            "DROP_REASON_ARG": argument_position(btf, "kfree_skb", "skb_drop_reason"),
            "DROP_SOCKET_ARG": argument_position(btf, "kfree_skb", "sock"),
            "DROP_REASON_CONSUMED": drops.get("SKB_CONSUMED", 0),
            "DROP_REASON_NOT_SPECIFIED": drops.get("SKB_DROP_REASON_NOT_SPECIFIED", 0),
        },
        {
            "tcp_state_change": RAW_TRACEPOINT,
            "tcp_retransmit": RAW_TRACEPOINT,
            "sock_over_limit": RAW_TRACEPOINT,
            "sock_queue_full": RAW_TRACEPOINT,
            "tcp_reset_received": RAW_TRACEPOINT,
            "tcp_reset_sent": RAW_TRACEPOINT,
            "skb_dropped": RAW_TRACEPOINT,
        },
        {
            "tcp_counts": MapType("<i4", TCP_COUNTS),
            "reset_counts": MapType(RESET_KEY, RESET_COUNT),
            "drop_counts": MapType(DROP_KEY, "<u8"),
        },
    )


def tcp_snapshot(btf: Btf) -> BpfSource:
    """The iterator over all TCP sockets."""
    common_fields: dict[str, list[str]] = dict(_SOCK_COMMON)
    constants = {}
    if btf.has_field("sock_common", "skc_v6_rcv_saddr"):
        common_fields["skc_v6_rcv_saddr"] = ["skc_v6_rcv_saddr.in6_u.u6_addr32"]
        constants["HAVE_IPV6"] = 1
    return BpfSource(
        "tcp_snapshot.c",
        {
            "bpf_iter__tcp": {"meta": ["meta"], "sk_common": ["sk_common"]},
            "bpf_iter_meta": {"seq": ["seq"]},
            "sock_common": common_fields,
            "socket_alloc": {"i_ino": ["vfs_inode.i_ino"]},
            "sock": {
                "rmem_alloc": ["sk_backlog.rmem_alloc.counter"],
                "wmem_alloc": ["sk_wmem_alloc.refs.counter"],
                "sk_wmem_queued": ["sk_wmem_queued"],
                "sk_forward_alloc": ["sk_forward_alloc"],
                "sk_sndbuf": ["sk_sndbuf"],
                "sk_rcvbuf": ["sk_rcvbuf"],
                "sk_ack_backlog": ["sk_ack_backlog"],
                "sk_max_ack_backlog": ["sk_max_ack_backlog"],
                "sk_socket": ["sk_socket"],
            },
        },
        constants,
        {"bpf_iter__tcp": TRACING},
        {
            "snapshot_sums": MapType("<i4", SNAPSHOT_SUMS),
            "port_groups": MapType(PORT_GROUP, "<u8"),
        },
    )


SourceBuilder = Callable[[Btf], BpfSource]
_DEFAULT: tuple[SourceBuilder, ...] = (failing_syscalls, tcp_events, cpu_stacks, tcp_snapshot)


def watch_pids(loaded: BpfObject, pids: Iterable[int]) -> None:
    """Adds processes to those whose calls and samples count."""
    for pid in pids:
        loaded.maps["watched_pids"].put(pid, 1)


def unwatch_pids(loaded: BpfObject, pids: Iterable[int]) -> None:
    """Takes processes out again."""
    for pid in pids:
        loaded.maps["watched_pids"].delete(pid)


def run_config(target: Target, *, paused: bool = False) -> npt.NDArray[np.void]:
    """The configuration of the programs: the caller's network namespace and the server's ports."""
    configs: npt.NDArray[np.void] = np.zeros(1, dtype=CONFIG)
    config = configs[0]
    config["netns_inum"] = Path("/proc/self/ns/net").stat().st_ino & 0xFFFFFFFF
    config["paused"] = paused
    for port in target.server_ports:
        config["server_ports"][port >> 3] |= 1 << (port & 7)
    return configs


def load(builders: Iterable[SourceBuilder]) -> BpfObject:
    """Compiles the sources into an object of their own; not yet pointed at a target.

    Raises:
        ProbeUnavailableError: This kernel or machine cannot.
    """
    check_bpf()
    btf = Btf.of_kernel()
    try:
        sources = [build(btf) for build in (common, *builders)]
    except MissingTypeError as error:
        raise ProbeUnavailableError(str(error), fix="run a newer kernel") from error
    return BpfObject.load(btf, sources)


def aim(loaded: BpfObject, target: Target, pids: Iterable[int]) -> None:
    """Points the programs of an object at a target."""
    loaded.maps["config"].put(0, run_config(target)[0])
    watch_pids(loaded, pids)


class _Shared:
    """The object of the default probes, and who uses it."""

    def __init__(self) -> None:
        self.loaded: BpfObject | None = None
        self.target: Target | None = None
        self.users: list[object] = []
        self.missing: dict[SourceBuilder, str] = {}


_shared = _Shared()


def prepare() -> BpfObject:
    """Compiles the object of the default probes unless it is there.

    What this kernel cannot satisfy is left out of it and kept for ``acquire`` to tell.

    Raises:
        ProbeUnavailableError: Nothing can be compiled here.
    """
    if _shared.loaded is None:
        check_bpf()
        btf = Btf.of_kernel()
        usable: list[SourceBuilder] = []
        for build in _DEFAULT:
            try:
                build(btf)
                usable.append(build)
            except MissingTypeError as error:
                _shared.missing[build] = str(error)
        _shared.loaded = load(usable)
    return _shared.loaded


def acquire(user: object, target: Target, build: SourceBuilder) -> BpfObject:
    """The shared object of the default probes, aimed at the target.

    Args:
        user: The probe; gives it back with ``release``.
        target: What to watch.
        build: The source that the probe needs in it.

    Raises:
        ProbeUnavailableError: The kernel lacks what this source needs, or nothing compiles.
    """
    if _shared.users and _shared.target is not target:  # two targets in one process
        loaded = load([build])
        aim(loaded, target, target.processes)
        return loaded
    loaded = prepare()
    if build in _shared.missing:
        raise ProbeUnavailableError(_shared.missing[build], fix="run a newer kernel")
    if not _shared.users:
        aim(loaded, target, target.processes)
        _shared.target = target
    _shared.users.append(user)
    return loaded


def release(user: object, loaded: BpfObject) -> None:
    """Gives an object back; the last user closes it."""
    if loaded is not _shared.loaded:
        loaded.close()
        return
    _shared.users = [each for each in _shared.users if each is not user]
    if not _shared.users:
        loaded.close()
        _shared.loaded = _shared.target = None


def lost(loaded: BpfObject, *kinds: str) -> int:
    """Events that the programs saw and could not record, of the kinds named."""
    _, values = loaded.maps["losses"].items()
    totals = values.sum(axis=1)
    return int(sum(totals[LOSSES.index(kind)] for kind in kinds))
