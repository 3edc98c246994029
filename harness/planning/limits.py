"""What each limit of a host holds, in connections. Pure arithmetic over a ``Host``.

Figures marked [measured] are of kernel 6.18 with both ends on one loopback, within 15 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.planning.host import DEFAULT_PORT_RANGE, Host, TableReading
from probes.contract.limits import HOST_TABLES, LIMITS, accept_queue, fds_per_process
from probes.contract.limits.limit import HostTable, Limit

OWN_DESCRIPTORS_COUNT = 8
"""Descriptors of a fleet process that are no connections: stdio, log, epoll, stop pipe, the first
listener, and a reserve descriptor or the acceptor's channel. A worker is full at its RLIMIT_NOFILE
minus these [measured: 7, with --accept handoff or --at-fd-limit reset 8; a client 6]; each further
destination port costs a worker one listener more."""

SPARE_DESCRIPTORS_COUNT = 24
"""Kept free on top when the planner chooses: files that libraries open in passing."""

KERNEL_BYTES_PER_CONNECTION = 8_300
"""Slab of both ends of an idle loopback connection: TCP, sock_inode_cache, dentry, filp,
eventpoll_epi and others [measured]. Buffers of idle connections hold no page."""

USER_BYTES_PER_CONNECTION = 1_000
"""State of worker and client, record in the live file [measured: below that]."""

PROCESS_BYTES = 4_000_000
"""Private memory of one forked worker or client [measured: 53 share 190 MB]."""

BASE_BYTES = 350_000_000
"""Supervisor, lean parents and the probe process."""

TCP_PAGES_PER_HANDSHAKE = 4
"""Upper bound: request and answer, each charged at both ends in whole pages (net/core/sock.c,
__sk_mem_schedule)."""

BEST_GROUP_COUNT = 10_000
"""Most connections of one (source, destination, port) group that connect still finds quickly.
``__inet_hash_connect`` scans one parity of the range before the other: 19,900 from one source
took 5.7 s, from four 0.7 s [measured]."""

UNEVEN_SIGMA = 5.0
"""SO_REUSEPORT hashes each connection by itself, so a worker's share is binomial; seven workers
had 16.9 to 17.4 thousand of 120,000 [measured], which is two of these."""


def peak_share(connections: int, workers: int, accept: str, weights: Sequence[int] = ()) -> int:
    """Connections that the fullest of ``workers`` must expect.

    Args:
        connections: Of the whole run.
        workers: At least 1.
        accept: ``reuseport`` spreads at random; the others are taken as even, a shared listener
            because a full worker leaves it to its siblings.
        weights: Of the workers of a shared listener; empty: as even.
    """
    if weights:
        return math.ceil(connections * max(weights) / sum(weights))
    mean = connections / workers
    if accept != "reuseport" or workers == 1:
        return math.ceil(mean)
    spread = UNEVEN_SIGMA * math.sqrt(mean * (1 - 1 / workers))
    return min(connections, math.ceil(mean + spread))


def safe_connections(capacity: int, workers: int, accept: str, weights: Sequence[int] = ()) -> int:
    """The most connections at which ``peak_share`` still is within ``capacity`` for each worker."""
    low, high = 0, capacity * workers
    while low < high:
        middle = (low + high + 1) // 2
        if peak_share(middle, workers, accept, weights) <= capacity:
            low = middle
        else:
            high = middle - 1
    return low


def ports_in_range(
    port_range: tuple[int, int], excluded: tuple[tuple[int, int], ...], bound: tuple[int, ...]
) -> int:
    """Local ports that connect surely finds for one (source, destination, port) group.

    In a range of odd size each connect passes over one port of the first parity, another each
    time (``remaining &= ~1U`` in ``__inet_hash_connect``), so the last one is found by luck
    [measured: 10 or 11 of 11].

    Args:
        port_range: Inclusive.
        excluded: ip_local_reserved_ports, inclusive ranges.
        bound: Ports that some socket bound explicitly: connect skips those for every address
            (net/ipv4/inet_hashtables.c, ``tb->fastreuse >= 0``) [measured].
    """
    low, high = port_range
    gone = {port for port in bound if low <= port <= high}
    for first, last in excluded:
        gone.update(range(max(low, first), min(high, last) + 1))
    size = high - low + 1
    return max(0, size - (size % 2 if size > 1 else 0) - len(gone))


def ports_of(
    host: Host, *, own_namespace: bool
) -> tuple[tuple[int, int], tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Range, reserved ranges and listening ports where the run is: a new namespace is empty."""
    if own_namespace:
        return DEFAULT_PORT_RANGE, (), ()
    return host.port_range, host.reserved_ports, host.listening_ports


def memory_bytes(connections: int, processes: int) -> int:
    """Memory that a run needs, kernel and user, probes included."""
    each = KERNEL_BYTES_PER_CONNECTION + USER_BYTES_PER_CONNECTION
    return BASE_BYTES + processes * PROCESS_BYTES + connections * each


