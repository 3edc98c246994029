"""One module per cause: a pure function from signs to findings, with the evidence that proves it.

Each says in its docstring what proves it and what tells it from its neighbours. Severity is left
at ``warning``: which finding stopped the run is decided by ``analysis.ranking`` over all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from analysis.evidence import Finding
from analysis.findings import (
    accept_spin,
    ephemeral_ports_exhausted,
    fd_limit_process,
    hot_worker_code,
    keepalive_storm,
    reached,
    server_resets_when_full,
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
)
"""Every cause that this version can name. Their order means nothing."""


def find_all(signs: Signs) -> list[Finding]:
    """All findings of a run, unranked."""
    return [finding for find in FINDERS for finding in find(signs)]
