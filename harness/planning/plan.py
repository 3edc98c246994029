"""Decides how a run is laid out: processes, descriptors, addresses, ports. Pure.

What the user fixes is kept. Where that makes a limit bind below the target, the plan says so in
advance (``Plan.rungs``) and the run is still made, since meeting the wall is often the point. Only
what cannot be started, or would take the host's last memory, is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.planning import checks as plan_checks
from harness.planning.checks import Constraint, Rung
from harness.planning.host import DEFAULT_PORT_RANGE, Host
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
    LOWEST_PORT,
    Group,
    best_group,
    client_layout,
    groups_needed,
    largest_group,
    loopback_address,
)
from harness.planning.port_groups import destination_ports as choose_ports
from probes.contract.errors import HostError, UsageError

ACCEPT_MODES = ("reuseport", "shared", "shared-exclusive", "handoff")
MAX_CONNECTIONS = 100_000_000
MAX_PROCESSES = 4_096
MAX_SOURCE_ADDRESSES = 65_000
MAX_BACKLOG = 65_535
MAX_WEIGHT = 1_000

SERVER_ADDRESS = "127.0.0.1"
FEW_SOURCE_ADDRESSES = 250
"""So many source addresses are used before a second destination port is."""
MAX_DESTINATION_PORTS = 16

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What the user asked for; None is "decide for me".

    Attributes:
        connections: Target, 1 to 100,000,000.
        workers: Server processes.
        clients: Client processes.
        nofile: RLIMIT_NOFILE of the server workers.
        accept: reuseport, shared, shared-exclusive or handoff.
        accept_weights: In which proportion the workers of a shared listener take connections, one
            each; empty for whoever is first.
        source_addresses: Addresses of 127/8 that the clients connect from.
        destination_ports: Ports that the server listens on.
        port_range: Local ports of the clients, inclusive.
        bind: ``late`` leaves the local port to connect (IP_BIND_ADDRESS_NO_PORT, ip(7)); ``early``
            takes it at bind, and so for all destinations.
        backlog: Argument of listen.
        sysctls: Names and values that the user wants in the run's own namespace; they win over
            what the planner writes there.
        own_namespace: The run has a network namespace of its own: its port range and somaxconn are
            private and written by the run, and no rule tracks its connections.
        force: Also plan what does not fit into memory.

    Raises:
        UsageError: A value makes no sense on any host.
    """

    connections: int
    workers: int | None = None
    clients: int | None = None
    nofile: int | None = None
    accept: str = "reuseport"
    accept_weights: tuple[int, ...] = ()
    source_addresses: int | None = None
    destination_ports: int | None = None
    port_range: tuple[int, int] | None = None
    bind: str = "late"
    backlog: int | None = None
    sysctls: tuple[tuple[str, str], ...] = ()
    own_namespace: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        _within("--connections", self.connections, 1, MAX_CONNECTIONS)
        _within("--workers", self.workers, 1, MAX_PROCESSES)
        _within("--clients", self.clients, 1, MAX_PROCESSES)
        _within("--nofile", self.nofile, OWN_DESCRIPTORS_COUNT + 1, 1 << 30)
        _within("--source-addresses", self.source_addresses, 1, MAX_SOURCE_ADDRESSES)
        _within("--destination-ports", self.destination_ports, 1, MAX_DESTINATION_PORTS)
        _within("--backlog", self.backlog, 1, MAX_BACKLOG)
        if self.accept not in ACCEPT_MODES:
            raise UsageError(
                f"--accept {self.accept!r} is not a way to accept",
                fix=f"one of: {', '.join(ACCEPT_MODES)}",
            )
        _check_weights(self.accept_weights, self.accept, self.workers)
        if self.sysctls and not self.own_namespace:
            raise UsageError(
                f"--sysctl {self.sysctls[0][0]} needs a network namespace of the run's own",
                fix="run as root and without --host-network, or set it on the host: "
                f"sysctl -w {self.sysctls[0][0]}='{self.sysctls[0][1]}'",
            )
        if self.port_range is not None:
            low, high = self.port_range
            if not LOWEST_PORT <= low <= high <= 65_535:
                raise UsageError(
                    f"--port-range {low}-{high} is no range of unprivileged ports",
                    fix=f"LO-HI with {LOWEST_PORT} <= LO <= HI <= 65535, e.g. 32768-60999",
                )