def memory_connections(room_bytes: int, processes: int) -> int:
    """Connections that fit in so much memory."""
    each = KERNEL_BYTES_PER_CONNECTION + USER_BYTES_PER_CONNECTION
    return max(0, (room_bytes - BASE_BYTES - processes * PROCESS_BYTES) // each)


def counts_here(table: HostTable, reading: TableReading, *, own_namespace: bool) -> bool:
    """Whether connections of a run count in a table of the host.

    A host that tracks flows has entries of its own; none at all means that no rule asks for it.
    """
    return not table.is_per_namespace or (reading.used_count > 0 and not own_namespace)


def table_connections(table: HostTable, reading: TableReading, processes: int) -> int:
    """Connections that fit in a table of the whole host, beside what processes take of it."""
    free = reading.maximum_count - reading.used_count - processes * table.per_process_count
    return max(0, free // table.per_connection_count)


@dataclass(frozen=True, slots=True)
class HostLimit:
    """One limit of the host, for people.

    Attributes:
        limit: Name as in the ladder.
        value_count: The limit, in ``unit``.
        unit: That of its record (``probes.contract.limits``).
        connections: Most connections of one run under this limit alone; None when it does not
            bound their number.
        note: What the number means here.
        fix: Command that raises it, '' when more processes or addresses do.
    """

    limit: str
    value_count: int
    unit: str
    connections: int | None
    note: str
    fix: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def processes_for(connections: int, nofile: int) -> int:
    """Processes of one side that hold so many connections under this RLIMIT_NOFILE."""
    usable = max(1, nofile - OWN_DESCRIPTORS_COUNT - SPARE_DESCRIPTORS_COUNT)
    return max(1, math.ceil(connections / usable))


def memory_fit(host: Host) -> int:
    """Connections that fit in this host's memory with as few processes as can hold them."""
    room, nofile = host.memory_room_bytes, host.nofile_ceiling_count
    without_processes = memory_connections(room, 2)
    return memory_connections(room, 2 * processes_for(without_processes, nofile))


def _raise_nofile(host: Host) -> str:
    if host.may_raise_nofile:
        return ""
    limit = host.nr_open_count
    if host.is_root:  # root without CAP_SYS_RESOURCE: only who made this container can
        return f"docker run --ulimit nofile={limit}:{limit}, or LimitNOFILE={limit} in the unit"
    return f"sudo prlimit --pid $$ --nofile={limit}:{limit}"


def host_limits(host: Host, *, own_namespace: bool) -> tuple[HostLimit, ...]:
    """What each limit holds when the planner is free to choose, in the ladder's order."""
    nofile = host.nofile_ceiling_count
    memory = memory_fit(host)
    port_range, reserved, bound = ports_of(host, own_namespace=own_namespace)
    ports = ports_in_range(port_range, reserved, bound)
    each = max(0, nofile - OWN_DESCRIPTORS_COUNT)
    limits = [
        HostLimit(
            "fds_per_process",
            nofile,
            fds_per_process.LIMIT.unit,
            None if each > 0 else 0,
            f"RLIMIT_NOFILE; one process holds {each:,} connections, a run has as many processes "
            "as it needs",
            _raise_nofile(host),
        ),
        HostLimit(
            "ephemeral_ports",
            ports,
            "ports",
            None if ports > 0 else 0,
            f"{port_range[0]}-{port_range[1]}, for each source address and destination port; "
            "a run has as many source addresses as it needs",
            "",
        ),
        HostLimit(
            "memory",
            host.memory_room_bytes,
            "bytes",
            memory,
            f"{KERNEL_BYTES_PER_CONNECTION + USER_BYTES_PER_CONNECTION:,} bytes a connection, "
            "kernel and user, both ends",
            "",
        ),
    ]
    if host.tcp_mem_pages is not None:
        limits.append(
            HostLimit(
                "tcp_mem",
                host.tcp_mem_pages[1],
                "pages",
                None,
                "socket buffers before pressure; idle connections hold none",
                "sysctl -w net.ipv4.tcp_mem='{} {} {}'".format(
                    *(2 * n for n in host.tcp_mem_pages)
                ),
            )
        )
    limits.append(
        HostLimit(
            "accept_queue",
            host.somaxconn_count,
            accept_queue.LIMIT.unit,
            None,
            "not yet accepted, per listener (somaxconn)"
            + ("; the run's own namespace sets its own" if own_namespace else ""),
            "" if own_namespace else f"sysctl -w net.core.somaxconn={2 * host.somaxconn_count}",
        )
    )
    tables = (_of_table(host, *each, own_namespace=own_namespace) for each in HOST_TABLES)
    limits += [limit for limit in tables if limit is not None]
    order = list(LIMITS)
    return tuple(sorted(limits, key=lambda limit: order.index(limit.limit)))


def _of_table(
    host: Host, limit: Limit, table: HostTable, *, own_namespace: bool
) -> HostLimit | None:
    """A limit that is one number of the whole host; None where the host has none."""
    reading = host.table(limit.name)
    if reading is None:
        return None
    if not counts_here(table, reading, own_namespace=own_namespace):
        note = "no rule here tracks the run's connections"
        return HostLimit(limit.name, reading.maximum_count, limit.unit, None, note, "")
    connections = table_connections(table, reading, 2)
    processes = 2 * processes_for(connections, host.nofile_ceiling_count)
    is_endless = reading.maximum_count >= _ENDLESS_COUNT
    return HostLimit(
        limit.name,
        reading.maximum_count,
        limit.unit,
        table_connections(table, reading, processes),
        table.note.format(used=f"{reading.used_count:,}"),
        "" if is_endless else f"sysctl -w {table.sysctl}={2 * reading.maximum_count}",
    )


_ENDLESS_COUNT = 1 << 60
"""Linux says "no limit" as LONG_MAX."""
