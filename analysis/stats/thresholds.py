"""What is full, what is busy and how late a sample may come, where several findings judge by it.

A threshold of one finding alone stays beside it, with its reason.
"""

from __future__ import annotations

FULL_CORE_PCT = 80.0
"""CPU of a process that had most of a core; of two that share one and want it whole each has 50."""

STEADY_CORE_PCT = 85.0
"""The same for work that comes in bursts (pings, broadcasts), as a mean of half a second."""

NEVER_RESTED_PCT = 90.0
"""CPU and run queue wait together of a process that hardly ever slept."""

FULL_HOST_PCT = 95.0
"""Mean of all cores: clock ticks of 10 ms (CONFIG_HZ=100) hide the last few per cent."""

OTHERS_SHARE = 0.25
"""Of all cores that processes beside the run took: then the host is full of them too."""

FULL_SHARE = 0.98
"""Use by capacity of what the kernel counts to the unit, where it is sampled twice a second: the
ramp goes on for a sample after the last look, and per-CPU counters are summed approximately
(lib/percpu_counter.c: 32 a core)."""

FULL_TABLE_SHARE = 0.95
"""Of a table from which the kernel takes entries early: connection tracking does from 95 % on
(net/netfilter/nf_conntrack_core.c, nf_conntrack_max95), so it may be sampled below its size."""

LATE_EVENT_S = 0.1
"""Moments of one cause in two tables: a client's clock and a probe's, both read after the fact."""

LATE_LIVE_S = 0.3
"""A sample of ``live_samples`` still belongs to what ended before it: its period is 0.25 s."""

LATE_CPU_S = 0.5
"""The same of ``process_samples`` and ``host_cpu``: their period."""

LATE_TABLE_S = 0.6
"""The same of tables of the host (``sockstat``): their period of 0.5 s, and a little."""
