"""How a run is laid out, what was checked, and which limits it will meet: the planner's answer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from harness.planning.port_groups import Group, client_layout


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
