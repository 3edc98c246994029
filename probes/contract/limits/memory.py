"""How much memory there is: MemAvailable, or what the control group leaves of it."""

from __future__ import annotations

from probes.contract.limits.limit import Bound, Limit

LIMIT = Limit(
    name="memory",
    title="Memory",
    words="the memory",
    unit="bytes",
    source="/proc/meminfo, memory.max of the control group",
    cost="9,300 bytes with both ends, kernel and user",
    raised_by="more memory, a larger memory.max",
    bound=Bound.STOPS,
    labels={"host": "memory, kernel and user"},
    is_shared=True,
)
