"""What keep-alives cost: CPU per message, from the hold phase, and where that fills a core."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.frames.cpu import cpu_between
from analysis.frames.run_view import RunView
from probes.contract.schema import SERVER_ROLES

_LEAST_MESSAGES = 100
_LEAST_S = 1.0


@dataclass(frozen=True, slots=True)
class PingWork:
    """Keep-alives of one server worker in the hold phase.

    Attributes:
        pid: The worker.
        cpu_pct: Its CPU, 100 is a full core.
        pings_per_s: Pings sent.
        messages_per_s: Pings, pongs and data messages, both ways.
        cpu_us: CPU per message, in microseconds.
        open_count: Connections open in it at the end.
        interval_s: The keep-alive interval.
        span_s: How long was measured.
    """

    pid: int
    cpu_pct: float
    pings_per_s: float
    messages_per_s: float
    cpu_us: float
    open_count: int
    interval_s: float
    span_s: float

    @property
    def due_per_s(self) -> float:
        """Pings that the interval asks for."""
        return self.open_count / self.interval_s

    @property
    def is_long_enough(self) -> bool:
        """Three intervals or more were measured, so that rates are not a matter of phase."""
        return self.span_s >= 3 * self.interval_s

    @property
    def wanted_cpu_pct(self) -> float:
        """CPU at the rate that is due; more than ``cpu_pct`` where the pings fall behind."""
        if not self.is_long_enough or self.pings_per_s <= 0:
            return self.cpu_pct
        return max(self.cpu_pct, self.cpu_pct * self.due_per_s / self.pings_per_s)

    @property
    def error_pct(self) -> float:
        """How far ``cpu_pct`` may be off: clock ticks of 10 ms, and part of an interval."""
        cpu_s = max(0.01, self.cpu_pct / 100 * self.span_s)
        return 100 * 0.01 / cpu_s + 100 * min(1.0, self.interval_s / self.span_s) / 2


def interval_of(view: RunView) -> float:
    """The keep-alive interval in seconds, 0 when they are off."""
    return float(view.settings.get("keepalive_s") or 0)


def ping_work(view: RunView) -> list[PingWork]:
    """Of each worker whose messages are mostly keep-alives; the one that works most first."""
    interval_s = interval_of(view)
    if view.hold.duration_s < _LEAST_S or not interval_s:
        return []
    live = view.frames["live_samples"]
    at_s = view.seconds_of(live["at_ns"])
    inside = live[
        (live["role"] == "server") & (at_s >= view.hold.start_s) & (at_s <= view.hold.end_s)
    ]
    mean = cpu_between(view, view.hold).set_index("pid")["cpu_pct"]
    found = []
    for pid, part in inside.groupby("pid", sort=True):
        if len(part) < 2 or pid not in mean.index:
            continue
        span_s = float(part["at_ns"].iloc[-1] - part["at_ns"].iloc[0]) / 1e9
        sent = _grown(part, "tx_pings_total")
        kept = sent + _grown(part, "rx_pings_total") + _grown(part, "rx_pongs_total")
        data = _grown(part, "rx_messages_total") + _grown(part, "tx_messages_total")
        if kept < _LEAST_MESSAGES or data > kept or span_s <= 0:
            continue
        per_s = (kept + data) / span_s
        cpu_pct = float(mean.loc[int(str(pid))])
        found.append(
            PingWork(
                pid=int(str(pid)),
                cpu_pct=cpu_pct,
                pings_per_s=sent / span_s,
                messages_per_s=per_s,
                cpu_us=cpu_pct * 1e4 / per_s,
                open_count=int(part["open_count"].iloc[-1]),
                interval_s=interval_s,
                span_s=span_s,
            )
        )
    return sorted(found, key=lambda work: -work.cpu_pct)


def _grown(part: pd.DataFrame, column: str) -> float:
    return float(part[column].iloc[-1] - part[column].iloc[0])


def fleet_cpu_pct(view: RunView) -> float:
    """CPU of all servers and clients together in the hold phase, 100 is one core."""
    mean = cpu_between(view, view.hold)
    return float(mean[mean["role"].isin([*SERVER_ROLES, "client"])]["cpu_pct"].sum())
