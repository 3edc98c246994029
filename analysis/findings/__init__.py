"""One module per cause: what the catalogue says of it, and a pure function from signs to findings.

Each says in its docstring what proves it and what tells it from its neighbours. Severity is left
at ``warning``: which finding stopped the run is decided by ``analysis.verdict.ranking`` over all of
them.
"""

from __future__ import annotations

from typing import Protocol

from analysis.causes import Cause, Effect
from analysis.evidence import Finding
from analysis.findings import no_limit_met, reached
from analysis.findings.cpu import (
    accept_imbalance,
    client_is_the_limit,
    cpu_quota,
    handshake_cost,
    host_cpu_saturated,
    hot_acceptor,
    hot_worker_code,
    keepalive_storm,
    message_amplification,
    worker_blocked,
)
from analysis.findings.descriptors import (
    accept_spin,
    fd_limit_process,
    fd_limit_system,
    full_worker_on_shared_listener,
    server_resets_when_full,
    sockets_left_open,
)
from analysis.findings.hosts import host_lost
from analysis.findings.memory import (
    enobufs,
    garbage_collection,
    mapping_limit,
    memory_exhausted,
    receive_buffer_full,
    runtime_heap_limit,
    slow_consumers,
    tcp_memory_pressure,
)
from analysis.findings.ports import (
    bind_ports_exhausted,
    ephemeral_ports_exhausted,
    port_search_cost,
    source_address_missing,
)
from analysis.findings.queues import (
    accept_queue_overflow,
    conntrack_full,
    neighbour_table_full,
    orphans_or_time_wait,
    queue_left_standing,
    softnet_drops,
    syn_backlog_overflow,
    unix_queue_full,
)
from analysis.findings.server import (
    backend_unavailable,
    closed_by_server,
    own_limit,
    task_limit,
    upgrade_refused,
    upgrade_unanswered,
    waits_for_slot,
    worker_crash,
    worker_replaced,
)
from analysis.signs.signs import Signs


class CauseModule(Protocol):
    """What a module of a cause has."""

    CAUSE: Cause

    def find(self, signs: Signs) -> list[Finding]:
        """What the run shows of it, with evidence; nothing where it does not."""


MODULES: tuple[CauseModule, ...] = (
    reached,
    no_limit_met,
    host_lost,
    fd_limit_process,
    fd_limit_system,
    accept_spin,
    server_resets_when_full,
    full_worker_on_shared_listener,
    sockets_left_open,
    own_limit,
    waits_for_slot,
    backend_unavailable,
    worker_crash,
    worker_replaced,
    task_limit,
    upgrade_refused,
    upgrade_unanswered,
    closed_by_server,
    cpu_quota,
    worker_blocked,
    garbage_collection,
    hot_worker_code,
    handshake_cost,
    message_amplification,
    keepalive_storm,
    hot_acceptor,
    accept_imbalance,
    client_is_the_limit,
    host_cpu_saturated,
    runtime_heap_limit,
    slow_consumers,
    memory_exhausted,
    mapping_limit,
    enobufs,
    tcp_memory_pressure,
    receive_buffer_full,
    ephemeral_ports_exhausted,
    bind_ports_exhausted,
    source_address_missing,
    port_search_cost,
    queue_left_standing,
    accept_queue_overflow,
    syn_backlog_overflow,
    unix_queue_full,
    conntrack_full,
    neighbour_table_full,
    softnet_drops,
    orphans_or_time_wait,
)
"""Every cause that this version can name; of two with one effect the first is the likelier origin.
"""

CATALOGUE: dict[str, Cause] = {module.CAUSE.id: module.CAUSE for module in MODULES}
"""Every cause by its id."""


def origins_of(cause: Cause) -> tuple[str, ...]:
    """Ids of what can bring a cause about, the likeliest first."""
    return tuple(
        each
        for origin in cause.follows_from
        for each in (_with_effect(origin) if isinstance(origin, Effect) else (origin,))
    )


def _with_effect(effect: Effect) -> tuple[str, ...]:
    return tuple(cause.id for cause in CATALOGUE.values() if cause.effect is effect)


def find_all(signs: Signs) -> list[Finding]:
    """All findings of a run, unranked; none is believed more than the tables of its evidence."""
    found = [finding for module in MODULES for finding in module.find(signs)]
    return [finding.with_doubts(_doubts(signs, finding)) for finding in found]


def _doubts(signs: Signs, finding: Finding) -> tuple[str, ...]:
    return signs.probe_trust.doubts(dict.fromkeys(each.table for each in finding.evidence))
