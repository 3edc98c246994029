"""How many pages TCP may hold in buffers on the host: tcp(7), tcp_mem."""

from __future__ import annotations

from probes.contract.limits.limit import Bound, Limit

LIMIT = Limit(
    name="tcp_mem",
    title="TCP buffer memory",
    words="TCP's memory (tcp_mem)",
    unit="pages",
    source="/proc/net/sockstat, net.ipv4.tcp_mem",
    cost="none while it is idle; 4 during its handshake",
    raised_by="sysctl net.ipv4.tcp_mem",
    bound=Bound.DELAYS,
    labels={"host": "buffer pages during the ramp"},
    is_shared=True,
)
