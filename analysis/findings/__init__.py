"""One module per cause: a pure function from signs to findings, with the evidence that proves it.

Each says in its docstring what proves it and what tells it from its neighbours. Severity is left
at ``warning``: which finding stopped the run is decided by ``analysis.ranking`` over all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from analysis.evidence import Finding
from analysis.findings import (
    accept_spin,
    bind_ports_exhausted,
    client_is_the_limit,
    ephemeral_ports_exhausted,
    fd_limit_process,
    fd_limit_system,
    host_cpu_saturated,
    hot_worker_code,
    keepalive_storm,
    port_search_cost,
    reached,
    server_resets_when_full,
    source_address_missing,
    upgrade_refused,
    upgrade_unanswered,
    worker_crash,
)
from analysis.signs import Signs

Finder = Callable[[Signs], list[Finding]]

FINDERS: tuple[Finder, ...] = (
    reached.find,
    fd_limit_process.find,
    ephemeral_ports_exhausted.find,
    accept_spin.find,
    server_resets_when_full.find,
    worker_crash.find,
    upgrade_refused.find,
    upgrade_unanswered.find,
    hot_worker_code.find,
    keepalive_storm.find,
    bind_ports_exhausted.find,
    source_address_missing.find,
    port_search_cost.find,
    host_cpu_saturated.find,
    client_is_the_limit.find,
    fd_limit_system.find,
)
"""Every cause that this version can name. Their order means nothing."""


def find_all(signs: Signs) -> list[Finding]:
    """All findings of a run, unranked."""
    return [finding for find in FINDERS for finding in find(signs)]
