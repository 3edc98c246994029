"""What each eBPF program reads of the kernel, and the layout of its maps as numpy types.

A function per C file builds its ``BpfSource`` from the kernel's types: struct fields by all their
spellings, positions of tracepoint arguments, enum values. It raises ``MissingTypeError`` for what
this kernel lacks.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np

from probes.bpf_loader import pid_namespace
from probes.bpf_loader.btf import Btf, MissingTypeError
from probes.bpf_loader.program import (
    PERF_EVENT,
    RAW_TRACEPOINT,
    TRACING,
    BpfSource,
    MapType,
)
from probes.bpf_loader.syscalls import online_cpus
from probes.budget.governor import LONGEST_PERIOD_NS
from probes.contract.clock import NS_PER_S
from probes.netlink.socket_snapshot import SIDES_COUNT, STATE_SUMS, STATES_COUNT
from probes.proc.syscall_names import number_of_call

CPU_FREQUENCY_HZ = 49
"""Samples of each core in a second; not 50, so that it does not beat with timers of 10 ms."""
LEARN_PID_NAMESPACE = "learn_pid_namespace"
"""A program that is part of every object in a pid namespace that is not the first one."""
STACKS_PER_KEY = 4
TASK_CALLS = ("clone", "clone3", "fork", "vfork")
"""Calls that make a thread or a process: of these EAGAIN is a failure (clone(2), fork(2))."""
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
    "syscall_mix",
    "runq",
    "skb_allocs",
    "oom_kills",
    "fates",
)

CONFIG = np.dtype(
    [("netns_inum", "<u4"), ("paused", "<u4"), ("net", "<u8"), ("server_ports", "u1", (8192,))]
)

OWN_NAMESPACE = np.dtype([("ns", "<u8"), ("level", "<u4"), ("unused", "<u4")])

FAILURE_KEY = np.dtype([("pid", "<u4"), ("nr", "<u4"), ("errno", "<u4")])
FAILURE = np.dtype(
    [
        ("count", "<u8"),
        ("first_ns", "<u8"),
        ("last_ns", "<u8"),
        ("address_space_pages", "<u8"),
        ("mappings", "<u4"),
        ("threads", "<u4"),
    ]
)
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
DROP_KEY = np.dtype(
    [("location", "<u8"), ("reason", "<u4"), ("namespace_known", "<u2"), ("of_server", "<u2")]
)

SNAPSHOT_SUMS = np.dtype([("by", STATE_SUMS, (SIDES_COUNT, STATES_COUNT)), ("visited", "<u8")])
BREATH_SOCKETS = 50_000
"""After so many sockets read(2) of the iterator returns: 25 ms without giving the core away."""
PORT_GROUP = np.dtype([("source", "<u4"), ("destination", "<u4"), ("port", "<u4")])

MIX_KEY = np.dtype([("pid", "<u4"), ("nr", "<u4")])
MIX = np.dtype([("count", "<u8"), ("failed", "<u8")])
FATE_KEY = np.dtype([("pid", "<u4"), ("fate", "<u4")])
FATE_COUNT = np.dtype(
    [("count", "<u8"), ("at_once", "<u8"), ("first_ns", "<u8"), ("last_ns", "<u8")]
)
SERVED_KEY = np.dtype([("pid", "<u4"), ("fd", "<i4")])
SERVED = np.dtype(
    [
        ("accepted_ns", "<u8"),
        ("is_read", "<u4"),
        ("is_answered", "<u4"),
        ("is_left", "<u4"),
        ("unused", "<u4"),
    ]
)
FATES_AT_ONCE_NS = 50_000_000
RUNQ_KEY = np.dtype([("pid", "<u4"), ("bucket", "<u4")])
CACHE_INFO = np.dtype([("is_skb", "<u4"), ("size", "<u4"), ("name", "S32")])
OOM_KILL = np.dtype([("at_ns", "<u8"), ("cgroup_id", "<u8"), ("count", "<u4"), ("pid", "<u4")])
ALLOC_KEY = np.dtype([("cache", "<u8"), ("location", "<u8")])

SourceBuilder = Callable[[Btf], BpfSource]

# where the number of the call is: x86; arm64; riscv (a7 carries it)
SYSCALL_REGS = {"nr": ["orig_ax", "syscallno", "a7"]}
# the first argument, which the return value does not overwrite: x86; arm64; riscv
FIRST_ARGUMENT = {"arg0": ["di", "orig_x0", "orig_a0"]}
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
    """Configuration, losses and whose numbers count, part of every object."""
    maps = {
        "config": MapType("<i4", CONFIG),
        "watched_pids": MapType("<u4", "u1"),
        "losses": MapType("<i4", "<u8"),
    }
    if pid_namespace.is_first():
        return BpfSource("common.h", {}, {"PID_NAMESPACED": 0}, {}, maps)
    numbers = pid_namespace.numbers(btf)
    return BpfSource(
        "common.h",
        {
            "task_struct": {"thread_pid": ["thread_pid"], "group_leader": ["group_leader"]},
            "pid": {"level": ["level"]},
        },
        {
            "PID_NAMESPACED": 1,
            "NUMBERS_AT": numbers.at,
            "NUMBERS_SIZE": numbers.size,
            "NUMBER_AT": numbers.number_at,
            "NUMBER_NAMESPACE_AT": numbers.namespace_at,
        },
        {LEARN_PID_NAMESPACE: RAW_TRACEPOINT},
        maps | {"own_namespace": MapType("<i4", OWN_NAMESPACE)},
    )


def failing_syscalls(btf: Btf) -> BpfSource:
    """Failing system calls with their first stacks."""
    btf.tracepoint_arguments("sys_exit")
    return BpfSource(
        "failing_syscalls.c",
        {
            "pt_regs": SYSCALL_REGS,
            "task_struct": {"mm": ["mm"], "signal": ["signal"]},
            "mm_struct": {"map_count": ["map_count"], "total_vm": ["total_vm"]},
            "signal_struct": {"nr_threads": ["nr_threads"]},
        },
        {
            **{f"NR_{name.upper()}": number_of_call(name) for name in (*TASK_CALLS, "connect")},
            "ERRNO_EAGAIN": errno.EAGAIN,
            "ERRNO_EINPROGRESS": errno.EINPROGRESS,
            "ERRNO_EINTR": errno.EINTR,
            "ERRNO_ENOMEM": errno.ENOMEM,
            "STACKS_PER_KEY": STACKS_PER_KEY,
        },
        {"failing_syscalls": RAW_TRACEPOINT},
        {
            "failures": MapType(FAILURE_KEY, FAILURE),
            "failure_records": MapType(FAILURE_RECORD_KEY, FAILURE_RECORD),
            "failure_traces": MapType("<u4", STACK),
            "calls_passed": MapType("<u4", "<u8"),
        },
    )


def cpu_map_entries(cores: int) -> tuple[int, int]:
    """Entries of the maps of samples and of stacks, for so many cores.

    Samples: all that come between two readings that are as far apart as a budget puts them, if no
    two are alike. An entry takes about 80 bytes: 8 MB for 128 cores. Stacks: 512 different ones a
    core, within 16 and 64 MB, since each takes 1 kB; what collides is counted as lost.
    """
    samples = cores * CPU_FREQUENCY_HZ * LONGEST_PERIOD_NS // NS_PER_S
    return _power_of_two(samples, 8_192, 262_144), _power_of_two(512 * cores, 16_384, 65_536)


def _power_of_two(least: int, low: int, high: int) -> int:
    return min(high, max(low, 1 << (least - 1).bit_length()))


def cpu_stacks(btf: Btf) -> BpfSource:
    """CPU samples with both stacks."""
    del btf
    samples, traces = cpu_map_entries(len(online_cpus()))
    return BpfSource(
        "cpu_stacks.c",
        {},
        {"CPU_SAMPLES": samples, "CPU_TRACES": traces},
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
                "network_header": ["network_header"],
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


def tcp_snapshot_by_helper(btf: Btf) -> BpfSource:
    """The same for a kernel that refuses its loads through typed pointers."""
    return tcp_snapshot(btf, by_helper=True)


def tcp_snapshot(btf: Btf, *, by_helper: bool = False) -> BpfSource:
    """The iterator over all TCP sockets."""
    common_fields: dict[str, list[str]] = dict(_SOCK_COMMON)
    constants = {"BREATH_SOCKETS": BREATH_SOCKETS, "READ_BY_HELPER": int(by_helper)}
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
                "sk_drops": ["sk_drops.counter"],
            },
            "inet_connection_sock": {"syn_queue": ["icsk_accept_queue.qlen.counter"]},
            "tcp_sock": {
                "data_segs_out": ["data_segs_out"],
                "bytes_sent": ["bytes_sent"],
                "data_segs_in": ["data_segs_in"],
                "bytes_received": ["bytes_received"],
            },
        },
        constants,
        {"bpf_iter__tcp": TRACING},
        {
            "snapshot_sums": MapType("<i4", SNAPSHOT_SUMS),
            "port_groups": MapType(PORT_GROUP, "<u8"),
        },
    )


def syscall_mix(btf: Btf) -> BpfSource:
    """All system calls of a few processes."""
    btf.tracepoint_arguments("sys_exit")
    return BpfSource(
        "syscall_mix.c",
        {"pt_regs": SYSCALL_REGS},
        {},
        {"syscall_mix": RAW_TRACEPOINT},
        {"mix_pids": MapType("<u4", "u1"), "mix_counts": MapType(MIX_KEY, MIX)},
    )


def connection_fates(btf: Btf) -> BpfSource:
    """What a server does with each connection that it accepts."""
    btf.tracepoint_arguments("sys_exit")
    return BpfSource(
        "connection_fates.c",
        {"pt_regs": {**SYSCALL_REGS, **FIRST_ARGUMENT}},
        {
            "ERRNO_ECONNRESET": errno.ECONNRESET,
            "ERRNO_EPIPE": errno.EPIPE,
            "AT_ONCE_NS": FATES_AT_ONCE_NS,
        },
        {"connection_fates": RAW_TRACEPOINT},
        {
            "call_kinds": MapType("<i4", "u1"),
            "fate_pids": MapType("<u4", "u1"),
            "served_connections": MapType(SERVED_KEY, SERVED),
            "fate_counts": MapType(FATE_KEY, FATE_COUNT),
        },
    )


def runq_latency(btf: Btf) -> BpfSource:
    """Waiting for a CPU."""
    btf.tracepoint_arguments("sched_wakeup")
    btf.tracepoint_arguments("sched_switch")
    return BpfSource(
        "runq_latency.c",
        {"task_struct": {"pid": ["pid"], "tgid": ["tgid"], "state": ["__state", "state"]}},
        {
            "SWITCH_PREV_ARG": argument_position(btf, "sched_switch", "task_struct"),
            "SWITCH_NEXT_ARG": argument_position(btf, "sched_switch", "task_struct", 1),
        },
        {"runq_wakeup": RAW_TRACEPOINT, "runq_switch": RAW_TRACEPOINT},
        {
            "runnable_since": MapType("<u4", "<u8"),
            "runq_counts": MapType(RUNQ_KEY, "<u8"),
        },
    )


def skb_allocs(btf: Btf) -> BpfSource:
    """Allocations of socket buffers by call site."""
    cache_position = argument_position(btf, "kmem_cache_alloc", "kmem_cache")
    if cache_position < 0:
        raise MissingTypeError(
            "tracepoint kmem_cache_alloc with its cache",
            "the tracepoint kmem_cache_alloc of this kernel does not name the cache",
        )
    return BpfSource(
        "skb_allocs.c",
        {"kmem_cache": {"name": ["name"], "size": ["size"]}},
        {"ALLOC_CACHE_ARG": cache_position},
        {"skb_alloc": RAW_TRACEPOINT},
        {
            "known_caches": MapType("<u8", CACHE_INFO),
            "skb_alloc_counts": MapType(ALLOC_KEY, "<u8"),
        },
    )


def oom_kills(btf: Btf) -> BpfSource:
    """Processes that the kernel kills for memory."""
    btf.tracepoint_arguments("mark_victim")
    task_position = argument_position(btf, "mark_victim", "task_struct")
    structs = {"task_struct": {"tgid": ["tgid"]}} if task_position >= 0 else {}
    constants = {"OOM_TASK_ARG": task_position}
    controller = enum_or_empty(btf, "cgroup_subsys_id").get("memory_cgrp_id", -1)
    way_to_group = {
        "css_set": {"subsys": ["subsys"]},
        "cgroup_subsys_state": {"cgroup": ["cgroup"]},
        "cgroup": {"kn": ["kn"]},
        "kernfs_node": {"id": ["id"]},
    }
    known = all(
        btf.has_field(name, field) for name, fields in way_to_group.items() for field in fields
    )
    if structs and known and controller >= 0:
        structs["task_struct"]["cgroups"] = ["cgroups"]
        structs |= way_to_group
        constants["OOM_MEMORY_CONTROLLER"] = controller
    return BpfSource(
        "oom_kills.c",
        structs,
        constants,
        {"oom_victim": RAW_TRACEPOINT},
        {"oom_kills": MapType("<u4", OOM_KILL)},
    )
