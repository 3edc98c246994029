"""How many flows the kernel tracks: nf_conntrack_max (net/netfilter/nf_conntrack_core.c)."""

from __future__ import annotations

from probes.contract.limits.limit import Bound, HostTable, Limit, Sampled

LIMIT = Limit(
    name="conntrack",
    title="Connection tracking table",
    words="the connection tracking table",
    unit="count",
    noun="entries",
    source="nf_conntrack_count, nf_conntrack_max",
    cost="one, where a rule has the kernel track it",
    raised_by="sysctl net.netfilter.nf_conntrack_max",
    bound=Bound.STOPS,
    labels={"host": "tracked connections"},
    table=HostTable(
        maximum="net/netfilter/nf_conntrack_max",
        used="net/netfilter/nf_conntrack_count",
        per_connection_count=1,
        is_per_namespace=True,
        note="{used} in use; one a connection",
        sampled=Sampled(table="sockstat", used="conntrack_count", capacity="conntrack_max_count"),
    ),
)