def _check_weights(weights: tuple[int, ...], accept: str, workers: int | None) -> None:
    if not weights:
        return
    text = ",".join(map(str, weights))
    if accept != "shared":
        raise UsageError(
            f"--accept-weights {text} is for workers that share one listener, not for "
            f"--accept {accept}",
            fix="--accept shared, or leave --accept-weights away",
        )
    if len(weights) != workers:
        raise UsageError(
            f"--accept-weights {text} has {len(weights)} weights for {workers or 'as yet unknown'} "
            "workers",
            fix=f"--workers {len(weights)}",
        )
    for weight in weights:
        _within("--accept-weights", weight, 1, MAX_WEIGHT)


def _within(option: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise UsageError(
            f"{option} {value:,} is not between {low:,} and {high:,}",
            fix=f"{option} {low if value < low else high}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The layout of a run.

    Attributes:
        worker_capacity_count: Connections that one worker can hold.
        client_capacity_count: Connections that one client can hold.
        client_shares: Connections of each client; their sum is the target.
        client_in_flight_count: Most connects one client should have under way.
        port_range: Local ports that connect will choose from, inclusive.
        port_range_by: Who makes it so: ``namespace`` (sysctls of the run's own), ``socket``
            (IP_LOCAL_PORT_RANGE on each socket) or ``host`` (it is so already).
        group_capacity_count: Connections that one (source, destination, port) group can hold.
        group_limit_count: Connections of one group that connect still finds quickly.
        backlog_count: Argument of listen.
        accept_weights: See PlanRequest.
        bind: late: each group has the range for itself; early: the groups of a source share it.
        memory_needed_bytes: Kernel and user, at the target.
        sysctls: What the run writes in its own namespace, by path below /proc/sys, as
            ``netns.create`` takes them; empty without one.
        rungs: Limits that will be met below the target, soonest first; those that only delay
            (accept queue, TCP memory) come last.
        constraints: Everything that was checked.
        notes: What else a person should know.
        fixed: Fields of PlanRequest that the user decided; the others are the planner's own, which
            it decides anew for another target.
    """

    target_connections: int
    workers: int
    clients: int
    worker_nofile_count: int
    client_nofile_count: int
    worker_capacity_count: int
    client_capacity_count: int
    client_shares: tuple[int, ...]
    client_in_flight_count: int
    server_address: str
    source_addresses: tuple[str, ...]
    destination_ports: tuple[int, ...]
    port_range: tuple[int, int]
    port_range_by: str
    group_capacity_count: int
    group_limit_count: int
    backlog_count: int
    accept: str
    own_namespace: bool
    memory_needed_bytes: int
    sysctls: dict[str, str]
    bind: str = "late"
    accept_weights: tuple[int, ...] = ()
    rungs: tuple[Rung, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    notes: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the manifest's ``plan``."""
        as_json: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return as_json

    def client_groups(self, client_index: int) -> tuple[Group, ...]:
        """How one client's connections are laid over source addresses and destination ports.

        The counts sum to the client's share, also when that is more than the ports hold: then the
        wall is met. Take from the groups in turn, in proportion to their counts.

        Args:
            client_index: 0 to ``clients`` - 1.
        """
        ports = self.destination_ports
        return tuple(
            Group(self.source_addresses[group // len(ports)], ports[group % len(ports)], count)
            for group, count in client_layout(
                self.client_shares,
                len(self.source_addresses) * len(ports),
                self.group_limit_count,
                client_index,
            )
        )


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
