"""Every limit that is planned with, looked at and predicted: one module each, one line here."""

from __future__ import annotations

from probes.contract.limits import (
    accept_queue,
    conntrack,
    cpu_host,
    cpu_worker,
    ephemeral_ports,
    epoll_watches,
    fds_per_process,
    file_max,
    memory,
    tcp_mem,
)
from probes.contract.limits.limit import Bound, HostTable, Limit, Sampled

LIMITS: dict[str, Limit] = {
    limit.name: limit
    for limit in (
        fds_per_process.LIMIT,
        file_max.LIMIT,
        ephemeral_ports.LIMIT,
        memory.LIMIT,
        epoll_watches.LIMIT,
        tcp_mem.LIMIT,
        accept_queue.LIMIT,
        conntrack.LIMIT,
        cpu_worker.LIMIT,
        cpu_host.LIMIT,
    )
}
"""By name, in the order in which the doctor tells them."""

HOST_TABLES: tuple[tuple[Limit, HostTable], ...] = tuple(
    (limit, limit.table) for limit in LIMITS.values() if limit.table is not None
)
"""Those that are one number of the whole host, and how it is read."""


SAMPLED: tuple[tuple[Limit, Sampled], ...] = tuple(
    (limit, table.sampled) for limit, table in HOST_TABLES if table.sampled is not None
)
"""Those of them whose use is sampled in columns of their own."""


def names_of(bound: Bound) -> frozenset[str]:
    """Limits that do so to the next connection."""
    return frozenset(name for name, limit in LIMITS.items() if limit.bound is bound)
