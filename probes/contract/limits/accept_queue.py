"""How many connections may wait for accept: listen(2), net.core.somaxconn."""

from __future__ import annotations

from probes.contract.limits.limit import Bound, Limit

LIMIT = Limit(
    name="accept_queue",
    title="Accept queue",
    words="the accept queue",
    unit="count",
    noun="connections",
    source="iter/tcp: sk_ack_backlog, sk_max_ack_backlog",
    cost="one from the end of its handshake until it is accepted",
    raised_by="--backlog, sysctl net.core.somaxconn",
    bound=Bound.DELAYS,
    labels={"listener": "accept queue of one listener"},
)
