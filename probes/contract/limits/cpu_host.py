"""How much CPU all cores give together, less what others take."""

from __future__ import annotations

from probes.contract.limits.limit import Bound, Limit

LIMIT = Limit(
    name="cpu_host",
    title="CPU of the host",
    words="the CPU",
    unit="pct",
    source="process_samples of the fleet, /proc/stat",
    cost="what its pings and messages take at both ends",
    raised_by="more cores, fewer pings",
    bound=Bound.SLOWS,
    is_shared=True,
)
