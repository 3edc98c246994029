"""What a user asks the planner for, and what makes no sense on any host."""

from __future__ import annotations

from dataclasses import dataclass

from harness.planning.limits import OWN_DESCRIPTORS_COUNT
from harness.planning.port_groups import LOWEST_PORT
from probes.contract.errors import UsageError

ACCEPT_MODES = ("reuseport", "shared", "shared-exclusive", "handoff")
MAX_CONNECTIONS = 100_000_000
MAX_PROCESSES = 4_096
MAX_SOURCE_ADDRESSES = 65_000
MAX_BACKLOG = 65_535
MAX_WEIGHT = 1_000
MAX_DESTINATION_PORTS = 16


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
