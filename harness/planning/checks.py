"""Checks a plan against every limit that was read; says which one is met first, and where.

A constraint that does not hold and has a ``limit`` is a rung: a wall below the target.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.planning.host import Host
from harness.planning.layout import Constraint, Plan, Rung
from harness.planning.limits import (
    OWN_DESCRIPTORS_COUNT,
    TCP_PAGES_PER_HANDSHAKE,
    counts_here,
    memory_connections,
    peak_share,
    safe_connections,
    table_connections,
)
from probes.contract.limits import HOST_TABLES, accept_queue, fds_per_process, memory, names_of
from probes.contract.limits.limit import Bound, HostTable, Limit

STOPPING_LIMITS = names_of(Bound.STOPS) - {memory.LIMIT.name}
"""Limits past which no further connection can be made; for memory no run is begun at all."""

DELAYING_LIMITS = names_of(Bound.DELAYS)
"""Limits of what is under way at once; past them connects stall and are tried again."""


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
        _ports(plan, context),
        _port_search(plan, context),
        _port_range(plan, context),
        _memory(plan, host),
        _backlog(plan, context),
        _accept_queue(plan, context),
        _tcp_mem(plan, host),
        *(_host_table(plan, host, limit, table) for limit, table in HOST_TABLES),
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
        unit=fds_per_process.LIMIT.unit,
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
        unit=fds_per_process.LIMIT.unit,
        source="RLIMIT_NOFILE",
        limit="fds_per_process",
    )
    most = plan.clients * capacity
    fix = f"--clients {context.enough_clients}"
    return constraint, Rung("fds_per_process", "process", "client", capacity, most, most, fix)


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
        unit=accept_queue.LIMIT.unit,
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
        unit=accept_queue.LIMIT.unit,
        source="backlog of listen, net.core.somaxconn",
        limit="accept_queue",
    )
    most = safe_connections(effective, queues, plan.accept)
    if effective < plan.backlog_count:
        fix = f"sysctl -w net.core.somaxconn={constraint.needed}"
    else:
        fix = f"--backlog {constraint.needed}"
    return constraint, Rung("accept_queue", "listener", "listener", effective, most, most, fix)


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


def _host_table(plan: Plan, host: Host, limit: Limit, table: HostTable) -> _Checked | None:
    reading = host.table(limit.name)
    if reading is None:
        return None
    counts = counts_here(table, reading, own_namespace=plan.own_namespace)
    processes = process_count(plan)
    needed = (
        reading.used_count
        + processes * table.per_process_count
        + plan.target_connections * table.per_connection_count
    )
    constraint = _constraint(
        limit.name,
        "host",
        needed if counts else 0,
        reading.maximum_count,
        unit=limit.unit,
        source=limit.source if counts else "no rule tracks these connections",
        limit=limit.name,
    )
    most = table_connections(table, reading, processes)
    fix = f"sysctl -w {table.sysctl}={2 * needed}"
    return constraint, Rung(limit.name, "host", "host", most, most, most, fix)
