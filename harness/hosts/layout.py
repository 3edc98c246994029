"""Lays one run over several hosts: who makes how many connections, from where, and to where. Pure.

Each host is planned as a run of its own by ``harness.planning.plan``: the server's host for all
connections, a client host for its share. What is decided here is the shares and what the two sides
must agree on: the ports of the server, and how many connects may be under way at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.hosts.hosts_file import HostEntry, HostsFile
from harness.planning.host import CAP_SYS_RESOURCE, Host
from harness.planning.layout import Plan, Rung
from harness.planning.limits import (
    OWN_DESCRIPTORS_COUNT,
    SPARE_DESCRIPTORS_COUNT,
    memory_connections,
    ports_in_range,
    safe_connections,
)
from harness.planning.plan import make_plan
from harness.planning.port_groups import best_group
from harness.planning.request import MAX_DESTINATION_PORTS, MAX_PROCESSES, PlanRequest
from probes.contract.errors import HostError

_OF_THE_SERVER = frozenset({"server", "listener"})
_OF_THE_CLIENTS = frozenset({"client", "ports"})


@dataclass(frozen=True, slots=True)
class HostPlan:
    """One host's part.

    Attributes:
        entry: The host.
        share: Connections that its clients make, 0 for none.
        plan: Its layout; of a host that only serves, the server's.
        host: Its limits as they are respected.
    """

    entry: HostEntry
    share: int
    plan: Plan
    host: Host

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Walls below the target that are this host's."""
        return self.plan.rungs


@dataclass(frozen=True, slots=True)
class HostsPlan:
    """The layout of a run over hosts, in the order of the file."""

    target_connections: int
    parts: tuple[HostPlan, ...]

    @property
    def server(self) -> HostPlan:
        """The part that serves."""
        return next(part for part in self.parts if part.entry.serves)

    @property
    def loads(self) -> list[HostPlan]:
        """The parts with clients."""
        return [part for part in self.parts if part.share]


def respected(entry: HostEntry, host: Host) -> Host:
    """The host with the limits that the user wants respected."""
    if entry.nofile is None:
        return host
    return replace(
        host,
        nofile_soft_count=min(host.nofile_soft_count, entry.nofile),
        nofile_hard_count=entry.nofile,
        effective_capabilities=host.effective_capabilities & ~(1 << CAP_SYS_RESOURCE),
    )


def capacity_of(entry: HostEntry, host: Host, request: PlanRequest) -> dict[str, int]:
    """Connections that the clients of a host can hold, by limit.

    Args:
        entry: The host.
        host: Its limits, as respected.
        request: What the user fixed for all hosts.
    """
    ports = ports_in_range(host.port_range, host.reserved_ports, host.listening_ports)
    destinations = request.destination_ports or MAX_DESTINATION_PORTS
    each = host.nofile_ceiling_count - OWN_DESCRIPTORS_COUNT - SPARE_DESCRIPTORS_COUNT
    processes = entry.clients or request.clients or MAX_PROCESSES
    return {
        "ephemeral_ports": ports * len(entry.source_addresses) * destinations,
        "fds_per_process": max(0, each) * processes,
        "memory": memory_connections(host.memory_room_bytes, min(processes, host.cpu_count)),
    }


def shares_of(
    total: int, capacities: Sequence[int], fixed: Sequence[int | None]
) -> tuple[int, ...]:
    """Connections of each client host: even, but none above what it can hold while others can.

    Args:
        total: Of the run.
        capacities: Of each host.
        fixed: Shares that the user decided, None for the planner's.

    Raises:
        HostError: The user's shares are not those of the run.
    """
    shares = [share or 0 for share in fixed]
    left = total - sum(shares)
    free = [index for index, share in enumerate(fixed) if share is None]
    if left < 0 or (left and not free):
        raise HostError(
            f"the hosts' own connections are {sum(shares):,}, and the run has {total:,}",
            fix=f"--connections {sum(shares)}",
        )
    while free and left:
        even = left // len(free)
        full = [index for index in free if capacities[index] <= even]
        if not full or len(full) == len(free):
            for place, index in enumerate(free):
                shares[index] += left // len(free) + (place < left % len(free))
            break
        for index in full:
            shares[index] = capacities[index]
            left -= capacities[index]
        free = [index for index in free if index not in full]
    return tuple(shares)


