"""Checks a plan against every limit that was read; says which one is met first, and where.

A constraint that does not hold and has a ``limit`` is a rung: a wall below the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.planning.host import Host
from harness.planning.limits import (
    DESCRIPTORS_PER_CONNECTION,
    OWN_DESCRIPTORS_COUNT,
    TCP_PAGES_PER_HANDSHAKE,
    memory_connections,
    peak_share,
    safe_connections,
    table_connections,
)

if TYPE_CHECKING:
    from harness.planning.plan import Plan

STOPPING_LIMITS = frozenset(
    {"fds_per_process", "file_max", "ephemeral_ports", "epoll_watches", "conntrack"}
)
"""Limits past which no further connection can be made."""

DELAYING_LIMITS = frozenset({"accept_queue", "tcp_mem"})
"""Limits of what is under way at once; past them connects stall and are tried again."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A limit that the run will meet below its target.

    Attributes:
        limit: Name as in the ladder.
        scope: process, port_group, listener or host.
        subject: Of whom: server, client, listener, ports or host.
        capacity_count: What one such subject holds, in connections.
        predicted_connections: Connections of the whole run when it can take no more.
        earliest_connections: Connections at which the first may fail when the load is uneven.
        fix: What avoids it.
    """

    limit: str
    scope: str
    subject: str
    capacity_count: int
    predicted_connections: int
    earliest_connections: int
    fix: str


@dataclass(frozen=True, slots=True)
class Constraint:
    """One thing that was checked.

    Attributes:
        name: What.
        subject: Of whom: server, client, listener, ports or host.
        needed: By the plan at its target, in ``unit``.
        available: On this host, in ``unit``.
        holds: ``needed`` is within ``available``.
        source: Where ``available`` was read.
        limit: Ladder name of the limit that is met when it does not hold; '' when the run is only
            slower, or gets less than was asked for.
    """

    name: str
    subject: str
    needed: int
    available: int
    unit: str
    holds: bool
    source: str
    limit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the planner knows beside the plan.

    Attributes:
        somaxconn_count: Where the run is.
        largest_group_count: Connections of the fullest (source, destination, port) group.
        asked_ports_count: Size of the port range that was asked for.
        enough_workers: Server processes that the target needs.
        enough_clients: Client processes that the target needs.
        enough_sources: Source addresses that the target needs.
    """

    somaxconn_count: int
    largest_group_count: int
    asked_ports_count: int
    enough_workers: int
    enough_clients: int
    enough_sources: int


_Checked = tuple[Constraint, Rung | None]


def check(plan: Plan, host: Host, context: Context) -> tuple[list[Constraint], list[Rung]]:
    """All constraints of a plan, and its rungs: soonest first, those that only delay last."""
    checked = [
        _worker_descriptors(plan, host, context),
        _client_descriptors(plan, host, context),
        _file_max(plan, host),
        _ports(plan, context),
        _port_search(plan, context),
        _port_range(plan, context),
        _memory(plan, host),
        _backlog(plan, context),
        _accept_queue(plan, context),
        _epoll_watches(plan, host),
        _tcp_mem(plan, host),
        _conntrack(plan, host),
    ]
    present = [pair for pair in checked if pair is not None]
    rungs = [rung for constraint, rung in present if rung is not None and not constraint.holds]
    rungs.sort(key=lambda rung: (rung.limit in DELAYING_LIMITS, rung.predicted_connections))
    return [constraint for constraint, _ in present], rungs


def process_count(plan: Plan) -> int:
    """Workers, clients and the acceptor if there is one."""
    return plan.workers + plan.clients + (plan.accept == "handoff")


def _constraint(
    name: str, subject: str, needed: int, available: int, *, unit: str, source: str, limit: str = ""
) -> Constraint:
    return Constraint(name, subject, needed, available, unit, needed <= available, source, limit)


def _worker_descriptors(plan: Plan, host: Host, context: Context) -> _Checked:
    total, workers, capacity = plan.target_connections, plan.workers, plan.worker_capacity_count
    own = plan.worker_nofile_count - capacity
    constraint = _constraint(
        "fds_per_process",
        "server",
        peak_share(total, workers, plan.accept, plan.accept_weights) + own,
        plan.worker_nofile_count,
        unit="descriptors",
        source="RLIMIT_NOFILE",
        limit="fds_per_process",
    )
    even = safe_connections(capacity, workers, plan.accept, plan.accept_weights)
    is_by_chance = plan.accept.startswith("shared") and not plan.accept_weights
    earliest = capacity if is_by_chance else even
    fix = f"--workers {context.enough_workers}"
    if plan.worker_nofile_count < host.nofile_ceiling_count:
        fix += f" or --nofile {host.nofile_ceiling_count}"
    return constraint, Rung(
        "fds_per_process",
        "process",
        "server",
        capacity,
        workers * capacity if workers * capacity < total else even,
        earliest,
        fix,
    )


def _client_descriptors(plan: Plan, host: Host, context: Context) -> _Checked:
    capacity = plan.client_capacity_count
    constraint = _constraint(
        "fds_per_process",
        "client",
        max(plan.client_shares) + OWN_DESCRIPTORS_COUNT,
        plan.client_nofile_count,
        unit="descriptors",
        source="RLIMIT_NOFILE",
        limit="fds_per_process",
    )
    most = plan.clients * capacity
    fix = f"--clients {context.enough_clients}"
    return constraint, Rung("fds_per_process", "process", "client", capacity, most, most, fix)


