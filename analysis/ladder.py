"""The limit ladder: for every limit the capacity, the use, the slope, and where it is met."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rung:
    """One limit of this run. Sorted by ``predicted_connections``, the first is the next wall.

    Attributes:
        limit: fds_per_process, file_max, ephemeral_ports, tcp_mem, memory, cpu_worker, cpu_host,
            accept_queue or conntrack.
        scope: process, port_group, host or listener.
        subject: What it is about, e.g. ``server 3 (pid 812)``.
        capacity: Where the limit is, in ``unit``; None when it could not be read.
        used_at_peak: Use when most connections were open, in ``unit``; None when not measured.
        unit: count, pages, bytes, pct, ...
        per_connection: Use per connection of the whole run (not of this process), in ``unit``.
        fit_error_pct: Standard error of the slope in percent of the slope; None when the slope
            was not fitted (it is exact by construction, or this run cannot see it).
        predicted_connections: Connections of the whole run at which this limit is met; None when
            this run cannot tell: ``note`` says why.
        source: Where capacity and use come from.
        note: For people: what raises it, or why there is no prediction.
        met: The run was at this limit.
    """

    limit: str
    scope: str
    subject: str
    capacity: float | None
    used_at_peak: float | None
    unit: str
    per_connection: float | None
    fit_error_pct: float | None
    predicted_connections: int | None
    source: str
    note: str = ""
    met: bool = False