def lay_out(request: PlanRequest, hosts: HostsFile, facts: Mapping[str, Host]) -> HostsPlan:
    """The layout.

    Args:
        request: What the user asked for; of addresses and namespaces nothing is taken.
        hosts: The hosts.
        facts: What each of them read of itself, by name.

    Raises:
        HostError: A host cannot take its part; the message names it.
    """
    request = replace(request, own_namespace=False, sysctls=())
    seen = {entry.name: respected(entry, facts[entry.name]) for entry in hosts.hosts}
    loading = [entry for entry in hosts.hosts if entry.loads]
    limits = [capacity_of(entry, seen[entry.name], request) for entry in loading]
    shares = shares_of(
        request.connections,
        [min(each.values()) for each in limits],
        [entry.connections for entry in loading],
    )
    share_of = {entry.name: share for entry, share in zip(loading, shares, strict=True)}
    ports_count = request.destination_ports or _ports_needed(loading, shares, seen)
    server = hosts.server
    serving = _server_plan(request, server, seen[server.name], ports_count)
    processes = 0
    parts: list[HostPlan] = []
    for entry in hosts.hosts:
        share, host = share_of.get(entry.name, 0), seen[entry.name]
        plan = serving
        if share:
            plan = _client_plan(request, entry, host, share, serving)
            processes += plan.clients
        elif not entry.serves:
            continue
        if entry.serves and share:
            plan = _both(serving, plan)
        parts.append(HostPlan(entry, share, plan, host))
    room = safe_connections(serving.backlog_count, _queues(serving), serving.accept)
    most = max(1, room // max(1, processes))
    return HostsPlan(
        request.connections,
        tuple(
            replace(part, plan=replace(part.plan, client_in_flight_count=in_flight))
            for part in parts
            for in_flight in [min(part.plan.client_in_flight_count, most)]
        ),
    )


def _queues(plan: Plan) -> int:
    return plan.workers if plan.accept == "reuseport" else 1


def _ports_needed(
    loading: Sequence[HostEntry], shares: Sequence[int], seen: Mapping[str, Host]
) -> int:
    needed = 1
    for entry, share in zip(loading, shares, strict=True):
        host = seen[entry.name]
        free = ports_in_range(host.port_range, host.reserved_ports, host.listening_ports)
        each = len(entry.source_addresses) * best_group(max(1, free))
        needed = max(needed, math.ceil(share / each))
    return min(MAX_DESTINATION_PORTS, needed)


def _planned(asked: PlanRequest, entry: HostEntry, host: Host) -> Plan:
    """The plan of one host; where it cannot, the error has its name."""
    try:
        return make_plan(asked, host)
    except HostError as error:
        raise HostError(f"host {entry.name}: {error.message}", fix=error.fix) from None


def _server_plan(request: PlanRequest, entry: HostEntry, host: Host, ports_count: int) -> Plan:
    asked = replace(
        request,
        workers=entry.workers or request.workers,
        clients=None,
        source_addresses=None,
        destination_ports=ports_count,
        port_range=None,
    )
    plan = _planned(asked, entry, host)
    return replace(
        plan,
        server_address=entry.address,
        clients=0,
        client_shares=(),
        source_addresses=(),
        constraints=tuple(c for c in plan.constraints if c.subject not in _OF_THE_CLIENTS),
        rungs=tuple(r for r in plan.rungs if r.subject not in _OF_THE_CLIENTS),
        notes=(),
    )


def _client_plan(
    request: PlanRequest, entry: HostEntry, host: Host, share: int, serving: Plan
) -> Plan:
    asked = replace(
        request,
        connections=share,
        workers=1,
        clients=entry.clients or request.clients,
        nofile=None,
        accept="shared",
        accept_weights=(),
        source_addresses=len(entry.source_addresses),
        destination_ports=len(serving.destination_ports),
    )
    plan = _planned(asked, entry, host)
    return replace(
        plan,
        server_address=serving.server_address,
        destination_ports=serving.destination_ports,
        source_addresses=entry.source_addresses,
        accept="foreign",
        constraints=tuple(c for c in plan.constraints if c.subject not in _OF_THE_SERVER),
        rungs=tuple(r for r in plan.rungs if r.subject not in _OF_THE_SERVER),
        notes=(),
    )


def _both(serving: Plan, loading: Plan) -> Plan:
    """A host that serves and loads: the server's plan with the clients of the other."""
    return replace(
        serving,
        clients=loading.clients,
        client_nofile_count=loading.client_nofile_count,
        client_capacity_count=loading.client_capacity_count,
        client_shares=loading.client_shares,
        client_in_flight_count=loading.client_in_flight_count,
        source_addresses=loading.source_addresses,
        port_range=loading.port_range,
        port_range_by=loading.port_range_by,
        group_capacity_count=loading.group_capacity_count,
        group_limit_count=loading.group_limit_count,
        constraints=(*serving.constraints, *loading.constraints),
        rungs=(*serving.rungs, *loading.rungs),
    )
