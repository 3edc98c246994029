"""How much of one core a worker can have: its loop runs in one thread."""

from __future__ import annotations

from probes.contract.limits.limit import Bound, Limit

LIMIT = Limit(
    name="cpu_worker",
    title="CPU of the busiest worker",
    words="the CPU",
    unit="pct",
    source="process_samples",
    cost="what its pings and messages take of the worker",
    raised_by="more workers, fewer pings",
    bound=Bound.SLOWS,
)
