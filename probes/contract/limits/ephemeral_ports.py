"""How many local ports connect finds for one destination: ip(7), ip_local_port_range."""

from __future__ import annotations

from probes.contract.limits.limit import Bound, Limit

LIMIT = Limit(
    name="ephemeral_ports",
    title="Local ports for one destination",
    words="the local ports",
    unit="ports",
    noun="ports",
    source="net.ipv4.ip_local_port_range",
    cost="one of its source address and destination port",
    raised_by="more source addresses, more destination ports, a wider range",
    bound=Bound.STOPS,
    labels={"ports": "ports of the fullest group"},
)
