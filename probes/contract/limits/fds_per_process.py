"""How many descriptors one process may have open: getrlimit(2), RLIMIT_NOFILE."""

from __future__ import annotations

from probes.contract.limits.limit import Bound, Limit

LIMIT = Limit(
    name="fds_per_process",
    title="Open files of one process",
    words="the descriptor limit",
    unit="count",
    noun="descriptors",
    source="getrlimit(RLIMIT_NOFILE), /proc/PID/fd",
    cost="one in the server's process and one in the client's",
    raised_by="more processes, --nofile, ulimit -n, LimitNOFILE of a unit",
    bound=Bound.STOPS,
    labels={"server": "descriptors of the fullest worker", "client": "descriptors of a client"},
)
