"""Decides how a run is laid out: processes, descriptors, addresses, ports. Pure.

What the user fixes is kept. Where that makes a limit bind below the target, the plan says so in
advance (``Plan.rungs``) and the run is still made, since meeting the wall is often the point. Only
what cannot be started, or would take the host's last memory, is refused.
"""

from __future__ import annotations

import math
from dataclasses import replace

from harness.planning import checks as plan_checks
from harness.planning.host import DEFAULT_PORT_RANGE, Host
from harness.planning.layout import Plan
from harness.planning.limits import (
    OWN_DESCRIPTORS_COUNT,
    SPARE_DESCRIPTORS_COUNT,
    memory_bytes,
    memory_connections,
    memory_fit,
    peak_share,
    ports_in_range,
    ports_of,
    processes_for,
    safe_connections,
)
from harness.planning.notes import plan_notes
from harness.planning.port_groups import (
    best_group,
    groups_needed,
    largest_group,
    loopback_address,
)
from harness.planning.port_groups import destination_ports as choose_ports
from harness.planning.request import (
    MAX_BACKLOG,
    MAX_DESTINATION_PORTS,
    MAX_PROCESSES,
    MAX_SOURCE_ADDRESSES,
    PlanRequest,
)
from probes.contract.errors import HostError

SERVER_ADDRESS = "127.0.0.1"
FEW_SOURCE_ADDRESSES = 250
"""So many source addresses are used before a second destination port is."""

LAYOUT = (
    *("workers", "clients", "nofile", "source_addresses", "destination_ports", "port_range"),
    "accept_weights",
)
"""Fields of PlanRequest that decide how many connections a layout can hold."""
MIN_SHARE_COUNT = 1_000
"""Fewer connections than this do not deserve a further process."""
IN_FLIGHT_COUNT = 256
"""Connects that one client has under way, when the accept queues have room for them."""
DEFAULT_BACKLOG = 4_096
SOCKET_PORT_RANGE_SINCE = (6, 3)
"""Linux version with IP_LOCAL_PORT_RANGE (ip(7))."""
MEMORY_TOLERANCE = 1.15
"""The memory figures are good to 15 %: refuse only what is certainly too much."""


