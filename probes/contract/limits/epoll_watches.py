"""How many descriptors one user may have in epoll sets: fs.epoll.max_user_watches (epoll(7))."""

from __future__ import annotations

from probes.contract.limits.limit import Bound, HostTable, Limit

LIMIT = Limit(
    name="epoll_watches",
    title="Epoll entries of one user",
    words="the epoll entries of one user",
    unit="count",
    noun="entries",
    source="fs.epoll.max_user_watches",
    cost="two where both ends are on this host",
    raised_by="sysctl fs.epoll.max_user_watches",
    bound=Bound.STOPS,
    labels={"host": "epoll entries of one user"},
    is_shared=True,
    table=HostTable(
        maximum="fs/epoll/max_user_watches",
        per_connection_count=2,
        per_process_count=8,
        note="epoll entries of one user, both ends",
    ),
)