def _file_max(plan: Plan, host: Host) -> _Checked:
    processes, total = process_count(plan), plan.target_connections
    needed = (
        host.file_used_count
        + processes * OWN_DESCRIPTORS_COUNT
        + total * DESCRIPTORS_PER_CONNECTION
    )
    constraint = _constraint(
        "file_max",
        "host",
        needed,
        host.file_max_count,
        unit="descriptors",
        source="fs.file-max, fs.file-nr",
        limit="file_max",
    )
    most = table_connections(host.file_max_count - host.file_used_count, processes)
    return constraint, Rung(
        "file_max", "host", "host", most, most, most, f"sysctl -w fs.file-max={2 * needed}"
    )


def _ports(plan: Plan, context: Context) -> _Checked:
    constraint = _constraint(
        "ephemeral_ports",
        "ports",
        context.largest_group_count,
        plan.group_capacity_count,
        unit="ports",
        source="net.ipv4.ip_local_port_range",
        limit="ephemeral_ports",
    )
    groups = len(plan.source_addresses)
    if plan.bind == "late":
        groups *= len(plan.destination_ports)
    most = groups * plan.group_capacity_count
    return constraint, Rung(
        "ephemeral_ports",
        "port_group",
        "ports",
        plan.group_capacity_count,
        most,
        most,
        f"--source-addresses {context.enough_sources}",
    )


def _port_search(plan: Plan, context: Context) -> _Checked:
    return _constraint(
        "port_search",
        "ports",
        context.largest_group_count,
        plan.group_limit_count,
        unit="ports",
        source="half of net.ipv4.ip_local_port_range",
    ), None


def _port_range(plan: Plan, context: Context) -> _Checked:
    low, high = plan.port_range
    return _constraint(
        "port_range",
        "ports",
        context.asked_ports_count,
        high - low + 1,
        unit="ports",
        source="net.ipv4.ip_local_port_range",
    ), None


def _memory(plan: Plan, host: Host) -> _Checked:
    source = "MemAvailable"
    if host.memory_room_bytes < host.memory_available_bytes:
        source = f"memory limit of cgroup {host.cgroup.path}"
    constraint = _constraint(
        "memory",
        "host",
        plan.memory_needed_bytes,
        host.memory_room_bytes,
        unit="bytes",
        source=source,
        limit="memory",
    )
    most = memory_connections(host.memory_room_bytes, process_count(plan))
    return constraint, Rung("memory", "host", "host", most, most, most, f"--connections {most}")


def _backlog(plan: Plan, context: Context) -> _Checked:
    return _constraint(
        "backlog",
        "listener",
        plan.backlog_count,
        context.somaxconn_count,
        unit="connects",
        source="net.core.somaxconn",
    ), None


def _accept_queue(plan: Plan, context: Context) -> _Checked:
    queues = plan.workers if plan.accept == "reuseport" else 1
    effective = min(plan.backlog_count, context.somaxconn_count)
    in_flight = min(plan.target_connections, plan.clients * plan.client_in_flight_count)
    constraint = _constraint(
        "accept_queue",
        "listener",
        peak_share(in_flight, queues, plan.accept),
        effective,
        unit="connects",
        source="backlog of listen, net.core.somaxconn",
        limit="accept_queue",
    )
    most = safe_connections(effective, queues, plan.accept)
    if effective < plan.backlog_count:
        fix = f"sysctl -w net.core.somaxconn={constraint.needed}"
    else:
        fix = f"--backlog {constraint.needed}"
    return constraint, Rung("accept_queue", "listener", "listener", effective, most, most, fix)


def _epoll_watches(plan: Plan, host: Host) -> _Checked | None:
    if host.epoll_max_user_watches_count is None:
        return None
    processes = process_count(plan)
    needed = (
        processes * OWN_DESCRIPTORS_COUNT + plan.target_connections * DESCRIPTORS_PER_CONNECTION
    )
    constraint = _constraint(
        "epoll_watches",
        "host",
        needed,
        host.epoll_max_user_watches_count,
        unit="entries",
        source="fs.epoll.max_user_watches",
        limit="epoll_watches",
    )
    most = table_connections(host.epoll_max_user_watches_count, processes)
    fix = f"sysctl -w fs.epoll.max_user_watches={2 * needed}"
    return constraint, Rung("epoll_watches", "host", "host", most, most, most, fix)


def _tcp_mem(plan: Plan, host: Host) -> _Checked | None:
    if host.tcp_mem_pages is None:
        return None
    in_flight = min(plan.target_connections, plan.clients * plan.client_in_flight_count)
    needed = in_flight * TCP_PAGES_PER_HANDSHAKE
    pressure = host.tcp_mem_pages[1]
    constraint = _constraint(
        "tcp_mem",
        "host",
        needed,
        pressure,
        unit="pages",
        source="net.ipv4.tcp_mem (pressure)",
        limit="tcp_mem",
    )
    most = pressure // TCP_PAGES_PER_HANDSHAKE
    fix = f"sysctl -w net.ipv4.tcp_mem='{needed} {2 * needed} {3 * needed}'"
    return constraint, Rung("tcp_mem", "host", "host", most, most, most, fix)


def _conntrack(plan: Plan, host: Host) -> _Checked | None:
    if host.conntrack_max_count is None:
        return None
    used = host.conntrack_used_count or 0
    # A host that tracks has entries of its own; none at all means that no rule asks for it.
    tracked = used > 0 and not plan.own_namespace
    needed = used + plan.target_connections if tracked else 0
    constraint = _constraint(
        "conntrack",
        "host",
        needed,
        host.conntrack_max_count,
        unit="entries",
        source="net.netfilter.nf_conntrack_max" if tracked else "no rule tracks these connections",
        limit="conntrack",
    )
    most = max(0, host.conntrack_max_count - used)
    fix = f"sysctl -w net.netfilter.nf_conntrack_max={2 * needed}"
    return constraint, Rung("conntrack", "host", "host", most, most, most, fix)
