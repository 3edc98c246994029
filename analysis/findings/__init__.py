"""One module per cause: a pure function from signs to findings, with the evidence that proves it.

Each says in its docstring what proves it and what tells it from its neighbours. Severity is left
at ``warning``: which finding stopped the run is decided by ``analysis.verdict.ranking`` over all of
them.
"""

from __future__ import annotations

from collections.abc import Callable

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
)
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

Finder = Callable[[Signs], list[Finding]]

FINDERS: tuple[Finder, ...] = (
    reached.find,
    no_limit_met.find,
    fd_limit_process.find,
    ephemeral_ports_exhausted.find,
    accept_spin.find,
    server_resets_when_full.find,
    worker_crash.find,
    own_limit.find,
    waits_for_slot.find,
    slow_consumers.find,
    message_amplification.find,
    unix_queue_full.find,
    backend_unavailable.find,
    worker_replaced.find,
    runtime_heap_limit.find,
    upgrade_refused.find,
    upgrade_unanswered.find,
    closed_by_server.find,
    full_worker_on_shared_listener.find,
    handshake_cost.find,
    hot_worker_code.find,
    hot_acceptor.find,
    garbage_collection.find,
    worker_blocked.find,
    accept_imbalance.find,
    keepalive_storm.find,
    bind_ports_exhausted.find,
    source_address_missing.find,
    port_search_cost.find,
    cpu_quota.find,
    task_limit.find,
    mapping_limit.find,
    host_cpu_saturated.find,
    client_is_the_limit.find,
    fd_limit_system.find,
    accept_queue_overflow.find,
    syn_backlog_overflow.find,
    conntrack_full.find,
    neighbour_table_full.find,
    softnet_drops.find,
    orphans_or_time_wait.find,
    enobufs.find,
    memory_exhausted.find,
    tcp_memory_pressure.find,
    receive_buffer_full.find,
)
"""Every cause that this version can name. Their order means nothing."""


def find_all(signs: Signs) -> list[Finding]:
    """All findings of a run, unranked; none is believed more than the tables of its evidence."""
    found = [finding for find in FINDERS for finding in find(signs)]
    return [finding.with_doubts(_doubts(signs, finding)) for finding in found]


def _doubts(signs: Signs, finding: Finding) -> tuple[str, ...]:
    return signs.probe_trust.doubts(dict.fromkeys(each.table for each in finding.evidence))