def make_plan(request: PlanRequest, host: Host) -> Plan:
    """Lays out a run on a host.

    Raises:
        HostError: The run cannot be started here, or would take more memory than there is.
    """
    total, accept = request.connections, request.accept
    base = max(1, min(host.cpu_count, total // MIN_SHARE_COUNT))
    client_nofile = _nofile(host, math.ceil(total / (request.clients or base)))
    enough_clients = max(base, processes_for(total, client_nofile))
    clients = request.clients or min(MAX_PROCESSES, enough_clients)
    shares = tuple(total // clients + (index < total % clients) for index in range(clients))

    port_range, port_range_by = _port_range(request, host)
    _, reserved, listening = ports_of(host, own_namespace=request.own_namespace)
    free_ports = ports_in_range(port_range, reserved, listening)
    if free_ports < 1:
        raise HostError(
            f"no local port is free in {port_range[0]}-{port_range[1]}",
            fix="choose another --port-range LO-HI, or shorten net.ipv4.ip_local_reserved_ports",
        )
    ports_count = request.destination_ports or 1
    if request.source_addresses is None and request.destination_ports is None:
        groups = groups_needed(shares, best_group(free_ports))
        ports_count = min(MAX_DESTINATION_PORTS, math.ceil(groups / FEW_SOURCE_ADDRESSES))
    destination_ports = choose_ports(ports_count, port_range, listening)
    bound = (*listening, *destination_ports)
    group_capacity = max(1, ports_in_range(port_range, reserved, bound))
    group_limit = best_group(group_capacity)
    # Groups of one source share its ports when they are taken at bind.
    own_range_count = 1 if request.bind == "early" else len(destination_ports)
    enough_sources = math.ceil(groups_needed(shares, group_limit) / own_range_count)
    sources = request.source_addresses or min(MAX_SOURCE_ADDRESSES, enough_sources)

    own = OWN_DESCRIPTORS_COUNT + len(destination_ports) - 1
    worker_nofile = _worker_nofile(request, host, base, own)
    _require_room(request, client_nofile - OWN_DESCRIPTORS_COUNT, worker_nofile - own)
    enough_workers = _enough_workers(total, accept, base, worker_nofile - own)
    workers = request.workers or enough_workers
    backlog, somaxconn, in_flight = _backlog(request, host, clients, workers)
    low, high = port_range
    plan = Plan(
        target_connections=total,
        workers=workers,
        clients=clients,
        worker_nofile_count=worker_nofile,
        client_nofile_count=client_nofile,
        worker_capacity_count=worker_nofile - own,
        client_capacity_count=client_nofile - OWN_DESCRIPTORS_COUNT,
        client_shares=shares,
        client_in_flight_count=in_flight,
        server_address=SERVER_ADDRESS,
        source_addresses=tuple(loopback_address(index) for index in range(sources)),
        destination_ports=destination_ports,
        port_range=port_range,
        port_range_by=port_range_by,
        group_capacity_count=group_capacity,
        group_limit_count=group_limit,
        backlog_count=backlog,
        accept=accept,
        own_namespace=request.own_namespace,
        memory_needed_bytes=memory_bytes(total, workers + clients + (accept == "handoff")),
        sysctls={
            "net/ipv4/ip_local_port_range": f"{low} {high}",
            "net/core/somaxconn": str(somaxconn),
            **{name.replace(".", "/"): value for name, value in request.sysctls},
        }
        if request.own_namespace
        else {},
        bind=request.bind,
        accept_weights=request.accept_weights,
        fixed=tuple(name for name in LAYOUT if getattr(request, name)),
    )
    asked_low, asked_high = request.port_range or port_range
    constraints, rungs = plan_checks.check(
        plan,
        host,
        plan_checks.Context(
            somaxconn_count=somaxconn,
            largest_group_count=largest_group(shares, sources * own_range_count, group_limit),
            asked_ports_count=asked_high - asked_low + 1,
            enough_workers=enough_workers,
            enough_clients=enough_clients,
            enough_sources=enough_sources,
        ),
    )
    plan = replace(plan, constraints=tuple(constraints), rungs=tuple(rungs))
    if not request.force:
        _refuse_harm(plan, host)
    return replace(plan, notes=tuple(plan_notes(plan, request, host)))


def _nofile(host: Host, share: int) -> int:
    """The hard limit; more only when one share needs it and the process may."""
    needed = share + OWN_DESCRIPTORS_COUNT + SPARE_DESCRIPTORS_COUNT
    return host.nofile_hard_count if needed <= host.nofile_hard_count else host.nofile_ceiling_count


def _worker_nofile(request: PlanRequest, host: Host, base: int, own: int) -> int:
    if request.nofile is None:
        share = peak_share(
            request.connections, request.workers or base, request.accept, request.accept_weights
        )
        return _nofile(host, share + own - OWN_DESCRIPTORS_COUNT)
    ceiling = host.nofile_ceiling_count
    if request.nofile > ceiling:
        raise HostError(
            f"--nofile {request.nofile:,} is above {ceiling:,}, the most this process may set",
            fix=f"--nofile {ceiling}, or raise the hard limit as root before the start: "
            f"ulimit -Hn {request.nofile}",
        )
    return request.nofile


def _require_room(request: PlanRequest, client_capacity: int, worker_capacity: int) -> None:
    if client_capacity >= 1 and worker_capacity >= 1:
        return
    where = "the hard limit" if request.nofile is None or client_capacity < 1 else "--nofile"
    short = 1 - min(client_capacity, worker_capacity)
    raise HostError(
        f"RLIMIT_NOFILE ({where}) is {short:,} too small for the descriptors that a process has "
        "of its own and one connection",
        fix="ulimit -Hn 20000 as root before the start"
        if where != "--nofile"
        else "a larger --nofile, or none",
    )


def _enough_workers(total: int, accept: str, base: int, capacity: int) -> int:
    usable = max(1, capacity - SPARE_DESCRIPTORS_COUNT)
    workers = max(base, math.ceil(total / usable))
    while workers < MAX_PROCESSES and peak_share(total, workers, accept) > usable:
        workers += 1
    return min(workers, MAX_PROCESSES)


def _port_range(request: PlanRequest, host: Host) -> tuple[tuple[int, int], str]:
    """The effective range, and who makes it so."""
    asked = request.port_range
    if request.own_namespace:
        return asked or DEFAULT_PORT_RANGE, "namespace"
    if asked is None or host.kernel_version < SOCKET_PORT_RANGE_SINCE:
        return host.port_range, "host"
    both = max(asked[0], host.port_range[0]), min(asked[1], host.port_range[1])
    if both[0] > both[1]:
        raise HostError(
            f"--port-range {asked[0]}-{asked[1]} is outside the host's "
            f"{host.port_range[0]}-{host.port_range[1]}, and a socket can only narrow that",
            fix="run as root (the run then has a network namespace of its own), or: "
            f"sysctl -w net.ipv4.ip_local_port_range='{asked[0]} {asked[1]}'",
        )
    return both, "host" if both == host.port_range else "socket"


def _backlog(request: PlanRequest, host: Host, clients: int, workers: int) -> tuple[int, int, int]:
    """Backlog, somaxconn where the run is, and the connects that one client has under way."""
    queues = workers if request.accept == "reuseport" else 1
    in_flight = min(request.connections, clients * IN_FLIGHT_COUNT)
    wanted = max(DEFAULT_BACKLOG, peak_share(in_flight, queues, request.accept))
    somaxconn = host.somaxconn_count
    if request.own_namespace:
        somaxconn = max(DEFAULT_BACKLOG, request.backlog or min(MAX_BACKLOG, wanted))
    if request.backlog is not None:
        return request.backlog, somaxconn, IN_FLIGHT_COUNT
    backlog = min(wanted, somaxconn, MAX_BACKLOG)
    room = safe_connections(backlog, queues, request.accept) // clients
    return backlog, somaxconn, max(1, min(IN_FLIGHT_COUNT, room))


def _refuse_harm(plan: Plan, host: Host) -> None:
    """Refuses what would take the last memory, unless another wall stops the run before."""
    reach = min(
        (r.predicted_connections for r in plan.rungs if r.limit in plan_checks.STOPPING_LIMITS),
        default=plan.target_connections,
    )
    processes = plan_checks.process_count(plan)
    needed, room = memory_bytes(reach, processes), host.memory_room_bytes
    if needed <= room * MEMORY_TOLERANCE:
        return
    fits = memory_connections(room, processes) or memory_fit(host)
    raise HostError(
        f"{reach:,} connections in {processes:,} processes need about {needed / 1e9:,.1f} GB of "
        f"memory, {room / 1e9:,.1f} GB can be taken here",
        fix=f"--connections {fits}" if fits else "free memory or raise the cgroup's memory limit",
    )
